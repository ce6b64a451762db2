//! Guards: paths that somebody else's code may change while the transaction lasts, put back unless it commits.
//!
//! 1. *begin*: what lies at the paths is kept (`fs::clone`), synced, and recorded in one durable transaction. What others
//!    committed there and is not settled is settled first;
//! 2. *commit*: what differs by then is synced, and becomes change rows of the same COMMIT that ends the guard
//!    ([`guarding`](super::guarding));
//! 3. *rollback*: what differs is put back ([`rollback`](super::rollback)) and synced; then one durable transaction ends
//!    the guard and records what was displaced, which is kept like any old version.
//!
//! A crash before the row of 1 leaves names of a dead session, which are swept. After it, whoever finds the row and the
//! lock free does 3. A crash within 3 leaves the row, and putting back begins again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::commit;
use super::ground::Ground;
use super::guarding::Guarding;
use super::settle::SettleLock;
use super::taken::Taken;
use super::transaction::Transaction;
use super::trees::{self, Guarded};
use crate::error::{Error, IoContext, Result};
use crate::fault::{Fault, planted};
use crate::fs::clone::Way;
use crate::fs::opener;
use crate::fs::owned;
use crate::fs::root::{self, Dirs, Kind};
use crate::id::QuarantineId;
use crate::journal::{self, GuardId, GuardRow, GuardState, TreeRow, TxnState};
use crate::path::{RelPath, STATE_DIR};
use crate::store::{Durability, Turn, Tx};
use crate::tree::{PreImage, Was};

/// Which paths to guard, and against whom.
///
/// Unless told otherwise writers may do anything, writing to files in place included.
#[derive(Clone, Debug)]
#[must_use = "give it to Transaction::guard_with"]
pub struct Guard {
    paths: Vec<PathBuf>,
    tree: Option<PathBuf>,
    appending: bool,
    replacing: bool,
}

impl Guard {
    /// Guards these files, symlinks and directories, or that nothing is there. Of a directory: that it exists, with its
    /// mode, owner and times; not what lies in it. A directory on the way to one of them only has to be there again.
    pub fn paths<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Self {
        Self {
            paths: paths.into_iter().map(|path| path.as_ref().to_owned()).collect(),
            tree: None,
            appending: false,
            replacing: false,
        }
    }

    /// Guards files that are only appended to, by anybody: on rollback they are cut off where they ended, and what is cut off
    /// is kept. Costs no copy, whatever their size. One that had something else done to it is left as it is, and reported.
    pub fn append<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Self {
        Self { appending: true, ..Self::paths(paths) }
    }

    /// Guards a directory with all that lies in it; `.` is the whole root. What is no directory is guarded as a path.
    ///
    /// A baseline of the tree is kept between transactions: a copy of every file (shared blocks where the filesystem can),
    /// or a link to it with [`Guard::replacing`].
    pub fn tree(path: impl AsRef<Path>) -> Self {
        Self { paths: Vec::new(), tree: Some(path.as_ref().to_owned()), appending: false, replacing: false }
    }

    /// Promises that all writers replace files (temporary name, then rename) and never write to one in place. Keeping a
    /// file is then one link. A file that was written to in place all the same is found, left as it is, and reported. To find
    /// it, every directory of the tree is watched (inotify), until the journal is closed.
    pub fn replacing(mut self) -> Self {
        self.replacing = true;
        self
    }
}

impl Transaction {
    /// Guards these paths: whatever anybody does to them from now on is put back unless this transaction commits. On return
    /// what lies there is kept, durably. The same as [`Transaction::guard_with`] of [`Guard::paths`].
    pub fn guard_paths<P: AsRef<Path>>(&mut self, paths: impl IntoIterator<Item = P>) -> Result<()> {
        self.guard_with(Guard::paths(paths))
    }

    /// Guards a directory with all that lies in it, or a file: whatever anybody does there from now on is put back unless
    /// this transaction commits. The same as [`Transaction::guard_with`] of [`Guard::tree`].
    ///
    /// Costs a look at every file now and at the end; with [`Guard::replacing`] a look at every directory.
    pub fn guard(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.guard_with(Guard::tree(path))
    }

    /// Guards one path more. Name a path before it is touched.
    pub fn touch(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.guard_paths([path])
    }

