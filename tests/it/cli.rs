//! `journalctl-kb`: the real binary on a real journal. Looking changes nothing and keeps nobody waiting, every verb
//! speaks to people and to programs, and the exit code says how it ended.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use journal_kb::{Begin, Journal};
use serde_json::Value;
use tempfile::TempDir;

mod blobs;
mod blobs_verify;
mod clocks;
mod exec;
mod guards;
mod locks;
mod locks_break;
mod log_follow;
mod looking;
mod outbox;
mod overlay;
mod overlay_conflicts;
mod overlay_database;
mod overlay_strange;
mod programs;
mod runs;

/// The verbs that only look.
const READING: [&[&str]; 15] = [
    &["status"],
    &["log"],
    &["show", "1"],
    &["locks"],
    &["runs"],
    &["runs", "show", "sync"],
    &["outbox"],
    &["outbox", "show", "2097152"],
    &["blobs"],
    &["blobs", "show", "a blob"],
    &["blobs", "verify"],
    &["blobs", "sweep", "--dry-run"],
    &["followers"],
    &["recover", "--dry-run"],
    &["quarantine"],
];

/// A command line, without the terminal's habits of whoever runs the tests.
fn cli(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_journalctl-kb"));
    command.args(args).current_dir("/").stdin(Stdio::null());
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command
}

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ran {
    #[track_caller]
    fn code(self, want: i32) -> Self {
        assert_eq!(self.code, Some(want), "{self:?}");
        let (clean, complaint) = (self.err.is_empty(), self.err.starts_with("journalctl-kb: "));
        assert!(if want == 0 { clean } else { complaint }, "{self:?}");
        self
    }

    /// One object a line.
    #[track_caller]
    fn json(&self) -> Vec<Value> {
        let objects: Vec<Value> = self.out.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        assert!(objects.iter().all(Value::is_object), "{self:?}");
        objects
    }

    #[track_caller]
    fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.out.contains(word) || self.err.contains(word), "{word:?} in {self:?}");
        }
        self
    }
}

fn run(args: &[&str]) -> Ran {
    cli(args).output().expect("the command runs").into()
}

fn run_in(dir: &Path, args: &[&str]) -> Ran {
    cli(args).current_dir(dir).output().expect("the command runs").into()
}

/// Runs a verb on a root.
fn at(root: &Path, args: &[&str]) -> Ran {
    let mut command = cli(args);
    command.arg("--root").arg(root);
    command.output().expect("the command runs").into()
}

/// A root with three transactions, closed in good order.
fn three() -> TempDir {
    let dir = TempDir::new().expect("a directory");
    let journal = Journal::open(dir.path()).expect("open");
    fill(&journal);
    journal.close().expect("close");
    dir
}

fn fill(journal: &Journal) {
    journal.migrate(&["CREATE TABLE doc (path TEXT PRIMARY KEY) STRICT"]).expect("migrate");
    let mut txn = journal.begin_with(Begin::new("add one").key("one")).expect("begin");
    txn.write("pages/one.md", "# One\n").expect("write");
    txn.write("index.md", "one\n").expect("write");
    txn.sql(|rows| rows.execute("INSERT INTO doc VALUES ('pages/one.md')", ()).map(drop)).expect("sql");
    txn.commit().expect("commit");
    let mut txn = journal.begin("evil \u{1b}[31mred\nline").expect("begin");
    txn.write("index.md", "one\ntwo\n").expect("write");
    txn.write(Path::new(std::ffi::OsStr::from_bytes(b"caf\xe9.md")), "latin\n").expect("write");
    txn.send("evil \u{1b}[31mred\nline", "\u{1b}[2J", "\u{9b}31m").expect("send");
    txn.commit().expect("commit");
    journal.follower("evil \u{1b}[31mred\nline").expect("a follower").advance(1.into()).expect("advance");
    blobs::seal(journal, Some("a blob"), &vec![1; blobs::LARGE]);
    blobs::seal(journal, None, b"small");
    let run = crate::runs::running(journal.run("sync", "1"));
    run.record("evil \u{1b}[31mred\nline").expect("recorded");
    let _ = run.stop("evil \u{1b}[31mred\nline").expect("stopped");
    let mut txn = journal.begin("move one").expect("begin");
    txn.rename("pages/one.md", "pages/first.md").expect("rename");
    txn.commit().expect("commit");
}

