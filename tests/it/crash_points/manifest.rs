//! Everything a tree promises to keep, as a value that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use walkdir::WalkDir;

/// Seconds and nanoseconds since 1970.
type Time = (i64, i64);

#[derive(Clone, Debug, PartialEq)]
enum Content {
    File(Vec<u8>),
    Directory,
    Symlink(PathBuf),
}

#[derive(Clone, Debug)]
struct Entry {
    content: Content,
    mode: u32,
    /// None when any time will do.
    mtime: Option<Time>,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// A tree without its `.journal`.
#[derive(Clone, Debug)]
pub(crate) struct Manifest(BTreeMap<PathBuf, Entry>);

impl Manifest {
    pub(crate) fn of(root: &Path) -> Self {
        let entries = tree(root).map(|entry| {
            let meta = entry.metadata().unwrap();
            let content = if meta.is_dir() {
                Content::Directory
            } else if meta.is_symlink() {
                Content::Symlink(fs::read_link(entry.path()).unwrap())
            } else {
                Content::File(fs::read(entry.path()).unwrap())
            };
            let path = entry.path().strip_prefix(root).unwrap().to_owned();
            let mtime = Some((meta.mtime(), meta.mtime_nsec()));
            (path, Entry { content, mode: meta.mode(), mtime, xattrs: xattrs(entry.path()) })
        });
        Self(entries.collect())
    }

    /// What a later run of the same change has to lead to: the times of what was there `before`, wherever it was moved
    /// to, and any time for what the change made and for directories, whose entries it changed.
    pub(crate) fn with_times_only_of(mut self, before: &Self) -> Self {
        let old: BTreeSet<_> = before.0.values().filter_map(|entry| entry.mtime).collect();
        for entry in self.0.values_mut() {
            entry.mtime = entry.mtime.filter(|time| entry.content != Content::Directory && old.contains(time));
        }
        self
    }

    /// What a commit promises of it, if it was made after `before`: directories and symlinks that it changed may have any time.
    pub(crate) fn committed_after(mut self, before: &Self) -> Self {
        for (path, entry) in &mut self.0 {
            let old = before.0.get(path).is_some_and(|old| old.content == entry.content && old.mtime == entry.mtime);
            match entry.content {
                Content::Directory => entry.mtime = None,
                Content::Symlink(_) if !old => entry.mtime = None,
                _ => {}
            }
        }
        self
    }

    pub(crate) fn file(&self, path: &str) -> Option<&[u8]> {
        match &self.0.get(Path::new(path))?.content {
            Content::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The bytes of every file.
    pub(crate) fn contents(&self) -> impl Iterator<Item = &[u8]> {
        self.0.values().filter_map(|entry| match &entry.content {
            Content::File(bytes) => Some(bytes.as_slice()),
            _ => None,
        })
    }

    pub(crate) fn link(&self, path: &str) -> Option<&Path> {
        match &self.0.get(Path::new(path))?.content {
            Content::Symlink(target) => Some(target),
            _ => None,
        }
    }

    pub(crate) fn mode(&self, path: &str) -> Option<u32> {
        Some(self.0.get(Path::new(path))?.mode & 0o7777)
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(Path::new(path))
    }

    /// One line for each path that is not as `expected`.
    pub(crate) fn differences(&self, expected: &Self) -> Vec<String> {
        let paths: BTreeSet<_> = self.0.keys().chain(expected.0.keys()).collect();
        let differs = |path: &&PathBuf| match (self.0.get(*path), expected.0.get(*path)) {
            (Some(is), Some(wanted)) => {
                is.content != wanted.content
                    || is.mode != wanted.mode
                    || is.xattrs != wanted.xattrs
                    || (wanted.mtime.is_some() && is.mtime != wanted.mtime)
            }
            _ => true,
        };
        let line = |path| format!("{path:?}: is {}, not {}", brief(self.0.get(path)), brief(expected.0.get(path)));
        paths.into_iter().filter(differs).map(line).collect()
    }
}

fn brief(entry: Option<&Entry>) -> String {
    let Some(Entry { content, mode, mtime, xattrs }) = entry else { return "absent".to_owned() };
    let content = match content {
        Content::File(bytes) => {
            format!("{} bytes {:?}", bytes.len(), String::from_utf8_lossy(&bytes[..bytes.len().min(24)]))
        }
        other => format!("{other:?}"),
    };
    let mtime = mtime.map_or("any time".to_owned(), |(seconds, nanos)| format!("{seconds}.{nanos:09}"));
    format!("{content} {mode:o} {mtime} {xattrs:?}")
}

/// Gives every path below `root`, `.journal` aside, a time of its own in the past, so that one that was lost shows.
pub(crate) fn age(root: &Path) {
    for (n, entry) in (0..).zip(tree(root)) {
        set_time(entry.path(), (1_000_000_000 + n, 123_456_000 + n));
    }
}

/// What lies below `root`, `.journal` aside; what a directory holds comes before it.
fn tree(root: &Path) -> impl Iterator<Item = walkdir::DirEntry> {
    let below = |entry: &walkdir::DirEntry| entry.depth() != 1 || entry.file_name() != ".journal";
    let walk = WalkDir::new(root).min_depth(1).sort_by_file_name().into_iter().filter_entry(below);
    walk.map(Result::unwrap).collect::<Vec<_>>().into_iter().rev()
}

/// The xattrs that an ordinary user may set.
fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else { return Vec::new() };
    let names = names[..length].split(|&byte| byte == 0).map(|name| String::from_utf8_lossy(name).into_owned());
    let mut found: Vec<_> = names
        .filter(|name| name.starts_with("user."))
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, &name, &mut value).unwrap();
            (name, value[..length].to_vec())
        })
        .collect();
    found.sort();
    found
}

/// Copies a tree with modes, times and xattrs, `.journal` included.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in WalkDir::new(from).min_depth(1) {
        let entry = entry.unwrap();
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            fs::create_dir(&target).unwrap();
        } else if meta.is_symlink() {
            symlink(fs::read_link(entry.path()).unwrap(), &target).unwrap();
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
        if !meta.is_symlink() {
            for (name, value) in xattrs(entry.path()) {
                rustix::fs::setxattr(&target, &name, &value, rustix::fs::XattrFlags::empty()).unwrap();
            }
            fs::set_permissions(&target, fs::Permissions::from_mode(meta.mode())).unwrap();
        }
    }
    // Directories last: filling one changes its time.
    for entry in WalkDir::new(from).contents_first(true) {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        set_time(&to.join(entry.path().strip_prefix(from).unwrap()), (meta.mtime(), meta.mtime_nsec()));
    }
}

pub(crate) fn set_time(path: &Path, (seconds, nanos): Time) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
