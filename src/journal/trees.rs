//! The SQL of guarded trees: what their baselines know.

use super::guard::GuardId;
use super::rows::MAX_EFFECTS;
use crate::codec;
use crate::error::{Error, Result};
use crate::fs::attrs::Attrs;
use crate::path::RelPath;
use crate::store::Tx;
use crate::tree::{DirId, DirRow, Entry, Stamp};

/// The number of a guarded tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TreeId(pub(crate) i64);

/// A guarded tree.
#[derive(Clone, Debug)]
pub(crate) struct TreeRow {
    pub(crate) id: TreeId,
    /// None is the root.
    pub(crate) path: Option<RelPath>,
    pub(crate) replacing: bool,
    pub(crate) area: i64,
    /// Rows and mirror agree.
    pub(crate) is_true: bool,
}

/// A tree that a transaction guards.
#[derive(Clone, Debug)]
pub(crate) struct GuardedTree {
    pub(crate) tree: TreeRow,
    /// Since when, by the clock of its filesystem: what has not changed since then is not the transaction's doing.
    pub(crate) began: (i64, u32),
}

/// The largest number of directories in one tree.
const MAX_DIRS: i64 = 1 << 24;
/// This many entries of a directory stand in one row.
const PART: usize = 2048;

/// The tree at a path, recorded as changing when it is new.
pub(crate) fn tree(tx: &Tx<'_>, path: Option<&RelPath>, replacing: bool, area: i64) -> Result<TreeRow> {
    let bytes = path.map_or(&b""[..], RelPath::as_bytes);
    let writers = if replacing { "replacing" } else { "any" };
    tx.execute(
        "INSERT OR IGNORE INTO main.journal_tree (path, writers, area, state) VALUES (?1, ?2, ?3, 'changing')",
        (bytes, writers, area),
    )?;
    tx.query_row(
        "SELECT id, area, state = 'true' FROM main.journal_tree WHERE path = ?1 AND writers = ?2",
        (bytes, writers),
        |row| {
            Ok(TreeRow {
                id: TreeId(row.get(0)?),
                path: path.cloned(),
                replacing,
                area: row.get(1)?,
                is_true: row.get(2)?,
            })
        },
    )
}

/// True when rows and mirror of a tree agree.
pub(crate) fn is_true(tx: &Tx<'_>, tree: TreeId) -> Result<bool> {
    tx.query_row("SELECT state = 'true' FROM main.journal_tree WHERE id = ?1", [tree.0], |row| row.get(0))
}

/// Says whether rows and mirror agree.
pub(crate) fn set_tree(tx: &Tx<'_>, tree: TreeId, is_true: bool, area: i64) -> Result<()> {
    let state = if is_true { "true" } else { "changing" };
    tx.execute("UPDATE main.journal_tree SET state = ?2, area = ?3 WHERE id = ?1", (tree.0, state, area)).map(drop)
}

/// Notes that a transaction guards a tree; ready, once it is known since when.
pub(crate) fn guard_tree(tx: &Tx<'_>, guard: GuardId, tree: TreeId, began: Option<(i64, u32)>) -> Result<()> {
    let (seconds, nanoseconds) = began.unwrap_or_default();
    tx.execute(
        "INSERT INTO main.journal_guard_tree (guard, tree, ready, began_s, began_ns) VALUES (?1, ?2, ?3, ?4, ?5) \
         ON CONFLICT (guard, tree) DO UPDATE SET ready = excluded.ready, began_s = excluded.began_s, \
           began_ns = excluded.began_ns",
        (guard.0, tree.0, began.is_some(), seconds, nanoseconds),
    )
    .map(drop)
}

/// Notes that a transaction has a tree to itself, with a layer over it: there is never anything to put back.
pub(crate) fn claim_tree(tx: &Tx<'_>, guard: GuardId, path: Option<&RelPath>, area: i64) -> Result<()> {
    let bytes = path.map_or(&b""[..], RelPath::as_bytes);
    tx.execute(
        "INSERT OR IGNORE INTO main.journal_tree (path, writers, area, state) VALUES (?1, 'layer', ?2, 'changing')",
        (bytes, area),
    )?;
    let tree =
        tx.query_row("SELECT id FROM main.journal_tree WHERE path = ?1 AND writers = 'layer'", [bytes], |row| {
            Ok(TreeId(row.get(0)?))
        })?;
    guard_tree(tx, guard, tree, None)
}

