//! The same counts of runs: items recorded alone, inside a commit, begun and recorded with their tries counted; flushes.

use journal_kb::{Job, Journal, Run, Transaction};

use super::{Most, NO_ROOM, ROUNDS, allocations, journal, statements, system_calls};
use crate::runs::running;
use crate::support::{Tree, child_root};

/// So many items are banked in one flush.
const BATCH: usize = 1000;
/// So many are banked before a late one.
const MANY: usize = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// A transaction of one row, to compare with.
    Commit,
    /// The same, that records an item.
    Records,
    /// The same, that `Run::begin` began for an item that `pending` gave: with the try of the next one.
    Tries,
    /// A batch of items recorded alone.
    Batch,
    /// Its flush.
    Flush,
    /// The same, when many are banked.
    Late,
}

const WORKS: [Work; 6] = [Work::Commit, Work::Records, Work::Tries, Work::Batch, Work::Flush, Work::Late];

/// For another version of std or SQLite, and what the background does in every round.
const ROOM: f64 = 1.1;

const SYNCS: Most<6> = Most { what: "device syncs, of all threads", most: [1, 1, 1, 0, 1, 1], room: NO_ROOM };
const STATEMENTS: Most<6> = Most {
    what: "SQL statements of the thread",
    most: [15, 17, 19, 0, BATCH / 32 + 11, BATCH / 32 + 11],
    room: NO_ROOM,
};
const CALLS: Most<6> = Most { what: "system calls of the thread", most: [25, 27, 29, 0, 36, 36], room: ROOM };
const ALLOCATIONS: Most<6> = Most { what: "allocations of the thread", most: [33, 38, 45, 20, 10, 10], room: ROOM };

/// Does every work some times, each through `around`.
fn work_all(journal: &Journal, mut around: impl FnMut(Work, &mut dyn FnMut())) {
    let run = running(journal.run_with(Job::new("counted").flush_items(usize::MAX)));
    let mut names = (0..).map(|n| format!("documents/{n:07}.md"));
    let mut pending = run.pending((0..100).map(|n| format!("begun/{n}")).collect::<Vec<_>>());
    let commit = |mut txn: Transaction| {
        txn.sql(|rows| rows.execute("INSERT INTO n VALUES (1)", ()).map(drop)).unwrap();
        txn.commit().unwrap();
    };
    // One that comes first, of each.
    for round in 0..=ROUNDS {
        let mut around = |work: Work, does: &mut dyn FnMut()| if round == 0 { does() } else { around(work, does) };
        around(Work::Commit, &mut || commit(journal.begin("counted").unwrap()));
        let item = names.next().unwrap();
        around(Work::Records, &mut || {
            let mut txn = journal.begin("counted").unwrap();
            txn.record(&run, &item).unwrap();
            commit(txn);
        });
        around(Work::Tries, &mut || commit(run.begin(&pending.next().unwrap()).unwrap()));
        bank(&run, &mut names, 1);
        let items: Vec<_> = names.by_ref().take(BATCH).collect();
        around(Work::Batch, &mut || items.iter().for_each(|item| run.record(item).unwrap()));
        around(Work::Flush, &mut || assert_eq!(run.flush().unwrap() as usize, BATCH));
    }
    bank(&run, &mut names, MANY);
    for _ in 0..ROUNDS {
        names.by_ref().take(BATCH).for_each(|item| run.record(&item).unwrap());
        around(Work::Late, &mut || assert_eq!(run.flush().unwrap() as usize, BATCH));
    }
}

fn bank(run: &Run, names: &mut impl Iterator<Item = String>, many: usize) {
    names.take(many).for_each(|item| run.record(&item).unwrap());
    run.flush().unwrap();
}

#[test]
fn items_add_few_allocations() {
    let tree = Tree::new();
    let journal = journal(tree.root());
    let mut counted = Vec::new();
    work_all(&journal, |work, does| counted.push((work, allocations::of(does))));
    ALLOCATIONS.check(WORKS, counted);
}

#[test]
fn items_add_no_sync_and_few_system_calls() {
    let Some(works) = system_calls::between_marks("counts::runs::working_child", &["-s", "0"]) else { return };
    let mut order = Vec::new();
    let each = [Work::Commit, Work::Records, Work::Tries, Work::Batch, Work::Flush];
    (0..ROUNDS).for_each(|_| order.extend(each));
    order.extend([Work::Late; ROUNDS]);
    assert_eq!(works.len(), order.len(), "works between marks");
    let counted = works.iter().map(|calls| system_calls::syncs_and_all(calls));
    let (syncs, calls): (Vec<_>, Vec<_>) = counted.unzip();
    SYNCS.check(WORKS, order.iter().copied().zip(syncs));
    CALLS.check(WORKS, order.iter().copied().zip(calls));
}

/// The process that strace watches.
#[test]
fn working_child() {
    let Some(root) = child_root() else { return };
    std::fs::create_dir_all(&root).unwrap();
    work_all(&journal(&root), |_, does| system_calls::between(does));
}

#[test]
fn items_add_few_statements() {
    statements::passes_in_a_child("counts::runs::traced_child");
}

/// The process whose statements are counted.
#[test]
fn traced_child() {
    let Some(root) = child_root() else { return };
    statements::trace_all();
    let mut counted = Vec::new();
    work_all(&journal(&root), |work, does| counted.push((work, statements::of(does))));
    STATEMENTS.check(WORKS, counted);
}
