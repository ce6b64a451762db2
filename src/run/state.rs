//! The states of a run, and of an item that is being tried, and the steps between them.

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RunState {
    /// To be gone on with, by whoever starts the job next.
    Open,
    /// All of it was done.
    Finished,
    /// Given up by its job, or by a person.
    Abandoned,
    /// The job began afresh: its fingerprint had changed, or nobody had gone on for too long.
    Replaced,
}

/// What the lock of a job is called.
pub(crate) fn lock_name(job: &str) -> String {
    format!("run:{job}")
}

impl RunState {
    #[cfg(test)]
    const ALL: [Self; 4] = [Self::Open, Self::Finished, Self::Abandoned, Self::Replaced];

    /// The word in the database; `schema.sql` checks for the same.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Finished => "finished",
            Self::Abandoned => "abandoned",
            Self::Replaced => "replaced",
        }
    }

    /// The one transition table.
    pub(crate) fn may_become(self, next: Self) -> bool {
        self == Self::Open && next != Self::Open
    }
}

/// Where an item stands that was tried and is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TryState {
    /// Being tried. Found by another session: whoever tried it has died of it, or with it.
    Trying,
    /// It failed, and is tried again.
    Failed,
    /// It was tried as often as it may be.
    Aside,
}

impl TryState {
    pub(crate) const ALL: [Self; 3] = [Self::Trying, Self::Failed, Self::Aside];

    /// The word in the database; `schema.sql` checks for the same.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Trying => "trying",
            Self::Failed => "failed",
            Self::Aside => "aside",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_knows_just_these_words() {
        let schema = include_str!("../../schema.sql");
        let list = RunState::ALL.map(|state| format!("'{}'", state.as_str())).join(", ");
        assert!(schema.contains(&list), "{list}");
        let list = TryState::ALL.map(|state| format!("state = '{}'", state.as_str())).join(" OR ");
        assert!(schema.contains(&list), "{list}");
        assert!(TryState::ALL.into_iter().all(|state| TryState::parse(state.as_str()) == Some(state)));
    }

    #[test]
    fn only_an_open_run_ends() {
        for (from, to) in RunState::ALL.into_iter().flat_map(|from| RunState::ALL.map(|to| (from, to))) {
            assert_eq!(from.may_become(to), from == RunState::Open && to != RunState::Open, "{from:?} {to:?}");
        }
    }
}
