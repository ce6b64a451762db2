//! The names of things: transactions, sessions and fencing tokens.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A committed transaction. Grows in commit order, within one journal, and never repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TxnId(pub(crate) i64);

impl TxnId {
    /// The number as people type it: `journalctl-kb show 42`.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl From<i64> for TxnId {
    fn from(id: i64) -> Self {
        Self(id)
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What has to be resolved by a person: a transaction, or what one guarded that never got a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum QuarantineId {
    /// A committed transaction, as `42`. `0` is what belongs to none: the source of a publish that was not committed.
    Transaction(TxnId),
    /// A guard, as `g3`.
    Guard(i64),
}

impl fmt::Display for QuarantineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transaction(id) => write!(f, "{id}"),
            Self::Guard(id) => write!(f, "g{id}"),
        }
    }
}

impl FromStr for QuarantineId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (guard, digits) = text.strip_prefix('g').map_or((false, text), |digits| (true, digits));
        let id = digits.parse().ok().filter(|id| *id >= i64::from(guard) && digits.bytes().all(|c| c.is_ascii_digit()));
        match id {
            Some(id) if guard => Ok(Self::Guard(id)),
            Some(id) => Ok(Self::Transaction(TxnId(id))),
            None => Err("it is a number, as `42`, or a g and a number, as `g3`: see `journalctl-kb quarantine list`"),
        }
    }
}

impl Serialize for QuarantineId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A fencing token: larger at every acquisition of any lock of the root, never repeated, with gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence(pub(crate) i64);

impl Fence {
    /// The number, to compare or to hand to another store.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One run of a job, from its beginning to its end, over as many sessions as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunId(pub(crate) i64);

impl RunId {
    /// The number as people type it: `journalctl-kb runs show 3`.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl From<i64> for RunId {
    fn from(id: i64) -> Self {
        Self(id)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One opening of the journal by one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(Uuid);

impl SessionId {
    pub(crate) fn new() -> Self {
        Self(Uuid::now_v7())
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }

    /// The session whose stage file or lock file bears this name.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        (text.len() == 32).then(|| Uuid::try_parse(text).ok()).flatten().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_simple().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_quarantine_is_called_as_people_type_it() {
        for (text, id) in [("42", QuarantineId::Transaction(TxnId(42))), ("g3", QuarantineId::Guard(3))] {
            assert_eq!((text.parse(), id.to_string().as_str()), (Ok(id), text));
        }
        assert_eq!("0".parse(), Ok(QuarantineId::Transaction(TxnId(0))));
        for bad in ["", "g", "g0", "-1", "+1", "g-1", "4 2", "../1", "G3", "99999999999999999999"] {
            assert!(bad.parse::<QuarantineId>().is_err(), "{bad}");
        }
    }
}
