//! Recovery: carries what is committed into the tree, whatever was cut short, and may be cut short itself.
//!
//! - [`decide`] is the table: from evidence to decision, without touching anything.
//! - [`drain`] gathers the evidence and carries the decisions out, under the turnstile.
//! - [`sweep`] removes what dead sessions left in the stages and nobody refers to.

mod decide;
mod drain;
mod sweep;

pub(crate) use drain::{drain, plan};
pub(crate) use sweep::sweep;
