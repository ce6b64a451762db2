//! System calls of the thread that commits.
//!
//! What is left out depends on other things than the transaction: waiting for and waking threads, memory from the
//! kernel, and `F_GETFD`, with which a debug build of std looks at each descriptor before it closes it. What
//! `journal-tree` does meanwhile is not in a commit's way.

use std::process::Command;

use super::{Bound, Counts, looked_at};
use crate::skip::skip;
use crate::support::{Tree, child};

/// Kinds of calls, by how their names begin; the first that fits counts.
const CALLS: &[(&str, &[&str])] = &[
    (NOT_COUNTED, &["futex", "sched_yield", "clock_", "getpid", "restart_syscall", "rt_sig"]),
    (NOT_COUNTED, &["brk", "mmap", "munmap", "mremap", "mprotect", "madvise"]),
    ("sync", &["fsync", "fdatasync", "syncfs", "sync", "msync"]),
    ("open", &["open", "creat"]),
    ("close", &["close"]),
    ("look", &["stat", "newfstatat", "lstat", "fstat", "faccessat", "access", "readlink", "getdents"]),
    // The second is `listxattrat`, of which strace does not know the name yet.
    ("xattr", &["listxattr", "syscall_0x1d1", "llistxattr", "flistxattr", "getxattr", "lgetxattr", "fgetxattr"]),
    (
        "attributes",
        &["chmod", "fchmod", "chown", "lchown", "fchown", "utimensat", "setxattr", "lsetxattr", "fsetxattr"],
    ),
    ("read", &["read", "pread"]),
    ("write", &["write", "pwrite", "ftruncate", "fallocate", "copy_file_range"]),
    ("name", &["rename", "link", "unlink", "mkdir", "rmdir", "symlink"]),
    ("lock", &["flock", "fcntl"]),
    ("who", &["geteuid", "getegid", "getuid", "getgid", "getgroups"]),
    (OTHER, &[""]),
];
const NOT_COUNTED: &str = "not counted";
const OTHER: &str = "other";
const ALL: &str = "all of them";

const BOUNDS: &[Bound] = &[
    Bound::new("sync", 1.0, 0.0, 0.0, 0.0, 0.0),
    Bound::new("open", 0.0, 1.0, 1.0, 1.0, 1.0),
    Bound::new("close", 0.0, 1.0, 1.0, 1.0, 1.0),
    Bound::new("look", 4.0, 2.0, 2.0, 2.0, 3.0),
    Bound::new("xattr", 0.0, 0.0, 0.0, 0.0, 1.0),
    Bound::new("attributes", 0.0, 0.0, 0.0, 0.0, 0.0),
    Bound::new("read", 0.0, 0.0, 0.0, 0.0, 0.0),
    Bound::new("write", 8.0, 9.0, 0.0, 3.4, 3.5),
    Bound::new("name", 0.0, 0.0, 0.0, 1.0, 1.0),
    Bound::new("lock", 14.0, 0.0, 0.0, 0.0, 0.0),
    Bound::new("who", 0.0, 0.0, 0.0, 0.0, 0.0),
    Bound::new(OTHER, 0.0, 0.0, 0.0, 0.0, 0.0),
    Bound::new(ALL, 25.0, 12.5, 4.0, 8.4, 10.5),
];

/// For another version of SQLite, and what the background does in every round.
const ROOM: f64 = 1.1;

#[test]
fn a_transaction_asks_little_of_the_kernel() {
    let Some(transactions) = watched(&["-s", "0"]) else { return };
    let mut counts = Counts::default();
    for (kind, calls) in looked_at().zip(&transactions) {
        let calls: Vec<_> = calls.iter().filter(|call| call.main).map(|call| of(&call.shown)).collect();
        for bound in BOUNDS.iter().filter(|bound| bound.what != ALL) {
            counts.note(bound.what, kind, calls.iter().filter(|what| **what == bound.what).count());
        }
        counts.note(ALL, kind, calls.iter().filter(|what| **what != NOT_COUNTED).count());
    }
    counts.check("system calls of the committing thread", BOUNDS, ROOM);
}

/// How many of the calls sync, of all threads, and how many the committing thread makes, of those that count.
pub(super) fn syncs_and_all(calls: &[Call]) -> (usize, usize) {
    let all = || calls.iter().map(|call| (call.main, of(&call.shown)));
    (
        all().filter(|(_, what)| *what == "sync").count(),
        all().filter(|(main, what)| *main && *what != NOT_COUNTED).count(),
    )
}

/// How many files the thread closes that marks the beginning and the end.
pub(super) fn closed(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.main && of(&call.shown) == "close").count()
}

fn of(call: &str) -> &'static str {
    let looks_before_closing = call.starts_with("fcntl(") && call.contains("F_GETFD");
    let begins = |names: &[&str]| names.iter().any(|name| call.starts_with(name));
    match CALLS.iter().find(|(_, names)| begins(names)) {
        Some((what, _)) if !looks_before_closing => what,
        _ => NOT_COUNTED,
    }
}

/// One call as strace shows it.
pub(crate) struct Call {
    /// Of the thread that commits.
    main: bool,
    shown: String,
}

impl Call {
    pub(crate) fn has_a_name(&self) -> bool {
        !self.shown.starts_with("syscall_")
    }
}

/// The calls of each transaction of the child, all threads mixed; none where strace cannot be used.
pub(super) fn watched(how: &[&str]) -> Option<Vec<Vec<Call>>> {
    let transactions = between_marks("counts::committing_child", how)?;
    assert_eq!(transactions.len(), looked_at().count(), "transactions between marks");
    Some(transactions)
}

/// In that child: does it between two marks.
pub(super) fn between(does: &mut dyn FnMut()) {
    let _ = rustix::process::getppid();
    does();
    let _ = rustix::process::getppid();
}

/// The calls of a child between one `getppid` and the next, of the second pair the same, and so on.
pub(crate) fn between_marks(test: &str, how: &[&str]) -> Option<Vec<Vec<Call>>> {
    let tree = Tree::new();
    let log = tree.path("strace.log");
    let test = child(test, &tree.path("kb"));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq"]).args(how).arg("-o").arg(&log).arg(test.get_program()).args(test.get_args());
    strace.envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let Ok(output) = strace.output() else {
        skip("counting system calls needs strace");
        return None;
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains("panicked"), "{said}");
        skip("strace may not trace here");
        return None;
    }
    let (mut between, mut committer) = (None::<Vec<Call>>, None);
    let mut transactions = Vec::new();
    let log = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    // A call that another thread interrupts is shown twice, as unfinished and as resumed.
    for line in log.lines().filter(|line| !line.contains("resumed>")) {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if call.starts_with("getppid(") {
            committer = Some(thread);
            match between.take() {
                None => between = Some(Vec::new()),
                Some(calls) => transactions.push(calls),
            }
        } else if let Some(calls) = &mut between
            && call.starts_with(|c: char| c.is_ascii_lowercase())
        {
            calls.push(Call { main: committer == Some(thread), shown: call.to_owned() });
        }
    }
    Some(transactions)
}
