//! SQL statements: how many are run, and that none is prepared twice.
//!
//! Every connection of a process is traced, by an extension that SQLite runs for each that is opened; so all this is a
//! process of its own. A statement that was never run before has just been prepared; and it counts itself how often
//! SQLite prepared it anew. What is prepared and never run is not seen.
#![expect(unsafe_code, reason = "SQLite runs an extension in each connection by C's calling convention")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard};

use rusqlite::auto_extension::register_auto_extension;
use rusqlite::ffi::{self, sqlite3, sqlite3_api_routines, sqlite3_stmt};

use super::{Bound, Counts, NO_ROOM, PRINT, commit_all, journal};
use crate::support::{Tree, child, child_root};

const BOUNDS: &[Bound] =
    &[Bound::new("run", 15.0, 2.0, 0.0, 2.0, 2.0), Bound::new("prepared", 0.0, 0.0, 0.0, 0.0, 0.0)];

/// What takes effect as it is prepared, or is part of no transaction.
const AGAIN: &[&str] = &["PRAGMA main.synchronous", "PRAGMA wal_checkpoint"];

fn may_be_again(sql: &str) -> bool {
    AGAIN.iter().any(|start| sql.starts_with(start))
}

/// Some times what the background waits for.
const LONG: std::time::Duration = std::time::Duration::from_millis(60);

/// A statement of one connection, which is told by its address.
type Statement = (usize, String);

/// How often each statement was prepared, and how often it says that it was prepared anew.
static PREPARED: Mutex<BTreeMap<Statement, (usize, i32)>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Statements run by this thread, and whether they had to be prepared.
    static RUN: RefCell<Vec<(String, bool)>> = const { RefCell::new(Vec::new()) };
}

fn prepared() -> MutexGuard<'static, BTreeMap<Statement, (usize, i32)>> {
    PREPARED.lock().unwrap()
}

/// A statement begins to run, on any thread.
unsafe extern "C" fn begins(_: c_uint, db: *mut c_void, statement: *mut c_void, _: *mut c_void) -> c_int {
    let statement: *mut sqlite3_stmt = statement.cast();
    // SAFETY: SQLite calls this with a statement that is about to run, and its text is there as long as it is.
    let (sql, run, anew) = unsafe {
        let status = |what| ffi::sqlite3_stmt_status(statement, what, 0);
        let sql = CStr::from_ptr(ffi::sqlite3_sql(statement)).to_string_lossy().into_owned();
        (sql, status(ffi::SQLITE_STMTSTATUS_RUN), status(ffi::SQLITE_STMTSTATUS_REPREPARE))
    };
    let mut prepared = prepared();
    let (times, before) = prepared.entry((db as usize, sql.clone())).or_insert((0, 0));
    let now = if run == 0 { 1 + anew } else { anew - *before };
    *before = anew;
    *times += now as usize;
    RUN.with_borrow_mut(|all| all.push((sql, now > 0)));
    0
}

unsafe extern "C" fn trace(db: *mut sqlite3, _: *mut *mut c_char, _: *const sqlite3_api_routines) -> c_int {
    // SAFETY: SQLite calls this with a connection that has just been opened, and hands its address on as it is.
    unsafe { ffi::sqlite3_trace_v2(db, ffi::SQLITE_TRACE_STMT as c_uint, Some(begins), db.cast()) }
}

/// Has the statements of every connection counted that this process opens from here on.
pub(super) fn trace_all() {
    // SAFETY: it opens no connection and changes no extensions.
    unsafe { register_auto_extension(trace) }.unwrap();
}

/// How many statements this thread runs in it.
pub(super) fn of(work: &mut dyn FnMut()) -> usize {
    RUN.take();
    work();
    RUN.take().len()
}

/// Has a test pass in a process of its own, where every connection can be traced.
pub(super) fn passes_in_a_child(test: &str) {
    let tree = Tree::new();
    let output = child(test, tree.root()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    if std::env::var_os(PRINT).is_some() {
        println!("{said}");
    }
}

#[test]
fn a_transaction_runs_few_statements_and_none_is_prepared_twice() {
    passes_in_a_child("counts::statements::traced_child");
}

/// The process whose statements are counted.
#[test]
fn traced_child() {
    let Some(root) = child_root() else { return };
    trace_all();
    let journal = journal(&root);
    // The migration has changed the schema: from here on each statement may be prepared once more.
    prepared().values_mut().for_each(|(times, _)| *times = 0);
    let mut counts = Counts::default();
    let mut shown = BTreeMap::new();
    commit_all(&journal, |kind, transaction| {
        RUN.take();
        transaction();
        let run = RUN.take();
        counts.note("run", kind, run.len());
        counts.note("prepared", kind, run.iter().filter(|(sql, prepared)| *prepared && !may_be_again(sql)).count());
        shown.insert(kind, run);
    });
    // What the background runs, given the time: it records a lock that is held for long, and notes what was applied.
    for n in 0..3 {
        let mut held = journal.begin("held").unwrap();
        std::thread::sleep(LONG);
        held.write("held", [n]).unwrap();
        held.commit().unwrap();
        std::thread::sleep(LONG);
    }
    let twice: Vec<_> = prepared()
        .iter()
        .filter(|((_, sql), (times, _))| *times > 1 && !may_be_again(sql))
        .map(|((_, sql), (times, _))| format!("{times} times: {sql}"))
        .collect();
    assert!(twice.is_empty(), "prepared more than once:\n{}", twice.join("\n"));
    counts.check("SQL statements of the committing thread", BOUNDS, NO_ROOM);
    if std::env::var_os(PRINT).is_some() {
        for (kind, run) in shown.iter().filter(|(kind, _)| kind.files <= 1) {
            println!("{kind:?}");
            run.iter().for_each(|(sql, prepared)| println!("  {}{sql}", if *prepared { "prepared: " } else { "" }));
        }
    }
}
