//! The same counts of blobs: what one adds to a commit, what it costs to seal one alone, to open one, and to wait for one.

use std::io::Write;
use std::sync::mpsc;

use journal_kb::{BlobId, BlobWriter, Journal, NewBlob};

use super::{Most, NO_ROOM, ROUNDS, allocations, journal, statements, system_calls};
use crate::support::{Tree, child_root};

/// In the database, and in a file; in bytes.
const SMALL: usize = 4 << 10;
const LARGE: usize = 100 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// A transaction of one row, to compare with.
    Row,
    /// The same, with a small blob.
    RowSeals,
    /// One with a file.
    RowSealsLarge,
    /// A blob, sealed alone.
    Seal,
    SealLarge,
    /// One that is sealed is opened.
    Open,
    OpenLarge,
}

const WORKS: [Work; 7] =
    [Work::Row, Work::RowSeals, Work::RowSealsLarge, Work::Seal, Work::SealLarge, Work::Open, Work::OpenLarge];

/// For another version of std or SQLite, and what the background does in every round.
const ROOM: f64 = 1.1;

/// Of a file: itself, its name in the stage, the log.
const SYNCS: Most<7> = Most { what: "device syncs, of all threads", most: [1, 1, 3, 1, 3, 0, 0], room: NO_ROOM };
const STATEMENTS: Most<7> =
    Most { what: "SQL statements of the thread", most: [15, 17, 17, 4, 4, 3, 3], room: NO_ROOM };
const CALLS: Most<7> = Most { what: "system calls of the thread", most: [23, 33, 35, 19, 21, 4, 8], room: ROOM };
const ALLOCATIONS: Most<7> = Most { what: "allocations of the thread", most: [33, 42, 56, 13, 27, 8, 9], room: ROOM };

/// What is closed by who waited: the bell. Watches are left to others, for the kernel takes some milliseconds to close one.
const CLOSED: Most<1> = Most { what: "files closed by who has waited for a blob", most: [1], room: NO_ROOM };

fn write(journal: &Journal, content: &[u8]) -> BlobWriter {
    let mut blob = journal.blobs().create().unwrap();
    blob.write_all(content).unwrap();
    blob
}

/// Does every work some times, each through `around`.
fn work_all(journal: &Journal, mut around: impl FnMut(Work, &mut dyn FnMut())) {
    let mut content = vec![7; LARGE];
    let mut number = 0_u64;
    let mut sealed: Option<BlobId> = None;
    // One that comes first, of each.
    for round in 0..=ROUNDS {
        for work in WORKS {
            number += 1;
            content[..8].copy_from_slice(&number.to_le_bytes());
            let size = match work {
                Work::RowSealsLarge | Work::SealLarge | Work::OpenLarge => LARGE,
                _ => SMALL,
            };
            if let Work::Open | Work::OpenLarge = work {
                sealed = Some(write(journal, &content[..size]).seal().unwrap());
            }
            let mut does = || match work {
                Work::Row | Work::RowSeals | Work::RowSealsLarge => {
                    let mut txn = journal.begin("counted").unwrap();
                    txn.sql(|rows| rows.execute("INSERT INTO n VALUES (1)", ()).map(drop)).unwrap();
                    if work != Work::Row {
                        txn.seal(write(journal, &content[..size])).unwrap();
                    }
                    txn.commit().unwrap();
                }
                Work::Seal | Work::SealLarge => drop(write(journal, &content[..size]).seal().unwrap()),
                Work::Open | Work::OpenLarge => {
                    assert_eq!(journal.blobs().open(sealed.as_ref().unwrap()).unwrap().len(), size as u64);
                }
            };
            if round == 0 { does() } else { around(work, &mut does) }
        }
    }
}

#[test]
fn blobs_add_few_allocations() {
    let tree = Tree::new();
    let journal = journal(tree.root());
    let mut counted = Vec::new();
    work_all(&journal, |work, does| counted.push((work, allocations::of(does))));
    ALLOCATIONS.check(WORKS, counted);
}

#[test]
fn a_small_blob_adds_no_sync_and_blobs_few_system_calls() {
    let Some(works) = system_calls::between_marks("counts::blobs::sealing_child", &["-s", "0"]) else { return };
    let order = WORKS.repeat(ROUNDS);
    assert_eq!(works.len(), order.len(), "works between marks");
    let counted = works.iter().map(|calls| system_calls::syncs_and_all(calls));
    let (syncs, calls): (Vec<_>, Vec<_>) = counted.unzip();
    SYNCS.check(WORKS, order.iter().copied().zip(syncs));
    CALLS.check(WORKS, order.iter().copied().zip(calls));
}

/// The process that strace watches.
#[test]
fn sealing_child() {
    let Some(root) = child_root() else { return };
    std::fs::create_dir_all(&root).unwrap();
    work_all(&journal(&root), |_, does| system_calls::between(does));
}

#[test]
fn blobs_add_few_statements() {
    statements::passes_in_a_child("counts::blobs::traced_child");
}

/// The process whose statements are counted.
#[test]
fn traced_child() {
    let Some(root) = child_root() else { return };
    statements::trace_all();
    let mut counted = Vec::new();
    work_all(&journal(&root), |work, does| counted.push((work, statements::of(does))));
    STATEMENTS.check(WORKS, counted);
}

#[test]
fn who_was_woken_does_not_wait_until_its_watches_are_closed() {
    let Some(waits) = system_calls::between_marks("counts::blobs::waiting_child", &["-s", "0"]) else { return };
    assert_eq!(waits.len(), ROUNDS, "waits between marks");
    CLOSED.check(["waits"], waits.iter().map(|calls| ("waits", system_calls::closed(calls))));
}

/// The process that strace watches: a `getppid` before and after it has waited for a blob.
#[test]
fn waiting_child() {
    let Some(root) = child_root() else { return };
    std::fs::create_dir_all(&root).unwrap();
    let journal = journal(&root);
    for round in 0..ROUNDS {
        let name = format!("page {round}");
        let mut blob = journal.blobs().create_with(NewBlob::new().id(&name)).unwrap();
        blob.write_all(name.as_bytes()).unwrap();
        let (waits, waited) = mpsc::channel();
        let writer = std::thread::spawn(move || {
            waited.recv().unwrap();
            blob.seal().unwrap();
        });
        let opener = journal.blobs().opener().on_wait(move |_| {
            let _ = waits.send(());
        });
        let _ = rustix::process::getppid();
        let reader = opener.open(&name).unwrap();
        let _ = rustix::process::getppid();
        assert_eq!(reader.len(), name.len() as u64);
        writer.join().unwrap();
    }
}
