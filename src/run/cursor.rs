//! Where a job is to go on: set alone, to be banked with the next flush, or by transactions.

/// The newest cursor, whoever set it. What is written last is what was set last, in whatever order the threads learn of it.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// None while nobody has set it in this session.
    text: Option<String>,
    /// Counts what is set. Of `text`; of what is durable; of the newest.
    change: u64,
    saved: u64,
    newest: u64,
    /// Inside the COMMITs of so many transactions: then a flush leaves it to them.
    coming: usize,
}

impl Cursor {
    pub(super) fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Set alone.
    pub(super) fn set(&mut self, text: String) {
        self.newest += 1;
        (self.text, self.change) = (Some(text), self.newest);
    }

    /// What is not durable yet, and which change that is.
    pub(super) fn news(&self) -> Option<(&String, u64)> {
        self.text.as_ref().filter(|_| self.is_due(self.change)).map(|text| (text, self.change))
    }

    /// True when a flush is to write this change: nothing newer is durable, or just becomes so.
    pub(super) fn is_due(&self, change: u64) -> bool {
        self.coming == 0 && change > self.saved
    }

    /// A flush has written it.
    pub(super) fn saved(&mut self, change: u64) {
        self.saved = self.saved.max(change);
    }

    /// A transaction is about to commit one.
    pub(super) fn claim(&mut self) -> u64 {
        self.newest += 1;
        self.coming += 1;
        self.newest
    }

    /// It did not.
    pub(super) fn unclaim(&mut self) {
        self.coming -= 1;
    }

    /// It did.
    pub(super) fn committed(&mut self, change: u64, text: &str) {
        self.coming -= 1;
        self.saved = self.saved.max(change);
        if change > self.change {
            (self.text, self.change) = (Some(text.to_owned()), change);
        }
    }

    /// The job cannot read this one: it is set aside.
    pub(super) fn forget(&mut self, text: &[u8]) {
        if self.text().is_some_and(|newest| newest.as_bytes() == text) {
            self.text = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_later_is_not_written_over() {
        let mut cursor = Cursor::default();
        cursor.set("alone".into());
        let (_, taken) = cursor.news().unwrap();
        let (one, two) = (cursor.claim(), cursor.claim());
        assert!(cursor.news().is_none() && !cursor.is_due(taken), "a flush leaves it to them");
        // They learn of it in another order.
        cursor.committed(two, "two");
        cursor.committed(one, "one");
        assert_eq!((cursor.text(), cursor.is_due(taken)), (Some("two"), false));
        cursor.set("newer".into());
        let claimed = cursor.claim();
        cursor.unclaim();
        assert_eq!(cursor.news().map(|(text, change)| (text.as_str(), change < claimed)), Some(("newer", true)));
        cursor.forget(b"newer");
        assert!(cursor.text().is_none() && cursor.news().is_none());
    }
}
