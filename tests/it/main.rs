//! One binary for all integration tests: every further one would link SQLite again. A file per promise.
#![allow(clippy::disallowed_methods, reason = "tests change trees by hand, read clocks and start processes")]

mod opening;
mod recovery;
mod skip;
mod sql;
mod support;
mod transaction;
mod trouble;
