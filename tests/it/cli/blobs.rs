//! `blobs`: which there are, who writes and reads them, what one says, what nobody refers to.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use journal_kb::{BlobId, BlobWriter, Journal, NewBlob};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::locks::{Started, WATCHDOG};
use super::{at, cli, picture, sql};
use crate::support::{child, child_root, wait_for_word};

/// More than stands in the database.
pub(super) const LARGE: usize = 300_000;

pub(super) fn begin(journal: &Journal, id: Option<&str>, content: &[u8]) -> BlobWriter {
    let new = id.map_or_else(NewBlob::new, |id| NewBlob::new().id(id));
    let mut blob = journal.blobs().create_with(new).expect("begun");
    blob.write_all(content).expect("written");
    blob
}

pub(super) fn seal(journal: &Journal, id: Option<&str>, content: &[u8]) -> BlobId {
    begin(journal, id, content).seal().expect("sealed")
}

/// All that is listed, and what it comes to.
fn list(root: &Path, words: &[&str]) -> (Vec<Value>, Value) {
    let mut lines = at(root, &[&["blobs", "--json"], words].concat()).code(0).json();
    let sums = lines.pop().expect("a summary");
    assert_eq!(sums["kind"], "summary", "{sums}");
    assert!(lines.iter().all(|line| line["kind"] == "blob"), "{lines:?}");
    (lines, sums)
}

fn show(root: &Path, id: &str) -> Value {
    at(root, &["blobs", "show", id, "--json"]).code(0).json().remove(0)
}

/// One field of each.
fn each<'v>(values: &'v [Value], field: &str) -> Vec<&'v Value> {
    values.iter().map(|value| &value[field]).collect()
}

/// The files of blobs that have come to where they stay.
pub(super) fn files(root: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(root.join(".journal/blobs")).expect("a directory");
    let mut files: Vec<_> = listed.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// The child: writes a blob, and dies of it.
#[test]
fn a_writer() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).expect("open");
    let _blob = begin(&journal, Some("dying"), &vec![1; 1 << 20]);
    println!("at work");
    // Nobody waits for a child for ever.
    std::thread::sleep(Duration::from_secs(2 * WATCHDOG));
    std::process::abort();
}

