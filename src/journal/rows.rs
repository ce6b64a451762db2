//! The SQL of transactions, redo records, changes and events.

use std::collections::HashSet;

use rusqlite::Row;
use rusqlite::types::Value;

use super::guard::GuardId;
use super::record::{Change, ChangeKind, EventDetails, Mark, Redo, Span, What};
use super::state::TxnState;
use crate::codec;
use crate::error::{Error, Result};
use crate::id::{Fence, SessionId, TxnId};
use crate::path::RelPath;
use crate::store::Tx;
use crate::time::now_ms;

/// A transaction about to be recorded.
#[derive(Debug)]
pub(crate) struct NewTxn<'t> {
    pub(crate) lock: &'t str,
    pub(crate) fence: Fence,
    pub(crate) session: SessionId,
    pub(crate) label: &'t str,
    pub(crate) key: Option<&'t str>,
    pub(crate) digest: [u8; 32],
    pub(crate) ran_sql: bool,
    pub(crate) structural: bool,
    pub(crate) changes: usize,
    pub(crate) bytes: u64,
    /// How many old versions are kept, and their bytes.
    pub(crate) kept: usize,
    pub(crate) history: u64,
    pub(crate) began_ms: i64,
    /// Where it is true what its apply will have done; none with nothing to carry into the tree: then it is settled.
    pub(crate) mark: Option<Mark>,
}

/// The number of the next transaction: larger than any that a row names, whatever became of that row's transaction. From a
/// number that leaves no room, which nobody gave, it does not go on.
macro_rules! next_txn {
    () => {
        "1 + max((SELECT coalesce(max(id), 0) FROM main.journal_txn WHERE id < 1 << 42), \
           (SELECT coalesce(max(id), 0) / (1 << 20) FROM main.journal_redo WHERE id < 1 << 62), \
           (SELECT coalesce(max(txn), 0) FROM main.journal_change WHERE txn < 1 << 42), 0)"
    };
}
pub(super) use next_txn;

/// Records a transaction; its number is the commit order.
pub(crate) fn insert_txn(tx: &Tx<'_>, new: &NewTxn<'_>) -> Result<TxnId> {
    let now = now_ms();
    let (state, settled) = match new.mark {
        Some(_) => (TxnState::Committed, None),
        None => (TxnState::Settled, Some(now)),
    };
    tx.execute(
        concat!(
            "INSERT INTO main.journal_txn (id, state, lock, fence, session, label, key, digest, ran_sql, structural, \
               changes, bytes, kept, history, began_ms, committed_ms, settled_ms, applied_mark) VALUES (",
            next_txn!(),
            ", ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)"
        ),
        rusqlite::params![
            state.as_str(),
            new.lock,
            new.fence.get(),
            new.session.as_bytes(),
            new.label,
            new.key,
            new.key.map(|_| new.digest),
            new.ran_sql,
            new.structural,
            new.changes,
            new.bytes,
            new.kept,
            new.history,
            new.began_ms,
            now,
            settled,
            new.mark.as_ref().map(codec::encode).transpose()?,
        ],
    )?;
    Ok(TxnId(tx.last_insert_rowid()))
}

/// The number of the newest transaction; 0 when there is none.
pub(crate) fn newest(tx: &Tx<'_>) -> Result<i64> {
    tx.query_row("SELECT coalesce(max(id), 0) FROM main.journal_txn", (), |row| row.get(0))
}

/// Effects of one transaction, at most.
pub(crate) const MAX_EFFECTS: i64 = 1 << 20;

fn redo_id(txn: TxnId, n: i64) -> i64 {
    txn.get().saturating_mul(MAX_EFFECTS).saturating_add(n)
}

/// The ids that the redo rows of a transaction have.
pub(super) fn redo_ids(txn: TxnId) -> (i64, i64) {
    (redo_id(txn, 0), redo_id(txn, MAX_EFFECTS - 1))
}

/// What recovery needs to carry an effect out again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewRedo<'r> {
    pub(crate) n: i64,
    pub(crate) path: &'r RelPath,
    pub(crate) redo: &'r Redo,
    pub(crate) content: Option<&'r [u8]>,
}

