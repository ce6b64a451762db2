//! For tests of applications: a crash at every step of a transaction, and a journal that is gone afterwards.
//!
//! A program keeps the promise "all or nothing" only as far as everything that belongs together is in one transaction.
//! [`crash_at_every_step`] shows whether it is: it runs the application's own work in processes of its own, each of which is
//! ended, as if killed, at another step of the engine (before every call that changes a file, and before every COMMIT); each
//! time the journal is recovered, and the application looks at what there is.
//!
//! ```standalone_crate
//! use journal_kb::testing::crash_at_every_step;
//!
//! // In a program of yours this is a `#[test]`.
//! fn a_page_and_its_row_come_together() {
//!     let steps = crash_at_every_step(
//!         // What there is before: made anew for each crash.
//!         |journal| journal.migrate(&["CREATE TABLE page (path TEXT PRIMARY KEY) STRICT"]),
//!         // What is to be all or nothing.
//!         |journal| {
//!             journal.transact(|txn| {
//!                 txn.write("hello.md", b"# Hello\n")?;
//!                 txn.sql(|rows| rows.execute("INSERT INTO page VALUES ('hello.md')", ()).map(drop))
//!             })?;
//!             Ok(())
//!         },
//!         // What has to be true after each crash.
//!         |journal, crash| {
//!             let rows = journal.read(|rows| rows.query_row("SELECT count(*) FROM page", (), |row| row.get::<_, i64>(0)));
//!             let file = journal.root().join("hello.md").exists();
//!             assert_eq!(rows.unwrap() == 1, file, "half of it");
//!             assert!(file || !crash.returned, "it was there already");
//!         },
//!     );
//!     assert!(steps.crashes > 5);
//! }
//! # fn main() { a_page_and_its_row_come_together() }
//! ```
//!
//! What panics or fails here does so by panicking, as tests do.

use std::cell::Cell;
use std::fmt;
use std::io::Write;
use std::ops::Deref;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::engine::Journal;
use crate::error::Result;
use crate::fault::steps;
use crate::options::Options;

/// What a process is told that is to end at a step: which call of [`CrashTest::run`], what to do, at which step.
const TOLD: &str = "JOURNAL_KB_TESTING";
/// And where.
const ROOT: &str = "JOURNAL_KB_TESTING_ROOT";
/// Begins a line by which such a process tells how far it came.
const TELLS: &str = "@journal-kb ";

/// A journal in a new temporary directory, which is removed with it.
///
/// Use it as a [`Journal`].
#[derive(Debug)]
pub struct TempJournal {
    // In this order: closed before its directory goes.
    journal: Journal,
    _dir: tempfile::TempDir,
}

impl TempJournal {
    /// Makes one with the default settings, where temporary files lie (`TMPDIR`).
    pub fn new() -> Result<Self> {
        Self::with(Options::default())
    }

    /// Makes one with settings of its own.
    pub fn with(options: Options) -> Result<Self> {
        let dir = temporary();
        Ok(Self { journal: options.open(dir.path())?, _dir: dir })
    }
}

impl Deref for TempJournal {
    type Target = Journal;

    fn deref(&self) -> &Journal {
        &self.journal
    }
}

/// A crash that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Crash {
    /// Before which step the process ended, from 1.
    pub step: u64,
    /// The call that was not made: `COMMIT`, or the system call, by its name in rustix.
    pub before: String,
    /// The work had returned `Ok`, so everything it committed has to be there.
    pub returned: bool,
    /// The step at which the recovery after it ended, too, when that was asked for.
    pub in_recovery: Option<u64>,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a crash before step {} ({})", self.step, self.before)?;
        match self.in_recovery {
            Some(step) => write!(f, ", and one before step {step} of the recovery"),
            None => Ok(()),
        }
    }
}

/// How much was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Steps {
    /// Processes that were ended while they did the work.
    pub crashes: u64,
    /// Processes that were ended while they recovered from one of these.
    pub crashed_recoveries: u64,
}

/// Runs `work` again and again, each time ended at another step, and has `check` look at what recovery made of it; with the
/// default settings, see [`CrashTest`].
pub fn crash_at_every_step(
    setup: impl Fn(&Journal) -> Result<()>,
    work: impl Fn(&Journal) -> Result<()>,
    check: impl Fn(&Journal, &Crash),
) -> Steps {
    CrashTest::default().run(setup, work, check)
}

/// [`crash_at_every_step`] with settings.
#[derive(Clone, Debug, Default)]
pub struct CrashTest {
    options: Options,
    recoveries: bool,
}

impl CrashTest {
    /// Opens journals with these settings.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Ends the recovery after each crash at each of its own steps, too. The number of processes grows with the product of
    /// both.
    pub fn recoveries_too(mut self) -> Self {
        self.recoveries = true;
        self
    }

