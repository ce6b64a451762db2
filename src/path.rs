//! Paths of the tree: bytes relative to the root, checked once, at the door.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fault::{Fault, planted};

/// The default name of the state directory, in the root.
pub(crate) const STATE_DIR: &str = ".journal";
/// The name of the engine's own directory at the top of a mount inside the root.
pub(crate) const AREA_DIR: &str = ".journal-stage";

const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4095;

/// A path below the root: not empty, relative, no `.`, `..`, empty component or NUL, no engine's name. Ordered so
/// that a directory comes right before all that lies below it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub(crate) struct RelPath(Arc<[u8]>);

impl RelPath {
    /// Checks what a caller names. `./a//b/` is taken as `a/b`.
    pub(crate) fn parse(path: impl AsRef<Path>) -> Result<Self> {
        let bytes = path.as_ref().as_os_str().as_bytes();
        Self::check(bytes).map_err(|reason| Error::BadPath { path: path.as_ref().to_owned(), reason })
    }

    /// Checks what was stored: it must be just as it was written.
    pub(crate) fn from_stored(bytes: &[u8]) -> Result<Self> {
        if planted(Fault::StoredPathsBelieved) {
            return Ok(Self(bytes.into()));
        }
        match Self::check(bytes) {
            Ok(path) if *path.0 == *bytes => Ok(path),
            Ok(_) => Err(Error::corrupt("a stored path", "it is not in its normal form")),
            Err(reason) => Err(Error::corrupt("a stored path", reason)),
        }
    }

    /// The same, where it may be the root itself.
    pub(crate) fn from_stored_or_root(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() { Ok(Self::root()) } else { Self::from_stored(bytes) }
    }

    /// The root itself: only where what it was is kept like any other path. Stored it is empty; to the kernel, and to people,
    /// it is `.`.
    pub(crate) fn root() -> Self {
        Self([].into())
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    fn check(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.is_empty() {
            return Err("it is empty");
        }
        if bytes[0] == b'/' {
            return Err("it is absolute; name it relative to the root");
        }
        if bytes.contains(&0) {
            return Err("it holds a NUL byte");
        }
        let mut normal = Vec::with_capacity(bytes.len());
        for name in bytes.split(|&byte| byte == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err("it holds `..`"),
                name if name.len() > NAME_MAX => return Err("a name in it is longer than 255 bytes"),
                name if name == AREA_DIR.as_bytes() => return Err("`.journal-stage` is the engine's own name"),
                name if normal.is_empty() && name == STATE_DIR.as_bytes() => {
                    return Err("it lies in the journal's state directory");
                }
                name => {
                    if !normal.is_empty() {
                        normal.push(b'/');
                    }
                    normal.extend_from_slice(name);
                }
            }
        }
        match normal.len() {
            0 => Err("it names the root itself"),
            1..=PATH_MAX => Ok(Self(normal.into())),
            _ => Err("it is longer than 4095 bytes"),
        }
    }

