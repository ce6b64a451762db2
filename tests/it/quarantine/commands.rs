//! `journalctl-kb quarantine`: for people and for programs.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{given_up, guarded_tree, killed, sql};
use crate::recovery::{assert_after, read};
use crate::support::{Tree, manifest};

/// The exit code, what was said, and the objects.
struct Ran {
    code: i32,
    said: String,
    objects: Vec<Value>,
}

fn quarantine(root: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_journalctl-kb"));
    command.arg("quarantine").args(args).arg("--root").arg(root).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let out = text(&output.stdout);
    let objects = if args.contains(&"--json") {
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    } else {
        Vec::new()
    };
    Ran { code: output.status.code().unwrap(), said: out + &text(&output.stderr), objects }
}

#[track_caller]
fn says(ran: &Ran, code: i32, words: &[&str]) {
    assert_eq!(ran.code, code, "{}", ran.said);
    for word in words {
        assert!(ran.said.contains(word), "{word:?} in {}", ran.said);
    }
}

/// Two of both kinds in one root.
fn both() -> Tree {
    let tree = guarded_tree();
    given_up(&tree);
    killed(&tree, false);
    sql(&tree, "UPDATE journal_guard SET attempts = 5");
    drop(tree.journal());
    tree
}

#[test]
fn what_waits_is_listed_shown_and_looked_at_without_a_lock() {
    let tree = both();
    let journal = tree.journal();
    let before = manifest(&tree);
    // The lock is held, and so is the turn to write.
    let holder = journal.begin("at work").unwrap();
    says(&quarantine(tree.root(), &[]), 76, &["transaction", "guard", "g1", "given up after 5", "to be killed"]);
    says(&quarantine(tree.root(), &["list"]), 76, &["removed and", "more paths"]);
    let listed = quarantine(tree.root(), &["list", "--json"]).objects;
    assert_eq!(listed.len(), 2);
    assert_eq!((&listed[0]["id"], &listed[0]["kind"]), (&"1".into(), &"transaction".into()));
    assert_eq!(
        (&listed[1]["id"], &listed[1]["kind"], &listed[1]["attempts"]),
        (&"g1".into(), &"guard".into(), &5.into())
    );
    for field in ["label", "lock", "since_ms", "reason", "paths", "more_paths", "kept", "kept_bytes"] {
        assert!(!listed[0][field].is_null() && !listed[1][field].is_null(), "{field}: {listed:?}");
    }
    let shown = quarantine(tree.root(), &["show", "1"]);
    says(&shown, 0, &["replaced", "file (6 B)", "put the committed file there", "quarantine retry 1", "keep-live 1"]);
    let shown = &quarantine(tree.root(), &["show", "1", "--json"]).objects[0];
    let item = shown["items"].as_array().unwrap().iter().find(|item| item["path"] == "replaced").unwrap();
    assert_eq!((&item["now"], &item["now_bytes"], &item["bytes"]), (&"file".into(), &6.into(), &5.into()));
    assert_eq!((&item["available"], &item["why_not"]), (&true.into(), &Value::Null));
    let shown = quarantine(tree.root(), &["show", "g1"]);
    says(&shown, 0, &["put back the old version", "take it away: nothing was there", "quarantine restore g1"]);
    let shown = &quarantine(tree.root(), &["show", "g1", "--json"]).objects[0];
    let item = shown["items"].as_array().unwrap().iter().find(|item| item["path"] == "a").unwrap();
    assert_eq!(std::fs::read(item["kept_at"].as_str().unwrap()).unwrap(), b"one");
    drop(holder);
    assert_eq!(manifest(&tree), before);
}

#[test]
fn each_verb_says_how_it_ended() {
    let tree = both();
    let root = tree.root();
    says(&quarantine(root, &["retry", "7"]), 1, &["nothing called 7 waits", "quarantine list"]);
    says(&quarantine(root, &["show", "g7"]), 1, &["nothing in quarantine is called g7"]);
    says(&quarantine(root, &["retry", "../1"]), 2, &["quarantine list"]);
    says(&quarantine(root, &["discard", "1"]), 2, &["--yes"]);
    says(&quarantine(root, &["retry", "1"]), 0, &["1 is over"]);
    assert_after(&tree);
    let ran = quarantine(root, &["restore", "g1", "--json"]);
    let restored = &ran.objects[0];
    assert_eq!((ran.code, &restored["standing"], &restored["left"]), (0, &"ended".into(), &Value::Array(Vec::new())));
    assert!(restored["restored"].as_array().unwrap().contains(&serde_json::json!({ "path": "a" })), "{restored}");
    assert_eq!(read(&tree, "a"), "one");
    says(&quarantine(root, &["list"]), 0, &["nothing is in quarantine"]);
}

#[test]
fn what_still_waits_afterwards_is_told_by_76() {
    let tree = both();
    let root = tree.root();
    sql(&tree, "UPDATE journal_preimage SET record = x'00' WHERE path = CAST('c' AS BLOB)");
    says(&quarantine(root, &["retry", "g1"]), 76, &["g1 is still in quarantine"]);
    says(&quarantine(root, &["restore", "g1"]), 76, &["put in place", "a", "left", "c"]);
    assert_eq!((read(&tree, "a"), read(&tree, "c")), ("one".into(), "c changed".into()));
    says(&quarantine(root, &["keep-live", "g1"]), 0, &["g1 is over", "what is kept lies in", "quarantine/g1"]);
    says(&quarantine(root, &["list"]), 76, &["files", "g1"]);
    says(&quarantine(root, &["keep-live", "g1"]), 1, &["only what was kept of it is there"]);
    says(&quarantine(root, &["show", "g1"]), 0, &["displaced/a", "discard g1 --yes"]);
    says(&quarantine(root, &["discard", "g1", "--yes"]), 0, &["g1 is over"]);
    says(&quarantine(root, &["discard", "1", "--yes"]), 0, &["1 is over"]);
    says(&quarantine(root, &["list"]), 0, &["nothing is in quarantine"]);
    assert!(!tree.path(".journal/quarantine/g1").exists() && !tree.path(".journal/quarantine/1").exists());
    assert_eq!(read(&tree, "replaced"), "before");
}

#[test]
fn status_and_a_dry_run_name_what_resolves_it() {
    let tree = both();
    for args in [&["status"][..], &["recover", "--dry-run"], &["recover"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_journalctl-kb"));
        let output = command.args(args).arg("--root").arg(tree.root()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let named =
            if args == ["recover"] { &["quarantine list"][..] } else { &["quarantine show 1", "quarantine show g1"] };
        for command in named {
            assert!(said.contains(command), "{args:?} names {command}: {said}");
        }
    }
}
