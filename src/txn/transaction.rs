//! A transaction as its caller sees it: staged, then committed or dropped.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blobs::BlobChanges;
use super::commit::{self, Request};
use super::ground::{Ground, Version};
use super::guarding::Guarding;
use super::overlay::{Bytes, Node, Overlay, Published, View};
use super::receipt::Receipt;
use super::rollback::RolledBack;
use crate::error::{Error, IoContext, Result};
use crate::fs::root::{self, Kind};
use crate::journal;
use crate::lock::{Held, Lease};
use crate::outbox::Draft;
use crate::path::RelPath;
use crate::run::Along;
use crate::store::{self, Durability, Rows};
use crate::time::{Process, now_ms};
use crate::wait::StopToken;

/// The caller's SQL, run inside COMMIT.
pub(super) type SqlFn = Box<dyn FnMut(&Rows<'_>) -> Result<()> + Send>;

/// Staged changes of files and rows that become true together, or not at all.
///
/// Nothing is visible before [`Transaction::commit`]; dropping the transaction throws everything away. It holds its
/// lock from begin to end.
#[must_use = "a transaction that is dropped is rolled back; call commit()"]
pub struct Transaction {
    pub(super) ground: Arc<Ground>,
    pub(super) lease: Option<Held>,
    pub(super) overlay: Overlay,
    sql: Vec<SqlFn>,
    pub(super) label: String,
    key: Option<String>,
    /// The key was committed before: what is asked for is only compared with what was asked for then.
    pub(super) replay: bool,
    /// Every operation as it was asked for.
    pub(super) asked: blake3::Hasher,
    pub(super) began_ms: i64,
    /// Of the tree, when the lock was taken.
    version: Version,
    /// Something of it is published: a directory with whatever it holds.
    pub(super) publishes: bool,
    pub(super) inline: u64,
    pub(super) paths: u64,
    pub(super) guarding: Option<Guarding>,
    pub(super) spooled: HashSet<(i64, String)>,
    /// What is recorded of runs with it.
    pub(super) runs: Vec<Along>,
    /// What others are told with it.
    pub(super) messages: Vec<Draft>,
    pub(super) blobs: BlobChanges,
    /// The journal stays open, and its session alive, for as long as this transaction.
    _alive: Arc<dyn std::any::Any + Send + Sync>,
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lock = self.lease.as_deref().map(Lease::name);
        f.debug_struct("Transaction").field("label", &self.label).field("lock", &lock).finish_non_exhaustive()
    }
}

impl Transaction {
    pub(crate) fn new(
        ground: Arc<Ground>,
        alive: Arc<dyn std::any::Any + Send + Sync>,
        lease: Held,
        label: String,
        key: Option<String>,
        replay: bool,
        version: Version,
    ) -> Self {
        Self {
            _alive: alive,
            ground,
            lease: Some(lease),
            overlay: Overlay::new(),
            sql: Vec::new(),
            label,
            key,
            replay,
            asked: blake3::Hasher::new(),
            began_ms: now_ms(),
            version,
            publishes: false,
            inline: 0,
            paths: 0,
            guarding: None,
            spooled: HashSet::new(),
            runs: Vec::new(),
            messages: Vec::new(),
            blobs: BlobChanges::default(),
        }
    }

    /// Stages a symlink at `path` that says `target`. Where it leads is not looked at.
    pub fn symlink(&mut self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let path = self.begin_staging(path.as_ref())?;
        self.ask("symlink", &[path.as_bytes(), target.as_ref().as_os_str().as_bytes()]);
        if self.replay {
            return Ok(());
        }
        if let View::Dir = self.placing(&path)? {
            return Err(Error::IsADirectory { path: self.ground.root.full(&path) });
        }
        self.replace(&path, Node::Symlink(target.as_ref().to_owned()))
    }

