//! What the command tells of guards: at work, dead, given up, rolled back; and of a journal that has never heard of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use journal_kb::{Error, Guard, Journal};
use serde_json::{Value, json};

use super::{READING, at, picture, picture_of_tree, sql};
use crate::support::{Tree, child, child_root, wait_for_word};

fn tree() -> Tree {
    let tree = Tree::new();
    for (path, content) in [("wiki/a", "one"), ("wiki/b", "two!"), ("wiki/gone", "three"), ("beside", "beside")] {
        tree.put(path, content);
    }
    tree
}

/// Replaces, creates and removes.
fn damage(root: &Path) {
    fs::write(root.join("wiki/a.tmp"), "other bytes").expect("write");
    fs::rename(root.join("wiki/a.tmp"), root.join("wiki/a")).expect("rename");
    fs::write(root.join("wiki/new"), "new").expect("write");
    fs::remove_file(root.join("wiki/gone")).expect("remove");
}

const PATHS: [&str; 4] = ["wiki/a", "wiki/b", "wiki/gone", "wiki/new"];

fn status(root: &Path) -> Value {
    at(root, &["status", "--json"]).json().remove(0)
}

/// A process that guards something, has damaged it, and waits to be killed.
struct Guarding(Child);

impl Guarding {
    fn start(root: &Path, what: &str) -> Self {
        let mut process = child("cli::guards::guarding_child", root).env("GUARD", what).spawn().expect("a child");
        wait_for_word(&mut process, "damage done");
        Self(process)
    }

