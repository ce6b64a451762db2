//! Brings records to other inodes, after a copy: what lies where a record says, with the size and the time that it says, or
//! with its content, is what it speaks of. What cannot be told so stays as it is recorded, and is then found by nobody.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::codec;
use crate::error::Result;
use crate::fs::area::check_name;
use crate::fs::clone::Way;
use crate::fs::identity::Identity;
use crate::fs::root::{self, Kind, Meta};
use crate::id::TxnId;
use crate::journal::{self, GuardId, GuardRow, Redo, TreeId, Unsettled, What};
use crate::path::RelPath;
use crate::store::{Turn, Tx};
use crate::tree::{DirRow, Entry, EntryKind, PreImage, Was};
use crate::txn::{AGAIN, Ground, mirror};

/// A redo row, as it is to be.
pub(super) struct Effect {
    pub(super) txn: TxnId,
    pub(super) n: i64,
    pub(super) path: RelPath,
    pub(super) redo: Redo,
    pub(super) inline: bool,
}

/// What records are to say.
#[derive(Default)]
pub(super) struct Rebound {
    pub(super) redo: Vec<Effect>,
    images: Vec<(GuardId, i64, RelPath, PreImage)>,
    dirs: Vec<(TreeId, DirRow, Vec<Entry>)>,
    trees: Vec<RelPath>,
    /// Files and symlinks of guarded trees by their baselines, and how many of them are there as recorded.
    pub(super) entries: usize,
    pub(super) same: usize,
}

impl Rebound {
    pub(super) fn images_of(&self, guard: GuardId) -> impl Iterator<Item = (&RelPath, &PreImage)> {
        self.images.iter().filter(move |(of, ..)| *of == guard).map(|(_, _, path, image)| (path, image))
    }

    /// The paths that are unfinished: there the tree may have anything.
    pub(super) fn paths(&self) -> Vec<&RelPath> {
        let directory = |image: &PreImage| matches!(image.was, Was::Directory { .. });
        let images = self.images.iter().filter(|(.., image)| !directory(image)).map(|(_, _, path, _)| path);
        self.redo.iter().map(|row| &row.path).chain(images).chain(&self.trees).collect()
    }

    pub(super) fn write(&self, tx: &Tx<'_>) -> Result<()> {
        for row in &self.redo {
            journal::update_redo(tx, row.txn, row.n, &row.redo)?;
        }
        for (guard, n, _, image) in &self.images {
            journal::update_image(tx, *guard, *n, &codec::encode(image)?)?;
        }
        self.dirs.iter().try_for_each(|(tree, row, entries)| journal::put_dir(tx, *tree, row, entries))
    }
}

