//! `exec`: what any program does is kept when it exits with 0, and put back otherwise.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use journal_kb::{Begin, Journal};
use tempfile::TempDir;

use super::{Ran, cli};
use crate::skip::skip;
use crate::support::manifest_of;

/// A root with pages, a log and a journal.
pub(super) fn kb() -> TempDir {
    let kb = tempfile::tempdir().unwrap();
    fs::create_dir_all(kb.path().join("wiki/deep")).unwrap();
    for n in 0..20 {
        fs::write(kb.path().join(format!("wiki/page{n}.md")), format!("the page {n}\n")).unwrap();
    }
    fs::write(kb.path().join("wiki/deep/page.md"), "deep\n").unwrap();
    fs::write(kb.path().join("log.md"), "# Log\n").unwrap();
    Journal::open(kb.path()).unwrap().close().unwrap();
    kb
}

fn exec(root: &Path, options: &[&str], command: &[&str]) -> Ran {
    start(root, options, command).wait_with_output().unwrap().into()
}

fn start(root: &Path, options: &[&str], command: &[&str]) -> Child {
    let mut started = cli(&["exec", "--root"]);
    started.arg(root).args(options).arg("--").args(command).current_dir(root);
    started.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

pub(super) fn has(program: &str) -> bool {
    std::process::Command::new(program).arg("--version").output().is_ok()
}

pub(super) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what} did not come about");
}

