//! The processes that hold a lock, each verified: what somebody has to know who means to end them.
//!
//! 1. Whoever has a descriptor of the locked file is found by `/proc/*/fdinfo`: children that inherited it, too.
//! 2. Each is one of those that the journal has on record for this lock, by boot, number and start: the session that took it,
//!    or who works under a guard of it; or it descends from such a one. The number on record is the one of its own pid
//!    namespace.
//! 3. What is neither is told with the reason; so is a lock that is held while nobody is seen to hold it.
//!
//! Nothing here signals anybody.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rusqlite::Connection;
use serde::Serialize;

use super::guards;
use super::inspector::Inspector;
use super::liveness::{KernelLocks, has_lock};
use super::value::{bytes, number_or_zero};
use crate::error::Result;
use crate::fs::os_lock::is_unheld;
use crate::journal;
use crate::lock::file_name;
use crate::time::{Process, boot_id, numbers_of};

/// Who holds a lock, as far as that can be seen from here.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LockHolders {
    /// The lock.
    pub name: String,
    /// True when somebody holds it.
    pub held: bool,
    /// The processes that do, by number.
    pub processes: Vec<LockProcess>,
}

/// A process that has a descriptor of a locked lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LockProcess {
    /// Its number, as it is called here.
    pub pid: i32,
    /// When it started, in clock ticks since boot: with the number, an identity that is not reused.
    pub started: i64,
    /// Its program's name.
    pub program: String,
    /// What it is to the journal; none when that is not known.
    pub role: Option<Role>,
    /// Why it is not to be ended; none when nothing speaks against it.
    pub refused: Option<Refusal>,
}

/// What a process that holds a lock is to the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// It took the lock.
    Session,
    /// It works under a guard of this lock.
    Worker,
    /// It was started by one of these, and inherited the lock.
    Descendant,
}

/// Why a process is not to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// The journal has nobody on record for this lock.
    NobodyRecorded,
    /// Who is on record is another process: another number.
    OtherNumber,
    /// Who is on record had the same number, and started at another time: the number was reused.
    OtherStart,
    /// Who is on record lived before the machine was started anew.
    OtherBoot,
    /// It is process 1: of this machine, or of a container that would end with it.
    Init,
    /// It is the process that asks, or one that this descends from.
    Own,
    /// It may not be looked at by this user.
    Hidden,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NobodyRecorded => "the journal has nobody on record for this lock; look again in a moment",
            Self::OtherNumber => "it is not the process on record",
            Self::OtherStart => "the process on record had its number and started at another time",
            Self::OtherBoot => "the process on record lived before the machine was started anew",
            Self::Init => "it is process 1 of this machine or of a container, which would end with it",
            Self::Own => "it is this very command, or what started it",
            Self::Hidden => "this user may not look at it; ask its owner, or root",
        })
    }
}

impl LockHolders {
    /// True when it is held, and who holds it cannot be seen from here: in another container, or hidden.
    pub fn is_unseen(&self) -> bool {
        self.held && self.processes.is_empty()
    }

    /// True when all that hold it are known, and nothing speaks against ending them.
    pub fn is_verified(&self) -> bool {
        !self.is_unseen() && self.processes.iter().all(|process| process.refused.is_none())
    }
}

/// A process as the journal has it on record.
#[derive(Debug)]
struct OnRecord {
    boot: Vec<u8>,
    pid: i64,
    started: i64,
    role: Role,
}

/// A process as the kernel has it.
#[derive(Clone, Debug)]
struct Seen {
    parent: i32,
    started: i64,
    /// Its number in each pid namespace, from the one here inwards.
    numbers: Vec<i64>,
    program: String,
}

