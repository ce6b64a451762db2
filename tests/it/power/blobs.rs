//! Blobs: an acknowledged seal is whole after any power cut, and a removal that was acknowledged is not taken back.

use std::io::Write;

use journal_kb::{BlobWriter, Journal, NewBlob, Transaction};

use super::record::{Recorder, SOON};
use super::workloads::MANY;
use crate::blobs::bytes;
use crate::blobs_killed::judge::by_content;

/// What is longer is a file.
const INLINE: u64 = 1000;

/// What a blob says: a file of several blocks, but for the first.
fn content(n: usize) -> Vec<u8> {
    bytes(n as u8, if n == 0 { 100 } else { 9_000 + n })
}

fn write(journal: &Journal, name: Option<&str>, n: usize) -> BlobWriter {
    let new = name.map_or(NewBlob::new(), |name| NewBlob::new().id(name));
    let mut blob = journal.blobs().create_with(new).unwrap();
    blob.write_all(&content(n)).unwrap();
    blob
}

pub(super) fn work(recorder: &Recorder<'_>) {
    let journal = recorder.open(Journal::options().inline_blob(INLINE), SOON);
    let seal = |name: Option<&str>, n: usize| {
        let blob = write(&journal, name, n);
        recorder.breathe();
        recorder.commits(&journal, || drop(blob.seal().unwrap()));
    };
    let removes = |id: &str| recorder.commits(&journal, || journal.blobs().remove(id).unwrap());
    let settle = || {
        journal.settle().unwrap();
        recorder.breathe();
    };
    seal(None, 1);
    seal(None, 0);
    seal(Some("named"), 2);
    // Once before it is settled, once behind that.
    seal(Some("same"), 1);
    settle();
    seal(None, 2);

    recorder.commits(&journal, || {
        journal
            .transact(|txn: &mut Transaction| {
                txn.write("pages/new.md", "new\n")?;
                txn.seal(write(&journal, None, 3))?;
                txn.seal(write(&journal, Some("small"), 0))?;
                txn.remove_blob("named")?;
                txn.sql(|rows| rows.execute("INSERT INTO doc VALUES ('blobs', 'Blobs')", ()).map(drop))
            })
            .unwrap();
    });
    // More than are synced one by one.
    recorder.commits(&journal, || {
        let all = |txn: &mut Transaction| (4..4 + MANY).try_for_each(|n| txn.seal(write(&journal, None, n)).map(drop));
        journal.transact(all).unwrap();
    });
    // What is said again before its file has gone, and what is not.
    removes(by_content(&content(3)).as_str());
    seal(Some("again"), 3);
    removes("same");
    removes(by_content(&content(1)).as_str());
    settle();
    seal(None, 1);
    drop(write(&journal, Some("given up"), 2));
    journal.close().unwrap();
}
