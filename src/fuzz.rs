//! Entrances for fuzzing.

use std::collections::HashMap;

use crate::codec;
use crate::fs::append::End;
use crate::fs::attrs::Attrs;
use crate::fs::identity::Identity;
use crate::journal::{EventDetails, Mark, Redo, What};
use crate::tree::{Entry, PreImage, Was};

/// Decodes arbitrary bytes as every kind of record, and asserts that what decodes comes back the same.
pub fn record(bytes: &[u8]) {
    fn round<T>(bytes: &[u8])
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        if let Ok(record) = codec::decode::<T>(bytes) {
            let again = codec::encode(&record).expect("what was decoded can be encoded");
            assert_eq!(codec::decode::<T>(&again).ok().as_ref(), Some(&record));
        }
    }
    round::<Redo>(bytes);
    round::<Mark>(bytes);
    round::<Option<Mark>>(bytes);
    round::<EventDetails>(bytes);
    round::<Identity>(bytes);
    round::<PreImage>(bytes);
    round::<Vec<Entry>>(bytes);
    round::<(Attrs, (i64, u32))>(bytes);
    round::<(Vec<u8>, u64)>(bytes);
    round::<crate::time::Process>(bytes);
    // What overlayfs notes with a file, and any program may.
    drop(crate::fs::handle::Handle::from_origin(bytes));
}

/// Frames bytes as a record, so that a fuzzer gets past the checksum.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    codec::frame(payload)
}

/// Has this process be killed at the `nth` step of the engine from now, from 1, when it has called `last`.
pub fn die_at_step(nth: u64, last: fn(&'static str)) {
    crate::fault::steps::end_at(nth, last);
}

/// Parses arbitrary bytes as a path of the tree, and gives its normal form.
pub fn path(bytes: &[u8]) -> Option<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let path = crate::path::RelPath::parse(std::ffi::OsStr::from_bytes(bytes)).ok()?;
    assert_eq!(crate::path::RelPath::from_stored(path.as_bytes()).ok().as_ref(), Some(&path));
    Some(path.as_bytes().to_vec())
}

/// A file of a copy that stands for a file of the original.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Its inode.
    pub ino: u64,
    /// When that was changed.
    pub ctime: (i64, u32),
    /// When it was made.
    pub btime: (i64, u32),
}

/// The record of a copied journal that says of the copy what the original's said of the original: a copy has other inodes
/// and other times of change, and recovery tells by them. None where that table has no such records, or these bytes are none.
pub fn moved(table: &str, bytes: &[u8], copies: &HashMap<u64, Copied>) -> Option<Vec<u8>> {
    fn change<T>(bytes: &[u8], change: impl FnOnce(&mut T)) -> Option<Vec<u8>>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        let mut record = codec::decode::<T>(bytes).ok()?;
        change(&mut record);
        codec::encode(&record).ok()
    }
    let moved = |ino: &mut u64| copies.get(ino).copied().inspect(|copied| *ino = copied.ino);
    let identity = |seen: &mut Identity| {
        if let Some(copied) = moved(&mut seen.ino) {
            seen.ctime = copied.ctime;
        }
    };
    let mark = |mark: &mut Mark| mark.state_dir = copies.get(&mark.state_dir).map_or(mark.state_dir, |dir| dir.ino);
    match table {
        "journal_redo" => change(bytes, |redo: &mut Redo| {
            redo.old.iter_mut().for_each(identity);
            if let What::Content { ino, .. } | What::Symlink { ino, .. } = &mut redo.what {
                moved(ino);
            }
            if let What::Move { ino, btime, .. } = &mut redo.what {
                *btime = moved(ino).map_or(*btime, |copied| copied.btime);
            }
        }),
        "journal_preimage" => change(bytes, |image: &mut PreImage| {
            let seen = image.was.ino().and_then(|ino| copies.get(&ino));
            image.born = seen.map_or(image.born, |copied| copied.btime);
            match &mut image.was {
                Was::Directory { ino, .. } | Was::Symlink { ino, .. } | Was::Appended(End { ino, .. }) => {
                    moved(ino);
                }
                Was::Database { seen, kept, .. } | Was::File { seen, kept, .. } => {
                    identity(seen);
                    identity(kept);
                }
                Was::Absent | Was::Lost => {}
            }
        }),
        "journal_tree_part" => change(bytes, |entries: &mut Vec<Entry>| {
            for entry in entries {
                if let Some(copied) = moved(&mut entry.ino) {
                    (entry.ctime, entry.btime) = (copied.ctime, copied.btime);
                }
            }
        }),
        "journal_txn" => change(bytes, mark),
        "journal_guard" => change(bytes, |own: &mut Option<Mark>| own.iter_mut().for_each(mark)),
        _ => None,
    }
}