type Picture = BTreeMap<PathBuf, (u64, u32, i64, i64, Vec<u8>)>;

/// Everything below a directory, byte for byte, with inodes, modes and times of modification.
fn picture(dir: &Path) -> Picture {
    let mut picture = BTreeMap::new();
    for entry in walkdir::WalkDir::new(dir) {
        let entry = entry.expect("an entry");
        let meta = entry.metadata().expect("metadata");
        let bytes = if meta.is_file() { fs::read(entry.path()).expect("a file") } else { Vec::new() };
        let path = entry.path().strip_prefix(dir).expect("below").to_owned();
        picture.insert(path, (meta.ino(), meta.mode(), meta.mtime(), meta.mtime_nsec(), bytes));
    }
    picture
}

/// The same without the engine's own directory.
fn picture_of_tree(dir: &Path) -> Picture {
    let mut picture = picture(dir);
    picture.retain(|path, _| !path.starts_with(".journal"));
    picture
}

/// A copy of a root as it is at this moment: with nobody at work in it, what a crash leaves.
fn crash_copy(root: &Path) -> TempDir {
    let copy = TempDir::new().expect("a directory");
    let status = Command::new("cp").arg("-a").arg(root.join(".")).arg(copy.path()).status().expect("cp");
    assert!(status.success());
    copy
}

#[test]
fn init_makes_a_journal_once_and_says_so() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path().join("new/kb");
    let name = root.to_str().expect("a name");
    run(&["init", name]).code(0).says(&["made a journal", name]);
    assert!(root.join(".journal/journal.db").is_file());
    run(&["init", name]).code(0).says(&["already", name]);
    let again = run(&["--json", "init", name]).code(0).json();
    assert_eq!(again[0]["created"], false, "{again:?}");
    assert_eq!(again[0]["root"], name);

    let other = dir.path().join("other");
    fs::create_dir(&other).expect("mkdir");
    let made = run_in(&other, &["init", "--json"]).code(0).json();
    assert_eq!(made[0]["created"], true, "{made:?}");
    assert!(other.join(".journal").is_dir());
    run(&["init", name, "--root", name]).code(2).says(&["journalctl-kb: ", "--help"]);

    fs::write(dir.path().join("file"), "").expect("write");
    at(&dir.path().join("file"), &["init"]).code(1).says(&["not a directory"]);
}

#[test]
fn the_log_is_newest_first_and_can_be_cut() {
    let dir = three();
    let log = at(dir.path(), &["log", "--json"]).code(0).json();
    let ids: Vec<_> = log.iter().map(|txn| txn["id"].as_i64()).collect();
    assert_eq!(ids, [Some(3), Some(2), Some(1)]);
    let first = &log[2];
    assert_eq!(
        (&first["state"], &first["label"], &first["key"], &first["lock"], &first["changes"], &first["ran_sql"]),
        (&"settled".into(), &"add one".into(), &"one".into(), &"main".into(), &3.into(), &true.into())
    );
    assert_eq!(first["bytes"], 10);
    assert!(first["committed_ms"].as_i64() >= first["began_ms"].as_i64());

    let text = at(dir.path(), &["log"]).code(0).says(&["TXN", "STATE", "settled", "add one", "move one"]);
    assert_eq!(text.out.lines().count(), 4, "a label cannot break a line: {text:?}");
    assert_eq!(at(dir.path(), &["log", "-n", "1", "--json"]).code(0).json().len(), 1);
    assert_eq!(at(dir.path(), &["log", "-n", "0", "--json"]).code(0).json().len(), 3);
    for since in ["1h", "2 days", "yesterday", "2020-01-01", "2020-01-01T00:00:00Z", "2020-01-01 12:00"] {
        assert_eq!(at(dir.path(), &["log", "--since", since, "--json"]).code(0).json().len(), 3, "{since}");
    }
    at(dir.path(), &["log", "--since", "9000-01-01"]).code(0).says(&["no transactions since then"]);
    assert!(at(dir.path(), &["log", "--since", "9000-01-01", "--json"]).code(0).out.is_empty());
    at(dir.path(), &["log", "--since", "soon"]).code(2).says(&["journalctl-kb: ", "--since", "2h"]);
}

