//! The claim: a change of files that is all or nothing costs less than the loop people write, which is neither.
//!
//! Each group has both sides in the same run, on disk and on tmpfs: `journal` is one transaction of 4 KiB files, lock
//! included; `bare` writes each file to a temporary name, syncs it, renames it and syncs the directory. What else is claimed,
//! and what other crates make of it: `bash benches/run`.
#![allow(clippy::disallowed_methods, reason = "the baseline is what people write with std alone")]
#![allow(missing_docs, unreachable_pub, reason = "the shared module is public in the crate of the peers")]

mod shared;

use std::hint::black_box;
use std::ops::Range;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use journal_kb::Journal;
use shared::{Homes, bare, content, path, places};

/// Writes these files in one transaction, as content number `round`.
fn transaction(journal: &Journal, files: Range<usize>, round: usize) {
    let content = content(round);
    let done = journal.transact(|txn| files.into_iter().try_for_each(|file| txn.write(path(file), &content)));
    black_box(done.expect("a commit"));
}

/// The same without a transaction.
fn by_hand(root: &Path, files: Range<usize>, round: usize) {
    let content = content(round);
    files.into_iter().try_for_each(|file| bare(root, file, &content)).expect("written");
}

fn commit(criterion: &mut Criterion) {
    let mut homes = Homes::default();
    for place in places(env!("CARGO_TARGET_TMPDIR")) {
        for what in ["new", "overwrite"] {
            let mut group = criterion.benchmark_group(format!("commit/{}/{what}", place.name));
            for files in [1, 10, 100] {
                group.throughput(Throughput::Elements(files as u64));
                // Numbers go on from iteration to iteration, so that what is new stays new.
                let mut round = 0;
                let mut next = || {
                    round += 1;
                    let first = if what == "new" { round * files } else { 0 };
                    (first..first + files, round)
                };
                let root = homes.make(&place).expect("a directory to measure in");
                let journal = Journal::open(root).expect("a journal");
                group.bench_function(BenchmarkId::new("journal", files), |bencher| {
                    bencher.iter(|| {
                        let (files, round) = next();
                        transaction(&journal, files, round);
                    });
                });
                drop(journal);
                let root = homes.make(&place).expect("a directory to measure in");
                group.bench_function(BenchmarkId::new("bare", files), |bencher| {
                    bencher.iter(|| {
                        let (files, round) = next();
                        by_hand(&root, files, round);
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).without_plots();
    targets = commit
}
criterion_main!(benches);
