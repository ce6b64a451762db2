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
    journal.write(|_| Ok(drop(blob.take()))).unwrap();
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
