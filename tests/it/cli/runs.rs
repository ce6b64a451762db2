//! `runs`: how far each is, who is at work, what was set aside; and what a person says of it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use journal_kb::{Ended, Job, Journal, Run, Verdict};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::locks::{Started, WATCHDOG, until};
use super::{Ran, at, cli, picture, sql};
use crate::runs::running;
use crate::support::{child, child_root, wait_for_word};

const HOW: &str = "JOURNAL_KB_TEST_HOW";

/// The child: at work at the job `sync` until there is a file `go`, then it stops; or it `dies` of an item.
#[test]
fn a_worker() {
    let Some(root) = child_root() else { return };
    // Nobody waits for a child for ever.
    std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_secs(2 * WATCHDOG));
        std::process::abort();
    });
    let journal = Journal::open(&root).expect("open");
    let run = running(journal.run_with(Job::new("sync").fingerprint("v1").expected(10)));
    let item = run.pending(0..10).next().expect("an item");
    run.record(&item).expect("recorded");
    run.set_cursor(&("page", item)).expect("a cursor");
    run.flush().expect("banked");
    let next = run.pending(0..10).next().expect("an item");
    let attempt = run.attempt(&next).expect("begun");
    println!("at work");
    if std::env::var_os(HOW).is_some() {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("kill");
    }
    until("nobody said go on", || root.join("go").exists().then_some(()));
    drop(attempt);
    let _ = run.stop("the clock struck").expect("stopped");
}

fn worker(dir: &TempDir, dies: bool) -> Started {
    let mut command = child("cli::runs::a_worker", dir.path());
    if dies {
        command.env(HOW, "dies");
    }
    let mut started = Started(command.spawn().expect("a child"));
    wait_for_word(&mut started.0, "at work");
    started
}

fn runs(dir: &TempDir) -> Vec<Value> {
    at(dir.path(), &["runs", "--json"]).code(0).json()
}

fn shown(dir: &TempDir, which: &str) -> Value {
    at(dir.path(), &["runs", "show", which, "--json"]).code(0).json().remove(0)
}

/// Has these items fail once, which is as often as they may be tried.
fn set_aside(run: &Run, items: &[&[u8]]) {
    for item in items {
        drop(run.attempt(*item).expect("begun"));
        assert_eq!(run.fail(*item, "the parser\nis lost").expect("failed"), Verdict::SetAside);
    }
}

fn start(journal: &Journal, job: &str) -> Run {
    running(journal.run_with(Job::new(job).tries(1)))
}

