//! The outbox: what is claimed of it. `bash benches/run --outbox` writes docs/outbox-performance.md with it.
//!
//! - [`commits`] has what a message adds to a commit, [`draining`] how many go out and what that takes, [`latency`] how soon one does,
//!   [`healing`] how soon once a sink is back, each in processes of their own;
//! - [`queue`] does what [`peers`] do: huey of the registry of Python, and effectum, a crate;
//! - [`results`] has all that measured, [`claims`] judges it, [`page`] writes it down.

mod claims;
mod commits;
mod draining;
mod healing;
mod latency;
pub mod page;
mod peers;
mod queue;
pub mod results;
mod scale;
pub mod work;
