//! What looking must not do: change something, wait, need a right to write, or trip over what it finds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use journal_kb::{Begin, Journal};
use serde_json::Value;
use tempfile::TempDir;

use super::{READING, Ran, at, cli, crash_copy, picture, sql, three};
use crate::skip::skip;

#[test]
fn piped_output_is_plain_and_colour_can_be_had() {
    let dir = three();
    for verb in READING {
        let ran = at(dir.path(), verb);
        assert!(!ran.out.contains('\u{1b}') && !ran.err.contains('\u{1b}'), "{ran:?}");
    }
    let ran = at(dir.path(), &["show", "99"]);
    assert!(!ran.err.contains('\u{1b}'), "{ran:?}");
    let mut command = cli(&["log", "--root"]);
    let coloured: Ran = command.arg(dir.path()).env("CLICOLOR_FORCE", "1").output().expect("runs").into();
    assert!(coloured.out.contains("\u{1b}["), "{coloured:?}");
    assert!(!coloured.out.contains("\u{1b}[31mred"), "a label is text: {coloured:?}");
    let mut command = cli(&["log", "--json", "--root"]);
    let json: Ran = command.arg(dir.path()).env("CLICOLOR_FORCE", "1").output().expect("runs").into();
    assert!(!json.out.contains('\u{1b}'), "{json:?}");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let dir = three();
    for verb in READING.iter().copied().chain([&["--help"][..]]) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = cli(verb);
        if verb != ["--help"] {
            command.arg("--root").arg(dir.path());
        }
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("runs");
        let ran: Ran = child.wait_with_output().expect("ends").into();
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{verb:?}");
    }
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output = cli(&["log", "--root"]).arg(dir.path()).stdout(full).output().expect("runs");
    Ran::from(output).code(74).says(&["cannot write the output"]);
}

#[test]
fn a_lock_is_held_while_somebody_holds_it_and_not_after() {
    let dir = TempDir::new().expect("a directory");
    let journal = Journal::open(dir.path()).expect("open");
    let lock = |name: &str| {
        let locks = at(dir.path(), &["locks", "--json"]).code(0).json();
        locks.into_iter().find(|lock| lock["name"] == name).unwrap_or_else(|| panic!("no lock {name}"))
    };
    for name in ["main", "sync:a/b é"] {
        let mut txn = journal.begin_with(Begin::new("add report").lock(name)).expect("begin");
        txn.write("a.md", "a").expect("write");
        // Who holds it is recorded in the background, unless the commit comes first.
        let listed = || {
            at(dir.path(), &["locks", "--json"])
                .code(0)
                .json()
                .iter()
                .any(|lock| lock["name"] == name && lock["holder"] != Value::Null)
        };
        assert!((0..200).any(|_| listed()), "a lock that is held for long is recorded");
        let held = lock(name);
        assert_eq!(held["held"], true, "{held}");
        assert_eq!(held["pids"], serde_json::json!([std::process::id()]), "{held}");
        assert_eq!(held["holder"]["pid"], std::process::id(), "{held}");
        assert!(!held["holder"]["program"].as_str().expect("a program").is_empty(), "{held}");
        at(dir.path(), &["locks"]).code(0).says(&["held", name, "add report"]);
        let status = at(dir.path(), &["status"]).code(0);
        status.says(&["held by", "add report", &std::process::id().to_string()]);
        txn.commit().expect("commit");
        let free = lock(name);
        assert_eq!((&free["held"], &free["pids"]), (&false.into(), &serde_json::json!([])), "{free}");
        assert_eq!(free["holder"], Value::Null, "{free}");
        at(dir.path(), &["locks"]).code(0).says(&["free"]);
    }
    let status = &at(dir.path(), &["status", "--json"]).code(0).json()[0];
    assert_eq!(status["sessions"].as_array().map(Vec::len), Some(1), "{status}");
    assert_eq!(status["sessions"][0]["alive"], true, "{status}");
    assert_eq!(status["sessions"][0]["pid"], std::process::id(), "{status}");
    journal.close().expect("close");
    let status = &at(dir.path(), &["status", "--json"]).code(0).json()[0];
    assert_eq!(status["sessions"], Value::Array(vec![]), "{status}");
    assert_eq!(status["health"], "ok", "{status}");
}

#[test]
fn looking_leaves_everything_as_it_is() {
    let dir = three();
    let journal = Journal::open(dir.path()).expect("open");
    let mut txn = journal.begin("unfinished").expect("begin");
    txn.write("big.bin", vec![7; 1 << 20]).expect("write");
    let crashed = crash_copy(dir.path());
    drop(txn);
    journal.close().expect("close");
    for (what, root) in [("closed", dir.path()), ("crashed", crashed.path())] {
        for verb in READING {
            for json in [&[][..], &["--json"]] {
                let before = picture(root);
                let ran = at(root, &[verb, json].concat());
                assert!(matches!(ran.code, Some(0 | 1)) && ran.err.is_empty(), "{what} {ran:?}");
                assert!(picture(root) == before, "{what}: {verb:?} changed something");
            }
        }
    }
}

