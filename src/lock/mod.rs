//! Who is here, and who holds what. Liveness is the kernel's word (an OS lock on a file), everything else a row.
//!
//! - [`session`]: a process that has the journal open holds `sessions/<id>.lock` for as long as it lives.
//! - [`lease`]: a named lock: `locks/<name>.lock` for exclusion, a row with a fencing token for people and for COMMIT.
//!
//! A crash leaves a row that says "held" and an OS lock that is free: the next acquisition counts it and goes on.

mod lease;
mod rows;
mod session;

pub(crate) use lease::{Lease, Locks, file_name};
pub(crate) use rows::{newest_fence, open_sessions, others_open};
pub(crate) use session::{Session, sweep_dead};
