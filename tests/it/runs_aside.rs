//! What was set aside is left out by every later run of its job, until a person says otherwise or the job begins afresh.

use journal_kb::{Begun, Ended, Job, Verdict};

use crate::runs::running;
use crate::support::Tree;

#[test]
fn what_is_set_aside_stays_so_in_the_next_run_unless_a_person_says_otherwise() {
    let tree = Tree::new();
    let journal = tree.journal();
    let start = |job| running(journal.run_with(Job::new(job).tries(1)));
    let wanted = |job| start(job).pending(["x"]).count();
    for job in ["retried", "given up", "reset", "expired"] {
        let run = start(job);
        assert_eq!(run.fail("x", "it is poison").unwrap(), Verdict::SetAside);
        assert_eq!(run.finish().unwrap(), Ended::Finished { banked: 0, set_aside: 1 });
        assert_eq!(wanted(job), 0, "{job}");
    }
    // The run that is open has it of the one before, which stays as it was.
    assert_eq!(journal.runs().retry("retried", None).unwrap(), 1);
    assert_eq!(wanted("retried"), 1);
    start("retried").abandon().unwrap();
    assert_eq!(wanted("retried"), 1, "nobody has set it aside since");
    start("given up").abandon().unwrap();
    journal.runs().reset("reset").unwrap();
    assert_eq!((wanted("given up"), wanted("reset")), (1, 1), "all of it begins afresh");
    let conn = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    conn.execute("UPDATE journal_run SET started_ms = 0, stopped_ms = 0 WHERE job = 'expired' AND state = 'open'", ())
        .unwrap();
    let run = start("expired");
    assert_eq!((run.begun(), run.pending(["x"]).count()), (Begun::Expired { banked: 0 }, 0), "that was nobody's word");
}
