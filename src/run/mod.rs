//! Runs: what of a job is done already, so that whoever comes after a crash goes on there. Knows no files and no transactions.
//!
//! - [`Ledger`] is what this process knows of the run that it works at: which items are recorded, which of them are not
//!   banked yet, which are being tried. [`rows`] is what the database says, one small row for each item, only ever added to.
//! - What is recorded alone is taken in [batches](Batch), which come back when they could not be written.
//! - What is recorded inside a transaction goes [along] with its COMMIT.
//!
//! A crash loses what is in memory, which is no more than was done since the last flush, and nothing that a transaction has
//! committed. That an item is tried is in the database before it is tried.

mod along;
mod batch;
mod cursor;
mod item;
mod ledger;
mod replacing;
mod rows;
mod state;
mod tries;
mod trying;

pub(crate) use along::Along;
pub(crate) use batch::Batch;
pub use item::ItemKey;
pub(crate) use item::{BuildStraight, Name, checked};
pub(crate) use ledger::{Due, Ledger, Limits};
pub(crate) use rows::*;
pub(crate) use state::{RunState, lock_name};
pub(crate) use tries::Wrote;
