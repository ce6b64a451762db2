//! Blobs: what is claimed of them. `bash benches/run --blobs` writes docs/blobs-performance.md with it.
//!
//! - [`streaming`] is one large blob, beside dd; [`small`] are many small ones, beside cacache; [`many`] is what a journal takes that
//!   has a great many: memory, and opening one; [`waking`] is how soon somebody hears of a seal who waits for it;
//! - [`results`] has all that measured, [`claims`] judges it with what Criterion has found, [`page`] writes it down.

mod claims;
mod many;
pub mod page;
pub mod results;
mod scale;
mod small;
mod streaming;
mod waking;
pub mod work;
