//! `blobs verify`: what is no longer what was sealed, by whatever went wrong with it; and rows that make no sense.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use journal_kb::inspect::{BlobCheck, BlobNews, Inspector};
use journal_kb::{BlobError, Error, Journal};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::blobs::{LARGE, begin, files, seal};
use super::{Ran, at, picture, sql};

/// What is found, and what it comes to.
fn verify(root: &Path, words: &[&str]) -> (Vec<Value>, Value) {
    let ran = at(root, &[&["blobs", "verify", "--json"], words].concat());
    let mut lines = ran.json();
    let sums = lines.pop().expect("a summary");
    assert_eq!(sums["kind"], "summary", "{ran:?}");
    assert_eq!((ran.code, ran.err.as_str()), (Some(i32::from(!lines.is_empty())), ""), "{ran:?}");
    assert_eq!(sums["findings"], lines.len(), "{ran:?}");
    assert!(lines.iter().all(|line| line["kind"] == "finding"), "{ran:?}");
    (lines, sums)
}

/// What is found of which blob.
fn problems(root: &Path, words: &[&str]) -> BTreeMap<String, String> {
    let word = |value: &Value| value.as_str().expect("a word").to_owned();
    let (found, _) = verify(root, words);
    found.iter().map(|finding| (word(&finding["blobs"][0]), word(&finding["problem"]))).collect()
}

fn expected<const N: usize>(found: [(&str, &str); N]) -> BTreeMap<String, String> {
    found.map(|(blob, problem)| (blob.to_owned(), problem.to_owned())).into()
}

/// Bytes that are others for each number.
fn bytes(seed: u8) -> Vec<u8> {
    vec![seed; LARGE]
}

/// The file that a blob stands in.
fn file(root: &Path, id: &str) -> PathBuf {
    let shown = &at(root, &["blobs", "show", id, "--json"]).code(0).json()[0];
    PathBuf::from(shown["file"].as_str().expect("a file"))
}

fn flip(file: &Path, range: Range<u64>) {
    let opened = fs::OpenOptions::new().read(true).write(true).open(file).expect("open");
    range.for_each(|at| {
        let mut byte = [0];
        opened.read_exact_at(&mut byte, at).expect("read");
        opened.write_all_at(&[byte[0] ^ 4], at).expect("written");
    });
}

