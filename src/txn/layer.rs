//! Layers: a program works on an overlay over a directory of the tree, and what it wrote becomes the transaction's
//! ([`absorb`](super::absorb)).
//!
//! 1. *lay*: a directory in the stage of the tree's own mount, for the upper layer, and a claim on the tree in the journal:
//!    nobody else's commit gets in, and there is nothing to put back. Databases that are to be used are captured into it.
//! 2. whoever runs the program mounts the overlay and, when nobody writes to it any more, unmounts it;
//! 3. *absorb*, then *commit*; or the layer is dropped.
//!
//! A crash before 3 leaves a claim of a dead session, which recovery ends, and a directory in the stage, which it sweeps.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::commit;
use super::displaced::{NOBODYS, set_aside};
use super::ground::Ground;
use super::guard::{refuse_guarded_tree, stand_alone};
use super::guarding::Guarding;
use super::transaction::Transaction;
use crate::error::{Error, IoContext, Result};
use crate::fs::area::{self, Area};
use crate::fs::attrs::{self, Attrs};
use crate::fs::clone::Kept;
use crate::fs::database::KeepSet;
use crate::fs::identity::Identity;
use crate::fs::opener::SIDECARS;
use crate::fs::root::{self, Dirs, Kind};
use crate::fs::upper::Upper;
use crate::journal::{self, Level};
use crate::path::RelPath;
use crate::store::Durability;

/// What a program writes in place of a directory of the tree: the upper and the work directory of an overlay mount (Linux's
/// overlayfs) over it. Mount it with `metacopy=off,index=off` and, as root, `redirect_dir=on`; in a user namespace with
/// `userxattr`. Dropping it throws away what was written.
#[derive(Debug)]
#[must_use = "what is written to a layer is thrown away with it; give it to Transaction::absorb"]
pub struct Layer {
    ground: Arc<Ground>,
    pub(super) area: Arc<Area>,
    /// Of its directory in the stage.
    pub(super) name: String,
    /// None is the root.
    pub(super) top: Option<RelPath>,
    pub(super) upper: Upper,
    pub(super) databases: Vec<Captured>,
    /// When it was laid, by the clock of the filesystem.
    pub(super) began: (i64, u32),
    lower: PathBuf,
    path: PathBuf,
    kept: bool,
}

/// A database that was copied into the layer.
#[derive(Debug)]
pub(super) struct Captured {
    pub(super) path: RelPath,
    /// What its set was in the tree, and as copied, in the order of [`SIDECARS`] behind the database itself.
    pub(super) live: [Option<Identity>; 4],
    pub(super) copied: [Option<Identity>; 4],
}

impl Layer {
    /// The directory of the tree: the lower layer.
    pub fn lower(&self) -> &Path {
        &self.lower
    }

    /// Where what is written goes: the upper layer.
    pub fn upper(&self) -> PathBuf {
        self.upper.path().clone()
    }

    /// The directory that overlayfs works in.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Says that the overlay was mounted with `userxattr`, as in a user namespace: overlayfs keeps its notes elsewhere then, and what
    /// is not told would be taken for the program's.
    pub fn mounted_with_userxattr(&mut self) {
        self.upper.mounted(true);
    }

    /// Keeps what was written where a person finds it, in the quarantine of the journal: nothing of it becomes part of the
    /// tree, and nothing removes it. Answers where.
    pub fn set_aside(mut self) -> Result<PathBuf> {
        area::remove_below(&area::open_own(&self.path)?, "work".as_ref(), &self.path)?;
        let kept = set_aside(&self.area, NOBODYS, &self.area.stage, &self.name)?;
        self.kept = true;
        let kept = PathBuf::from(kept).join("upper");
        let message = format!(
            "what was written over {} was not taken over; it is kept in {}",
            self.lower.display(),
            kept.display()
        );
        let top = self.top.as_ref();
        let told = self.ground.enter().and_then(|mut turn| {
            turn.write(Durability::Normal, |tx| {
                journal::insert_event(tx, Level::Warn, "set-aside", None, top, &message)
            })
        });
        if let Err(error) = told {
            tracing::warn!(%error, "{message}");
        }
        Ok(kept)
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.area.drop_staged(&self.name)
        {
            tracing::warn!(%error, "a layer could not be removed; the next recovery sweeps it");
        }
    }
}

