//! What a recovery would do, told without a lock and without writing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::reserved;
use crate::error::{IoContext, Result};
use crate::fs::area::{Area, STATE_AREA};
use crate::fs::clone::Way;
use crate::fs::opener::Opener;
use crate::fs::root::{self, Meta, RootDir};
use crate::fs::state::StateDir;
use crate::id::{QuarantineId, TxnId};
use crate::inspect::{GuardInfo, Inspector};
use crate::journal::{self, GuardId, GuardState, GuardedTree};
use crate::path::RelPath;
use crate::recovery;
use crate::store::Tx;
use crate::time::boot_id;
use crate::tree::{Difference, DirDiff, EntryKind, Files, PreImage, PreImages, Scan, TreeRestorer, Was};
use crate::txn::Scene;

/// One path that recovery would look at.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlannedStep {
    /// The transaction; none for one that died under a guard: it gets a number when everything is put back.
    pub txn: Option<TxnId>,
    /// The path, relative to the root.
    pub path: PathBuf,
    /// What would be done.
    pub action: String,
    /// Why.
    pub reason: String,
}

/// Says what [`Journal::recover`](crate::Journal::recover) would do, what dead transactions guarded first. Like everything an
/// [`Inspector`] does it takes no lock and writes nothing.
pub fn recovery_plan(inspector: &Inspector) -> Result<Vec<PlannedStep>> {
    let root = RootDir::open(inspector.root())?;
    let state_path = inspector.state_dir().to_owned();
    let state_dir = StateDir::open(root.path(), &state_path, false)?;
    let state = root::look_at(&state_dir).at("look at", &state_path)?;
    let state_area = Arc::new(Area::open(STATE_AREA, state_dir.duplicate()?, state_path.clone())?);
    let opener = Opener::on(root.path(), &root.top().meta)?;
    let reserved = reserved(root.path(), &state_path, inspector.database_path());
    let boot = boot_id();
    let guards = inspector.guards()?;
    inspector.rows(|tx| {
        let mut areas = vec![Arc::clone(&state_area)];
        for (id, top) in journal::areas(tx)? {
            let top = if top.is_empty() { None } else { Some(RelPath::from_stored(&top)) };
            // One that cannot be read, or is not mounted now, has nothing to look at.
            let Ok(top) = top.transpose() else { continue };
            areas.extend(Area::open_in_tree(id, &root, top.as_ref()).ok().map(Arc::new));
        }
        let scene = Scene { opener: &opener, areas, reserved: &reserved, boot: &boot, state_ino: state.ino };
        let mut steps = Vec::new();
        for guard in &guards {
            if guard.quarantined || guard.is_left_over() {
                steps.append(&mut PutBack::new(&root, &scene, guard).plan(tx)?);
            }
        }
        let committed = recovery::plan(&scene, tx)?.into_iter().map(|step| PlannedStep {
            txn: Some(step.txn),
            path: step.path.to_path_buf(),
            action: step.action,
            reason: step.reason,
        });
        steps.extend(committed);
        Ok(steps)
    })
}

const PUT_BACK: &str = "put back the old version";
const KEEP_DISPLACED: &str = "put back the old version, and keep what is there";
const TAKE_AWAY: &str = "take away what was made, and keep it";
const ATTRIBUTES: &str = "put back its mode, owner, times and xattrs";
const LEAVE: &str = "leave it: written to in place, so its old bytes are gone";
const QUARANTINE: &str = "quarantine";

/// What becomes of the paths of one guard.
struct PutBack<'a> {
    root: &'a RootDir,
    scene: &'a Scene<'a>,
    guard: &'a GuardInfo,
    /// There may have been a power cut since.
    in_doubt: bool,
    /// So many were begun and did not end.
    attempts: i64,
    steps: BTreeMap<PathBuf, (String, String)>,
}

impl<'a> PutBack<'a> {
    fn new(root: &'a RootDir, scene: &'a Scene<'a>, guard: &'a GuardInfo) -> Self {
        Self { root, scene, guard, in_doubt: false, attempts: 0, steps: BTreeMap::new() }
    }

