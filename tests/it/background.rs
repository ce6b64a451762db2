//! What goes on behind the commits, and never in their way.

use std::process::Command;
use std::time::Duration;

use journal_kb::{Begin, Journal};

use crate::skip::skip;
use crate::support::{Tree, child, child_root};

fn states(tree: &Tree) -> Vec<String> {
    let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    let mut rows = db.prepare("SELECT state FROM journal_txn ORDER BY id").unwrap();
    rows.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Never settles by itself.
fn unhurried(tree: &Tree) -> Journal {
    let options = Journal::options().settle_after(Duration::from_secs(3600));
    options.settle_bytes(u64::MAX).settle_paths(u64::MAX).open(tree.root()).unwrap()
}

fn soon(mut what: impl FnMut() -> bool) -> bool {
    (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        what()
    })
}

#[test]
fn that_a_commit_was_applied_is_noted_by_the_next_or_a_little_later() {
    let tree = Tree::new();
    let journal = unhurried(&tree);
    for n in 1..=20 {
        journal.transact(|txn| txn.write("f", [n])).unwrap();
        let mut before = states(&tree);
        before.pop();
        assert!(before.iter().all(|state| state == "applied"), "{before:?}");
    }
    assert!(soon(|| states(&tree) == ["applied"; 20]), "{:?}", states(&tree));
}

#[test]
fn that_a_commit_was_applied_is_noted_at_once_where_another_session_may_ask() {
    let tree = Tree::new();
    let (journal, other) = (unhurried(&tree), unhurried(&tree));
    for n in 1..=20 {
        let turn = if n % 2 == 0 { &journal } else { &other };
        turn.transact(|txn| txn.write("f", [n])).unwrap();
        assert_eq!(states(&tree), vec!["applied"; usize::from(n)]);
    }
    // Nobody had to recover anybody.
    let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    let events: i64 = db.query_row("SELECT count(*) FROM journal_event", (), |row| row.get(0)).unwrap();
    assert_eq!(events, 0);
}

#[test]
fn a_commit_does_not_wait_for_a_settle() {
    let tree = Tree::new();
    let test = child("background::settling_child", tree.root());
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=syncfs:delay_enter=3s"]);
    traced.arg(test.get_program()).args(test.get_args());
    traced.envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let Ok(output) = traced.output() else { return skip("delaying a sync needs strace") };
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if !output.status.success() && !said.contains("panicked") {
        return skip("strace may not trace here");
    }
    assert!(output.status.success(), "{said}");
}

/// Commits while another thread is in the sync of a settle, which takes seconds.
#[test]
fn settling_child() {
    let Some(root) = child_root() else { return };
    let never = Duration::from_secs(3600);
    let journal = Journal::options().settle_after(never).open(&root).unwrap();
    journal.transact(|txn| (0..50).try_for_each(|n| txn.write(format!("a/{n}"), "a"))).unwrap();
    std::thread::scope(|scope| {
        let settle = scope.spawn(|| journal.settle().unwrap());
        let db = rusqlite::Connection::open(root.join(".journal/journal.db")).unwrap();
        let settling = || {
            let row = "SELECT count(*) FROM journal_txn WHERE state = 'settling'";
            db.query_row(row, (), |row| row.get::<_, i64>(0)).unwrap() == 1
        };
        assert!(soon(settling));
        for n in 0..20 {
            // The same paths, others, and rows alone.
            journal.transact(|txn| txn.write(format!("a/{n}"), "b")).unwrap();
            let mut other = journal.begin_with(Begin::new("").lock("other")).unwrap();
            other.write(format!("b/{n}"), "b").unwrap();
            other.commit().unwrap();
            journal.transact(|_| Ok(())).unwrap();
        }
        assert!(!settle.is_finished(), "60 commits took longer than a settle that was held up for seconds");
        assert_eq!(settle.join().unwrap().paths, 51);
    });
    std::process::exit(0);
}

#[test]
fn the_log_stays_short_however_many_commits_there_are() {
    const LONG: u64 = 48 << 20;
    let tree = Tree::new();
    // Nothing is settled meanwhile, and no pause comes: what keeps it short is only how long it is.
    let journal = unhurried(&tree);
    journal.migrate(&["CREATE TABLE n(x)"]).unwrap();
    let log = || std::fs::metadata(tree.path(".journal/journal.db-wal")).unwrap().len();
    let (mut longest, mut written) = (0, 0);
    while written < 2 * LONG {
        let before = log();
        journal
            .transact(|txn| txn.sql(|rows| rows.execute("INSERT INTO n VALUES (zeroblob(65536))", ()).map(drop)))
            .unwrap();
        written += 65536;
        longest = longest.max(before).max(log());
    }
    assert!(longest < LONG, "{longest} bytes of log after {written}");
}