impl Transaction {
    /// Lays a layer over a directory of the tree; `.` is the whole root. A program that writes to an overlay mount over it,
    /// instead of to the directory, changes nothing that anybody else sees before [`Transaction::absorb`] and commit.
    ///
    /// Costs the same whatever the directory holds. Until this transaction ends nobody else's commit can change anything in it.
    /// SQLite databases in `databases` are copied into the layer as they are at this instant: others may have them open and
    /// write to them. One that is not named must not be written to meanwhile, or what the program does to it is refused.
    ///
    /// [`Error::PathBusy`] when another transaction guards something of it, [`Error::MountInTree`] when something is mounted in it.
    pub fn layer<P: AsRef<Path>>(
        &mut self,
        path: impl AsRef<Path>,
        databases: impl IntoIterator<Item = P>,
    ) -> Result<Layer> {
        let path = path.as_ref();
        let whole_root = path.as_os_str().is_empty() || path == Path::new(".");
        let top = if whole_root { None } else { Some(self.begin_staging(path)?) };
        let databases =
            databases.into_iter().map(|path| self.begin_staging(path.as_ref())).collect::<Result<Vec<_>>>()?;
        self.ask("layer", &[top.as_ref().map_or(b"", RelPath::as_bytes)]);
        let ground = &self.ground;
        let lower = top.as_ref().map_or(ground.root.path().to_owned(), |top| ground.root.full(top));
        let live = match &top {
            None => ground.root.top().meta_now().at("look at", &lower)?,
            Some(top) => ground.root.look(top)?.ok_or_else(|| Error::NotFound { path: lower.clone() })?,
        };
        if live.kind != Kind::Directory {
            return Err(Error::NotADirectory { path: lower });
        }
        if let Some(outside) = databases.iter().find(|path| top.as_ref().is_some_and(|top| !path.is_within(top))) {
            let reason = "it does not lie in the directory that the layer is over";
            return Err(Error::BadPath { path: outside.to_path_buf(), reason });
        }
        if let Some(path) = root::mount_below(&lower) {
            return Err(Error::MountInTree { path });
        }
        self.claim(top.as_ref())?;
        let ground = &self.ground;
        let area = ground.area_near(top.as_ref())?;
        let name = ground.fresh_name();
        let path = area.make_staged_dir(&name)?;
        let opened = area::open_own(&path)?;
        let upper = Upper::make(&opened, path.clone())?;
        area::subdirectory(&opened, "work", &path, 0o700)?;
        let mut layer = Layer {
            ground: Arc::clone(&self.ground),
            area,
            name,
            top,
            upper,
            databases: Vec::new(),
            began: (0, 0),
            lower,
            path,
            kept: false,
        };
        // An overlay shows the top of the upper layer in place of the tree's.
        let attrs = match &layer.top {
            Some(top) => self.attrs_of(top)?,
            None => attrs::of(&live, attrs::xattrs(&self.ground.root.top().fd, ".".as_ref(), &layer.lower)?),
        };
        layer.upper.dress(None, &attrs)?;
        for database in databases {
            let captured = self.capture(&layer, database)?;
            layer.databases.push(captured);
        }
        layer.began = layer.area.clock_after(layer.area.clock()?)?;
        Ok(layer)
    }

    /// Notes that this transaction has the tree to itself.
    fn claim(&mut self, top: Option<&RelPath>) -> Result<()> {
        let Some(lease) = &self.lease else { return Err(Error::Closed) };
        let ground = &self.ground;
        let own = self.guarding.as_ref().map(|guarding| guarding.id);
        let area = ground.area_near(top)?.id;
        let (mut turn, _settling) = stand_alone(ground)?;
        lease.check_same()?;
        refuse_guarded_tree(ground, &turn, own, top)?;
        let paths: Vec<RelPath> = top.iter().map(|&top| top.clone()).collect();
        commit::refuse_troubled(ground, &mut turn, &paths)?;
        let row = self.guard_row(&mut turn)?;
        let id = turn.write(Durability::Normal, |tx| {
            let id = ground.record_guard(tx, own, &row)?;
            journal::claim_tree(tx, id, top, area)?;
            Ok(id)
        })?;
        ground.guarding().insert(id);
        drop(turn);
        self.guarding.get_or_insert_with(|| Guarding::new(id));
        Ok(())
    }

    /// Copies a database, with what lies beside it, into a layer.
    fn capture(&self, layer: &Layer, path: RelPath) -> Result<Captured> {
        let (ground, upper) = (&self.ground, &layer.upper);
        let at = layer.within(&path)?;
        let above: Vec<RelPath> = std::iter::successors(at.parent(), RelPath::parent).collect();
        for above in above.into_iter().rev() {
            upper.make_directory(&above)?;
            upper.dress(Some(&above), &self.attrs_of(&layer.in_tree(&above))?)?;
        }
        let to = |suffix: &str| {
            let mut to = upper.full(&at).into_os_string();
            to.push(suffix);
            PathBuf::from(to)
        };
        let set = KeepSet { path: path.clone(), to: to(""), sidecars: SIDECARS.map(to), kept: None };
        let (database, [wal, _, journal]) = ground.opener.keep_sets(vec![set])?.pop().ok_or(Error::Closed)??;
        if let Some(shm) = at.with_suffix(b"-shm") {
            // Made anew by whoever opens it first.
            upper.unlink(&shm)?;
        }
        let identities = |kept: &Kept| match kept {
            Kept::File { meta, kept, .. } => (Some(Identity::from(meta)), Some(Identity::from(kept))),
            _ => (None, None),
        };
        let (main, wal, journal) = (identities(&database), identities(&wal), identities(&journal));
        Ok(Captured { path, live: [main.0, wal.0, None, journal.0], copied: [main.1, wal.1, None, journal.1] })
    }

    /// What a directory of the tree has besides its entries.
    fn attrs_of(&self, path: &RelPath) -> Result<Attrs> {
        let root = &self.ground.root;
        let mut dirs = Dirs::new(root);
        let dir = dirs.parent(path)?;
        let live = root::look(&dir.fd, path.name()).at_in("look at", root.path(), path)?;
        let live = live.ok_or_else(|| Error::NotFound { path: root.full(path) })?;
        Ok(attrs::of(&live, attrs::xattrs(&dir.fd, path.name(), root.path())?))
    }
}

impl Layer {
    /// A path of the tree, as one of the layer.
    pub(super) fn within(&self, path: &RelPath) -> Result<RelPath> {
        match &self.top {
            None => Ok(path.clone()),
            Some(top) => RelPath::parse(path.as_path().strip_prefix(top.as_path()).unwrap_or(path.as_path())),
        }
    }

    fn in_tree(&self, at: &RelPath) -> RelPath {
        match &self.top {
            None => at.clone(),
            Some(top) => RelPath::join(Some(top), at.as_bytes()),
        }
    }
}
