//! What is written down about a transaction: its state, its redo records, its changes, events. Knows no files.

mod feed;
mod guard;
mod kept;
mod record;
mod rows;
mod state;
mod trees;

pub use feed::Commit;
pub(crate) use feed::{advance, commits_after, forget_follower, has_unapplied, position};
pub(crate) use guard::{
    GuardId, GuardRow, delete_guard, end_guard, guarded, guarded_count, guards, has_guard_of, has_guards, insert_guard,
    insert_preimage, insert_rolled_back, is_guarding, quarantine_guard, retry_guard, set_guard_attempts,
    set_guard_mark, set_worker, workers,
};
pub(crate) use kept::*;
pub use record::{Change, ChangeKind};
pub(crate) use record::{EventDetails, Mark, Redo, Span, What};
pub(crate) use rows::*;
pub(crate) use state::{GuardState, TxnState};
pub(crate) use trees::*;
