//! The processes that do the jobs, and how they are started, watched and ended.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use journal_kb::{Ended, Job, Journal, Result, Run, Started, StopToken, Transaction};
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use crate::runs::running;
use crate::support::{child, child_root, directory};

pub(super) const JOB: &str = "import";
/// Two that follow each other, one of them the first of all, and one by itself.
pub(super) const POISON: [&str; 3] = ["item-00000", "item-00001", "item-00005"];
const WORK: &str = "JOURNAL_KB_TEST_RUN_WORK";
const COUNT: &str = "JOURNAL_KB_TEST_RUN_COUNT";
/// Of anything that a child is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Every item in a commit with its effects.
    Commit,
    /// Two threads, most items recorded alone, until a signal comes.
    Record,
    /// Thirty items, and then one that blocks for ever.
    Block,
    /// The same, which has little time when a signal comes.
    BlockBriefly,
    /// Items in commits, some of which end the process.
    Poison,
    /// The same without commits.
    PoisonAlone,
    /// Runs, or is skipped, and waits.
    Hold,
}

impl Work {
    const ALL: [Self; 7] =
        [Self::Commit, Self::Record, Self::Block, Self::BlockBriefly, Self::Poison, Self::PoisonAlone, Self::Hold];
}

/// What there is to be done, in its order.
pub(super) fn items(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("item-{n:05}"))
}

/// A tree, its journal, and what its processes say.
pub(super) struct Home {
    dir: tempfile::TempDir,
    count: usize,
}