/// Takes back what is not ready.
pub(crate) fn unguard_trees(tx: &Tx<'_>, guard: GuardId) -> Result<()> {
    tx.execute("DELETE FROM main.journal_guard_tree WHERE guard = ?1 AND NOT ready", [guard.0]).map(drop)
}

/// The trees a transaction guards that are ready: where one is not, nobody was let in yet.
pub(crate) fn guarded_trees(tx: &Tx<'_>, guard: GuardId) -> Result<Vec<Result<GuardedTree>>> {
    tx.query_map(
        "SELECT t.id, t.path, t.writers = 'replacing', t.area, t.state = 'true', g.began_s, g.began_ns \
         FROM main.journal_guard_tree g JOIN main.journal_tree t ON t.id = g.tree \
         WHERE g.guard = ?1 AND g.ready ORDER BY t.path",
        [guard.0],
        |row| {
            let bytes: Vec<u8> = row.get(1)?;
            let path = if bytes.is_empty() { Ok(None) } else { RelPath::from_stored(&bytes).map(Some) };
            let (id, replacing, area, is_true) = (TreeId(row.get(0)?), row.get(2)?, row.get(3)?, row.get(4)?);
            let began = (row.get(5)?, row.get(6)?);
            Ok(path.map(|path| GuardedTree { tree: TreeRow { id, path, replacing, area, is_true }, began }))
        },
    )
}

/// The directories of a tree, each before those in it.
pub(crate) fn tree_dirs(tx: &Tx<'_>, tree: TreeId) -> Result<Vec<DirRow>> {
    let rows = tx.query_map(
        "SELECT id, path, ino, mtime_s, mtime_ns, ctime_s, ctime_ns, racy, attrs, looks FROM main.journal_tree_dir \
         WHERE tree = ?1 ORDER BY path",
        [tree.0],
        |row| {
            let bytes: Vec<u8> = row.get(1)?;
            let attrs: Vec<u8> = row.get(8)?;
            let path = if bytes.is_empty() { Ok(None) } else { RelPath::from_stored(&bytes).map(Some) };
            let stamp = Stamp {
                ino: row.get::<_, i64>(2)? as u64,
                mtime: (row.get(3)?, row.get(4)?),
                ctime: (row.get(5)?, row.get(6)?),
            };
            let (id, racy, looks) = (DirId(row.get(0)?), row.get(7)?, row.get(9)?);
            let (attrs, btime) = match codec::decode::<(Attrs, (i64, u32))>(&attrs) {
                Ok(decoded) => decoded,
                Err(error) => return Ok(Err(error)),
            };
            Ok(path.map(|path| DirRow { id, path, stamp, racy, looks, attrs, btime }))
        },
    )?;
    rows.into_iter().collect()
}

/// Where the files of a directory are mirrored by links, whichever tree it belongs to: the areas, and the directory's numbers.
pub(crate) fn linking_mirrors(tx: &Tx<'_>, dir: &RelPath) -> Result<Vec<(i64, DirId)>> {
    tx.query_map(
        "SELECT t.area, d.id FROM main.journal_tree t JOIN main.journal_tree_dir d ON d.tree = t.id \
         WHERE t.writers = 'replacing' AND d.path = ?1",
        [dir.as_bytes()],
        |row| Ok((row.get(0)?, DirId(row.get(1)?))),
    )
}

/// The numbers of the directories of a tree that have rows, whatever else those say.
pub(crate) fn tree_dir_ids(tx: &Tx<'_>, tree: TreeId) -> Result<Vec<DirId>> {
    tx.query_map("SELECT id FROM main.journal_tree_dir WHERE tree = ?1", [tree.0], |row| Ok(DirId(row.get(0)?)))
}

/// The numbers that directories of a tree have: baselines of two trees may be made at the same time.
pub(crate) fn dir_ids(tree: TreeId) -> (i64, i64) {
    let first = tree.0.saturating_mul(MAX_DIRS);
    (first, first.saturating_add(MAX_DIRS - 1))
}