    /// A fresh directory on the root's own filesystem, in which to build what is to be published. It is the caller's
    /// until [`Transaction::publish`] takes it; the next recovery after this process sweeps what is left.
    pub fn staging(&mut self) -> Result<PathBuf> {
        let area = self.ground.area_of(self.ground.root.top(), &RelPath::parse("x")?)?;
        let name = self.ground.fresh_name();
        let path = area.make_staged_dir(&name)?;
        self.spooled.insert((area.id, name));
        Ok(path)
    }

    /// Stages a file or a whole directory from outside the tree; at commit it is moved, not copied. What is not
    /// committed stays, or goes back, where it was.
    ///
    /// `staged` is an ordinary path, on the same filesystem: [`Error::CrossDevice`] at commit otherwise. Its content is
    /// synced before COMMIT; it must not be changed any more. A path inside the tree is renamed.
    pub fn publish(&mut self, staged: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let source = std::path::absolute(staged.as_ref()).at("find", staged.as_ref())?;
        let inside = source.strip_prefix(self.ground.root.path()).ok().and_then(|path| self.ground.path(path).ok());
        if let Some(from) = inside {
            return self.rename(from.as_path(), path);
        }
        let to = self.begin_staging(path.as_ref())?;
        // The source is gone after the first time, so only where it went can be compared.
        self.ask("publish", &[to.as_bytes()]);
        if self.replay {
            return Ok(());
        }
        let found = root::look_outside(&source).at("look at", &source)?;
        let Some(meta) = found else { return Err(Error::NotFound { path: source }) };
        let directory = meta.kind == Kind::Directory;
        self.refuse_occupied(&to, directory)?;
        self.publishes = true;
        let published = Arc::new(Published { source, directory });
        let node = match directory {
            true => Overlay::published_directory(published),
            false => Node::Published(published),
        };
        self.replace(&to, node)
    }

    /// Stages the removal of a file or symlink. Its old version is kept in history. [`Error::NotFound`] when nothing is
    /// there, [`Error::IsADirectory`] for a directory.
    pub fn remove(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = self.begin_staging(path.as_ref())?;
        self.ask("remove", &[path.as_bytes()]);
        if self.replay {
            return Ok(());
        }
        match self.leaving(&path)? {
            Kind::Directory => Err(Error::IsADirectory { path: self.ground.root.full(&path) }),
            _ => self.overlay.lift(&path).map(drop),
        }
    }

    /// Stages the removal of a directory and all below it. It is moved to history whole, whatever its size.
    pub fn remove_dir_all(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = self.begin_staging(path.as_ref())?;
        self.ask("remove all", &[path.as_bytes()]);
        if self.replay {
            return Ok(());
        }
        match self.leaving(&path)? {
            Kind::Directory => self.overlay.lift(&path).map(drop),
            _ => Err(Error::NotADirectory { path: self.ground.root.full(&path) }),
        }
    }

    /// Stages a rename of a file, symlink or whole directory within the tree; the inode stays the same. A file at
    /// `to` is replaced. [`Error::AlreadyExists`] when a directory is there.
    pub fn rename(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let from = self.begin_staging(from.as_ref())?;
        let to = self.begin_staging(to.as_ref())?;
        self.ask("rename", &[from.as_bytes(), to.as_bytes()]);
        if self.replay {
            return Ok(());
        }
        let kind = self.leaving(&from)?;
        if from == to {
            return Ok(());
        }
        if to.is_within(&from) {
            let reason = "a directory cannot be moved into itself";
            return Err(Error::BadPath { path: to.to_path_buf(), reason });
        }
        self.refuse_occupied(&to, kind == Kind::Directory)?;
        let live = match self.overlay.view(&from)? {
            View::Live(live) => Some(live),
            _ => None,
        };
        let staged = self.overlay.lift(&from)?;
        let node = match (staged, live, kind) {
            (Some(node), ..) => self.detached(node)?,
            (None, Some(live), Kind::Directory) => Overlay::moved_directory(live),
            (None, Some(live), _) => Node::Moved(live),
            (None, None, _) => return Err(Error::NotFound { path: self.ground.root.full(&from) }),
        };
        self.overlay.put(&to, node)
    }

