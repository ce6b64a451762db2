//! Carries what is kept to `quarantine/` once a person has said that the tree is right as it is.
//!
//! 1. That a transaction is over is one durable COMMIT; its rows stay, as the list of what is still to be moved. From here on
//!    nobody is refused its paths.
//! 2. Each version that the stage or a row holds gets a name in `quarantine/<id>/` that says which path it is of: `new` is
//!    what was committed and is not in the tree, `old` is what was there before, `displaced` is what a recovery took out.
//! 3. The filesystems are synced, and only then the rows go.
//!
//! Cut short, it is carried on by the next recovery. What lies on a mount that is not there now waits for it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec;
use crate::error::Result;
use crate::fs::area::{self, Area};
use crate::fs::root::Dirs;
use crate::id::{QuarantineId, SessionId, TxnId};
use crate::journal::{self, GuardRow, GuardState, Level, Redo, What};
use crate::lock;
use crate::path::RelPath;
use crate::store::{Durability, Turn};
use crate::tree::{Difference, PreImage, TreeRestorer, Was};
use crate::txn::Ground;

const NEW: &str = "new";
const OLD: &str = "old";
const DISPLACED: &str = "displaced";
/// Records that cannot be read, as they are.
const UNREADABLE: &str = "unreadable";
/// What a record that cannot be read may have referred to.
const STRAY: &str = "stray";

/// Carries on what was cut short. What cannot be moved now is in nobody's way, and waits for the next recovery.
pub(super) fn carry_on(ground: &Ground, turn: &mut Turn<'_>) -> Result<()> {
    for txn in turn.look(journal::being_kept)? {
        let done = keep_transaction(ground, turn, txn);
        or_tell(ground, turn, QuarantineId::Transaction(txn), done)?;
    }
    for guard in turn.look(journal::guards)?.iter().filter(|guard| guard.state == GuardState::Ending) {
        let done = keep_guard(ground, turn, guard);
        or_tell(ground, turn, QuarantineId::Guard(guard.id.0), done)?;
    }
    Ok(())
}

fn or_tell(ground: &Ground, turn: &mut Turn<'_>, id: QuarantineId, done: Result<()>) -> Result<()> {
    let Err(error) = done else { return Ok(()) };
    ground.store.refuse_poisoned()?;
    tracing::error!(%id, %error, "what was kept could not be moved to quarantine yet; it stays where it is");
    let message = format!("what is kept of {id} could not be moved to quarantine/{id}; it is tried again: {error}");
    turn.write(Durability::Normal, |tx| journal::insert_event(tx, Level::Error, "keeping", None, None, &message))
}

/// Moves what is kept of a transaction that is over.
pub(super) fn keep_transaction(ground: &Ground, turn: &mut Turn<'_>, txn: TxnId) -> Result<()> {
    ground.refresh_areas(turn)?;
    let id = QuarantineId::Transaction(txn).to_string();
    let mut moving = Moving::new(ground, &id)?;
    let (mut done, mut unreadable) = (Vec::new(), Vec::new());
    let rows = turn.look(|tx| journal::raw_redo(tx, txn))?;
    let all = rows.len();
    for row in rows {
        let path = place_of(&row.path, row.n);
        let readable =
            codec::decode::<Redo>(&row.record).and_then(|redo| area::check_name(&redo.staged).map(|()| redo));
        match readable {
            Ok(redo) => {
                let content = turn.look(|tx| journal::redo_content(tx, txn, row.n))?;
                if moving.effect(&path, &redo, content.as_deref())? {
                    done.push(row.n);
                }
            }
            Err(_) => unreadable.push((row, path)),
        }
    }
    // Of what cannot be read the old version is told by the change.
    for change in turn.look(|tx| journal::changes(tx, txn))? {
        if let Some(name) = &change.preimage
            && let Ok(area) = ground.area(change.area)
        {
            moving.all_of(&area, name, change.path.as_path(), |_| OLD)?;
            // Settling may have come so far.
            if area.keep_history(name, &id, OLD, change.path.as_path())?.is_some() {
                moving.touched.insert(area.id);
            }
        }
    }
    let session = turn.look(|tx| journal::session_of(tx, txn))?;
    if !unreadable.is_empty() && !is_alive(turn, session)? {
        let home = ground.area(area::STATE_AREA)?;
        for (row, path) in unreadable {
            moving.bytes(&home, UNREADABLE, &path, &row.record)?;
            if let Some(content) = turn.look(|tx| journal::redo_content(tx, txn, row.n))? {
                moving.bytes(&home, NEW, &path, &content)?;
            }
            done.push(row.n);
        }
        moving.strays(turn, session)?;
    }
    moving.sync()?;
    turn.write(Durability::Full, |tx| {
        done.iter().try_for_each(|&n| journal::delete_redo_row(tx, txn, n))?;
        if done.len() == all { journal::forget_history(tx, txn) } else { Ok(()) }
    })
}

