//! Processes that work on one journal until they are told to stop, some of them killed on the way.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::witness::{self, Counts, Witness};
use super::work::{Orders, Work};
use crate::guard_model::Random;
use crate::support;

/// Aborts everything when it is not dropped in time: a child that hangs, or a call of ours that never returns, is a failure
/// and no stalled run. The children die with us.
pub(crate) struct Watchdog(Option<Sender<()>>);

impl Watchdog {
    pub(crate) fn new(what: &'static str, limit: Duration) -> Self {
        let (fed, waits): (_, Receiver<()>) = channel();
        std::thread::spawn(move || {
            if waits.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // Not by a macro, whose words would be kept until the test has ended.
                let _ = writeln!(std::io::stderr(), "{what} still runs after {limit:?}");
                std::process::abort();
            }
        });
        Self(Some(fed))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

/// Some processes, their journal and their witness.
pub(super) struct Crew {
    home: tempfile::TempDir,
    members: Vec<Member>,
    /// Numbers of processes are given out once.
    processes: u32,
    witness: Witness,
    /// What of the witness has been read.
    read: u64,
    /// The longest write-ahead log that was seen, in bytes.
    longest_log: u64,
}

/// One place in the crew, taken by one process after the other.
struct Member {
    orders: Orders,
    child: Child,
    /// All that it was.
    processes: Vec<u32>,
    enters: usize,
    /// What that was when the process began that has the place now.
    before: usize,
    /// The one before it was killed before it held any lock.
    in_vain: bool,
}

impl Crew {
    /// Starts one process for each of the orders.
    pub(super) fn start(orders: impl IntoIterator<Item = Orders>) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("root")).unwrap();
        super::work::lay(&home.path().join("root"));
        let witness = Witness::open(&home.path().join("witness"));
        let mut crew = Self { home, members: Vec::new(), processes: 0, witness, read: 0, longest_log: 0 };
        for orders in orders {
            let (process, child) = crew.spawn(&orders);
            crew.members.push(Member { orders, child, processes: vec![process], enters: 0, before: 0, in_vain: false });
        }
        crew
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn spawn(&mut self, orders: &Orders) -> (u32, Child) {
        self.processes += 1;
        let process = self.processes;
        let mut command = support::child("torment::work::child", self.home.path());
        command.stdout(Stdio::null()).stderr(File::create(self.path(&format!("said.{process}"))).unwrap());
        (process, orders.give(process, &mut command).spawn().unwrap())
    }

    /// Has everybody work until each place in the crew has held locks so many times; a random one is killed, and another
    /// process put in its place, at random moments that lie so far apart on average.
    pub(super) fn work(&mut self, enters: usize, kills: Option<Duration>) {
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        let mut next = Instant::now();
        while self.members.iter().any(|member| member.enters < enters) {
            self.look();
            if let Some(apart) = kills.filter(|_| Instant::now() >= next) {
                let victim = random.below(self.members.len());
                self.kill(victim);
                next = Instant::now() + apart.mul_f64(random.below(2000) as f64 / 1000.0);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// True when somebody was killed who had a lock.
    pub(super) fn somebody_died_inside(&self) -> bool {
        let text = fs::read_to_string(self.path("witness")).unwrap();
        // The last line may not be whole yet.
        let whole = text.rfind('\n').unwrap_or(0);
        witness::check(&text[..whole]).is_ok_and(|counts| counts.killed_inside > 0)
    }

    /// Counts what has been done since the last look. Nobody may have ended.
    fn look(&mut self) {
        let mut file = File::open(self.path("witness")).unwrap();
        file.seek(SeekFrom::Start(self.read)).unwrap();
        let mut new = String::new();
        file.read_to_string(&mut new).unwrap();
        // The last line may not be whole yet.
        let whole = new.rfind('\n').unwrap_or(0);
        self.read += whole as u64;
        for process in witness::entered(&new[..whole]) {
            let member = self.members.iter_mut().find(|member| member.processes.contains(&process)).unwrap();
            member.enters += 1;
        }
        let log = fs::metadata(self.path("root/.journal/journal.db-wal")).map_or(0, |meta| meta.len());
        self.longest_log = self.longest_log.max(log);
        for member in &mut self.members {
            if let Some(status) = member.child.try_wait().unwrap() {
                let last = *member.processes.last().unwrap();
                panic!("process {last} ended: {status}: {}", said(self.home.path(), last));
            }
        }
    }

    fn kill(&mut self, victim: usize) {
        let member = &mut self.members[victim];
        let in_vain = member.enters == member.before;
        if in_vain && member.in_vain {
            // Where opening takes longer than they live, nobody would ever get to work.
            return;
        }
        self.witness.says(&format!("kill {}", member.processes.last().unwrap()));
        member.child.kill().unwrap();
        member.child.wait().unwrap();
        let orders = member.orders.clone();
        let (process, child) = self.spawn(&orders);
        let member = &mut self.members[victim];
        member.processes.push(process);
        member.child = child;
        (member.before, member.in_vain) = (member.enters, in_vain);
    }

    /// How often each place in the crew has held a lock.
    pub(super) fn enters(&self) -> Vec<usize> {
        self.members.iter().map(|member| member.enters).collect()
    }

    pub(super) fn longest_log(&self) -> u64 {
        self.longest_log
    }

    /// Has everybody end, takes every lock once more, and checks what the witness says and what is left in the journal.
    pub(super) fn stop(mut self) -> Stopped {
        File::create(self.path("stop")).unwrap();
        for member in &mut self.members {
            let status = member.child.wait().unwrap();
            let last = *member.processes.last().unwrap();
            assert!(status.success(), "process {last}: {status}: {}", said(self.home.path(), last));
        }
        let root = self.path("root");
        super::work::nothing_is_left(self.home.path());
        let database = Connection::open(root.join(".journal/journal.db")).unwrap();
        let whole: String = database.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
        assert_eq!(whole, "ok");
        let witness = fs::read_to_string(self.path("witness")).unwrap();
        let counts = witness::check(&witness).unwrap_or_else(|fault| panic!("{fault}"));
        let mut rows = database.prepare("SELECT value FROM app_commit").unwrap();
        let rows = rows.query_map((), |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap();
        Stopped { counts, rows }
    }
}

/// What a crew has left.
pub(super) struct Stopped {
    pub(super) counts: Counts,
    /// What was committed by rows alone.
    pub(super) rows: BTreeSet<String>,
}

impl Drop for Crew {
    fn drop(&mut self) {
        // Where a test has failed; otherwise they have ended.
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

fn said(home: &Path, process: u32) -> String {
    fs::read_to_string(home.join(format!("said.{process}"))).unwrap_or_default()
}

/// Orders for each kind of work, this many times.
pub(super) fn orders(times: usize, threads: u32, locks: u32, work: Work) -> impl Iterator<Item = Orders> {
    (0..times).map(move |_| Orders { threads, locks, work })
}