#[test]
fn what_ends_well_is_kept_and_told() {
    let kb = kb();
    let script = "sed -i s/the/THE/ wiki/page1.md wiki/page2.md; echo more >> log.md; mkdir wiki/new; echo x > wiki/new/x; rm wiki/page3.md";
    let ran = exec(kb.path(), &["--guard", "wiki", "--append", "log.md", "--label", "tidy"], &["sh", "-c", script]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(fs::read_to_string(kb.path().join("wiki/page1.md")).unwrap(), "THE page 1\n");
    assert_eq!(fs::read_to_string(kb.path().join("log.md")).unwrap(), "# Log\nmore\n");
    let shown: Ran = cli(&["show", "1", "--json", "--root"]).arg(kb.path()).output().unwrap().into();
    let shown: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(shown["label"], "tidy");
    let mut told: Vec<_> = shown["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|path| format!("{} {}", path["kind"].as_str().unwrap(), path["path"].as_str().unwrap()))
        .collect();
    told.sort();
    let expected = [
        "created wiki/new/x",
        "directory wiki/new",
        "removed wiki/page3.md",
        "replaced log.md",
        "replaced wiki/page1.md",
        "replaced wiki/page2.md",
    ];
    assert_eq!(told, expected);
}

#[test]
fn what_does_not_is_put_back_and_its_code_is_told() {
    let kb = kb();
    let before = manifest_of(kb.path());
    for (script, code) in [
        ("rm -r wiki; echo half > wiki; exit 3", 3),
        ("echo half >> wiki/page1.md; kill -9 $$", 128 + 9),
        ("mv wiki elsewhere; mkdir wiki; echo x >> log.md; false", 1),
    ] {
        let ran = exec(kb.path(), &[], &["sh", "-c", script]);
        assert_eq!(ran.code, Some(code), "{script}: {}", ran.err);
        assert_eq!(manifest_of(kb.path()), before, "{script}");
    }
    for (command, code) in [("no-such-command-anywhere", 127), ("/etc/passwd", 126)] {
        let ran = exec(kb.path(), &[], &[command]);
        assert_eq!(ran.code, Some(code), "{}", ran.err);
        assert!(ran.err.contains("cannot run"), "{}", ran.err);
    }
    assert_eq!(exec(kb.path(), &["--guard", "../elsewhere"], &["true"]).code, Some(125));
    assert_eq!(exec(kb.path(), &[], &[]).code, Some(2));
    let nowhere = tempfile::tempdir().unwrap();
    let ran = exec(nowhere.path(), &[], &["true"]);
    assert_eq!(ran.code, Some(125));
    assert!(ran.err.contains("journalctl-kb init"), "{}", ran.err);
    assert_eq!(manifest_of(kb.path()), before);
}

#[test]
fn a_script_that_dies_half_way_leaves_nothing() {
    if !has("python3") {
        return skip("this needs python3");
    }
    let kb = kb();
    let before = manifest_of(kb.path());
    let script = r#"
import os, sqlite3
db = sqlite3.connect("wiki/index.db")
db.execute("CREATE TABLE page (name TEXT)")
for n, name in enumerate(sorted(os.listdir("wiki"))):
    if name.endswith(".md"):
        text = open("wiki/" + name).read()
        open("wiki/" + name, "w").write(text.upper())
        open("log.md", "a").write(name)
        db.execute("INSERT INTO page VALUES (?)", (name,))
        db.commit()
    if n == 7:
        raise SystemExit("half way")
"#;
    let ran = exec(kb.path(), &["--guard", "wiki", "--append", "log.md"], &["python3", "-c", script]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("half way"), "{}", ran.err);
    assert_eq!(manifest_of(kb.path()), before);
}

#[test]
fn signals_reach_the_command() {
    for how in ["auto", "baseline"] {
        let (kb, beside) = (kb(), tempfile::tempdir().unwrap());
        let before = manifest_of(kb.path());
        let begun = beside.path().join("begun");
        let script = format!(
            "trap 'echo told >> wiki/page1.md; exit 5' TERM; echo begun > wiki/begun; echo > {}; while :; do sleep 0.01; done",
            begun.display()
        );
        let running = start(kb.path(), &["--isolate", how], &["sh", "-c", &script]);
        wait_until("the command", || begun.exists());
        let pid = rustix::process::Pid::from_child(&running);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let ran: Ran = running.wait_with_output().unwrap().into();
        assert_eq!(ran.code, Some(5), "{how}: {}", ran.err);
        assert_eq!(manifest_of(kb.path()), before, "{how}");
    }
}

#[test]
fn what_is_left_running_is_ended_before_anything_is_decided() {
    let kb = kb();
    let script = "(trap '' HUP; while :; do echo x >> wiki/endless; sleep 0.01; done) > /dev/null 2>&1 & exit 0";
    let ran = exec(kb.path(), &[], &["sh", "-c", script]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let size = || fs::metadata(kb.path().join("wiki/endless")).unwrap().len();
    let ended = size();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(size(), ended);
}

#[test]
fn killed_itself_it_leaves_the_lock_to_the_command_and_the_rest_to_recovery() {
    for how in ["auto", "baseline"] {
        let (kb, beside) = (kb(), tempfile::tempdir().unwrap());
        let before = manifest_of(kb.path());
        let path = |name: &str| beside.path().join(name).display().to_string();
        // The command keeps no descriptor of the lock, and neither does what it starts.
        let script = format!(
            "for fd in 3 4 5 6 7 8 9; do eval \"exec $fd>&-\"; done; echo half > wiki/page1.md; echo > {}; \
             while [ ! -e {} ]; do sleep 0.01; done; echo late > wiki/page2.md",
            path("begun"),
            path("go")
        );
        let mut running = start(kb.path(), &["--guard", "wiki", "--isolate", how], &["sh", "-c", &script]);
        wait_until("the command", || beside.path().join("begun").exists());
        running.kill().unwrap();
        running.wait().unwrap();
        // Nobody gets the lock while the command is there, and nothing is put back under its hands.
        let journal = Journal::open(kb.path()).unwrap();
        let busy = journal.begin_with(Begin::new("").wait(Duration::from_millis(50)));
        assert!(busy.is_err_and(|error| error.is_busy()), "{how}");
        let status: Ran = cli(&["status", "--root"]).arg(kb.path()).output().unwrap().into();
        assert!(status.code == Some(0) && status.out.contains("is still at work under it"), "{how}: {status:?}");
        if how == "baseline" {
            assert_eq!(fs::read_to_string(kb.path().join("wiki/page1.md")).unwrap(), "half\n");
        }
        fs::write(beside.path().join("go"), "").unwrap();
        let txn = journal.begin_with(Begin::new("").wait(Duration::from_secs(60))).unwrap();
        assert_eq!(manifest_of(kb.path()), before, "{how}");
        txn.rollback().unwrap();
        journal.recover().unwrap();
        assert_eq!(fs::read_dir(kb.path().join(".journal/stage")).unwrap().count(), 0, "{how}");
    }
}

#[test]
fn a_lock_that_is_held_is_waited_for_or_not() {
    let kb = kb();
    let journal = Journal::open(kb.path()).unwrap();
    let txn = journal.begin("at work").unwrap();
    let ran = exec(kb.path(), &["--skip-if-busy"], &["touch", "wiki/run"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.err.contains("nothing was run"), "{}", ran.err);
    let ran = exec(kb.path(), &["--wait", "0"], &["touch", "wiki/run"]);
    assert_eq!(ran.code, Some(125));
    assert!(!kb.path().join("wiki/run").exists());
    txn.rollback().unwrap();
    assert_eq!(exec(kb.path(), &["--skip-if-busy"], &["touch", "wiki/run"]).code, Some(0));
    assert!(kb.path().join("wiki/run").exists());
    // Without a label it is the command's own words, as far as they fit.
    exec(kb.path(), &[], &["sh", "-c", &format!("echo {} > wiki/run", "é".repeat(100))]);
    let told: Ran = cli(&["log", "--json", "--root"]).arg(kb.path()).output().unwrap().into();
    let newest: serde_json::Value = serde_json::from_str(told.out.lines().next().unwrap()).unwrap();
    assert_eq!(newest["label"], format!("sh -c echo {}…", "é".repeat(49)));
    assert_eq!(newest["bytes"], 201);
}
