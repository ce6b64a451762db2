//! What a commit answers.

use std::fmt;

use crate::id::{Fence, TxnId};
use crate::journal::Change;

/// Proof of a commit: it is durable, visible in the tree, and happened exactly once.
#[derive(Clone, Debug)]
pub struct Receipt {
    pub(super) id: TxnId,
    pub(super) fence: Fence,
    pub(super) changes: Vec<Change>,
    pub(super) warnings: Vec<Warning>,
    pub(super) repeated: bool,
}

impl Receipt {
    /// The transaction's number, for `journalctl-kb show`.
    pub fn id(&self) -> TxnId {
        self.id
    }

    /// The fencing token of the lock it was committed under.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// The paths it changed, in the order in which that was carried out.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Trouble after the commit point. The change is committed all the same; recovery goes on with it.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// True when the idempotency key had been committed before, and nothing was done now.
    pub fn repeated(&self) -> bool {
        self.repeated
    }
}

/// Trouble that did not undo a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub(super) String);

impl Warning {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
