//! Transactions: what is staged becomes effects, effects are prepared, committed, applied and settled.
//!
//! - [`transaction`] is the caller's side, [`content`] what it writes to files, [`staging`] what is looked at for that;
//!   [`overlay`] remembers what was staged, [`effect`] is what remains of it.
//! - [`prepare`] does all that can fail, [`commit`] decides, [`apply`] carries it into the tree, [`settle`] makes the
//!   tree itself durable.
//! - [`rows_only`] is for what touches no file; [`items`] are what a transaction records of runs, [`messages`] what
//!   it tells others.
//! - [`blob_writer`] writes a blob, with its hash beside ([`hashing`]), which [`blobs`] seals with a commit and looks after behind it.
//! - [`bind`] looks once more, under the turn, at what was prepared before it.
//! - [`guard`] is for what somebody else's code changes, [`taken`] what is kept of it, [`guarding`] what became of it, [`rollback`] puts it back;
//!   [`trees`] keeps the baseline of a whole tree, [`comparing`] finds out which paths of it that is, and gets their
//!   [`old_versions`]. Of a file with several names one copy is [`shared`] by all;
//!   [`renames`] are told as such.
//! - [`layer`] is what a program writes to instead, and [`absorb`] makes that the transaction's, with its databases
//!   ([`absorb_databases`]).
//! - [`ground`] is what they all stand on; [`backlog`] and [`late`] are what it does behind the commits.

mod absorb;
mod absorb_databases;
mod apply;
mod backlog;
mod bind;
mod blob_writer;
mod blobs;
mod checks;
mod commit;
mod comparing;
mod content;
mod databases;
mod displaced;
mod effect;
mod ground;
mod guard;
mod guarding;
mod hashing;
mod items;
mod late;
mod layer;
mod layout;
mod messages;
mod old_versions;
mod overlay;
mod prepare;
mod receipt;
mod renames;
mod rollback;
mod rows_only;
mod settle;
mod shared;
mod staging;
mod taken;
mod transaction;
mod trees;

pub(crate) use apply::{Again, Outcome, Repeat, apply};
pub(crate) use backlog::{Backlog, BacklogState};
pub use blob_writer::BlobWriter;
pub(crate) use comparing::{For, Missing};
pub(crate) use displaced::{AGAIN, Displaced, NOBODYS, asides, set_aside};
pub(crate) use ground::{Drained, Ground, Limits, Parts, Scene, Version, Which};
pub use guard::Guard;
pub(crate) use guard::stand_alone;
pub(crate) use late::Late;
pub use layer::Layer;
pub(crate) use layout::look;
pub(crate) use prepare::{KEEP, Step};
pub use receipt::{Receipt, Warning};
pub use rollback::RolledBack;
pub(crate) use rollback::{Attempt, put_back, put_back_some};
pub(crate) use rows_only::{note_under, write_rows, write_rows_under};
pub use settle::Settled;
pub(crate) use settle::settle;
pub use transaction::Transaction;
pub(crate) use trees::{complete, mirror};
