//! How much of everything is measured.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scale {
    pub quick: bool,
    /// Each has so many rounds, one side after the other.
    pub rounds: usize,
    pub items: usize,
    /// So many items in a flush, or in a transaction of plain SQLite.
    pub flush: usize,
    /// Of how many flushes a median is of, in the beginning and in the end.
    pub ends: usize,
    /// Commits of each kind in a round.
    pub commits: usize,
    /// Steps of the journal, and of the peer, which are slower.
    pub steps: usize,
    pub peer_steps: usize,
    /// How often a run is started, and found to be at work.
    pub starts: usize,
    /// How many items are banked where a run is gone on with.
    pub banked: usize,
    pub skips: usize,
}

impl Scale {
    pub fn full() -> Self {
        Self {
            quick: false,
            rounds: 5,
            items: 1_000_000,
            flush: 1_000,
            ends: 10,
            commits: 1_000,
            steps: 2_000,
            peer_steps: 500,
            starts: 100,
            banked: 1_000,
            skips: 2_000,
        }
    }

    pub fn quick() -> Self {
        Self {
            quick: true,
            rounds: 1,
            items: 20_000,
            commits: 10,
            steps: 20,
            peer_steps: 10,
            starts: 4,
            skips: 20,
            ..Self::full()
        }
    }
}