/// None when no lock of that name was ever taken.
pub(super) fn holders(inspector: &Inspector, name: &str) -> Result<Option<LockHolders>> {
    let (dir, file) = (inspector.state_dir.join("locks"), file_name(name)?);
    let path = dir.join(&file);
    if fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    let held = !is_unheld(&dir, &file)?;
    let mut processes = Vec::new();
    if held {
        let kernel = KernelLocks::read();
        let shared = kernel.is_shared(&path) == Some(true);
        let mut recorded = inspector.database.snapshot(|connection| sessions(connection, name, shared))?;
        if inspector.database.snapshot(guards::are_known)? {
            let workers = inspector.rows(|tx| journal::workers(tx, name))?;
            recorded.extend(workers.iter().map(|worker| OnRecord {
                boot: worker.boot().to_vec(),
                pid: i64::from(worker.pid()),
                started: worker.started(),
                role: Role::Worker,
            }));
        }
        processes = judge(&path, &kernel.holders(&path, &[]).unwrap_or_default(), &recorded);
    }
    Ok(Some(LockHolders { name: name.to_owned(), held, processes }))
}

/// The session that has the lock by its row; of a lock that is shared, all that are open.
fn sessions(connection: &Connection, name: &str, shared: bool) -> rusqlite::Result<Vec<OnRecord>> {
    let mut statement = connection.prepare(
        "SELECT s.pid, s.started, s.boot FROM main.journal_session AS s WHERE CASE WHEN ?2 THEN s.state = 'open'
         ELSE s.id = (SELECT l.session FROM main.journal_lock AS l WHERE l.name = ?1) END",
    )?;
    let sessions = statement.query_map((name, shared), |row| {
        Ok(OnRecord {
            boot: bytes(row, "boot").unwrap_or_default().to_vec(),
            pid: number_or_zero(row, "pid"),
            started: number_or_zero(row, "started"),
            role: Role::Session,
        })
    })?;
    sessions.collect()
}

fn judge(path: &Path, named: &[i32], recorded: &[OnRecord]) -> Vec<LockProcess> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Vec::new() };
    let all: HashMap<i32, Seen> = numbers().filter_map(|pid| Some((pid, look(pid)?))).collect();
    let place = (meta.dev(), meta.ino());
    let mut processes = Vec::new();
    for (&pid, seen) in &all {
        let (role, refused) = match has_lock(Path::new("/proc"), pid, place) {
            Some(true) => verify(pid, &all, recorded),
            // The kernel names who took it: by now it may be somebody else who has that number.
            None if named.contains(&pid) => (None, Some(Refusal::Hidden)),
            Some(false) | None => continue,
        };
        processes.push(LockProcess { pid, started: seen.started, program: seen.program.clone(), role, refused });
    }
    processes.sort_by_key(|process| process.pid);
    processes
}

/// What a process is, and what speaks against ending it.
fn verify(pid: i32, all: &HashMap<i32, Seen>, recorded: &[OnRecord]) -> (Option<Role>, Option<Refusal>) {
    let boot = boot_id();
    let mut why = Refusal::NobodyRecorded;
    let mut role = None;
    for (at, one) in lineage(pid, all) {
        let found = recorded.iter().map(|record| (record.role, compare(record, one, &boot)));
        for (found, differs) in found {
            match differs {
                None if at == pid => role = Some(found),
                None => role = role.or(Some(Role::Descendant)),
                // What is wrong with the process itself says more than that its parent is somebody else.
                Some(differs) if at == pid => why = worse(why, differs),
                Some(_) => {}
            }
        }
    }
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let is_init = all.get(&pid).is_some_and(|seen| seen.numbers.last() == Some(&1));
    let refused = match role {
        _ if lineage(own, all).any(|(at, _)| at == pid) => Some(Refusal::Own),
        Some(Role::Worker) => None,
        _ if is_init => Some(Refusal::Init),
        Some(_) => None,
        None => Some(why),
    };
    (role, refused)
}

/// The reason that says most.
fn worse(one: Refusal, other: Refusal) -> Refusal {
    let rank = |refusal| match refusal {
        Refusal::OtherStart => 3,
        Refusal::OtherBoot => 2,
        Refusal::OtherNumber => 1,
        _ => 0,
    };
    if rank(other) > rank(one) { other } else { one }
}

