//! What names an item.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasherDefault, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

/// The longest name of an item, in bytes.
const LONGEST: usize = 4096;

/// What names an item of a run: the same bytes mean the same item, in every session of its job.
///
/// An item that may change, and is to be done again then, has that in its name, too: a hash, or the time of its last change.
pub trait ItemKey {
    /// The bytes, at most 4096. People are shown them as text.
    fn key(&self) -> Cow<'_, [u8]>;
}

macro_rules! named_by {
    ($($type:ty: $bytes:expr,)*) => {
        $(impl ItemKey for $type {
            fn key(&self) -> Cow<'_, [u8]> {
                let bytes: fn(&Self) -> &[u8] = $bytes;
                Cow::Borrowed(bytes(self))
            }
        })*
    };
}

named_by! {
    str: str::as_bytes,
    String: |text| text.as_bytes(),
    [u8]: |bytes| bytes,
    Vec<u8>: |bytes| bytes,
    OsStr: OsStrExt::as_bytes,
    OsString: |text| text.as_bytes(),
    Path: |path| path.as_os_str().as_bytes(),
    PathBuf: |path| path.as_os_str().as_bytes(),
}

macro_rules! named_by_number {
    ($($type:ty)*) => {
        $(impl ItemKey for $type {
            fn key(&self) -> Cow<'_, [u8]> {
                Cow::Owned(self.to_string().into_bytes())
            }
        })*
    };
}

named_by_number! { i32 i64 u32 u64 usize }

impl<T: ItemKey + ?Sized> ItemKey for &T {
    fn key(&self) -> Cow<'_, [u8]> {
        (**self).key()
    }
}

impl<T: ItemKey + ?Sized> ItemKey for Arc<T> {
    fn key(&self) -> Cow<'_, [u8]> {
        (**self).key()
    }
}

impl<T: ItemKey + ToOwned + ?Sized> ItemKey for Cow<'_, T> {
    fn key(&self) -> Cow<'_, [u8]> {
        (**self).key()
    }
}

/// A hash, say.
impl<const N: usize> ItemKey for [u8; N] {
    fn key(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self)
    }
}

impl<T: ItemKey + ?Sized> ItemKey for Box<T> {
    fn key(&self) -> Cow<'_, [u8]> {
        (**self).key()
    }
}

/// What an item is known by in memory, where a million of them have to fit: 128 bits of its BLAKE3, which no two share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(u128);

impl Name {
    pub(crate) fn of(item: &[u8]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&blake3::hash(item).as_bytes()[..16]);
        Self(u128::from_le_bytes(half))
    }
}

/// The bytes of an item's name; an error when there are too many.
pub(crate) fn checked(item: &(impl ItemKey + ?Sized)) -> Result<Cow<'_, [u8]>> {
    let key = item.key();
    match key.len() {
        ..=LONGEST => Ok(key),
        _ => Err(Error::TooLarge { what: "the name of an item", limit: LONGEST as u64 }),
    }
}

/// Hashes a [`Name`], which is a hash.
#[derive(Default)]
pub(crate) struct Straight(u64);

impl Hasher for Straight {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, name: u128) {
        self.0 = name as u64;
    }
}

pub(crate) type BuildStraight = BuildHasherDefault<Straight>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_name_the_same_item() {
        let text = String::from("a/b");
        let same: [&dyn ItemKey; 5] = [&"a/b", &text, &Path::new("a/b"), &PathBuf::from("a/b"), &b"a/b".to_vec()];
        assert!(same.iter().all(|item| Name::of(&item.key()) == Name::of(b"a/b")));
        assert_eq!(17_u64.key(), "17".key());
        assert_eq!((b"a/b".key(), Cow::Borrowed("a/b").key()), (text.key(), Arc::<str>::from("a/b").key()));
        assert_ne!(Name::of(b"a"), Name::of(b"b"));
        assert!(checked(&vec![b'x'; LONGEST]).is_ok() && checked(&vec![b'x'; LONGEST + 1]).is_err());
    }
}