    /// What is shown where a stored path cannot be read.
    pub(crate) fn unknown() -> Self {
        Self(b"?"[..].into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn as_path(&self) -> &Path {
        Path::new(if self.is_root() { OsStr::new(".") } else { OsStr::from_bytes(&self.0) })
    }

    pub(crate) fn to_path_buf(&self) -> PathBuf {
        self.as_path().to_owned()
    }

    /// The last component.
    pub(crate) fn name(&self) -> &OsStr {
        if self.is_root() {
            return OsStr::new(".");
        }
        let at = self.0.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
        OsStr::from_bytes(&self.0[at..])
    }

    /// The directory it lies in; none when that is the root.
    pub(crate) fn parent(&self) -> Option<RelPath> {
        self.parent_bytes().map(|parent| Self(parent.into()))
    }

    /// The same, to look it up with.
    pub(crate) fn parent_bytes(&self) -> Option<&[u8]> {
        let at = self.0.iter().rposition(|&byte| byte == b'/')?;
        Some(&self.0[..at])
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/')
    }

    /// A path below this one, by a component known to be good.
    pub(crate) fn join(parent: Option<&RelPath>, name: &[u8]) -> RelPath {
        match parent {
            None => Self(name.into()),
            Some(root) if root.is_root() => Self(name.into()),
            // One allocation: the length is known.
            Some(parent) => Self(parent.0.iter().chain(b"/").chain(name).copied().collect()),
        }
    }

    /// A path beside this one, whose name is longer by `suffix`; none when it would be too long.
    pub(crate) fn with_suffix(&self, suffix: &[u8]) -> Option<RelPath> {
        (self.name().len() + suffix.len() <= NAME_MAX).then(|| Self([&self.0[..], suffix].concat().into()))
    }

    /// True when this is `other` or lies below it.
    pub(crate) fn is_within(&self, other: &RelPath) -> bool {
        let below = |rest: &[u8]| rest.is_empty() || rest[0] == b'/';
        other.is_root() || self.0.strip_prefix(other.as_bytes()).is_some_and(below)
    }

    /// True when one of the two is the other or lies below it.
    pub(crate) fn overlaps(&self, other: &RelPath) -> bool {
        self.is_within(other) || other.is_within(self)
    }
}

impl Borrow<[u8]> for RelPath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.names().cmp(other.names())
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_path().fmt(f)
    }
}

impl AsRef<Path> for RelPath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl TryFrom<Vec<u8>> for RelPath {
    type Error = Error;

    fn try_from(bytes: Vec<u8>) -> Result<Self> {
        Self::from_stored(&bytes)
    }
}

impl From<RelPath> for Vec<u8> {
    fn from(path: RelPath) -> Self {
        path.0.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_names_the_path_and_why() {
        let long = "x".repeat(256);
        let deep = "d/".repeat(2100);
        for bad in ["", "/", "/etc/passwd", "..", "a/../b", "a/..", ".", "./", ".journal", ".journal/journal.db"]
            .into_iter()
            .chain(["a/.journal-stage/x", "a\0b", &long, &deep, "./.journal"])
        {
            let error = RelPath::parse(bad).unwrap_err();
            assert!(matches!(&error, Error::BadPath { path, .. } if path == Path::new(bad)), "{error}");
        }
    }

    #[test]
    fn what_is_accepted_is_normal() {
        for (given, normal) in
            [("a", "a"), ("./a//b/", "a/b"), ("a/.journal", "a/.journal"), (".journals", ".journals"), ("a/.", "a")]
        {
            assert_eq!(RelPath::parse(given).unwrap().as_path(), Path::new(normal));
        }
        let bytes = OsStr::from_bytes(b"caf\xe9/\xff");
        assert_eq!(RelPath::parse(bytes).unwrap().as_bytes(), bytes.as_bytes());
    }

    #[test]
    fn a_directory_comes_right_before_what_lies_below_it() {
        let mut paths = ["a-b", "a/b", "a", "a/b/c", "a!"].map(|path| RelPath::parse(path).unwrap());
        paths.sort();
        assert_eq!(paths.map(|path| path.to_path_buf()), ["a", "a/b", "a/b/c", "a!", "a-b"].map(PathBuf::from));
    }

    #[test]
    fn the_root_holds_everything_and_comes_first() {
        let (root, a) = (RelPath::root(), RelPath::parse("!").unwrap());
        assert!(a.is_within(&root) && !root.is_within(&a) && root < a);
        assert_eq!((root.as_path(), root.name(), root.parent()), (Path::new("."), OsStr::new("."), None));
        assert_eq!(RelPath::join(Some(&root), b"!"), a);
        assert!(RelPath::from_stored(b"").is_err() && RelPath::from_stored_or_root(b"").unwrap().is_root());
    }

    #[test]
    fn overlap_is_by_component() {
        let [a, ab, a_b] = ["a", "a/b", "a-b"].map(|path| RelPath::parse(path).unwrap());
        assert!(a.overlaps(&ab) && ab.overlaps(&a) && ab.is_within(&a) && !a.is_within(&ab));
        assert!(!a.overlaps(&a_b));
    }
}
