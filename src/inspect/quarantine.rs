//! What is in quarantine: what waits for a person, and what is kept of what is over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Row};
use serde::Serialize;
use walkdir::WalkDir;

use super::guards::are_known;
use super::inspector::Inspector;
use super::model::{AreaUsage, EventInfo, PathInfo};
use super::status::inside;
use super::transactions;
use super::value::{
    bytes, count, file_fields, kept_at_fields, number, number_or_zero, path, path_fields, size, text, text_or_empty,
};
use crate::codec;
use crate::error::Result;
use crate::fs::area::{STATE_AREA, check_name};
use crate::fs::root::{self, Kind, Meta, RootDir};
use crate::id::{QuarantineId, TxnId};
use crate::journal::{Redo, What};
use crate::path::RelPath;
use crate::tree::{PreImage, Was};

/// What a restore does to a path that has what it is to have.
const IN_PLACE: &str = "nothing: it is in place";

/// So many paths of an entry stand in a list.
const PATHS: usize = 20;

/// Something in quarantine.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct QuarantineEntry {
    /// What it is called: `42` for a transaction, `g3` for a guard, `0` for what belongs to nobody.
    pub id: QuarantineId,
    /// `transaction`: committed, and not in the tree. `guard`: a transaction died, and what it guarded could not be put back.
    /// `files`: it is over, and what was kept of it waits to be looked at and discarded; nobody is refused anything.
    pub kind: &'static str,
    /// The label of its transaction.
    pub label: String,
    /// The lock it ran under, which is free.
    pub lock: String,
    /// Since when it is in quarantine; none when it is not known.
    pub since_ms: Option<i64>,
    /// How often recovery was begun for it.
    pub attempts: u64,
    /// Why it is there.
    pub reason: Option<String>,
    /// The paths that others are refused, as are those that overlap them: at most 20.
    pub paths: Vec<PathInfo>,
    /// How many more there are.
    pub more_paths: u64,
    /// How many versions are kept: in the rows, in the stage, and below `quarantine/`.
    pub kept: u64,
    /// Their sizes, added up.
    pub kept_bytes: u64,
}

/// Something in quarantine, in full: what `journalctl-kb quarantine show` shows.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct QuarantineDetail {
    /// Its fields stand beside the others in JSON.
    #[serde(flatten)]
    pub entry: QuarantineEntry,
    /// What a restore would do, path by path.
    pub items: Vec<QuarantinePath>,
    /// What lies below `quarantine/<id>/`.
    pub files: Vec<KeptFile>,
    /// What happened to it, oldest first; of a guard, which events do not name by a number, none.
    pub events: Vec<EventInfo>,
}

/// One path of something in quarantine.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct QuarantinePath {
    /// Relative to the root; a guarded tree is told by its topmost directory. What cannot be read is `?`.
    #[serde(flatten, serialize_with = "path_fields")]
    pub path: PathBuf,
    /// What is there now: `file`, `directory`, `symlink`, `other` or `nothing`; none when it cannot be looked at.
    pub now: Option<&'static str>,
    /// Its size, of a file.
    pub now_bytes: Option<u64>,
    /// What a restore would do.
    pub would: String,
    /// True when what that takes is there.
    pub available: bool,
    /// The size of the version that would be put there.
    pub bytes: Option<u64>,
    /// The file that holds it (`kept_at` and `kept_at_hex` in JSON); none when a row does.
    #[serde(flatten, serialize_with = "kept_at_fields")]
    pub kept_at: Option<PathBuf>,
    /// Why it is not to be had.
    pub why_not: Option<String>,
}

/// A file, or something else, that is kept below `quarantine/`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KeptFile {
    /// Where it lies.
    #[serde(flatten, serialize_with = "file_fields")]
    pub file: PathBuf,
    /// `file`, `symlink` or `other`.
    pub kind: &'static str,
    /// Its size.
    pub bytes: u64,
}

