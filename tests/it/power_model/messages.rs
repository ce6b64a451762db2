//! Messages: each transaction has one, if its script tells any. Told to others, it is known for good.

use super::faults::Fault;
use super::run::{Durability, Run};
use super::world::Rows;

impl Run<'_> {
    /// Publishes what waits, in the order of commits, then writes that down: as `src/engine/drain/pass.rs` does it.
    pub(super) fn tell(&mut self) {
        let waiting =
            |rows: &Rows| rows.txns.iter().filter(|txn| txn.waits).filter_map(|txn| txn.of).collect::<Vec<_>>();
        let waiting = waiting(&self.rows());
        if waiting.is_empty() {
            return;
        }
        if self.is(Fault::DroppedBeforeTold) {
            self.note_told();
        }
        for of in waiting {
            self.publish(of);
        }
        self.note_told();
    }

    fn note_told(&mut self) {
        self.commit(Durability::Normal, |rows| rows.txns.iter_mut().for_each(|txn| txn.waits = false));
    }
}

/// What is wrong with what was told, once the outbox was drained: others know of every transaction, and of nothing else.
pub(super) fn judge(told: u16, committed: &[u8]) -> Result<(), String> {
    let known: Vec<u8> = (0..16).filter(|of| told & (1 << of) != 0).collect();
    match known == committed {
        true => Ok(()),
        false => Err(format!("others were told of {known:?}, and committed are {committed:?}")),
    }
}