/// Moves what is kept of single effects of a transaction, which others have overtaken.
pub(super) fn keep_effects(ground: &Ground, turn: &Turn<'_>, txn: TxnId, effects: &[i64]) -> Result<()> {
    let id = QuarantineId::Transaction(txn).to_string();
    let mut moving = Moving::new(ground, &id)?;
    for row in turn.look(|tx| journal::raw_redo(tx, txn))?.into_iter().filter(|row| effects.contains(&row.n)) {
        let path = place_of(&row.path, row.n);
        let content = turn.look(|tx| journal::redo_content(tx, txn, row.n))?;
        match codec::decode::<Redo>(&row.record).and_then(|redo| area::check_name(&redo.staged).map(|()| redo)) {
            Ok(redo) => drop(moving.effect(&path, &redo, content.as_deref())?),
            Err(_) => {
                let home = ground.area(area::STATE_AREA)?;
                moving.bytes(&home, UNREADABLE, &path, &row.record)?;
                if let Some(content) = content {
                    moving.bytes(&home, NEW, &path, &content)?;
                }
            }
        }
    }
    moving.sync()
}

/// Moves what is kept of a guard that is over, and ends it.
pub(super) fn keep_guard(ground: &Ground, turn: &mut Turn<'_>, guard: &GuardRow) -> Result<()> {
    ground.refresh_areas(turn)?;
    let id = QuarantineId::Guard(guard.id.0).to_string();
    let mut moving = Moving::new(ground, &id)?;
    let mut restorer = TreeRestorer::new(&ground.root, &ground.opener, ground.areas());
    let mut unreadable = Vec::new();
    for row in turn.look(|tx| journal::raw_images(tx, guard.id))? {
        let path = place_of(&row.path, row.n);
        let image = codec::decode::<PreImage>(&row.record);
        let Ok(image) = image.and_then(|image| area::check_name(&image.name).map(|()| image)) else {
            unreadable.push((row, path));
            continue;
        };
        // Until its mount is there again.
        let Ok(area) = ground.area(image.area) else { return Ok(()) };
        moving.all_of(&area, &image.name, &path, |meta| if image.is_kept(meta) { OLD } else { DISPLACED })?;
        if let (Was::Symlink { target, .. }, Ok(at)) = (&image.was, RelPath::from_stored(&row.path))
            && !matches!(restorer.compare(&at, &image), Ok((_, Difference::None)))
        {
            area.keep_symlink(&id, OLD, &path, target)?;
            moving.touched.insert(area.id);
        }
    }
    if !unreadable.is_empty() {
        let session = SessionId::from_slice(&guard.session);
        if is_alive(turn, session)? {
            return Ok(());
        }
        let home = ground.area(area::STATE_AREA)?;
        for (row, path) in unreadable {
            moving.bytes(&home, UNREADABLE, &path, &row.record)?;
        }
        moving.strays(turn, session)?;
    }
    moving.sync()?;
    turn.write(Durability::Full, |tx| {
        journal::delete_guard(tx, guard.id)?;
        let message = format!(
            "guard {id} (lock {:?}) is over, with the tree as it was; what it kept is in quarantine/{id}",
            guard.lock
        );
        journal::insert_event(tx, Level::Info, "kept-live", None, None, &message)
    })
}

/// Where a version of this path is kept. One that cannot be read has the number of its row.
fn place_of(stored: &[u8], n: i64) -> PathBuf {
    match RelPath::from_stored(stored) {
        Ok(_) => Path::new(OsStr::from_bytes(stored)).to_owned(),
        Err(_) => format!("row-{n}").into(),
    }
}

/// True while a session may be at work, and name things in the stage.
fn is_alive(turn: &Turn<'_>, session: Option<SessionId>) -> Result<bool> {
    let open = turn.look(lock::open_sessions)?;
    Ok(session.is_some_and(|session| open.contains(&session)))
}

/// What is moved for one id.
struct Moving<'g> {
    ground: &'g Ground,
    id: &'g str,
    /// The names in each stage, by what the engine puts things behind.
    names: BTreeMap<i64, BTreeMap<String, Vec<String>>>,
    touched: BTreeSet<i64>,
}