    fn plan(mut self, tx: &Tx<'_>) -> Result<Vec<PlannedStep>> {
        let label = if self.guard.label.is_empty() { String::new() } else { format!("{:?} ", self.guard.label) };
        let died = format!("{label}(lock {}) ended without a commit", self.guard.lock);
        let row = journal::guards(tx)?.into_iter().find(|row| row.id == GuardId(self.guard.id));
        if row.as_ref().is_some_and(|row| row.state == GuardState::Ending) {
            self.step(
                Path::new("."),
                "end the guard",
                "a person has said that the tree is right: what it kept moves to quarantine/",
            );
            return Ok(self.steps());
        }
        self.attempts = row.as_ref().map_or(0, |row| row.attempts);
        let mark = row.and_then(|row| row.mark);
        self.in_doubt = !mark.is_some_and(|mark| mark.counts_in(&self.scene.mark()));
        self.paths(tx, &died)?;
        if self.guard.quarantined {
            for tree in &self.guard.trees {
                let reason = format!("{}; of its old versions the baseline has what there is", self.in_quarantine());
                self.step(&tree.path, "leave", &reason);
            }
        } else {
            for tree in journal::guarded_trees(tx, GuardId(self.guard.id))? {
                match tree {
                    Ok(tree) => self.tree(tx, &tree, &died)?,
                    Err(error) => self.step(RelPath::unknown().as_path(), QUARANTINE, &error.to_string()),
                }
            }
        }
        if self.steps.is_empty() {
            self.step(Path::new("."), "end the guard", &format!("{died}, and nothing is different"));
        }
        Ok(self.steps())
    }

    fn steps(self) -> Vec<PlannedStep> {
        let step = |(path, (action, reason))| PlannedStep { txn: None, path, action, reason };
        self.steps.into_iter().map(step).collect()
    }

    fn in_quarantine(&self) -> String {
        format!("in quarantine: see `journalctl-kb quarantine show {}`", QuarantineId::Guard(self.guard.id))
    }

    fn step(&mut self, path: &Path, action: &str, reason: &str) {
        self.steps.entry(path.to_owned()).or_insert_with(|| (action.to_owned(), reason.to_owned()));
    }

    /// What is recorded path by path.
    fn paths(&mut self, tx: &Tx<'_>, died: &str) -> Result<()> {
        let restorer = TreeRestorer::new(self.root, self.scene.opener, self.scene.areas.iter().cloned());
        let mut restorer = restorer.in_doubt(self.in_doubt && !self.guard.quarantined);
        let mut images = PreImages::new();
        for row in journal::guarded(tx, GuardId(self.guard.id))? {
            let path = row.path.and_then(|path| self.scene.check(&path).map(|()| path));
            let (path, image) = match (path, row.image) {
                (Ok(path), Ok(image)) => (path, image),
                (path, image) => {
                    let error = path.as_ref().err().or(image.as_ref().err()).map(ToString::to_string);
                    let path = path.unwrap_or_else(|_| RelPath::unknown());
                    self.step(path.as_path(), QUARANTINE, &error.unwrap_or_default());
                    continue;
                }
            };
            let (live, difference) = restorer.compare(&path, &image)?;
            let Ok(area) = self.scene.area(image.area) else {
                self.step(path.as_path(), "wait for its mount", died);
                continue;
            };
            let kept = area.look_staged(&image.name)?.filter(|staged| image.is_kept(staged));
            images.insert(path.clone(), image.clone());
            if self.guard.quarantined {
                if image.named {
                    let kept = kept.map(|_| format!("; its old version is {}", area.stage_path(&image.name).display()));
                    let reason = format!("{}{}", self.in_quarantine(), kept.unwrap_or_default());
                    self.step(path.as_path(), "leave", &reason);
                }
            } else if let Some(action) = action(&image, live.as_ref(), difference, kept.as_ref()) {
                self.step(path.as_path(), action, died);
            }
        }
        if !self.guard.quarantined {
            for (path, why) in restorer.missing(&images, self.attempts > 0)? {
                // Then none of the others is touched either.
                self.steps.insert(path.to_path_buf(), (QUARANTINE.to_owned(), why));
            }
        }
        Ok(())
    }