#[test]
fn blobs_are_told_with_who_writes_them_and_where_they_stand() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    at(root, &["init"]).code(0);
    at(root, &["blobs"]).code(0).says(&["no blobs yet"]);
    assert!(!at(root, &["status"]).code(0).out.contains("blobs"));
    let journal = Journal::open(root).expect("open");
    let (small, large) = (b"small".as_slice(), vec![7; LARGE]);
    let by_content = seal(&journal, None, &large);
    seal(&journal, None, &large);
    for (name, content) in [("a", small), ("b", &large), ("c", &large), ("gone", small)] {
        seal(&journal, Some(name), content);
    }
    journal.blobs().remove("gone").expect("removed");
    begin(&journal, Some("given up"), small).abort().expect("aborted");
    let writing = begin(&journal, Some("in hand"), &vec![0; 1 << 20]);
    let mut started = Started(child("cli::blobs::a_writer", root).spawn().expect("a child"));
    wait_for_word(&mut started.0, "at work");
    let other = started.0.id();

    let (blobs, sums) = list(root, &[]);
    let names = ["a", "b", "c", "dying", "given up", "in hand", by_content.as_str()];
    assert_eq!(each(&blobs, "id"), names, "by name, then by content");
    assert_eq!(
        each(&blobs, "state"),
        ["sealed", "sealed", "sealed", "writing", "aborted", "writing", "sealed"],
        "{blobs:?}"
    );
    let places = ["inline", "file", "file"].map(Value::from);
    assert_eq!(each(&blobs[..3], "place"), places.iter().collect::<Vec<_>>());
    assert_eq!((&blobs[6]["place"], &blobs[6]["by_content"]), (&json!("file"), &json!(true)));
    assert_eq!(each(&blobs, "same"), [1, 3, 3, 0, 0, 0, 3]);
    assert_eq!((&blobs[0]["bytes"], &blobs[1]["bytes"]), (&json!(5), &json!(LARGE)));
    // What it has written, but for what is in its buffer.
    assert!(blobs[3]["bytes"].as_u64() > Some(LARGE as u64), "{}", blobs[3]);
    assert_eq!((&blobs[3]["writer"]["pid"], &blobs[3]["writer"]["alive"]), (&json!(other), &json!(true)));
    assert_eq!(blobs[5]["writer"]["pid"], std::process::id(), "{}", blobs[5]);
    assert!(blobs[0]["began_ms"].as_i64() <= blobs[0]["ended_ms"].as_i64(), "{}", blobs[0]);
    assert_eq!((&blobs[3]["ended_ms"], &blobs[6]["began_ms"]), (&Value::Null, &Value::Null));
    let expected = json!({ "kind": "summary", "sealed": 4, "contents": 2, "bytes": LARGE + 5, "saved_bytes": 2 * LARGE,
        "writing": 2, "incomplete": 0, "aborted": 1, "removed": 1, "unwanted": 0, "unwanted_bytes": 0, "unwanted_read": 0,
        "exact": true });
    assert_eq!(sums, expected);
    let text = at(root, &["blobs"]).code(0);
    assert!(
        !text.out.contains("gone") && !text.out.contains(by_content.as_str()),
        "a hash is cut for people: {text:?}"
    );
    text.says(&[
        "given up",
        &format!("[{other}]"),
        "4 blobs in 293.0 KiB",
        "2 being written",
        &by_content.as_str()[..23],
    ]);
    at(root, &["status"]).code(0).says(&["4 blobs in 293.0 KiB", "1 aborted", "`journalctl-kb blobs verify`"]);
    let status = &at(root, &["status", "--json"]).code(0).json()[0];
    for (field, value) in expected.as_object().expect("an object").iter().filter(|(field, _)| *field != "kind") {
        assert_eq!(status["blobs"][field], *value, "{field}");
    }

    // By the kernel's word, before anybody has noted it.
    drop(started);
    let (dead, sums) = list(root, &["--state", "incomplete"]);
    assert_eq!((each(&dead, "id"), &dead[0]["writer"]["alive"]), (vec![&json!("dying")], &json!(false)));
    assert_eq!((&sums["writing"], &sums["incomplete"]), (&json!(1), &json!(1)));
    at(root, &["blobs"]).code(0).says(&["incomplete", &format!("[{other}], which died")]);
    at(root, &["blobs", "show", "dying"]).code(0).says(&["had left its writer", "which died"]);
    journal.recover().expect("recovered");
    let (dead, _) = list(root, &["--state", "incomplete"]);
    assert_eq!((each(&dead, "id"), &dead[0]["writer"]), (vec![&json!("dying")], &Value::Null));
    assert!(dead[0]["bytes"].as_u64() > Some(LARGE as u64), "{}", dead[0]);

    let of_state =
        |state: &str| each(&list(root, &["list", "--state", state]).0, "id").into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(of_state("writing"), ["in hand"]);
    assert_eq!(of_state("sealed"), ["a", "b", "c", by_content.as_str()]);
    assert_eq!((of_state("aborted"), of_state("removed")), (vec![json!("given up")], vec![json!("gone")]));
    assert_eq!(of_state("corrupt"), [] as [Value; 0]);
    at(root, &["blobs", "--state", "corrupt"]).code(0).says(&["no blob is corrupt"]);
    assert!(each(&list(root, &["--all"]).0, "id").contains(&&json!("gone")));
    assert_eq!(each(&list(root, &["-n", "1"]).0, "id"), ["a", by_content.as_str()]);
    at(root, &["blobs", "-n", "1"]).code(0).says(&["… and more with names; -n 0 lists them all"]);
    for usage in [&["--state", "odd"][..], &["-n", "1", "show", "a"], &["--all", "verify"], &["show"]] {
        at(root, &[&["blobs"], usage].concat()).code(2);
    }
    drop(writing);
}

