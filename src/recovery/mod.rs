//! Recovery: carries what is committed into the tree, whatever was cut short, and may be cut short itself.
//!
//! - [`decide`] is the table: from evidence to decision, without touching anything.
//! - [`evidence`] is what the rows, the tree and the stage say.
//! - [`drain`] carries the decisions out, under the turnstile.
//! - [`guards`] puts back what dead transactions guarded.
//! - [`sweep`] removes what dead sessions left in the stages and nobody refers to.

mod decide;
mod drain;
mod evidence;
mod guards;
mod sweep;

pub use decide::{Decision, Evidence, Live, decide};
pub(crate) use drain::{drain, plan};
pub(crate) use sweep::sweep;
