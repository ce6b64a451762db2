//! `locks`: who holds one, who waits, and whose turn it is.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use journal_kb::{Acquire, Begin, Journal};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::at;
use crate::support::{child, child_root, wait_for_word};

/// A process that is killed in the end, if it has not ended.
pub(super) struct Started(pub(super) Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// After so many seconds whatever hangs is killed.
pub(super) const WATCHDOG: u64 = 60;

/// Looks until it is so.
#[track_caller]
pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(WATCHDOG), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process that holds the lock `main`, with a path guarded and changed; `how` as in [`a_holder`].
pub(super) fn holder(dir: &TempDir, how: &str) -> Started {
    let mut command = holder_command(dir, how);
    let mut started = Started(command.spawn().expect("a child"));
    wait_for_word(&mut started.0, "held");
    started
}

pub(super) fn holder_command(dir: &TempDir, how: &str) -> Command {
    fs::write(dir.path().join("guarded"), "before").expect("a file");
    let mut command = child("cli::locks::a_holder", dir.path());
    command.env(HOW, how);
    command
}

const HOW: &str = "JOURNAL_KB_TEST_HOW";

/// The child: `obeys` signals, and commits when there is a file `go`, is `deaf` to SIGTERM, `waits` for the lock, has it `shared`, or lends it: to a shell that goes on
/// when it is killed (`lends`), or to one that is deaf (`family`);
/// or is killed while a `worker` that holds nothing is at work under its guard.
#[test]
fn a_holder() {
    let Some(root) = child_root() else { return };
    // Nobody waits for a child for ever.
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(2 * WATCHDOG));
        std::process::abort();
    });
    let how = std::env::var(HOW).expect("how");
    let journal = Journal::options().heartbeat(Duration::from_millis(300)).open(&root).expect("open");
    let wait = Duration::from_secs(WATCHDOG);
    let acquire = Acquire::new("main").purpose("reindex").wait(wait);
    if how == "shared" {
        let _shared = journal.lock_with(acquire.shared()).expect("the lock");
        println!("held");
        std::thread::sleep(wait);
        return;
    }
    if how == "tries" {
        println!("{}", if journal.try_lock("main").expect("an answer").is_none() { "busy" } else { "free" });
        return;
    }
    if how == "waits" {
        println!("held");
        journal.lock_with(acquire).expect("the lock").fence().expect("a fence");
        println!("got");
        return;
    }
    let lock = journal.lock_with(acquire).expect("the lock");
    lock.set_progress("page 3 of 7");
    lock.fence().expect("a fence");
    let mut txn = lock.begin("changing").expect("begin");
    txn.guard_paths(["guarded"]).expect("guard");
    fs::write(root.join("guarded"), "after").expect("write");
    if how == "deaf" {
        let deaf = signal_hook::flag::register(libc::SIGTERM, std::sync::Arc::default());
        deaf.expect("a handler");
    }
    if how == "worker" {
        #[expect(clippy::zombie_processes, reason = "this process is killed")]
        let worker = Command::new("sleep").arg("100").stdout(std::process::Stdio::null()).spawn().expect("a worker");
        txn.record_worker(worker.id()).expect("recorded");
        println!("held");
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("kill");
    }
    if how == "lends" {
        let lent = txn.lend_lock().expect("lend");
        let me = std::process::id();
        // As soon as this process is gone, its number goes to another one.
        let script = format!(
            "while kill -0 {me} 2>/dev/null; do :; done; echo {} > /proc/sys/kernel/ns_last_pid; sleep 100 & \
             echo $! {me} > reused.new; mv reused.new reused; wait",
            me - 1
        );
        #[expect(clippy::zombie_processes, reason = "this process is killed")]
        Command::new("sh").args(["-c", &script]).current_dir(&root).spawn().expect("a shell");
        drop(lent);
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL).expect("kill");
    }
    if how == "family" {
        let lent = txn.lend_lock().expect("lend");
        #[expect(clippy::zombie_processes, reason = "this process is ended before it")]
        Command::new("sh").args(["-c", "trap '' TERM; sleep 100 & wait"]).spawn().expect("a shell");
        drop(lent);
    }
    println!("held");
    until("nobody said go on", || root.join("go").exists().then_some(()));
    txn.commit().expect("commit");
    println!("committed");
    assert_eq!(lock.release().len(), 0);
}