#[test]
fn one_blob_is_shown_by_its_name_or_by_the_beginning_of_its_hash() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    let large = vec![3; LARGE];
    let id = seal(&journal, None, &large);
    for n in 0..25 {
        seal(&journal, Some(&format!("copy {n:02}")), &large);
    }
    journal.settle().expect("settled");
    let digits = id.as_str().strip_prefix("blake3:").expect("a hash");
    for name in [id.as_str(), &id.as_str()[..20], &digits[..9], &digits[..10].to_uppercase(), digits] {
        assert_eq!(show(root, name)["id"], id.as_str(), "{name}");
    }
    let shown = show(root, &digits[..12]);
    assert_eq!((&shown["hash"], &shown["times"], &shown["same"]), (&json!(digits), &json!(1), &json!(26)), "{shown}");
    assert_eq!((&shown["others"][0], &shown["more_others"]), (&json!("copy 00"), &json!(5)), "{shown}");
    assert_eq!(shown["others"].as_array().map(Vec::len), Some(20));
    let [file] = &files(root)[..] else { panic!("{:?}", files(root)) };
    let file = fs::canonicalize(file).expect("a file");
    assert_eq!((&shown["file"], &shown["found_bytes"]), (&json!(file), &json!(LARGE)), "{shown}");
    assert_eq!((&shown["damage"], &shown["readers"]), (&Value::Null, &json!([])), "{shown}");
    let named = show(root, "copy 07");
    assert_eq!(
        (&named["id"], &named["others"][0], &named["more_others"]),
        (&json!("copy 07"), &json!(id.as_str()), &json!(5))
    );
    assert!(!named["others"].as_array().expect("others").contains(&json!("copy 07")), "{named}");

    // Who reads it, by the kernel's word.
    let reader = journal.blobs().open(&id).expect("open");
    assert_eq!(show(root, &digits[..12])["readers"], json!([std::process::id()]));
    at(root, &["blobs", "show", &digits[..12]]).code(0).says(&[
        &format!("read by   process {}", std::process::id()),
        "file: /",
        "copy 00, ",
        ", and 5 more",
        &format!("journalctl-kb blobs verify blake3:{}", &digits[..16]),
    ]);
    // No blob by itself any more; and then nobody's.
    journal.blobs().remove(&id).expect("removed");
    assert_eq!((&show(root, id.as_str())["state"], &show(root, id.as_str())["times"]), (&json!("named"), &json!(0)));
    for n in 0..25 {
        journal.blobs().remove(format!("copy {n:02}")).expect("removed");
    }
    assert_eq!(show(root, "copy 07")["state"], "removed");
    journal.settle().expect("settled");
    let kept = show(root, id.as_str());
    assert_eq!((&kept["state"], &kept["readers"]), (&json!("unwanted"), &json!([std::process::id()])), "{kept}");
    assert_eq!(list(root, &[]).0, [] as [Value; 0], "it is no blob");
    at(root, &["blobs"]).code(0).says(&["no blobs but those that were removed; --all lists them"]);
    let (_, sums) = list(root, &[]);
    assert_eq!(
        (&sums["unwanted"], &sums["unwanted_bytes"], &sums["unwanted_read"]),
        (&json!(1), &json!(LARGE), &json!(1))
    );
    let words = ["1 file of removed blobs (293.0 KiB) still to go, 1 of them as somebody reads them"];
    at(root, &["status"]).code(0).says(&words);
    at(root, &["blobs", "sweep"]).code(0).says(&["nothing to sweep"]).says(&words);
    drop(reader);
    assert_eq!(list(root, &[]).1["unwanted_read"], 0);
    at(root, &["blobs", "sweep"]).code(0);
    assert_eq!(files(root), [] as [PathBuf; 0]);
    at(root, &["blobs", "show", id.as_str()]).code(1).says(&["no blob is called", "journalctl-kb blobs"]);

    // Of seventeen hashes two begin alike.
    let ids: Vec<_> = (0..17).map(|n: u8| seal(&journal, None, &[n])).collect();
    let first = |id: &BlobId| id.as_str().as_bytes()["blake3:".len()];
    let two = ids.iter().find(|id| ids.iter().filter(|other| first(other) == first(id)).count() > 1).expect("two");
    let digit = char::from(first(two)).to_string();
    at(root, &["blobs", "show", &digit]).code(1).says(&["several contents begin with", two.as_str()]);
    // A name comes first, whatever it looks like.
    seal(&journal, Some(&digit), b"named");
    assert_eq!(show(root, &digit)["id"], digit);
    for none in ["", "blake3:", "no such", "g"] {
        at(root, &["blobs", "show", none]).code(1);
    }
}