pub(super) fn list(inspector: &Inspector) -> Result<Vec<QuarantineEntry>> {
    let details = Look::at(inspector)?.all(inspector)?;
    Ok(details.into_iter().map(|detail| detail.entry).collect())
}

pub(super) fn show(inspector: &Inspector, id: QuarantineId) -> Result<Option<QuarantineDetail>> {
    Ok(Look::at(inspector)?.all(inspector)?.into_iter().find(|detail| detail.entry.id == id))
}

/// What is looked at besides the rows.
struct Look {
    root: RootDir,
    areas: BTreeMap<i64, PathBuf>,
}

impl Look {
    fn at(inspector: &Inspector) -> Result<Self> {
        let stored = inspector.database.snapshot(|connection| {
            let mut statement = connection.prepare("SELECT id, path FROM main.journal_area ORDER BY id")?;
            let rows = statement
                .query_map((), |row| Ok((number_or_zero(row, "id"), path(row, "path").unwrap_or_default())))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut areas = BTreeMap::from([(STATE_AREA, inspector.state_dir.clone())]);
        areas.extend(stored.into_iter().filter_map(|(id, top)| Some((id, inside(&inspector.root, &top)?))));
        Ok(Self { root: RootDir::open(&inspector.root)?, areas })
    }

    fn all(&self, inspector: &Inspector) -> Result<Vec<QuarantineDetail>> {
        let mut details = inspector.database.snapshot(|connection| {
            let mut details = self.transactions(connection)?;
            details.append(&mut self.guards(connection)?);
            Ok(details)
        })?;
        let known: BTreeSet<QuarantineId> = details.iter().map(|detail| detail.entry.id).collect();
        let over: BTreeSet<QuarantineId> = self.kept_ids().into_iter().filter(|id| !known.contains(id)).collect();
        for id in over {
            details.push(inspector.database.snapshot(|connection| over_by_now(connection, id))?);
        }
        for detail in &mut details {
            self.add_files(detail);
        }
        details.sort_by_key(|detail| detail.entry.id);
        Ok(details)
    }

    /// What has a directory below `quarantine/`.
    fn kept_ids(&self) -> Vec<QuarantineId> {
        let dirs = self.areas.values().filter_map(|area| std::fs::read_dir(area.join("quarantine")).ok());
        dirs.flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    fn add_files(&self, detail: &mut QuarantineDetail) {
        for area in self.areas.values() {
            let dir = area.join("quarantine").join(detail.entry.id.to_string());
            let mut usage = AreaUsage::default();
            usage.add(&dir);
            detail.entry.kept_bytes = detail.entry.kept_bytes.saturating_add(usage.bytes);
            let below =
                WalkDir::new(&dir).min_depth(1).follow_links(false).follow_root_links(false).sort_by_file_name();
            for entry in
                below.into_iter().filter_map(std::result::Result::ok).filter(|entry| !entry.file_type().is_dir())
            {
                let kind = match entry.file_type() {
                    kind if kind.is_file() => "file",
                    kind if kind.is_symlink() => "symlink",
                    _ => "other",
                };
                let bytes = entry.metadata().map_or(0, |meta| meta.len());
                detail.files.push(KeptFile { file: entry.into_path(), kind, bytes });
                detail.entry.kept += 1;
            }
        }
    }

    /// What lies under a name of a stage.
    fn staged(&self, area: i64, name: &str) -> Option<(PathBuf, Meta)> {
        check_name(name).ok()?;
        let at = self.areas.get(&area)?.join("stage").join(name);
        root::look_outside(&at).ok().flatten().map(|meta| (at, meta))
    }

    fn transactions(&self, connection: &Connection) -> rusqlite::Result<Vec<QuarantineDetail>> {
        let row = |row: &Row<'_>| {
            let id = TxnId::from(number_or_zero(row, "id"));
            let mut detail = QuarantineDetail::new(QuarantineId::Transaction(id), "transaction");
            detail.entry.label = text_or_empty(row, "label");
            detail.entry.lock = text_or_empty(row, "lock");
            detail.entry.attempts = count(row, "attempts");
            Ok((id, detail))
        };
        let mut statement = connection.prepare(
            "SELECT id, label, lock, attempts FROM main.journal_txn WHERE state <> 'settled' \
             AND state NOT IN ('committed', 'pending', 'applied', 'settling') ORDER BY id",
        )?;
        let found: Vec<_> = statement.query_map((), row)?.collect::<rusqlite::Result<_>>()?;
        let mut details = Vec::with_capacity(found.len());
        for (id, mut detail) in found {
            detail.tell_events(connection, id)?;
            let mut rows = connection.prepare(
                "SELECT path, record, length(content) AS held FROM main.journal_redo \
                 WHERE id BETWEEN ?1 * 1048576 AND ?1 * 1048576 + 1048575 ORDER BY id",
            )?;
            let items = rows.query_map([id.get()], |row| Ok(self.effect(row)))?;
            detail.items = items.collect::<rusqlite::Result<_>>()?;
            let mut old = connection
                .prepare("SELECT area, preimage FROM main.journal_change WHERE txn = ?1 AND preimage IS NOT NULL")?;
            let old =
                old.query_map([id.get()], |row| Ok((number_or_zero(row, "area"), text_or_empty(row, "preimage"))))?;
            for (area, name) in old.collect::<rusqlite::Result<Vec<_>>>()? {
                if let Some((at, meta)) = self.staged(area, &name)
                    && detail.items.iter().all(|item| item.kept_at.as_ref() != Some(&at))
                {
                    detail.entry.kept += 1;
                    detail.entry.kept_bytes = detail.entry.kept_bytes.saturating_add(meta.size);
                }
            }
            detail.count();
            details.push(detail);
        }
        Ok(details)
    }

    fn effect(&self, row: &Row<'_>) -> QuarantinePath {
        let mut item = self.look(row);
        let redo = bytes(row, "record").map(codec::decode::<Redo>);
        let Some(Ok(redo)) = redo else {
            item.would = "its record cannot be read".into();
            item.why_not = Some("only keep-live and discard are left for it".into());
            return item;
        };
        let held = size(row, "held");
        let staged = self.staged(redo.area, &redo.staged);
        match &redo.what {
            What::Content { ino, size, .. } => {
                item.would = "put the committed file there".into();
                item.bytes = Some(*size);
                let is_it = |meta: &Meta| meta.ino == *ino && meta.size == *size;
                let whole = staged.filter(|(_, meta)| is_it(meta));
                let placed = self.live(&item).as_ref().is_some_and(is_it);
                if placed {
                    item.would = IN_PLACE.into();
                }
                item.available = held.is_some() || whole.is_some() || placed;
                item.kept_at = whole.filter(|_| held.is_none()).map(|(at, _)| at);
                item.why_not = (!item.available).then(|| "its content is not in the stage any more".into());
            }
            What::Symlink { target, .. } => {
                item.would = format!("put the committed symlink to {:?} there", String::from_utf8_lossy(target));
                item.available = true;
            }
            What::Directory { .. } => {
                item.would = "make the committed directory".into();
                item.available = true;
            }
            What::Absence => {
                item.would = "take it away, as was committed".into();
                item.available = true;
            }
            What::Move { from, ino, .. } => {
                let from_there = from.as_ref().and_then(|from| self.root.look(from).ok().flatten());
                let there = |meta: &Meta| meta.ino == *ino;
                item.would = match from {
                    Some(from) => format!("move it there from {}", from.as_path().display()),
                    None => "put there what was published".into(),
                };
                let staged = staged.filter(|(_, meta)| there(meta));
                let placed = self.live(&item).as_ref().is_some_and(there);
                item.available = staged.is_some() || from_there.as_ref().is_some_and(there) || placed;
                item.kept_at = staged.map(|(at, _)| at);
                item.why_not = (!item.available).then(|| "what was to be moved is not to be found".into());
            }
        }
        item
    }

    fn guards(&self, connection: &Connection) -> rusqlite::Result<Vec<QuarantineDetail>> {
        if !are_known(connection)? {
            return Ok(Vec::new());
        }
        let row = |row: &Row<'_>| {
            let id = number_or_zero(row, "id");
            let mut detail = QuarantineDetail::new(QuarantineId::Guard(id), "guard");
            detail.entry.label = text_or_empty(row, "label");
            detail.entry.lock = text_or_empty(row, "lock");
            detail.entry.attempts = count(row, "attempts");
            detail.entry.reason = text(row, "reason");
            detail.entry.since_ms = number(row, "given_up_ms");
            Ok((id, detail))
        };
        let mut statement = connection.prepare(
            "SELECT id, label, lock, attempts, reason, given_up_ms FROM main.journal_guard \
             WHERE state NOT IN ('active', 'ending') ORDER BY id",
        )?;
        let found: Vec<_> = statement.query_map((), row)?.collect::<rusqlite::Result<_>>()?;
        let mut details = Vec::with_capacity(found.len());
        for (id, mut detail) in found {
            let mut rows = connection.prepare(
                "SELECT path, record FROM main.journal_preimage \
                 WHERE id BETWEEN ?1 * 4294967296 AND ?1 * 4294967296 + 4294967295 ORDER BY id",
            )?;
            let items = rows.query_map([id], |row| Ok(self.image(row)))?;
            detail.items = items.filter_map(std::result::Result::transpose).collect::<rusqlite::Result<_>>()?;
            let mut trees = connection.prepare(
                "SELECT t.path, t.state FROM main.journal_guard_tree AS g \
                 JOIN main.journal_tree AS t ON t.id = g.tree WHERE g.guard = ?1 ORDER BY t.path",
            )?;
            let trees = trees.query_map([id], |row| {
                let mut item = self.look(row);
                item.would = "put back what differs from its baseline".into();
                item.available = text_or_empty(row, "state") == "true";
                item.why_not = (!item.available).then(|| "its baseline was being changed".into());
                Ok(item)
            })?;
            detail.items.extend(trees.collect::<rusqlite::Result<Vec<_>>>()?);
            detail.count();
            details.push(detail);
        }
        Ok(details)
    }

    /// What a guarded path was. None for a directory that only lies on the way to one.
    fn image(&self, row: &Row<'_>) -> Option<QuarantinePath> {
        let mut item = self.look(row);
        let Some(Ok(image)) = bytes(row, "record").map(codec::decode::<PreImage>) else {
            item.would = "its record cannot be read".into();
            item.why_not = Some("what it was is not known: only keep-live and discard are left for it".into());
            return Some(item);
        };
        if !image.named && matches!(image.was, Was::Directory { .. }) {
            return None;
        }
        item.available = true;
        item.would = match &image.was {
            Was::Absent => "take it away: nothing was there".into(),
            Was::Directory { .. } => "make it the directory that it was".into(),
            Was::Symlink { target, .. } => format!("put back the symlink to {:?}", String::from_utf8_lossy(target)),
            Was::Appended(end) => format!("cut off what was appended to its {} bytes", end.size),
            Was::Lost => "nothing: it is not kept".into(),
            Was::File { .. } | Was::Database { .. } => "put back the old version".into(),
        };
        item.bytes = image.size();
        if let Was::File { .. } | Was::Database { .. } = image.was {
            let kept = self.staged(image.area, &image.name).filter(|(_, meta)| image.is_kept(meta));
            let placed = kept.is_none() && self.live(&item).as_ref().is_some_and(|live| image.is_kept(live));
            if placed {
                item.would = IN_PLACE.into();
            }
            item.available = kept.is_some() || placed;
            item.why_not =
                (!item.available).then(|| "its old version is not in the stage, or not what was kept".into());
            item.kept_at = kept.map(|(at, _)| at);
        }
        Some(item)
    }

    /// What lies at the path of an entry now.
    fn live(&self, item: &QuarantinePath) -> Option<Meta> {
        RelPath::parse(&item.path).ok().and_then(|path| self.root.look(&path).ok().flatten())
    }

    /// What lies at the path of a row now.
    fn look(&self, row: &Row<'_>) -> QuarantinePath {
        let stored = bytes(row, "path").unwrap_or_default();
        let mut item = QuarantinePath {
            path: "?".into(),
            now: None,
            now_bytes: None,
            would: String::new(),
            available: false,
            bytes: None,
            kept_at: None,
            why_not: None,
        };
        let Ok(path) = RelPath::from_stored_or_root(stored) else { return item };
        let live = if path.is_root() { Ok(Some(self.root.top().meta)) } else { self.root.look(&path) };
        item.path = path.to_path_buf();
        item.now = live.as_ref().ok().map(|live| live.as_ref().map_or("nothing", kind));
        item.now_bytes = live.ok().flatten().filter(|live| live.kind == Kind::File).map(|live| live.size);
        item
    }
}

impl QuarantineDetail {
    fn new(id: QuarantineId, kind: &'static str) -> Self {
        let entry = QuarantineEntry {
            id,
            kind,
            label: String::new(),
            lock: String::new(),
            since_ms: None,
            attempts: 0,
            reason: None,
            paths: Vec::new(),
            more_paths: 0,
            kept: 0,
            kept_bytes: 0,
        };
        Self { entry, items: Vec::new(), files: Vec::new(), events: Vec::new() }
    }

