//! How much of everything is measured.

use serde::{Deserialize, Serialize};

/// What the claims speak of, or so little of it that only the working is shown.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Scale {
    pub quick: bool,
    /// Rounds in which the syncs of each contender are counted.
    pub sync_rounds: usize,
    /// Transactions of one file, back to back.
    pub series: usize,
    pub series_rounds: usize,
    /// The bytes of one large file.
    pub large: u64,
    /// Small files in one transaction.
    pub many: usize,
    pub memory_rounds: usize,
    /// Operations to be recovered.
    pub recovered: usize,
    pub recovery_rounds: usize,
}

impl Scale {
    pub const FULL: Self = Self {
        quick: false,
        sync_rounds: 20,
        series: 10_000,
        series_rounds: 3,
        large: 1 << 30,
        many: 10_000,
        memory_rounds: 3,
        recovered: 10_000,
        recovery_rounds: 5,
    };

    pub const QUICK: Self = Self {
        quick: true,
        sync_rounds: 3,
        series: 300,
        series_rounds: 1,
        large: 64 << 20,
        many: 1_000,
        memory_rounds: 1,
        recovered: 1_000,
        recovery_rounds: 1,
    };
}
