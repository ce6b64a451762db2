//! What every transaction stands on: the open root, its areas, the store, this session and its locks.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::time::Duration;

use super::backlog::Backlog;
use super::late::Late;
use crate::blob::BlobId;
use crate::error::{Error, Result};
use crate::fs::area::{Area, STATE_AREA};
use crate::fs::blobs::BlobDir;
use crate::fs::opener::{Opener, SyncTarget};
use crate::fs::root::{Dir, RootDir};
use crate::fs::watch::Watch;
use crate::id::SessionId;
use crate::journal::{self, GuardId, GuardRow, Mark, TreeId};
use crate::lock::{self, Locks, Session};
use crate::outbox::Doors;
use crate::path::RelPath;
use crate::store::{Durability, Store, Turn, Tx};

/// Limits that a transaction keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The largest file that rides in the write-ahead log, in bytes.
    pub(crate) inline_file: u64,
    /// How much of one transaction does, in bytes.
    pub(crate) inline_txn: u64,
    /// The largest blob that stands in the database, in bytes.
    pub(crate) inline_blob: u64,
    /// How long to wait for the turn to write.
    pub(crate) turn_wait: Duration,
}

/// The ground: its parts, and what is only of this process.
#[derive(Debug)]
pub(crate) struct Ground {
    parts: Parts,
    /// What waits for the background settler.
    pub(crate) backlog: Backlog,
    /// Opened with the first blob.
    blobs: OnceLock<BlobDir>,
    /// Blobs whose writers have given them up, while their rows do not say so.
    given_up: Mutex<Vec<BlobId>>,
    /// What is to be written down a little later.
    pub(crate) late: Late,
    /// Where messages are announced that this process publishes.
    pub(crate) doors: Doors,
    areas: RwLock<Vec<Arc<Area>>>,
    names: AtomicU64,
    /// Counts what this process does to the tree.
    touched: AtomicU64,
    /// The guards of this process's living transactions.
    guarding: Mutex<HashSet<GuardId>>,
    /// What watches trees that this process has guarded.
    watches: Mutex<HashMap<TreeId, Watch>>,
    /// Larger than the number of any guard this process has recorded.
    next_guard: AtomicI64,
}

/// When the tree was looked at, by what the journal has done to it: while this stays the same, nobody has committed,
/// recovered or rewritten anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    others: i64,
    ours: u64,
}

impl Deref for Ground {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// Which unapplied transactions to carry into the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those whose process died between COMMIT and apply, or whose mark no longer counts.
    Unapplied,
    /// Those that failed on some path, too.
    PendingToo,
}

/// Applies, in commit order, what is committed and not in the tree.
pub(crate) type Drain = fn(&Ground, &mut Turn<'_>, Which) -> Result<Drained>;

/// What a drain found and did, in transactions; `aside` in paths.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drained {
    pub(crate) applied: u64,
    pub(crate) pending: u64,
    pub(crate) quarantined: u64,
    pub(crate) aside: u64,
    /// Guards whose transactions died, and whose paths are as before again.
    pub(crate) rolled_back: u64,
}

/// What recovery looks at before it decides: nothing here writes.
#[derive(Debug)]
pub(crate) struct Scene<'g> {
    pub(crate) opener: &'g Opener,
    pub(crate) areas: Vec<Arc<Area>>,
    pub(crate) reserved: &'g [RelPath],
    pub(crate) boot: &'g [u8],
    pub(crate) state_ino: u64,
}

impl Scene<'_> {
    /// The area with this number.
    pub(crate) fn area(&self, id: i64) -> Result<Arc<Area>> {
        let found = self.areas.iter().find(|area| area.id == id).cloned();
        found.ok_or(Error::NotMounted { area: id })
    }

    /// Refuses a path that is not the tree's.
    pub(crate) fn check(&self, path: &RelPath) -> Result<()> {
        refuse_reserved(self.reserved, path)
    }

    /// What is true now, to compare marks with.
    pub(crate) fn mark(&self) -> Mark {
        let mut mounts: Vec<u64> = self.areas.iter().map(|area| area.place.mount).collect();
        mounts.sort_unstable();
        mounts.dedup();
        Mark { boot: self.boot.to_vec(), state_dir: self.state_ino, mounts }
    }
}

fn refuse_reserved(reserved: &[RelPath], path: &RelPath) -> Result<()> {
    match reserved.iter().any(|reserved| path.is_within(reserved)) {
        true => Err(Error::BadPath { path: path.to_path_buf(), reason: "it is the journal's own" }),
        false => Ok(()),
    }
}