    /// What differs from the baseline of a tree.
    fn tree(&mut self, tx: &Tx<'_>, guarded: &GuardedTree, died: &str) -> Result<()> {
        let top = guarded.tree.path.as_ref().map_or(Path::new("."), RelPath::as_path);
        if !guarded.tree.is_true {
            self.step(top, QUARANTINE, "its baseline was being changed while it was relied upon");
            return Ok(());
        }
        let area = match self.scene.area(guarded.tree.area) {
            Ok(area) => area,
            Err(error) => {
                self.step(top, "wait", &error.to_string());
                return Ok(());
            }
        };
        let scan = Scan { root: self.root, reserved: self.scene.reserved, files: Files::All, place: area.place };
        let mut gone: Vec<RelPath> = Vec::new();
        for row in journal::tree_dirs(tx, guarded.tree.id)? {
            let above_gone = row.path.as_ref().is_some_and(|path| gone.iter().any(|gone| path.is_within(gone)));
            let Some(diff) = scan.diff(row, above_gone, |dir| journal::entries(tx, dir))? else { continue };
            if let (None, Some(path)) = (&diff.live, &diff.row.path) {
                gone.push(path.clone());
                self.step(path.as_path(), "make the directory again", died);
            }
            self.directory(diff, guarded.began, died);
        }
        if self.in_doubt && !guarded.tree.replacing {
            let reason = format!("{died}, in another boot or mount: times prove nothing");
            self.step(top, "compare every file with its copy", &reason);
        }
        Ok(())
    }

    fn directory(&mut self, diff: DirDiff, began: (i64, u32), died: &str) {
        let DirDiff { row, live, gone, changed, new, .. } = diff;
        let at = |name: &[u8]| RelPath::join(row.path.as_ref(), name);
        let dressed = |live: Meta| (live.mode, live.uid, live.gid) == (row.attrs.mode, row.attrs.uid, row.attrs.gid);
        if live.is_some_and(|live| !dressed(live)) {
            self.step(row.path.as_ref().map_or(Path::new("."), RelPath::as_path), ATTRIBUTES, died);
        }
        for entry in &gone {
            let there = new.iter().any(|(name, _)| *name == entry.name);
            match entry.what {
                // What was in it has a row of its own.
                EntryKind::Directory => {}
                EntryKind::Other => {
                    let reason = "it was a device, socket or FIFO, which cannot be put back: make it again by hand";
                    self.step(at(&entry.name).as_path(), "wait", reason);
                }
                _ => self.step(at(&entry.name).as_path(), if there { KEEP_DISPLACED } else { PUT_BACK }, died),
            }
        }
        // What changed before the guard was ready was somebody's edit by hand.
        for (entry, now) in changed.iter().filter(|(_, now)| now.ctime >= began) {
            let same_bytes = (entry.size, entry.attrs.mtime) == (now.size, now.mtime);
            let action = match (&entry.what, same_bytes) {
                (EntryKind::File(Way::Link), true) => ATTRIBUTES,
                (EntryKind::File(Way::Link), false) => LEAVE,
                _ => KEEP_DISPLACED,
            };
            self.step(at(&entry.name).as_path(), action, died);
        }
        for (name, _) in new.iter().filter(|(name, _)| gone.iter().all(|entry| entry.name != *name)) {
            self.step(at(name).as_path(), TAKE_AWAY, died);
        }
    }
}

/// What would be done about one recorded path; none where nothing differs.
fn action(
    image: &PreImage,
    live: Option<&Meta>,
    difference: Difference,
    staged: Option<&Meta>,
) -> Option<&'static str> {
    match (difference, &image.was) {
        (Difference::None, _) => None,
        (Difference::Attributes, _) => Some(ATTRIBUTES),
        (Difference::All, Was::Absent) => Some(TAKE_AWAY),
        (Difference::All, Was::File { kept, .. }) if staged.is_none_or(|staged| !kept.is(staged, true)) => Some(LEAVE),
        (Difference::All, Was::Directory { .. }) if live.is_none() => Some("make the directory again"),
        (Difference::All, _) if live.is_some() => Some(KEEP_DISPLACED),
        (Difference::All, _) => Some(PUT_BACK),
    }
}
