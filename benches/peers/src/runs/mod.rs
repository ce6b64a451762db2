//! Runs: what is claimed of them. `bash benches/run --runs` writes docs/runs-performance.md with it.
//!
//! - [`work`] is what the journal does, and plain SQLite beside it, each time in a process of its own; [`dbos`] is a peer;
//! - [`results`] has all that measured, [`claims`] judges it, [`page`] writes it down.

mod claims;
mod commits;
mod dbos;
pub mod page;
pub mod results;
mod scale;
mod starting;
pub mod work;
