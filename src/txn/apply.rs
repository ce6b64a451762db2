//! Carries effects into the live tree. No sync here; nothing taken out of the tree is unlinked.
//!
//! 1. lifts: what is removed or moved leaves its path, deepest first, for a name in the stage;
//! 2. places: directories are made, staged versions exchanged with the live ones, parents first.
//!
//! An old version that is not the one the row expected was somebody's work since: it goes to quarantine, with a
//! warning. Done again after a crash, each step first looks how far it had come.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::displaced::{AGAIN, Displaced};
use super::ground::Ground;
use super::layout::look;
use super::prepare::Step;
use crate::error::{Error, IoContext, Result};
use crate::fs::area::{self, Area};
use crate::fs::exchange::{self, Placed};
use crate::fs::root::{self, Dirs, Kind};
use crate::fs::temp;
use crate::id::TxnId;
use crate::journal::{self, Redo, What};
use crate::path::RelPath;
use crate::store::{Durability, Turn};

/// What came of carrying out the steps of one transaction.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Steps that failed; the rest was carried out.
    pub(crate) failed: Vec<(RelPath, Error)>,
    /// Versions that nobody expected, and where they are now.
    pub(crate) aside: Vec<(RelPath, String)>,
}

/// To carry out steps once more.
pub(crate) struct Repeat<'a, 't> {
    /// What is written once more is recorded first.
    pub(crate) turn: &'a mut Turn<'t>,
    /// A power cut may have come since they were carried out first.
    pub(crate) in_doubt: bool,
}

/// Carries out all steps of a transaction.
pub(crate) fn apply(
    ground: &Ground,
    dirs: &mut Dirs<'_>,
    txn: TxnId,
    steps: &[Step],
    again: Option<Repeat<'_, '_>>,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut apply = Apply { ground, dirs, txn, again, aside: Vec::new() };
    let mut lifts: Vec<&Step> = steps
        .iter()
        .filter(|step| matches!(&step.redo.what, What::Absence | What::Move { from: Some(_), .. }))
        .collect();
    let source = |step: &Step| match &step.redo.what {
        What::Move { from: Some(from), .. } => from.clone(),
        _ => step.path.clone(),
    };
    lifts.sort_by_key(|step| std::cmp::Reverse(source(step)));
    for step in lifts {
        let done = match &step.redo.what {
            What::Absence => apply.remove(step),
            What::Move { from: Some(from), ino, .. } => apply.lift(step, from, *ino),
            _ => continue,
        };
        if let Err(error) = done {
            outcome.failed.push((step.path.clone(), error));
        }
    }
    for step in steps {
        let done = match &step.redo.what {
            What::Absence => continue,
            What::Directory { .. } => apply.directory(step),
            What::Content { ino, .. } | What::Symlink { ino, .. } => apply.version(step, *ino),
            What::Move { ino, .. } => apply.place_moved(step, *ino),
        };
        if let Err(error) = done {
            outcome.failed.push((step.path.clone(), error));
        }
    }
    outcome.aside = apply.aside;
    outcome
}

struct Apply<'a, 'd, 't> {
    ground: &'a Ground,
    dirs: &'a mut Dirs<'d>,
    txn: TxnId,
    again: Option<Repeat<'a, 't>>,
    aside: Vec<(RelPath, String)>,
}

