#![doc = include_str!("../README.md")]

mod codec;
mod engine;
mod error;
mod fault;
mod fs;
mod history;
mod id;
pub mod inspect;
mod journal;
mod lock;
mod options;
mod path;
mod recovery;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
mod tree;
mod txn;

pub use rusqlite;

pub use engine::{Committed, Journal, PlannedStep, Quarantine, Recovered, recovery_plan};
pub use error::{Error, Result, Retry};
pub use fs::clone::Way;
pub use history::Retention;
pub use id::{Fence, QuarantineId, TxnId};
pub use journal::{Change, ChangeKind};
pub use options::{Begin, Options};
pub use recovery::{Resolved, Standing};
pub use store::Rows;
pub use txn::{Guard, Layer, Receipt, RolledBack, Settled, Transaction, Warning};

/// Entrances for fuzzing, which `cargo test` replays too. Not part of the interface.
#[doc(hidden)]
pub mod __fuzz {
    /// Decodes arbitrary bytes as every kind of record, and asserts that what decodes comes back the same.
    pub fn record(bytes: &[u8]) {
        fn round<T>(bytes: &[u8])
        where
            T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
        {
            if let Ok(record) = crate::codec::decode::<T>(bytes) {
                let again = crate::codec::encode(&record).expect("what was decoded can be encoded");
                assert_eq!(crate::codec::decode::<T>(&again).ok().as_ref(), Some(&record));
            }
        }
        round::<crate::journal::Redo>(bytes);
        round::<crate::journal::Mark>(bytes);
        round::<crate::journal::EventDetails>(bytes);
        round::<crate::fs::identity::Identity>(bytes);
        round::<crate::tree::PreImage>(bytes);
        round::<Vec<crate::tree::Entry>>(bytes);
        round::<crate::time::Process>(bytes);
        // What overlayfs notes with a file, and any program may.
        drop(crate::fs::handle::Handle::from_origin(bytes));
    }

    /// Frames bytes as a record, so that a fuzzer gets past the checksum.
    pub fn frame(payload: &[u8]) -> Vec<u8> {
        crate::codec::frame(payload)
    }

    /// Parses arbitrary bytes as a path of the tree, and gives its normal form.
    pub fn path(bytes: &[u8]) -> Option<Vec<u8>> {
        use std::os::unix::ffi::OsStrExt;
        let path = crate::path::RelPath::parse(std::ffi::OsStr::from_bytes(bytes)).ok()?;
        assert_eq!(crate::path::RelPath::from_stored(path.as_bytes()).ok().as_ref(), Some(&path));
        Some(path.as_bytes().to_vec())
    }
}

/// What the tests' model of the protocol decides by: the very tables that recovery has. Not part of the interface.
#[doc(hidden)]
pub mod __model {
    pub use crate::recovery::{Decision, Evidence, Live, decide};

    /// True when a transaction in one state may come into another: both are words of the database.
    pub fn may_become(from: &str, to: &str) -> bool {
        let state = crate::journal::TxnState::parse;
        state(from).zip(state(to)).is_some_and(|(from, to)| from.may_become(to))
    }
}
