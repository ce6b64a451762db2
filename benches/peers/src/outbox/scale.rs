//! How much of everything is measured.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scale {
    pub quick: bool,
    /// Each has so many rounds, one side after the other.
    pub rounds: usize,
    /// Commits of each kind in a round.
    pub commits: usize,
    /// Messages of a small backlog, and of a large one.
    pub small: usize,
    pub large: usize,
    /// How often a large one is drained, and a small one before it and after it.
    pub large_rounds: usize,
    pub small_rounds: usize,
    /// How often a sink is asked that takes nothing.
    pub asks: usize,
    /// Messages of each way of hearing of one, in a round.
    pub heard: usize,
    /// How far apart a sink that is down is asked, at most; how many of them there are, each healed at another time.
    pub probe_ms: u64,
    pub sinks: usize,
    /// Messages that each queue has in each of its ways, and how many put some in at once.
    pub queued: usize,
    pub crowd: usize,
}

impl Scale {
    pub fn full() -> Self {
        Self {
            quick: false,
            rounds: 3,
            commits: 500,
            small: 10_000,
            large: 1_000_000,
            large_rounds: 1,
            small_rounds: 2,
            asks: 300,
            heard: 100,
            probe_ms: 10_000,
            sinks: 8,
            queued: 304,
            crowd: 8,
        }
    }

    pub fn quick() -> Self {
        Self {
            quick: true,
            rounds: 1,
            commits: 10,
            small: 1_000,
            large: 10_000,
            large_rounds: 1,
            small_rounds: 1,
            asks: 20,
            heard: 10,
            probe_ms: 100,
            sinks: 2,
            queued: 80,
            ..Self::full()
        }
    }
}