#[test]
fn whatever_became_of_the_bytes_is_told_with_the_blobs_that_say_them() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    for (seed, name) in (1..).zip(["whole", "short", "long", "flipped", "gone", "linked", "dir"]) {
        seal(&journal, Some(name), &bytes(seed));
    }
    seal(&journal, Some("flipped too"), &bytes(4));
    let by_content = seal(&journal, None, &bytes(4));
    for name in ["inline", "inline flipped", "inline short"] {
        seal(&journal, Some(name), name.as_bytes());
    }
    journal.settle().expect("settled");
    // One that has not come to where it stays.
    seal(&journal, Some("in the stage"), &bytes(9));
    let moved = file(root, "in the stage");
    let staged = moved.file_name().and_then(|name| name.to_str()?.split_once('.')).expect("a name").1;
    fs::rename(&moved, moved.parent().expect("a directory").with_file_name("stage").join(staged)).expect("moved");
    assert_eq!(at(root, &["blobs", "show", "in the stage", "--json"]).code(0).json()[0]["place"], "stage");
    at(root, &["blobs", "verify"]).code(0).says(&["11 contents with", "compared byte by byte: all whole"]);
    let (found, sums) = verify(root, &[]);
    let all = 8 * LARGE + "inlineinline flippedinline short".len();
    assert_eq!((found.len(), &sums["contents"], &sums["bytes"]), (0, &json!(11), &json!(all)));

    let resize = |name: &str, size: u64| {
        let opened = fs::OpenOptions::new().write(true).open(file(root, name)).expect("open");
        opened.set_len(size).expect("cut");
    };
    resize("short", 17);
    resize("long", LARGE as u64 + 1);
    flip(&file(root, "flipped"), LARGE as u64 / 2..LARGE as u64 / 2 + 1);
    let (linked, directory) = (file(root, "linked"), file(root, "dir"));
    fs::rename(&linked, root.join("aside")).expect("moved");
    symlink(root.join("aside"), &linked).expect("a link");
    fs::remove_file(&directory).and_then(|()| fs::create_dir(&directory)).expect("a directory");
    fs::remove_file(file(root, "gone")).expect("removed");
    sql(
        root,
        "UPDATE journal_blob_content SET content = CAST('iNline flipped' AS BLOB) WHERE content = CAST('inline flipped' AS BLOB);
         UPDATE journal_blob_content SET content = x'00' WHERE content = CAST('inline short' AS BLOB)",
    );
    let before = picture(root);
    let by_size = [
        ("short", "size"),
        ("long", "size"),
        ("gone", "missing"),
        ("linked", "missing"),
        ("dir", "missing"),
        ("inline short", "size"),
    ];
    assert_eq!(problems(root, &["--fast"]), expected(by_size));
    let mut all = expected(by_size);
    all.extend(expected([(by_content.as_str(), "content"), ("inline flipped", "content")]));
    assert_eq!(problems(root, &[]), all);
    assert!(picture(root) == before, "looking changed something");

    let (found, _) = verify(root, &[]);
    let of = |problem: &str| found.iter().find(|finding| finding["problem"] == problem).expect("found");
    let flipped = of("content");
    assert_eq!(flipped["blobs"], json!([by_content.as_str(), "flipped", "flipped too"]), "{flipped}");
    assert_eq!((&flipped["bytes"], &flipped["found_bytes"]), (&json!(LARGE), &json!(LARGE)), "{flipped}");
    assert_eq!(flipped["hash"], blake3::hash(&bytes(4)).to_hex().as_str());
    let now = fs::read(file(root, "flipped")).expect("a file");
    assert_eq!(flipped["found_hash"], blake3::hash(&now).to_hex().as_str());
    assert_eq!(Path::new(flipped["file"].as_str().expect("a file")), file(root, "flipped"));
    assert_eq!((&of("size")["bytes"], &of("size")["found_bytes"]), (&json!(LARGE), &json!(17)));
    assert_eq!((&of("missing")["found_bytes"], &of("missing")["more_blobs"]), (&Value::Null, &json!(0)));
    let text = at(root, &["blobs", "verify"]);
    assert_eq!((text.code, text.err.as_str()), (Some(1), ""), "{text:?}");
    let lines: Vec<&str> = text.out.lines().collect();
    assert_eq!(lines.len(), 9, "one line each, and the sum: {text:?}");
    let short = format!("size: short: it has {LARGE} bytes, and 17 are there ({})", file(root, "short").display());
    assert!(lines.contains(&short.as_str()), "{short:?} in {text:?}");
    assert!(lines[8].ends_with("8 findings"), "{text:?}");

    // Only what was asked for, by its name or by its hash.
    assert_eq!(problems(root, &["whole", "inline"]), expected([]));
    let named = [&by_content.as_str()[..16], "flipped", "gone"];
    assert_eq!(problems(root, &named), expected([(by_content.as_str(), "content"), ("gone", "missing")]));
    assert_eq!(verify(root, &named).1["contents"], 2, "each content once");
    at(root, &["blobs", "verify", "whole", "no such"]).code(1).says(&["no blob is called \"no such\""]);
    let writing = begin(&journal, Some("in hand"), b"x");
    begin(&journal, Some("given up"), b"x").abort().expect("aborted");
    assert_eq!(
        problems(root, &["in hand", "given up", "whole"]),
        expected([("in hand", "not_sealed"), ("given up", "not_sealed")])
    );
    drop(writing);
    // What is said again is whole again, where it can be told without reading it.
    for (seed, name) in [(2, "short"), (3, "long"), (5, "gone"), (6, "linked"), (7, "dir")] {
        seal(&journal, Some(&format!("{name} again")), &bytes(seed));
    }
    seal(&journal, Some("inline short again"), b"inline short");
    seal(&journal, Some("inline flipped again"), b"inline flipped");
    assert_eq!(problems(root, &[]), expected([(by_content.as_str(), "content")]));
    fs::remove_file(file(root, "flipped")).expect("removed");
    seal(&journal, Some("flipped again"), &bytes(4));
    assert_eq!(problems(root, &[]), expected([]));
}

/// Verifies within this process; what is done to the journal once the first content was looked at.
fn while_verifying(root: &Path, check: &BlobCheck, act: impl FnOnce()) -> (u64, Vec<String>) {
    let (mut act, mut found) = (Some(act), Vec::new());
    let done = Inspector::open(root).expect("open").verify_blobs(check, |news| match news {
        BlobNews::Progress(done) if done.contents == 1 => {
            if let Some(act) = act.take() {
                act();
            }
        }
        BlobNews::Finding(finding) => found.push(format!("{} {}", finding.problem, finding.blobs.join(" "))),
        _ => {}
    });
    (done.expect("verified").contents, found)
}