impl Home {
    pub(super) fn new(count: usize) -> Self {
        let home = Self { dir: directory(), count };
        fs::create_dir(home.root()).unwrap();
        File::create(home.witness()).unwrap();
        let journal = Journal::open(home.root()).unwrap();
        journal.migrate(&["CREATE TABLE effect (item TEXT NOT NULL, by TEXT NOT NULL) STRICT"]).unwrap();
        journal.close().unwrap();
        home
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn witness(&self) -> PathBuf {
        self.dir.path().join("witness")
    }

    /// What the processes have said, in their order.
    pub(super) fn told(&self) -> Vec<String> {
        fs::read_to_string(self.witness()).unwrap().lines().map(str::to_owned).collect()
    }

    /// How many lines that is, about, where only items are told of: they are looked at often.
    pub(super) fn lines(&self) -> usize {
        fs::metadata(self.witness()).unwrap().len() as usize / "done item-00000\n".len()
    }

    /// The items that were acknowledged.
    pub(super) fn done(&self) -> Vec<String> {
        self.told().iter().filter_map(|line| line.strip_prefix("done ")).map(str::to_owned).collect()
    }

    fn database(&self) -> Connection {
        Connection::open(self.root().join(".journal/journal.db")).unwrap()
    }

    pub(super) fn count(&self, sql: &str, parameter: usize) -> usize {
        self.database().query_row(sql, [parameter], |row| row.get(0)).unwrap()
    }

    /// What the application's own table says: the item, and who did it.
    pub(super) fn effects(&self) -> Vec<(String, String)> {
        let database = self.database();
        let mut all = database.prepare("SELECT item, by FROM effect").unwrap();
        let rows = all.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(|row| row.unwrap()).collect()
    }

    /// The items that are durably done.
    pub(super) fn banked(&self) -> BTreeSet<String> {
        let database = self.database();
        let mut all = database.prepare("SELECT CAST(item AS TEXT) FROM journal_run_item").unwrap();
        let rows = all.query_map((), |row| row.get(0)).unwrap();
        rows.map(|row| row.unwrap()).collect()
    }

    pub(super) fn start(&self, work: Work) -> Working {
        let mut command = child("runs_killed::worker::process", self.dir.path());
        command.env(WORK, format!("{work:?}")).env(COUNT, self.count.to_string());
        let said = self.dir.path().join("said");
        let output = File::create(&said).unwrap();
        command.stdin(Stdio::piped()).stdout(output.try_clone().unwrap()).stderr(output);
        Working { child: command.spawn().unwrap(), said }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Exit(i32),
    Signal(Signal),
}

/// A process at work. Ended on drop.
pub(super) struct Working {
    child: Child,
    said: PathBuf,
}

impl Working {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for something to have happened while it works. False when it has ended, and that had not.
    pub(super) fn wait_until(&mut self, happened: impl Fn() -> bool) -> bool {
        let begun = Instant::now();
        while !happened() {
            if self.child.try_wait().unwrap().is_some() {
                return happened();
            }
            assert!(begun.elapsed() < PATIENCE, "it hangs:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(super) fn end(self, signal: Signal) -> Status {
        self.signal(signal);
        self.wait()
    }

    /// Lets one go on that waits.
    pub(super) fn let_go(mut self) -> Status {
        drop(self.child.stdin.take());
        self.wait()
    }

    pub(super) fn wait(mut self) -> Status {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return self.status(status);
            }
            assert!(begun.elapsed() < PATIENCE, "it hangs:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn status(&self, status: ExitStatus) -> Status {
        let said = self.said();
        // What it asserts itself is told by the code of a test that failed.
        assert_ne!(status.code(), Some(101), "{said}");
        match (status.code(), status.signal()) {
            (Some(code), _) => Status::Exit(code),
            (_, signal) => Status::Signal(signal.and_then(Signal::from_named_raw).unwrap()),
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what the others start.
#[test]
fn process() {
    let Some(home) = child_root() else { return };
    let work = std::env::var(WORK).unwrap();
    let work = *Work::ALL.iter().find(|known| format!("{known:?}") == work).unwrap();
    let count = std::env::var(COUNT).unwrap().parse().unwrap();
    let witness = Witness(File::options().append(true).open(home.join("witness")).unwrap());
    match work {
        Work::Commit => commit(&home.join("root"), &witness, count),
        Work::Record => record(&home.join("root"), &witness, count),
        Work::Block => block(&home.join("root"), &witness, StopToken::on_signals().unwrap()),
        Work::BlockBriefly => {
            let stop = StopToken::on_signals_within(Duration::from_secs(3)).unwrap();
            block(&home.join("root"), &witness, stop);
        }
        Work::Poison | Work::PoisonAlone => poison(&home.join("root"), &witness, count, work == Work::Poison),
        Work::Hold => hold(&home.join("root"), &witness),
    }
}

/// What has returned is written there with one call a line.
struct Witness(File);

impl Witness {
    fn say(&self, line: &str) {
        (&self.0).write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// Does an item: a file, and a row that says the same.
fn import(txn: &mut Transaction, item: &str) -> Result<()> {
    let (item, by) = (item.to_owned(), std::process::id().to_string());
    txn.write(format!("done/{item}"), &by)?;
    txn.sql(move |rows| rows.execute("INSERT INTO effect VALUES (?1, ?2)", (&item, &by)).map(drop))
}

fn commit_one(run: &Run, item: &str) {
    let mut txn = run.begin(item).unwrap();
    import(&mut txn, item).unwrap();
    txn.commit().unwrap();
}

fn commit(root: &Path, witness: &Witness, count: usize) {
    let journal = Journal::open(root).unwrap();
    let run = running(journal.run(JOB, "1"));
    for item in run.pending(items(count)) {
        commit_one(&run, &item);
        witness.say(&format!("done {item}"));
    }
    assert_eq!(run.finish().unwrap(), Ended::Finished { banked: count as u64, set_aside: 0 });
}

fn record(root: &Path, witness: &Witness, count: usize) {
    let stop = StopToken::on_signals().unwrap();
    witness.say("looks for signals");
    let journal = Journal::open(root).unwrap();
    let run = running(journal.run_with(Job::new(JOB).fingerprint("1").stop(&stop).flush_items(40)));
    let pending = Mutex::new(run.pending(items(count)));
    let work = |each: usize| {
        for n in 0.. {
            let Some(item) = pending.lock().unwrap().next() else { return };
            match n % each {
                0 => commit_one(&run, &item),
                _ => run.record(&item).unwrap(),
            }
            witness.say(&format!("done {item}"));
            std::thread::sleep(Duration::from_micros(50));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(7));
        scope.spawn(|| work(11));
    });
    drop(pending);
    // On a machine that stalls it may be done before anybody asks it to stop.
    assert!(stop.wait(PATIENCE), "nobody asks it to stop");
    let Ended::Partial { banked, reason } = run.finish().unwrap() else { panic!("there is more to do") };
    witness.say(&format!("partial {banked} {reason}"));
    std::process::exit(if reason == "SIGTERM" { 143 } else { 130 });
}

fn block(root: &Path, witness: &Witness, stop: StopToken) {
    let journal = Journal::open(root).unwrap();
    let run = running(journal.run_with(Job::new(JOB).fingerprint("1").stop(&stop).flush_every(Duration::MAX)));
    let mut txn = run.begin("blocks").unwrap();
    txn.write("half", "begun").unwrap();
    items(30).for_each(|item| run.record(&item).unwrap());
    witness.say("blocking");
    loop {
        std::thread::park();
    }
}

fn poison(root: &Path, witness: &Witness, count: usize, commits: bool) {
    let journal = Journal::open(root).unwrap();
    let run = running(journal.run(JOB, "1"));
    for item in run.pending(items(count).collect::<Vec<_>>()) {
        let try_it = || {
            witness.say(&format!("try {item}"));
            if POISON.contains(&&*item) {
                std::process::abort();
            }
        };
        if commits {
            let mut txn = run.begin(&item).unwrap();
            try_it();
            import(&mut txn, &item).unwrap();
            txn.commit().unwrap();
        } else {
            let attempt = run.attempt(&item).unwrap();
            try_it();
            attempt.record().unwrap();
        }
    }
    let Ended::Finished { banked, set_aside } = run.finish().unwrap() else { panic!("nothing is left to be tried") };
    witness.say(&format!("finished {banked} {set_aside}"));
}

fn hold(root: &Path, witness: &Witness) {
    let journal = Journal::open(root).unwrap();
    let own = std::process::id();
    let run = match journal.run(JOB, "1").unwrap() {
        Started::Running(run) => {
            witness.say(&format!("{own} runs"));
            Some(run)
        }
        Started::Skipped(holder) => {
            witness.say(&format!("{own} skipped by {}", holder.pid));
            None
        }
    };
    // Until the other one has said so, too.
    let _ = std::io::stdin().read(&mut [0]);
    drop(run);
}
