//! Blobs: streamed in, whole or not there, kept once, removed when nobody says the same any more.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use journal_kb::rusqlite::OptionalExtension;
use journal_kb::{BlobError, BlobId, BlobReader, Damage, Error, Journal, NewBlob, StopToken};

use crate::support::{Tree, child, child_root, wait_for_word};
use crate::torment::Watchdog;

const LIMIT: Duration = Duration::from_secs(120);
/// Nobody waits that long.
const LONG: Duration = Duration::from_secs(100);
/// More than stands in the database.
pub(crate) const LARGE: usize = 300_000;

/// Bytes of which no two pieces are the same.
pub(crate) fn bytes(seed: u8, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn write(journal: &Journal, content: &[u8]) -> BlobId {
    let mut blob = journal.blobs().create().unwrap();
    blob.write_all(content).unwrap();
    blob.seal().unwrap()
}

fn write_named(journal: &Journal, id: &str, content: &[u8]) -> BlobId {
    let mut blob = journal.blobs().create_with(NewBlob::new().id(id)).unwrap();
    blob.write_all(content).unwrap();
    blob.seal().unwrap()
}

pub(crate) fn all(mut reader: BlobReader) -> Vec<u8> {
    let mut content = Vec::new();
    reader.read_to_end(&mut content).unwrap();
    content
}

/// The files of blobs, sealed or not.
fn files(tree: &Tree) -> Vec<PathBuf> {
    let in_dir = |dir: &str| fs::read_dir(tree.path(dir)).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = in_dir(".journal/blobs").chain(in_dir(".journal/stage")).collect();
    all.sort();
    all
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> BlobError {
    match result {
        Err(Error::Blob(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_sealed_is_read_whole_from_anywhere_and_again_after_the_journal_was_closed() {
    let tree = Tree::new();
    let journal = tree.journal();
    for size in [0, 1, 4096, 64 << 10, (64 << 10) + 1, LARGE, 3 << 20] {
        let content = bytes(1, size);
        let id = write(&journal, &content);
        assert!(id.is_by_content());
        let mut reader = journal.blobs().open(&id).unwrap();
        assert_eq!(reader.len(), size as u64);
        let (from, to) = (size / 3, size / 2);
        let mut part = vec![0; to - from];
        reader.read_exact_at(&mut part, from as u64).unwrap();
        assert_eq!(part, content[from..to]);
        assert_eq!(reader.seek(SeekFrom::End(-(size as i64 / 4))).unwrap(), (size - size / 4) as u64);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, content[size - size / 4..]);
        assert_eq!(reader.read_at(&mut [0; 8], size as u64).unwrap(), 0);
        let verified = journal.blobs().opener().verify(true).open(&id).unwrap();
        assert_eq!(all(verified), content);
    }
    let id = write_named(&journal, "annual report", &bytes(2, LARGE));
    journal.close().unwrap();
    let journal = tree.journal();
    assert_eq!(all(journal.blobs().open(&id).unwrap()), bytes(2, LARGE));
    assert_eq!(all(journal.blobs().open("annual report").unwrap()), bytes(2, LARGE));
}

/// Some of it is hashed at once, some by a thread beside, and the disk begins meanwhile.
#[test]
fn a_blob_and_what_tells_of_it_are_one_commit() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE doc (name TEXT PRIMARY KEY, blob TEXT NOT NULL)"]).unwrap();
    for (name, size, goes) in [("small", 100, true), ("large", LARGE, true), ("none", LARGE, false), ("no", 100, false)]
    {
        let content = bytes(name.as_bytes()[0], size);
        let mut txn = journal.begin("import").unwrap();
        let mut blob = journal.blobs().create_with(NewBlob::new().size(size as u64)).unwrap();
        blob.write_all(&content).unwrap();
        let id = txn.seal(blob).unwrap();
        let named = id.clone();
        txn.sql(move |rows| {
            rows.execute("INSERT INTO doc VALUES (?1, ?2)", (name, &named))?;
            if goes { Ok(()) } else { Err(Error::caller("no")) }
        })
        .unwrap();
        assert_eq!(refused(journal.blobs().open(&id)), BlobError::NotFound { id: id.to_string() }, "not yet");
        assert_eq!(txn.commit().is_ok(), goes);
        let row: Option<BlobId> = journal
            .read(|rows| rows.query_opt("SELECT blob FROM doc WHERE name = ?1", [name], |row| row.get(0)))
            .unwrap();
        assert_eq!(row, goes.then(|| id.clone()));
        match goes {
            true => assert_eq!(all(journal.blobs().open(&id).unwrap()), content),
            false => assert!(matches!(refused(journal.blobs().open(&id)), BlobError::NotFound { .. })),
        }
    }
    journal.settle().unwrap();
    assert_eq!(files(&tree).len(), 1, "that of the large one: {:?}", files(&tree));
}

#[test]
fn the_same_content_is_kept_once_and_goes_with_the_last_who_says_so() {
    let tree = Tree::new();
    let journal = tree.journal();
    for size in [1000, LARGE] {
        let content = bytes(3, size);
        let (first, second) = (write(&journal, &content), write(&journal, &content));
        assert_eq!(first, second);
        let named = write_named(&journal, &format!("copy of {size}"), &content);
        journal.settle().unwrap();
        assert_eq!(files(&tree).len(), usize::from(size == LARGE));
        let open = journal.blobs().open(&first).unwrap();

        journal.transact(|txn| txn.remove_blob(&first)).unwrap();
        assert_eq!(all(journal.blobs().open(&first).unwrap()), content, "it was written twice");
        journal.blobs().remove(&second).unwrap();
        assert!(matches!(refused(journal.blobs().open(&first)), BlobError::NotFound { .. }));
        assert!(matches!(refused(journal.blobs().remove(&first)), BlobError::NotFound { .. }));
        assert_eq!(all(journal.blobs().open(&named).unwrap()), content);
        journal.blobs().remove(&named).unwrap();
        journal.settle().unwrap();
        assert_eq!(files(&tree).len(), usize::from(size == LARGE), "somebody reads it");
        assert_eq!(all(open), content);
        journal.settle().unwrap();
        assert_eq!(files(&tree), [] as [PathBuf; 0]);
        let again = refused(journal.blobs().create_with(NewBlob::new().id(named.as_str())));
        assert_eq!(again, BlobError::Exists { id: named.to_string() }, "no name is used twice");
    }
    // Between the removal and the settling somebody may say the same again.
    let content = bytes(4, LARGE);
    let id = write(&journal, &content);
    journal.blobs().remove(&id).unwrap();
    assert_eq!(write(&journal, &content), id);
    journal.settle().unwrap();
    assert_eq!(all(journal.blobs().open(&id).unwrap()), content);
    assert_eq!(files(&tree).len(), 1);
}

#[test]
fn who_is_given_up_or_written_to_the_wrong_size_leaves_nothing() {
    let tree = Tree::new();
    let journal = tree.journal();
    let mut blob = journal.blobs().create_with(NewBlob::new().id("given up")).unwrap();
    blob.write_all(&bytes(1, LARGE)).unwrap();
    drop(blob);
    assert_eq!(refused(journal.blobs().open("given up")), BlobError::Aborted { id: "given up".into() });
    let mut blob = journal.blobs().create_with(NewBlob::new().size(10)).unwrap();
    assert!(blob.write_all(&[0; 11]).is_err());
    assert!(matches!(refused(blob.seal()), BlobError::WriteFailed { .. }));
    let mut blob = journal.blobs().create_with(NewBlob::new().size(10)).unwrap();
    blob.write_all(&[0; 9]).unwrap();
    assert_eq!(refused(blob.seal()), BlobError::WrongSize { expected: 10, written: 9 });
    let mut txn = journal.begin("").unwrap();
    let mut blob = journal.blobs().create_with(NewBlob::new().id("dropped")).unwrap();
    blob.write_all(&bytes(2, LARGE)).unwrap();
    txn.seal(blob).unwrap();
    drop(txn);
    assert_eq!(refused(journal.blobs().open("dropped")), BlobError::Aborted { id: "dropped".into() });
    for bad in ["", "a\nb", "blake3:1"] {
        assert!(
            matches!(refused(journal.blobs().create_with(NewBlob::new().id(bad))), BlobError::BadId { .. }),
            "{bad}"
        );
    }
    let by_content = BlobId::new(&format!("blake3:{}", "0".repeat(64))).unwrap();
    assert!(matches!(
        refused(journal.blobs().create_with(NewBlob::new().id(by_content.as_str()))),
        BlobError::BadId { .. }
    ));
    assert_eq!(files(&tree), [] as [PathBuf; 0]);
}

#[test]
fn who_waits_gets_the_blob_the_moment_it_is_sealed_or_is_told_why_not() {
    let _watchdog = Watchdog::new("waiting for a blob", LIMIT);
    let tree = Tree::new();
    let journal = tree.journal();
    for (id, size, seals) in [("a", 100, true), ("b", LARGE, true), ("c", LARGE, false), ("d", 100, false)] {
        let mut blob = journal.blobs().create_with(NewBlob::new().id(id)).unwrap();
        blob.write_all(&bytes(5, size)).unwrap();
        let (waits, told) = std::sync::mpsc::channel();
        let reader = journal.clone();
        let thread = std::thread::spawn(move || {
            reader.blobs().opener().wait(LONG).on_wait(move |wait| waits.send(wait).unwrap()).open(id).map(all)
        });
        told.recv().unwrap();
        if seals {
            blob.seal().unwrap();
            assert_eq!(thread.join().unwrap().unwrap(), bytes(5, size));
        } else {
            blob.abort().unwrap();
            assert_eq!(refused(thread.join().unwrap()), BlobError::Aborted { id: id.into() });
        }
    }
    let _blob = journal.blobs().create_with(NewBlob::new().id("e")).unwrap();
    let busy = journal.blobs().opener().wait(Duration::from_millis(5)).open("e").unwrap_err();
    assert!(busy.is_busy() && busy.to_string().contains("this process"), "{busy}");
    let token = StopToken::new();
    let other = token.clone();
    let cancelled = journal.blobs().opener().wait(LONG).cancel(&token).on_wait(move |_| other.stop("enough")).open("e");
    assert!(matches!(cancelled, Err(Error::Cancelled { .. })), "{cancelled:?}");
}

/// Writes a blob in another process, as far as it is told to.
#[test]
fn writer() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(root).unwrap();
    let mut blob = journal.blobs().create_with(NewBlob::new().id("theirs")).unwrap();
    blob.write_all(&bytes(6, LARGE)).unwrap();
    // This stays in its buffer.
    blob.write_all(&bytes(7, 1000)).unwrap();
    println!("written");
    let mut word = String::new();
    std::io::stdin().read_line(&mut word).unwrap();
    match word.trim() {
        "seal" => drop(blob.seal().unwrap()),
        "abort" => blob.abort().unwrap(),
        _ => std::process::abort(),
    }
}

#[test]
fn a_blob_of_another_process_is_waited_for_while_that_lives_and_no_longer() {
    let _watchdog = Watchdog::new("waiting for another process's blob", LIMIT);
    for word in ["seal", "abort", "die", "kill"] {
        let tree = Tree::new();
        let journal = tree.journal();
        let mut writer = child("blobs::writer", tree.root());
        let mut writer = writer.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_word(&mut writer, "written");
        let (waits, told) = std::sync::mpsc::channel();
        let reader = journal.clone();
        let thread = std::thread::spawn(move || {
            let opener = reader.blobs().opener().wait(LONG).on_wait(move |wait| waits.send(wait.written).unwrap());
            opener.open("theirs").map(all)
        });
        let written = told.recv().unwrap();
        assert!(journal.blobs().remove("theirs").unwrap_err().is_busy());
        match word {
            "kill" => writer.kill().unwrap(),
            _ => writeln!(writer.stdin.take().unwrap(), "{word}").unwrap(),
        }
        let outcome = thread.join().unwrap();
        match word {
            "seal" => assert_eq!(outcome.unwrap(), [bytes(6, LARGE), bytes(7, 1000)].concat()),
            "abort" => assert_eq!(refused(outcome), BlobError::Aborted { id: "theirs".into() }),
            _ => {
                let incomplete = BlobError::Incomplete { id: "theirs".into(), written };
                assert_eq!(refused(outcome), incomplete);
                assert_eq!(written, 256 << 10, "what has left its buffer");
                assert_eq!(refused(journal.blobs().open("theirs")), incomplete, "at once");
                assert_eq!(refused(journal.blobs().remove("theirs")), BlobError::NotFound { id: "theirs".into() });
                journal.recover().unwrap();
                assert_eq!(refused(journal.blobs().open("theirs")), incomplete, "and when it was swept");
                assert_eq!(files(&tree), [] as [PathBuf; 0]);
            }
        }
        writer.wait().unwrap();
    }
}

#[test]
fn who_asks_a_record_goes_on_when_it_names_another_blob() {
    let _watchdog = Watchdog::new("waiting for a record", LIMIT);
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE doc (name TEXT PRIMARY KEY, blob TEXT NOT NULL)"]).unwrap();
    let record = |id: &str| {
        let id = id.to_owned();
        journal
            .write(|rows| rows.execute("INSERT INTO doc VALUES ('d', ?1) ON CONFLICT DO UPDATE SET blob = ?1", [&id]))
            .unwrap();
    };
    let reader = journal.clone();
    let (asked, asks) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        reader.blobs().opener().open_with(
            |rows| {
                let named = rows.query_opt("SELECT blob FROM doc", (), |row| row.get::<_, BlobId>(0))?;
                asked.send(named.clone()).unwrap();
                Ok(named)
            },
            LONG,
        )
    });
    let until = |id: Option<&str>| while asks.recv().unwrap().as_ref().map(BlobId::as_str) != id {};
    until(None);
    record("gone");
    until(Some("gone"));
    let mut given_up = journal.blobs().create_with(NewBlob::new().id("given up")).unwrap();
    given_up.write_all(b"half of it").unwrap();
    record("given up");
    until(Some("given up"));
    drop(given_up);
    let mut good = journal.blobs().create_with(NewBlob::new().id("good")).unwrap();
    good.write_all(&bytes(8, LARGE)).unwrap();
    record("good");
    until(Some("good"));
    good.seal().unwrap();
    assert_eq!(all(thread.join().unwrap().unwrap()), bytes(8, LARGE));

    record("gone");
    let named = |rows: &journal_kb::Rows<'_>| rows.query_opt("SELECT blob FROM doc", (), |row| row.get(0));
    let error = refused(journal.blobs().opener().open_with(named, Duration::from_millis(5)));
    assert_eq!(error, BlobError::NotFound { id: "gone".into() });
}

#[test]
fn what_is_damaged_is_told_and_the_same_content_written_again_mends_it() {
    let tree = Tree::new();
    let journal = tree.journal();
    let content = bytes(9, LARGE);
    let size = LARGE as u64;
    for damage in ["truncated", "grown", "missing", "flipped"] {
        let id = write(&journal, &content);
        journal.settle().unwrap();
        let [file] = &files(&tree)[..] else { panic!("{:?}", files(&tree)) };
        let open = |verify| journal.blobs().opener().verify(verify).open(&id);
        match damage {
            "truncated" => fs::File::options().write(true).open(file).unwrap().set_len(size - 1).unwrap(),
            "grown" => fs::File::options().append(true).open(file).unwrap().write_all(b"x").unwrap(),
            "missing" => fs::remove_file(file).unwrap(),
            _ => {
                let mut other = content.clone();
                other[LARGE / 2] ^= 1;
                fs::write(file, &other).unwrap();
                let mut reader = open(true).unwrap();
                let mut read = Vec::new();
                let error = reader.read_to_end(&mut read).unwrap_err();
                let error = error.into_inner().unwrap().downcast::<BlobError>().unwrap();
                let (expected, found) = (*blake3::hash(&content).as_bytes(), *blake3::hash(&other).as_bytes());
                let damage = Damage::Content { expected, found };
                assert_eq!(*error, BlobError::Damaged { id: id.to_string(), damage });
                assert!(open(true).unwrap().read_at(&mut [0; 1], 0).is_err(), "all of it is looked at before");
                assert_eq!(all(open(false).unwrap()), other);
                continue;
            }
        }
        let BlobError::Damaged { damage: told, .. } = refused(open(false)) else { panic!() };
        let expected = match damage {
            "truncated" => Damage::Size { expected: size, found: size - 1 },
            "grown" => Damage::Size { expected: size, found: size + 1 },
            _ => Damage::Missing { expected: size },
        };
        assert_eq!(told, expected);
        assert_eq!(write(&journal, &content), id);
        assert_eq!(all(open(true).unwrap()), content, "{damage}");
        journal.settle().unwrap();
        journal.blobs().sweep(false).unwrap();
    }
    // One that stands in the database.
    let id = write(&journal, b"small");
    let database = journal_kb::rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    database.execute("UPDATE journal_blob_content SET content = x'00' WHERE size = 5", ()).unwrap();
    let found = database
        .query_row("SELECT length(content) FROM journal_blob_content WHERE size = 5", (), |row| row.get::<_, u64>(0))
        .optional();
    assert_eq!(found.unwrap(), Some(1));
    let damage = Damage::Size { expected: 5, found: 1 };
    assert_eq!(refused(journal.blobs().open(&id)), BlobError::Damaged { id: id.to_string(), damage });
}

#[test]
fn what_is_damaged_while_it_is_read_or_in_the_database_is_told() {
    let tree = Tree::new();
    let journal = tree.journal();
    let content = bytes(11, LARGE);
    let size = LARGE as u64;
    let told = |reader: &mut BlobReader| {
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err().into_inner().unwrap();
        match *error.downcast::<BlobError>().unwrap() {
            BlobError::Damaged { damage, .. } => damage,
            other => panic!("{other:?}"),
        }
    };
    for damage in ["truncated", "flipped", "missing"] {
        let id = write(&journal, &content);
        journal.blobs().sweep(false).unwrap();
        let [file] = &files(&tree)[..] else { panic!("{:?}", files(&tree)) };
        let mut reader = journal.blobs().opener().verify(true).open(&id).unwrap();
        let mut half = vec![0; LARGE / 2];
        reader.read_exact(&mut half).unwrap();
        assert_eq!(half, content[..LARGE / 2]);
        match damage {
            "truncated" => {
                fs::File::options().write(true).open(file).unwrap().set_len(size - 1).unwrap();
                assert_eq!(told(&mut reader), Damage::Size { expected: size, found: size - 1 });
            }
            "flipped" => {
                let mut other = content.clone();
                other[LARGE - 1] ^= 1;
                fs::write(file, &other).unwrap();
                assert!(matches!(told(&mut reader), Damage::Content { .. }));
                // Of the same size, it would be taken for the content when that is written again.
                fs::remove_file(file).unwrap();
            }
            _ => {
                fs::remove_file(file).unwrap();
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest).unwrap();
                assert_eq!(rest, content[LARGE / 2..], "who has it open keeps it");
            }
        }
    }
    let id = write(&journal, b"small");
    let database = journal_kb::rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    database.execute("UPDATE journal_blob_content SET content = CAST('smell' AS BLOB) WHERE size = 5", ()).unwrap();
    assert!(matches!(told(&mut journal.blobs().opener().verify(true).open(&id).unwrap()), Damage::Content { .. }));
}

#[test]
fn a_sweep_removes_what_nobody_refers_to_and_nothing_else() {
    let tree = Tree::new();
    let journal = tree.journal();
    let id = write(&journal, &bytes(10, LARGE));
    journal.settle().unwrap();
    let [file] = &files(&tree)[..] else { panic!() };
    let name = file.file_name().unwrap().to_str().unwrap();
    let stray = file.with_file_name(format!("77.{}", name.split_once('.').unwrap().1));
    fs::write(&stray, "stray").unwrap();
    fs::write(tree.path(".journal/blobs/mine.txt"), "not ours").unwrap();
    let dry = journal.blobs().sweep(true).unwrap();
    assert_eq!((dry.files, dry.bytes, stray.exists()), (1, 5, true));
    assert_eq!(journal.blobs().sweep(false).unwrap(), dry);
    assert!(!stray.exists() && tree.path(".journal/blobs/mine.txt").exists());
    assert_eq!(all(journal.blobs().open(&id).unwrap()), bytes(10, LARGE));
    assert_eq!(journal.blobs().sweep(false).unwrap().files, 0);
}