/// The parts a ground is laid from.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) root: RootDir,
    pub(crate) opener: Opener,
    pub(crate) store: Store,
    pub(crate) session: Session,
    pub(crate) locks: Locks,
    pub(crate) limits: Limits,
    pub(crate) state_path: PathBuf,
    pub(crate) state_ino: u64,
    /// When the state directory was made.
    pub(crate) state_born: (i64, u32),
    pub(crate) sessions: OwnedFd,
    pub(crate) boot: Vec<u8>,
    /// Paths that are the engine's or the application's database, and so not the tree's.
    pub(crate) reserved: Vec<RelPath>,
    /// Carries what others committed and could not apply into the tree; a function of a higher floor.
    pub(crate) drain: Drain,
}

impl Ground {
    /// Lays the ground and opens the areas that earlier sessions recorded.
    pub(crate) fn lay(parts: Parts, state_area: Area, backlog: Backlog) -> Result<Self> {
        let ground = Self {
            parts,
            backlog,
            blobs: OnceLock::new(),
            given_up: Mutex::default(),
            late: Late::default(),
            doors: Doors::default(),
            areas: RwLock::new(vec![Arc::new(state_area)]),
            names: AtomicU64::new(0),
            touched: AtomicU64::new(0),
            guarding: Mutex::default(),
            watches: Mutex::default(),
            next_guard: AtomicI64::new(1),
        };
        ground.refresh_areas(&ground.enter()?)?;
        Ok(ground)
    }

