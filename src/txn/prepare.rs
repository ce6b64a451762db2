//! Everything that can fail, before COMMIT: temporary files are written, parents opened, permissions and free space
//! looked at, so that a full disk or a missing permission aborts instead of surprising later.

use std::collections::HashSet;
use std::sync::Arc;

use rustix::io::Errno;

use super::apply::{self, Outcome};
use super::checks;
use super::databases::Databases;
use super::effect::Effect;
use super::ground::{Ground, Version};
use super::guarding::Touched;
use super::layout::{Layout, look};
use super::overlay::{Bytes, NewFile, Published};
use crate::error::{Error, IoContext, Result};
use crate::fault::{Fault, planted};
use crate::fs::area::Area;
use crate::fs::attrs::{self, Attrs};
use crate::fs::identity::Identity;
use crate::fs::opener::SyncTarget;
use crate::fs::root::{Dirs, Kind, Meta};
use crate::fs::temp;
use crate::id::TxnId;
use crate::journal::{Change, ChangeKind, NewRedo, Redo, What};
use crate::path::RelPath;

/// Up to this many files are synced by themselves; beyond, one `syncfs` takes a third of the time. On a quiet filesystem it
/// is quicker from two files on, but it also writes out what others have left unwritten (docs/performance.md).
pub(crate) const SYNC_ONE_BY_ONE: usize = 4;
/// What a published source is called in the stage, behind its number: never deleted as a stray.
pub(crate) const KEEP: &str = ".keep";

/// One effect, ready to be carried out.
#[derive(Debug)]
pub(crate) struct Step {
    /// Its number in the transaction.
    pub(crate) n: i64,
    /// The path it acts on: for lifts that of the tree as it was, else that of the tree as it will be.
    pub(crate) path: RelPath,
    pub(crate) redo: Redo,
    pub(crate) area: Arc<Area>,
    /// The new bytes, when they ride in the log.
    pub(crate) content: Option<Arc<[u8]>>,
    /// What was there when this was prepared; looked at again under the turnstile.
    pub(crate) seen: Option<Meta>,
    /// The new bytes begin as a SQLite database does.
    pub(super) database: bool,
    /// Published: where it came from, to go back there if nothing comes of it.
    came_from: Option<Arc<Published>>,
}

/// A transaction's effects, ready. Dropped without [`Prepared::keep`], everything it wrote goes away again.
#[derive(Debug)]
pub(crate) struct Prepared<'g> {
    pub(super) ground: &'g Ground,
    pub(crate) steps: Vec<Step>,
    pub(crate) structural: bool,
    pub(super) layout: Layout,
    pub(super) dirs: Dirs<'g>,
    /// As of which version of the tree all this is.
    pub(super) version: Version,
    databases: Databases,
    /// What was done to guarded paths meanwhile.
    pub(super) touched: Vec<Touched>,
    /// Its number, once [`super::late`] expects it.
    pub(super) coming: Option<TxnId>,
    kept: bool,
}

impl<'g> Prepared<'g> {
    /// Prepares the effects of a transaction. `version` is one that the tree has, or had.
    pub(crate) fn new(ground: &'g Ground, version: Version, effects: Vec<Effect>) -> Result<Self> {
        let layout = Layout::of(&effects);
        let mut prepared = Self {
            ground,
            steps: Vec::with_capacity(effects.len()),
            structural: false,
            layout,
            dirs: Dirs::new(&ground.root),
            version,
            databases: Databases::default(),
            touched: Vec::new(),
            coming: None,
            kept: false,
        };
        for effect in effects {
            prepared.add(effect)?;
        }
        prepared.structural = prepared.steps.iter().any(|step| match &step.redo.what {
            What::Move { .. } => true,
            What::Absence => step.seen.is_some_and(|meta| meta.kind == Kind::Directory),
            _ => false,
        });
        // Answered by another thread, meanwhile.
        prepared.databases = Databases::hold(ground, &prepared.steps)?;
        checks::check(ground, &mut prepared.dirs, &prepared.steps, prepared.structural)?;
        prepared.sync_large()?;
        Ok(prepared)
    }

    /// Refuses when a SQLite database among the paths is in use. The last thing before COMMIT.
    pub(crate) fn refuse_databases_in_use(&mut self) -> Result<()> {
        self.databases.refuse_in_use(self.ground, &mut self.dirs, &self.layout)
    }

    /// True when it replaces, removes or brings a SQLite database.
    pub(super) fn has_databases(&self) -> bool {
        self.databases.are_there()
    }