    fn kill(mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

#[test]
fn guarding_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).expect("open");
    let mut txn = journal.begin("to be killed").expect("begin");
    match std::env::var("GUARD").expect("what to guard").as_str() {
        "paths" => txn.guard_paths(PATHS),
        "replacing" => txn.guard_with(Guard::tree("wiki").replacing()),
        _ => txn.guard("wiki"),
    }
    .expect("guard");
    damage(&root);
    println!("damage done");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_rolled_back_transaction_is_told_as_one() {
    let tree = tree();
    let journal = tree.journal();
    journal.transact(|txn| txn.write("beside", "committed")).expect("commit");
    let mut txn = journal.begin("reindex").expect("begin");
    txn.guard_paths(PATHS).expect("guard");
    damage(tree.root());
    txn.rollback().expect("rollback");
    journal.close().expect("close");

    let log = at(tree.root(), &["log"]).code(0).says(&["rolled back", "reindex"]);
    assert!(!log.out.contains("rolled_back"), "{log:?}");
    let log = at(tree.root(), &["log", "--json"]).code(0).json();
    assert_eq!((&log[0]["state"], &log[1]["state"]), (&"rolled_back".into(), &"settled".into()));
    let status = status(tree.root());
    let counts = &status["transactions"];
    assert_eq!((&counts["total"], &counts["settled"], &counts["rolled_back"]), (&2.into(), &1.into(), &1.into()));
    assert_eq!((&status["last_commit"]["id"], &status["health"]), (&1.into(), &"ok".into()), "{status}");
    at(tree.root(), &["status"]).code(0).says(&["1 settled, 1 rolled back"]);

    let shown = at(tree.root(), &["show", "2"]).code(0);
    shown.says(&[
        "transaction 2 · rolled back",
        "put back",
        "3 paths",
        "kept in history",
        "2 displaced versions with 14 B",
    ]);
    let shown = at(tree.root(), &["show", "2", "--json"]).code(0).json().remove(0);
    let of = |path: &str| {
        let paths = shown["paths"].as_array().expect("paths");
        paths.iter().find(|change| change["path"] == path).unwrap_or_else(|| panic!("no {path}")).clone()
    };
    for (path, kind, bytes, old, kept) in [
        ("wiki/a", "replaced", json!(11), json!(3), Some("other bytes")),
        ("wiki/new", "created", json!(3), Value::Null, Some("new")),
        ("wiki/gone", "removed", Value::Null, json!(5), None),
    ] {
        let change = of(path);
        assert_eq!((&change["kind"], &change["bytes"], &change["old_bytes"]), (&kind.into(), &bytes, &old), "{change}");
        assert_eq!(change["has_old"], kept.is_some(), "{change}");
        // What was displaced can be had by that name.
        let found = change["kept_as"]
            .as_str()
            .map(|name| fs::read_to_string(tree.path(".journal/history").join(name)).expect("the displaced version"));
        assert_eq!(found.as_deref(), kept, "{change}");
    }
}

#[test]
fn what_was_done_to_guarded_paths_is_shown_with_sizes() {
    let tree = tree();
    let journal = tree.journal();
    let mut txn = journal.begin("reindex").expect("begin");
    txn.guard("wiki").expect("guard");
    damage(tree.root());
    txn.write("beside", "staged, beside it").expect("write");
    txn.commit().expect("commit");
    journal.close().expect("close");
    let shown = at(tree.root(), &["show", "1"]).code(0);
    let rows: Vec<Vec<&str>> = shown.out.lines().map(|line| line.split_whitespace().collect()).collect();
    for (change, size, before, path) in [
        ("replaced", "11", "3", "wiki/a"),
        ("removed", "-", "5", "wiki/gone"),
        ("created", "3", "-", "wiki/new"),
        ("replaced", "17", "6", "beside"),
    ] {
        let row = rows.iter().find(|row| row.last() == Some(&path)).unwrap_or_else(|| panic!("{path} in {shown:?}"));
        let numbers: Vec<_> = row.iter().filter(|word| **word != "B").take(3).copied().collect();
        assert_eq!(numbers, [change, size, before], "{row:?}");
    }
    shown.says(&["4 paths with 31 B"]);
}

#[test]
fn a_guard_is_at_work_and_then_dead_and_then_put_back() {
    for what in ["paths", "tree", "replacing"] {
        let tree = tree();
        let root = tree.root();
        tree.journal().close().expect("close");
        let before = picture_of_tree(root);
        let guarding = Guarding::start(root, what);
        let status = status(root);
        let guard = &status["guards"][0];
        assert_eq!((&status["health"], &status["advice"]), (&"ok".into(), &json!([])), "{status}");
        let expected = json!({ "label": "to be killed", "lock": "main", "pid": guarding.0.id(), "attempts": 0,
            "alive": true, "held": true, "quarantined": false, "reason": null });
        for (name, value) in expected.as_object().expect("an object") {
            assert_eq!(&guard[name], value, "{name} in {guard}");
        }
        let (paths, trees) = match what {
            "paths" => (4, json!([])),
            "tree" => (0, json!([{ "path": "wiki", "writers": "any", "ready": true }])),
            _ => (0, json!([{ "path": "wiki", "writers": "replacing", "ready": true }])),
        };
        assert_eq!((&guard["paths"], &guard["trees"]), (&paths.into(), &trees), "{guard}");
        at(root, &["status"]).code(0).says(&[
            "guard",
            "main",
            "to be killed",
            if what == "paths" { "4 paths" } else { "wiki" },
        ]);
        at(root, &["recover", "--dry-run"]).code(0).says(&["nothing to recover"]);
        guarding.kill();

        let dead = at(root, &["status"]).says(&["needs recovery", "which died", "journalctl-kb recover"]);
        assert_eq!(dead.code, Some(1), "{dead:?}");
        let status = self::status(root);
        assert_eq!(
            (&status["health"], &status["guards"][0]["alive"]),
            (&"needs_recovery".into(), &false.into()),
            "{status}"
        );
        let (all, text) = (picture(root), at(root, &["recover", "--dry-run"]));
        assert_eq!(text.code, Some(1), "{text:?}");
        text.says(&["wiki/a", "to be killed"]);
        let plan = at(root, &["recover", "--dry-run", "--json"]).json();
        let mut steps: Vec<_> = plan.iter().map(|step| (step["path"].as_str(), step["action"].as_str())).collect();
        steps.sort_unstable();
        let expected = [
            (Some("wiki/a"), Some("put back the old version, and keep what is there")),
            (Some("wiki/gone"), Some("put back the old version")),
            (Some("wiki/new"), Some("take away what was made, and keep it")),
        ];
        assert_eq!(steps, expected, "{what}");
        assert!(plan.iter().all(|step| step["txn"] == Value::Null), "{plan:?}");
        assert!(picture(root) == all, "a dry run changed something");

        let done = at(root, &["recover", "--json"]).code(0).json().remove(0);
        assert_eq!(
            (&done["rolled_back"], &done["applied"], &done["pending"]),
            (&1.into(), &0.into(), &0.into()),
            "{done}"
        );
        let after = picture_of_tree(root);
        let without_inode =
            |(path, (_, mode, seconds, nanoseconds, bytes))| (path, (mode, seconds, nanoseconds, bytes));
        assert!(after.into_iter().map(without_inode).eq(before.into_iter().map(without_inode)), "{what}");
        at(root, &["status"]).code(0).says(&["all is well", "1 rolled back"]);
        at(root, &["recover", "--dry-run"]).code(0).says(&["nothing to recover"]);
        at(root, &["recover"]).code(0).says(&["nothing to recover"]);
    }
}

#[test]
fn recover_says_in_words_that_it_put_back() {
    let tree = tree();
    Guarding::start(tree.root(), "paths").kill();
    at(tree.root(), &["recover"]).code(0).says(&["1 transaction that had died rolled back"]);
}

#[test]
fn a_dead_guard_that_changed_nothing_is_a_step_too() {
    let tree = tree();
    Guarding::start(tree.root(), "paths").kill();
    // By hand, with the very files of before where they were replaced.
    sql(tree.root(), "DELETE FROM journal_preimage WHERE path <> CAST('wiki/b' AS BLOB)");
    let plan = at(tree.root(), &["recover", "--dry-run", "--json"]).json();
    assert_eq!(
        (plan.len(), &plan[0]["path"], &plan[0]["action"]),
        (1, &".".into(), &"end the guard".into()),
        "{plan:?}"
    );
}

#[test]
fn bytes_that_are_gone_are_told_before_and_attributes_too() {
    let tree = tree();
    Guarding::start(tree.root(), "replacing").kill();
    fs::write(tree.path("wiki/b"), "in place").expect("write");
    fs::set_permissions(tree.path("wiki"), fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::create_dir(tree.path("wiki/dir")).expect("mkdir");
    let plan = at(tree.root(), &["recover", "--dry-run", "--json"]).json();
    let action =
        |path: &str| plan.iter().find(|step| step["path"] == path).map(|step| step["action"].as_str().expect("words"));
    assert!(action("wiki/b").is_some_and(|action| action.starts_with("leave it")), "{plan:?}");
    assert!(action("wiki").is_some_and(|action| action.contains("mode")), "{plan:?}");
    assert!(action("wiki/dir").is_some_and(|action| action.starts_with("take away")), "{plan:?}");
    at(tree.root(), &["recover"]).code(0).says(&["wiki/b", "written to in place"]);
    assert_eq!(fs::read(tree.path("wiki/b")).expect("read"), b"in place");
}

#[test]
fn a_guard_in_quarantine_needs_a_person_and_everything_is_kept() {
    let tree = tree();
    let root = tree.root();
    Guarding::start(root, "paths").kill();
    sql(root, "UPDATE journal_preimage SET record = x'00' WHERE path = CAST('wiki/b' AS BLOB)");
    let plan = at(root, &["recover", "--dry-run"]).says(&["wiki/b", "quarantine"]);
    assert_eq!(plan.code, Some(1), "{plan:?}");
    let given_up = at(root, &["recover"]).says(&["1 transaction in quarantine", "cannot be read"]);
    assert_eq!(given_up.code, Some(76), "{given_up:?}");
    assert_eq!(fs::read(root.join("wiki/a")).expect("read"), b"other bytes", "it is left as it was found");
    let told =
        at(root, &["status"]).says(&["a person is needed", "in quarantine", "quarantine show g1", "cannot be read"]);
    assert_eq!(told.code, Some(76), "{told:?}");
    let status = status(root);
    let guard = &status["guards"][0];
    assert_eq!((&status["health"], &guard["quarantined"]), (&"quarantined".into(), &true.into()), "{status}");
    assert!(guard["reason"].as_str().is_some_and(|reason| reason.contains("cannot be read")), "{guard}");
    // What the advice shows: where the old version is.
    assert_eq!(status["advice"][0]["command"], "journalctl-kb quarantine show g1", "{status}");
    let plan = at(root, &["recover", "--dry-run", "--json"]).json();
    let step = plan.iter().find(|step| step["path"] == "wiki/a").expect("a step");
    assert_eq!(step["action"], "leave", "{step}");
    let kept = step["reason"].as_str().and_then(|reason| reason.split("its old version is ").nth(1)).expect("a place");
    assert_eq!(fs::read(kept).expect("the old version"), b"one");
    let again = at(root, &["recover", "--json"]);
    assert_eq!((again.code, &again.json()[0]["quarantined"]), (Some(76), &1.into()), "{again:?}");
}

#[test]
fn a_live_session_that_could_not_put_back_is_told() {
    let tree = tree();
    let journal = tree.journal();
    let mut txn = journal.begin("").expect("begin");
    txn.guard("wiki").expect("guard");
    for dir in fs::read_dir(tree.path(".journal/baseline")).expect("a baseline") {
        fs::remove_file(dir.expect("a mirror").path().join("a")).expect("remove");
    }
    damage(tree.root());
    assert!(matches!(txn.rollback(), Err(Error::Corrupt { .. })));
    let status = status(tree.root());
    let guard = &status["guards"][0];
    assert_eq!((&guard["alive"], &guard["held"]), (&true.into(), &false.into()), "{guard}");
    assert_eq!(status["health"], "needs_recovery", "{status}");
    at(tree.root(), &["status"]).says(&["is over: to be put back"]);
}

#[test]
fn a_journal_of_the_first_schema_is_read_as_it_is() {
    let tree = tree();
    for part in ["locks", "sessions", "stage", "history", "quarantine"] {
        fs::create_dir_all(tree.path(".journal").join(part)).expect("mkdir");
    }
    let database = journal_kb::rusqlite::Connection::open(tree.path(".journal/journal.db")).expect("a database");
    database.execute_batch(include_str!("../../fixtures/schema-v1.sql")).expect("the first schema");
    database
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             INSERT INTO journal_meta (id, schema, created_ms) VALUES (1, 1, 0);
             INSERT INTO journal_txn (state, lock, fence, session, label, changes, began_ms, committed_ms)
               VALUES ('settled', 'main', 1, zeroblob(16), 'of old', 1, 0, 1);
             INSERT INTO journal_change (txn, n, path, kind, size) VALUES (1, 0, CAST('wiki/a' AS BLOB), 'created', 3);",
        )
        .expect("rows");
    drop(database);
    let before = picture(tree.root());
    for verb in READING {
        for args in [verb.to_vec(), [verb, &["--json"]].concat()] {
            // No job has run in it, no message waits, and it has no blobs.
            let asks_for_one = matches!(verb, ["runs" | "outbox" | "blobs", "show", _]);
            at(tree.root(), &args).code(i32::from(asks_for_one));
        }
    }
    at(tree.root(), &["log"]).code(0).says(&["of old", "settled"]);
    at(tree.root(), &["show", "1"]).code(0).says(&["wiki/a", "created"]);
    let status = status(tree.root());
    assert_eq!(
        (&status["schema"], &status["guards"], &status["last_commit"]["id"]),
        (&1.into(), &json!([]), &1.into())
    );
    assert_eq!((&status["transactions"]["settled"], &status["transactions"]["rolled_back"]), (&1.into(), &0.into()));
    assert!(picture(tree.root()) == before, "looking migrated it");
}