#[test]
fn show_tells_what_a_transaction_did_to_which_path() {
    let dir = three();
    at(dir.path(), &["show", "1"]).code(0).says(&[
        "transaction 1",
        "add one",
        "key",
        "pages/one.md",
        "created",
        "index.md",
    ]);
    let one = &at(dir.path(), &["show", "1", "--json"]).code(0).json()[0];
    let paths = one["paths"].as_array().expect("paths");
    let page = paths.iter().find(|path| path["path"] == "pages/one.md").expect("the page");
    assert_eq!((&page["kind"], &page["bytes"]), (&"created".into(), &6.into()));
    assert_eq!(page["hash"].as_str().expect("a hash"), blake3::hash(b"# One\n").to_hex().as_str());
    assert_eq!(one["redo"], Value::Array(vec![]), "settled: nothing is left to redo");

    let two = &at(dir.path(), &["show", "2", "--json"]).code(0).json()[0];
    let paths = two["paths"].as_array().expect("paths");
    let index = paths.iter().find(|path| path["path"] == "index.md").expect("the index");
    assert_eq!((&index["kind"], &index["bytes"], &index["old_bytes"]), (&"replaced".into(), &8.into(), &4.into()));
    assert!(index.get("path_hex").is_none());
    let latin = paths.iter().find(|path| path["path_hex"] == "636166e92e6d64").expect("a name that is not UTF-8");
    assert_eq!(latin["path"], "caf\u{fffd}.md");
    let text = at(dir.path(), &["show", "2"]).code(0);
    assert!(!text.out.contains('\u{1b}'), "{text:?}");

    let three = at(dir.path(), &["show", "3"]).code(0).says(&["pages/first.md", "pages/one.md"]);
    assert!(three.out.contains('→'), "{three:?}");
    let three = &at(dir.path(), &["show", "3", "--json"]).code(0).json()[0];
    assert_eq!(three["paths"][0]["from"], "pages/one.md");
}

#[test]
fn the_root_is_named_before_or_after_the_verb_or_found_from_below() {
    let dir = three();
    let root = dir.path().to_str().expect("a name");
    let below = dir.path().join("pages/deep/er");
    fs::create_dir_all(&below).expect("mkdir");
    for verb in READING {
        let before = run(&[&["--root", root][..], verb].concat()).code(0);
        let after = run(&[verb, &["--root", root]].concat()).code(0);
        let found = run_in(&below, verb).code(0);
        // The others say how long ago things were.
        if verb == ["log"] {
            assert_eq!((&before.out, &before.out), (&after.out, &found.out));
        }
        for args in [[&["--json"][..], verb].concat(), [verb, &["--json"]].concat()] {
            let objects = run_in(&below, &args).code(0).json().len();
            // Where nothing is left to recover, a plan has no steps, and nothing is in quarantine.
            assert_eq!(objects == 0, matches!(verb[0], "recover" | "quarantine"), "{args:?}");
        }
    }
    let status = &run_in(&below, &["status", "--json"]).code(0).json()[0];
    assert_eq!(Path::new(status["root"].as_str().expect("a root")), fs::canonicalize(dir.path()).expect("canonical"));
    // An inner journal is nearer.
    run_in(&below, &["init"]).code(0);
    assert_eq!(run_in(&below, &["log", "--json"]).code(0).json().len(), 0);
    run_in(&below, &["log"]).code(0).says(&["no transactions yet"]);
    run_in(&below, &["locks"]).code(0).says(&["no lock was taken yet"]);
}

