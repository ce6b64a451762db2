//! Jobs that are killed again and again: every effect happens exactly once, what was recorded when a signal came is banked, and
//! who kills its process is set aside.
//!
//! Real processes ([`worker`]) do the jobs. Each writes down in a [`witness`](Home::witness) what had returned when, with one
//! call for each line, so that it is there whatever becomes of the process. `JOURNAL_KB_RUN_SIZE` says how many items the
//! first job has, and how often it is killed: `5000x100`.

mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use journal_kb::{Begun, Ended, Journal};
use rustix::process::Signal;

use self::worker::{Home, JOB, Status, Work, items};
use crate::guard_model::Random;
use crate::runs::running;
use crate::torment::Watchdog;

/// Many times what any of these takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn a_job_that_is_killed_again_and_again_does_everything_exactly_once() {
    let size = std::env::var("JOURNAL_KB_RUN_SIZE").unwrap_or_else(|_| "5000x100".to_owned());
    let (count, kills) = size.split_once('x').unwrap();
    let (count, kills): (usize, usize) = (count.parse().unwrap(), kills.parse().unwrap());
    let _watchdog = Watchdog::new("a job that is killed again and again", LIMIT * count.div_ceil(5000) as u32);
    let home = Home::new(count);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    // Some are left for the last process.
    let each = (count * 3 / 4 / kills).max(1);
    let (mut killed, mut early, mut was_early) = (0, 0, false);
    while killed < kills {
        let before = home.lines();
        let mut child = home.start(Work::Commit);
        // Two in a row that do nothing could be the third try of one item, and nobody could tell that from a poisonous one.
        was_early = !was_early && random.below(5) == 0;
        if was_early {
            early += 1;
            std::thread::sleep(Duration::from_micros(random.below(40_000) as u64));
        } else {
            let after = 1 + random.below(2 * each - 1);
            child.wait_until(|| home.lines() >= before + after);
            std::thread::sleep(Duration::from_micros(random.below(3_000) as u64));
        }
        match child.end(Signal::KILL) {
            Status::Signal(Signal::KILL) => killed += 1,
            // It was quicker than was thought.
            ended => {
                assert_eq!(ended, Status::Exit(0));
                break;
            }
        }
    }
    println!("{killed} kills, {early} of them early");
    assert!(killed * 5 > kills * 4);
    if home.count("SELECT count(*) FROM journal_run WHERE state = 'finished' AND ?1", 1) == 0 {
        assert_eq!(home.start(Work::Commit).wait(), Status::Exit(0));
    }

    let told = home.done();
    let all: BTreeSet<String> = items(count).collect();
    assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), told.len(), "nothing is acknowledged twice");
    // The row and the file say who did it; a second time would be another row, or another file.
    let rows = home.effects();
    let files: Vec<(String, String)> = fs::read_dir(home.root().join("done"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect();
    assert_eq!(rows.len(), count);
    assert_eq!(rows.iter().map(|(item, _)| item.clone()).collect::<BTreeSet<_>>(), all);
    assert_eq!(rows.iter().collect::<BTreeSet<_>>(), files.iter().collect::<BTreeSet<_>>());
    assert!(told.iter().all(|item| all.contains(item)));
    assert!(told.len() + killed >= count, "of each process at most one was done that nobody was told of");
    assert_eq!(home.count("SELECT count(*) FROM journal_run WHERE state = 'finished' AND banked = ?1", count), 1);
    assert_eq!(home.count("SELECT count(*) FROM journal_run_item WHERE ?1", 1), count);
    assert_eq!(home.count("SELECT count(*) FROM journal_run_try WHERE ?1", 1), 0, "nothing is set aside");
    crate::figures::add("processes killed at a random moment of a run, and gone on with", killed);
}

#[test]
fn what_is_recorded_when_a_signal_comes_is_banked_and_the_lock_is_free() {
    const SIGNALS: usize = 50;
    let _watchdog = Watchdog::new("a job that is asked to stop again and again", LIMIT);
    let home = Home::new(100_000);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let (mut orderly, mut before) = (0, 0);
    for n in 0..SIGNALS {
        let signal = if random.below(2) == 0 { Signal::TERM } else { Signal::INT };
        let (told, lines) = (home.told().len(), home.lines());
        let mut child = home.start(Work::Record);
        if random.below(5) > 0 {
            let after = 1 + random.below(150);
            child.wait_until(|| home.lines() >= lines + after);
        }
        std::thread::sleep(Duration::from_micros(random.below(20_000) as u64));
        let ended = child.end(signal);
        let said = home.told().split_off(told);
        let banked = home.banked();
        match said.iter().find_map(|line| line.strip_prefix("partial ")) {
            Some(partial) => {
                orderly += 1;
                assert_eq!(ended, Status::Exit(128 + signal.as_raw()), "{n}: {said:?}");
                let name = if signal == Signal::TERM { "SIGTERM" } else { "SIGINT" };
                assert_eq!(partial, format!("{} {name}", banked.len()), "{n}: it says what is banked");
            }
            // It came before anybody looked for it, or the process was not done within its eight seconds.
            None => assert_eq!(ended, Status::Signal(signal), "{n}: {said:?}"),
        }
        let lost: Vec<_> = home.done().into_iter().filter(|item| !banked.contains(item)).collect();
        assert!(lost.is_empty(), "{n}, {signal:?}: recorded and lost: {lost:?}");
        assert_eq!(home.count("SELECT count(*) FROM journal_run_item WHERE ?1", 1), banked.len(), "{n}: each once");
        assert!(banked.len() >= before, "{n}");
        before = banked.len();
        let journal = Journal::open(home.root()).unwrap();
        assert!(journal.try_lock(&format!("run:{JOB}")).unwrap().is_some(), "{n}: the lock is free");
        journal.close().unwrap();
    }
    let effects: BTreeMap<String, String> = home.effects().into_iter().collect();
    assert_eq!(effects.len(), home.effects().len(), "each effect once");
    assert!(effects.keys().all(|item| home.banked().contains(item)));
    println!("{orderly} of {SIGNALS} ended in order, {before} items banked");
    assert!(orderly * 2 > SIGNALS, "{orderly}");
    crate::figures::add("runs that were asked to stop by a signal, at a random moment", SIGNALS);
}

/// As `timeout` sends them, to the process and to its group.
#[test]
fn two_signals_at_once_are_one_request() {
    let _watchdog = Watchdog::new("two signals at once", LIMIT);
    let home = Home::new(1000);
    for n in 1..=5 {
        let mut child = home.start(Work::Record);
        assert!(child.wait_until(|| home.told().iter().filter(|line| *line == "looks for signals").count() == n));
        child.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(child.end(Signal::TERM), Status::Exit(143), "{n}");
    }
}

/// An item that never ends, and holds a transaction while it does not.
#[test]
fn what_was_recorded_beside_an_item_that_blocks_is_banked_whatever_ends_the_process() {
    let _watchdog = Watchdog::new("an item that blocks", LIMIT);
    for work in [Work::Block, Work::BlockBriefly] {
        let home = Home::new(0);
        let mut child = home.start(work);
        assert!(child.wait_until(|| home.told().contains(&"blocking".to_owned())));
        assert!(home.banked().len() < 30, "most of it waits for its time");
        child.signal(Signal::TERM);
        let ended = if work == Work::Block {
            assert!(child.wait_until(|| home.banked().len() == 30));
            // What came sooner would be taken for the same request.
            std::thread::sleep(Duration::from_millis(300));
            child.end(Signal::INT)
        } else {
            child.wait()
        };
        // As the signal would without anybody looking: the second one at once, the first one when its time is over.
        assert_eq!(ended, Status::Signal(if work == Work::Block { Signal::INT } else { Signal::TERM }));
        assert_eq!(home.banked().len(), 30);
        let journal = Journal::open(home.root()).unwrap();
        let run = running(journal.run(JOB, "1"));
        assert_eq!(run.begun(), Begun::Resumed { banked: 30 });
        assert!(!home.root().join("half").exists(), "what it had begun did not happen");
        assert_eq!(home.count("SELECT tries FROM journal_run_try WHERE item = CAST('blocks' AS BLOB) AND ?1", 1), 1);
        assert_eq!(
            run.finish().unwrap(),
            Ended::Partial { banked: 30, reason: "1 item failed, to be tried again".into() }
        );
    }
}

#[test]
fn an_item_that_kills_its_process_is_set_aside_after_three_tries_and_nothing_else_is_tried_twice() {
    let _watchdog = Watchdog::new("items that kill their process", LIMIT);
    for work in [Work::Poison, Work::PoisonAlone] {
        let home = Home::new(9);
        let deaths = (0..=3 * worker::POISON.len())
            .find(|_| match home.start(work).wait() {
                Status::Exit(0) => true,
                died => {
                    assert_eq!(died, Status::Signal(Signal::ABORT));
                    false
                }
            })
            .expect("they are set aside");
        let mut tries = BTreeMap::new();
        for line in home.told() {
            if let Some(item) = line.strip_prefix("try ") {
                *tries.entry(item.to_owned()).or_insert(0) += 1;
            }
        }
        let expected = items(9).map(|item| (item.clone(), if worker::POISON.contains(&&*item) { 3 } else { 1 }));
        assert_eq!(tries, expected.collect(), "{work:?}");
        assert_eq!(deaths, 3 * worker::POISON.len());
        assert_eq!(home.banked().len(), 9 - worker::POISON.len());
        assert!(home.told().contains(&format!("finished {} {}", 9 - worker::POISON.len(), worker::POISON.len())));
        let aside = "SELECT count(*) FROM journal_run_try WHERE state = 'aside' AND tries = 3 AND ?1";
        assert_eq!(home.count(aside, 1), worker::POISON.len());
        assert_eq!(home.count("SELECT count(*) FROM journal_run_try WHERE ?1", 1), worker::POISON.len());
    }
}

#[test]
fn of_two_that_are_started_together_one_runs_and_one_is_told_who_does() {
    let _watchdog = Watchdog::new("two at once", LIMIT);
    let home = Home::new(0);
    for _ in 0..5 {
        let told = home.told().len();
        let mut both = [home.start(Work::Hold), home.start(Work::Hold)];
        assert!(both[0].wait_until(|| home.told().len() >= told + 2));
        let said: BTreeSet<String> = home.told().split_off(told).into_iter().collect();
        let pids = both.each_ref().map(worker::Working::pid);
        let either =
            |runs: u32, skips: u32| BTreeSet::from([format!("{runs} runs"), format!("{skips} skipped by {runs}")]);
        assert!(said == either(pids[0], pids[1]) || said == either(pids[1], pids[0]), "{pids:?} {said:?}");
        for child in both {
            assert_eq!(child.let_go(), Status::Exit(0));
        }
    }
    assert_eq!(home.count("SELECT count(*) FROM journal_run WHERE ?1", 1), 1, "who is told so writes nothing");
}
