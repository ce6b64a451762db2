//! What a journal does on a disk that remembers: its writes, its flushes, and what was promised when.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use journal_kb::rusqlite::Connection;
use journal_kb::{Journal, Options, Transaction};

use super::disk::{Content, Disk, Event, Mark};
use super::machine::Machine;
use super::sys;
use super::workloads::Workload;
use crate::crash_points::manifest::Manifest;
use crate::crash_points::open;
use crate::delivery::promise;
use crate::filesystems::image::Kind;

/// The tree and the rows, as they must be together.
#[derive(Clone)]
pub(super) struct Shot {
    pub(super) tree: Manifest,
    pub(super) rows: Vec<(String, String)>,
}

impl Shot {
    pub(super) fn of(journal: &Journal) -> journal_kb::Result<Self> {
        let all = "SELECT path, title FROM doc ORDER BY path";
        let mut rows = journal.read(|rows| rows.query_map(all, (), |row| Ok((row.get(0)?, row.get(1)?))))?;
        rows.extend(beside(journal.root()));
        Ok(Self { tree: Manifest::of(journal.root()), rows })
    }
}

/// What is durable of runs: their items, what was tried of them, and cursors and ends; the versions of keys of the outbox; and blobs.
fn beside(root: &Path) -> Vec<(String, String)> {
    // SQLite knows that this process has it open already.
    let database = Connection::open(root.join(".journal/journal.db")).unwrap();
    let all = "SELECT 'item ' || CAST(item AS TEXT), '' FROM journal_run_item \
               UNION ALL SELECT 'try ' || CAST(item AS TEXT), state || ' ' || tries FROM journal_run_try \
               UNION ALL SELECT 'cursor of ' || job, cursor FROM journal_run WHERE cursor IS NOT NULL \
               UNION ALL SELECT 'run ' || job, state FROM journal_run WHERE state <> 'open' \
               UNION ALL SELECT 'key ' || topic || ' ' || key, version || ' ' || floor FROM journal_outbox_key \
               UNION ALL SELECT 'blob ' || b.id, b.state || ' ' || coalesce(hex(c.hash), '') \
                 FROM journal_blob b LEFT JOIN journal_blob_content c ON c.id = b.content WHERE b.state IN ('sealed', 'removed') \
               UNION ALL SELECT 'content ' || hex(hash), direct || '' FROM journal_blob_content WHERE direct > 0 ORDER BY 1";
    let mut all = database.prepare(all).unwrap();
    let rows = all.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(|row| row.unwrap()).collect()
}

/// A disk from before, everything that happened to it, and the states that its tree and rows went through.
pub(super) struct Recording {
    pub(super) what: String,
    pub(super) base: Content,
    pub(super) log: Vec<Event>,
    pub(super) states: Vec<Shot>,
    /// The first and the last state that may be found where the log says nothing yet.
    pub(super) first: (usize, usize),
    /// So many events happened before the work began.
    pub(super) opening: usize,
    /// What others had been told before.
    pub(super) told: Vec<promise::Event>,
}

impl Recording {
    /// The first and the last state that may be found when the power fails after so many events.
    pub(super) fn bounds(&self, end: usize) -> (usize, usize) {
        self.log[..end].iter().fold(self.first, |(low, high), event| match event {
            Event::Mark(Mark::Begun(state)) => (low, high.max(*state)),
            Event::Mark(Mark::Done(state)) => (low.max(*state), high.max(*state)),
            _ => (low, high),
        })
    }

    /// What others have been told when the power fails after so many events.
    pub(super) fn told(&self, end: usize) -> Vec<promise::Event> {
        let within = self.log[..end].iter().filter_map(|event| match event {
            Event::Mark(Mark::Told(told)) => Some(told),
            _ => None,
        });
        self.told.iter().chain(within).cloned().chain([promise::Event::Cut]).collect()
    }
}

/// A pause after which there is little that is not settled yet.
pub(super) const SOON: Duration = Duration::from_millis(20);

/// How the machine is while it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Air {
    /// Nothing reaches the disk that the journal did not ask for.
    Calm,
    /// In between, all metadata is written out at once: what a program under a guard has done, say, and not what is done next.
    Gusty,
    /// The kernel writes things out all the time, in its own order: metadata without data, and data without metadata.
    Restless,
}

/// What a workload is done with.
pub(super) struct Recorder<'m> {
    pub(super) disk: &'m Arc<Disk>,
    kernel: Kernel,
    air: Air,
    pub(super) root: PathBuf,
    pub(super) outside: PathBuf,
    states: RefCell<Vec<Shot>>,
    opening: Cell<usize>,
}