    /// Guards paths. Costs what is named, whatever lies beside it.
    ///
    /// [`Error::PathBusy`] when another transaction guards one of them. Until this one ends, nobody else's commit can change
    /// them. [`Error::CannotRestore`] when it is to guard what this user could change and not give back to its owner. Errors
    /// leave what was guarded before as it is.
    pub fn guard_with(&mut self, guard: Guard) -> Result<()> {
        match &guard.tree {
            Some(tree) => self.guard_tree(tree, guard.replacing),
            None => self.guard_named(&guard),
        }
    }

    /// Guards paths whose files are replaced. The root itself may be among them.
    pub(super) fn guard_replaced(&mut self, paths: BTreeSet<RelPath>) -> Result<()> {
        self.guard_found(paths, true, false)
    }

    fn guard_named(&mut self, guard: &Guard) -> Result<()> {
        let mut paths = BTreeSet::new();
        for path in &guard.paths {
            let path = self.begin_staging(path)?;
            if path.names().any(|name| name == STATE_DIR.as_bytes()) {
                let reason = "it belongs to a journal of its own";
                return Err(Error::BadPath { path: path.to_path_buf(), reason });
            }
            // Who names what lies beside a database means the database.
            paths.extend(opener::database_beside(&path));
            paths.insert(path);
        }
        for path in &paths {
            self.ask("guard", &[path.as_bytes()]);
        }
        self.guard_found(paths, guard.replacing, guard.appending)
    }

    fn guard_found(&mut self, mut paths: BTreeSet<RelPath>, replacing: bool, appending: bool) -> Result<()> {
        // A repeat guards too: what is done under it is to be undone, because it was done the first time.
        if let Some(guarding) = &self.guarding {
            if !replacing {
                paths.iter().try_for_each(|path| self.refuse_weaker(Some(path)))?;
            }
            // What they are now may not be what they were when the tree was guarded.
            paths.retain(|path| !guarding.trees.iter().any(|guarded| guarded.covers(Some(path))));
        }
        let known = |path: &RelPath| self.guarding.as_ref().and_then(|guarding| guarding.images.get(path));
        paths.retain(|path| known(path).is_none_or(|image| !image.named));
        if paths.is_empty() {
            return Ok(());
        }
        let Some(lease) = &self.lease else { return Err(Error::Closed) };
        let ground = &self.ground;
        let own = self.guarding.as_ref().map(|guarding| guarding.id);
        let paths: Vec<RelPath> = paths.into_iter().collect();
        // The root has every path in it, and is nobody's.
        let below: Vec<RelPath> = paths.iter().filter(|path| !path.is_root()).cloned().collect();
        let (mut turn, _settling) = stand_alone(ground)?;
        lease.check_same()?;
        refuse_guarded(ground, &turn, own, &below)?;
        commit::refuse_troubled(ground, &mut turn, &below)?;
        let mut taken = Taken::new(ground);
        let way = if replacing { Way::Link } else { Way::Reflink };
        taken.take(&mut turn, &paths, self.guarding.as_ref(), way, appending)?;
        // On the way to a path that was named before: what it was then counts.
        for path in &paths {
            if let (Some(before), Some(image)) = (known(path), taken.images.get_mut(path)) {
                image.was = before.was.clone();
            }
        }
        if !planted(Fault::GuardRecordedBeforeSync) {
            taken.sync()?;
        }
        let first = self.guarding.as_ref().map_or(0, |guarding| guarding.rows);
        let row = self.guard_row(&mut turn)?;
        let durability = if planted(Fault::GuardNotDurable) { Durability::Normal } else { Durability::Full };
        let recorded = turn.write(durability, |tx| {
            let id = ground.record_guard(tx, own, &row)?;
            for (n, (path, image)) in taken.images.iter().enumerate() {
                journal::insert_preimage(tx, id, first + n as i64, path, image)?;
            }
            Ok(id)
        });
        // IMPORTANT: rows that may be there refer to it.
        taken.kept = matches!(recorded, Ok(_) | Err(Error::OutcomeUnknown { .. }));
        let id = recorded?;
        ground.guarding().insert(id);
        if planted(Fault::GuardRecordedBeforeSync) {
            taken.sync()?;
        }
        taken.wait_for_the_clock();
        let mut images = std::mem::take(&mut taken.images);
        let guarding = self.guarding.get_or_insert_with(|| Guarding::new(id));
        guarding.rows += images.len() as i64;
        guarding.images.append(&mut images);
        Ok(())
    }
}

