//! Group commit: what several threads of this process commit at about the same time shares one COMMIT, hence one sync.
//!
//! 1. The first in the queue begins the SQLite transaction and writes what it has to. If the next one in the queue may
//!    share the COMMIT, the writer is handed on to it with the transaction open; that one does its part in a savepoint,
//!    and so on. The last one COMMITs.
//! 2. Those who have something to carry into the tree do so now, one after the other in the order of their parts, still
//!    under the one turn of the turnstile ([`Rest::Apply`]). The others are told at once.
//! 3. Who fails, or panics, is rolled back to its savepoint, and nobody else notices. Where that cannot be, because SQL
//!    ended the whole transaction, or COMMIT refused it for a reason that may be one member's, everybody else begins
//!    again by itself, in the same order ([`Rest::Again`]): everyone gets the answer to what it did itself.
//!
//! Whoever has the writer, by whatever name, hands it on when dropped: a panic ends no other thread's wait.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::caller::refuse_reentry;
use super::queue::Place;
use super::turn::{Durability, Store, Turn};
use super::tx::Tx;
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::path::RelPath;
use crate::time::Deadline;

/// At most so many share one COMMIT: beyond, the sync is a small part of what each waits for.
const MOST_MEMBERS: usize = 64;
/// At most so many bytes: they are written at once, while everybody waits.
const MOST_BYTES: u64 = 4 << 20;
/// A group that has been open for so long takes in nobody else: the other processes wait for the turnstile.
const OPEN_FOR: Duration = Duration::from_millis(100);

/// So many are woken while somebody is at it. More would take the cores from those who work.
const NEXT_ONES: usize = 1;

/// What a thread wants to commit, as far as those who might share the COMMIT need to know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    /// The paths it changes: nobody may share who changes one of them, one above or one below.
    pub(crate) paths: Arc<[RelPath]>,
    /// Nobody may share who has the same.
    pub(crate) key: Option<String>,
    pub(crate) bytes: u64,
}

/// What a member's part came to.
pub(crate) enum Part<T> {
    /// It is to be committed.
    Commit {
        value: T,
        /// Something is to be carried into the tree afterwards: the turn is wanted for that.
        applies: bool,
        /// What it has looked at may not wait for others' parts.
        hurry: bool,
    },
    /// Nothing of it.
    Nothing(T),
}

/// What was decided.
pub(crate) struct Decided<'s, T> {
    pub(crate) value: T,
    /// The turn, for those who have something to carry into the tree.
    pub(crate) turn: Option<Turn<'s>>,
    /// How many frames the write-ahead log has.
    pub(crate) log_frames: u32,
}

/// What one thread hands another.
#[derive(Debug)]
pub(super) enum Word {
    /// The writer; the turnstile is not held.
    Turn(Box<Writer>),
    /// Add your part.
    Join(Box<Open>),
    /// COMMIT: whoever came after you did not stay.
    Close(Box<Open>),
    /// It is committed. So many frames has the log.
    Committed(u32),
    /// COMMIT answered this.
    Failed(Error),
    /// It is your turn, as the rest says; then hand it on.
    Next(Box<Writer>, Rest),
}

/// Those of a group whose turns follow.
#[derive(Debug, Default)]
pub(super) enum Rest {
    #[default]
    Nobody,
    /// Committed: each carries its part into the tree.
    Apply(VecDeque<Arc<Place<Word>>>),
    /// Nothing was committed: each begins again by itself.
    Again(VecDeque<Arc<Place<Word>>>),
}

