//! Recovery: carries what is committed into the tree, whatever was cut short, and may be cut short itself.
//!
//! - [`decide`] is the table: from evidence to decision, without touching anything.
//! - [`evidence`] is what the rows, the tree and the stage say.
//! - [`drain`] carries the decisions out, under the turnstile.
//! - [`home`] comes before all: a journal that was copied is brought to the inodes that are there now ([`rebind`]), or touches
//!   nothing where the tree is not its own.
//! - [`guards`] puts back what dead transactions guarded.
//! - [`quarantine`] is what a person decides about what could not be recovered; [`keeping`] moves what is kept then.
//! - [`sweep`] removes what dead sessions left in the stages and nobody refers to.

mod decide;
mod drain;
mod evidence;
mod guards;
mod home;
mod keeping;
mod quarantine;
mod rebind;
mod sweep;

pub use decide::{Decision, Evidence, Live, decide};
pub(crate) use drain::{drain, plan};
pub(crate) use home::arrive;
pub use quarantine::{Resolved, Standing};
pub(crate) use quarantine::{discard, keep_live, restore, retry};
pub(crate) use sweep::sweep;