#[test]
fn a_run_is_running_stopped_or_died_and_can_be_given_up() {
    let dir = TempDir::new().expect("a directory");
    at(dir.path(), &["init"]).code(0);
    at(dir.path(), &["runs"]).code(0).says(&["no job has run yet"]);
    at(dir.path(), &["runs", "show", "sync"]).code(1).says(&["\"sync\"", "journalctl-kb runs"]);

    let mut working = worker(&dir, false);
    let pid = working.0.id();
    let run = &runs(&dir)[0];
    assert_eq!((&run["id"], &run["job"], &run["state"]), (&json!(1), &json!("sync"), &json!("running")), "{run}");
    assert_eq!((&run["banked"], &run["expected"], &run["exact"]), (&json!(1), &json!(10), &json!(true)), "{run}");
    assert_eq!((&run["fingerprint"], &run["fingerprint_hex"]), (&json!("v1"), &Value::Null), "{run}");
    assert_eq!((&run["trying"], &run["set_aside"], &run["sessions"]), (&json!(1), &json!(0), &json!(1)), "{run}");
    assert_eq!((&run["holder"]["pid"], &run["reason"]), (&json!(pid), &json!("")), "{run}");
    assert!(run["flushed_ms"].as_i64() >= run["began_ms"].as_i64(), "{run}");
    let process = format!("[{pid}]");
    at(dir.path(), &["runs"]).code(0).says(&["running", "1 of 10 (10%)", &process]);
    at(dir.path(), &["runs", "show", "sync"]).code(0).says(&["at work", &process, "trying", r#"["page",0]"#, "v1"]);
    at(dir.path(), &["status"]).code(0).says(&["all is well", "sync running, 1 of 10 (10%) done", &process]);
    // Nobody takes it away from who is at work.
    let before = picture(dir.path());
    at(dir.path(), &["runs", "reset", "sync", "--dry-run"]).code(75).says(&[&format!("pid {pid}")]);
    assert!(picture(dir.path()) == before, "a dry run changed something");
    at(dir.path(), &["runs", "reset", "sync"]).code(75).says(&[&format!("pid {pid}")]);
    at(dir.path(), &["runs", "retry", "sync"]).code(75);
    assert_eq!(runs(&dir)[0]["state"], "running");

    fs::write(dir.path().join("go"), "").expect("a file");
    assert!(working.0.wait().expect("ended").success());
    let run = shown(&dir, "sync");
    assert_eq!((&run["state"], &run["reason"]), (&json!("stopped"), &json!("the clock struck")), "{run}");
    assert_eq!((&run["holder"], &run["failed"]), (&Value::Null, &json!(1)), "{run}");
    assert_eq!((&run["items"][0]["item"], &run["tries"][0]["item"]), (&json!("0"), &json!("1")), "{run}");
    assert_eq!(run["cursor"], r#"["page",0]"#);
    let see = "see `journalctl-kb runs show sync`";
    at(dir.path(), &["status"]).code(0).says(&["sync stopped", "1 failed", "the clock struck", see]);
    fs::remove_file(dir.path().join("go")).expect("removed");

    let mut died = worker(&dir, true);
    died.0.wait().expect("ended");
    let run = shown(&dir, "1");
    assert_eq!((&run["state"], &run["banked"], &run["sessions"]), (&json!("died"), &json!(2), &json!(2)), "{run}");
    assert_eq!((&run["holder"]["pid"], &run["trying"]), (&json!(died.0.id()), &json!(1)), "{run}");
    at(dir.path(), &["runs"]).code(0).says(&["died", "ended without a word"]);
    let status = at(dir.path(), &["status"]).code(0).says(&["sync died, 2 of 10 (20%) done", see]);
    assert!(!status.out.contains("What to do"), "a run that died is no reason to recover: {status:?}");
    // Somebody who has the lock, and has not gone on with it, is not at work at it.
    let journal = Journal::open(dir.path()).expect("open");
    let lock = journal.try_lock("run:sync").expect("an answer").expect("the lock");
    assert_eq!(runs(&dir)[0]["state"], "died");
    drop((lock, journal));

    let would = at(dir.path(), &["runs", "reset", "sync", "--dry-run"]).says(&["2 items", "1 that failed", "afresh"]);
    assert_eq!((would.code, runs(&dir)[0]["state"].as_str()), (Some(1), Some("died")), "{would:?}");
    let reset = &at(dir.path(), &["runs", "reset", "sync", "--json"]).code(0).json()[0];
    assert_eq!(
        (&reset["outcome"], &reset["banked"], &reset["run"]),
        (&json!("reset"), &json!(2), &json!(1)),
        "{reset}"
    );
    let run = &runs(&dir)[0];
    assert_eq!((&run["state"], &run["reason"]), (&json!("abandoned"), &json!("reset by hand")), "{run}");
    for words in [&["reset", "sync"][..], &["reset", "sync", "--dry-run"], &["retry", "nobody"]] {
        at(dir.path(), &[&["runs"], words].concat()).code(1).says(&["journalctl-kb runs"]);
    }
    assert!(!at(dir.path(), &["status"]).code(0).out.contains("sync died"), "what is over is over");
    at(dir.path(), &["runs", "-n", "1", "show", "sync"]).code(2).says(&["--items"]);
}

#[test]
fn what_was_set_aside_is_told_and_tried_again_by_the_name_that_is_shown() {
    let dir = TempDir::new().expect("a directory");
    let journal = Journal::open(dir.path()).expect("open");
    let strange: [&[u8]; 6] = [b"a b", b"caf\xe9", b"-x", b"hex:00", b"two\nlines", "é".as_bytes()];
    let run = start(&journal, "it's a job");
    set_aside(&run, &strange);
    run.record("done").expect("recorded");
    assert_eq!(run.finish().expect("finished"), Ended::Finished { banked: 1, set_aside: 6 });
    journal.close().expect("close");

    let detail = shown(&dir, "it's a job");
    assert_eq!((&detail["state"], &detail["set_aside"]), (&json!("finished"), &json!(6)), "{detail}");
    let first = detail["tries"].as_array().expect("a list").iter().find(|tried| tried["item"] == "a b");
    let first = first.expect("an item");
    assert_eq!((&first["state"], &first["tries"]), (&json!("aside"), &json!(1)), "{first}");
    assert_eq!(first["error"], "the parser\nis lost");
    let hex = detail["tries"].as_array().expect("a list").iter().find_map(|tried| tried["item_hex"].as_str());
    assert_eq!(hex, Some("636166e9"), "{detail}");
    let names = ["a b", "hex:636166e9", "hex:2d78", "hex:6865783a3030", "hex:74776f0a6c696e6573", "é"];
    let text = at(dir.path(), &["runs", "show", "it's a job"]).code(0).says(&names).says(&["the parser\\nis lost"]);
    let command = text.out.lines().find_map(|line| line.trim().strip_prefix("journalctl-kb "));
    let command = command.expect("what can be done").split("  ").next().expect("a command");
    at(dir.path(), &["status"])
        .code(0)
        .says(&["it's a job finished, 1 done, 6 set aside", "runs show 'it'\\''s a job'`"]);
    assert_eq!(
        at(dir.path(), &["runs", "show", "it's a job", "--items", "2"])
            .code(0)
            .says(&["4 more"])
            .out
            .matches("set aside  ")
            .count(),
        2
    );

    let named = at(dir.path(), &["runs", "retry", "it's a job", "hex:636166e9", "nobody", "--json"]);
    let said = json!({ "job": "it's a job", "retried": 1, "not_set_aside": [{ "item": "nobody" }] });
    assert_eq!((named.code, &named.json()[0]), (Some(1), &said), "{named:?}");
    at(dir.path(), &["runs", "retry", "it's a job", "hex:zz"]).code(2).says(&["two digits"]);
    // As it is, without a word of it being UTF-8; and what looks like an option.
    let latin = std::ffi::OsStr::from_bytes(b"caf\xe9");
    let ran: Ran =
        cli(&["runs", "retry", "it's a job"]).arg(latin).arg("--root").arg(dir.path()).output().expect("runs").into();
    assert_eq!(ran.code, Some(1), "it is not set aside any more: {ran:?}");
    at(dir.path(), &["runs", "retry", "it's a job", "-x"]).code(2);
    let ran: Ran = cli(&["--root"])
        .arg(dir.path())
        .args(["runs", "retry", "it's a job", "--", "-x"])
        .output()
        .expect("runs")
        .into();
    ran.code(0).says(&["1 item"]);
    for name in ["hex:6865783a3030", "hex:74776f0a6c696e6573"] {
        at(dir.path(), &["runs", "retry", "it's a job", name]).code(0).says(&["1 item of"]);
    }
    // What is told to be typed does it.
    let script = format!("{} {command}", env!("CARGO_BIN_EXE_journalctl-kb"));
    let done = std::process::Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().expect("sh");
    Ran::from(done).code(0).says(&["2 items of"]);
    at(dir.path(), &["runs", "retry", "it's a job"]).code(0).says(&["nothing of"]);
    assert_eq!(shown(&dir, "it's a job")["set_aside"], 0);
    let journal = Journal::open(dir.path()).expect("open");
    assert_eq!(start(&journal, "it's a job").pending(strange.map(<[u8]>::to_vec)).count(), 6);
}

#[test]
fn open_runs_come_first_and_a_job_before_a_number() {
    let dir = TempDir::new().expect("a directory");
    let journal = Journal::open(dir.path()).expect("open");
    let run = start(&journal, "open");
    run.record("x").expect("recorded");
    let _ = run.stop("later").expect("stopped");
    for _ in 0..3 {
        let _ = start(&journal, "1").finish().expect("finished");
    }
    journal.close().expect("close");
    let ids = |runs: Vec<Value>| runs.iter().map(|run| run["id"].as_i64().expect("a number")).collect::<Vec<_>>();
    assert_eq!(ids(runs(&dir)), [1, 4, 3, 2]);
    assert_eq!(ids(at(dir.path(), &["runs", "-n", "2", "--json"]).code(0).json()), [1, 4]);
    at(dir.path(), &["runs", "-n", "2"]).code(0).says(&["… and more"]);
    assert!(!at(dir.path(), &["runs", "-n", "0"]).code(0).out.contains("more"));
    assert_eq!(shown(&dir, "1")["id"], 4, "a job of that name");
    assert_eq!(shown(&dir, "2")["job"], "1", "the run of that number");
    at(dir.path(), &["runs", "show", "9"]).code(1).says(&["no run has that number"]);
}

/// How long runs are kept is the application's to say, and this command does not know it.
#[test]
fn no_verb_of_the_command_forgets_a_run() {
    let dir = TempDir::new().expect("a directory");
    let keep = std::time::Duration::MAX;
    let journal = Journal::options().run_retention(keep).open(dir.path()).expect("open");
    let run = start(&journal, "yearly");
    set_aside(&run, &[b"x"]);
    let _ = run.stop("later").expect("stopped");
    let _ = start(&journal, "over").finish().expect("finished");
    journal.close().expect("close");
    sql(dir.path(), "UPDATE journal_run SET began_ms = 0, started_ms = 0, stopped_ms = 0");
    for verb in [&["settle"][..], &["recover"], &["runs", "retry", "yearly"], &["exec", "--", "true"]] {
        let mut command = cli(&["--root"]);
        let ran: Ran = command.arg(dir.path()).args(verb).output().expect("runs").into();
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let states: Vec<_> = runs(&dir).iter().map(|run| run["state"].clone()).collect();
        assert_eq!(states, ["stopped", "finished"], "{verb:?}");
    }
}

#[test]
fn rows_of_runs_that_make_no_sense_hide_nothing() {
    let dir = TempDir::new().expect("a directory");
    let journal = Journal::open(dir.path()).expect("open");
    let run = start(&journal, "sane");
    set_aside(&run, &[b"x"]);
    let _ = run.stop("later").expect("stopped");
    journal.close().expect("close");
    sql(
        dir.path(),
        "PRAGMA ignore_check_constraints = ON;
         INSERT INTO journal_run (id, job, fingerprint, state, session, starts, began_ms, started_ms, started_at, stopped_ms, reason,
             expected, banked, cursor, bad_cursor) VALUES
           (-7, '../../etc', x'ff00', 'open', x'00', -1, -1, 9223372036854775807, -9223372036854775808, -1, char(27) || '[2J', -5, -5,
             '{', char(27)),
           (9223372036854775807, '', x'', 'dreaming', zeroblob(1000), 9223372036854775807, 9223372036854775807, -1, 0, NULL, '', 0, NULL,
             NULL, NULL),
           (134217728, printf('%.100000c', 'j'), zeroblob(100000), 'open', zeroblob(100000), 0, 0, 0, 0, 0, printf('%.100000c', 'r'), 1, 1,
             printf('%.200000c', 'c'), ''),
           (2, CAST(x'ff62' AS TEXT), x'', 'finished', NULL, 1, 0, -9223372036854775808, 9223372036854775807, 0, '', 1,
             9223372036854775807, NULL, NULL);
         INSERT INTO journal_run_item VALUES (-481036337152, x'ff', 9223372036854775807), (-412316860417, zeroblob(100000), -1),
           (9223372036854775807, x'', 0), (137438953472, x'00', 9223372036854775807), (206158430207, x'1b', -5);
         INSERT INTO journal_run_try VALUES (137438953472, zeroblob(100000), -5, 'aside', -1, printf('%.100000c', 'e')),
           (137438953473, x'', 9223372036854775807, 'dreaming', 9223372036854775807, char(27));",
    );
    let all = runs(&dir);
    assert_eq!(all.len(), 5);
    assert!(all.iter().any(|run| run["job"] == "sane" && run["set_aside"] == 1), "{all:?}");
    assert!(all.iter().any(|run| run["job"] == "\u{fffd}b" && run["set_aside"] == 1 && run["failed"] == 1), "{all:?}");
    assert!(all.iter().all(|run| run["rate"].as_f64().is_none_or(|rate| rate >= 0.0 && rate.is_finite())), "{all:?}");
    let text = at(dir.path(), &["runs"]).code(0).says(&["sane", "dreaming", "../../etc"]);
    assert_eq!(text.out.lines().count(), 6, "{text:?}");
    for id in [-7, 1, 2, 134_217_728, i64::MAX] {
        let which = id.to_string();
        let mut command = cli(&["--root"]);
        let ran: Ran = command.arg(dir.path()).args(["runs", "show", "--", &which]).output().expect("runs").into();
        let ran = ran.code(0);
        assert!(!ran.out.contains('\u{1b}') && ran.out.len() < 50_000, "{} {ran:?}", ran.out.len());
        let mut command = cli(&["--json", "--root"]);
        let ran: Ran = command.arg(dir.path()).args(["runs", "show", "--", &which]).output().expect("runs").into();
        assert!(ran.out.len() < 150_000, "{}", ran.out.len());
    }
    let status = at(dir.path(), &["status"]).code(0).says(&["sane stopped"]);
    assert!(!status.out.contains('\u{1b}'), "{status:?}");
    // And without the tables, as a version without runs left it, there is none.
    sql(dir.path(), "DROP TABLE journal_run");
    at(dir.path(), &["runs"]).code(0).says(&["no job has run yet"]);
    at(dir.path(), &["runs", "show", "sane"]).code(1);
    at(dir.path(), &["status"]).code(0);
}

#[test]
fn a_million_items_are_counted_and_few_are_shown() {
    let dir = TempDir::new().expect("a directory");
    let journal = Journal::open(dir.path()).expect("open");
    let run = start(&journal, "large");
    run.record("first").expect("recorded");
    let _ = run.stop("enough").expect("stopped");
    journal.close().expect("close");
    // As recorded over a hundred seconds; the numbers of some that could not be written were not used again.
    sql(
        dir.path(),
        "INSERT INTO journal_run_item
           WITH RECURSIVE n(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 1000000)
           SELECT 68719476736 + n, CAST('item-' || n AS BLOB), (SELECT started_ms FROM journal_run) + n / 10 FROM n;
         UPDATE journal_run SET expected = 2000000",
    );
    let run = shown(&dir, "large");
    assert_eq!((&run["banked"], &run["exact"]), (&json!(1_000_000), &json!(true)), "{}", run["banked"]);
    assert_eq!(run["rate"].as_f64().map(f64::round), Some(10_000.0));
    let items: Vec<_> = run["items"].as_array().expect("a list").iter().map(|item| item["item"].as_str()).collect();
    assert_eq!((items.len(), items[0], items[19]), (20, Some("item-1000000"), Some("item-999981")));
    at(dir.path(), &["runs"]).code(0).says(&["1000000 of 2000000 (50%)", "10000/s"]);
    at(dir.path(), &["runs", "show", "large"]).code(0).says(&["… and 999980 more items"]);
    at(dir.path(), &["status"]).code(0).says(&["large stopped, 1000000 of 2000000 (50%) done"]);
}

#[test]
fn looking_at_runs_changes_nothing() {
    let dir = TempDir::new().expect("a directory");
    let mut died = worker(&dir, true);
    died.0.wait().expect("ended");
    let before = picture(dir.path());
    let root: &Path = dir.path();
    for verb in [&["runs"][..], &["runs", "show", "sync"], &["runs", "show", "1", "--json"]] {
        at(root, verb).code(0);
        assert!(picture(root) == before, "{verb:?} changed something");
    }
}