#[test]
fn errors_say_what_to_do_and_have_their_codes() {
    let dir = three();
    let empty = TempDir::new().expect("a directory");
    for verb in
        [&["status"][..], &["log"], &["show", "1"], &["locks"], &["recover"], &["recover", "--dry-run"], &["settle"]]
    {
        run_in(empty.path(), verb).code(1).says(&["journalctl-kb: ", "journalctl-kb init"]);
        at(empty.path(), verb).code(1).says(&["journalctl-kb: ", "journalctl-kb init"]);
        at(&empty.path().join("none"), verb).code(1).says(&["journalctl-kb: ", "does not exist"]);
        at(&dir.path().join("index.md"), verb).code(1).says(&["journalctl-kb: ", "not a directory"]);
    }
    assert_eq!(picture(empty.path()).len(), 1, "nothing was made");
    at(dir.path(), &["show", "99"]).code(1).says(&["no transaction 99", "journalctl-kb log"]);
    for usage in
        [&["show"][..], &["show", "x"], &["show", "0"], &["frobnicate"], &["log", "-n", "x"], &["status", "--bogus"]]
    {
        at(dir.path(), usage).code(2).says(&["journalctl-kb: "]);
    }
    assert_eq!(run(&[]).code, Some(2));
    run(&["--version"]).code(0).says(&[env!("CARGO_PKG_VERSION")]);
    run(&["--help"]).code(0).says(&["Examples:", "Exit codes:"]);
    for verb in ["init", "status", "log", "show", "locks", "runs", "outbox", "blobs", "followers", "recover", "settle"]
    {
        run(&[verb, "--help"]).code(0).says(&["Example", "JSON:", "--root"]);
    }

    fs::create_dir(empty.path().join(".journal")).expect("mkdir");
    fs::write(empty.path().join(".journal/journal.db"), "no database at all ".repeat(100)).expect("write");
    at(empty.path(), &["status"]).code(1).says(&["not a SQLite database"]);
    // Newer than this version.
    sql(dir.path(), "UPDATE journal_meta SET schema = 1000");
    let before = picture(dir.path());
    for verb in READING {
        at(dir.path(), verb).code(1).says(&["1000", "newer"]);
    }
    assert!(picture(dir.path()) == before, "looking at a newer journal changed it");
}

/// Changes the database behind the engine's back.
fn sql(root: &Path, sql: &str) {
    let database = journal_kb::rusqlite::Connection::open(root.join(".journal/journal.db")).expect("the database");
    database.execute_batch(sql).expect(sql);
}

#[test]
fn what_a_crash_left_is_shown_planned_and_recovered() {
    let dir = three();
    let journal = Journal::options().settle_after(Duration::from_secs(600)).open(dir.path()).expect("open");
    let mut txn = journal.begin("last words").expect("begin");
    txn.write("last.md", "last\n").expect("write");
    txn.commit().expect("commit");
    let crashed = crash_copy(dir.path());
    drop(journal);
    // As if the power had gone before the tree reached the disk.
    fs::remove_file(crashed.path().join("last.md")).expect("remove");
    let root = crashed.path();
    let status = at(root, &["status"]);
    assert_eq!(status.code, Some(1), "{status:?}");
    status.says(&["needs recovery", "journalctl-kb recover", "last words"]);
    let status = &at(root, &["status", "--json"]).json()[0];
    assert_eq!(status["health"], "needs_recovery", "{status}");
    assert_eq!(status["unsettled"]["transactions"], 1, "{status}");
    assert!(status["sessions"][0]["alive"] == false, "{status}");

    let (tree, log) = (picture_of_tree(root), at(root, &["log", "--json"]).out);
    let plan = at(root, &["recover", "--dry-run", "--json"]);
    assert_eq!(plan.code, Some(1), "{plan:?}");
    let step = &plan.json()[0];
    assert_eq!((&step["txn"], &step["path"]), (&4.into(), &"last.md".into()), "{step}");
    assert!(step["action"].is_string() && step["reason"].is_string(), "{step}");
    let text = at(root, &["recover", "--dry-run"]).says(&["last.md"]);
    assert_eq!(text.code, Some(1), "{text:?}");
    assert!(picture_of_tree(root) == tree, "a dry run changed the tree");
    assert_eq!(at(root, &["log", "--json"]).out, log, "a dry run changed a transaction");

    let done = at(root, &["recover"]).code(0);
    assert_eq!(fs::read(root.join("last.md")).expect("the file is back"), b"last\n", "{done:?}");
    at(root, &["recover"]).code(0).says(&["nothing to recover"]);
    at(root, &["recover", "--dry-run"]).code(0).says(&["nothing to recover"]);
    let status = &at(root, &["status", "--json"]).code(0).json()[0];
    assert_eq!((&status["health"], &status["unsettled"]["transactions"]), (&"ok".into(), &0.into()), "{status}");
    let again = &at(root, &["recover", "--json"]).code(0).json()[0];
    for count in ["applied", "settled", "rolled_back", "moved_aside", "pending", "quarantined", "swept"] {
        assert_eq!(again[count], 0, "{again}");
    }
    assert_eq!(again["events"], Value::Array(vec![]), "{again}");
}