impl Apply<'_, '_, '_> {
    fn remove(&mut self, step: &Step) -> Result<()> {
        if self.again.is_some() && self.staged_ino(&step.area, &step.redo.staged)?.is_some() {
            return self.judge(step, &step.redo.staged);
        }
        let Some(dir) = self.dirs.try_parent(&step.path)? else { return Ok(()) };
        match exchange::take(&dir.fd, step.path.name(), &step.area.stage, &step.redo.staged) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.at("remove", self.ground.root.full(&step.path))?,
        }
        self.dirs.forget(&step.path);
        self.judge(step, &step.redo.staged)
    }

    fn lift(&mut self, step: &Step, from: &RelPath, ino: u64) -> Result<()> {
        if self.again.is_some() {
            let there = |meta: Option<root::Meta>| meta.is_some_and(|meta| meta.ino == ino);
            let source = self.look_again(from)?;
            if self.staged_ino(&step.area, &step.redo.staged)? == Some(ino) || there(self.look_again(&step.path)?) {
                return source.map_or(Ok(()), |meta| self.clear_source(step, from, meta.ino == ino));
            }
            if !there(source) {
                return Err(Error::NotFound { path: self.ground.root.full(from) });
            }
        }
        let dir = self.dirs.parent(from)?;
        exchange::take(&dir.fd, from.name(), &step.area.stage, &step.redo.staged)
            .at("move", self.ground.root.full(from))?;
        self.dirs.forget(from);
        Ok(())
    }

    /// What is moved has left its path. A power cut may leave both names of that rename, or have brought back there what
    /// somebody had replaced and nobody had synced: that goes to quarantine, as what is at a removed path does.
    fn clear_source(&mut self, step: &Step, from: &RelPath, is_it: bool) -> Result<()> {
        let in_doubt = self.again.as_ref().is_some_and(|again| again.in_doubt);
        let Some(dir) = self.dirs.try_parent(from)?.filter(|_| is_it || in_doubt) else { return Ok(()) };
        let full = || self.ground.root.full(from);
        if is_it {
            area::unlink(&dir.fd, from.name(), &full())?;
        } else {
            let name = format!("{}{AGAIN}", step.redo.staged);
            exchange::take(&dir.fd, from.name(), &step.area.stage, &name).at("remove", full())?;
            self.judge(step, &name)?;
        }
        self.dirs.forget(from);
        Ok(())
    }

    fn directory(&mut self, step: &Step) -> Result<()> {
        let full = self.ground.root.full(&step.path);
        let What::Directory { mode } = step.redo.what else { return Ok(()) };
        let dir = self.dirs.parent(&step.path)?;
        self.dirs.forget(&step.path);
        let make = || dir.make_dir(step.path.name(), mode);
        match make() {
            Err(Errno::EXIST) => {
                let meta = root::look(&dir.fd, step.path.name()).at("look at", &full)?;
                if meta.is_none_or(|meta| meta.kind == Kind::Directory) {
                    return Ok(());
                }
                exchange::take(&dir.fd, step.path.name(), &step.area.stage, &step.redo.staged).at("remove", &full)?;
                make().at("make the directory", full)?;
                self.judge(step, &step.redo.staged)
            }
            other => other.at("make the directory", full),
        }
    }

    fn version(&mut self, step: &Step, ino: u64) -> Result<()> {
        if self.again.is_some() {
            let live = self.reconcile(step)?;
            // A power cut may have taken the bytes and left the inode: small content is told by its hash alone.
            let small = step.content.is_some() || matches!(step.redo.what, What::Symlink { .. });
            let there = match small {
                true => self.is_there(step)?,
                false => live.is_some_and(|meta| meta.ino == ino),
            };
            if there {
                return Ok(());
            }
            if small || self.staged_ino(&step.area, &step.redo.staged)? != Some(ino) {
                return self.rewrite(step);
            }
        }
        let displaced = self.place(step, &step.redo.staged)?;
        if displaced { self.judge(step, &step.redo.staged) } else { Ok(()) }
    }

    /// Writes a new version once more from the journal, where the temporary file did not survive.
    fn rewrite(&mut self, step: &Step) -> Result<()> {
        let staged = format!("{}{AGAIN}", step.redo.staged);
        let again = Again::begin(step, staged.clone())?;
        if let Some(Repeat { turn, .. }) = &mut self.again {
            let redo = again.recorded(&step.redo);
            turn.write(Durability::Normal, |tx| journal::update_redo(tx, self.txn, step.n, &redo))?;
        }
        again.fill(step)?;
        if self.place(step, &staged)? {
            self.judge(step, &staged)?;
        }
        // The temporary file of the first try, as a rule.
        let live = self.look_again(&step.path)?;
        let kept = self.displaced(step).judge_staged(live.as_ref(), true)?;
        self.aside.extend(kept.map(|kept| (step.path.clone(), kept)));
        Ok(())
    }

    fn displaced<'s>(&'s self, step: &'s Step) -> Displaced<'s> {
        Displaced {
            opener: &self.ground.opener,
            area: &step.area,
            txn: self.txn,
            redo: &step.redo,
            found_by: std::slice::from_ref(&step.redo),
        }
    }

    /// True when the tree has the very content or symlink that a step is to leave there.
    fn is_there(&self, step: &Step) -> Result<bool> {
        let (size, wanted) = match &step.redo.what {
            What::Content { size, hash, .. } => (*size, *hash),
            What::Symlink { target, .. } => (0, *blake3::hash(target).as_bytes()),
            _ => return Ok(false),
        };
        let symlink = matches!(step.redo.what, What::Symlink { .. });
        let found = self.ground.opener.examine(vec![(step.path.clone(), size)])?.pop();
        Ok(match found {
            Some(Ok(Some(found))) => found.hash == Some(wanted) && (found.meta.kind == Kind::Symlink) == symlink,
            _ => false,
        })
    }

    fn place_moved(&mut self, step: &Step, ino: u64) -> Result<()> {
        if self.again.is_some() && self.reconcile(step)?.is_some_and(|meta| meta.ino == ino) {
            if self.staged_ino(&step.area, &step.redo.staged)? == Some(ino) {
                // A power cut may leave both names of a rename.
                step.area.unlink_staged(&step.redo.staged)?;
            }
            // What the exchange displaced may not have been judged yet.
            return self.judge(step, &step.redo.staged);
        }
        self.dirs.forget(&step.path);
        if !self.place(step, &step.redo.staged)? {
            return Ok(());
        }
        self.judge(step, &step.redo.staged)
    }

    fn place(&mut self, step: &Step, staged: &str) -> Result<bool> {
        let dir = self.dirs.parent(&step.path)?;
        let expect_old = step.redo.old.is_some();
        let placed = exchange::place(&step.area, &step.area.stage, staged, &dir.fd, step.path.name(), expect_old);
        let displaced = placed.at_in("put in place", self.ground.root.path(), &step.path)? == Placed::Exchanged;
        if !displaced && self.again.is_some() {
            // What the try before this one had moved aside.
            self.reconcile(step)?;
        }
        Ok(displaced)
    }

    /// Puts right what the try before this one left, and answers what the tree has.
    fn reconcile(&mut self, step: &Step) -> Result<Option<root::Meta>> {
        let live = self.look_again(&step.path)?;
        let kept = self.displaced(step).reconcile(live.as_ref())?;
        self.aside.extend(kept.map(|kept| (step.path.clone(), kept)));
        Ok(live)
    }

    /// What came out of the tree is kept for history if it is what was expected, else for a person.
    fn judge(&mut self, step: &Step, name: &str) -> Result<()> {
        let kept = self.displaced(step).keep(name)?;
        self.aside.extend(kept.map(|kept| (step.path.clone(), kept)));
        Ok(())
    }

    fn staged_ino(&self, area: &Area, name: &str) -> Result<Option<u64>> {
        Ok(area.look_staged(name)?.map(|meta| meta.ino))
    }

    fn look_again(&mut self, path: &RelPath) -> Result<Option<root::Meta>> {
        match look(self.dirs, path) {
            Err(Error::NotADirectory { .. }) => Ok(None),
            other => other,
        }
    }
}