/// Records what recovery needs to carry the effects of a transaction out again.
pub(crate) fn insert_redo<'r>(tx: &Tx<'_>, txn: TxnId, effects: impl Iterator<Item = NewRedo<'r>>) -> Result<()> {
    let mut insert = tx.prepare("INSERT INTO main.journal_redo (id, path, record, content) VALUES (?1, ?2, ?3, ?4)")?;
    for NewRedo { n, path, redo, content } in effects {
        insert.execute((redo_id(txn, n), path.as_bytes(), codec::encode(redo)?, content))?;
    }
    Ok(())
}

/// Records what happened to each path, for people and for history.
pub(crate) fn insert_changes(tx: &Tx<'_>, txn: TxnId, changes: &[Change]) -> Result<()> {
    let mut insert = tx.prepare(
        "INSERT INTO main.journal_change (txn, n, path, kind, origin, size, hash, old_size, preimage, area) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    for (n, change) in changes.iter().enumerate() {
        insert.execute(rusqlite::params![
            txn.get(),
            n as i64,
            change.path.as_bytes(),
            change.kind.as_str(),
            change.origin.as_ref().map(RelPath::as_bytes),
            change.size,
            change.hash,
            change.old_size,
            change.preimage,
            change.area,
        ])?;
    }
    Ok(())
}

/// The changes of a transaction. A row that makes no sense is left out.
pub(crate) fn changes(tx: &Tx<'_>, txn: TxnId) -> Result<Vec<Change>> {
    let rows = tx.query_map(
        "SELECT path, kind, origin, size, hash, old_size, preimage, area FROM main.journal_change \
         WHERE txn = ?1 ORDER BY n",
        [txn.get()],
        |row| Ok(read_change(row).ok()),
    )?;
    Ok(rows.into_iter().flatten().collect())
}

fn read_change(row: &Row<'_>) -> Result<Change> {
    let stored = |bytes: Vec<u8>| RelPath::from_stored_or_root(&bytes);
    let kind: String = row.get(1)?;
    Ok(Change {
        path: stored(row.get(0)?)?,
        kind: ChangeKind::parse(&kind).ok_or_else(|| Error::corrupt("a change", &kind))?,
        origin: row.get::<_, Option<Vec<u8>>>(2)?.map(stored).transpose()?,
        size: row.get(3)?,
        hash: row.get(4)?,
        old_size: row.get(5)?,
        preimage: row.get(6)?,
        area: row.get(7)?,
    })
}

/// The transaction that has an idempotency key.
#[derive(Debug)]
pub(crate) struct Keyed {
    pub(crate) id: TxnId,
    pub(crate) fence: Fence,
    pub(crate) digest: Option<Vec<u8>>,
}

pub(crate) fn by_key(tx: &Tx<'_>, key: &str) -> Result<Option<Keyed>> {
    tx.query_opt("SELECT id, fence, digest FROM main.journal_txn WHERE key = ?1", [key], |row| {
        Ok(Keyed { id: TxnId(row.get(0)?), fence: Fence(row.get(1)?), digest: row.get(2)? })
    })
}

/// A transaction whose way is not over.
#[derive(Clone, Debug)]
pub(crate) struct Unsettled {
    pub(crate) id: TxnId,
    pub(crate) state: TxnState,
    pub(crate) structural: bool,
    pub(crate) attempts: i64,
    pub(crate) mark: Option<Mark>,
}

/// Every transaction that is not settled, in commit order.
pub(crate) fn unsettled(tx: &Tx<'_>) -> Result<Vec<Unsettled>> {
    let rows = tx.query_map(
        "SELECT id, state, structural, attempts, applied_mark FROM main.journal_txn \
         WHERE state <> 'settled' ORDER BY id",
        (),
        |row| {
            let state: Value = row.get(1)?;
            let mark = row.get::<_, Value>(4)?;
            Ok(Unsettled {
                id: TxnId(row.get(0)?),
                state: match &state {
                    // The schema's CHECK keeps other words out; if one came in all the same, nothing is replayed.
                    Value::Text(word) => TxnState::parse(word).unwrap_or(TxnState::Quarantined),
                    _ => TxnState::Quarantined,
                },
                structural: row.get::<_, i64>(2)? != 0,
                attempts: row.get(3)?,
                mark: match &mark {
                    Value::Blob(bytes) => codec::decode(bytes).ok(),
                    _ => None,
                },
            })
        },
    )?;
    Ok(rows)
}

