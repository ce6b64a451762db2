#![doc = include_str!("../README.md")]

mod blob;
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
mod outbox;
mod path;
mod recovery;
mod run;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
mod tree;
mod txn;
mod wait;

pub use rusqlite;

pub use blob::BlobId;
pub use engine::{
    Attempt, Begun, BlobOpener, BlobReader, BlobWait, Blobs, Changes, Committed, Drainer, DrainerBuilder, Ended,
    Flight, Follow, Follower, Journal, Lock, LockFence, NewBlob, Outbox, Pending, PlannedStep, Quarantine, Recovered,
    Retried, Run, Runs, Started, SweptBlobs, Verdict, recovery_plan,
};
pub use error::{BlobError, Damage, Error, Result, Retry};
pub use fs::clone::Way;
pub use history::Retention;
pub use id::{Fence, QuarantineId, RunId, TxnId};
pub use journal::{Change, ChangeKind, Commit};
pub use lock::{Holder, Waiting};
pub use options::{Acquire, Begin, Job, Options};
#[cfg(feature = "redis")]
pub use outbox::RedisPublisher;
pub use outbox::{Coalesce, Message, PublishError, Publisher};
pub use recovery::{Resolved, Standing};
pub use run::ItemKey;
pub use store::Rows;
pub use txn::{BlobWriter, Guard, Layer, Receipt, RolledBack, Settled, Transaction, Warning};
pub use wait::StopToken;

/// Entrances for fuzzing, which `cargo test` replays too. Not part of the interface.
#[cfg(feature = "testing")]
#[doc(hidden)]
#[path = "fuzz.rs"]
pub mod __fuzz;

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
