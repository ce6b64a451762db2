//! The one floor that talks to SQLite: one writing connection behind the turnstile, a pool of query-only readers.
//!
//! Every write goes [`Store::enter`] → [`Turn::write`]: the queue of this process, the turnstile of all processes,
//! `BEGIN IMMEDIATE`, the work, `COMMIT` at the durability asked for. [`Store::commit`] does the same for several threads
//! with one COMMIT. SQL text stands with whoever owns the table, in a
//! `rows.rs`; this floor knows `journal_meta` alone.

// What `queue` shares between threads, under a name that a test can put a model in place of.
use std::sync;

mod aside;
mod caller;
mod checkpoint;
mod connect;
mod group;
mod migrate;
mod pool;
mod queue;
mod turn;
mod turnstile;
mod tx;
mod writer;

pub(crate) use aside::Aside;
pub(crate) use caller::CallerMode;
pub use caller::Rows;
pub(crate) use caller::refuse_reentry;
pub(crate) use checkpoint::Checkpointer;
pub(crate) use connect::Database;
pub(crate) use group::{Decided, Part, Wish};
pub(crate) use migrate::SCHEMA_VERSION;
pub(crate) use pool::ReadPool;
pub(crate) use turn::{Durability, Store, Turn};
pub(crate) use turnstile::TURNSTILE;
pub(crate) use tx::Tx;
pub(crate) use writer::LOG_FRAMES_ENOUGH;
