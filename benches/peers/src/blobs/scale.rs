//! How much of everything is measured.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scale {
    pub quick: bool,
    /// The bytes of a blob that is streamed, and how often each side does it.
    pub streamed: u64,
    pub stream_rounds: usize,
    /// How often each side writes many blobs, how many of them are small and how many of middling size, and how many are in one
    /// transaction.
    pub rounds: usize,
    pub small: usize,
    pub middling: usize,
    pub batch: usize,
    /// Of one blob that is streamed in and out while memory is looked at.
    pub huge: u64,
    /// How many small blobs there are, and how many files beside them, where a journal has a great many; how many of each are opened.
    pub many: usize,
    pub beside: usize,
    pub opens: usize,
    /// How many files are looked at by a sweep, and how many of them nobody refers to.
    pub swept: usize,
    pub strays: usize,
    /// How often somebody is woken in each way, in a round.
    pub woken: usize,
}

impl Scale {
    pub fn full() -> Self {
        Self {
            quick: false,
            streamed: 1 << 30,
            stream_rounds: 9,
            rounds: 3,
            small: 10_000,
            middling: 1_000,
            batch: 100,
            huge: 4 << 30,
            many: 1_000_000,
            beside: 1_000,
            opens: 2_000,
            swept: 100_000,
            strays: 1_000,
            woken: 100,
        }
    }

    pub fn quick() -> Self {
        Self {
            quick: true,
            streamed: 16 << 20,
            stream_rounds: 1,
            rounds: 1,
            small: 500,
            middling: 100,
            huge: 32 << 20,
            many: 5_000,
            beside: 20,
            opens: 50,
            swept: 500,
            strays: 5,
            woken: 5,
            ..Self::full()
        }
    }
}