    /// Carries the steps into the tree.
    pub(crate) fn apply(&mut self, txn: TxnId) -> Outcome {
        self.ground.touch();
        if self.structural {
            // Where directories move, a path does not stand for what it stood for before.
            self.dirs = Dirs::new(&self.ground.root);
        }
        apply::apply(self.ground, &mut self.dirs, txn, &self.steps, None)
    }

    /// What was written is referred to by committed rows from here on.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    fn add(&mut self, effect: Effect) -> Result<()> {
        let layout = &self.layout;
        let full = |path: &RelPath| self.ground.root.full(path);
        match effect {
            Effect::Lift(path) => {
                let seen = look(&mut self.dirs, &path)?;
                match seen {
                    None => Ok(()),
                    // What comes to this path displaces it in one call; but a directory must go first, and so must
                    // what would travel along with one that goes.
                    Some(meta) if meta.kind != Kind::Directory && layout.displaces(&path) => Ok(()),
                    Some(_) => self.step(path, What::Absence, seen),
                }
            }
            Effect::Directory(path) if layout.lifted.is_empty() && self.dirs.is_there(&path) => Ok(()),
            Effect::Directory(path) => match layout.look(&mut self.dirs, &path)? {
                Some(meta) if meta.kind == Kind::Directory && !layout.lifted.contains(&path) => Ok(()),
                Some(meta) if meta.kind == Kind::Symlink && !layout.lifted.contains(&path) => {
                    Err(Error::SymlinkOnTheWay { path: full(&path) })
                }
                Some(meta) if meta.kind != Kind::Directory && !layout.lifted.contains(&path) => {
                    Err(Error::NotADirectory { path: full(&path) })
                }
                seen => self.step(path, What::Directory { mode: None }, seen.filter(not_directory)),
            },
            Effect::File(path, file) => {
                let seen = self.displaced(&path)?;
                self.file(path, file, seen)
            }
            Effect::Symlink(path, target) => {
                let seen = self.displaced(&path)?;
                let (area, staged) = (self.area(&path)?, self.ground.fresh_name());
                let meta = temp::symlink(&area, &staged, &target)?;
                let target = std::os::unix::ffi::OsStringExt::into_vec(target.into_os_string());
                self.push(path, What::Symlink { ino: meta.ino, target }, area, staged, None, seen);
                Ok(())
            }
            Effect::Move { from, to } => {
                let Some(meta) = look(&mut self.dirs, &from)? else {
                    return Err(Error::NotFound { path: full(&from) });
                };
                let seen = self.displaced(&to)?;
                let area = self.area(&to)?;
                if self.area(&from)?.id != area.id {
                    return Err(Error::CrossDevice { path: full(&from) });
                }
                let directory = meta.kind == Kind::Directory;
                let what = What::Move { from: Some(from), ino: meta.ino, btime: meta.btime, directory };
                let staged = self.ground.fresh_name();
                self.push(to, what, area, staged, None, seen);
                Ok(())
            }
            Effect::Publish(published, to) => {
                let seen = self.displaced(&to)?;
                self.publish(&published, to, seen)
            }
        }
    }

    /// What a new version will displace. A directory only if the transaction lifts it.
    fn displaced(&mut self, path: &RelPath) -> Result<Option<Meta>> {
        match self.layout.look(&mut self.dirs, path)? {
            Some(meta) if meta.kind == Kind::Directory && self.layout.lifted.contains(path) => Ok(None),
            Some(meta) if meta.kind == Kind::Directory => {
                Err(Error::IsADirectory { path: self.ground.root.full(path) })
            }
            seen => Ok(seen),
        }
    }

    fn area(&mut self, path: &RelPath) -> Result<Arc<Area>> {
        // A parent that this transaction makes will lie on the mount of the nearest one that exists.
        let mut at = path.clone();
        loop {
            match self.dirs.parent(&at) {
                Ok(dir) => return self.ground.area_of(&dir, &at),
                Err(Error::NotFound { .. } | Error::NotADirectory { .. } | Error::SymlinkOnTheWay { .. }) => {}
                Err(error) => return Err(error),
            }
            match at.parent() {
                Some(parent) => at = parent,
                None => return self.ground.area(crate::fs::area::STATE_AREA),
            }
        }
    }

    fn step(&mut self, path: RelPath, what: What, seen: Option<Meta>) -> Result<()> {
        let (area, staged) = (self.area(&path)?, self.ground.fresh_name());
        self.push(path, what, area, staged, None, seen);
        Ok(())
    }

    fn push(
        &mut self,
        path: RelPath,
        what: What,
        area: Arc<Area>,
        staged: String,
        content: Option<Arc<[u8]>>,
        seen: Option<Meta>,
    ) {
        let redo = Redo { what, area: area.id, staged, old: seen.as_ref().map(Identity::from) };
        let n = self.steps.len() as i64;
        self.steps.push(Step { n, path, redo, area, content, seen, database: false, came_from: None });
    }

    fn file(&mut self, path: RelPath, file: NewFile, seen: Option<Meta>) -> Result<()> {
        let area = self.area(&path)?;
        let like = match &file.like {
            // Where it is going to be, unless it was moved: that was looked at just now.
            Some(from) if *from == path && !self.layout.lifted.contains(&path) => {
                like(&mut self.dirs, from, seen.as_ref())?
            }
            Some(from) => {
                let live = look(&mut self.dirs, from)?;
                like(&mut self.dirs, from, live.as_ref())?
            }
            // New, or in place of one that this transaction removed.
            None => None,
        };
        let staged = match &file.bytes {
            Bytes::Staged { name, area: at, .. } if *at == area.id => name.clone(),
            _ => self.ground.fresh_name(),
        };
        // Recorded before it is filled, so that what a full disk leaves of it is removed.
        let empty = Attrs::default();
        let what = What::Content { ino: 0, size: file.bytes.size(), hash: file.hash, attrs: empty };
        self.push(path, what, Arc::clone(&area), staged, None, seen);
        let step = self.steps.last().ok_or(Error::Closed)?;
        let staged = step.redo.staged.as_str();
        let meta = match &file.bytes {
            Bytes::Inline(bytes) => temp::write(&area, staged, bytes, like.as_ref(), false)?,
            Bytes::Staged { name, area: at, .. } => {
                let stage_path = area.stage_path(staged);
                if *at != area.id {
                    let from = self.ground.area(*at)?;
                    temp::copy(&from, name, &area, staged)?;
                    from.drop_staged(name)?;
                }
                temp::finish(&temp::reopen(&area, staged)?, like.as_ref(), false, &stage_path)?
            }
        };
        let meta = self.inherit_group(meta, seen.as_ref())?;
        let step = self.steps.last_mut().ok_or(Error::Closed)?;
        let xattrs = like.map(|like| like.xattrs).unwrap_or_default();
        let attrs = Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs };
        step.redo.what = What::Content { ino: meta.ino, size: meta.size, hash: file.hash, attrs };
        step.database = file.database;
        if let Bytes::Inline(bytes) = file.bytes {
            step.content = Some(bytes);
        }
        Ok(())
    }

    /// A new file in a set-group-id directory belongs to that group; made in the stage, it has to be told.
    fn inherit_group(&mut self, meta: Meta, seen: Option<&Meta>) -> Result<Meta> {
        let Some(step) = self.steps.last() else { return Ok(meta) };
        let Ok(dir) = self.dirs.parent(&step.path) else { return Ok(meta) };
        let gid = dir.meta.gid;
        if seen.is_some() || dir.meta.mode & libc::S_ISGID == 0 || gid == meta.gid {
            return Ok(meta);
        }
        temp::give_group(&step.area, &step.redo.staged, gid)?;
        Ok(Meta { gid, ..meta })
    }

    fn publish(&mut self, published: &Arc<Published>, to: RelPath, seen: Option<Meta>) -> Result<()> {
        let area = self.area(&to)?;
        let source = &published.source;
        let staged = self.ground.fresh_name() + KEEP;
        match area.adopt(source, &staged) {
            Err(Errno::XDEV) => return Err(Error::CrossDevice { path: source.clone() }),
            other => other.at("move", source)?,
        }
        let Some(meta) = area.look_staged(&staged)? else { return Err(Error::NotFound { path: source.clone() }) };
        let what = What::Move { from: None, ino: meta.ino, btime: meta.btime, directory: published.directory };
        self.push(to, what, area, staged, None, seen);
        if let Some(step) = self.steps.last_mut() {
            step.came_from = Some(Arc::clone(published));
        }
        Ok(())
    }

    /// What does not ride in the log is durable, with its name in the stage, before the COMMIT that relies on it.
    fn sync_large(&self) -> Result<()> {
        if planted(Fault::StagedContentUnsynced) {
            return Ok(());
        }
        let large = |step: &&Step| match &step.redo.what {
            What::Content { .. } => step.content.is_none(),
            What::Move { from, .. } => from.is_none(),
            _ => false,
        };
        for area in self.ground.areas() {
            let steps: Vec<&Step> = self.steps.iter().filter(large).filter(|step| step.area.id == area.id).collect();
            let whole = steps.iter().any(|step| matches!(step.redo.what, What::Move { directory: true, .. }));
            if steps.is_empty() {
                continue;
            }
            if whole || steps.len() > SYNC_ONE_BY_ONE {
                area.sync_whole()?;
                continue;
            }
            let mut targets: Vec<SyncTarget> =
                steps.iter().map(|step| SyncTarget::Own(area.stage_path(&step.redo.staged))).collect();
            targets.push(SyncTarget::Own(area.path.join("stage")));
            self.ground.sync(targets)?;
        }
        Ok(())
    }

    /// The change rows: of the steps, then of what was done to guarded paths. Where both name a path, the step is the
    /// later one, and the other is told of only for the version before both, which it keeps.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let mut changes: Vec<Change> = self.steps.iter().map(Step::change).collect();
        if !self.touched.is_empty() {
            let staged: HashSet<&RelPath> = self.steps.iter().map(|step| &step.path).collect();
            let touched = self.touched.iter().map(|touched| &touched.change);
            let tells = |change: &&Change| change.preimage.is_some() || !staged.contains(&change.path);
            changes.extend(touched.filter(tells).cloned());
        }
        changes
    }

    fn put_back(&self) {
        // In reverse: what was taken out of a source first goes back into it last.
        for step in self.steps.iter().rev() {
            let staged = &step.redo.staged;
            let Some(published) = &step.came_from else {
                if matches!(step.redo.what, What::Content { .. } | What::Symlink { .. })
                    && let Err(error) = step.area.drop_staged(staged)
                {
                    tracing::warn!(%error, "a temporary file could not be removed; the next recovery sweeps it");
                }
                continue;
            };
            let to = &published.source;
            if let Err(error) = step.area.give_back(staged, to) {
                tracing::warn!(%error, kept = %step.area.stage_path(staged).display(), from = %to.display(),
                    "a published source could not go back to where it was; it is kept");
            }
        }
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.put_back();
        }
        self.databases.release(self.ground);
    }
}