/// A new version that is written once more: there, with an inode, and empty yet.
pub(crate) struct Again {
    pub(crate) staged: String,
    pub(crate) ino: u64,
    /// None: a symlink, which is never empty.
    file: Option<OwnedFd>,
}

impl Again {
    pub(crate) fn begin(step: &Step, staged: String) -> Result<Self> {
        match (&step.redo.what, &step.content) {
            (What::Content { .. }, Some(_)) => {
                let file = temp::create(&step.area, &staged)?;
                let ino = root::look_at(&file).at("look at", step.area.stage_path(&staged))?.ino;
                Ok(Self { staged, ino, file: Some(file) })
            }
            (What::Symlink { target, .. }, _) => {
                let target: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(target);
                let ino = temp::symlink(&step.area, &staged, target.as_ref())?.ino;
                Ok(Self { staged, ino, file: None })
            }
            _ => Err(Error::NotFound { path: step.area.stage_path(&step.redo.staged) }),
        }
    }

    /// The redo record that knows of it.
    pub(crate) fn recorded(&self, redo: &Redo) -> Redo {
        let mut redo = redo.clone();
        if let What::Content { ino, .. } | What::Symlink { ino, .. } = &mut redo.what {
            *ino = self.ino;
        }
        redo
    }

    /// Writes its bytes, once its inode is recorded.
    pub(crate) fn fill(self, step: &Step) -> Result<()> {
        if let (Some(file), What::Content { attrs, .. }, Some(bytes)) = (&self.file, &step.redo.what, &step.content) {
            let path = step.area.stage_path(&self.staged);
            temp::write_all(file, bytes, &path)?;
            temp::finish(file, Some(attrs), true, &path)?;
        }
        Ok(())
    }
}