    /// Waits for the turn to write.
    pub(crate) fn enter(&self) -> Result<Turn<'_>> {
        self.store.enter(self.limits.turn_wait)
    }

    /// Which version of the tree this is, as far as the journal changes it.
    pub(crate) fn version(&self, tx: &Tx<'_>) -> Result<Version> {
        Ok(Version { others: tx.version()?, ours: self.touched.load(Ordering::Acquire) })
    }

    /// Records that a transaction of this process guards paths; `own` is the guard that it has already. No number is used
    /// twice by one process: an old guard's end, which another thread may be about to note, must not be taken for the new
    /// one's.
    pub(crate) fn record_guard(&self, tx: &Tx<'_>, own: Option<GuardId>, guard: &GuardRow) -> Result<GuardId> {
        if let (Some(own), Some(mark)) = (own, &guard.mark) {
            return journal::set_guard_mark(tx, own, mark).map(|()| own);
        }
        let least = self.next_guard.load(Ordering::Acquire);
        let id = journal::insert_guard(tx, least, guard)?;
        self.next_guard.fetch_max(id.0.saturating_add(1), Ordering::AcqRel);
        Ok(id)
    }

    /// Watches these directories of a tree from now on. None where that cannot be.
    pub(crate) fn watch(&self, tree: TreeId, dirs: impl Iterator<Item = (PathBuf, i64)>) -> Option<Watch> {
        let mut watches = self.watches.lock().unwrap_or_else(|poison| poison.into_inner());
        // One that fails is not kept.
        let watch = watches.remove(&tree).or_else(Watch::new).filter(|watch| watch.renew(dirs))?;
        watches.insert(tree, watch.clone());
        Some(watch)
    }

    /// The guards of this process's living transactions.
    pub(crate) fn guarding(&self) -> MutexGuard<'_, HashSet<GuardId>> {
        self.guarding.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// True while a session has the journal open; also where that cannot be told.
    pub(crate) fn is_alive(&self, session: SessionId) -> bool {
        session == self.session.id || lock::lives(&self.state_path.join("sessions"), session).unwrap_or(true)
    }

    /// Makes files durable, several at a time. One that is gone or was replaced is passed over.
    pub(crate) fn sync(&self, targets: Vec<SyncTarget>) -> Result<()> {
        match self.opener.sync(targets)?.into_iter().next() {
            None => Ok(()),
            Some((target, source)) => Err(Error::SyncFailed { path: target.path(&self.root), source }),
        }
    }

    /// Something is about to change in the tree.
    pub(crate) fn touch(&self) {
        self.touched.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that the newest commits of this process are in the tree, and which blobs were given up, if the rows do not say so yet.
    pub(crate) fn write_late(&self, turn: &mut Turn<'_>) -> Result<()> {
        if let Some(span) = self.late.unnoted() {
            turn.write(Durability::Normal, |tx| journal::note_carried_out(tx, span))?;
            self.late.noted(span);
        }
        self.note_given_up(turn)
    }

    /// A name in a stage that was never used and never will be.
    pub(crate) fn fresh_name(&self) -> String {
        format!("{}-{}", self.session.id, self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Checks a caller's path.
    pub(crate) fn path(&self, path: &Path) -> Result<RelPath> {
        let checked = RelPath::parse(path)?;
        refuse_reserved(&self.reserved, &checked).map(|()| checked)
    }

    /// Checks a caller's path that is to go as a whole: nothing of the engine's may lie in it.
    pub(crate) fn whole_path(&self, path: &Path) -> Result<RelPath> {
        let checked = self.path(path)?;
        let holds = |inner: &RelPath| inner.is_within(&checked);
        let areas = self.areas();
        if self.reserved.iter().any(holds) || areas.iter().filter_map(|area| area.top.as_ref()).any(holds) {
            let reason = "something of the journal's own lies in it";
            return Err(Error::BadPath { path: path.to_owned(), reason });
        }
        Ok(checked)
    }

    /// Opens the areas that other sessions have made since. One that is not mounted now is passed over: what lies
    /// there waits until it is.
    pub(crate) fn refresh_areas(&self, turn: &Turn<'_>) -> Result<()> {
        for (id, top) in turn.look(journal::areas)? {
            if self.area(id).is_err()
                && let Err(error) = self.open_area(id, &top)
            {
                tracing::warn!(%error, area = id, "an area of this journal cannot be opened");
            }
        }
        Ok(())
    }

    /// What recovery looks at.
    pub(crate) fn scene(&self) -> Scene<'_> {
        Scene {
            opener: &self.opener,
            areas: self.areas(),
            reserved: &self.reserved,
            boot: &self.boot,
            state_ino: self.state_ino,
        }
    }

    /// The area with this number.
    pub(crate) fn area(&self, id: i64) -> Result<Arc<Area>> {
        let areas = self.areas.read().unwrap_or_else(|poison| poison.into_inner());
        let found = areas.iter().find(|area| area.id == id).cloned();
        found.ok_or(Error::NotMounted { area: id })
    }

    /// The directory of blobs, made where it is missing.
    pub(crate) fn blobs(&self) -> Result<&BlobDir> {
        if let Some(open) = self.blobs.get() {
            return Ok(open);
        }
        let open = BlobDir::open(&*self.area(STATE_AREA)?)?;
        Ok(self.blobs.get_or_init(|| open))
    }

    /// Blobs whose writers have given them up, while their rows do not say so.
    pub(super) fn given_up(&self) -> MutexGuard<'_, Vec<BlobId>> {
        self.given_up.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// All areas that are open.
    pub(crate) fn areas(&self) -> Vec<Arc<Area>> {
        self.areas.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// The area from which a rename reaches a directory of the tree, made where there is none yet: that takes a turn.
    pub(crate) fn area_of(&self, dir: &Dir, path: &RelPath) -> Result<Arc<Area>> {
        match self.known_area_of(dir) {
            Some(area) => Ok(area),
            None => self.make_area(&mut self.enter()?, dir, path),
        }
    }

    /// The same for who has the turn.
    pub(crate) fn area_in_turn(&self, turn: &mut Turn<'_>, dir: &Dir, path: &RelPath) -> Result<Arc<Area>> {
        match self.known_area_of(dir) {
            Some(area) => Ok(area),
            None => self.make_area(turn, dir, path),
        }
    }

    fn known_area_of(&self, dir: &Dir) -> Option<Arc<Area>> {
        let areas = self.areas.read().unwrap_or_else(|poison| poison.into_inner());
        areas.iter().find(|area| area.place == dir.meta.place).cloned()
    }

    fn make_area(&self, turn: &mut Turn<'_>, dir: &Dir, path: &RelPath) -> Result<Arc<Area>> {
        // The topmost directory of the same mount or subvolume inside the root.
        let mut top = path.parent();
        while let Some(at) = &top {
            let above = match at.parent() {
                None => self.root.top().meta.place,
                Some(parent) => self.root.open_dir(&parent)?.meta.place,
            };
            if above != dir.meta.place {
                break;
            }
            top = at.parent();
        }
        let bytes = top.as_ref().map_or(&b""[..], RelPath::as_bytes).to_vec();
        // Durable before anything lies there, so that recovery knows where to look.
        let id = turn.write(Durability::Full, |tx| journal::insert_area(tx, &bytes))?;
        self.open_area(id, &bytes)
    }

    fn open_area(&self, id: i64, top: &[u8]) -> Result<Arc<Area>> {
        if id == STATE_AREA {
            return Err(Error::corrupt("journal_area", "number 0 is the state directory's"));
        }
        let top = if top.is_empty() { None } else { Some(RelPath::from_stored(top)?) };
        let area = Arc::new(Area::open_in_tree(id, &self.root, top.as_ref())?);
        let mut areas = self.areas.write().unwrap_or_else(|poison| poison.into_inner());
        areas.retain(|known| known.id != id);
        areas.push(Arc::clone(&area));
        Ok(area)
    }

    /// Where "applied" is true of what was changed in these areas.
    pub(crate) fn mark(&self, areas: impl IntoIterator<Item = i64>) -> Mark {
        let known = self.areas();
        let mut mounts: Vec<u64> = areas
            .into_iter()
            .filter_map(|id| known.iter().find(|area| area.id == id))
            .map(|area| area.place.mount)
            .collect();
        mounts.sort_unstable();
        mounts.dedup();
        Mark { boot: self.boot.clone(), state_dir: self.state_ino, mounts }
    }

    /// What is true now, to compare marks with.
    pub(crate) fn mark_now(&self) -> Mark {
        self.scene().mark()
    }
}