#[test]
fn what_changes_meanwhile_is_no_finding() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    for (seed, name) in (1..).zip(["first", "second", "third", "fourth", "fifth"]) {
        seal(&journal, Some(name), &bytes(seed));
    }
    journal.settle().expect("settled");
    // One is removed, its number goes to another, one is mended; what comes after the beginning is left out.
    fs::write(file(root, "third"), "cut").expect("written");
    let fifth = file(root, "fifth");
    let meanwhile = || {
        for name in ["second", "fifth"] {
            journal.blobs().remove(name).expect("removed");
        }
        journal.settle().expect("settled");
        assert!(!fifth.exists());
        seal(&journal, Some("new"), &bytes(10));
        seal(&journal, Some("newer"), &bytes(11));
        seal(&journal, Some("third again"), &bytes(3));
    };
    let (contents, found) = while_verifying(root, &BlobCheck::default(), meanwhile);
    assert_eq!((contents, found), (5, vec![]));
    // What is really gone is found all the same.
    fs::remove_file(file(root, "fourth")).expect("removed");
    let again = || drop(journal.blobs().remove("first"));
    assert_eq!(while_verifying(root, &BlobCheck::default(), again).1, ["missing fourth"]);

    // Whoever asks it to stop is answered at once, with how far it came.
    let check = BlobCheck { fast: true, ..BlobCheck::default() };
    let stop = check.stop.clone();
    assert_eq!(while_verifying(root, &check, || stop.stop("enough")), (1, vec![]));
}

#[test]
fn who_asks_for_a_damaged_blob_in_the_database_is_told_what_mends_it() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    seal(&journal, Some("a"), b"inline");
    sql(root, "UPDATE journal_blob_content SET content = CAST('iNline' AS BLOB)");
    let read = |id: &str| {
        let mut reader = journal.blobs().opener().verify(true).open(id)?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut reader, &mut text).map(|_| text).map_err(|error| {
            let inner =
                error.into_inner().and_then(|inner| inner.downcast::<BlobError>().ok()).expect("a blob's error");
            Error::from(*inner)
        })
    };
    let told = read("a").expect_err("damaged").to_string();
    assert!(told.contains("write the same content again"), "{told}");
    // Which it does.
    seal(&journal, Some("b"), b"inline");
    assert_eq!((read("a").expect("whole"), read("b").expect("whole")), ("inline".into(), "inline".into()));
    let rows = "SELECT 1 / (count(*) = 1 AND sum(named) = 2) FROM journal_blob_content";
    sql(root, rows);
}

