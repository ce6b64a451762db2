//! A lock is held because the kernel says so: not until some clock has gone on, and not only in one container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use journal_kb::Journal;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use super::locks::{Started, holder, holder_command, lock, until};
use super::locks_break::{handed_on, in_namespace, signal};
use super::{Ran, at, cli};
use crate::skip::skip;
use crate::support::wait_for_word;

/// What a program takes its clock from, when it is started with this library.
fn faketime() -> Option<PathBuf> {
    let libraries = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let places = libraries.map(|place| place.path().join("faketime/libfaketime.so.1"));
    let found = places.chain([PathBuf::from("/usr/lib/faketime/libfaketime.so.1")]).find(|place| place.exists());
    if found.is_none() {
        skip("no faketime");
    }
    found
}

/// Gives a command the clock that a file describes, which may change. How long something takes is left as it is.
fn with_clock(mut command: Command, library: &Path, clock: &Path) -> Command {
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", clock);
    command.env("FAKETIME_NO_CACHE", "1").env("DONT_FAKE_MONOTONIC", "1").env("TZ", "UTC");
    command
}

#[test]
fn clocks_that_differ_jump_or_stand_still_rob_nobody() {
    let Some(library) = faketime() else { return };
    let clock = |dir: &TempDir, name: &str, time: &str| {
        let file = dir.path().join(name);
        fs::write(file.with_extension("new"), time).expect("a clock");
        fs::rename(file.with_extension("new"), &file).expect("a clock");
        file
    };
    const STILL: &str = "2026-01-01 00:00:00";
    for (first, second) in [("-1d", "+1d"), ("+1d", "-1d"), (STILL, "+0"), ("+0", STILL)] {
        let (dir, clocks) = (TempDir::new().expect("a directory"), TempDir::new().expect("a directory"));
        let of_holder = clock(&clocks, "holder", first);
        let of_waiter = clock(&clocks, "waiter", second);
        let mut holding =
            Started(with_clock(holder_command(&dir, "obeys"), &library, &of_holder).spawn().expect("runs"));
        wait_for_word(&mut holding.0, "held");
        let mut waiting =
            Started(with_clock(holder_command(&dir, "waits"), &library, &of_waiter).spawn().expect("runs"));
        fs::write(dir.path().join("guarded"), "after").expect("the holder's");
        let database = rusqlite::Connection::open(dir.path().join(".journal/journal.db")).expect("the database");
        let waits = || database.query_row("SELECT pid FROM journal_wait", (), |row| row.get::<_, u32>(0)).ok();
        assert_eq!(until("nobody has waited for long", waits), waiting.0.id());
        clock(&clocks, "holder", second);
        clock(&clocks, "waiter", first);
        // Several signs of life by the other clock.
        let beat = lock(&dir)["holder"]["heartbeat_ms"].clone();
        if [first, second].contains(&"-1d") {
            until("there is no sign of life", || (lock(&dir)["holder"]["heartbeat_ms"] != beat).then_some(()));
        }
        let shown = lock(&dir);
        assert_eq!(shown["pids"], json!([holding.0.id()]), "{first} {second}: {shown}");
        assert_eq!(shown["waiting"][0]["pid"], waiting.0.id(), "{first} {second}: {shown}");
        for library in [None, Some(&library)] {
            for verb in [&["locks"][..], &["status"]] {
                let mut command = cli(verb);
                command.arg("--root").arg(dir.path());
                if let Some(library) = library {
                    command = with_clock(command, library, &of_waiter);
                }
                let ran: Ran = command.output().expect("runs").into();
                let absurd =
                    ["in the future", " -", "days ago", " h ago"].into_iter().find(|word| ran.out.contains(word));
                // One session opened it at what its clock said.
                let sessions = |line: &&str| !line.contains("open in") && !line.contains("guard ");
                let lines: Vec<&str> = ran.out.lines().filter(sessions).collect();
                assert!(absurd.is_none_or(|word| !lines.concat().contains(word)), "{first} {second}: {ran:?}");
            }
        }
        fs::write(dir.path().join("go"), "").expect("go");
        wait_for_word(&mut holding.0, "committed");
        wait_for_word(&mut waiting.0, "got");
        let after = until("it is held", || Some(lock(&dir)).filter(|lock| lock["held"] == false));
        assert_eq!((&after["losses"], &after["crashes"]), (&json!(0), &json!(0)), "{first} {second}: {after}");
        let waited = after["longest_wait_ms"].as_i64().expect("a number");
        assert!((1000..600_000).contains(&waited), "{first} {second}: {after}");
        assert_eq!(fs::read(dir.path().join("guarded")).expect("the file"), b"after");
    }
}

