//! Promise 2, for a power cut, on real filesystems.

mod disk;
mod machine;
mod record;
mod replay;
mod serve;
mod sys;
mod workloads;

use std::fs;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use self::disk::Event;
use self::machine::Machine;
use self::record::{Air, Recording, record};
use self::replay::{Outcome, Random, cut, points};
use self::workloads::Workload;
use crate::filesystems::image::Kind;

const POINTS: &str = "JOURNAL_KB_POWER_POINTS";
const WORKLOADS: &str = "JOURNAL_KB_POWER_WORKLOADS";
const SEED: &str = "JOURNAL_KB_POWER_SEED";
/// So many points of each filesystem are tried unless told otherwise.
const SOME: usize = 25;

#[test]
fn ext4_survives_power_cuts() {
    survives(Kind::Ext4);
}

#[test]
fn xfs_survives_power_cuts() {
    survives(Kind::Xfs);
}

#[test]
fn btrfs_survives_power_cuts() {
    survives(Kind::Btrfs);
}

#[derive(Default)]
struct Tally {
    recordings: usize,
    points: usize,
    /// Points at which the journal had something to recover.
    recoveries: usize,
    refused: Vec<String>,
    faults: Vec<String>,
    recording: Duration,
    replaying: Duration,
}

fn survives(kind: Kind) {
    let number = |name: &str| std::env::var(name).ok().map(|number| number.parse::<usize>().unwrap());
    let seed = number(SEED).unwrap_or(1) as u64;
    let all = std::env::var(POINTS).is_ok_and(|points| points == "all");
    let wanted = if all { usize::MAX } else { number(POINTS).unwrap_or(SOME) };
    let chosen = std::env::var(WORKLOADS).ok();
    let is_chosen = |workload: &Workload| chosen.as_ref().is_none_or(|chosen| workload.name.contains(chosen.as_str()));
    let workloads: Vec<_> = workloads::all().into_iter().filter(is_chosen).collect();
    assert!(!workloads.is_empty(), "{WORKLOADS} names none");
    let jobs: Vec<_> = workloads.iter().flat_map(|workload| [(workload, Air::Calm), (workload, Air::Restless)]).collect();
    let jobs_count = jobs.len();
    let next = AtomicUsize::new(0);
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let Some(machine) = Machine::new(kind) else { return };
                while let Some((workload, air)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let n = 3;
                    let t = Instant::now();
                    let recording = record(&machine, workload, *air);
                    let took = t.elapsed();
                    let w = recording.log.iter().filter(|e| matches!(e, Event::Write{..})).count();
                    let f = recording.log.iter().filter(|e| matches!(e, Event::Flush)).count();
                    let t = Instant::now();
                    let share = if all { usize::MAX } else { wanted.div_ceil(jobs_count) };
                    let ps = points(&recording, share, seed);
                    for p in &ps {
                        let outcome = cut(&machine, &recording, p);
                        let mut tally = tally.lock().unwrap();
                        tally.points += 1;
                        match outcome {
                            Outcome::Found(_, did) => { if did.applied + did.settled + did.rolled_back > 0 { tally.recoveries += 1; } }
                            Outcome::Refused(e) => tally.refused.push(format!("{} {p}: {e}", recording.what)),
                            Outcome::Wrong(w) => tally.faults.push(format!("{kind:?}, {}, {p}: {w:#?}", recording.what)),
                        }
                    }
                    eprintln!("{kind:?} {} {took:?} {w} writes {f} flushes; {} points {:?} each", recording.what, ps.len(), t.elapsed() / ps.len().max(1) as u32);
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap();
    println!("{kind:?}: {} points, {} recoveries, {} refused", tally.points, tally.recoveries, tally.refused.len());
    for r in &tally.refused { println!("{r}"); }
    assert!(tally.faults.is_empty(), "{} faults: {}", tally.faults.len(), tally.faults.iter().take(5).cloned().collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_sync_reaches_the_disk_and_ends_with_a_flush() {
    for kind in Kind::ALL {
        std::thread::scope(|scope| scope.spawn(|| sync_reaches_the_disk(kind)).join()).unwrap();
    }
}

fn sync_reaches_the_disk(kind: Kind) {
    let Some(machine) = Machine::new(kind) else { return };
    machine.disk.insert(machine.fresh());
    let mounted = machine.boot().unwrap();
    machine.disk.record();
    let bytes = b"these bytes are looked for".repeat(1000);
    let mut file = fs::File::create(mounted.outside().join("file")).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let log = machine.disk.recorded();
    mounted.unmount();
    let holds = |event: &Event| matches!(event, Event::Write { bytes: written, .. } if written.starts_with(&bytes[..26]));
    assert!(log.iter().any(holds), "{kind:?}: what was synced is on the disk");
    // The last thing that a journal writes is a commit block, for which the block layer is told to force it out.
    assert!(matches!(log.last(), Some(Event::Flush)), "{kind:?} ends a sync with a flush");
}