#[test]
fn rows_of_blobs_that_make_no_sense_hide_nothing() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    seal(&journal, Some("sane"), b"sane");
    seal(&journal, Some("z"), &bytes(1));
    journal.close().expect("close");
    sql(
        root,
        "PRAGMA ignore_check_constraints = ON;
         INSERT INTO journal_blob (id, state, content, session, name, written, created_ms, ended_ms) VALUES
           ('', 'dreaming', NULL, NULL, NULL, NULL, -9223372036854775808, 9223372036854775807),
           (char(27) || '[2J', 'writing', 77, x'00', '../../etc/passwd', -1, -1, -1),
           ('lost', 'sealed', -99, NULL, NULL, NULL, 9223372036854775807, 0),
           ('lost too', 'sealed', NULL, NULL, NULL, NULL, 0, 0),
           (printf('%.100000c', 'n'), 'writing', NULL, zeroblob(100000), printf('%.100000c', 'f'), 9223372036854775807, 0, 0),
           (CAST(x'ff62' AS TEXT), 'sealed', -5, NULL, NULL, NULL, 0, 0),
           (CAST(x'ff62ff' AS TEXT), printf('%.100000c', 's'), NULL, NULL, NULL, NULL, 0, 0),
           ('a' || char(0) || 'b', 'incomplete', NULL, NULL, NULL, -7, 0, 0);
         INSERT INTO journal_blob_content (id, hash, size, direct, named, state, name, sealed_ms, content) VALUES
           (-5, x'', -1, 9223372036854775807, 9223372036854775807, 'placed', '/etc/passwd', -1, NULL),
           (9223372036854775807, zeroblob(100000), 9223372036854775807, 1, 9223372036854775807, 'dreaming', NULL, 9223372036854775807, x'00'),
           (-9223372036854775808, zeroblob(32), 0, 1, -1, 'staged', '..', -9223372036854775808, NULL),
           (-6, randomblob(32), 1, 1, 0, 'staged', printf('%.100000c', 'n'), 0, NULL),
           (-4, x'00', 9223372036854775807, 0, 0, 'unwanted', '../../../etc/passwd', 0, zeroblob(3000000)),
           (-3, CAST('text' AS BLOB), 3000000, 1, 0, 'inline', NULL, 0, zeroblob(3000000));",
    );
    let ran = at(root, &["blobs", "-n", "0", "--all", "--json"]).code(0);
    assert!(!ran.out.contains('\u{1b}') && ran.out.len() < 20_000, "{}", ran.out.len());
    let lines = ran.json();
    let of = |id: &str| lines.iter().find(|line| line["id"] == id).unwrap_or_else(|| panic!("no {id:?} in {lines:?}"));
    assert_eq!(lines.iter().filter(|line| line["kind"] == "blob").count(), 10 + 5);
    assert_eq!(
        (&of("sane")["state"], &of("z")["place"], &of("")["state"]),
        (&json!("sealed"), &json!("file"), &json!("dreaming"))
    );
    assert_eq!((&of("lost")["state"], &of("lost too")["state"]), (&json!("corrupt"), &json!("corrupt")));
    assert_eq!((&of("\u{1b}[2J")["state"], &of("\u{1b}[2J")["bytes"]), (&json!("incomplete"), &json!(0)));
    assert_eq!(lines.last().expect("a summary")["unwanted"], 1);
    let places = ["inline", "file", "unknown"];
    for place in places {
        assert!(lines.iter().any(|line| line["place"] == place), "{place} in {lines:?}");
    }
    let unknown =
        lines.iter().find(|line| line["place"] == "unknown").and_then(|line| line["id"].as_str()).expect("one");
    at(root, &["blobs", "show", unknown]).code(0).says(&["unknown: ", "damaged"]);
    let text = at(root, &["blobs", "-n", "0", "--all"]).code(0).says(&["sane", "dreaming", "corrupt", "\u{fffd}b"]);
    assert!(!text.out.contains('\u{1b}') && text.out.len() < 20_000, "{} {text:?}", text.out.len());
    for id in ["sane", "z", "lost", "", "\u{1b}[2J", "blake3:0000", of("z")["id"].as_str().expect("a name")] {
        let shown = at(root, &["blobs", "show", id]).code(0);
        assert!(!shown.out.contains('\u{1b}') && shown.out.len() < 10_000, "{} {shown:?}", shown.out.len());
        at(root, &["blobs", "show", id, "--json"]).code(0);
    }
    for words in [&[][..], &["--fast"]] {
        let found = problems(root, words);
        let rows = found.values().filter(|problem| *problem == "row").count();
        // Two that are lost, three rows that cannot be, and one whose file is called something that cannot be.
        assert_eq!((rows, found.len()), (6, 7), "{found:?}");
        assert!(found.values().any(|problem| problem == "unreadable"), "too long a name: {found:?}");
        assert_eq!(found.get("sane").or(found.get("z")), None);
        assert_eq!(found["lost"], "row");
    }
    for words in [&["verify"][..], &["verify", "lost", "sane"]] {
        let ran = at(root, &[&["blobs"], words].concat());
        assert!(
            ran.code == Some(1) && ran.err.is_empty() && !ran.out.contains('\u{1b}') && ran.out.len() < 10_000,
            "{ran:?}"
        );
    }
    at(root, &["blobs", "sweep", "--dry-run"]).code(0).says(&["nothing to sweep"]);
    let status: Ran = at(root, &["status"]);
    assert!(!status.out.contains('\u{1b}') && status.err.is_empty(), "{status:?}");
    // And without the tables, as a version without blobs left it, there are none.
    assert_eq!(files(root).len(), 1);
    sql(root, "DROP TABLE journal_blob; DROP TABLE journal_blob_content");
    at(root, &["blobs"]).code(0).says(&["no blobs yet"]);
    at(root, &["blobs", "show", "sane"]).code(1);
    at(root, &["blobs", "verify"]).code(0).says(&["0 contents"]);
    at(root, &["blobs", "sweep", "--dry-run"]).code(0).says(&["nothing to sweep"]);
    at(root, &["status"]).code(0);
}