    fn tell_events(&mut self, connection: &Connection, id: TxnId) -> rusqlite::Result<()> {
        let mut events = connection.prepare(
            "SELECT id, at_ms, level, kind, txn, path, details FROM main.journal_event WHERE txn = ?1 ORDER BY id",
        )?;
        self.events = events.query_map([id.get()], transactions::event)?.collect::<rusqlite::Result<_>>()?;
        let why = |event: &&EventInfo| matches!(event.kind.as_str(), "quarantined" | "unreadable");
        let why = self.events.iter().rev().find(why);
        self.entry.since_ms = why.map(|event| event.at_ms);
        self.entry.reason = why.map(|event| event.message.clone());
        Ok(())
    }

    /// Adds up what its paths say.
    fn count(&mut self) {
        let entry = &mut self.entry;
        entry.paths = self.items.iter().take(PATHS).map(|item| PathInfo { path: item.path.clone() }).collect();
        entry.more_paths = self.items.len().saturating_sub(PATHS) as u64;
        // Names of one file share what is kept of it.
        let mut files: HashMap<&Path, u64> = HashMap::new();
        for item in self.items.iter().filter(|item| item.available) {
            match (&item.kept_at, item.bytes) {
                (Some(at), bytes) => drop(files.insert(at, bytes.unwrap_or(0))),
                (None, Some(bytes)) => {
                    entry.kept += 1;
                    entry.kept_bytes = entry.kept_bytes.saturating_add(bytes);
                }
                (None, None) => {}
            }
        }
        entry.kept += files.len() as u64;
        entry.kept_bytes = files.values().fold(entry.kept_bytes, |sum, bytes| sum.saturating_add(*bytes));
    }
}

/// What is over, and has left something.
fn over_by_now(connection: &Connection, id: QuarantineId) -> rusqlite::Result<QuarantineDetail> {
    let mut detail = QuarantineDetail::new(id, "files");
    let QuarantineId::Transaction(txn) = id else { return Ok(detail) };
    let mut statement = connection.prepare("SELECT label, lock, attempts FROM main.journal_txn WHERE id = ?1")?;
    let found =
        statement.query_map([txn.get()], |row| Ok((text_or_empty(row, "label"), text_or_empty(row, "lock"))))?;
    for row in found {
        (detail.entry.label, detail.entry.lock) = row?;
        detail.tell_events(connection, txn)?;
    }
    Ok(detail)
}

fn kind(meta: &Meta) -> &'static str {
    match meta.kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Other => "other",
    }
}