/// The number after the largest that a directory of a tree has.
pub(crate) fn next_dir(tx: &Tx<'_>, tree: TreeId) -> Result<i64> {
    let (first, last) = dir_ids(tree);
    tx.query_row(
        "SELECT coalesce(max(id) + 1, ?1) FROM main.journal_tree_dir WHERE id BETWEEN ?1 AND ?2",
        (first, last),
        |row| row.get(0),
    )
}

fn part_ids(dir: DirId) -> (i64, i64) {
    let first = dir.0.saturating_mul(MAX_EFFECTS);
    (first, first.saturating_add(MAX_EFFECTS - 1))
}

/// What is recorded of a directory's entries.
pub(crate) fn entries(tx: &Tx<'_>, dir: DirId) -> Result<Vec<Entry>> {
    let parts = tx.query_map(
        "SELECT record FROM main.journal_tree_part WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        part_ids(dir),
        |row| row.get::<_, Vec<u8>>(0),
    )?;
    let mut entries = Vec::new();
    for part in parts {
        entries.append(&mut codec::decode::<Vec<Entry>>(&part)?);
    }
    Ok(entries)
}

/// Records a directory with its entries, in place of what was recorded of it.
pub(crate) fn put_dir(tx: &Tx<'_>, tree: TreeId, row: &DirRow, entries: &[Entry]) -> Result<()> {
    if row.id.0 > dir_ids(tree).1 {
        return Err(Error::TooLarge { what: "the number of directories of a guarded tree", limit: MAX_DIRS as u64 });
    }
    drop_dir(tx, row.id)?;
    tx.execute(
        "INSERT INTO main.journal_tree_dir (id, tree, path, ino, mtime_s, mtime_ns, ctime_s, ctime_ns, racy, attrs, looks) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        rusqlite::params![
            row.id.0,
            tree.0,
            row.path.as_ref().map_or(&b""[..], RelPath::as_bytes),
            row.stamp.ino as i64,
            row.stamp.mtime.0,
            row.stamp.mtime.1,
            row.stamp.ctime.0,
            row.stamp.ctime.1,
            row.racy,
            codec::encode(&(&row.attrs, row.btime))?,
            row.looks
        ],
    )?;
    let first = part_ids(row.id).0;
    let mut n = 0;
    put_parts(tx, first, &mut n, entries)
}

/// Records entries, in as many parts as the length of a record asks for.
fn put_parts(tx: &Tx<'_>, first: i64, n: &mut i64, entries: &[Entry]) -> Result<()> {
    for part in entries.chunks(PART) {
        match codec::encode(&part) {
            Ok(record) => {
                tx.execute(
                    "INSERT INTO main.journal_tree_part (id, record) VALUES (?1, ?2)",
                    (first.saturating_add(*n), record),
                )?;
                *n += 1;
            }
            // Long names or xattrs.
            Err(_) if part.len() > 1 => {
                let (one, other) = part.split_at(part.len() / 2);
                put_parts(tx, first, n, one)?;
                put_parts(tx, first, n, other)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Has a directory listed the next time, whatever its times say.
pub(crate) fn distrust_dir(tx: &Tx<'_>, dir: DirId) -> Result<()> {
    tx.execute("UPDATE main.journal_tree_dir SET racy = 1 WHERE id = ?1", [dir.0]).map(drop)
}

/// Forgets a directory.
pub(crate) fn drop_dir(tx: &Tx<'_>, dir: DirId) -> Result<()> {
    tx.execute("DELETE FROM main.journal_tree_part WHERE id BETWEEN ?1 AND ?2", part_ids(dir))?;
    tx.execute("DELETE FROM main.journal_tree_dir WHERE id = ?1", [dir.0]).map(drop)
}

/// The tops of the trees that a transaction guards, ready or not; none is the root, and what cannot be read counts as that.
pub(crate) fn tree_paths(tx: &Tx<'_>, guard: GuardId) -> Result<Vec<Option<RelPath>>> {
    tx.query_map(
        "SELECT t.path FROM main.journal_guard_tree g JOIN main.journal_tree t ON t.id = g.tree WHERE g.guard = ?1",
        [guard.0],
        |row| Ok(RelPath::from_stored(&row.get::<_, Vec<u8>>(0)?).ok()),
    )
}