/// In what a process differs from one on record.
fn compare(record: &OnRecord, seen: &Seen, boot: &[u8]) -> Option<Refusal> {
    // A session notes the number it has in its own namespace, whoever starts a worker the one it has there.
    let same_number = match record.role {
        Role::Worker => seen.numbers.contains(&record.pid),
        _ => seen.numbers.last() == Some(&record.pid),
    };
    match (same_number, record.boot == boot && !boot.is_empty(), record.started == seen.started) {
        (false, ..) => Some(Refusal::OtherNumber),
        (true, false, _) => Some(Refusal::OtherBoot),
        (true, true, false) => Some(Refusal::OtherStart),
        (true, true, true) => None,
    }
}

/// A process and those it descends from.
fn lineage(pid: i32, all: &HashMap<i32, Seen>) -> impl Iterator<Item = (i32, &Seen)> {
    let first = all.get(&pid).map(|seen| (pid, seen));
    // What changes while it is read must not lead round in a circle.
    std::iter::successors(first, |(_, seen)| all.get(&seen.parent).map(|parent| (seen.parent, parent))).take(all.len())
}

fn numbers() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// None when it has ended.
fn look(pid: i32) -> Option<Seen> {
    let number = u32::try_from(pid).ok()?;
    let started = Process::find(number)?.started();
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some(Seen {
        parent: field("PPid:")?.parse().ok()?,
        started,
        numbers: numbers_of(number),
        program: field("Name:").unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(parent: i32, started: i64, numbers: &[i64]) -> Seen {
        Seen { parent, started, numbers: numbers.to_vec(), program: String::new() }
    }

    #[test]
    fn a_process_is_who_is_on_record_only_by_boot_number_and_start_together() {
        let boot = boot_id();
        let own = i32::try_from(std::process::id()).unwrap();
        let all: HashMap<i32, Seen> = [
            (1, seen(0, 1, &[1])),
            (own, seen(1, 9, &[i64::from(own)])),
            (1_000_001, seen(1, 5, &[1_000_001, 7])),
            (1_000_002, seen(1_000_001, 6, &[1_000_002, 8])),
            (1_000_003, seen(1, 8, &[1_000_003, 1])),
        ]
        .into();
        let on = |pid, started, role| OnRecord { boot: boot.clone(), pid, started, role };
        let other_boot = |record: OnRecord| OnRecord { boot: vec![7; 16], ..record };
        let worker = || on(1_000_003, 8, Role::Worker);
        for (pid, recorded, want) in [
            (1_000_001, vec![on(7, 5, Role::Session)], (Some(Role::Session), None)),
            (1_000_002, vec![on(7, 5, Role::Session)], (Some(Role::Descendant), None)),
            (1_000_001, vec![on(7, 4, Role::Session)], (None, Some(Refusal::OtherStart))),
            (1_000_001, vec![other_boot(on(7, 5, Role::Session))], (None, Some(Refusal::OtherBoot))),
            (1_000_001, vec![on(6, 5, Role::Session)], (None, Some(Refusal::OtherNumber))),
            // The number from outside is not the one that a session notes.
            (1_000_001, vec![on(1_000_001, 5, Role::Session)], (None, Some(Refusal::OtherNumber))),
            (1_000_001, vec![], (None, Some(Refusal::NobodyRecorded))),
            (1_000_003, vec![worker()], (Some(Role::Worker), None)),
            (1_000_003, vec![on(1, 8, Role::Session)], (Some(Role::Session), Some(Refusal::Init))),
            (1, vec![on(1, 1, Role::Session)], (Some(Role::Session), Some(Refusal::Own))),
            (own, vec![on(i64::from(own), 9, Role::Session)], (Some(Role::Session), Some(Refusal::Own))),
        ] {
            assert_eq!(verify(pid, &all, &recorded), want, "{pid} {recorded:?}");
        }
    }
}
