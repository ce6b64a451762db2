//! A model of the protocol, on a disk that forgets whatever was not synced: every step of transactions, guards and recoveries, with
//! every loss that a power cut may bring there.
//!
//! - [`disk`] is what is in memory and what is durable; [`losses`] what may become of the difference. Two profiles: changes of
//!   names are lost from the end, in their order; or each by itself, with renames half done.
//! - [`staged`], [`settle`], [`guard`], [`tree`], [`messages`] and [`recovery`] are the protocol, step by step as the engine has it, over the rows and names
//!   of [`world`]. What is decided about a path is the engine's own table, and so is which state may follow which. [`trace`] holds
//!   the steps against those that the engine is seen to make.
//! - [`scripts`] are transactions in a row with edits by hand in between, [`families`] all that there are. [`explore`] crashes each
//!   at every step, then each recovery at every step, by a kill or with every loss, and has [`judge`] look at what the next
//!   recovery makes of it. A state that was recovered from before is not gone through again, and not counted again.
//! - [`faults`] are what the model can be told to do wrong. Each has to be found. [`found`] is what it found in the engine.
//!
//! `JOURNAL_KB_MODEL=all` goes through all scripts, a number says with how many recoveries of each at most.

mod disk;
mod explore;
mod families;
mod faults;
mod found;
mod guard;
mod judge;
mod losses;
mod messages;
mod recovery;
mod run;
mod scripts;
mod settle;
mod staged;
mod trace;
mod tree;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::disk::Profile;
use self::explore::{Explorer, Stats, Violation};
use self::faults::Fault;
use self::scripts::Script;
use crate::figures;

/// How many recoveries of one script, in one profile, in `cargo test`.
const FEW: u64 = 50;
/// And where all is asked for. Most scripts have fewer.
const MANY: u64 = 2_500;

/// Explores scripts in both profiles, on all processors, until one of them shows that something is wrong.
fn explore(scripts: &[Script], most: u64) -> Result<Stats, Violation> {
    let profiles = [Profile::Ordered, Profile::OnlySynced];
    let cases: Vec<_> = scripts.iter().flat_map(|script| profiles.map(|profile| (script, profile))).collect();
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Ok(Stats::default())));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((script, profile)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = Explorer::new(script, *profile, None, most).explore();
                    let mut sum = sum.lock().unwrap();
                    match (&mut *sum, found) {
                        (Ok(sum), Ok(found)) => sum.add(found),
                        (Ok(_), Err(violation)) => {
                            next.store(cases.len(), Ordering::Relaxed);
                            *sum = Err(violation);
                        }
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

#[test]
fn after_every_crash_rows_and_files_agree_and_nothing_is_lost() {
    let asked = std::env::var("JOURNAL_KB_MODEL").ok();
    let most = match asked.as_deref() {
        None => FEW,
        Some("all") => MANY,
        Some(number) => number.parse().expect("JOURNAL_KB_MODEL is `all`, or a number of recoveries for each script"),
    };
    let scripts = if asked.is_some() { families::all() } else { families::sample() };
    let stats = explore(&scripts, most).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{} scripts in two profiles: {stats}", scripts.len());
    figures::add("recoveries of the model of the protocol", stats.recoveries as usize);
    // Else the model has come to a stand, and proves nothing.
    assert!(stats.recoveries >= scripts.len() as u64 * 50, "{stats}");
}

#[test]
fn every_fault_of_the_model_is_found() {
    let faults: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| !fault.is_harmless()).collect();
    let (next, told) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let script = families::telling(*fault);
                    let find = |profile| Explorer::new(&script, profile, Some(*fault), u64::MAX).explore().err();
                    let found = [Profile::OnlySynced, Profile::Ordered].map(find);
                    told.lock().unwrap().push((*fault, found));
                }
            });
        }
    });
    let told = told.into_inner().unwrap();
    for (fault, found) in &told {
        let what = found.iter().map(|found| found.as_ref().map_or("not found", |violation| &violation.what));
        println!("{fault:?}: {}", what.collect::<Vec<_>>().join(" | "));
    }
    let missed: Vec<_> = told.iter().filter(|(_, found)| found.iter().all(Option::is_none)).collect();
    assert!(missed.is_empty(), "the model does not see {missed:?}");
    figures::add("faults planted in the model, and found", told.len());
    assert_eq!(told.len(), faults.len());
}

#[test]
fn what_is_harmless_is_so_by_what_a_rename_promises() {
    for fault in Fault::ALL.into_iter().filter(|fault| fault.is_harmless()) {
        let script = families::telling(fault);
        for profile in [Profile::Ordered, Profile::OnlySynced] {
            let found = Explorer::new(&script, profile, Some(fault), u64::MAX).explore();
            assert!(found.is_ok(), "{fault:?} is told to be harmless: {}", found.unwrap_err());
        }
    }
}