#[test]
fn recovery_names_what_it_moved_aside() {
    let dir = three();
    let journal = Journal::options().settle_after(Duration::from_secs(600)).open(dir.path()).expect("open");
    journal.transact(|txn| txn.write("index.md", "three\n")).expect("commit");
    let crashed = crash_copy(dir.path());
    drop(journal);
    // Somebody's work on a path of which nobody can tell any more whether it came before or after.
    fs::write(crashed.path().join("index.md"), "by hand\n").expect("write");
    at(crashed.path(), &["recover"]).code(0).says(&["index.md", "txn 4", "quarantine"]);
    assert_eq!(fs::read(crashed.path().join("index.md")).expect("the file"), b"three\n");
    let status = at(crashed.path(), &["status"]).code(0).says(&["Recent warnings", "quarantine", "index.md"]);
    assert!(status.out.contains("1 entry") || status.out.contains("2 entries"), "{status:?}");
}

#[test]
fn the_parts_may_lie_elsewhere() {
    let dir = TempDir::new().expect("a directory");
    let (root, state) = (dir.path().join("root"), dir.path().join("state"));
    fs::create_dir(&root).expect("mkdir");
    let parts = ["--state-dir", "state", "--root", "root"];
    let with = |verb: &[&str]| run_in(dir.path(), &[verb, &parts].concat());
    with(&["init"]).code(0).says(&["made a journal"]);
    assert!(state.join("journal.db").is_file() && !root.join(".journal").exists());
    let journal = Journal::options().state_dir(&state).open(&root).expect("open");
    journal.transact(|txn| txn.write("a.md", "a")).expect("commit");
    journal.close().expect("close");
    with(&["status"]).code(0).says(&["all is well"]);
    assert_eq!(with(&["log", "--json"]).code(0).json().len(), 1);
    with(&["settle"]).code(0);
    with(&["recover"]).code(0);
    with(&["recover", "--dry-run"]).code(0).says(&["nothing to recover"]);
    at(&root, &["status"]).code(1).says(&["has no journal"]);
}

#[test]
fn settle_is_a_barrier_and_counts() {
    let dir = three();
    at(dir.path(), &["settle"]).code(0).says(&["nothing to settle"]);
    let none = &at(dir.path(), &["settle", "--json"]).code(0).json()[0];
    assert_eq!(none, &serde_json::json!({ "transactions": 0, "paths": 0 }));
    let journal = Journal::open(dir.path()).expect("open");
    journal.transact(|txn| txn.write("a.md", "a")).expect("commit");
    // Also while another process has the journal open.
    at(dir.path(), &["settle"]).code(0).says(&["the tree is durable"]);
    let status = &at(dir.path(), &["status", "--json"]).code(0).json()[0];
    assert_eq!(status["unsettled"]["transactions"], 0, "{status}");
}

#[test]
fn status_tells_what_needs_a_person() {
    let dir = three();
    at(dir.path(), &["status"]).code(0).says(&["all is well", "3 settled", "move one"]);
    fs::write(dir.path().join(".journal/sync-failed"), "").expect("write");
    let failed = at(dir.path(), &["status"]).says(&["sync", "journalctl-kb recover"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    sql(dir.path(), "UPDATE journal_txn SET state = 'pending' WHERE id = 3");
    let pending = at(dir.path(), &["status"]).says(&["pending", "journalctl-kb show 3", "pages/first.md"]);
    assert_eq!(pending.code, Some(1), "{pending:?}");
    sql(dir.path(), "UPDATE journal_txn SET state = 'quarantined' WHERE id = 2");
    let quarantined = at(dir.path(), &["status"]).says(&["a person is needed", "journalctl-kb quarantine show 2"]);
    assert_eq!(quarantined.code, Some(76), "{quarantined:?}");
    let status = &at(dir.path(), &["status", "--json"]).json()[0];
    assert_eq!(status["health"], "quarantined", "{status}");
    assert_eq!(status["quarantined"][0]["id"], 2, "{status}");
    assert_eq!(status["sync_failed"], true, "{status}");
    assert_eq!(status["transactions"]["total"], 3, "{status}");
    let recovered = at(dir.path(), &["recover"]).says(&["1 transaction in quarantine"]);
    assert_eq!(recovered.code, Some(76), "{recovered:?}");
}
