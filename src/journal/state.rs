//! The states of a transaction and the steps between them.

/// Where a transaction stands. A staged transaction has no row, and so no state, before its COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TxnState {
    /// Decided, and not known to be in the tree: whoever takes the turnstile next carries it there.
    Committed,
    /// Decided; some path could not be changed yet. Retried by recovery and by work that overlaps it.
    Pending,
    /// In the tree, in the boot and mounts its mark names; not durable there.
    Applied,
    /// Being made durable in the tree. Found by anybody else: that sync may have failed.
    Settling,
    /// Durable in the tree; its redo content is gone.
    Settled,
    /// Given up after too many attempts; everything is kept for a person.
    Quarantined,
}

impl TxnState {
    pub(crate) const ALL: [Self; 6] =
        [Self::Committed, Self::Pending, Self::Applied, Self::Settling, Self::Settled, Self::Quarantined];

    /// The word in the database; `schema.sql` checks for the same.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Pending => "pending",
            Self::Applied => "applied",
            Self::Settling => "settling",
            Self::Settled => "settled",
            Self::Quarantined => "quarantined",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// The one transition table.
    pub(crate) fn may_become(self, next: Self) -> bool {
        use TxnState::{Applied, Committed, Pending, Quarantined, Settled, Settling};
        match (self, next) {
            (Committed, Applied | Pending | Quarantined | Settled) => true,
            (Pending, Applied | Quarantined | Settled) => true,
            // A mark that no longer counts makes it `committed` again.
            (Applied, Settling | Committed | Settled | Pending | Quarantined) => true,
            (Settling, Settled | Pending | Quarantined | Committed) => true,
            // A person's decision.
            (Quarantined, Committed | Settled) => true,
            _ => false,
        }
    }
}

/// Where a guard stands. Once it is over it has no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GuardState {
    /// At work, or dead and not put back yet.
    Active,
    /// Given up; everything is kept for a person.
    Quarantined,
    /// A person has said that the tree is right: what it kept goes to `quarantine/`, and then it is over.
    Ending,
}

impl GuardState {
    pub(crate) const ALL: [Self; 3] = [Self::Active, Self::Quarantined, Self::Ending];

    /// The word in the database; `schema.sql` checks for the same.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Quarantined => "quarantined",
            Self::Ending => "ending",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// The one transition table.
    pub(crate) fn may_become(self, next: Self) -> bool {
        use GuardState::{Active, Ending, Quarantined};
        // The last two are a person's decision.
        matches!((self, next), (Active, Quarantined) | (Quarantined, Active | Ending))
    }
}

#[cfg(test)]
mod tests {
    use super::{GuardState, TxnState};

    #[test]
    fn the_schema_knows_just_these_words() {
        let list = TxnState::ALL.map(|state| format!("'{}'", state.as_str())).join(", ");
        assert!(include_str!("../../schema.sql").contains(&list), "{list}");
        assert!(TxnState::ALL.into_iter().all(|state| TxnState::parse(state.as_str()) == Some(state)));
        let list = GuardState::ALL.map(|state| format!("'{}'", state.as_str())).join(", ");
        assert!(include_str!("../../schema.sql").contains(&list), "{list}");
        assert!(GuardState::ALL.into_iter().all(|state| GuardState::parse(state.as_str()) == Some(state)));
    }

    #[test]
    fn settled_is_the_end() {
        assert!(TxnState::ALL.into_iter().all(|next| !TxnState::Settled.may_become(next)));
        assert!(GuardState::ALL.into_iter().all(|next| !GuardState::Ending.may_become(next)));
    }
}