/// True when a transaction that moves or removes directories is in the tree and not settled: its process died in
/// between, and nothing may be committed over it.
pub(crate) fn has_unsettled_structure(tx: &Tx<'_>) -> Result<bool> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_txn WHERE structural = 1 AND state IN ('applied', 'settling'))",
        (),
        |row| row.get(0),
    )
}

/// True when a transaction was committed, and it is not known that it was carried into the tree; or when one guards paths,
/// or did when it died. Those of `known` are in the tree, or on their way there.
pub(crate) fn has_unfinished(tx: &Tx<'_>, known: [Option<Span>; 2]) -> Result<bool> {
    let [(first, last), (from, to)] = known.map(Span::ends);
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_txn WHERE state <> 'settled' AND state = 'committed' \
             AND id NOT BETWEEN ?1 AND ?2 AND id NOT BETWEEN ?3 AND ?4) \
           OR EXISTS (SELECT 1 FROM main.journal_guard)",
        (first, last, from, to),
        |row| row.get(0),
    )
}

/// True when a commit has to look closer first: something is not applied, could not be, is in quarantine, or has moved
/// directories and is not settled; or others guard paths. `known` are known to be applied, `own` is the commit's own guard.
pub(crate) fn is_in_the_way(tx: &Tx<'_>, known: Option<Span>, own: Option<GuardId>) -> Result<bool> {
    let (first, last) = Span::ends(known);
    // One lookup a word: a list of words would be sorted into a table of its own each time.
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_txn WHERE state <> 'settled' AND state = 'committed' \
             AND id NOT BETWEEN ?1 AND ?2) \
           OR EXISTS (SELECT 1 FROM main.journal_txn WHERE state <> 'settled' AND state = 'pending') \
           OR EXISTS (SELECT 1 FROM main.journal_txn WHERE state <> 'settled' AND state = 'quarantined') \
           OR EXISTS (SELECT 1 FROM main.journal_txn WHERE structural = 1 AND state IN ('applied', 'settling')) \
           OR EXISTS (SELECT 1 FROM main.journal_guard WHERE id <> ?3)",
        (first, last, own.map_or(0, |own| own.0)),
        |row| row.get(0),
    )
}

/// True when a transaction waits to be carried into the tree, or could not be on some path, or is in quarantine.
pub(crate) fn has_troubles(tx: &Tx<'_>) -> Result<bool> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_txn WHERE state <> 'settled' \
           AND state IN ('committed', 'pending', 'quarantined'))",
        (),
        |row| row.get(0),
    )
}

/// A redo row as it is stored, decoded or not.
#[derive(Debug)]
pub(crate) struct RedoRow {
    pub(crate) txn: TxnId,
    pub(crate) n: i64,
    pub(crate) path: Result<RelPath>,
    pub(crate) redo: Result<Redo>,
    pub(crate) content: bool,
}

/// The redo rows of a transaction, in order, without their content.
pub(crate) fn redo_rows(tx: &Tx<'_>, txn: TxnId) -> Result<Vec<RedoRow>> {
    tx.query_map(
        "SELECT id, path, record, content IS NOT NULL FROM main.journal_redo WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        redo_ids(txn),
        |row| {
            let path: Vec<u8> = row.get(1)?;
            let record: Vec<u8> = row.get(2)?;
            Ok(RedoRow {
                txn,
                n: row.get::<_, i64>(0)? % MAX_EFFECTS,
                path: RelPath::from_stored(&path),
                redo: codec::decode(&record),
                content: row.get(3)?,
            })
        },
    )
}

/// The paths that a transaction's redo rows name, those that something moves away from included, as far as they can
/// be read.
pub(crate) fn redo_paths(tx: &Tx<'_>, txn: TxnId) -> Result<Vec<RelPath>> {
    let paths = redo_rows(tx, txn)?.into_iter().flat_map(|row| {
        let from = row.redo.ok().and_then(|redo| match redo.what {
            What::Move { from, .. } => from,
            _ => None,
        });
        [row.path.ok(), from].into_iter().flatten()
    });
    Ok(paths.collect())
}