    /// Stages a directory and all that are missing above it. Fine when it is there already.
    pub fn create_dir_all(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = self.begin_staging(path.as_ref())?;
        self.ask("directory", &[path.as_bytes()]);
        if self.replay {
            return Ok(());
        }
        match self.kind_of(&path)? {
            Some(Kind::Directory) | None => self.overlay.put_directory(&path),
            Some(_) => Err(Error::NotADirectory { path: self.ground.root.full(&path) }),
        }
    }

    /// The bytes of a file as this transaction sees it: its own writes first, else the live tree.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        store::refuse_reentry("a read of the tree")?;
        let path = self.ground.path(path.as_ref())?;
        let full = || self.ground.root.full(&path);
        match self.overlay.view(&path)? {
            View::Absent => Err(Error::NotFound { path: full() }),
            View::Dir => Err(Error::IsADirectory { path: full() }),
            View::Symlink => Err(Error::BadPath { path: path.to_path_buf(), reason: "it is not a regular file" }),
            View::Live(live) => self.ground.opener.read(live),
            View::Outside(source) | View::Along(source) => self.ground.opener.read_own(source),
            View::File(file) => match &file.bytes {
                Bytes::Inline(bytes) => Ok(bytes.to_vec()),
                Bytes::Staged { name, area, .. } => {
                    self.ground.opener.read_own(self.ground.area(*area)?.stage_path(name))
                }
            },
        }
    }

    /// True when something is at the path, as this transaction sees it. A symlink counts as itself.
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        let path = self.ground.path(path.as_ref())?;
        Ok(self.kind_of(&path)?.is_some())
    }

    /// Has `work` run inside COMMIT, on the rows of the database. An error it returns rolls everything back.
    ///
    /// It runs after this call, so it owns what it uses (`move`). It may run again if the first try is undone for
    /// somebody else's reason; only the last run counts.
    pub fn sql<F>(&mut self, work: F) -> Result<()>
    where
        F: FnMut(&Rows<'_>) -> Result<()> + Send + 'static,
    {
        self.sql.push(Box::new(work));
        Ok(())
    }

    /// Commits. On `Ok` everything is durable against power loss, visible in the tree, and happened exactly once;
    /// trouble after that point is a warning on the receipt. On `Err` nothing happened, unless
    /// [`Error::is_outcome_unknown`]: then repeating it with its idempotency key tells.
    ///
    /// One sync of the write-ahead log, whatever the number of small files; large files and moves cost more.
    pub fn commit(mut self) -> Result<Receipt> {
        self.ground.store.refuse_forked()?;
        store::refuse_reentry("a commit")?;
        let Some(lease) = &self.lease else { return Err(Error::Closed) };
        lease.used();
        let outcome = commit::commit(
            &self.ground,
            Request {
                lease,
                label: &self.label,
                key: self.key.as_deref(),
                began_ms: self.began_ms,
                overlay: &self.overlay,
                version: self.version,
                digest: *self.asked.finalize().as_bytes(),
                sql: &mut self.sql,
                guarding: self.guarding.as_mut(),
                runs: &mut self.runs,
                messages: &self.messages,
                blobs: &mut self.blobs,
            },
        );
        let decided = match &outcome {
            Ok(receipt) => !receipt.repeated,
            Err(error) => error.is_outcome_unknown(),
        };
        if decided {
            // These names are the journal's now; some stand for old versions already.
            for name in self.overlay.staged_names() {
                self.spooled.remove(&name);
            }
        }
        if let Err(error) = &outcome {
            self.runs.iter_mut().for_each(|along| along.failed(error));
        }
        let receipt = outcome?;
        self.conclude_runs(receipt.repeated);
        if receipt.repeated {
            // The first one did it; what was done now under the guard is once too often.
            if let Err(error) = self.put_back() {
                tracing::error!(%error, "what a repeat did under its guard could not be put back; the next to take its lock tries again");
            }
        } else if let Some(guarding) = self.guarding.take() {
            guarding.release(&self.ground, receipt.changes());
        }
        self.end_lease();
        self.announce(&receipt);
        Ok(receipt)
    }

    /// Frees the lock, unless it was lent by somebody who still has it.
    fn end_lease(&mut self) {
        let Some(lease) = self.lease.take().and_then(Held::end) else { return };
        // That of a commit was noted with it.
        let is_news = lease.is_recorded();
        drop(lease);
        if is_news && let Err(error) = self.ground.enter().and_then(|mut turn| self.ground.locks.record_held(&mut turn))
        {
            tracing::debug!(%error, "the release of a lock could not be noted; the background tries again");
            self.ground.late.ring();
        }
    }

    /// Looks whether the lock is still held: its file is the one that was locked, and nobody has acquired it since. It is lost
    /// only by force (somebody replaced the file); then this cannot be committed any more.
    pub fn is_held(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.is_held(&self.ground.store))
    }

    /// Asked to stop when the lock is found to be lost: at its next use, or within
    /// [`Options::heartbeat`](crate::Options::heartbeat).
    pub fn stop_token(&self) -> StopToken {
        self.lease.as_ref().map(|lease| lease.stop_token()).unwrap_or_default()
    }

    /// A descriptor of this transaction's lock that every process inherits which is started while it is open: should this
    /// process be killed, nobody gets the lock, and puts back what was guarded, before all of them have ended. A commit or
    /// rollback releases the lock whoever has inherited it.
    pub fn lend_lock(&self) -> Result<OwnedFd> {
        self.lease.as_deref().map_or(Err(Error::Closed), Lease::lend)
    }

    /// Records that the process `pid` works under this transaction's guards: should this one be killed, nothing is put back, and
    /// nobody gets the lock, before that one has ended too, whatever became of what it inherited. Not durable: a machine that
    /// goes down takes the process with it. Without a guard there is nothing to wait for, and this does nothing.
    pub fn record_worker(&mut self, pid: u32) -> Result<()> {
        let (Some(guarding), Some(worker)) = (&self.guarding, Process::find(pid)) else { return Ok(()) };
        self.ground.enter()?.write(Durability::Normal, |tx| journal::set_worker(tx, guarding.id, &worker))
    }

    /// Rolls back: throws away what was staged, puts back what was guarded, and releases the lock. On return the tree is
    /// durably as it was. Dropping does the same; here is told what was put back, or why it could not be: then the next to
    /// take the lock, or to open the journal, tries again.
    pub fn rollback(mut self) -> Result<RolledBack> {
        self.ground.store.refuse_forked()?;
        self.put_back()
    }

    fn put_back(&mut self) -> Result<RolledBack> {
        let (Some(guarding), Some(lease)) = (self.guarding.take(), &self.lease) else {
            return Ok(RolledBack::default());
        };
        guarding.roll_back(&self.ground, lease, &self.label, self.began_ms)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.ground.store.refuse_forked().is_err() {
            // All of it is the parent's: there must be nothing left that another drop could touch.
            std::mem::forget((self.lease.take(), self.guarding.take(), std::mem::take(&mut self.runs)));
            std::mem::forget((Arc::clone(&self.ground), Arc::clone(&self._alive)));
            return;
        }
        if let Err(error) = self.put_back() {
            tracing::error!(%error, "what a transaction guarded could not be put back; the next to take its lock tries again");
        }
        self.end_lease();
        for (area, name) in &self.spooled {
            let dropped = self.ground.area(*area).and_then(|area| area.drop_staged(name));
            if let Err(error) = dropped {
                tracing::warn!(%error, "a staged file could not be removed; the next recovery sweeps it");
            }
        }
    }
}
