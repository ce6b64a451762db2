//! One binary for all integration tests: every further one would link SQLite again. A file per promise.
#![allow(clippy::disallowed_methods, reason = "tests change trees by hand, read clocks and start processes")]

mod background;
mod cli;
mod corpus;
mod counts;
mod crash_points;
mod filesystems;
mod fuzz_corpus;
mod guard;
mod guard_beside;
mod guard_corners;
mod guard_database;
mod guard_model;
mod guard_names;
mod guard_owned;
mod guard_power;
mod guard_review;
mod guard_told;
mod guard_tree;
mod ingest;
mod model;
mod opening;
mod overlay_model;
mod power;
mod power_model;
mod quarantine;
mod recovery;
mod review;
mod skip;
mod sql;
mod support;
mod testing;
mod tidy;
mod transaction;
mod trouble;
