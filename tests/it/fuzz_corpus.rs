//! What the fuzz targets have to survive is run here as well, on the stable compiler: every file of their corpora; those of
//! `path` and `record` also cut short at every length and with every byte changed.
//!
//! A finding of `.ci/fuzz` becomes a file of the corpus, so that it is never found twice. With JOURNAL_KB_WRITE_CORPUS=1
//! in the environment, the seeds are written again: those of `record` after the shape of a record has changed, the others
//! after the meaning of their bytes has.
//!
//! JOURNAL_KB_FUZZ_INPUTS=n has n random inputs of `hostile`, `sequence` and `json` run after the files of each.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use journal_kb::Journal;
use rusqlite::Connection;

use crate::support::{child, child_root};

#[path = "../../fuzz/bodies/mod.rs"]
mod bodies;

/// Seeds of those targets whose inputs are choices.
const SEEDS: u64 = 24;

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn replay(target: &str, body: fn(&[u8])) {
    let mut files = 0;
    for entry in fs::read_dir(corpus(target)).unwrap() {
        let file = entry.unwrap().path();
        let seed = fs::read(&file).unwrap();
        let run = |bytes: &[u8]| {
            let outcome = std::panic::catch_unwind(|| body(bytes));
            assert!(outcome.is_ok(), "{target} fails on {bytes:?}, made from {}", file.display());
        };
        run(&seed);
        for at in 0..seed.len() {
            run(&seed[..at]);
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = seed.clone();
                changed[at] ^= flip;
                run(&changed);
            }
        }
        files += 1;
    }
    assert!(files > 0, "the corpus of {target} is empty");
}

/// Runs every file of a corpus as it is, and random inputs behind them. In a process of its own, with one thread: so it may
/// fork, and no panic is overlooked, in whichever thread.
fn replay_choices(test: &str, target: &str, body: fn(&[u8])) {
    if child_root().is_none() {
        let home = tempfile::tempdir().unwrap();
        let done = child(test, home.path()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{target}: {}\n{}\n{said}", done.status, String::from_utf8_lossy(&done.stdout));
        return;
    }
    std::panic::set_hook(Box::new(|what| {
        eprintln!("{what}\n{}", std::backtrace::Backtrace::force_capture());
        std::process::abort()
    }));
    let mut files: Vec<_> = fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "the corpus of {target} is empty");
    for file in files {
        eprintln!("{}", file.display());
        body(&fs::read(file).unwrap());
    }
    let more = std::env::var("JOURNAL_KB_FUZZ_INPUTS").map_or(0, |n| n.parse().unwrap());
    for n in SEEDS..SEEDS + more {
        let bytes = choices(n);
        eprintln!("input {n}: {bytes:?}");
        body(&bytes);
    }
}

/// Xorshift: the same bytes on every machine.
fn choices(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
    };
    (0..16 + next() / 2).map(|_| next()).collect()
}

#[test]
fn any_bytes_as_a_path() {
    replay("path", bodies::path::run);
}

#[test]
fn any_bytes_as_a_record() {
    replay("record", bodies::record::run);
}

#[test]
fn hostile_journals() {
    replay_choices("fuzz_corpus::hostile_journals", "hostile", bodies::hostile::run);
}

#[test]
fn sequences_with_crashes_follow_the_model() {
    replay_choices("fuzz_corpus::sequences_with_crashes_follow_the_model", "sequence", bodies::sequence::run);
}

#[test]
fn what_the_command_tells_is_what_there_is() {
    replay_choices("fuzz_corpus::what_the_command_tells_is_what_there_is", "json", bodies::json::run);
}

#[test]
fn the_corpora_of_choices_are_written_when_asked_for() {
    if std::env::var_os("JOURNAL_KB_WRITE_CORPUS").is_none() {
        return;
    }
    for target in ["hostile", "sequence", "json"] {
        fs::create_dir_all(corpus(target)).unwrap();
        for n in 0..SEEDS {
            fs::write(corpus(target).join(format!("seed-{n:02}")), choices(n)).unwrap();
        }
    }
}

#[test]
fn the_record_corpus_is_written_when_asked_for() {
    if std::env::var_os("JOURNAL_KB_WRITE_CORPUS").is_none() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let journal = Journal::open(home.path()).unwrap();
    journal.transact(|txn| txn.write("a", "old").and_then(|()| txn.write("d/b", "old"))).unwrap();
    journal
        .transact(|txn| {
            txn.write("a", "new")?;
            txn.write_from("large", &mut &vec![0; 70_000][..])?;
            txn.symlink("a", "link")?;
            txn.create_dir_all("made/directory")?;
            txn.remove("d/b")
        })
        .unwrap();
    let db = Connection::open(home.path().join(".journal/journal.db")).unwrap();
    // By hand, as bincode writes them: a moved directory, a published file, an event. The first two are never seen from
    // outside, because their transactions are settled before their commit returns.
    let moved = b"\x04\x01\x01d\x07\x02\x02\x01\x00\x03s-1\x00";
    let published = b"\x04\x00\x07\x02\x02\x00\x00\x03s-2\x01\x00\x08\x09\x02\x02\x02\x02";
    let event = b"\x05moved";
    let mut payloads = BTreeSet::from([&moved[..], &published[..], &event[..]].map(<[u8]>::to_vec));
    for stored in [
        "SELECT record FROM journal_redo",
        "SELECT applied_mark FROM journal_txn WHERE applied_mark IS NOT NULL",
        "SELECT details FROM journal_event",
    ] {
        let mut statement = db.prepare(stored).unwrap();
        let rows = statement.query_map((), |row| row.get::<_, Vec<u8>>(0)).unwrap();
        // Without version and checksum, which the body puts round them.
        payloads.extend(rows.map(|row| row.unwrap()).map(|row| row[1..row.len() - 8].to_vec()));
    }
    for payload in payloads {
        let name = &blake3::hash(&payload).to_hex()[..16];
        fs::write(corpus("record").join(name), payload).unwrap();
    }
}
