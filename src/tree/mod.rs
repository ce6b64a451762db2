//! Trees that somebody else's code may change: what they were before, and how they are put back. Knows no SQL.
//!
//! - [`preimage`] is what a path was before, and how that is kept.
//! - [`restorer`] puts the old versions back, and touches no path that was not named.

mod preimage;
mod restorer;

pub(crate) use preimage::{Difference, PreImage, PreImages, Was};
pub(crate) use restorer::{PutBack, TreeRestorer};