#[test]
fn a_sweep_says_what_nobody_refers_to_and_leaves_what_is_somebodys() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    let id = seal(&journal, None, &vec![5; LARGE]);
    journal.settle().expect("settled");
    at(root, &["blobs", "sweep", "--dry-run"]).code(0).says(&["nothing to sweep"]);
    let [file] = &files(root)[..] else { panic!() };
    let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
    let stray = file.with_file_name(format!("77.{}", name.split_once('.').expect("a number").1));
    fs::write(&stray, "stray").expect("a file");
    let theirs = ["1.notes", "2.a b", "README", "3.-1", "007.x-1", "é"].map(|name| file.with_file_name(name));
    theirs.iter().for_each(|path| fs::write(path, "mine").expect("a file"));
    let before = picture(root);
    let dry = at(root, &["blobs", "sweep", "--dry-run"]);
    assert_eq!(dry.code, Some(1), "{dry:?}");
    let path = fs::canonicalize(&stray).expect("a file");
    dry.says(&[&format!("would remove {} (5 B)", path.display()), "1 file (5 B) that nothing refers to"]);
    let dry = at(root, &["blobs", "sweep", "--dry-run", "--json"]).json();
    let stray_line = json!({ "kind": "stray", "file": path, "bytes": 5 });
    assert_eq!(dry, [stray_line, json!({ "kind": "summary", "files": 1, "bytes": 5 })]);
    assert!(picture(root) == before, "a dry run changed something");
    let swept = at(root, &["blobs", "sweep", "--json"]).code(0).json();
    assert_eq!(swept, [json!({ "files": 1, "bytes": 5, "unwanted": 0, "unwanted_bytes": 0 })]);
    assert!(!stray.exists() && file.exists() && theirs.iter().all(|path| path.exists()));
    fs::write(&stray, "stray").expect("a file");
    at(root, &["blobs", "sweep"]).code(0).says(&["removed 1 file (5 B) that nothing referred to"]);
    assert_eq!(show(root, id.as_str())["damage"], Value::Null);
}

/// A journal with so many blobs with names, of which one often begins as the one before, and half as many that are called by their content.
fn with_many(many: u64) -> TempDir {
    let dir = TempDir::new().expect("a directory");
    Journal::open(dir.path()).expect("open").close().expect("close");
    sql(
        dir.path(),
        &format!(
            "INSERT INTO journal_blob_content (id, hash, size, direct, named, state, sealed_ms, content)
               WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {many})
               SELECT n, randomblob(32), 3, n % 2, 1, 'inline', n, x'010203' FROM n;
             INSERT INTO journal_blob (id, state, content, created_ms, ended_ms)
               SELECT printf('blob %07d', id / 7) || substr('000000', 1, id % 7), 'sealed', id, 1, 2 FROM journal_blob_content"
        ),
    );
    dir
}

/// What a list of all blobs says, and how much memory it took at most, in KiB: it cannot end before it is read.
fn measured(root: &Path) -> (String, u64) {
    let mut command = cli(&["blobs", "-n", "0", "--json", "--root"]);
    let mut started = Started(command.arg(root).stdout(Stdio::piped()).spawn().expect("runs"));
    let mut out = started.0.stdout.take().expect("a pipe");
    let (mut said, mut peak, mut buffer) = (Vec::new(), 0, vec![0; 64 << 10]);
    loop {
        let status = fs::read_to_string(format!("/proc/{}/status", started.0.id())).unwrap_or_default();
        let high = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak = high.and_then(|high| high.parse().ok()).unwrap_or(peak);
        match out.read(&mut buffer).expect("it speaks") {
            0 => break,
            read => said.extend_from_slice(&buffer[..read]),
        }
    }
    assert!(peak > 0 && started.0.wait().expect("ends").success());
    (String::from_utf8(said).expect("text"), peak)
}

#[test]
fn a_list_that_is_long_takes_no_more_memory_and_has_each_once() {
    let many: u64 = std::env::var("JOURNAL_KB_MANY_BLOBS").map_or(30_000, |size| size.parse().expect("a number"));
    let (few, dir) = (with_many(1000), with_many(many));
    let (said, peak) = measured(dir.path());
    let (_, least) = measured(few.path());
    assert!(peak < least + (8 << 10), "{peak} KiB, and {least} KiB for few");
    let blobs: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let Some((sums, blobs)) = blobs.split_last() else { panic!("nothing") };
    let all = many + many / 2;
    assert_eq!((blobs.len() as u64, &sums["sealed"], &sums["exact"]), (all, &json!(all), &json!(true)));
    let mut ids: Vec<_> = blobs.iter().map(|blob| blob["id"].as_str().expect("a name")).collect();
    assert!(ids[..many as usize].is_sorted());
    let ages: Vec<_> = blobs[many as usize..].iter().map(|blob| blob["ended_ms"].as_i64()).collect();
    assert!(ages.is_sorted_by(|one, next| one > next), "newest first");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len() as u64, all, "each once");
    // For people, in several tables.
    let text = at(few.path(), &["blobs", "-n", "0"]).code(0);
    assert!(text.out.lines().count() > 1500 && !text.out.contains("and more"), "{}", text.out.lines().count());
}
