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

/// What an item is known by in memory, where a million of them have to fit: 128 bits of its BLAKE3. No two share that, also where
/// somebody makes up names that are to; and an item that was taken for another would never be done.
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

/// Names of items, one behind the other, so that each costs no allocation of its own.
#[derive(Debug, Default)]
pub(super) struct Items {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Items {
    pub(super) fn push(&mut self, item: &[u8]) {
        self.bytes.extend_from_slice(item);
        self.ends.push(self.bytes.len());
    }

    /// Takes away those behind the first `at`, and answers them.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let mut later = Self::default();
        self.iter().skip(at).for_each(|item| later.push(item));
        self.ends.truncate(at);
        self.bytes.truncate(self.ends.last().copied().unwrap_or(0));
        later
    }

    pub(super) fn append(&mut self, others: &Self) {
        others.iter().for_each(|item| self.push(item));
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How long all of them are.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let start = |at: usize| at.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.ends.iter().enumerate().map(move |(at, end)| &self.bytes[start(at)..*end])
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
    fn items_are_what_they_were_and_in_their_order() {
        let (mut items, mut others) = (Items::default(), Items::default());
        ["a", "", "bcd"].iter().for_each(|item| items.push(item.as_bytes()));
        others.push(b"e");
        items.append(&others);
        assert_eq!(items.iter().collect::<Vec<_>>(), [&b"a"[..], b"", b"bcd", b"e"]);
        assert_eq!((items.len(), items.bytes(), items.is_empty()), (4, 5, false));
        assert!(Items::default().is_empty() && Items::default().iter().next().is_none());
    }

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
