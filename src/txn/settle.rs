//! Settling: makes the live tree itself durable, so that redo content can go. In batches, behind the commits.
//!
//! 1. note `settling`: from here on a sync may fail unseen, if this process dies;
//! 2. move old versions from the stage to history; sync the live files, their directories, stage and history;
//! 3. note `settled` and drop the redo rows, durably: a power cut must not bring them back over a later edit.
//!
//! A sync that failed is never tried again, by anybody: the kernel has marked the pages clean. Whoever finds a
//! `settling` note rewrites each path that still has the new content, from redo, into a new inode first.
//! The OS lock `settle.lock` says that somebody is at it; it is taken before the turnstile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::apply::Again;
use super::blobs::settle_blobs;
use super::displaced::{self, AGAIN, Displaced};
use super::ground::Ground;
use super::prepare::{SYNC_ONE_BY_ONE, Step};
use crate::error::{Error, IoContext, Result};
use crate::fault::{Fault, planted};
use crate::fs::area::{self, Area};
use crate::fs::exchange;
use crate::fs::identity::Identity;
use crate::fs::opener::SyncTarget;
use crate::fs::os_lock::OsLock;
use crate::fs::root::{Dirs, Meta};
use crate::id::TxnId;
use crate::journal::{self, Level, Redo, RedoRow, TxnState, Unsettled, What};
use crate::path::RelPath;
use crate::store::{Durability, Turn};
use crate::time::Deadline;

/// What a settle made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// Transactions whose files are now durable in the tree itself.
    pub transactions: u64,
    /// Paths that were theirs.
    pub paths: u64,
}

/// At most this many transactions are settled with one sync, to bound memory.
const BATCH: usize = 2048;
/// At most this many are read or noted within one turn: commits go in between.
const CHUNK: usize = 64;
/// The pause between two turns. The mutex of the process is not fair: without it a waiting commit may not get in.
const GIVE_WAY: Duration = Duration::from_micros(200);

/// The right to settle: one process at a time.
#[derive(Debug)]
pub(crate) struct SettleLock(OsLock);

impl SettleLock {
    /// Waits for whoever settles now.
    pub(crate) fn wait(ground: &Ground, deadline: Deadline) -> Result<Self> {
        let mut lock = OsLock::open(&ground.state_path, "settle.lock")?;
        if lock.lock_until(deadline)? {
            return Ok(Self(lock));
        }
        Err(Error::Busy { what: "settling".into(), holder: "another process".into(), waited: deadline.waited() })
    }
}

impl Drop for SettleLock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// A fixed set of transactions on its way to being settled.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    txns: Vec<TxnId>,
    /// The newest effect on each path.
    newest: BTreeMap<RelPath, (TxnId, i64, Redo)>,
    /// Old versions, to be moved to history: area and name.
    old: Vec<(Arc<Area>, String)>,
    areas: BTreeMap<i64, Arc<Area>>,
    rows: u64,
    /// More than a file here and there: one sync of the filesystem.
    whole: bool,
    /// True when more transactions wait.
    pub(crate) more: bool,
}

/// Settles what is applied, batch by batch. The turn is held only for the notes, not while syncing.
pub(crate) fn settle(ground: &Ground, deadline: Deadline) -> Result<Settled> {
    let lock = SettleLock::wait(ground, deadline)?;
    // What is wrong with the directory of blobs is told, and does not keep the tree from being settled.
    let blobs = settle_blobs(ground);
    let settled = settle_tree(ground, &lock)?;
    blobs.map(|()| settled)
}

fn settle_tree(ground: &Ground, lock: &SettleLock) -> Result<Settled> {
    let mut settled = Settled::default();
    loop {
        let mut batch = begin(ground, &mut Turns::Each(ground), lock)?;
        if batch.txns.is_empty() && !batch.more {
            return Ok(settled);
        }
        if planted(Fault::SettledBeforeSync) {
            finish(&mut Turns::Each(ground), &batch)?;
            sync(ground, &batch)?;
            return Ok(settled);
        }
        sync(ground, &batch)?;
        finish(&mut Turns::Each(ground), &batch)?;
        settled.transactions += batch.txns.len() as u64;
        settled.paths += batch.rows;
        if !std::mem::take(&mut batch.more) {
            return Ok(settled);
        }
    }
}