/// Finds out what the records of everything unfinished are to say.
pub(super) fn rebind(
    ground: &Ground,
    turn: &Turn<'_>,
    unsettled: &[Unsettled],
    guards: &[GuardRow],
) -> Result<Rebound> {
    let mut rebound = Rebound::default();
    for txn in unsettled {
        for row in turn.look(|tx| journal::redo_rows(tx, txn.id))? {
            // What cannot be read is set aside by recovery.
            let (Ok(path), Ok(mut redo)) = (row.path, row.redo) else { continue };
            effect(ground, &path, &mut redo, row.content)?;
            rebound.redo.push(Effect { txn: txn.id, n: row.n, path, redo, inline: row.content });
        }
    }
    for guard in guards {
        for row in turn.look(|tx| journal::raw_images(tx, guard.id))? {
            let (Ok(path), Ok(mut was)) =
                (RelPath::from_stored_or_root(&row.path), codec::decode::<PreImage>(&row.record))
            else {
                continue;
            };
            image(ground, &path, &mut was)?;
            rebound.images.push((guard.id, row.n, path, was));
        }
        let trees = turn.look(|tx| journal::guarded_trees(tx, guard.id));
        for guarded in trees.unwrap_or_default().into_iter().flatten() {
            let Ok(area) = ground.area(guarded.tree.area) else { continue };
            let mirror = mirror(&area, &guarded.tree)?;
            rebound.trees.extend(guarded.tree.path.clone());
            // A baseline of which a row cannot be read is not relied upon by recovery either.
            let Ok(rows) = turn.look(|tx| journal::tree_dirs(tx, guarded.tree.id)) else { continue };
            for mut row in rows {
                let Ok(mut entries) = turn.look(|tx| journal::entries(tx, row.id)) else { continue };
                let dir = row.path.as_ref().map(|path| ground.root.open_dir(path));
                let dir = match &dir {
                    None => Some(&**ground.root.top()),
                    Some(dir) => dir.as_ref().ok(),
                };
                if let Some(dir) = dir {
                    (row.stamp.ino, row.btime) = (dir.meta.ino, dir.meta.btime);
                }
                row.racy = true;
                for entry in &mut entries {
                    let name = OsStr::from_bytes(&entry.name);
                    let live = dir.and_then(|dir| root::look(&dir.fd, name).ok().flatten());
                    let kept = root::look_outside(&mirror.path(row.id, &entry.name)).ok().flatten();
                    let counts = entry.kind() != Kind::Directory;
                    let same = self::entry(entry, live, kept);
                    rebound.entries += usize::from(counts);
                    rebound.same += usize::from(counts && same);
                }
                rebound.dirs.push((guarded.tree.id, row, entries));
            }
        }
    }
    Ok(rebound)
}

/// True when something has the size and the time of a version.
fn is_like(version: &Identity, meta: &Meta) -> bool {
    match version.directory {
        true => meta.kind == Kind::Directory,
        false => meta.kind != Kind::Directory && (meta.size, meta.mtime) == (version.size, version.mtime),
    }
}

/// What lies at a path; none where nobody can say.
fn look(ground: &Ground, path: &RelPath) -> Option<Meta> {
    match path.is_root() {
        true => Some(ground.root.top().meta),
        false => ground.root.look(path).ok().flatten(),
    }
}

fn effect(ground: &Ground, path: &RelPath, redo: &mut Redo, inline: bool) -> Result<()> {
    let Ok(area) = ground.area(redo.area) else { return Ok(()) };
    if check_name(&redo.staged).is_err() {
        return Ok(());
    }
    let live = look(ground, path);
    let staged = area.look_staged(&redo.staged)?;
    let again = area.look_staged(&format!("{}{AGAIN}", redo.staged))?;
    match &mut redo.what {
        What::Content { ino, size, attrs, hash } => {
            let like = |meta: &Meta| meta.kind == Kind::File && (meta.size, meta.mtime) == (*size, attrs.mtime);
            let found = staged.filter(like).or(again.filter(like));
            let there = || -> Result<Option<Meta>> {
                // Large content in the tree is told by its inode, so it has to be it.
                let found = ground.opener.examine(vec![(path.clone(), *size)])?.pop();
                Ok(found
                    .and_then(Result::ok)
                    .flatten()
                    .filter(|found| found.hash == Some(*hash))
                    .map(|found| found.meta))
            };
            let found = if found.is_none() && !inline { there()? } else { found };
            *ino = found.map_or(*ino, |meta| meta.ino);
        }
        What::Symlink { ino, .. } => {
            let symlink = |meta: &Meta| meta.kind == Kind::Symlink;
            *ino = staged.filter(symlink).or(live.filter(symlink)).map_or(*ino, |meta| meta.ino);
        }
        What::Move { from, ino, btime, directory } => {
            let kind = |meta: &Meta| (meta.kind == Kind::Directory) == *directory;
            let at_source = from.as_ref().and_then(|from| look(ground, from));
            let old = redo.old.as_ref();
            let moved = live.filter(|live| old.is_none_or(|old| !is_like(old, live)));
            // It is in one of three places. Where two hold something, one is somebody's, and a person has to say which.
            let mut there = [staged, at_source, moved].into_iter().flatten().filter(kind);
            if let (Some(meta), None) = (there.next(), there.next()) {
                (*ino, *btime) = (meta.ino, meta.btime);
            }
        }
        What::Directory { .. } | What::Absence => {}
    }
    if let Some(old) = &mut redo.old {
        let own = match redo.what {
            What::Content { ino, .. } | What::Symlink { ino, .. } | What::Move { ino, .. } => Some(ino),
            What::Directory { .. } | What::Absence => None,
        };
        let candidates = [live, staged, again].into_iter().flatten();
        if let Some(meta) = candidates.filter(|meta| Some(meta.ino) != own).find(|meta| is_like(old, meta)) {
            *old = Identity::from(&meta);
        }
    }
    Ok(())
}