#[test]
fn a_holder_that_is_stopped_is_not_robbed_and_finishes() {
    let seconds = std::env::var("JOURNAL_KB_STOPPED_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let dir = TempDir::new().expect("a directory");
    let mut stopped = holder(&dir, "obeys");
    let journal = Journal::open(dir.path()).expect("open");
    signal(&stopped, Signal::STOP);
    let patient = journal_kb::Acquire::new("main").wait(Duration::from_secs(seconds));
    let refused = journal.lock_with(patient).expect_err("it is held");
    assert!(refused.is_busy() && refused.to_string().contains("reindex"), "{refused}");
    journal.recover().expect("recovery leaves it alone");
    assert_eq!(fs::read(dir.path().join("guarded")).expect("the file"), b"after");
    fs::write(dir.path().join("go"), "").expect("go");
    signal(&stopped, Signal::CONT);
    wait_for_word(&mut stopped.0, "committed");
    assert!(stopped.0.wait().expect("a status").success());
    drop(journal.lock("main").expect("it is free"));
    let after = lock(&dir);
    assert_eq!((&after["crashes"], &after["losses"]), (&json!(0), &json!(0)), "{after}");
    assert_eq!(fs::read(dir.path().join("guarded")).expect("the file"), b"after");
}

#[test]
fn a_container_and_its_host_keep_each_other_out_and_take_nobody_for_dead() {
    let dir = TempDir::new().expect("a directory");
    let Some(shell) = in_namespace("\"$@\" & wait") else { return };
    let journal = Journal::open(dir.path()).expect("open");
    let mut inside = Started(handed_on(shell, &holder_command(&dir, "obeys")).spawn().expect("unshare"));
    wait_for_word(&mut inside.0, "held");
    assert!(journal.try_lock("main").expect("an answer").is_none());
    // Both sweep what the dead left.
    let beside = Journal::open(dir.path()).expect("open");
    beside.recover().expect("recover");
    let tries = |journal: &Journal, want: &str| {
        let shell = in_namespace("\"$@\" & wait").expect("it worked before");
        let mut command = handed_on(shell, &holder_command(&dir, "tries"));
        // Which put the file back as the holder's transaction must not find it.
        fs::write(dir.path().join("guarded"), "after").expect("the holder's");
        let output = command.stderr(Stdio::piped()).output().expect("unshare");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(want), "{said} {}", String::from_utf8_lossy(&output.stderr));
        journal.recover().expect("recover");
    };
    tries(&journal, "busy");
    let sessions = at(dir.path(), &["status", "--json"]).json()[0]["sessions"].clone();
    let alive = sessions.as_array().expect("a list").iter().filter(|session| session["alive"] == true).count();
    assert_eq!(alive, 3, "{sessions}");
    fs::write(dir.path().join("go"), "").expect("go");
    wait_for_word(&mut inside.0, "committed");
    let held = journal.lock("main").expect("it is free");
    assert!(held.fence().expect("a fence").is_current().expect("an answer"));
    tries(&journal, "busy");
    assert!(held.is_held());
    assert_eq!(held.release().len(), 0);
    tries(&journal, "free");
    let after = lock(&dir);
    assert_eq!((&after["crashes"], &after["losses"]), (&json!(0), &json!(0)), "{after}");
}

#[test]
fn who_works_in_a_container_under_a_guard_that_died_is_waited_for_outside() {
    let dir = TempDir::new().expect("a directory");
    let Some(shell) = in_namespace("\"$@\" & wait $!; sleep 1000") else { return };
    let mut inside = Started(handed_on(shell, &holder_command(&dir, "worker")).spawn().expect("unshare"));
    wait_for_word(&mut inside.0, "held");
    until("it is not dead", || (lock(&dir)["held"] == false).then_some(()));
    let journal = Journal::open(dir.path()).expect("open");
    let begin = || journal.begin_with(journal_kb::Begin::new("").wait(Duration::from_millis(100)));
    let busy = begin().expect_err("somebody is at work");
    assert!(busy.is_busy() && busy.to_string().contains("left at work"), "{busy}");
    assert_eq!(fs::read(dir.path().join("guarded")).expect("the file"), b"after");
    // With the container's first process go all others.
    drop(inside);
    until("the work is over", || begin().ok()).commit().expect("commit");
    assert_eq!(fs::read(dir.path().join("guarded")).expect("the file"), b"before");
}
