//! Locks, and many who commit at once: what is claimed of them. `bash benches/run --locks` writes docs/locks-performance.md with
//! it.
//!
//! - [`side`] are those who have locks, each a process that [`talk`] speaks with; [`journal`] is ours;
//! - [`holding`] and [`flight`] measure locks, [`commits`] small transactions of many processes or threads;
//! - [`results`] has all that measured, [`claims`] judges it, [`page`] writes it down.

mod claims;
pub mod commits;
mod flight;
mod holding;
pub mod journal;
pub mod page;
pub mod results;
mod scale;
mod side;
mod talk;

pub use talk::{Talk, now};