/// The new bytes of an effect.
pub(crate) fn redo_content(tx: &Tx<'_>, txn: TxnId, n: i64) -> Result<Option<Vec<u8>>> {
    tx.query_opt("SELECT content FROM main.journal_redo WHERE id = ?1", [redo_id(txn, n)], |row| {
        row.get::<_, Option<Vec<u8>>>(0)
    })
    .map(Option::flatten)
}

/// Replaces a redo record, after its new version was written once more.
pub(crate) fn update_redo(tx: &Tx<'_>, txn: TxnId, n: i64, redo: &Redo) -> Result<()> {
    tx.execute("UPDATE main.journal_redo SET record = ?2 WHERE id = ?1", (redo_id(txn, n), codec::encode(redo)?))
        .map(drop)
}

/// Drops a transaction's redo rows.
pub(crate) fn delete_redo(tx: &Tx<'_>, txn: TxnId) -> Result<()> {
    tx.execute("DELETE FROM main.journal_redo WHERE id BETWEEN ?1 AND ?2", redo_ids(txn)).map(drop)
}

/// Takes a transaction from one state to the next; exactly one row must have been in the first.
pub(crate) fn transition(tx: &Tx<'_>, txn: TxnId, from: TxnState, to: TxnState) -> Result<()> {
    debug_assert!(from.may_become(to), "{from:?} may not become {to:?}");
    let settled = (to == TxnState::Settled).then(now_ms);
    let changed = tx.execute(
        "UPDATE main.journal_txn SET state = ?3, settled_ms = coalesce(?4, settled_ms) WHERE id = ?1 AND state = ?2",
        (txn.get(), from.as_str(), to.as_str(), settled),
    )?;
    if changed == 1 {
        return Ok(());
    }
    Err(Error::corrupt(format!("transaction {txn}"), format_args!("it is not {} as expected", from.as_str())))
}

/// Notes that a transaction is in the tree, and where that is true.
pub(crate) fn note_applied(tx: &Tx<'_>, txn: TxnId, from: TxnState, mark: &Mark) -> Result<()> {
    transition(tx, txn, from, TxnState::Applied)?;
    tx.execute("UPDATE main.journal_txn SET applied_mark = ?2 WHERE id = ?1", (txn.get(), codec::encode(mark)?))
        .map(drop)
}

/// Notes that transactions were carried into the tree where their marks say. Fine when somebody has noted it before.
pub(crate) fn note_carried_out(tx: &Tx<'_>, Span { first, last }: Span) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_txn SET state = 'applied' WHERE id BETWEEN ?1 AND ?2 AND state = 'committed'",
        (first.get(), last.get()),
    )
    .map(drop)
}

/// Counts a recovery that begins, or, with zero, one that made progress.
pub(crate) fn set_attempts(tx: &Tx<'_>, txn: TxnId, attempts: i64) -> Result<()> {
    tx.execute("UPDATE main.journal_txn SET attempts = ?2 WHERE id = ?1", (txn.get(), attempts)).map(drop)
}

/// How much somebody wants to know of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warn,
    Error,
}

