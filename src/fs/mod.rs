//! The one floor that touches files: beneath the root and the state directory, never through a symlink, never
//! anywhere else.
//!
//! - [`root`] resolves paths of the tree and says what lies there.
//! - [`area`] is a stage, history and quarantine on one mount, so that a rename reaches every path of that mount.
//! - [`temp`] writes new versions; [`exchange`] puts them in place and hands back the old ones.
//! - [`kept`] is where what is kept for a person lies.
//! - [`append`] remembers how a file ends, and cuts it off there.
//! - [`clone`] keeps a version of a file by link, reflink or copy, one of several names once ([`copies`]); [`identity`] tells
//!   versions apart.
//! - [`compare`] compares a file with what was kept of it, byte by byte.
//! - [`handle`] is what an inode is called for good.
//! - [`database`] keeps a SQLite database of the tree with what lies beside it, and writes it back.
//! - [`owned`] says what an ordinary user could not put back.
//! - [`blobs`] holds the files of blobs; [`blob_files`] only looks at them.
//! - [`opener`] is the thread that opens files of the tree, with a descriptor table of its own.
//! - [`upper`] is what a program wrote to an overlay.
//! - [`watch`] tells, as a hint, which files are written to in place.
//! - [`calls`] are the system calls that change anything.
//! - [`os_lock`] takes OS locks, and [`fork`] sees to it that no forked child keeps one; [`waiting`] has threads wait for them, [`handoff`] brings what
//!   these got to who waits; [`state`] makes the state
//!   directory.

// What `handoff` shares between threads, under a name that a test can put a model in place of.
use std::sync;

pub(crate) mod append;
pub(crate) mod area;
pub(crate) mod attrs;
pub(crate) mod bell;
pub(crate) mod blob_files;
pub(crate) mod blobs;
mod calls;
pub(crate) mod clone;
pub(crate) mod compare;
pub(crate) mod copies;
pub(crate) mod database;
pub(crate) mod exchange;
pub(crate) mod fork;
pub(crate) mod handle;
mod handoff;
pub(crate) mod identity;
mod kept;
pub(crate) mod opener;
pub(crate) mod os_lock;
pub(crate) mod owned;
pub(crate) mod root;
pub(crate) mod state;
pub(crate) mod sys;
pub(crate) mod temp;
pub(crate) mod upper;
mod waiting;
pub(crate) mod watch;
