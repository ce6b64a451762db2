//! What can be wrong with a blob.

/// Why a blob cannot be had, written or removed: [`Error::Blob`](crate::Error::Blob).
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// There is none of this name: never was, or it was removed.
    #[error("there is no blob {id}")]
    NotFound {
        /// The blob.
        id: String,
    },
    /// Its writer died before it was sealed. It will never be: whoever wrote it has to write it again, as another blob.
    #[error(
        "blob {id} was never sealed: its writer died having written {written} bytes; write it again under another name"
    )]
    Incomplete {
        /// The blob.
        id: String,
        /// How many bytes had reached the stage.
        written: u64,
    },
    /// Its writer has given it up.
    #[error("blob {id} was given up by its writer: write it again under another name")]
    Aborted {
        /// The blob.
        id: String,
    },
    /// What is there is not what was sealed.
    #[error(
        "blob {id} is damaged: {damage}; write the same content again, or put its file in blobs/ back from a backup"
    )]
    Damaged {
        /// The blob.
        id: String,
        /// What was expected, and what was found.
        damage: Damage,
    },
    /// This name was used before. None is used twice, whatever became of the blob.
    #[error("the name {id} was used for a blob before: no name is used twice, choose another")]
    Exists {
        /// The blob.
        id: String,
    },
    /// No blob can be called this.
    #[error("{id:?} cannot be the name of a blob: {reason}")]
    BadId {
        /// The name as given.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It was begun by another journal than the transaction that was to seal it.
    #[error(
        "blob {id} was begun by another journal: begin it, and the transaction that seals it, by the same Journal or clones of it"
    )]
    OtherJournal {
        /// The blob.
        id: String,
    },
    /// A write of it has failed, so what there is has a hole.
    #[error("an earlier write of this blob has failed ({why}): begin another")]
    WriteFailed {
        /// How.
        why: String,
    },
    /// More or less was written than had been announced.
    #[error("{written} bytes were written of a blob that was to have {expected}: nothing was sealed")]
    WrongSize {
        /// How many bytes there were to be.
        expected: u64,
        /// How many there were.
        written: u64,
    },
}

/// What is wrong with what a blob says.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Its file is gone.
    #[error("it has {expected} bytes, and its file is missing")]
    Missing {
        /// Its size in bytes.
        expected: u64,
    },
    /// It is shorter or longer than it was.
    #[error("it has {expected} bytes, and {found} are there")]
    Size {
        /// Its size in bytes.
        expected: u64,
        /// The size of what is there.
        found: u64,
    },
    /// It has other bytes than it had.
    #[error(
        "its BLAKE3 hash is {}, and that of what is there {}: where that is a file, first remove what is there from blobs/",
        hex(expected),
        hex(found)
    )]
    Content {
        /// What it hashes to.
        expected: [u8; 32],
        /// What that does which is there.
        found: [u8; 32],
    },
}

fn hex(hash: &[u8; 32]) -> impl std::fmt::Display {
    blake3::Hash::from_bytes(*hash).to_hex()
}