/// Where settling takes its turns from.
enum Turns<'a, 's> {
    /// One for each piece of work, with commits in between.
    Each(&'a Ground),
    /// The one that is held.
    Held(&'a mut Turn<'s>),
}

impl Turns<'_, '_> {
    fn with<T>(&mut self, work: impl FnOnce(&mut Turn<'_>) -> Result<T>) -> Result<T> {
        match self {
            Self::Held(turn) => work(turn),
            Self::Each(ground) => {
                let done = work(&mut ground.enter()?);
                std::thread::sleep(GIVE_WAY);
                done
            }
        }
    }
}

/// Settles everything within one turn: before and after a transaction that moves or removes directories.
pub(crate) fn settle_in_turn(ground: &Ground, turn: &mut Turn<'_>, lock: &SettleLock) -> Result<()> {
    loop {
        let batch = begin(ground, &mut Turns::Held(turn), lock)?;
        if batch.txns.is_empty() && !batch.more {
            return Ok(());
        }
        sync(ground, &batch)?;
        finish(&mut Turns::Held(turn), &batch)?;
    }
}

fn begin(ground: &Ground, turns: &mut Turns<'_, '_>, _: &SettleLock) -> Result<Batch> {
    let mut unsettled = turns.with(|turn| {
        ground.write_late(turn)?;
        let unsettled = turn.look(journal::unsettled)?;
        if !unsettled.is_empty() {
            ground.refresh_areas(turn)?;
        }
        Ok(unsettled)
    })?;
    let now = ground.mark_now();
    unsettled.retain(|txn| match txn.state {
        TxnState::Settling => true,
        TxnState::Applied => txn.mark.as_ref().is_some_and(|mark| mark.counts_in(&now)),
        _ => false,
    });
    let mut batch = Batch { more: unsettled.len() > BATCH, ..Batch::default() };
    unsettled.truncate(BATCH);
    let mut suspect = Vec::new();
    for chunk in unsettled.chunks(CHUNK) {
        turns.with(|turn| batch.begin(ground, turn, chunk, &mut suspect))?;
    }
    if !suspect.is_empty() && !planted(Fault::FailedSyncTriedAgain) {
        turns.with(|turn| rewrite(ground, turn, &mut batch, &suspect))?;
    }
    Ok(batch)
}

impl Batch {
    /// Takes transactions in, and notes that they are being settled. Those of which an earlier sync is in doubt are
    /// `suspect`.
    fn begin(
        &mut self,
        ground: &Ground,
        turn: &mut Turn<'_>,
        txns: &[Unsettled],
        suspect: &mut Vec<TxnId>,
    ) -> Result<()> {
        let mut begun = Vec::with_capacity(txns.len());
        let mut unreadable = Vec::new();
        for txn in txns {
            let rows = turn.look(|tx| journal::redo_rows(tx, txn.id))?;
            match rows.into_iter().map(|row| Readable::of(ground, row)).collect::<Result<Vec<_>>>() {
                Ok(rows) => {
                    self.txns.push(txn.id);
                    self.whole |= txn.structural;
                    rows.into_iter().for_each(|row| self.add(row));
                    match txn.state {
                        TxnState::Settling => suspect.push(txn.id),
                        _ => begun.push(txn.id),
                    }
                }
                // A mount that is not there now may come back.
                Err(Error::NotMounted { .. }) => {}
                Err(error) => unreadable.push((txn.id, txn.state, error.to_string())),
            }
        }
        if !unreadable.is_empty() {
            set_aside(turn, &unreadable)?;
        }
        turn.write(Durability::Normal, |tx| {
            begun.iter().try_for_each(|&txn| journal::transition(tx, txn, TxnState::Applied, TxnState::Settling))
        })
    }

