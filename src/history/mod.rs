//! History: the old versions of committed transactions, kept until retention drops them.

use std::time::Duration;

use crate::error::Result;
use crate::fs::area;
use crate::id::TxnId;
use crate::journal;
use crate::store::Durability;
use crate::time::now_ms;
use crate::txn::Ground;

/// How long old versions are kept: until the first of the three limits. All zero turns history off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// At most this many transactions.
    pub transactions: u64,
    /// At most this long after the commit. By the clock: for people, not for safety.
    pub age: Duration,
    /// At most this many bytes of old versions.
    pub bytes: u64,
}

impl Default for Retention {
    /// 200 transactions, 30 days, 1 GiB.
    fn default() -> Self {
        Self { transactions: 200, age: Duration::from_secs(30 * 24 * 60 * 60), bytes: 1 << 30 }
    }
}

impl Retention {
    /// Keeps nothing.
    pub const OFF: Self = Self { transactions: 0, age: Duration::ZERO, bytes: 0 };
}

/// At most this many transactions are forgotten within one turn.
const CHUNK: usize = 64;

/// Drops the old versions that are beyond the limits. Files first, then their names: a crash in between leaves names
/// whose files are gone, and the next call forgets them.
pub(crate) fn retain(ground: &Ground, keep: &Retention) -> Result<()> {
    let oldest = now_ms().saturating_sub(i64::try_from(keep.age.as_millis()).unwrap_or(i64::MAX));
    let kept = ground.store.peek(journal::with_history)?;
    let (mut count, mut bytes) = (0, 0_u64);
    let is_over = |(_, size, committed_ms): &(TxnId, u64, i64)| {
        count += 1;
        bytes = bytes.saturating_add(*size);
        count > keep.transactions || bytes > keep.bytes || *committed_ms < oldest
    };
    // Newest first: from the first that is beyond a limit, all are.
    let first = kept.iter().position(is_over).unwrap_or(kept.len());
    let over: Vec<TxnId> = kept[first..].iter().map(|(txn, ..)| *txn).collect();
    for chunk in over.chunks(CHUNK) {
        let names = ground.store.peek(|tx| {
            let names = chunk.iter().map(|&txn| journal::preimages(tx, txn));
            names.collect::<Result<Vec<_>>>()
        })?;
        for (area, name) in names.iter().flatten() {
            // What is no name of the engine's has no file either, and must not keep the others here for ever.
            if let (Ok(area), Ok(())) = (ground.area(*area), area::check_name(name)) {
                area.drop_history(name)?;
            }
        }
        ground
            .enter()?
            .write(Durability::Normal, |tx| chunk.iter().try_for_each(|&txn| journal::forget_history(tx, txn)))?;
    }
    Ok(())
}
