//! A disk that is full in the middle of a blob: that blob comes to nothing, its room is given back at once, and everything goes on.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use journal_kb::{BlobError, Error, Journal, NewBlob};

use crate::blobs::bytes;
use crate::blobs_killed::judge;
use crate::torment::Watchdog;
use crate::trouble::Small;

const LIMIT: Duration = Duration::from_secs(120);
/// Nobody waits that long.
const LONG: Duration = Duration::from_secs(100);

fn new(name: Option<&str>) -> NewBlob {
    name.map_or(NewBlob::new(), |name| NewBlob::new().id(name))
}

/// Takes all room but for so many KiB.
fn fill(root: &Path, but: u64) {
    let room = rustix::fs::statvfs(root).unwrap();
    let size = (room.f_bavail * room.f_frsize).checked_sub(but << 10).unwrap();
    fs::write(root.join("filler"), vec![1; size as usize]).unwrap();
}

/// Large and small, it can be written and read.
fn works(journal: &Journal, seed: u8) {
    for size in [100, 80_000] {
        let mut blob = journal.blobs().create().unwrap();
        blob.write_all(&bytes(seed, size)).unwrap();
        let id = blob.seal().unwrap();
        let mut content = Vec::new();
        journal.blobs().opener().verify(true).open(id).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, bytes(seed, size));
    }
    // Of a page that was there before the old version would be kept.
    let page = format!("page-{seed}");
    journal.transact(|txn| txn.write(&page, [seed])).unwrap();
    assert_eq!(fs::read(journal.root().join(page)).unwrap(), [seed]);
}

fn staged(root: &Path) -> usize {
    fs::read_dir(root.join(".journal/stage")).unwrap().count()
}

#[test]
fn a_blob_that_fills_the_disk_leaves_nothing_and_who_waits_for_it_is_told() {
    let _watchdog = Watchdog::new("a full disk", LIMIT);
    let Some(small) = Small::mount("12m") else { return };
    let root = small.0.path();
    let journal = Journal::open(root).unwrap();
    works(&journal, 1);
    for (n, name) in [None, Some("alone"), Some("with others")].into_iter().enumerate() {
        let mut blob = journal.blobs().create_with(new(name)).unwrap();
        let (told, hears) = mpsc::channel();
        let waits = name.map(str::to_owned).map(|id| {
            let reader = journal.clone();
            let told = move |wait| told.send(wait).unwrap();
            std::thread::spawn(move || reader.blobs().opener().wait(LONG).on_wait(told).open(id).map(drop))
        });
        let piece = vec![n as u8; 200_000];
        let error = (0..100).find_map(|_| blob.write_all(&piece).err()).expect("there is no room for all of it");
        assert_eq!((error.kind(), staged(root)), (ErrorKind::StorageFull, 0), "its room is given back: {error}");
        assert!(blob.write_all(b"more").is_err());
        works(&journal, 2 + n as u8);
        if waits.is_some() {
            hears.recv().unwrap();
        }
        let mut txn = journal.begin("with others").unwrap();
        let sealed = match name {
            Some("with others") => txn.seal(blob),
            _ => blob.seal(),
        };
        assert!(matches!(sealed, Err(Error::Blob(BlobError::WriteFailed { .. }))), "{sealed:?}");
        txn.write(format!("others-{n}"), "are written").unwrap();
        txn.commit().unwrap();
        if let Some(waits) = waits {
            let id = name.unwrap().to_owned();
            assert!(matches!(waits.join().unwrap(), Err(Error::Blob(BlobError::Aborted { id: of })) if of == id));
        }
    }
    journal.close().unwrap();
    assert_eq!(judge::wrong(root), [""; 0]);
}

/// What has stayed in memory meets a full disk only when it is sealed; bytes that go to the database, only in its COMMIT.
#[test]
fn a_blob_that_cannot_be_sealed_for_want_of_room_leaves_nothing() {
    let Some(small) = Small::mount("12m") else { return };
    let root = small.0.path();
    let journal = Journal::options().inline_blob(1 << 20).open(root).unwrap();
    let files = Journal::options().inline_blob(1000).open(root).unwrap();
    works(&journal, 1);
    let mut seed = 1;
    for (writer, size) in [(&files, 200_000), (&journal, 1 << 20)] {
        for name in [None, Some(format!("no room for {size}"))] {
            let mut blob = writer.blobs().create_with(new(name.as_deref())).unwrap();
            blob.write_all(&bytes(0, size)).unwrap();
            fill(root, 100);
            let error = blob.seal().unwrap_err();
            assert!(error.is_full() && !error.is_outcome_unknown(), "{error}");
            let id = name.unwrap_or_else(|| judge::by_content(&bytes(0, size)).to_string());
            let opened = journal.blobs().opener().wait(LONG).open(&id).unwrap_err();
            assert!(
                matches!(opened, Error::Blob(BlobError::Aborted { .. } | BlobError::NotFound { .. })),
                "it is no blob: {opened}"
            );
            assert_eq!(staged(root), 0);
            fs::remove_file(root.join("filler")).unwrap();
            seed += 1;
            works(&journal, seed);
        }
    }
    files.close().unwrap();
    journal.close().unwrap();
    assert_eq!(judge::wrong(root), [""; 0]);
}