impl<'g> Moving<'g> {
    fn new(ground: &'g Ground, id: &'g str) -> Result<Self> {
        let mut names = BTreeMap::new();
        for area in ground.areas() {
            let by_base: &mut BTreeMap<String, Vec<String>> = names.entry(area.id).or_default();
            for name in area.staged_names()? {
                let base = name.split('.').next().unwrap_or_default().to_owned();
                by_base.entry(base).or_default().push(name);
            }
        }
        Ok(Self { ground, id, names, touched: BTreeSet::new() })
    }

    /// Moves what is kept of one effect. False when its mount is not there now.
    fn effect(&mut self, path: &Path, redo: &Redo, content: Option<&[u8]>) -> Result<bool> {
        let Ok(area) = self.ground.area(redo.area) else { return Ok(false) };
        let own = match &redo.what {
            What::Content { ino, .. } | What::Symlink { ino, .. } | What::Move { ino, .. } => Some(*ino),
            What::Directory { .. } | What::Absence => None,
        };
        if content.is_some()
            && let Some(meta) = area.look_staged(&redo.staged)?
            && Some(meta.ino) == own
        {
            // What the row holds, written once and never published.
            area.unlink_staged(&redo.staged)?;
        }
        self.all_of(&area, &redo.staged, path, |meta| if Some(meta.ino) == own { NEW } else { OLD })?;
        let live = || self.live_hash(path, redo);
        match (&redo.what, content) {
            (What::Content { hash, .. }, Some(content)) if live()? != Some(*hash) => {
                self.bytes(&area, NEW, path, content)?;
            }
            (What::Symlink { target, .. }, _) if live()? != Some(*blake3::hash(target).as_bytes()) => {
                area.keep_symlink(self.id, NEW, path, target)?;
                self.touched.insert(area.id);
            }
            _ => {}
        }
        Ok(true)
    }

    /// What the tree has at the path of an effect, if it can be told.
    fn live_hash(&self, path: &Path, redo: &Redo) -> Result<Option<[u8; 32]>> {
        let Ok(path) = RelPath::parse(path) else { return Ok(None) };
        if self.ground.scene().check(&path).is_err() || Dirs::new(&self.ground.root).parent(&path).is_err() {
            return Ok(None);
        }
        let size = if let What::Content { size, .. } = redo.what { size } else { 0 };
        let found = self.ground.opener.examine(vec![(path, size)])?.pop();
        Ok(found.and_then(Result::ok).flatten().and_then(|found| found.hash))
    }

    /// Moves everything that stands under a name of the stage, and under those that the engine derives from it.
    fn all_of(
        &mut self,
        area: &Arc<Area>,
        name: &str,
        path: &Path,
        section: impl Fn(&crate::fs::root::Meta) -> &'static str,
    ) -> Result<()> {
        let base = name.split('.').next().unwrap_or_default();
        for name in self.names.get_mut(&area.id).and_then(|names| names.remove(base)).unwrap_or_default() {
            let Some(meta) = area.look_staged(&name)? else { continue };
            area.keep_staged(&name, self.id, section(&meta), path)?;
            self.touched.insert(area.id);
        }
        Ok(())
    }

    fn bytes(&mut self, area: &Arc<Area>, section: &str, path: &Path, bytes: &[u8]) -> Result<()> {
        area.keep_bytes(self.id, section, path, bytes)?;
        self.touched.insert(area.id);
        Ok(())
    }

    /// Moves what a dead session has left in the stages and no row that can be read refers to.
    fn strays(&mut self, turn: &Turn<'_>, session: Option<SessionId>) -> Result<()> {
        let Some(session) = session.map(|session| session.to_string()) else { return Ok(()) };
        let referred: HashSet<String> = turn.look(journal::staged_names)?.names;
        for area in self.ground.areas() {
            let of_it = |name: &String| name.split_once('-').is_some_and(|(owner, _)| owner == session);
            for name in area.staged_names()?.into_iter().filter(of_it) {
                let base = name.split('.').next().unwrap_or_default();
                if !referred.contains(base) && area::check_name(&name).is_ok() {
                    area.keep_staged(&name, self.id, STRAY, Path::new(&name))?;
                    self.touched.insert(area.id);
                }
            }
        }
        Ok(())
    }

    /// What was moved is durable where it is now.
    fn sync(&self) -> Result<()> {
        self.touched.iter().try_for_each(|&area| self.ground.area(area)?.sync_whole())
    }
}
