//! Guards: the transactions that guard paths and have not ended, and whether anybody is still at work under them.

use rusqlite::{Connection, Row};

use super::inspector::Inspector;
use super::liveness::KernelLocks;
use super::model::{GuardInfo, TreeInfo};
use super::value::{bytes, count, hex, number_or_zero, path, text, text_or_empty};
use crate::error::Result;
use crate::fs::clone::Way;
use crate::lock::file_name;
use crate::time::Process;
use crate::tree::{PreImage, Was};

/// So many are looked at.
const MOST: i64 = 50;
const GUARDS: &str = "SELECT g.id, g.state, g.lock, g.session, g.label, g.attempts, g.began_ms, g.worker, g.reason,
    s.pid, s.program
    FROM main.journal_guard AS g LEFT JOIN main.journal_session AS s ON s.id = g.session ORDER BY g.id LIMIT ?1";
const TREES: &str = "SELECT t.path, t.writers, g.ready FROM main.journal_guard_tree AS g
    LEFT JOIN main.journal_tree AS t ON t.id = g.tree WHERE g.guard = ?1 ORDER BY t.path";

/// False in a journal that a version without guards made, and that nobody has migrated since.
pub(super) fn are_known(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'journal_guard')",
        (),
        |row| row.get(0),
    )
}

pub(super) fn guards(inspector: &Inspector) -> Result<Vec<GuardInfo>> {
    let mut guards = inspector.database.snapshot(guard_rows)?;
    judge(&mut guards, inspector, &KernelLocks::read())?;
    Ok(guards)
}

pub(super) fn guard_rows(connection: &Connection) -> rusqlite::Result<Vec<GuardInfo>> {
    if !are_known(connection)? {
        return Ok(Vec::new());
    }
    let mut guards: Vec<GuardInfo> =
        connection.prepare(GUARDS)?.query_map([MOST], guard)?.collect::<rusqlite::Result<_>>()?;
    for guard in &mut guards {
        guard.trees = connection.prepare(TREES)?.query_map([guard.id], tree)?.collect::<rusqlite::Result<_>>()?;
        let mut images = connection.prepare(
            "SELECT record FROM main.journal_preimage WHERE id BETWEEN ?1 * 4294967296 AND ?1 * 4294967296 + 4294967295",
        )?;
        let mut rows = images.query([guard.id])?;
        while let Some(row) = rows.next()? {
            // Directories on the way to a path are recorded with it, and nobody asked for them.
            let image = bytes(row, "record").map(crate::codec::decode::<PreImage>);
            if let Some(Ok(PreImage { was: Was::File { way, .. }, .. })) = &image {
                match way {
                    Way::Link => guard.links += 1,
                    Way::Reflink => guard.reflinks += 1,
                    Way::Copy => guard.copies += 1,
                }
            }
            guard.paths += u64::from(!matches!(image, Some(Ok(image)) if !image.named));
        }
    }
    Ok(guards)
}

fn guard(row: &Row<'_>) -> rusqlite::Result<GuardInfo> {
    Ok(GuardInfo {
        id: number_or_zero(row, "id"),
        label: text_or_empty(row, "label"),
        lock: text_or_empty(row, "lock"),
        session: bytes(row, "session").map_or_else(String::new, hex),
        pid: number_or_zero(row, "pid"),
        program: text_or_empty(row, "program"),
        since_ms: number_or_zero(row, "began_ms"),
        paths: 0,
        links: 0,
        reflinks: 0,
        copies: 0,
        trees: Vec::new(),
        attempts: count(row, "attempts"),
        alive: None,
        held: None,
        worker: bytes(row, "worker")
            .and_then(|worker| crate::codec::decode::<Process>(worker).ok())
            .filter(Process::lives)
            .map(|worker| worker.pid()),
        quarantined: !matches!(text_or_empty(row, "state").as_str(), "active" | "ending"),
        reason: text(row, "reason"),
    })
}

fn tree(row: &Row<'_>) -> rusqlite::Result<TreeInfo> {
    let path = path(row, "path").unwrap_or_default();
    let whole_root = path.as_os_str().is_empty();
    Ok(TreeInfo {
        path: if whole_root { ".".into() } else { path },
        writers: text(row, "writers").unwrap_or_else(|| "<unknown>".into()),
        ready: number_or_zero(row, "ready") != 0,
    })
}

/// Asks the kernel whose sessions live and whose locks are held. A guard may have ended since its row was read: one that
/// nobody seems to be at work under is looked for once more, and left out when it is gone.
pub(super) fn judge(guards: &mut Vec<GuardInfo>, inspector: &Inspector, kernel: &KernelLocks) -> Result<()> {
    for guard in guards.iter_mut() {
        let held = |file| kernel.holders(&inspector.state_dir.join(file), &[guard.pid]).map(|pids| !pids.is_empty());
        let alive = held(format!("sessions/{}.lock", guard.session));
        // A name that no lock can have has no file, and no holder.
        let held = held(format!("locks/{}", file_name(&guard.lock).unwrap_or_default()));
        (guard.alive, guard.held) = (alive, held);
    }
    if guards.iter().any(GuardInfo::is_left_over) {
        let identity = |guard: &GuardInfo| (guard.id, guard.session.clone(), guard.since_ms);
        let now: Vec<_> = inspector.database.snapshot(guard_rows)?.iter().map(identity).collect();
        guards.retain(|guard| !guard.is_left_over() || now.contains(&identity(guard)));
    }
    Ok(())
}
