//! A disk in memory that remembers what was written to it, and where its cache was flushed.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::delivery::promise;

pub(super) const BLOCK: usize = 4096;
/// What a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;

type Block = [u8; BLOCK];

/// What a disk holds. Blocks of zeros are not kept; a copy shares all blocks until it is written to.
#[derive(Clone, Default)]
pub(super) struct Content(HashMap<u64, Arc<Block>>);

impl Content {
    pub(super) fn write(&mut self, at: u64, mut bytes: &[u8]) {
        let mut at = at;
        while !bytes.is_empty() {
            let (number, within) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - within));
            if now.len() == BLOCK && now.iter().all(|&byte| byte == 0) {
                self.0.remove(&number);
            } else {
                let block = self.0.entry(number).or_insert_with(|| Arc::new([0; BLOCK]));
                Arc::make_mut(block)[within..within + now.len()].copy_from_slice(now);
            }
            (at, bytes) = (at + now.len() as u64, later);
        }
    }

    pub(super) fn read(&self, at: u64, into: &mut [u8]) {
        let (mut at, mut into) = (at, into);
        while !into.is_empty() {
            let (number, within) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let length = into.len().min(BLOCK - within);
            let (now, later) = into.split_at_mut(length);
            match self.0.get(&number) {
                Some(block) => now.copy_from_slice(&block[within..within + length]),
                None => now.fill(0),
            }
            (at, into) = (at + length as u64, later);
        }
    }
}

/// One thing that happened to a disk.
#[derive(Debug)]
pub(super) enum Event {
    Write {
        at: u64,
        bytes: Vec<u8>,
    },
    /// What was written before is safe from here on.
    Flush,
    /// Said by a test.
    Mark(Mark),
}

/// What a test promises from a point of the log on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// This state of the history may be found from here on.
    Begun(usize),
    /// This state, or a later one, has to be found.
    Done(usize),
    /// Somebody outside of the disk was told a message, and knows it for good.
    Told(promise::Event),
}

/// Which writes are refused with an I/O error: those of which one block satisfies this.
pub(super) type Refuses = Box<dyn Fn(&[u8]) -> bool + Send>;

#[derive(Default)]
struct State {
    content: Content,
    /// None while nothing is recorded.
    log: Option<Vec<Event>>,
    refuses: Option<Refuses>,
    refused: usize,
}

#[derive(Default)]
pub(super) struct Disk(Mutex<State>);

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Another content, as if it were another disk. Nobody may be using it.
    pub(super) fn insert(&self, content: Content) {
        *self.state() = State { content, ..State::default() };
    }

    /// Begins to remember. What the disk holds now is what the log begins with.
    pub(super) fn record(&self) -> Content {
        let mut state = self.state();
        state.log = Some(Vec::new());
        state.content.clone()
    }

    /// Ends it, and gives what was remembered.
    pub(super) fn recorded(&self) -> Vec<Event> {
        self.state().log.take().expect("it was recorded")
    }

    /// How much has been remembered so far.
    pub(super) fn happened(&self) -> usize {
        self.state().log.as_ref().map_or(0, Vec::len)
    }

    /// What was told since so much had been remembered.
    pub(super) fn told_since(&self, happened: usize) -> Vec<promise::Event> {
        let state = self.state();
        let told = state.log.iter().flat_map(|log| &log[happened..]).filter_map(|event| match event {
            Event::Mark(Mark::Told(told)) => Some(told.clone()),
            _ => None,
        });
        told.collect()
    }

    pub(super) fn mark(&self, mark: Mark) {
        if let Some(log) = &mut self.state().log {
            log.push(Event::Mark(mark));
        }
    }

    /// From here on such writes are refused.
    pub(super) fn refuse(&self, refuses: Refuses) {
        self.state().refuses = Some(refuses);
    }

    /// Every write is carried out again. How many were not?
    pub(super) fn refuse_nothing(&self) -> usize {
        let mut state = self.state();
        state.refuses = None;
        std::mem::take(&mut state.refused)
    }

    pub(super) fn read(&self, at: u64, into: &mut [u8]) {
        self.state().content.read(at, into);
    }

    /// False when the write is refused.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> bool {
        let mut state = self.state();
        if state.refuses.as_ref().is_some_and(|refuses| bytes.chunks(BLOCK).any(refuses)) {
            state.refused += 1;
            return false;
        }
        state.content.write(at, bytes);
        if let Some(log) = &mut state.log {
            log.push(Event::Write { at, bytes: bytes.to_vec() });
        }
        true
    }

    pub(super) fn flush(&self) {
        if let Some(log) = &mut self.state().log {
            log.push(Event::Flush);
        }
    }
}

/// What one write leaves when the power fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Lost,
    /// Only these bytes of it.
    Torn(Range<usize>),
}

/// The disk after a power cut: everything in `log` up to the last flush, and of the writes behind it what `fate` says, which is
/// asked for each with its length.
pub(super) fn crashed(base: &Content, log: &[Event], mut fate: impl FnMut(usize) -> Fate) -> Content {
    let flushed = log.iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
    let mut content = base.clone();
    for (n, event) in log.iter().enumerate() {
        let Event::Write { at, bytes } = event else { continue };
        match if n < flushed { Fate::Kept } else { fate(bytes.len()) } {
            Fate::Kept => content.write(*at, bytes),
            Fate::Lost => {}
            Fate::Torn(kept) => content.write(at + kept.start as u64, &bytes[kept]),
        }
    }
    content
}

#[test]
fn a_power_cut_takes_only_what_was_not_flushed() {
    let mut base = Content::default();
    base.write(0, &[1; 3 * BLOCK]);
    let write = |block: u64, byte| Event::Write { at: block * BLOCK as u64, bytes: vec![byte; BLOCK] };
    let log = [write(0, 2), Event::Flush, write(1, 3), Event::Mark(Mark::Done(1)), write(2, 4), write(1, 5)];
    let read = |content: &Content, sectors: [usize; 4]| {
        sectors.map(|sector| {
            let mut byte = [0];
            content.read((sector * SECTOR) as u64, &mut byte);
            byte[0]
        })
    };
    assert_eq!(read(&crashed(&base, &log, |_| Fate::Kept), [0, 8, 16, 24]), [2, 5, 4, 0]);
    assert_eq!(read(&crashed(&base, &log, |_| Fate::Lost), [0, 8, 16, 24]), [2, 1, 1, 0]);
    let mut writes = 0;
    let torn = crashed(&base, &log, |_| {
        writes += 1;
        if writes == 3 { Fate::Torn(SECTOR..2 * SECTOR) } else { Fate::Kept }
    });
    assert_eq!(read(&torn, [8, 9, 10, 16]), [3, 5, 3, 4]);
    assert_eq!(read(&base, [0, 8, 16, 24]), [1, 1, 1, 0]);
}
