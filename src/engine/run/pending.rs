//! The items that are still to be done.

use std::collections::VecDeque;
use std::sync::Arc;

use super::work::Work;
use crate::run::{ItemKey, Name, checked};

/// Gives the items that are neither done nor set aside, until somebody asks to stop; see [`Run::pending`](super::Run::pending).
#[derive(Debug)]
#[must_use = "iterators are lazy"]
pub struct Pending<I: Iterator> {
    work: Arc<Work>,
    /// None once it has no more.
    source: Option<I>,
    /// Seen already: the next ones.
    ahead: VecDeque<(I::Item, Name)>,
    pass: u64,
}

impl<I: Iterator<Item: ItemKey>> Pending<I> {
    pub(super) fn new(work: Arc<Work>, source: I) -> Self {
        let pass = work.ledger.begin_pass();
        Self { work, source: Some(source), ahead: VecDeque::new(), pass }
    }

    /// The next item that is wanted.
    fn pull(&mut self) -> Option<(I::Item, Name)> {
        let source = self.source.as_mut()?;
        for item in source {
            let name = Name::of(&item.key());
            if self.work.ledger.wants(name) {
                return Some((item, name));
            }
        }
        self.source = None;
        None
    }

    /// True when the source has something at hand: to wait for it would keep back what is there.
    fn has_more(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.size_hint().0 > 0)
    }
}

impl<I: Iterator<Item: ItemKey>> Iterator for Pending<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        loop {
            if self.work.is_stopping() {
                return None;
            }
            let (item, name) = match self.ahead.pop_front() {
                Some(next) => next,
                None => self.pull()?,
            };
            if !self.work.ledger.wants(name) {
                continue; // done meanwhile
            }
            // The next one is counted with whatever is committed before it, which saves it a sync of its own.
            if self.ahead.is_empty()
                && self.has_more()
                && let Some((next, name)) = self.pull()
            {
                if let Ok(key) = checked(&next) {
                    self.work.ledger.announce(name, &key);
                }
                self.ahead.push_back((next, name));
            }
            return Some(item);
        }
    }
}

impl<I: Iterator> Drop for Pending<I> {
    fn drop(&mut self) {
        if self.work.journal.ground().store.refuse_forked().is_err() {
            return; // the parent's, and perhaps in the hands of another thread of it
        }
        self.ahead.iter().for_each(|(_, name)| self.work.ledger.unannounce(*name));
        let has_none = self.source.as_ref().is_none_or(|source| source.size_hint().1 == Some(0));
        self.work.ledger.end_pass(self.pass, !(self.ahead.is_empty() && has_none));
    }
}
