//! `locks break`: who holds a lock is ended when it is certain who that is, and nobody otherwise.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use journal_kb::Journal;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::locks::{Started, holder, holder_command, lock, until};
use super::{Ran, at, cli, sql};
use crate::skip::skip;
use crate::support::wait_for_word;

fn alive(started: &mut Started) -> bool {
    started.0.try_wait().expect("a status").is_none()
}

pub(super) fn signal(started: &Started, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(&started.0), signal).expect("signal");
}

/// Nobody is signalled, for this reason.
#[track_caller]
fn refused(dir: &TempDir, started: &mut Started, reason: &str, words: &str) {
    for dry in [&["--dry-run"][..], &[]] {
        let arguments = [&["locks", "break", "main", "--json"], dry].concat();
        let ran = at(dir.path(), &arguments).code(1).says(&[words]);
        assert_eq!(ran.json()[0]["outcome"], "refused", "{ran:?}");
        assert!(ran.out.contains(&format!("{reason:?}")), "{reason} in {ran:?}");
    }
    assert!(alive(started), "it was not to be signalled");
}

/// What it left is recovered, nobody has the lock, and the fence is a larger one.
#[track_caller]
fn is_free(dir: &TempDir, before: &Value) {
    let after = lock(dir);
    assert_eq!((&after["held"], &after["holder"]), (&json!(false), &Value::Null), "{after}");
    assert_eq!(after["crashes"].as_i64(), before["crashes"].as_i64().map(|n| n + 1), "{after}");
    assert!(after["fence"].as_i64() > before["fence"].as_i64(), "{before} {after}");
    assert_eq!(fs::read(dir.path().join("guarded")).expect("the file"), b"before");
}

#[test]
fn a_holder_that_obeys_is_asked_to_stop_and_what_it_left_is_recovered() {
    let dir = TempDir::new().expect("a directory");
    let mut started = holder(&dir, "obeys");
    let (before, pid) = (lock(&dir), started.0.id());
    let dry = at(dir.path(), &["locks", "break", "main", "--dry-run"]);
    assert_eq!(dry.code, Some(1), "{dry:?}");
    dry.says(&["would end", &format!("[{pid}]")]);
    assert!(alive(&mut started));
    let ran = at(dir.path(), &["locks", "break", "main", "--json"]).code(0).json().remove(0);
    assert_eq!((&ran["outcome"], &ran["killed"]), (&json!("broken"), &json!([])), "{ran}");
    let process = &ran["processes"][0];
    assert_eq!((&process["pid"], &process["role"]), (&json!(pid), &json!("session")), "{ran}");
    assert_eq!(started.0.wait().expect("a status").signal(), Some(libc::SIGTERM));
    is_free(&dir, &before);
    assert_eq!(ran["fence"], lock(&dir)["fence"]);
    at(dir.path(), &["locks", "break", "main"]).code(0).says(&["is free"]);
    at(dir.path(), &["locks", "break", "other"]).code(1).says(&["no lock \"other\" was ever taken"]);
    at(dir.path(), &["locks", "break", ""]).code(1).says(&["it is empty"]);
}

#[test]
fn a_holder_that_does_not_stop_is_killed() {
    for how in ["deaf", "stopped"] {
        let dir = TempDir::new().expect("a directory");
        let mut started = holder(&dir, if how == "deaf" { how } else { "obeys" });
        if how == "stopped" {
            signal(&started, Signal::STOP);
        }
        let (before, pid) = (lock(&dir), started.0.id());
        assert_eq!((&before["held"], &before["holder"]["pid"]), (&json!(true), &json!(pid)), "{before}");
        let ran = at(dir.path(), &["locks", "break", "main", "--wait", "1", "--json"]).code(0).json().remove(0);
        assert_eq!((&ran["outcome"], &ran["killed"]), (&json!("broken"), &json!([pid])), "{how} {ran}");
        assert_eq!(started.0.wait().expect("a status").signal(), Some(libc::SIGKILL), "{how}");
        is_free(&dir, &before);
    }
}

#[test]
fn whom_a_holder_has_lent_its_lock_goes_with_it() {
    let dir = TempDir::new().expect("a directory");
    let mut started = holder(&dir, "family");
    let before = lock(&dir);
    let ran = at(dir.path(), &["locks", "break", "main", "--wait", "1", "--json"]).code(0).json().remove(0);
    assert_eq!(started.0.wait().expect("a status").signal(), Some(libc::SIGTERM), "{ran}");
    let roles: Vec<_> = ran["processes"].as_array().expect("a list").iter().map(|process| &process["role"]).collect();
    assert_eq!(roles, ["session", "descendant", "descendant"], "{ran}");
    // A shell and its sleep, by then without the parent that they were verified by.
    assert_eq!(ran["killed"].as_array().map(Vec::len), Some(2), "{ran}");
    is_free(&dir, &before);
}

#[test]
fn who_gets_the_lock_meanwhile_is_left_alone() {
    let dir = TempDir::new().expect("a directory");
    let mut first = holder(&dir, "obeys");
    let mut command = holder_command(&dir, "obeys");
    let mut second = Started(command.spawn().expect("a child"));
    until("nobody waits", || (lock(&dir)["waiting"][0]["pid"] == second.0.id()).then_some(()));
    at(dir.path(), &["locks", "break", "main", "--wait", "1"]).code(75).says(&["reindex"]);
    assert_eq!(first.0.wait().expect("a status").signal(), Some(libc::SIGTERM));
    wait_for_word(&mut second.0, "held");
    assert!(alive(&mut second));
    assert_eq!(lock(&dir)["pids"], json!([second.0.id()]));
}

