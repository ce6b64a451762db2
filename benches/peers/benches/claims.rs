//! What is claimed of the time that things take, each beside what it is compared with. `src/` reads these results by
//! their names, and puts them into docs/performance.md.
//!
//! - `files/<place>/<new|overwrite>`: 4 KiB files, as one transaction or without one;
//! - `rows/<place>`: a transaction of rows only, beside plain SQLite;
//! - `floor/<place>`: what such a commit cannot do without, without anything else;
//! - `open/<place>`: opening where there is nothing to recover;
//! - `sync/<quiet|busy>`: the ways to make new files durable, on the disk alone: of these settling chooses.

mod common;

use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{in_sqlite, plain_sqlite, settings};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use journal_kb::Journal;
use journal_kb_peers::Kind;
use journal_kb_peers::shared::{DIRECTORIES, Homes, Place, SIZE, content, path, places};

const SCHEMA: &str = "CREATE TABLE doc (id INTEGER PRIMARY KEY, path TEXT NOT NULL, title TEXT NOT NULL) STRICT";
const INSERT: &str = "INSERT INTO doc (path, title) VALUES (?1, ?2)";
/// About as many pages of contents as the log takes before it is carried over.
const PAGES_OF_LOG: usize = 2000;
const ROW: (&str, &str) = ("pages/greeting.md", "Hello");

fn files(criterion: &mut Criterion, place: &Place, homes: &mut Homes) {
    for what in ["new", "overwrite"] {
        let mut group = criterion.benchmark_group(format!("files/{}/{what}", place.name));
        group.sampling_mode(SamplingMode::Flat);
        for files in [1, 100] {
            group.throughput(Throughput::Elements(files as u64));
            for kind in Kind::ALL {
                let root = homes.make(place).expect("a directory to measure in");
                let contender = kind.open(&root).expect("ready to write");
                // Numbers go on from iteration to iteration, so that what is new stays new.
                let mut round = 0;
                group.bench_function(BenchmarkId::new(kind.name(), files), |bencher| {
                    bencher.iter(|| {
                        round += 1;
                        let first = if what == "new" { round * files } else { 0 };
                        contender.write(first..first + files, round).expect("written");
                    });
                });
                contender.close().expect("closed");
            }
        }
        group.finish();
    }
}

fn rows(criterion: &mut Criterion, place: &Place, homes: &mut Homes) {
    let mut group = criterion.benchmark_group(format!("rows/{}", place.name));
    let journal = Journal::open(homes.make(place).expect("a directory to measure in")).expect("a journal");
    journal.migrate(&[SCHEMA]).expect("a table");
    group.bench_function("journal", |bencher| {
        bencher.iter(|| {
            let done = journal.transact(|txn| txn.sql(|rows| rows.execute(INSERT, ROW).map(drop)));
            black_box(done.expect("a commit"));
        });
    });
    journal.close().expect("closed");

    let root = homes.make(place).expect("a directory to measure in");
    let mut plain = plain_sqlite(&root).expect("a database");
    plain.execute_batch(SCHEMA).expect("a table");
    group.bench_function("sqlite", |bencher| {
        bencher.iter(|| in_sqlite(&mut plain, INSERT, &[ROW]).expect("a commit"));
    });
    group.finish();
}

/// What a commit that puts files in their places and makes them durable by one sync does at least: writes their bytes into
/// the log of a database, and creates and renames the files, which nobody syncs. That log is carried over by somebody else,
/// and now and then, so that it is written over instead of growing.
fn floor(criterion: &mut Criterion, place: &Place, homes: &mut Homes) {
    let mut group = criterion.benchmark_group(format!("floor/{}", place.name));
    group.sampling_mode(SamplingMode::Flat);
    for files in [1, 100] {
        let root = homes.make(place).expect("a directory to measure in");
        let mut plain = plain_sqlite(&root).expect("a database");
        plain.execute_batch("CREATE TABLE content (id INTEGER PRIMARY KEY, bytes BLOB) STRICT").expect("a table");
        plain.pragma_update(None, "wal_autocheckpoint", 0).expect("no checkpoints of its own");
        let bytes = vec![7_u8; SIZE];
        let rows = vec![(&bytes,); files];
        let mut commits = 0;
        let mut commit = || {
            if commits % (PAGES_OF_LOG / files) == 0 {
                plain.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(())).expect("a checkpoint");
            }
            commits += 1;
            let start = Instant::now();
            in_sqlite(&mut plain, "INSERT INTO content (bytes) VALUES (?1)", &rows).expect("a commit");
            start.elapsed()
        };
        group.bench_function(BenchmarkId::new("log", files), |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| commit()).sum());
        });
        let root = homes.make(place).expect("a directory to measure in");
        let mut round = 0;
        group.bench_function(BenchmarkId::new("put", files), |bencher| {
            bencher.iter(|| {
                round += 1;
                let content = content(round);
                (round * files..(round + 1) * files).try_for_each(|file| put(&root, file, &content)).expect("written");
            });
        });
    }
    group.finish();
}

