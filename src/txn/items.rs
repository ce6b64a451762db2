//! What a transaction records of runs: items that are done when it is committed.

use std::sync::{Arc, Weak};

use super::transaction::Transaction;
use crate::lock::Lease;
use crate::run::{Along, Ledger};

impl Transaction {
    /// What goes along for this run.
    pub(crate) fn along(&mut self, ledger: &Arc<Ledger>, lease: &Weak<Lease>) -> &mut Along {
        let at = self.runs.iter().position(|along| along.is_of(ledger)).unwrap_or_else(|| {
            self.runs.push(Along::new(Arc::clone(ledger), Weak::clone(lease)));
            self.runs.len() - 1
        });
        &mut self.runs[at]
    }

    /// It is committed, or was before under the same key.
    pub(super) fn conclude_runs(&mut self, repeated: bool) {
        for along in &mut self.runs {
            match repeated {
                true => along.repeated(),
                false => along.committed(),
            }
        }
    }
}
