//! How much of everything is measured.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scale {
    pub quick: bool,
    /// Each has so many rounds of as many acquisitions, one side after the other.
    pub rounds: usize,
    pub cycles: usize,
    /// Hand-offs of the journal, and of each peer, which wait longer.
    pub handoffs: usize,
    pub peer_handoffs: usize,
    pub deaths: usize,
    pub peer_deaths: usize,
    /// Deaths of holders of a lock that is only taken over once it is stale: all at once.
    pub stale_deaths: usize,
    /// When proper-lockfile takes a lock for stale, in milliseconds: its default, or its least.
    pub stale_ms: u64,
    pub processes: usize,
    /// How long they commit.
    pub crowd_ms: u64,
    pub threads: Vec<usize>,
    pub group_rounds: usize,
    pub group_ms: u64,
}

impl Scale {
    pub fn full() -> Self {
        Self {
            quick: false,
            rounds: 5,
            cycles: 2_000,
            handoffs: 200,
            peer_handoffs: 50,
            deaths: 50,
            peer_deaths: 20,
            stale_deaths: 3,
            stale_ms: 10_000,
            processes: 8,
            crowd_ms: 10_000,
            threads: vec![1, 8, 32],
            group_rounds: 3,
            group_ms: 2_000,
        }
    }

    pub fn quick() -> Self {
        Self {
            quick: true,
            rounds: 1,
            cycles: 20,
            handoffs: 4,
            peer_handoffs: 2,
            deaths: 2,
            peer_deaths: 1,
            stale_deaths: 1,
            stale_ms: 5_000,
            crowd_ms: 200,
            group_rounds: 1,
            group_ms: 100,
            ..Self::full()
        }
    }

    /// In a quick run nobody waits twice for a lock to become stale.
    pub fn waits_for_stale(&self, place: &str) -> bool {
        !self.quick || place == "tmpfs"
    }
}