impl Recorder<'_> {
    /// Opens a journal as it is after some use: its log has room that was written to before, so that a COMMIT is only a write
    /// into the log's own blocks, and takes nothing along that somebody forgot to sync. It settles after so long without a
    /// commit. The work begins here.
    pub(super) fn open(&self, options: Options, idle: Duration) -> Journal {
        let journal = options.settle_after(idle).open(&self.root).unwrap();
        let content = "used\n".repeat(10_000);
        // In the root, whose own times are not looked at.
        let write = |txn: &mut Transaction| (0..10).try_for_each(|n| txn.write(format!("used-{n}.md"), &content));
        journal.transact(write).unwrap();
        // The background settles it, and carries the log over without making it shorter. Where it does not do so in time, this is
        // one recording that shows less.
        std::thread::sleep(2 * idle + 3 * SOON);
        *self.states.borrow_mut() = vec![Shot::of(&journal).unwrap()];
        self.opening.set(self.disk.happened());
        journal
    }

    /// The same, as usual.
    pub(super) fn open_used(&self) -> Journal {
        self.open(Journal::options(), SOON)
    }

    /// One transaction that leads to another state. When `work` has returned, that must never be lost again.
    pub(super) fn commits(&self, journal: &Journal, work: impl FnOnce()) {
        let next = self.states.borrow().len();
        self.disk.mark(Mark::Begun(next));
        work();
        self.disk.mark(Mark::Done(next));
        let Shot { tree, rows } = Shot::of(journal).unwrap();
        let mut states = self.states.borrow_mut();
        let tree = tree.committed_after(&states.last().expect("the first state is known").tree);
        states.push(Shot { tree, rows });
        drop(states);
        self.breathe();
    }

    /// Work after which everything is as it was.
    pub(super) fn comes_to_nothing(&self, journal: &Journal, work: impl FnOnce()) {
        work();
        let (now, states) = (Shot::of(journal).unwrap(), self.states.borrow());
        let before = states.last().expect("the first state is known");
        assert_eq!(now.tree.differences(&before.tree), [""; 0]);
        assert_eq!(now.rows, before.rows);
        drop(states);
        self.breathe();
    }

    /// Where the kernel may have written something out.
    pub(super) fn breathe(&self) {
        if self.air != Air::Calm {
            self.kernel.writes_out();
        }
    }
}

/// What the kernel does by itself some seconds later.
struct Kernel {
    kind: Kind,
    root: PathBuf,
    outside: PathBuf,
}

impl Kernel {
    fn writes_out(&self) {
        if self.kind == Kind::Btrfs {
            return sys::commit_btrfs(&File::open(&self.outside).unwrap()).unwrap();
        }
        // A file that has nothing to do with anything takes all metadata with it, and not their data.
        let mut file = File::create(self.outside.join("unrelated")).unwrap();
        file.write_all(b"unrelated").unwrap();
        file.sync_all().unwrap();
    }

    /// The data of files, without their metadata.
    fn writes_data(&self) {
        // To close a file of a database would drop the locks that its connection in this process has on it.
        let own = |entry: &walkdir::DirEntry| {
            let name = entry.file_name().to_string_lossy();
            name == ".journal" || name.starts_with("index.db")
        };
        let files = walkdir::WalkDir::new(&self.root).into_iter().filter_entry(|entry| !own(entry));
        // They come and go meanwhile.
        for file in files.filter_map(Result::ok).filter(|entry| entry.file_type().is_file()) {
            let _ = File::open(file.path()).and_then(|file| sys::write_back(&file));
        }
    }

    fn works_until(&self, over: &AtomicBool) {
        for n in 0_u64.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_micros(700 * (1 + n % 5)));
            if n % 3 == 2 { self.writes_data() } else { self.writes_out() }
        }
    }
}

/// Prepares a tree on a fresh disk, then does the workload with the disk remembering.
pub(super) fn record(machine: &Machine, workload: &Workload, air: Air) -> Recording {
    let disk = &machine.disk;
    disk.insert(machine.fresh());
    let mounted = machine.boot().unwrap();
    (workload.prepare)(&mounted.root(), &mounted.outside().join("outside"));
    mounted.unmount();

    let base = disk.record();
    let mounted = machine.boot().unwrap();
    let (root, outside) = (mounted.root(), mounted.outside().join("outside"));
    let before = journal_before(&root);
    let kernel = |kind| Kernel { kind, root: root.clone(), outside: mounted.outside() };
    let recorder = Recorder {
        disk,
        kernel: kernel(machine.kind),
        air,
        root: root.clone(),
        outside: outside.clone(),
        states: RefCell::new(vec![before]),
        opening: Cell::default(),
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if air == Air::Restless {
            let (kernel, over) = (kernel(machine.kind), &over);
            scope.spawn(move || kernel.works_until(over));
        }
        let _over = Over(&over);
        (workload.work)(&recorder);
    });
    let (states, opening) = (recorder.states.into_inner(), recorder.opening.get());
    mounted.unmount();
    let log = disk.recorded();
    let what = format!("{}, {air:?}", workload.name);
    Recording { what, base, log, states, first: (0, 0), opening, told: Vec::new() }
}

/// What is there before anything is done.
fn journal_before(root: &Path) -> Shot {
    let journal = open(root);
    let shot = Shot::of(&journal).unwrap();
    journal.close().unwrap();
    shot
}

/// Ends what goes on beside, also when the work panics.
struct Over<'o>(&'o AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is made outside the tree, to be published into it.
pub(super) fn prepare_outside(outside: &Path) {
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::write(outside.join("sub/page.md"), "published\n").unwrap();
}
