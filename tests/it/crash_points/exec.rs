//! `journalctl-kb exec`: killed, or given an error, at every call that changes anything, in every one of its processes. It is
//! several processes, and which of them comes to the nth call of a kind first is nobody's concern: whichever it is, dies.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::manifest::{self, Manifest};
use super::{State, at_each, open, strace, sweep};
use crate::skip::skip;

/// What is run: several changes, of which any that fails ends it.
const SCRIPT: &str = "set -e; echo new > pages/new.md; rm pages/gone.md; mkdir pages/made; mv pages/moved.md pages/made/; \
                      echo more >> pages/old.md; ln -s old.md pages/link";

fn prepare(root: &Path) {
    fs::create_dir_all(root.join("pages")).unwrap();
    open(root).close().unwrap();
    for name in ["old", "gone", "moved"] {
        fs::write(root.join("pages").join(name).with_extension("md"), format!("{name}, as it was\n")).unwrap();
    }
    manifest::age(root);
}

/// Runs it under strace. True when it said that it had committed.
fn run(root: &Path, how: &str, options: &[&str]) -> bool {
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(root.with_extension("strace"))
        .args(options)
        .arg(env!("CARGO_BIN_EXE_journalctl-kb"))
        .args(["exec", "--isolate", how, "--root"])
        .arg(root)
        .args(["--", "sh", "-c", SCRIPT])
        .current_dir(root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    strace::wait_for_locks(root);
    status.success()
}

/// The calls of all processes: each kind, and how many of it a thread made at most. None where it cannot be run like this.
fn calls(root: &Path, how: &str) -> Option<Vec<(String, usize)>> {
    if !run(root, how, &["-e", &format!("trace={}", strace::MUTATING)]) {
        skip(&format!("exec cannot isolate with {how} here, under strace"));
        return None;
    }
    let trace = fs::read_to_string(root.with_extension("strace")).unwrap();
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    for point in strace::parse(&trace, &BTreeMap::new()) {
        let most = most.entry(point.call).or_default();
        *most = (*most).max(point.nth);
    }
    Some(most.into_iter().flat_map(|(call, most)| (1..=most).map(move |nth| (call.clone(), nth))).collect())
}

fn tried(how: &'static str, harms: &[&str]) {
    if !strace::usable() {
        return skip("crash points need strace, and leave to trace");
    }
    let home = tempfile::tempdir().unwrap();
    let prepared = home.path().join("prepared");
    prepare(&prepared);
    let copy = |name: &str| {
        let root = home.path().join(name);
        manifest::copy(&prepared, &root);
        root
    };
    let before = Manifest::of(&prepared);
    let unharmed = copy("unharmed");
    let Some(all) = calls(&unharmed, how) else { return };
    let after = State::recovered(&unharmed).tree.with_times_only_of(&before);
    assert_eq!(after.file("pages/new.md"), Some(&b"new\n"[..]));
    assert!(after.has("pages/made/moved.md") && !after.has("pages/gone.md"));
    for harm in harms {
        let some = sweep::some(all.clone(), &format!("exec, {how}, {harm}"));
        let faults: Vec<String> = at_each(&some, |(call, nth)| {
            let root = copy(&format!("{harm}-{call}-{nth}"));
            let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{harm}:when={nth}"));
            let committed = run(&root, how, &["-e", &trace, "-e", &inject]);
            let state = State::recovered(&root);
            let is_after = state.tree.differences(&after);
            let mut wrong = if is_after.is_empty() { is_after } else { state.tree.differences(&before) };
            if committed && state.tree.file("pages/new.md").is_none() {
                wrong.push("it had said that it committed".to_owned());
            }
            wrong.extend(state.strays);
            fs::remove_dir_all(&root).unwrap();
            (!wrong.is_empty()).then(|| format!("{harm} at {call} {nth}: {wrong:#?}"))
        })
        .into_iter()
        .flatten()
        .collect();
        assert!(faults.is_empty(), "exec, {how}: {} faults\n{}", faults.len(), faults.join("\n"));
    }
}

#[test]
fn exec_over_an_overlay_killed_or_failing_at_every_call_is_whole_or_absent() {
    tried("overlay", &["signal=KILL", "error=EIO", "error=ENOSPC"]);
}

#[test]
fn exec_with_a_baseline_killed_or_failing_at_every_call_is_whole_or_absent() {
    tried("baseline", &["signal=KILL", "error=EIO", "error=ENOSPC"]);
}
