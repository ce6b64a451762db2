//! Trees that somebody else's code may change: what they were before, and how they are put back. Knows no SQL.
//!
//! - [`preimage`] is what a path was before, and how that is kept.
//! - [`scan`] finds what changed in a tree, against what is in the [`record`]; [`mirror`] keeps the old versions of its files.
//! - [`directories`] are given back their times with what is put back in them.
//! - [`layer`] reads what a program wrote to an overlay over a tree: a [`writing`].
//! - [`restorer`] puts the old versions back, and touches no path that was not named; [`missing`] tells before which are not there.

mod directories;
mod layer;
mod mirror;
mod missing;
mod preimage;
mod record;
mod restorer;
mod scan;
mod sqlite_set;
mod writing;

pub(crate) use layer::read as read_layer;
pub(crate) use mirror::{Mirror, Mirrored, Update};
pub(crate) use preimage::{Difference, PreImage, PreImages, WAS, Was};
pub(crate) use record::{DirId, DirRow, Entry, EntryKind, Stamp, is_shared_memory};
pub(crate) use restorer::{PutBack, TreeRestorer};
pub(crate) use scan::{DirDiff, Files, Scan};
pub(crate) use writing::{Clash, Made, Writing};
