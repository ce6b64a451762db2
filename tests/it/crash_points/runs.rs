//! A run: an item recorded alone, one with its effect, one that is set aside, a cursor, and its end.

use std::path::Path;

use journal_kb::rusqlite::Connection;
use journal_kb::{Ended, Job, Journal, Result, Run, Started, Verdict};

use super::strace::End;
use super::sweep::Workload;

const JOB: &str = "job";

pub(crate) fn registered() -> Vec<Workload> {
    let prepare = |root: &Path| super::prepare(root).unwrap();
    let work = |journal: &Journal, say: &dyn Fn(&str)| {
        if let Err(error) = work(journal, say) {
            say(&format!("not all of it: {error}"));
        }
    };
    vec![Workload { also: wrong, ..Workload::new("run", prepare, work) }]
}

fn start(journal: &Journal) -> Result<Run> {
    match journal.run_with(Job::new(JOB).tries(1).flush_retries(1).failed_flushes(1))? {
        Started::Running(run) => Ok(run),
        Started::Skipped(holder) => panic!("{holder} is at it"),
    }
}

fn work(journal: &Journal, say: &dyn Fn(&str)) -> Result<()> {
    let run = start(journal)?;
    run.record("alone")?;
    say("banked alone");
    for item in run.pending(vec!["good", "bad"]) {
        let mut txn = run.begin(item)?;
        say(&format!("tried {item}"));
        if item == "bad" {
            drop(txn);
            assert_eq!(run.fail(item, "it is bad")?, Verdict::SetAside);
            run.flush()?;
            say("aside bad");
            continue;
        }
        txn.write("pages/new.md", "new\n")?;
        txn.remove("pages/gone.md")?;
        txn.sql(|rows| rows.execute("INSERT INTO doc VALUES ('pages/new.md', 'New')", ()).map(drop))?;
        txn.set_cursor(&run, &1)?;
        txn.commit()?;
        say("committed");
    }
    run.record("last")?;
    run.set_cursor(&2)?;
    run.flush()?;
    say("banked last");
    if let Ended::Finished { banked: 3, set_aside: 1 } = run.finish()? {
        say("finished");
    }
    Ok(())
}

/// What the rows of the run say that is not so, and whether what is left of it can be gone on with.
fn wrong(root: &Path, end: &End) -> Vec<String> {
    let database = Connection::open(root.join(".journal/journal.db")).unwrap();
    let is = |sql: &str| database.query_row(sql, (), |row| row.get::<_, bool>(0)).unwrap();
    let done =
        |item: &str| is(&format!("SELECT count(*) = 1 FROM journal_run_item WHERE item = CAST('{item}' AS BLOB)"));
    let tried = |item: &str, state: &str| {
        is(&format!(
            "SELECT count(*) FROM journal_run_try WHERE item = CAST('{item}' AS BLOB) AND tries = 1 AND state IN ({state})"
        ))
    };
    let mut wrong = Vec::new();
    let mut holds = |what: &str, so: bool| {
        if !so {
            wrong.push(what.to_owned());
        }
    };
    holds("an item is there if its effect is", done("good") == is("SELECT count(*) FROM doc WHERE title = 'New'"));
    holds("items are there once", is("SELECT count(*) = count(DISTINCT item) FROM journal_run_item"));
    holds("the cursor came with its item", done("good") == is("SELECT count(cursor) FROM journal_run"));
    holds("it has not begun, or there is one run", is("SELECT count(*) <= 1 FROM journal_run"));
    for item in ["alone", "last"] {
        holds("what is banked stays so", !end.said(&format!("banked {item}")) || done(item));
    }
    // Of an error of the system, which it has lived to see, no item is to blame.
    let blamed = done("good") || tried("good", "'trying', 'failed', 'aside'");
    holds("what is tried is on record", !end.said("tried good") || !end.killed || blamed);
    holds("what is tried is on record", !end.said("tried bad") || tried("bad", "'trying', 'failed', 'aside'"));
    holds("what is set aside stays so", !end.said("aside bad") || tried("bad", "'aside'"));
    let finished = is("SELECT count(*) FROM journal_run WHERE state = 'finished' AND banked = 3");
    holds("what is finished stays so", !end.said("finished") || finished);
    drop(database);

    let journal = super::open(root);
    let run = start(&journal).unwrap();
    let pending: Vec<_> = run.pending(["alone", "good", "bad", "last"]).collect();
    holds("it can be gone on with", pending.iter().all(|item| run.record(*item).is_ok()));
    holds("it comes to its end", matches!(run.finish(), Ok(Ended::Finished { .. })));
    journal.close().unwrap();
    wrong
}