impl Rest {
    pub(super) fn take_next(&mut self) -> Option<Arc<Place<Word>>> {
        match self {
            Self::Nobody => None,
            Self::Apply(places) | Self::Again(places) => places.pop_front(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Nobody => true,
            Self::Apply(places) | Self::Again(places) => places.is_empty(),
        }
    }
}

/// A SQLite transaction that several write, and who they are, in order.
#[derive(Debug)]
pub(super) struct Open {
    writer: Box<Writer>,
    seats: Vec<Seat>,
    /// The paths they change, and all those above.
    paths: HashSet<RelPath>,
    above: HashSet<Box<[u8]>>,
    keys: Vec<String>,
    bytes: u64,
    until: Deadline,
}

/// One who has added its part.
#[derive(Debug)]
struct Seat {
    place: Arc<Place<Word>>,
    applies: bool,
}

impl Open {
    fn new(writer: Box<Writer>) -> Self {
        let (paths, above, until) = (HashSet::new(), HashSet::new(), Deadline::after(OPEN_FOR));
        Self { writer, seats: Vec::new(), paths, above, keys: Vec::new(), bytes: 0, until }
    }

    /// Whether somebody may add a part.
    fn admits(&self, wish: &Option<Wish>) -> bool {
        let Some(wish) = wish else { return false };
        self.seats.len() < MOST_MEMBERS
            && self.bytes.saturating_add(wish.bytes) <= MOST_BYTES
            && wish.key.as_ref().is_none_or(|key| !self.keys.contains(key))
            && (planted(Fault::OverlappingPartsShare) || !wish.paths.iter().any(|path| self.touches(path)))
            && !self.until.passed()
    }

    fn touches(&self, path: &RelPath) -> bool {
        self.paths.contains(path)
            || self.above.contains(path.as_bytes())
            || above(path).any(|above| self.paths.contains(above))
    }

    fn remember(&mut self, wish: &Wish) {
        self.bytes = self.bytes.saturating_add(wish.bytes);
        self.keys.extend(wish.key.clone());
        for path in wish.paths.iter() {
            self.above.extend(above(path).map(Box::from));
            self.paths.insert(path.clone());
        }
    }
}

/// The directories on the way to a path.
fn above(path: &RelPath) -> impl Iterator<Item = &[u8]> {
    let bytes = path.as_bytes();
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &bytes[..at])
}

/// Whoever has the open transaction. Dropped, its own part is undone, and the rest goes on without it.
struct Held<'s> {
    store: &'s Store,
    open: Option<Open>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        match self.open.take() {
            Some(open) if self.store.refuse_forked().is_err() => std::mem::forget(open),
            Some(open) => leave(self.store, open),
            None => {}
        }
    }
}

/// Undoes the part that is being added, and hands the rest on.
fn leave(store: &Store, open: Open) {
    let undone = || -> Result<()> {
        let tx = open.writer.tx();
        if !planted(Fault::FailedPartKept) {
            tx.run("ROLLBACK TO part", "undoing a part")?;
        }
        tx.run("RELEASE part", "undoing a part")
    };
    // Without a savepoint nothing is left after a ROLLBACK that anybody else did.
    if open.seats.is_empty() || open.writer.tx().ended() || undone().is_err() {
        open.writer.roll_back();
        let again = open.seats.into_iter().map(|seat| seat.place);
        store.free(open.writer, Rest::Again(again.collect()));
    } else if let Err(Word::Join(open)) = store.hand_on(open)
        && let Some(last) = open.seats.last()
    {
        let place = Arc::clone(&last.place);
        place.hand(Word::Close(open));
    }
}

impl Store {
    /// Commits a part, at FULL, together with those of others where `wish` says that this may be. On `Ok` it is durable; on
    /// `Err` nothing of it happened, unless [`Error::is_outcome_unknown`].
    ///
    /// `work` may run more than once; only the last time counts. It is told whether it comes first in its SQLite transaction.
    pub(crate) fn commit<T>(
        &self,
        wait: Duration,
        durability: Durability,
        wish: Option<&Wish>,
        work: impl FnMut(&Tx<'_>, bool) -> Result<Part<T>>,
    ) -> Result<Decided<'_, T>> {
        self.refuse_forked()?;
        refuse_reentry("a write")?;
        let deadline = Deadline::after(wait);
        let mut place = None;
        let word = self.ask(wish, deadline, &mut place)?;
        let place = place.unwrap_or_else(|| self.queue.place());
        Member { store: self, durability, wish, deadline, place, work, done: None }.go_on(word)
    }

