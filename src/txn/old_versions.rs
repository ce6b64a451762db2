//! Gets the old versions of what was touched in a guarded tree out of its mirror, so that they can be put back.

use std::os::fd::AsFd;
use std::path::PathBuf;

use super::comparing::Missing;
use super::ground::Ground;
use crate::error::{Error, IoContext, Result};
use crate::fs::attrs::{self, Attrs};
use crate::fs::clone::{FileToKeep, KeptFile, Way};
use crate::fs::identity::Identity;
use crate::fs::opener::{SIDECARS, base_of};
use crate::fs::root::{self, Kind};
use crate::path::RelPath;
use crate::tree::{DirDiff, Entry, EntryKind, Files, Mirror, PreImage, Was, is_shared_memory};

/// What the paths of a difference were, each old version out of the mirror under a name of its own in a stage.
pub(super) fn images(
    ground: &Ground,
    mirror: &Mirror,
    diff: DirDiff,
    began: (i64, u32),
    looked_at: Files<'_>,
    found: &mut Vec<(RelPath, PreImage)>,
    missing: &mut Missing<'_>,
) -> Result<()> {
    let sets = sets(&diff);
    let of_set =
        |name: &[u8]| sets.iter().any(|set| set.name == name || base_of(name).is_some_and(|base| base == set.name));
    for set in &sets {
        let path = RelPath::join(diff.row.path.as_ref(), &set.name);
        match self::set(ground, mirror, &diff, set, found) {
            Err(error) if missing.tells(&path, &error) => {}
            other => other?,
        }
    }
    let DirDiff { row, mut gone, mut changed, mut new, .. } = diff;
    gone.retain(|entry| !of_set(&entry.name));
    changed.retain(|(entry, _)| !of_set(&entry.name));
    new.retain(|(name, _)| !of_set(name));
    let area = ground.area_near(row.path.as_ref())?;
    let mut image = |name: Option<&[u8]>, born: (i64, u32), staged: String, was: Was| {
        let path = match name {
            Some(name) => RelPath::join(row.path.as_ref(), name),
            None => row.path.clone().unwrap_or_else(RelPath::root),
        };
        found.push((path, PreImage { area: area.id, name: staged, named: true, born, was }));
    };
    let was = Was::Directory { ino: row.stamp.ino, attrs: row.attrs.clone() };
    image(None, row.btime, ground.fresh_name(), was);
    let taken = |name: &[u8]| gone.iter().any(|entry| entry.name == name);
    for (name, _) in new.iter().filter(|(name, _)| !taken(name)) {
        image(Some(name), (0, 0), ground.fresh_name(), Was::Absent);
    }
    let mut files = Vec::new();
    let (gone, changed) = (gone.into_iter().map(|entry| (entry, None)), changed.into_iter());
    for (entry, now) in gone.chain(changed.map(|(entry, meta)| (entry, Some(meta)))) {
        match &entry.what {
            // What was in it has a row of its own.
            EntryKind::Directory => {}
            EntryKind::Other => {
                image(Some(&entry.name), entry.btime, ground.fresh_name(), Was::Lost);
            }
            EntryKind::Symlink(target) => {
                let was = Was::Symlink { ino: entry.ino, target: target.clone(), attrs: entry.attrs.clone() };
                image(Some(&entry.name), entry.btime, ground.fresh_name(), was);
            }
            EntryKind::File(Way::Link) if now.is_some() => {
                // The very file that the mirror holds a link to: there is nothing to be got out of it.
                let seen = entry.identity();
                let was = Was::File { seen: seen.clone(), kept: seen, attrs: entry.attrs.clone(), way: Way::Link };
                image(Some(&entry.name), entry.btime, ground.fresh_name(), was);
            }
            // Beside a database that was none when it was kept: a file like any other.
            EntryKind::Database | EntryKind::Sidecar => files.push((entry.clone(), Way::Copy, ground.fresh_name())),
            EntryKind::File(way) => files.push((entry.clone(), *way, ground.fresh_name())),
        }
    }
    if files.is_empty() {
        return Ok(());
    }
    // Known to have got other attributes meanwhile; else those that a link shows are its own.
    let dressed = |entry: &Entry| matches!(looked_at, Files::Some(_)) && looked_at.has(row.id, &entry.name);
    let jobs: Vec<TakeOut> = files
        .iter()
        .map(|(entry, _, name)| TakeOut {
            from: mirror.path(row.id, &entry.name),
            to: area.stage_path(name),
            as_recorded: !entry.is_pinned() || dressed(entry),
            entry: entry.clone(),
        })
        .collect();
    let kept = ground.opener.run(move |_| jobs.iter().map(|job| take_out(job, began)).collect::<Vec<_>>())?;
    for ((entry, _, name), kept) in files.into_iter().zip(kept) {
        if let Err(error) = &kept
            && missing.tells(&RelPath::join(row.path.as_ref(), &entry.name), error)
        {
            continue;
        }
        let Some((KeptFile { kept, way, .. }, attrs)) = kept? else {
            image(Some(&entry.name), entry.btime, name, Was::Lost);
            continue;
        };
        let was = Was::File { seen: entry.identity(), kept: Identity::from(&kept), attrs, way };
        image(Some(&entry.name), entry.btime, name, was);
    }
    Ok(())
}

