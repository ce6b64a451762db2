//! Counts that do not depend on the machine: what one transaction asks of the disk, the kernel, SQLite and the
//! allocator. As a table: `JOURNAL_KB_PRINT_COUNTS=1 cargo test --test it counts:: -- --nocapture --test-threads=1`.
//!
//! Each is bounded by a sum, as measured when it was last changed: a transaction with rows alone, what comes with any
//! file at all, what each directory and each file adds; with some room where others than the engine decide too. Of
//! several rounds the least counts, because what the background does now and then is not the transaction's.

mod allocations;
mod blobs;
mod outbox;
mod runs;
mod statements;
mod syncs;
pub(crate) mod system_calls;

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::path::Path;
use std::time::Duration;

use journal_kb::Journal;

use crate::support::child_root;

/// How many transactions of each kind are looked at, after one that makes the directories.
const ROUNDS: usize = 3;
/// Files in a transaction.
const SIZES: [usize; 4] = [0, 1, 10, 100];
/// Directories the files are spread over.
const DIRECTORIES: usize = 10;
/// Where nothing but the engine decides how many there are.
const NO_ROOM: f64 = 1.0;
/// Set: the tests print what they count.
const PRINT: &str = "JOURNAL_KB_PRINT_COUNTS";

/// A kind of transaction: one row, and this many files of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    overwrite: bool,
    files: usize,
}

/// Every kind, in the order of [`commit_all`].
fn kinds() -> impl Iterator<Item = Kind> {
    SIZES.into_iter().flat_map(|files| [false, true].map(|overwrite| Kind { overwrite, files }))
}

/// The kind of each transaction that is looked at.
fn looked_at() -> impl Iterator<Item = Kind> {
    kinds().flat_map(|kind| std::iter::repeat_n(kind, ROUNDS))
}

/// A journal whose background settles nothing by itself.
fn journal(root: &Path) -> Journal {
    let never = Duration::from_secs(3600);
    let options = Journal::options().settle_after(never).settle_bytes(u64::MAX).settle_paths(u64::MAX);
    let journal = options.open(root).unwrap();
    journal.migrate(&["CREATE TABLE n(x)"]).unwrap();
    journal
}

/// Commits every kind of transaction, each that is looked at through `around`.
fn commit_all(journal: &Journal, mut around: impl FnMut(Kind, &mut dyn FnMut())) {
    for kind in kinds() {
        for round in 0..=ROUNDS {
            let number = if kind.overwrite { 0 } else { round };
            let name = |file: usize| format!("{}/{}/{number}-{file}", kind.files, file % DIRECTORIES);
            let (names, content): (Vec<_>, _) = ((0..kind.files).map(name).collect(), vec![round as u8; 4096]);
            let mut transaction = || {
                let done = journal.transact(|txn| {
                    names.iter().try_for_each(|name| txn.write(name, &content))?;
                    txn.sql(|rows| rows.execute("INSERT INTO n VALUES (1)", ()).map(drop))
                });
                done.unwrap();
            };
            match round {
                0 => transaction(),
                _ => around(kind, &mut transaction),
            }
        }
    }
}

/// This many of one thing in a transaction, as measured.
#[derive(Clone, Copy, Debug)]
struct Bound {
    what: &'static str,
    /// With rows alone.
    rows: f64,
    /// Once there are files.
    files: f64,
    /// For each directory they lie in.
    directory: f64,
    /// For each new file.
    new: f64,
    /// For each that is overwritten.
    overwrite: f64,
}

impl Bound {
    const fn new(what: &'static str, rows: f64, files: f64, directory: f64, new: f64, overwrite: f64) -> Self {
        Self { what, rows, files, directory, new, overwrite }
    }

    /// At most this many, with `room` times what was measured.
    fn of(&self, kind: Kind, room: f64) -> usize {
        let each = if kind.overwrite { self.overwrite } else { self.new };
        let files = if kind.files == 0 { 0.0 } else { self.files };
        let directories = kind.files.min(DIRECTORIES) as f64;
        let sum = self.rows + files + self.directory * directories + each * kind.files as f64;
        (sum * room) as usize
    }
}

/// The least that was counted of each thing.
#[derive(Debug, Default)]
struct Counts(BTreeMap<(&'static str, Kind), usize>);

impl Counts {
    fn note(&mut self, what: &'static str, kind: Kind, count: usize) {
        let least = self.0.entry((what, kind)).or_insert(count);
        *least = count.min(*least);
    }

    /// Fails where something is counted more often than its bound says, or was not counted.
    fn check(&self, of: &str, bounds: &[Bound], room: f64) {
        let mut table = format!("{of}: counted/bound\n{:<12}", "");
        let mut faults = String::new();
        for kind in kinds() {
            write!(table, "{:>15}", format!("{} {}", kind.files, if kind.overwrite { "over" } else { "new" })).unwrap();
        }
        for bound in bounds {
            write!(table, "\n{:<12}", bound.what).unwrap();
            for kind in kinds() {
                let (count, most) = (self.0[&(bound.what, kind)], bound.of(kind, room));
                write!(table, "{:>15}", format!("{count}/{most}")).unwrap();
                if count > most {
                    writeln!(faults, "{} in {kind:?}: {count}, and not {most} at most", bound.what).unwrap();
                }
            }
        }
        if std::env::var_os(PRINT).is_some() {
            println!("{table}\n");
        }
        assert!(faults.is_empty(), "{of}:\n{faults}\n{table}");
    }
}

/// How many of one thing each of some works may come to.
struct Most<const N: usize> {
    what: &'static str,
    /// In the order of the works, as measured.
    most: [usize; N],
    /// With so many times that.
    room: f64,
}

impl<const N: usize> Most<N> {
    /// The least of several rounds counts.
    fn check<W: Copy + Ord + Debug>(&self, works: [W; N], counted: impl IntoIterator<Item = (W, usize)>) {
        let mut least = BTreeMap::new();
        for (work, count) in counted {
            let known = least.entry(work).or_insert(count);
            *known = count.min(*known);
        }
        let most = self.most.map(|most| (most as f64 * self.room) as usize);
        let counted = works.map(|work| least[&work]);
        if std::env::var_os(PRINT).is_some() {
            println!("{}: counted {counted:?}, at most {most:?}", self.what);
        }
        for (work, (count, most)) in works.into_iter().zip(counted.into_iter().zip(most)) {
            assert!(count <= most, "{}, {work:?}: {count}, and not {most} at most", self.what);
        }
    }
}

/// The process that strace watches: a `getppid` before and after each transaction, all of one thread.
#[test]
fn committing_child() {
    let Some(root) = child_root() else { return };
    std::fs::create_dir_all(&root).unwrap();
    let journal = journal(&root);
    commit_all(&journal, |_, transaction| {
        let _ = rustix::process::getppid();
        transaction();
        let _ = rustix::process::getppid();
    });
    // Gone without settling, which is not what is counted.
    std::process::exit(0);
}
