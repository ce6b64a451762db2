//! Blobs, looked at by somebody who trusts nothing: other journals, other people's files, a writer that ends at a bad moment.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use journal_kb::{BlobError, BlobId, Damage, Error, Journal, NewBlob};

use crate::support::Tree;
use crate::torment::Watchdog;

const LIMIT: Duration = Duration::from_secs(120);
/// Nobody waits that long.
const LONG: Duration = Duration::from_secs(100);
/// More than stands in the database.
const LARGE: usize = 300_000;

fn write(journal: &Journal, content: &[u8]) -> BlobId {
    let mut blob = journal.blobs().create().unwrap();
    blob.write_all(content).unwrap();
    blob.seal().unwrap()
}

fn read(journal: &Journal, id: &BlobId) -> Vec<u8> {
    let mut content = Vec::new();
    journal.blobs().open(id).unwrap().read_to_end(&mut content).unwrap();
    content
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> BlobError {
    match result {
        Err(Error::Blob(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// What lies where the blobs do.
fn placed(tree: &Tree) -> Vec<PathBuf> {
    let entries = fs::read_dir(tree.path(".journal/blobs")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_transaction_seals_no_blob_of_another_journal() {
    let (tree, elsewhere) = (Tree::new(), Tree::new());
    let (journal, other) = (tree.journal(), elsewhere.journal());
    // Of the same one, opened twice, as well: its session is another one.
    for other in [other, tree.journal()] {
        for size in [10, LARGE] {
            let mut blob = other.blobs().create().unwrap();
            blob.write_all(&vec![1; size]).unwrap();
            let mut txn = journal.begin("").unwrap();
            assert!(matches!(refused(txn.seal(blob)), BlobError::OtherJournal { .. }));
            txn.commit().unwrap();
        }
    }
    for tree in [tree, elsewhere] {
        assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
    }
}

#[test]
fn who_gives_up_within_a_closure_is_heard_of_all_the_same() {
    let _watchdog = Watchdog::new("a blob given up within a closure", LIMIT);
    let tree = Tree::new();
    let journal = tree.journal();
    for (id, seals) in [("dropped", false), ("sealed", true)] {
        let mut blob = journal.blobs().create_with(NewBlob::new().id(id)).unwrap();
        blob.write_all(b"half of it").unwrap();
        let mut blob = Some(blob);
        journal
            .write(|_| {
                match (blob.take(), seals) {
                    (Some(blob), true) => assert!(matches!(blob.seal(), Err(Error::Reentrant { .. }))),
                    (blob, _) => drop(blob),
                }
                Ok(())
            })
            .unwrap();
        let opened = journal.blobs().opener().wait(LONG).open(id);
        assert_eq!(refused(opened), BlobError::Aborted { id: id.into() });
    }
    // The last thing that the process does with it.
    let blob = journal.blobs().create_with(NewBlob::new().id("last")).unwrap();
    let mut blob = Some(blob);
    journal
        .write(|_| {
            drop(blob.take());
            Ok(())
        })
        .unwrap();
    journal.close().unwrap();
    assert_eq!(refused(tree.journal().blobs().open("last")), BlobError::Aborted { id: "last".into() });
}

#[test]
fn the_directory_of_blobs_may_go_and_what_comes_later_is_not_lost() {
    let tree = Tree::new();
    let journal = tree.journal();
    let old = write(&journal, &[1; LARGE]);
    fs::remove_dir_all(tree.path(".journal/blobs")).unwrap();
    let expected = LARGE as u64;
    let damage = Damage::Missing { expected };
    assert_eq!(refused(journal.blobs().open(&old)), BlobError::Damaged { id: old.to_string(), damage });
    let new = write(&journal, &[2; LARGE]);
    journal.transact(|txn| txn.write("page", b"text")).unwrap();
    let _ = journal.settle();
    drop(journal);
    let journal = tree.journal();
    journal.recover().unwrap();
    assert_eq!(read(&journal, &new), [2; LARGE]);
    assert_eq!(write(&journal, &[1; LARGE]), old);
    assert_eq!(read(&journal, &old), [1; LARGE]);
}

#[test]
fn a_broken_directory_of_blobs_does_not_keep_the_tree_from_being_settled() {
    let tree = Tree::new();
    let journal = tree.journal();
    write(&journal, &[1; LARGE]);
    drop(journal);
    fs::remove_dir_all(tree.path(".journal/blobs")).unwrap();
    symlink("/nowhere", tree.path(".journal/blobs")).unwrap();
    let database = journal_kb::rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    database.execute("UPDATE journal_blob_content SET state = 'staged'", ()).unwrap();
    drop(database);
    let journal = tree.journal();
    journal.transact(|txn| txn.write("page", b"text")).unwrap();
    assert!(journal.settle().is_err());
    let unsettled: u64 = {
        let database = journal_kb::rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
        let sql = "SELECT count(*) FROM journal_txn WHERE state IN ('committed', 'applied', 'settling')";
        database.query_row(sql, (), |row| row.get(0)).unwrap()
    };
    assert_eq!(unsettled, 0);
}

#[test]
fn what_somebody_puts_in_place_of_a_blob_is_told_mended_and_removed() {
    let tree = Tree::new();
    let journal = tree.journal();
    for what in ["symlink", "directory", "socket"] {
        let content = vec![what.len() as u8; LARGE];
        let id = write(&journal, &content);
        journal.settle().unwrap();
        let [file] = &placed(&tree)[..] else { panic!("{:?}", placed(&tree)) };
        let put = || {
            fs::rename(file, tree.path("aside")).unwrap();
            match what {
                "symlink" => symlink(tree.path("aside"), file).unwrap(),
                "socket" => drop(std::os::unix::net::UnixListener::bind(file).unwrap()),
                _ => fs::create_dir(file).unwrap(),
            }
        };
        put();
        let expected = LARGE as u64;
        let missing = BlobError::Damaged { id: id.to_string(), damage: Damage::Missing { expected } };
        assert_eq!(refused(journal.blobs().open(&id)), missing, "{what}");
        journal.blobs().remove(&id).unwrap();
        journal.settle().unwrap();
        let database = journal_kb::rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
        let left: u64 = database.query_row("SELECT count(*) FROM journal_blob_content", (), |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "{what}");
        if what == "directory" {
            assert_eq!(journal.blobs().sweep(false).unwrap().files, 0, "it is somebody else's");
            fs::remove_dir(file).unwrap();
        }
        assert_eq!(placed(&tree), [] as [PathBuf; 0], "{what}");
        assert_eq!(fs::read(tree.path("aside")).unwrap(), content, "nobody follows it");
        assert_eq!(write(&journal, &content), id);
        assert_eq!(read(&journal, &id), content);
        journal.blobs().remove(&id).unwrap();
        journal.settle().unwrap();
    }
}

#[test]
fn a_record_may_name_a_blob_that_is_not_there_yet() {
    let _watchdog = Watchdog::new("waiting for a blob that a record names", LIMIT);
    let tree = Tree::new();
    let journal = tree.journal();
    let content = [3; LARGE];
    let by_content = BlobId::new(&format!("blake3:{}", blake3::hash(&content).to_hex())).unwrap();
    for id in ["later", by_content.as_str()] {
        let id = BlobId::new(id).unwrap();
        let (asked, asks) = std::sync::mpsc::channel();
        let (reader, named) = (journal.clone(), id.clone());
        let thread = std::thread::spawn(move || {
            let resolve = move |_: &journal_kb::Rows<'_>| {
                let _ = asked.send(());
                Ok(Some(named.clone()))
            };
            reader.blobs().opener().open_with(resolve, LONG).map(|blob| blob.len())
        });
        asks.recv().unwrap();
        let new = if id.is_by_content() { NewBlob::new() } else { NewBlob::new().id(id.as_str()) };
        let mut blob = journal.blobs().create_with(new).unwrap();
        blob.write_all(&content).unwrap();
        assert_eq!(blob.seal().unwrap(), id);
        assert_eq!(thread.join().unwrap().unwrap(), LARGE as u64);
    }
}

#[test]
fn damaged_bytes_are_mended_as_the_error_says() {
    let tree = Tree::new();
    let journal = tree.journal();
    let content = [4; LARGE];
    let id = write(&journal, &content);
    journal.settle().unwrap();
    let [file] = &placed(&tree)[..] else { panic!() };
    let mut other = content;
    other[7] ^= 1;
    fs::write(file, other).unwrap();
    let verified = || {
        let mut read = Vec::new();
        let mut blob = journal.blobs().opener().verify(true).open(&id).unwrap();
        blob.read_to_end(&mut read).map(|_| read)
    };
    let told = verified().unwrap_err().to_string();
    assert!(told.contains("first remove what is there") && told.contains("write the same content again"), "{told}");
    fs::remove_file(file).unwrap();
    assert_eq!(write(&journal, &content), id);
    assert_eq!(verified().unwrap(), content);
}

#[test]
fn the_same_content_sealed_removed_settled_and_read_by_many_at_once_is_whole_or_not_there() {
    let _watchdog = Watchdog::new("the same content by many at once", LIMIT);
    let rounds: usize = std::env::var("BLOB_REVIEW_ROUNDS").map_or(60, |rounds| rounds.parse().unwrap());
    let tree = Tree::new();
    let small = || Journal::options().inline_blob(100).open(tree.root()).unwrap();
    let journals = [small(), small()];
    std::thread::scope(|scope| {
        for n in 0..6_usize {
            let journal = &journals[n % 2];
            scope.spawn(move || {
                let mut random = n as u64 + 1;
                for round in 0..rounds {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let kind = (random >> 33) as usize;
                    let content = vec![(kind % 3) as u8; if kind.is_multiple_of(5) { 50 } else { 5000 }];
                    let id = BlobId::new(&format!("blake3:{}", blake3::hash(&content).to_hex())).unwrap();
                    match kind / 16 % 5 {
                        0 => assert_eq!(write(journal, &content), id),
                        1 => {
                            let mut blob = journal.blobs().create().unwrap();
                            blob.write_all(&content).unwrap();
                            let mut txn = journal.begin_with(journal_kb::Begin::new("").lock(format!("{n}"))).unwrap();
                            txn.seal(blob).unwrap();
                            if round.is_multiple_of(2) {
                                txn.remove_blob(&id).unwrap();
                            }
                            txn.commit().unwrap();
                        }
                        2 => match journal.blobs().remove(&id) {
                            Err(Error::Blob(BlobError::NotFound { .. })) | Ok(()) => {}
                            other => panic!("{other:?}"),
                        },
                        3 => drop(journal.settle().unwrap()),
                        _ => match journal.blobs().opener().verify(true).open(&id) {
                            Err(Error::Blob(BlobError::NotFound { .. })) => {}
                            opened => {
                                let mut read = Vec::new();
                                opened.unwrap().read_to_end(&mut read).unwrap();
                                assert_eq!(read, content);
                            }
                        },
                    }
                }
            });
        }
    });
    let [journal, other] = journals;
    drop(other);
    for of in 0..3_u8 {
        for size in [50, 5000] {
            let id = BlobId::new(&format!("blake3:{}", blake3::hash(&vec![of; size]).to_hex())).unwrap();
            while journal.blobs().remove(&id).is_ok() {}
        }
    }
    journal.settle().unwrap();
    assert_eq!(placed(&tree), [] as [PathBuf; 0]);
    assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
}

#[test]
fn what_is_sealed_again_while_it_is_being_removed_stays() {
    let _watchdog = Watchdog::new("sealing what is being removed", LIMIT);
    let tree = Tree::new();
    let journal = Journal::options().inline_blob(0).open(tree.root()).unwrap();
    let contents = || (0..40_u8).rev().map(|n| [n; 8]);
    for content in contents().rev() {
        write(&journal, &content);
    }
    for content in contents() {
        journal.blobs().remove(BlobId::new(&format!("blake3:{}", blake3::hash(&content).to_hex())).unwrap()).unwrap();
    }
    // They are removed in the order in which they were made: the two meet.
    let again: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| journal.settle().unwrap());
        contents().map(|content| (write(&journal, &content), content)).collect()
    });
    journal.settle().unwrap();
    for (id, content) in again {
        assert_eq!(read(&journal, &id), content);
    }
}

#[test]
fn a_repeat_of_a_key_seals_and_removes_nothing_and_leaves_nothing() {
    let tree = Tree::new();
    let journal = tree.journal();
    let old = write(&journal, &[5; LARGE]);
    assert_eq!(write(&journal, &[5; LARGE]), old);
    let import = || {
        let mut blob = journal.blobs().create().unwrap();
        blob.write_all(&[6; LARGE]).unwrap();
        let mut txn = journal.begin_with(journal_kb::Begin::new("import").key("one")).unwrap();
        let id = txn.seal(blob).unwrap();
        txn.remove_blob(&old).unwrap();
        (id, txn.commit().unwrap().repeated())
    };
    let (id, repeated) = import();
    assert!(!repeated);
    assert_eq!(import(), (id.clone(), true));
    assert_eq!(read(&journal, &old), [5; LARGE], "it was there twice, and removed once");
    journal.blobs().remove(&id).unwrap();
    assert!(matches!(refused(journal.blobs().open(&id)), BlobError::NotFound { .. }), "it was sealed once");
    journal.blobs().remove(&old).unwrap();
    journal.settle().unwrap();
    assert_eq!(placed(&tree), [] as [PathBuf; 0]);
    assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
}

#[test]
fn rows_that_nobody_of_ours_has_written_are_refused_and_harm_nothing() {
    let tree = Tree::new();
    let journal = tree.journal();
    let kept = write(&journal, &[7; LARGE]);
    let spoil = |sql: &str| {
        let database = journal_kb::rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
        database.execute_batch(sql).unwrap();
    };
    for (n, set) in ["size = -1", "name = '../../page'", "name = '..'", "name = ''", "hash = x'00'", "name = NULL"]
        .into_iter()
        .enumerate()
    {
        let mut blob = journal.blobs().create_with(NewBlob::new().id(format!("{n}"))).unwrap();
        blob.write_all(&[8 + n as u8; LARGE]).unwrap();
        let id = blob.seal().unwrap();
        journal.transact(|txn| txn.write("page", b"text")).unwrap();
        for state in ["staged", "placed", "unwanted"] {
            spoil(&format!(
                "UPDATE journal_blob_content SET {set}, state = '{state}' WHERE id = (SELECT max(id) FROM journal_blob_content)"
            ));
            assert!(journal.blobs().open(&id).is_err(), "{set} {state}");
            let _ = journal.settle();
            journal.recover().unwrap();
            journal.blobs().sweep(true).unwrap();
        }
        journal.blobs().remove(&id).unwrap();
        let _ = journal.settle();
        assert_eq!(fs::read(tree.path("page")).unwrap(), b"text", "{set}");
    }
    spoil(
        "INSERT INTO journal_blob (id, state, session, name, created_ms) VALUES ('a', 'writing', x'00', '../x', 0), \
           ('b', 'writing', NULL, NULL, 0), ('c', 'sealed', NULL, NULL, 0)",
    );
    for id in ["a", "b", "c"] {
        assert!(journal.blobs().open(id).is_err(), "{id}");
    }
    journal.recover().unwrap();
    for id in ["a", "b"] {
        assert!(matches!(refused(journal.blobs().open(id)), BlobError::Incomplete { .. }));
    }
    assert_eq!(read(&journal, &kept), [7; LARGE]);
    spoil("PRAGMA ignore_check_constraints = ON; UPDATE journal_blob_content SET state = 'odd'");
    assert_eq!(write(&journal, &[7; LARGE]), kept);
    assert_eq!(read(&journal, &kept), [7; LARGE]);
}