    /// Hands an open transaction to the next in the queue, if that one may add its part.
    fn hand_on(&self, open: Open) -> Result<(), Word> {
        let word = Word::Join(Box::new(open));
        let admits = |wish: &Option<Wish>, word: &Word| matches!(word, Word::Join(open) if open.admits(wish));
        self.queue.pass_on(word, admits)
    }
}

/// One who commits, from the queue to the end.
struct Member<'s, 'w, T, W> {
    store: &'s Store,
    durability: Durability,
    wish: Option<&'w Wish>,
    deadline: Deadline,
    place: Arc<Place<Word>>,
    work: W,
    /// What its part came to, once it is added: the value, and whether it applies.
    done: Option<(T, bool)>,
}

impl<'s, T, W: FnMut(&Tx<'_>, bool) -> Result<Part<T>>> Member<'s, '_, T, W> {
    fn go_on(mut self, mut word: Word) -> Result<Decided<'s, T>> {
        loop {
            let next = match word {
                Word::Turn(writer) => {
                    let mut turn = Turn::pass(self.store, writer, self.deadline)?;
                    turn.writer()?.begin(self.store, self.durability, self.deadline)?;
                    let open = Open::new(turn.into_writer()?);
                    self.join(open)?
                }
                Word::Join(open) => self.join(*open)?,
                Word::Close(mut open) => {
                    open.seats.pop();
                    self.close(*open)?
                }
                Word::Committed(log_frames) => Step::Over(self.over(None, log_frames)?),
                Word::Failed(error) => return Err(error),
                Word::Next(writer, Rest::Again(rest)) => {
                    let turn = Turn::of(self.store, writer, Rest::Again(rest), self.deadline);
                    Step::Over(self.alone(turn)?)
                }
                Word::Next(writer, rest) => {
                    let log_frames = writer.log_frames;
                    let turn = Turn::of(self.store, writer, rest, self.deadline);
                    Step::Over(self.over(Some(turn), log_frames)?)
                }
            };
            word = match next {
                Step::Over(decided) => return Ok(decided),
                Step::Wait => self.place.wait(),
            };
        }
    }

    fn over(&mut self, turn: Option<Turn<'s>>, log_frames: u32) -> Result<Decided<'s, T>> {
        let (value, _) = self.done.take().ok_or(Error::Closed)?;
        Ok(Decided { value, turn, log_frames })
    }

    /// Adds the part of this thread, and hands the transaction on or commits it.
    fn join(&mut self, open: Open) -> Result<Step<'s, T>> {
        let mut held = Held { store: self.store, open: Some(open) };
        self.store.queue.rouse(NEXT_ONES);
        let Some(open) = &held.open else { return Err(Error::Closed) };
        let first = open.seats.is_empty();
        let tx = open.writer.tx();
        if !first {
            tx.run("SAVEPOINT part", "beginning a part")?;
        }
        let part = (self.work)(&tx, first)?;
        // The parent's other threads, and what they hold, are not in a child.
        self.store.refuse_forked()?;
        if tx.ended() {
            return Err(Error::EndedBySql);
        }
        let (value, applies, hurry) = match part {
            Part::Commit { value, applies, hurry } => (value, applies, hurry),
            Part::Nothing(value) => {
                let log_frames = open.writer.log_frames;
                drop(held);
                return Ok(Step::Over(Decided { value, turn: None, log_frames }));
            }
        };
        if !first {
            tx.run("RELEASE part", "ending a part")?;
        }
        self.done = Some((value, applies));
        let Some(mut open) = held.open.take() else { return Err(Error::Closed) };
        // Most are alone, and need nothing of this.
        let Some(wish) = self.wish.filter(|_| !hurry && self.store.queue.waiting() > 0) else {
            return self.close(open);
        };
        open.remember(wish);
        open.seats.push(Seat { place: Arc::clone(&self.place), applies });
        match self.store.hand_on(open) {
            Ok(()) => Ok(Step::Wait),
            Err(Word::Join(mut open)) => {
                open.seats.pop();
                self.close(*open)
            }
            Err(_) => Err(Error::Closed),
        }
    }

    /// The commit point of all who have added their parts, this thread last; then everyone is told.
    fn close(&mut self, open: Open) -> Result<Step<'s, T>> {
        let mut turn = Turn::of(self.store, open.writer, Rest::Nobody, self.deadline);
        let applies = self.done.as_ref().is_some_and(|(_, applies)| *applies);
        let committed = turn.writer()?.commit(self.store);
        let writer = turn.into_writer()?;
        let log_frames = writer.log_frames;
        match committed {
            Ok(()) => {
                let (appliers, told): (Vec<Seat>, Vec<Seat>) = open.seats.into_iter().partition(|seat| seat.applies);
                let alone = appliers.is_empty();
                let mut chain: VecDeque<_> = appliers.into_iter().map(|seat| seat.place).collect();
                let step = match (alone, applies) {
                    (true, true) => {
                        let turn = Turn::of(self.store, writer, Rest::Nobody, self.deadline);
                        Step::Over(self.over(Some(turn), log_frames)?)
                    }
                    (_, applies) => {
                        chain.extend(applies.then(|| Arc::clone(&self.place)));
                        // Before anybody is told: to wake threads takes longer than to hand on.
                        self.store.free(writer, Rest::Apply(chain));
                        if applies { Step::Wait } else { Step::Over(self.over(None, log_frames)?) }
                    }
                };
                told.into_iter().for_each(|seat| seat.place.hand(Word::Committed(log_frames)));
                Ok(step)
            }
            Err(Error::OutcomeUnknown { source }) => {
                writer.roll_back();
                self.store.free(writer, Rest::Nobody);
                for seat in open.seats {
                    seat.place.hand(Word::Failed(Error::OutcomeUnknown { source: copy(&source) }));
                }
                Err(Error::OutcomeUnknown { source })
            }
            Err(error) if open.seats.is_empty() => {
                writer.roll_back();
                self.store.free(writer, Rest::Nobody);
                Err(error)
            }
            Err(_) => {
                writer.roll_back();
                let places = open.seats.into_iter().map(|seat| seat.place).chain([Arc::clone(&self.place)]);
                self.store.free(writer, Rest::Again(places.collect()));
                Ok(Step::Wait)
            }
        }
    }

    /// The part of this thread, in a SQLite transaction of its own.
    fn alone(&mut self, mut turn: Turn<'s>) -> Result<Decided<'s, T>> {
        let writing = turn.begin(self.durability)?;
        let part = (self.work)(&writing.tx(), true)?;
        let (value, applies) = match part {
            Part::Commit { value, applies, .. } => {
                writing.commit()?;
                (value, applies)
            }
            Part::Nothing(value) => {
                drop(writing);
                (value, false)
            }
        };
        let log_frames = turn.log_frames();
        Ok(Decided { value, turn: Some(turn).filter(|_| applies), log_frames })
    }
}

/// Where a member stands.
enum Step<'s, T> {
    Over(Decided<'s, T>),
    /// It has handed the writer on.
    Wait,
}

/// SQLite's answer once more, for somebody else whom it concerns as well.
fn copy(source: &rusqlite::Error) -> rusqlite::Error {
    match source {
        rusqlite::Error::SqliteFailure(code, text) => rusqlite::Error::SqliteFailure(*code, text.clone()),
        _ => rusqlite::Error::InvalidQuery,
    }
}
