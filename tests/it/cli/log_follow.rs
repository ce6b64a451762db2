//! `log -f`: what is committed, as it is committed, by whatever process.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use journal_kb::{Begin, Journal};
use serde_json::Value;
use tempfile::TempDir;

use super::locks::{Started, WATCHDOG, until};
use super::{cli, picture, three};
use crate::support::{child, child_root};

/// `log -f` at work, and the lines that it writes, as they come.
struct Following {
    process: Started,
    lines: Receiver<String>,
}

impl Following {
    fn start(root: &Path, words: &[&str]) -> Self {
        let mut command = cli(&["log", "-f"]);
        command.args(words).arg("--root").arg(root).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Started(command.spawn().expect("runs"));
        let out = BufReader::new(process.0.stdout.take().expect("a pipe"));
        let (tell, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Self { process, lines }
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(WATCHDOG)).expect("a line")
    }

    /// The label of the next transaction.
    #[track_caller]
    fn label(&self) -> String {
        let object: Value = serde_json::from_str(&self.line()).expect("an object");
        object["label"].as_str().expect("a label").to_owned()
    }
}

fn commit(journal: &Journal, label: &str) {
    let mut txn = journal.begin_with(Begin::new(label)).expect("begin");
    txn.write("page.md", label).expect("write");
    txn.commit().expect("commit");
}

#[test]
fn what_any_process_commits_is_told_at_once_and_in_order() {
    let dir = three();
    let following = Following::start(dir.path(), &["--json", "-n", "2"]);
    assert_eq!(following.label(), "evil \u{1b}[31mred\nline");
    assert_eq!(following.label(), "move one");
    // The log of the database comes, goes and comes again.
    for round in 0..2 {
        let journal = Journal::open(dir.path()).expect("open");
        for n in 0..5 {
            commit(&journal, &format!("{round} {n}"));
            assert_eq!(following.label(), format!("{round} {n}"));
        }
        journal.close().expect("close");
    }
    let mut other = child("cli::log_follow::a_writer", dir.path()).stdout(Stdio::null()).spawn().expect("a child");
    (0..300).for_each(|n| assert_eq!(following.label(), format!("other {n}")));
    assert!(other.wait().expect("ended").success());
    let journal = Journal::open(dir.path()).expect("open");
    let mut undone = journal.begin("undone").expect("begin");
    undone.guard_paths(["page.md"]).expect("guarded");
    std::fs::write(dir.path().join("page.md"), "by hand").expect("written");
    undone.rollback().expect("rolled back");
    let rolled_back: Value = serde_json::from_str(&following.line()).expect("an object");
    assert_eq!((&rolled_back["label"], &rolled_back["state"]), (&"undone".into(), &"rolled_back".into()));
    assert!(following.lines.try_recv().is_err(), "each once");
}

#[test]
fn a_writer() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).expect("open");
    (0..300).for_each(|n| commit(&journal, &format!("other {n}")));
}

#[test]
fn people_see_a_table_and_what_there_was_before() {
    let dir = three();
    let following = Following::start(dir.path(), &[]);
    let header = following.line();
    assert!(header.trim_start().starts_with("TXN  STATE"), "{header}");
    let lines: Vec<String> = (0..3).map(|_| following.line()).collect();
    let ids: Vec<_> = lines.iter().map(|line| line.split_whitespace().next().expect("a number")).collect();
    assert_eq!(ids, ["1", "2", "3"], "oldest first");
    assert!(lines[1].ends_with("evil \\u{1b}[31mred\\nline"), "{lines:?}");
    let column = header.find("LABEL").expect("a column");
    assert!(lines.iter().all(|line| !line[..column].ends_with(|c| c != ' ')), "{header}\n{lines:?}");
    let journal = Journal::open(dir.path()).expect("open");
    commit(&journal, "now");
    assert!(following.line().ends_with("  now"));
    // What is there already is asked for by its time; what comes is told whatever the clock says.
    let later = Following::start(dir.path(), &["--json", "--since", "2100-01-01"]);
    let label = until("what comes is not told", || {
        commit(&journal, "today");
        later.lines.recv_timeout(Duration::from_millis(100)).ok()
    });
    assert!(label.contains("\"today\""), "{label}");
}

/// How often a process has waited for something.
fn looks(following: &Following) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", following.process.0.id())).expect("its threads");
    let waits = tasks.map(|task| {
        let status = std::fs::read_to_string(task.expect("a thread").path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
    });
    waits.sum()
}

#[test]
fn who_follows_takes_no_lock_changes_nothing_and_sleeps() {
    let dir = three();
    let before = picture(dir.path());
    let following = Following::start(dir.path(), &["--json"]);
    (0..3).for_each(|_| _ = following.line());
    assert!(picture(dir.path()) == before, "something was changed");
    // A commit wakes it, and it comes to rest again.
    let journal = Journal::open(dir.path()).expect("open");
    commit(&journal, "now");
    assert_eq!(following.label(), "now");
    assert_eq!(journal.read(|rows| rows.query_row("SELECT 1", (), |row| row.get::<_, i64>(0))).expect("read"), 1);
    let sessions = super::at(dir.path(), &["status", "--json"]).code(0).json()[0]["sessions"].clone();
    assert_eq!(sessions.as_array().map(Vec::len), Some(1), "it is no session: {sessions}");
    until("it never rests", || {
        let looked = looks(&following);
        std::thread::sleep(Duration::from_millis(500));
        // A look each 20 ms would be 25.
        Some(looks(&following) - looked).filter(|looked| *looked < 5)
    });
}

#[test]
fn it_ends_by_a_signal_and_when_nobody_reads_any_more() {
    let dir = three();
    let mut following = Following::start(dir.path(), &["--json"]);
    (0..3).for_each(|_| _ = following.line());
    let pid = rustix::process::Pid::from_child(&following.process.0);
    // What a shell starts in the background ignores SIGINT, and so does what that starts.
    let signal = if ignores_interrupts() { rustix::process::Signal::TERM } else { rustix::process::Signal::INT };
    rustix::process::kill_process(pid, signal).expect("kill");
    let ended = until("it goes on though it was told to end", || following.process.0.try_wait().expect("a child"));
    let signalled = std::os::unix::process::ExitStatusExt::signal(&ended);
    assert_eq!(signalled, Some(signal.as_raw()), "what a shell calls 128 and the signal");

    // Nothing is committed, and yet it ends.
    let mut command = cli(&["log", "-f", "--json", "--root"]);
    let mut child = command.arg(dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    out.read_line(&mut String::new()).expect("a line");
    drop(out);
    let mut process = Started(child);
    let ended = until("it goes on though nobody reads", || process.0.try_wait().expect("a child"));
    let mut said = String::new();
    process.0.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert_eq!((ended.code(), said.as_str()), (Some(0), ""));
    let none = TempDir::new().expect("a directory");
    super::at(none.path(), &["log", "-f"]).code(1).says(&["has no journal"]);
}

/// True where this process, and so all that it starts, ignores SIGINT.
fn ignores_interrupts() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("text");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a line");
    u64::from_str_radix(ignored.trim(), 16).expect("a number") & 1 << (libc::SIGINT - 1) != 0
}
