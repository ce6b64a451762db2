//! Who is here, and who holds what. Liveness is the kernel's word (an OS lock on a file), everything else a row.
//!
//! - [`session`]: a process that has the journal open holds `sessions/<id>.lock` for as long as it lives.
//! - [`locks`]: a named lock is taken: `locks/<name>.lock` for exclusion, a row with a fencing token for people and for COMMIT;
//!   [`queue`] is the order of this process.
//! - [`lease`]: a lock that is held, until it ends or is found to be lost; [`heartbeat`] gives signs of life meanwhile.
//! - [`holder`]: who has a lock, for people.
//!
//! A crash leaves a row that says "held" and an OS lock that is free: the next acquisition counts it and goes on.

mod heartbeat;
mod holder;
mod lease;
mod locks;
mod queue;
mod rows;
mod session;

// What `queue` shares between threads, under a name that a test can put a model in place of.
use std::sync;

pub(crate) use heartbeat::Heartbeat;
pub use holder::{Holder, Waiting};
pub(crate) use lease::{Held, Lease, Lent};
pub(crate) use locks::{Granted, Locks, Order, Want, file_name, gate_name};
pub(crate) use rows::{begin_wait, newest_fence, open_sessions, others_open, process};
pub(crate) use session::{Session, lives, sweep_dead};
