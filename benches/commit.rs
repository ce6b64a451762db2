//! The claim: a change of files that is all or nothing costs less than the loop people write, which is neither.
//!
//! Each group has both sides in the same run, on disk and on tmpfs: `journal` is one transaction of 4 KiB files, lock
//! included; `bare` writes each file to a temporary name, syncs it, renames it and syncs the directory.
#![allow(clippy::disallowed_methods, reason = "the baseline is what people write with std alone")]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use journal_kb::Journal;

const DIRECTORIES: usize = 10;

fn places() -> Vec<(&'static str, PathBuf)> {
    let disk = ("disk", PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    let memory = ("tmpfs", PathBuf::from("/dev/shm"));
    [disk, memory].into_iter().filter(|(_, path)| path.is_dir()).collect()
}

fn path(file: usize) -> String {
    format!("d{}/{file}", file % DIRECTORIES)
}

fn bare(root: &Path, file: usize, content: &[u8]) -> std::io::Result<()> {
    let target = root.join(path(file));
    let directory = target.parent().unwrap_or(root);
    let temporary = directory.join(format!(".{file}.tmp"));
    let mut new = File::create(&temporary)?;
    new.write_all(content)?;
    new.sync_all()?;
    fs::rename(&temporary, &target)?;
    File::open(directory)?.sync_all()
}

fn commit(criterion: &mut Criterion) {
    let content = vec![7; 4096];
    for (place, base) in places() {
        for overwrite in [false, true] {
            let what = if overwrite { "overwrite" } else { "new" };
            let mut group = criterion.benchmark_group(format!("commit/{place}/{what}"));
            for files in [1, 10, 100] {
                group.throughput(Throughput::Elements(files as u64));
                // Numbers go on from iteration to iteration, so that what is new stays new.
                let mut next = 0;
                let mut first = || {
                    next += files;
                    if overwrite { 0 } else { next - files }
                };
                let home = tempfile::tempdir_in(&base).expect("a directory to measure in");
                let journal = Journal::open(home.path()).expect("a journal");
                group.bench_function(BenchmarkId::new("journal", files), |bencher| {
                    bencher.iter(|| {
                        let from = first();
                        let done = journal
                            .transact(|txn| (from..from + files).try_for_each(|file| txn.write(path(file), &content)));
                        black_box(done.expect("a commit"));
                    });
                });
                drop(journal);
                let home = tempfile::tempdir_in(&base).expect("a directory to measure in");
                (0..DIRECTORIES).for_each(|n| fs::create_dir(home.path().join(format!("d{n}"))).expect("mkdir"));
                group.bench_function(BenchmarkId::new("bare", files), |bencher| {
                    bencher.iter(|| {
                        let from = first();
                        (from..from + files).try_for_each(|file| bare(home.path(), file, &content)).expect("written");
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = commit
}
criterion_main!(benches);