fn image(ground: &Ground, path: &RelPath, image: &mut PreImage) -> Result<()> {
    let live = look(ground, path);
    let staged = match ground.area(image.area) {
        Ok(area) if check_name(&image.name).is_ok() => area.look_staged(&image.name)?,
        _ => None,
    };
    let mut born = None;
    match &mut image.was {
        Was::File { seen, kept, way: Way::Link, .. } => {
            // One file under two names, unless the copy tore them apart; then each is a version of its own.
            let file = |meta: &Meta| meta.kind == Kind::File;
            if let Some(meta) = staged.filter(file) {
                kept.ino = meta.ino;
                if is_like(kept, &meta) {
                    kept.ctime = meta.ctime;
                }
            }
            match live.filter(file) {
                Some(live) if is_like(seen, &live) => (*seen, born) = (Identity::from(&live), Some(live.btime)),
                _ => seen.ino = kept.ino,
            }
        }
        Was::File { seen, kept, .. } | Was::Database { seen, kept, .. } => {
            let was_there = |meta: &Meta| meta.kind == Kind::File && is_like(seen, meta);
            if let Some(meta) = staged.filter(|meta| is_like(kept, meta)).or(live.filter(|meta| is_like(kept, meta))) {
                *kept = Identity::from(&meta);
            }
            if let Some(live) = live.filter(was_there) {
                (*seen, born) = (Identity::from(&live), Some(live.btime));
            }
        }
        Was::Directory { ino, .. } => {
            if let Some(live) = live.filter(|live| live.kind == Kind::Directory) {
                (*ino, born) = (live.ino, Some(live.btime));
            }
        }
        Was::Symlink { ino, attrs, .. } => {
            if let Some(live) = live.filter(|live| live.kind == Kind::Symlink && live.mtime == attrs.mtime) {
                (*ino, born) = (live.ino, Some(live.btime));
            }
        }
        Was::Appended(end) => {
            if let Some(live) = live.filter(|live| live.kind == Kind::File && live.size >= end.size) {
                end.ino = live.ino;
            }
        }
        Was::Absent | Was::Lost => {}
    }
    image.born = born.unwrap_or(image.born);
    Ok(())
}

/// Brings one entry of a baseline to what is there now. True when that is what it says.
fn entry(entry: &mut Entry, live: Option<Meta>, kept: Option<Meta>) -> bool {
    let live = live.filter(|live| live.kind == entry.kind());
    let same = live.is_some_and(|live| match entry.kind() {
        Kind::Directory | Kind::Other => true,
        _ => (live.size, live.mtime, live.mode) == (entry.size, entry.attrs.mtime, entry.attrs.mode),
    });
    match (same, live, kept) {
        (true, Some(live), kept) => {
            (entry.ino, entry.ctime, entry.btime) = (live.ino, live.ctime, live.btime);
            if entry.is_pinned() && kept.is_some_and(|kept| kept.ino != live.ino) {
                // The copy tore the two names of one file apart.
                entry.what = EntryKind::File(Way::Copy);
            }
        }
        // What was touched comes out of the mirror. IMPORTANT: no two files may seem to be one for their size and times, and no
        // file of the tree has the number of a file in the mirror.
        (_, _, Some(kept)) => entry.ino = kept.ino,
        _ => {}
    }
    same
}