impl Step {
    /// What is recorded of it.
    pub(super) fn row(&self) -> NewRedo<'_> {
        NewRedo { n: self.n, path: &self.path, redo: &self.redo, content: self.content.as_deref() }
    }

    /// The paths it changes: its own, and the one it moves from.
    pub(super) fn paths(&self) -> impl Iterator<Item = &RelPath> {
        let from = match &self.redo.what {
            What::Move { from, .. } => from.as_ref(),
            _ => None,
        };
        [Some(&self.path), from].into_iter().flatten()
    }

    /// A step as it stands in the journal, to be carried out once more.
    pub(crate) fn again(n: i64, path: RelPath, redo: Redo, area: Arc<Area>, content: Option<Arc<[u8]>>) -> Self {
        Self { n, path, redo, area, content, seen: None, database: false, came_from: None }
    }

    /// Its row for people and history.
    pub(super) fn change(&self) -> Change {
        let old = self.redo.old.as_ref();
        let (kind, origin, size, hash) = match &self.redo.what {
            What::Content { size, hash, .. } => (None, None, Some(*size), Some(*hash)),
            What::Symlink { target, .. } => {
                (None, None, Some(target.len() as u64), Some(*blake3::hash(target).as_bytes()))
            }
            What::Directory { .. } => (Some(ChangeKind::Directory), None, None, None),
            What::Absence => (Some(ChangeKind::Removed), None, None, None),
            What::Move { from, .. } => (Some(ChangeKind::Renamed), from.clone(), None, None),
        };
        let kind = kind.unwrap_or(if old.is_some() { ChangeKind::Replaced } else { ChangeKind::Created });
        Change {
            path: self.path.clone(),
            kind,
            origin,
            size,
            hash,
            old_size: old.filter(|old| !old.directory).map(|old| old.size),
            preimage: old.map(|_| self.redo.preimage_name()),
            area: self.area.id,
        }
    }
}

impl Redo {
    /// The name in the stage under which the old version is kept. A move's own name may hold the moved inode.
    pub(crate) fn preimage_name(&self) -> String {
        match self.what {
            What::Move { .. } => format!("{}.pre", self.staged),
            _ => self.staged.clone(),
        }
    }
}

pub(super) fn not_directory(meta: &Meta) -> bool {
    meta.kind != Kind::Directory
}

/// What a new file takes over: all of the version it replaces, or the group of a set-group-id directory.
pub(super) fn like(dirs: &mut Dirs<'_>, path: &RelPath, seen: Option<&Meta>) -> Result<Option<Attrs>> {
    if seen.is_none() {
        return Ok(None);
    }
    let Some(dir) = dirs.try_parent(path)? else { return Ok(None) };
    match seen {
        Some(meta) if meta.kind == Kind::File => {
            let xattrs = attrs::xattrs(&dir.fd, path.name(), dirs.root().path())?;
            Ok(Some(Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs }))
        }
        _ => Ok(None),
    }
}