/// The recorded databases of which, or of whose logs, something is different.
fn sets(diff: &DirDiff) -> Vec<Entry> {
    let recorded = || diff.same.iter().chain(&diff.gone).chain(diff.changed.iter().map(|(entry, _)| entry));
    let names = diff.gone.iter().map(|entry| &entry.name).chain(diff.changed.iter().map(|(entry, _)| &entry.name));
    let names: Vec<&Vec<u8>> = names.chain(diff.new.iter().map(|(name, _)| name)).collect();
    let touched = |base: &[u8]| {
        names
            .iter()
            .any(|name| *name == base || (base_of(name).is_some_and(|of| of == base) && !is_shared_memory(name)))
    };
    recorded().filter(|entry| entry.what == EntryKind::Database && touched(&entry.name)).cloned().collect()
}

/// What a database and the paths beside it were.
fn set(
    ground: &Ground,
    mirror: &Mirror,
    diff: &DirDiff,
    database: &Entry,
    found: &mut Vec<(RelPath, PreImage)>,
) -> Result<()> {
    let recorded = || diff.same.iter().chain(&diff.gone).chain(diff.changed.iter().map(|(entry, _)| entry));
    let (area, name) = (ground.area_near(diff.row.path.as_ref())?, ground.fresh_name());
    let image = |suffix: &str, was: Was| {
        let path = RelPath::join(diff.row.path.as_ref(), &[&database.name, suffix.as_bytes()].concat());
        (path, PreImage { area: area.id, name: format!("{name}{suffix}"), named: true, born: (0, 0), was })
    };
    let (mut sidecars, mut absent) = (Vec::new(), Vec::new());
    for suffix in SIDECARS {
        let beside = [&database.name, suffix.as_bytes()].concat();
        match recorded().find(|entry| entry.name == beside && entry.what == EntryKind::Sidecar) {
            Some(entry) => sidecars.push((suffix, entry.clone())),
            None => absent.push(suffix),
        }
    }
    let parts: Vec<_> = std::iter::once(("", database.clone())).chain(sidecars).collect();
    let jobs: Vec<TakeOut> = parts
        .iter()
        .map(|(suffix, entry)| TakeOut {
            from: mirror.path(diff.row.id, &entry.name),
            to: area.stage_path(&format!("{name}{suffix}")),
            entry: entry.clone(),
            as_recorded: true,
        })
        .collect();
    let kept = ground.opener.run(move |_| jobs.iter().map(|job| take_out(job, (0, 0))).collect::<Vec<_>>())?;
    let kept = kept.into_iter().collect::<Result<Vec<_>>>()?;
    let lost = kept.iter().any(Option::is_none);
    found.extend(absent.into_iter().map(|suffix| image(suffix, if lost { Was::Lost } else { Was::Absent })));
    for ((suffix, entry), kept) in parts.into_iter().zip(kept) {
        // One without the others is no old version.
        let Some((KeptFile { kept, .. }, attrs)) = kept.filter(|_| !lost) else {
            found.push(image(suffix, Was::Lost));
            continue;
        };
        let (seen, kept) = (entry.identity(), Identity::from(&kept));
        found.push(image(
            suffix,
            match suffix {
                "" => Was::Database { seen, kept, attrs },
                _ => Was::File { seen, kept, attrs, way: Way::Copy },
            },
        ));
    }
    Ok(())
}

/// An old version to be got out of the mirror.
struct TakeOut {
    from: PathBuf,
    to: PathBuf,
    entry: Entry,
    /// With the attributes that were recorded, not with those that it has.
    as_recorded: bool,
}

/// Gets an old version out of the mirror: another link to it, or a copy. None when somebody wrote to it in place, where
/// nobody should. On the opener's thread.
fn take_out(job: &TakeOut, began: (i64, u32)) -> Result<Option<(KeptFile, Attrs)>> {
    let TakeOut { from, to, entry, as_recorded } = job;
    let damaged = |detail: &str| Error::corrupt(format!("the baseline at {}", from.display()), detail);
    let dir = root::open_outside(from.parent().unwrap_or(from)).at("open", from)?;
    let name = from.file_name().unwrap_or_default();
    let Some(meta) = root::look(&dir, name).at("look at", from)? else { return Err(damaged("it is not there")) };
    if meta.kind != Kind::File || (entry.is_pinned() && meta.ino != entry.ino) {
        return Err(damaged("it is another file than was recorded"));
    }
    let other_bytes = (meta.size, meta.mtime) != (entry.size, entry.attrs.mtime);
    // A link shows what was written to the file in place: before the guard began that was somebody's edit by hand.
    if other_bytes && !entry.is_pinned() {
        return Err(damaged("it is not what was recorded"));
    }
    let attrs = if *as_recorded && !other_bytes {
        entry.attrs.clone()
    } else {
        let xattrs = attrs::xattrs(&dir, name, from)?;
        Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs }
    };
    let way = if entry.is_pinned() { Way::Link } else { Way::Reflink };
    let file = FileToKeep {
        dir: dir.as_fd(),
        name,
        full: from,
        attrs: &attrs,
        to_dir: rustix::fs::CWD,
        to,
        way,
        databases: true,
    };
    let kept = file.keep(&meta)?.ok_or_else(|| damaged("it changed while it was read"))?;
    if other_bytes && meta.mtime >= began {
        // Not the old version; but what is left of it is kept.
        return Ok(None);
    }
    Ok(Some((kept, attrs)))
}