    fn add(&mut self, row: Readable) {
        let Readable { txn, n, path, redo, area } = row;
        self.rows += 1;
        self.areas.insert(area.id, Arc::clone(&area));
        if redo.old.is_some() {
            self.old.push((area, redo.preimage_name()));
        }
        // An older version of the same path is in the stage by now; only a sync of everything reaches it cheaply.
        self.whole |= self.newest.insert(path, (txn, n, redo)).is_some();
    }
}

/// A redo row that says something.
struct Readable {
    txn: TxnId,
    n: i64,
    path: RelPath,
    redo: Redo,
    area: Arc<Area>,
}

impl Readable {
    fn of(ground: &Ground, row: RedoRow) -> Result<Self> {
        let redo = row.redo?;
        area::check_name(&redo.staged)?;
        let area = ground.area(redo.area)?;
        Ok(Self { txn: row.txn, n: row.n, path: row.path?, redo, area })
    }
}

/// A transaction whose redo log cannot be read is not settled: what it says is kept for a person.
fn set_aside(turn: &mut Turn<'_>, unreadable: &[(TxnId, TxnState, String)]) -> Result<()> {
    turn.write(Durability::Full, |tx| {
        unreadable.iter().try_for_each(|(txn, state, error)| {
            let message =
                format!("a row of the redo log cannot be read, so it is not settled; everything is kept: {error}");
            journal::insert_event(tx, Level::Error, "unreadable", Some(*txn), None, &message)?;
            journal::transition(tx, *txn, *state, TxnState::Quarantined)
        })
    })
}

/// Syncs the live files, their directories, the stage and history.
fn sync(ground: &Ground, batch: &Batch) -> Result<()> {
    for (area, name) in &batch.old {
        area.to_history(name)?;
    }
    if planted(Fault::LiveFilesUnsynced) {
        return Ok(());
    }
    if batch.whole || batch.newest.len() > SYNC_ONE_BY_ONE {
        return batch.areas.values().try_for_each(|area| area.sync_whole());
    }
    let mut files = Vec::new();
    let mut directories = BTreeSet::new();
    let mut own = BTreeSet::new();
    for (path, (_, _, redo)) in &batch.newest {
        if let What::Content { ino, .. } = redo.what {
            files.push(SyncTarget::File(path.clone(), ino));
        }
        if matches!(redo.what, What::Directory { .. }) {
            directories.insert(Some(path.clone()));
        }
        directories.insert(path.parent());
        if let Some(area) = batch.areas.get(&redo.area) {
            own.insert(area.path.join("stage"));
            if redo.old.is_some() {
                own.insert(area.path.join("history"));
            }
        }
    }
    files.extend(directories.into_iter().map(SyncTarget::Directory));
    files.extend(own.into_iter().map(SyncTarget::Own));
    ground.sync(files)
}

fn finish(turns: &mut Turns<'_, '_>, batch: &Batch) -> Result<()> {
    let chunks = batch.txns.chunks(CHUNK);
    let last = chunks.len();
    for (n, chunk) in chunks.enumerate() {
        // What comes later in the log is durable with all that comes before it.
        let full = n + 1 == last && !planted(Fault::SettledNotDurable);
        let durability = if full { Durability::Full } else { Durability::Normal };
        turns.with(|turn| {
            turn.write(durability, |tx| {
                chunk.iter().try_for_each(|&txn| {
                    journal::transition(tx, txn, TxnState::Settling, TxnState::Settled)?;
                    journal::delete_redo(tx, txn)
                })
            })
        })?;
    }
    Ok(())
}

/// After a settle that was cut short, or whose sync failed: each path that still has the new content gets it again,
/// in a new inode. Large content was synced before its COMMIT and has nothing in the journal to be rewritten from.
fn rewrite(ground: &Ground, turn: &mut Turn<'_>, batch: &mut Batch, suspect: &[TxnId]) -> Result<()> {
    ground.touch();
    let mut dirs = Dirs::new(&ground.root);
    let candidates: Vec<(RelPath, u64)> = batch
        .newest
        .iter()
        .filter(|(_, (txn, _, _))| suspect.contains(txn))
        .filter_map(|(path, (_, _, redo))| match redo.what {
            What::Content { size, .. } => Some((path.clone(), size)),
            _ => None,
        })
        .collect();
    let found = ground.opener.examine(candidates.clone())?;
    let mut renewed = Vec::new();
    for ((path, _), found) in candidates.into_iter().zip(found) {
        let Some((txn, n, redo)) = batch.newest.get_mut(&path) else { continue };
        let What::Content { hash, .. } = &redo.what else { continue };
        let (found, area) = (found?, ground.area(redo.area)?);
        // What an earlier settle that was cut short left, somebody's edit of its last instant included.
        let live = found.as_ref().map(|found| &found.meta);
        let found_by = std::slice::from_ref(&*redo);
        Displaced { opener: &ground.opener, area: &area, txn: *txn, redo, found_by }.reconcile(live)?;
        let Some(found) = found.filter(|found| found.hash == Some(*hash)) else { continue };
        let Some(content) = turn.look(|tx| journal::redo_content(tx, *txn, *n))? else { continue };
        let staged = format!("{}{AGAIN}", redo.staged);
        let step = Step::again(*n, path.clone(), redo.clone(), area, Some(content.into()));
        let again = Again::begin(&step, staged.clone())?;
        *redo = again.recorded(redo);
        turn.write(Durability::Normal, |tx| journal::update_redo(tx, *txn, *n, redo))?;
        again.fill(&step)?;
        let dir = dirs.parent(&path)?;
        exchange::place(&step.area, &step.area.stage, &staged, &dir.fd, path.name(), true)
            .at("rewrite", ground.root.full(&path))?;
        // What came back is the same bytes, in the inode that may not have reached the disk; or somebody's work of the
        // last instant.
        let same = |back: &Meta| Identity::from(&found.meta).is(back, true);
        match step.area.look_staged(&staged)? {
            Some(back) if same(&back) => step.area.unlink_staged(&staged)?,
            Some(_) => drop(displaced::set_aside(&step.area, *txn, &step.area.stage, &staged)?),
            None => {}
        }
        renewed.push((*txn, path));
    }
    batch.whole = true;
    turn.write(Durability::Normal, |tx| {
        for (txn, path) in &renewed {
            let message = "rewritten, because an earlier sync of it was cut short or failed";
            journal::insert_event(tx, Level::Warn, "rewritten", Some(*txn), Some(path), message)?;
        }
        Ok(())
    })
}