    /// For each step that `work` takes: a new directory, `setup`, a process that does `work` and closes the journal and is
    /// ended at that step, recovery, `check`. Ends with a process that was not ended, which `check` does not see.
    ///
    /// The process is this very program, started again: under Rust's test harness with the name of the test, which is that of
    /// the thread, else with the same arguments. It comes to the same call of this function, so what the test does before that
    /// is done each time, and has to lead there; nothing after it is done. Do not call it from a thread of your own.
    ///
    /// Steps of the journal's own threads count with the others. Only what the engine does is a step: to a file that `work`
    /// writes by itself nothing happens in between.
    ///
    /// # Panics
    /// When `setup`, `work` or a recovery fails, when something is left in quarantine or pending, and when `check` panics:
    /// a line on standard error then says at which crash.
    pub fn run(
        &self,
        setup: impl Fn(&Journal) -> Result<()>,
        work: impl Fn(&Journal) -> Result<()>,
        check: impl Fn(&Journal, &Crash),
    ) -> Steps {
        let nth = nth_call();
        if let Ok(told) = std::env::var(TOLD) {
            self.follow(nth, &told, work);
            return Steps::default();
        }
        let mut steps = Steps::default();
        for step in 1.. {
            let prepare = || {
                let dir = temporary();
                let journal = self.open(dir.path());
                setup(&journal).and_then(|()| journal.close()).unwrap_or_else(|error| panic!("setup: {error}"));
                dir
            };
            let dir = prepare();
            let end = End::of(nth, "work", step, dir.path());
            let Some(before) = end.before else { break };
            let mut crash = Crash { step, before, returned: end.returned, in_recovery: None };
            self.look(dir.path(), &crash, &check);
            steps.crashes += 1;
            for step in (1..).take_while(|_| self.recoveries) {
                let dir = prepare();
                let again = End::of(nth, "work", crash.step, dir.path());
                crash.returned = again.returned;
                if End::of(nth, "recovery", step, dir.path()).before.is_none() {
                    break;
                }
                crash.in_recovery = Some(step);
                self.look(dir.path(), &crash, &check);
                steps.crashed_recoveries += 1;
            }
        }
        steps
    }

    fn open(&self, root: &Path) -> Journal {
        self.options.clone().open(root).unwrap_or_else(|error| panic!("opening the journal: {error}"))
    }

    fn look(&self, root: &Path, crash: &Crash, check: &impl Fn(&Journal, &Crash)) {
        let journal = self.open(root);
        let recovered = journal.recover().unwrap_or_else(|error| panic!("after {crash}: recovery: {error}"));
        assert_eq!((recovered.pending, recovered.quarantined), (0, 0), "after {crash}: recovery left something");
        let told = TellAtPanic(crash);
        check(&journal, crash);
        drop(told);
    }

    /// In a process that is to end at a step.
    fn follow(&self, nth: u64, told: &str, work: impl Fn(&Journal) -> Result<()>) {
        let mut told = told.split(' ');
        let mut next = || told.next().unwrap_or_default();
        if next().parse() != Ok(nth) {
            return;
        }
        let (what, step) = (next() == "work", next().parse().unwrap_or_default());
        let root = std::env::var_os(ROOT).unwrap_or_default();
        let tell = |before: &'static str| say(&format!("ended {before}"));
        if what {
            let journal = self.open(Path::new(&root));
            steps::end_at(step, tell);
            if let Err(error) = work(&journal) {
                steps::go_on();
                panic!("the work failed by itself: {error}");
            }
            say("returned");
            drop(journal);
        } else {
            steps::end_at(step, tell);
            drop(self.open(Path::new(&root)));
        }
        steps::go_on();
        say("done");
        std::process::exit(0)
    }
}

/// How a process ended.
struct End {
    /// The step that it did not take; none when it went through.
    before: Option<String>,
    returned: bool,
}

impl End {
    /// Starts this program again, to do something that ends at a step.
    fn of(nth: u64, what: &str, step: u64, root: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap_or_else(|error| panic!("this program: {error}")));
        match std::thread::current().name() {
            None | Some("main") => command.args(std::env::args_os().skip(1)),
            Some(test) => command.args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"]),
        };
        command.env(TOLD, format!("{nth} {what} {step}")).env(ROOT, root).stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|error| panic!("starting this program again: {error}"));
        let said = String::from_utf8_lossy(&output.stdout);
        let lines = || said.lines().filter_map(|line| line.strip_prefix(TELLS));
        let before = lines().find_map(|line| line.strip_prefix("ended ")).map(str::to_owned);
        assert!(
            before.is_some() || lines().any(|line| line == "done"),
            "the {what} that was to end at step {step} came to no end that is known ({}); it is this test, run again, and has \
             to come to the same call of crash_at_every_step:\n{said}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Self { before, returned: lines().any(|line| line == "returned") }
    }
}

/// Says at which crash a check has panicked.
struct TellAtPanic<'c>(&'c Crash);

impl Drop for TellAtPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("that was after {}", self.0);
        }
    }
}

/// Which call of [`CrashTest::run`] this is on its thread, from 1.
fn nth_call() -> u64 {
    thread_local!(static CALLS: Cell<u64> = const { Cell::new(0) });
    CALLS.set(CALLS.get() + 1);
    CALLS.get()
}

/// To whoever started this process. Not through `println!`, which a test harness may catch.
fn say(what: &str) {
    let _ = writeln!(std::io::stdout(), "\n{TELLS}{what}");
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().unwrap_or_else(|error| panic!("making a temporary directory: {error}"))
}
