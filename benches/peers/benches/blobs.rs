//! One blob at a time. `src/` reads these results by their names, and puts them into docs/blobs-performance.md.
//!
//! - `blobs/<place>/seal`: from `create` until it is sealed, alone, beside a bare atomic write and a row of plain SQLite;
//! - `blobs/<place>/open`: opening one that is sealed.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use common::{in_sqlite, plain_sqlite, settings};
use criterion::{Criterion, criterion_group, criterion_main};
use journal_kb::{BlobId, Journal};
use journal_kb_peers::shared::{Homes, Place, places};

const SIZES: [(&str, usize); 2] = [("4 KiB", 4 << 10), ("1 MiB", 1 << 20)];
const TABLE: &str = "CREATE TABLE blob (id INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT";
const INSERT: &str = "INSERT INTO blob (content) VALUES (?1)";
/// So many there are where one is opened.
const FEW: usize = 100;

/// What no other has said.
fn renew(content: &mut [u8], number: &mut usize) {
    *number += 1;
    content[..size_of::<usize>()].copy_from_slice(&number.to_le_bytes());
}

fn seal_one(journal: &Journal, content: &[u8]) -> BlobId {
    let mut blob = journal.blobs().create().expect("a blob");
    blob.write_all(content).expect("written");
    blob.seal().expect("sealed")
}

/// A temporary name, its sync, the rename, the sync of the directory.
fn bare(root: &Path, number: usize, content: &[u8]) -> std::io::Result<()> {
    let temporary = root.join(format!(".{number}.tmp"));
    let mut new = File::create(&temporary)?;
    new.write_all(content)?;
    new.sync_all()?;
    fs::rename(&temporary, root.join(number.to_string()))?;
    File::open(root)?.sync_all()
}

fn seal(criterion: &mut Criterion, place: &Place, homes: &mut Homes) {
    let mut group = criterion.benchmark_group(format!("blobs/{}/seal", place.name));
    for (name, size) in SIZES {
        let (mut content, mut number) = (vec![7; size], 0);
        let journal = Journal::open(homes.make(place).expect("a directory to measure in")).expect("a journal");
        group.bench_function(format!("journal/{name}"), |bencher| {
            bencher.iter(|| {
                renew(&mut content, &mut number);
                seal_one(&journal, &content)
            });
        });
        journal.close().expect("closed");
        let root = homes.make(place).expect("a directory to measure in");
        group.bench_function(format!("bare/{name}"), |bencher| {
            bencher.iter(|| {
                renew(&mut content, &mut number);
                bare(&root, number, &content).expect("written for good");
            });
        });
        let mut plain = plain_sqlite(&homes.make(place).expect("a directory to measure in")).expect("a database");
        plain.execute_batch(TABLE).expect("a table");
        group.bench_function(format!("sqlite/{name}"), |bencher| {
            bencher.iter(|| {
                renew(&mut content, &mut number);
                in_sqlite(&mut plain, INSERT, &[[content.as_slice()]]).expect("a commit");
            });
        });
    }
    group.finish();
}

fn open(criterion: &mut Criterion, place: &Place, homes: &mut Homes) {
    let mut group = criterion.benchmark_group(format!("blobs/{}/open", place.name));
    let journal = Journal::open(homes.make(place).expect("a directory to measure in")).expect("a journal");
    for (name, size) in [("inline", SIZES[0].1), ("file", SIZES[1].1)] {
        let (mut content, mut number) = (vec![7; size], 0);
        let mut ids = Vec::new();
        for _ in 0..FEW {
            renew(&mut content, &mut number);
            ids.push(seal_one(&journal, &content));
        }
        journal.settle().expect("settled");
        let mut turns = ids.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| turns.next().map(|id| journal.blobs().open(id).expect("opened").len()));
        });
    }
    group.finish();
    journal.close().expect("closed");
}

fn blobs(criterion: &mut Criterion) {
    let mut homes = Homes::default();
    for place in places(env!("CARGO_TARGET_TMPDIR")) {
        seal(criterion, &place, &mut homes);
        open(criterion, &place, &mut homes);
    }
}

criterion_group! {
    name = benches;
    config = settings();
    targets = blobs
}
criterion_main!(benches);