#[test]
fn who_is_not_the_process_on_record_is_left_alone() {
    let dir = TempDir::new().expect("a directory");
    let mut started = holder(&dir, "obeys");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id").replace('-', "");
    let boot = format!("boot = x'{}'", boot.trim());
    for (change, back, reason, words) in [
        ("started = started + 1", "started = started - 1", "other_start", "started at another time"),
        ("pid = pid + 1", "pid = pid - 1", "other_number", "it is not the process on record"),
        ("boot = zeroblob(16)", &boot, "other_boot", "before the machine was started anew"),
    ] {
        sql(dir.path(), &format!("UPDATE journal_session SET {change}"));
        refused(&dir, &mut started, reason, words);
        sql(dir.path(), &format!("UPDATE journal_session SET {back}"));
    }
    sql(dir.path(), "UPDATE journal_lock SET session = NULL");
    refused(&dir, &mut started, "nobody_recorded", "nobody on record");
    sql(dir.path(), "UPDATE journal_lock SET session = (SELECT id FROM journal_session)");
    // All as it was.
    at(dir.path(), &["locks", "break", "main"]).code(0);
}

#[test]
fn whoever_started_the_command_is_left_alone() {
    let dir = TempDir::new().expect("a directory");
    let journal = Journal::open(dir.path()).expect("open");
    let lock = journal.lock("main").expect("the lock");
    lock.fence().expect("a fence");
    at(dir.path(), &["locks", "break", "main"]).code(1).says(&["it is this very command, or what started it"]);
    assert!(lock.is_held());
}

#[test]
fn a_command_that_outlived_exec_is_ended() {
    for isolate in ["auto", "baseline"] {
        let dir = TempDir::new().expect("a directory");
        fs::write(dir.path().join("guarded"), "before").expect("a file");
        at(dir.path(), &["init"]).code(0);
        let mut exec = cli(&["exec", "--isolate", isolate, "--root"]);
        exec.arg(dir.path())
            .args(["--", "sh", "-c", "echo after > guarded; echo up; sleep 100"])
            .current_dir(dir.path());
        let mut started = Started(exec.stdout(Stdio::piped()).spawn().expect("exec"));
        wait_for_word(&mut started.0, "up");
        let before =
            until("the lock is not recorded", || Some(lock(&dir)).filter(|lock| lock["holder"] != Value::Null));
        started.0.kill().expect("kill");
        started.0.wait().expect("a status");
        let ran = at(dir.path(), &["locks", "break", "main", "--wait", "5", "--json"]).code(0).json().remove(0);
        assert_eq!(ran["outcome"], "broken", "{isolate} {ran}");
        assert!(ran["processes"].to_string().contains("\"worker\""), "{isolate} {ran}");
        is_free(&dir, &before);
    }
}

/// A shell in a pid namespace of its own; none where there can be none.
pub(super) fn in_namespace(script: &str) -> Option<Command> {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]);
    let can = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    if !can.is_ok_and(|can| can.status.success()) {
        skip("no pid namespaces: unshare --pid does not work here");
        return None;
    }
    Some(command)
}

/// The command line of a process, to be run by a shell: its words and its environment.
pub(super) fn handed_on(mut shell: Command, command: &Command) -> Command {
    shell.arg("sh").arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdout(Stdio::piped());
    shell
}

#[test]
fn a_holder_in_another_pid_namespace_is_known_from_outside_and_not_from_beside() {
    let dir = TempDir::new().expect("a directory");
    let Some(shell) = in_namespace("\"$@\" & wait") else { return };
    let mut started = Started(handed_on(shell, &holder_command(&dir, "obeys")).spawn().expect("unshare"));
    wait_for_word(&mut started.0, "held");
    let before = lock(&dir);
    assert!(before["holder"]["pid"].as_i64() < Some(100), "its number inside: {before}");
    let beside = in_namespace("\"$@\"").expect("it worked before");
    let mut asked = cli(&["locks", "break", "main", "--root"]);
    asked.arg(dir.path());
    let ran: Ran = handed_on(beside, &asked).stderr(Stdio::piped()).output().expect("unshare").into();
    ran.code(1).says(&["is not seen from here"]);
    assert!(alive(&mut started));
    let ran = at(dir.path(), &["locks", "break", "main", "--json"]).code(0).json().remove(0);
    assert_eq!((&ran["outcome"], &ran["processes"][0]["role"]), (&json!("broken"), &json!("session")), "{ran}");
    is_free(&dir, &before);
}

#[test]
fn process_1_of_a_container_is_left_alone() {
    let dir = TempDir::new().expect("a directory");
    let Some(shell) = in_namespace("exec \"$@\"") else { return };
    let mut started = Started(handed_on(shell, &holder_command(&dir, "obeys")).spawn().expect("unshare"));
    wait_for_word(&mut started.0, "held");
    refused(&dir, &mut started, "init", "it is process 1");
}

#[test]
fn a_number_that_is_used_again_is_not_the_process_on_record() {
    let dir = TempDir::new().expect("a directory");
    let script = "\"$@\" & wait $!; while [ ! -e \"$ROOT/reused\" ]; do :; done; sleep 100";
    let Some(mut shell) = in_namespace(script) else { return };
    if fs::OpenOptions::new().write(true).open("/proc/sys/kernel/ns_last_pid").is_err() {
        return skip("this kernel or user cannot choose the next process number");
    }
    shell.env("ROOT", dir.path());
    let mut started = Started(handed_on(shell, &holder_command(&dir, "lends")).spawn().expect("unshare"));
    let reused = until("the number was not used again", || fs::read_to_string(dir.path().join("reused")).ok());
    let (now, before) = reused.trim().split_once(' ').expect("two numbers");
    assert_eq!(now, before, "the same number");
    refused(&dir, &mut started, "other_start", "started at another time");
}
