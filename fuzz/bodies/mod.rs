//! What the fuzz targets run, a file each. The targets of cargo-fuzz call these, and so does `cargo test`, over the corpora.
#![allow(dead_code, reason = "a target uses its own body and what that needs")]

pub(crate) mod edits;
pub(crate) mod fork;
pub(crate) mod hostile;
pub(crate) mod input;
pub(crate) mod json;
pub(crate) mod path;
pub(crate) mod record;
pub(crate) mod reference;
pub(crate) mod sequence;
pub(crate) mod starts;
pub(crate) mod told;
