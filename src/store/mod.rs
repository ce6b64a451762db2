//! The one floor that talks to SQLite: one writing connection behind the turnstile, a pool of query-only readers.
//!
//! Every write goes [`Store::enter`] → [`Turn::write`]: the mutex of this process, the turnstile of all processes,
//! `BEGIN IMMEDIATE`, the work, `COMMIT` at the durability asked for. SQL text stands with whoever owns the table, in a
//! `rows.rs`; this floor knows `journal_meta` alone.

mod aside;
mod caller;
mod checkpoint;
mod connect;
mod migrate;
mod pool;
mod turn;

pub(crate) use aside::Aside;
pub(crate) use caller::CallerMode;
pub use caller::Rows;
pub(crate) use caller::refuse_reentry;
pub(crate) use checkpoint::Checkpointer;
pub(crate) use connect::Database;
pub(crate) use migrate::SCHEMA_VERSION;
pub(crate) use pool::ReadPool;
pub(crate) use turn::{Durability, LOG_FRAMES_ENOUGH, Store, Turn, Tx};
