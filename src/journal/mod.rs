//! What is written down about a transaction: its state, its redo records, its changes, events. Knows no files.

mod record;
mod rows;
mod state;

pub use record::{Change, ChangeKind};
pub(crate) use record::{EventDetails, Identity, Mark, Redo, What};
pub(crate) use rows::*;
pub(crate) use state::TxnState;