impl Transaction {
    fn guard_tree(&mut self, path: &Path, replacing: bool) -> Result<()> {
        let whole_root = path.as_os_str().is_empty() || path == Path::new(".");
        let path = if whole_root { None } else { Some(self.begin_staging(path)?) };
        if let Some(path) = &path
            && self.ground.root.look(path)?.is_none_or(|meta| meta.kind != Kind::Directory)
        {
            let guard = Guard { paths: vec![path.to_path_buf()], tree: None, appending: false, replacing };
            return self.guard_named(&guard);
        }
        self.ask("guard tree", &[path.as_ref().map_or(b"", RelPath::as_bytes)]);
        if !replacing {
            self.refuse_weaker(path.as_ref())?;
        }
        let Some(lease) = &self.lease else { return Err(Error::Closed) };
        let ground = &self.ground;
        let own = self.guarding.as_ref().map(|guarding| guarding.id);
        if self.guarding.as_ref().is_some_and(|guarding| guarding.trees.iter().any(|tree| tree.covers(path.as_ref()))) {
            return Ok(());
        }
        let top = path.clone().unwrap_or_else(RelPath::root);
        let dir = Dirs::new(&ground.root).parent(&top)?;
        let full = ground.root.full(&top);
        if let Some(meta) = root::look(&dir.fd, top.name()).at("look at", &full)? {
            owned::check_restorable(&dir, top.name(), &meta, &full)?;
        }
        let area = ground.area_near(path.as_ref())?.id;
        let (mut turn, settling) = stand_alone(ground)?;
        lease.check_same()?;
        let paths: Vec<RelPath> = path.iter().cloned().collect();
        refuse_guarded_tree(ground, &turn, own, path.as_ref())?;
        commit::refuse_troubled(ground, &mut turn, &paths)?;
        // The directories it lies in, as values: nothing of them is in the baseline.
        let mut taken = Taken::new(ground);
        taken.take(&mut turn, &paths, self.guarding.as_ref(), Way::Reflink, false)?;
        let mut above = std::mem::take(&mut taken.images);
        above.retain(|_, image| !image.named && matches!(image.was, Was::Directory { .. }));
        let first = self.guarding.as_ref().map_or(0, |guarding| guarding.rows);
        let row = self.guard_row(&mut turn)?;
        let (id, tree) = turn.write(Durability::Normal, |tx| {
            let id = ground.record_guard(tx, own, &row)?;
            for (n, (path, image)) in above.iter().enumerate() {
                journal::insert_preimage(tx, id, first + n as i64, path, image)?;
            }
            let mut tree = journal::tree(tx, path.as_ref(), replacing, area)?;
            if tree.area != area {
                // Something was mounted over it, or is no more: a baseline of something else.
                journal::set_tree(tx, tree.id, false, area)?;
                tree = TreeRow { area, is_true: false, ..tree };
            }
            journal::guard_tree(tx, id, tree.id, None)?;
            Ok((id, tree))
        })?;
        ground.guarding().insert(id);
        if let Some(guarding) = &mut self.guarding {
            guarding.rows += above.len() as i64;
            guarding.images.append(&mut above);
        }
        drop((turn, settling));
        let begun = trees::begin(ground, id, tree);
        if begun.is_err() {
            let undone = ground.enter().and_then(|mut turn| {
                turn.write(Durability::Normal, |tx| match own {
                    Some(_) => journal::unguard_trees(tx, id),
                    None => journal::delete_guard(tx, id).map(drop),
                })
            });
            if own.is_none() {
                ground.guarding().remove(&id);
            }
            if let Err(error) = undone {
                tracing::warn!(%error, "a guard that did not come about could not be taken back; recovery does it");
            }
        }
        let begun = begun?;
        let guarding = self.guarding.get_or_insert_with(|| Guarding::new(id));
        guarding.rows += above.len() as i64;
        guarding.images.append(&mut above);
        guarding.trees.push(begun);
        Ok(())
    }

    /// What is recorded of this transaction's guard. It has to have its fence by then.
    pub(super) fn guard_row(&self, turn: &mut Turn<'_>) -> Result<GuardRow> {
        let Some(lease) = &self.lease else { return Err(Error::Closed) };
        self.ground.locks.record_held(turn)?;
        let Some(fence) = lease.fence() else { return Err(lease.lost()) };
        Ok(GuardRow {
            id: GuardId(0),
            state: GuardState::Active,
            unknown: false,
            lock: lease.name().to_owned(),
            session: self.ground.session.id.as_bytes().to_vec(),
            label: self.label.clone(),
            attempts: 0,
            began_ms: self.began_ms,
            fence: fence.get(),
            mark: Some(self.ground.mark_now()),
            worker: None,
        })
    }