/// Writes an event.
pub(crate) fn insert_event(
    tx: &Tx<'_>,
    level: Level,
    kind: &'static str,
    txn: Option<TxnId>,
    path: Option<&RelPath>,
    message: &str,
) -> Result<()> {
    let level = match level {
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    let details = codec::encode(&EventDetails { message: message.to_owned() })?;
    tx.execute(
        "INSERT INTO main.journal_event (at_ms, level, kind, txn, path, details) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (now_ms(), level, kind, txn.map(TxnId::get), path.map(RelPath::as_bytes), details),
    )
    .map(drop)
}

/// The warnings a transaction ended with: those a repeat of its key is to show again.
pub(crate) fn warnings(tx: &Tx<'_>, txn: TxnId) -> Result<Vec<String>> {
    let rows = tx.query_map(
        "SELECT details FROM main.journal_event WHERE txn = ?1 AND level <> 'info' ORDER BY id",
        [txn.get()],
        |row| row.get::<_, Vec<u8>>(0),
    )?;
    Ok(rows
        .iter()
        .filter_map(|details| codec::decode::<EventDetails>(details).ok())
        .map(|details| details.message)
        .collect())
}

/// The mounts inside the root that have an area of their own: number and path of their top.
pub(crate) fn areas(tx: &Tx<'_>) -> Result<Vec<(i64, Vec<u8>)>> {
    tx.query_map("SELECT id, path FROM main.journal_area ORDER BY id", (), |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Records an area, before anything is made there.
pub(crate) fn insert_area(tx: &Tx<'_>, top: &[u8]) -> Result<i64> {
    tx.execute("INSERT OR IGNORE INTO main.journal_area (path) VALUES (?1)", [top])?;
    tx.query_row("SELECT id FROM main.journal_area WHERE path = ?1", [top], |row| row.get(0))
}

/// What rows refer to in the stages.
#[derive(Debug)]
pub(crate) struct StagedNames {
    /// Names, without what the engine puts behind them.
    pub(crate) names: HashSet<String>,
    /// Sessions with a record that cannot be read: it may refer to any of their names.
    pub(crate) in_doubt: HashSet<SessionId>,
}

/// What rows refer to in the stages.
pub(crate) fn staged_names(tx: &Tx<'_>) -> Result<StagedNames> {
    let base = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let mut names: HashSet<String> = tx
        .query_map(
            "SELECT c.preimage FROM main.journal_change c JOIN main.journal_txn t ON t.id = c.txn \
             WHERE t.state <> 'settled' AND c.preimage IS NOT NULL",
            (),
            |row| Ok(row.get_ref(0)?.as_str().map(base).unwrap_or_default()),
        )?
        .into_iter()
        .collect();
    let mut in_doubt = HashSet::new();
    let records = tx.query_map(
        "SELECT r.record, t.session FROM main.journal_redo r LEFT JOIN main.journal_txn t ON t.id = r.id / 1048576",
        (),
        |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get_ref(1)?.as_blob().ok().and_then(SessionId::from_slice))),
    )?;
    for (record, session) in records {
        match codec::decode::<Redo>(&record) {
            Ok(redo) => drop(names.insert(base(&redo.staged))),
            Err(_) => in_doubt.extend(session),
        }
    }
    super::guard::add_staged_names(tx, &mut names, &mut in_doubt)?;
    Ok(StagedNames { names, in_doubt })
}

/// The names of old versions that belong into history: those of transactions that need them no more to be carried out.
pub(crate) fn history_names(tx: &Tx<'_>) -> Result<HashSet<(i64, String)>> {
    let names = tx.query_map(
        "SELECT c.area, c.preimage FROM main.journal_change c JOIN main.journal_txn t ON t.id = c.txn \
         WHERE t.state = 'settled' AND c.preimage IS NOT NULL",
        (),
        |row| Ok(row.get_ref(1)?.as_str().ok().map(str::to_owned).zip(Some(row.get(0)?))),
    )?;
    Ok(names.into_iter().flatten().map(|(name, area)| (area, name)).collect())
}

/// Committed transactions that still have old versions, newest first: number, bytes, when.
pub(crate) fn with_history(tx: &Tx<'_>) -> Result<Vec<(TxnId, u64, i64)>> {
    tx.query_map(
        "SELECT id, max(history, 0), committed_ms FROM main.journal_txn WHERE kept > 0 AND state = 'settled' ORDER BY id DESC",
        (),
        |row| Ok((TxnId(row.get(0)?), row.get(1)?, row.get(2)?)),
    )
}

/// The names of a transaction's old versions: area and name.
pub(crate) fn preimages(tx: &Tx<'_>, txn: TxnId) -> Result<Vec<(i64, String)>> {
    tx.query_map(
        "SELECT area, preimage FROM main.journal_change WHERE txn = ?1 AND preimage IS NOT NULL",
        [txn.get()],
        |row| {
            let name = String::from_utf8_lossy(row.get_ref(1)?.as_bytes().unwrap_or_default()).into_owned();
            Ok((row.get(0)?, name))
        },
    )
}

/// Forgets a transaction's old versions, once their files are gone.
pub(crate) fn forget_history(tx: &Tx<'_>, txn: TxnId) -> Result<()> {
    tx.execute("UPDATE main.journal_change SET preimage = NULL WHERE txn = ?1", [txn.get()])?;
    tx.execute("UPDATE main.journal_txn SET kept = 0, history = 0 WHERE id = ?1", [txn.get()]).map(drop)
}
