//! What the fuzz targets have to survive is run here as well, on the stable compiler: every file of their corpora, cut
//! short at every length and with every byte changed.
//!
//! A finding of `.ci/fuzz` becomes a file of the corpus, so that it is never found twice. With JOURNAL_KB_WRITE_CORPUS=1
//! in the environment, the seeds of `record` are written again, after the shape of a record has changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use journal_kb::Journal;
use rusqlite::Connection;

#[path = "../../fuzz/bodies/path.rs"]
mod path;
#[path = "../../fuzz/bodies/record.rs"]
mod record;

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

#[test]
fn any_bytes_as_a_path() {
    replay("path", path::run);
}

#[test]
fn any_bytes_as_a_record() {
    replay("record", record::run);
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