#[test]
fn looking_works_where_nothing_may_be_written() {
    let dir = three();
    let journal = Journal::open(dir.path()).expect("open");
    journal.transact(|txn| txn.write("a.md", "a")).expect("commit");
    let crashed = crash_copy(dir.path());
    journal.close().expect("close");
    for root in [dir.path(), crashed.path()] {
        let restore: Vec<_> = walkdir::WalkDir::new(root)
            .contents_first(true)
            .into_iter()
            .map(|entry| {
                let entry = entry.expect("an entry");
                let old = entry.metadata().expect("metadata").permissions();
                let mode = if entry.file_type().is_dir() { 0o555 } else { 0o444 };
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode)).expect("chmod");
                (entry.into_path(), old)
            })
            .collect();
        // To root nothing is read-only; somebody else has to look.
        let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        let as_root = rustix::process::geteuid().is_root();
        for verb in READING {
            let mut command = if as_root {
                let mut command = Command::new(nobody[0]);
                command.args(&nobody[1..]).arg(env!("CARGO_BIN_EXE_journalctl-kb")).current_dir("/");
                command
            } else {
                cli(&[])
            };
            match command.args(verb).arg("--root").arg(root).output() {
                Ok(output) if as_root && output.status.code().is_none_or(|code| code == 127 || code == 126) => {
                    skip("setpriv cannot become another user here");
                }
                Err(error) if as_root => skip(&format!("setpriv does not run: {error}")),
                ran => {
                    let ran = Ran::from(ran.expect("runs"));
                    assert!(matches!(ran.code, Some(0 | 1)) && ran.err.is_empty(), "{verb:?} {ran:?}");
                }
            }
        }
        for (path, old) in restore.into_iter().rev() {
            fs::set_permissions(path, old).expect("chmod");
        }
    }
}

#[test]
fn looking_waits_for_nobody() {
    let dir = three();
    let _open = Journal::open(dir.path()).expect("open");
    // The worst neighbour: it holds the write lock of the database all the while.
    let writer = journal_kb::rusqlite::Connection::open(dir.path().join(".journal/journal.db")).expect("the database");
    writer.execute_batch("BEGIN IMMEDIATE; UPDATE journal_meta SET fence = fence").expect("begin");
    let began = std::time::Instant::now();
    for verb in READING {
        at(dir.path(), verb).code(0);
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    writer.execute_batch("ROLLBACK").expect("rollback");
}

#[test]
fn rows_that_make_no_sense_hide_nothing() {
    let dir = three();
    sql(
        dir.path(),
        "PRAGMA ignore_check_constraints = ON;
         UPDATE journal_txn SET state = 'dreaming', committed_ms = 9223372036854775807, changes = -5 WHERE id = 1;
         INSERT INTO journal_event (at_ms, level, kind, txn, path, details) VALUES (-1, 'warn', '', 1, x'2f6574632fff', x'ffff');
         INSERT INTO journal_lock (name, fence, session, pid, acquired_ms, heartbeat_ms)
           VALUES ('../../../etc', 1, x'00', -7, 0, 0), ('', 1, x'', 99999999999, 0, 0);
         INSERT INTO journal_session VALUES (zeroblob(16), -1, 0, x'', x'1b' || 'p', 0, NULL, 'open');
         INSERT INTO journal_guard (id, state, lock, session, label, attempts, began_ms)
           VALUES (9223372036854775807, 'dreaming', '../..', x'00', char(27), -5, -1), (-3, 'active', '', x'', '', 0, 0);
         INSERT INTO journal_guard_tree VALUES (-3, 7, 1, 0, 0);
         INSERT INTO journal_preimage VALUES (-12884901888, x'2f657463', x'ff');
         INSERT INTO journal_area (path) VALUES (x'2e2e'), (x'2f657463'), (x'');",
    );
    let log = at(dir.path(), &["log"]).code(0).says(&["dreaming", "move one"]);
    assert_eq!(log.out.lines().count(), 4);
    at(dir.path(), &["show", "1"]).code(0).says(&["<unreadable>"]);
    at(dir.path(), &["locks"]).code(0).says(&["../../../etc"]);
    let status = at(dir.path(), &["status"]).says(&["1 in an unknown state", "../..", "<unknown>"]);
    assert_eq!(status.code, Some(76), "{status:?}");
    let plan = at(dir.path(), &["recover", "--dry-run"]);
    assert_eq!((plan.code, plan.err.as_str()), (Some(1), ""), "{plan:?}");
    assert!(!status.out.contains('\u{1b}'), "{status:?}");
    let status = &at(dir.path(), &["status", "--json"]).json()[0];
    assert_eq!(status["events"][0]["path_hex"], "2f6574632fff", "{status}");
    assert_eq!(status["events"][0]["message"], "<unreadable>", "{status}");
}