/// Writes a file under a temporary name and renames it, without any sync.
fn put(root: &Path, file: usize, content: &[u8]) -> std::io::Result<()> {
    let temporary = root.join(format!(".{file}.tmp"));
    fs::write(&temporary, content)?;
    fs::rename(&temporary, root.join(path(file)))
}

fn open(criterion: &mut Criterion, place: &Place, homes: &mut Homes) {
    let root = homes.make(place).expect("a directory to measure in");
    let before = Kind::Journal.open(&root).expect("a journal");
    before.write(0..100, 0).expect("written");
    before.close().expect("closed");
    let opened = || {
        let start = Instant::now();
        let journal = Journal::open(&root).expect("opened");
        let took = start.elapsed();
        journal.close().expect("closed");
        took
    };
    let mut group = criterion.benchmark_group(format!("open/{}", place.name));
    group.bench_function("journal", |bencher| bencher.iter_custom(|times| (0..times).map(|_| opened()).sum()));
    group.finish();
}

/// The ways to make new files durable, each by its name in the results.
const WAYS: [(&str, Way); 3] =
    [("one after another", one_after_another), ("several at once", several_at_once), ("syncfs", whole)];

/// Syncs these paths below a root.
type Way = fn(&Path, &[PathBuf]);

/// As many as settling has at once.
const AT_ONCE: usize = 8;

fn one_after_another(_: &Path, paths: &[PathBuf]) {
    paths.iter().for_each(|path| File::open(path).and_then(|file| file.sync_all()).expect("synced"));
}

fn several_at_once(root: &Path, paths: &[PathBuf]) {
    std::thread::scope(|scope| {
        for some in paths.chunks(paths.len().div_ceil(AT_ONCE)) {
            scope.spawn(move || one_after_another(root, some));
        }
    });
}

fn whole(root: &Path, _: &[PathBuf]) {
    rustix::fs::syncfs(File::open(root).expect("opened")).expect("synced");
}

/// Files as an applied commit leaves them, their directories, and the one they came from. `busy`: while somebody else has
/// written 64 MiB to the same filesystem that nobody has synced.
fn syncs(criterion: &mut Criterion, place: &Place, homes: &mut Homes) {
    for (state, sizes, neighbour) in [("quiet", &[1, 2, 4, 8, 16, 64][..], 0), ("busy", &[8, 64][..], 64 << 20)] {
        let mut group = criterion.benchmark_group(format!("sync/{state}"));
        group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(1));
        let root = homes.make(place).expect("a directory to measure in");
        let other = root.join("neighbour");
        let mut round = 0;
        let mut once = |way: Way, files: usize| {
            round += 1;
            let new = round * files..(round + 1) * files;
            new.clone().try_for_each(|file| put(&root, file, &content(round))).expect("written");
            let mut paths: Vec<_> = new.map(|file| root.join(path(file))).collect();
            paths.extend((0..files.min(DIRECTORIES)).map(|n| root.join(format!("d{n}"))).chain([root.clone()]));
            if neighbour > 0 {
                fs::write(&other, vec![1; neighbour]).expect("written");
            }
            let start = Instant::now();
            way(&root, &paths);
            let took = start.elapsed();
            if neighbour > 0 {
                fs::remove_file(&other).expect("removed");
            }
            whole(&root, &[]);
            took
        };
        for &files in sizes {
            for (name, way) in WAYS {
                group.bench_function(BenchmarkId::new(name, files), |bencher| {
                    bencher.iter_custom(|times| (0..times).map(|_| once(way, files)).sum());
                });
            }
        }
        group.finish();
    }
}

fn claims(criterion: &mut Criterion) {
    let mut homes = Homes::default();
    for place in places(env!("CARGO_TARGET_TMPDIR")) {
        if place.name == "disk" {
            syncs(criterion, &place, &mut homes);
        }
        files(criterion, &place, &mut homes);
        rows(criterion, &place, &mut homes);
        floor(criterion, &place, &mut homes);
        open(criterion, &place, &mut homes);
    }
}

criterion_group! {
    name = benches;
    config = settings();
    targets = claims
}
criterion_main!(benches);