    /// Refuses to guard against any writer what this transaction guards, or guards something of, against replacing ones: the
    /// bytes that those kept are links only.
    fn refuse_weaker(&self, path: Option<&RelPath>) -> Result<()> {
        let Some(guarding) = &self.guarding else { return Ok(()) };
        let tree = |guarded: &Guarded| match (&guarded.tree.tree.path, path) {
            (Some(tree), Some(path)) => tree.overlaps(path),
            _ => true,
        };
        let link = |(at, image): (&RelPath, &PreImage)| {
            matches!(&image.was, Was::File { way: Way::Link, .. }) && path.is_none_or(|path| at.is_within(path))
        };
        if !guarding.trees.iter().any(|guarded| guarded.tree.tree.replacing && tree(guarded))
            && !guarding.images.iter().any(link)
        {
            return Ok(());
        }
        let path = path.map_or(self.ground.root.path().to_owned(), RelPath::to_path_buf);
        let reason = "this transaction guards it, or something in it, against replacing writers only: guard it against any \
                      writer before that";
        Err(Error::BadPath { path, reason })
    }
}

/// Refuses a tree that another transaction guards something of.
pub(super) fn refuse_guarded_tree(
    ground: &Ground,
    turn: &Turn<'_>,
    own: Option<GuardId>,
    path: Option<&RelPath>,
) -> Result<()> {
    match path {
        Some(path) => refuse_guarded(ground, turn, own, std::slice::from_ref(path)),
        None => match turn.look(journal::guards)?.into_iter().find(|guard| refuses(guard, own)) {
            None => Ok(()),
            Some(guard) => Err(guarded_by(ground.root.path().to_owned(), &guard)),
        },
    }
}

fn guarded_by(path: PathBuf, guard: &GuardRow) -> Error {
    let purpose = if guard.label.is_empty() { String::new() } else { format!(" ({})", guard.label) };
    let holder = format!("the transaction under lock {:?}{purpose}", guard.lock);
    match guard.state {
        GuardState::Quarantined => Error::PathNotPutBack { path, holder, id: QuarantineId::Guard(guard.id.0) },
        GuardState::Active | GuardState::Ending => Error::PathBusy { path, holder },
    }
}

/// True for what others are kept away from by a guard: not its own transaction, and nobody once it is ending.
fn refuses(guard: &GuardRow, own: Option<GuardId>) -> bool {
    Some(guard.id) != own && guard.state != GuardState::Ending
}

/// Waits for the turn with everything settled, so that what is kept is durable in the tree itself.
pub(crate) fn stand_alone(ground: &Ground) -> Result<(Turn<'_>, Option<SettleLock>)> {
    let settled = |tx: &Tx<'_>| {
        let waits = |state: TxnState| !matches!(state, TxnState::Quarantined | TxnState::Pending);
        Ok(!journal::unsettled(tx)?.iter().any(|txn| waits(txn.state)))
    };
    let mut settles = !ground.store.peek(settled)?;
    loop {
        let (turn, lock) = commit::clear_the_way(ground, settles)?;
        if settles || turn.look(settled)? {
            return Ok((turn, lock));
        }
        settles = true;
    }
}

/// Refuses paths that another transaction guards.
pub(super) fn refuse_guarded(ground: &Ground, turn: &Turn<'_>, own: Option<GuardId>, paths: &[RelPath]) -> Result<()> {
    if !turn.look(journal::has_guards)? {
        return Ok(());
    }
    for guard in turn.look(journal::guards)?.into_iter().filter(|guard| refuses(guard, own)) {
        for theirs in turn.look(|tx| journal::guarded(tx, guard.id))? {
            let (Ok(their), Ok(image)) = (&theirs.path, &theirs.image) else { continue };
            // A directory on the way to a guarded path may be used by all; it only has to stay.
            let meets = |path: &&RelPath| match image.was {
                Was::Directory { .. } => their.is_within(path),
                _ => their.overlaps(path),
            };
            if let Some(path) = paths.iter().find(meets) {
                return Err(guarded_by(ground.root.full(path), &guard));
            }
        }
        for tree in turn.look(|tx| journal::tree_paths(tx, guard.id))? {
            if let Some(path) = paths.iter().find(|path| tree.as_ref().is_none_or(|tree| tree.overlaps(path))) {
                return Err(guarded_by(ground.root.full(path), &guard));
            }
        }
    }
    Ok(())
}