pub(super) fn lock(dir: &TempDir) -> Value {
    let locks = at(dir.path(), &["locks", "--json"]).code(0).json();
    locks.into_iter().find(|lock| lock["name"] == "main").expect("the lock")
}

#[test]
fn who_waits_for_a_lock_is_shown_and_since_when() {
    let dir = TempDir::new().expect("a directory");
    let mut holding = holder(&dir, "obeys");
    let mut waiting = holder(&dir, "waits");
    let pid = waiting.0.id();
    let shown = until("nobody waits", || Some(lock(&dir)).filter(|lock| lock["waiting"] != json!([])));
    assert_eq!((&shown["mode"], &shown["held"]), (&json!("exclusive"), &json!(true)), "{shown}");
    assert_eq!(shown["pids"], json!([holding.0.id()]), "{shown}");
    assert_eq!(shown["waiting"].as_array().expect("a list").len(), 1, "{shown}");
    assert_eq!(shown["waiting"][0]["pid"], pid, "{shown}");
    let since = until("nobody has waited for long", || lock(&dir)["waiting"][0]["since_ms"].as_i64());
    assert!(since > shown["acquired_ms"].as_i64().expect("a time") - 1000, "{since} {shown}");
    let progress = || Some(lock(&dir)).filter(|lock| lock["holder"]["progress"] == "page 3 of 7");
    until("progress is not shown", progress);
    at(dir.path(), &["locks"]).code(0).says(&["reindex: page 3 of 7", &format!("[{pid}], the first since")]);
    at(dir.path(), &["status"]).says(&["main waiting now: 1: ", &format!("[{pid}], the first since")]);
    holding.0.kill().expect("kill");
    wait_for_word(&mut waiting.0, "got");
    let waited = until("the wait is not counted", || Some(lock(&dir)).filter(|lock| lock["waits"] == 1));
    assert!(waited["longest_wait_ms"].as_i64().expect("a number") >= 1000, "{waited}");
    assert_eq!((&waited["waiting"], &waited["crashes"]), (&json!([]), &json!(1)), "{waited}");
    at(dir.path(), &["locks"]).code(0).says(&["1, at most"]);
    at(dir.path(), &["status"]).says(&["left behind 1 time by a holder that died", "waited for longer than a second"]);
}

#[test]
fn a_shared_lock_is_shown_with_all_that_share_it() {
    let dir = TempDir::new().expect("a directory");
    drop(Journal::open(dir.path()).expect("open").begin_with(Begin::new("")).expect("begin").commit());
    let holders = [holder(&dir, "shared"), holder(&dir, "shared")];
    let mut pids = holders.each_ref().map(|holder| holder.0.id());
    pids.sort_unstable();
    let shown = lock(&dir);
    assert_eq!((&shown["mode"], &shown["pids"]), (&json!("shared"), &json!(pids)), "{shown}");
    at(dir.path(), &["locks"]).code(0).says(&["shared", &format!("[{}] [{}]", pids[0], pids[1])]);
}

#[test]
fn whose_turn_it_is_is_shown_and_who_waits_for_it() {
    let dir = TempDir::new().expect("a directory");
    let journal = Journal::open(dir.path()).expect("open");
    let turn = || at(dir.path(), &["locks", "--json"]).code(0).json().pop().expect("an object")["turnstile"].clone();
    journal.transact(|txn| txn.write("a", "a")).expect("commit");
    // Or else the background wants its turn, too.
    journal.settle().expect("settle");
    let file = fs::File::open(dir.path().join(".journal/turnstile.lock")).expect("the turnstile");
    fs4::FileExt::lock(&file).expect("the turn");
    let me = std::process::id();
    // Of this process the background may wait, too.
    assert_eq!((&turn()["held"], &turn()["pids"]), (&json!(true), &json!([me])));
    let waiter = std::thread::spawn(move || journal.transact(|txn| txn.write("b", "b")).map(drop));
    until("nobody waits", || (turn()["waiting"][0] == me).then_some(()));
    for verb in ["locks", "status"] {
        at(dir.path(), &[verb]).says(&[&format!("turn to write: [{me}], "), &format!(" waiting: [{me}]")]);
    }
    fs4::FileExt::unlock(&file).expect("unlock");
    waiter.join().expect("no panic").expect("commit");
}
