//! x

pub(crate) mod judge;
