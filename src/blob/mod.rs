//! Blobs: large objects that are there as a whole, or not at all. Knows no files and no transactions.
//!
//! - What a blob says is its content: bytes in the database while they are few, else a file in `blobs/`. The same bytes are there
//!   once, however many blobs say so.
//! - A blob that is called by its content has no row of its own; one that its writer has named has one from the beginning, so
//!   that others can wait for it.

mod name;
mod rows;

pub use name::BlobId;
pub(crate) use rows::*;
