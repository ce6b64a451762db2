//! Promise 2, for a power cut, on real filesystems: ext4, xfs and btrfs on a disk that forgets what was not flushed.
//!
//! 1. A disk in memory is served as a file (FUSE), a loop device is laid over it, and a filesystem mounted. The disk remembers
//!    every write and every flush that reaches it ([`disk`], [`serve`], [`machine`]).
//! 2. A journal does its work there ([`workloads`]), and says in the disk's own log what may be found from then on, and what
//!    must never be lost again ([`record`]).
//! 3. The power fails at a point of that log: the disk is what was flushed until then, and of the writes behind the last flush
//!    whatever chance leaves of them, some torn. It is mounted and the journal opened, which recovers it ([`replay`]). What then
//!    is in the tree and in the rows must be, together, one of the states of the history that are possible there; recovery must
//!    have nothing left to do; nothing may lie about, and what left the tree must be kept.
//! 4. The recovery was remembered in its turn, so the power fails within it, too.
//!
//! In calm air nothing reaches the disk but what the journal asks for. In gusts the kernel writes out what was done so far, metadata
//! without their data; in restless air it does so all the time, and data without their metadata.
//!
//! By default some points of each workload are tried. `JOURNAL_KB_POWER_POINTS` says how many of each filesystem, or `all`;
//! `JOURNAL_KB_POWER_SEED` makes them others; `JOURNAL_KB_POWER_WORKLOADS` takes only workloads with this in their names.

mod blobs;
mod child;
mod disk;
mod machine;
mod messages;
mod record;
mod refused;
mod replay;
mod serve;
mod shutdown;
mod sys;
mod workloads;

use std::fs;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use self::disk::{Event, SECTOR};
use self::machine::Machine;
use self::record::{Air, Recording, record};
use self::replay::{Outcome, Point, Random, cut, points};
use self::workloads::Workload;
use crate::figures;
use crate::filesystems::image::Kind;

const POINTS: &str = "JOURNAL_KB_POWER_POINTS";
const WORKLOADS: &str = "JOURNAL_KB_POWER_WORKLOADS";
const SEED: &str = "JOURNAL_KB_POWER_SEED";
/// So many points of each filesystem are tried unless told otherwise.
const SOME: usize = 90;
/// One of so many points that had something to recover is gone into: so often does the power fail within its recovery.
const DEEPER: usize = 3;
/// While one waits for a disk, the others work.
const WORKERS: usize = 3;

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

/// What came of all of it.
#[derive(Default)]
struct Tally {
    recordings: usize,
    points: usize,
    /// Points within a recovery, which count as points too.
    deeper: usize,
    /// Points at which the journal had something to carry out, to settle or to put back.
    recoveries: usize,
    refused: Vec<String>,
    faults: Vec<String>,
    recording: Duration,
    replaying: Duration,
}

struct Proof {
    kind: Kind,
    /// Of each recording; none for all of them.
    points: Option<usize>,
    seed: u64,
    tally: Mutex<Tally>,
}

fn survives(kind: Kind) {
    let number = |name: &str| std::env::var(name).ok().map(|number| number.parse::<usize>().unwrap());
    let wanted = match std::env::var(POINTS) {
        Ok(all) if all == "all" => None,
        _ => Some(number(POINTS).unwrap_or(SOME)),
    };
    let named = std::env::var(WORKLOADS).unwrap_or_default();
    let workloads: Vec<_> = workloads::all().into_iter().filter(|workload| workload.name.contains(&named)).collect();
    assert!(!workloads.is_empty(), "no workload has {named:?} in its name");
    let jobs: Vec<(&Workload, Air)> = [Air::Calm, Air::Gusty, Air::Restless]
        .iter()
        .flat_map(|&air| workloads.iter().map(move |workload| (workload, air)))
        .collect();
    let proof = Proof {
        kind,
        points: wanted.map(|wanted| wanted.div_ceil(jobs.len())),
        seed: number(SEED).unwrap_or(1) as u64,
        tally: Mutex::default(),
    };
    let next = AtomicUsize::new(0);
    let work = || {
        let Some(machine) = Machine::new(kind) else { return };
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some((workload, air)) = jobs.get(n) else { return };
            proof.of(&machine, workload, *air, n);
        }
    };
    std::thread::scope(|scope| (0..WORKERS).for_each(|_| drop(scope.spawn(work))));
    let tally = proof.tally.into_inner().unwrap();
    if tally.recordings > 0 {
        tally.is_enough(kind, jobs.len());
    }
}

impl Proof {
    /// One workload, recorded and replayed.
    fn of(&self, machine: &Machine, workload: &Workload, air: Air, n: usize) {
        let begun = Instant::now();
        let recording = record(machine, workload, air);
        let recorded = Instant::now();
        let mut random = Random(self.seed.wrapping_mul(1000).wrapping_add(n as u64));
        let mut recoveries = 0;
        for point in points(&recording, self.points, &mut random) {
            let Some(within) = self.at(machine, &recording, &point) else { continue };
            recoveries += 1;
            if recoveries % DEEPER == 1 {
                let deeper = points(&within, Some(DEEPER), &mut random);
                deeper.iter().for_each(|point| drop(self.at(machine, &within, point)));
                self.tally.lock().unwrap().deeper += deeper.len();
            }
        }
        let mut tally = self.tally.lock().unwrap();
        tally.recordings += 1;
        tally.recording += recorded - begun;
        tally.replaying += recorded.elapsed();
    }

    /// One power cut. Answers what the recovery did on the disk, if it had to do anything.
    fn at(&self, machine: &Machine, recording: &Recording, point: &Point) -> Option<Recording> {
        let outcome = cut(machine, recording, point);
        let log = machine.disk.recorded();
        let mut tally = self.tally.lock().unwrap();
        tally.points += 1;
        let what = format!("{:?}, {}, {point}", self.kind, recording.what);
        match outcome {
            Outcome::Wrong(wrong) => tally.faults.push(format!("{what}: {wrong:#?}")),
            Outcome::Refused(error) => tally.refused.push(format!("{what}: {error}")),
            Outcome::Found(state, did) => {
                if did.applied + did.settled + did.rolled_back > 0 {
                    tally.recoveries += 1;
                    return Some(Recording {
                        what: format!("{what}, within its recovery"),
                        base: point.disk(&recording.base, &recording.log),
                        log,
                        states: recording.states.clone(),
                        first: (state, state),
                        opening: 0,
                        told: recording.told(point.end),
                    });
                }
            }
        }
        None
    }
}

impl Tally {
    fn is_enough(&self, kind: Kind, recordings: usize) {
        let Self { points, deeper, recoveries, refused, faults, .. } = self;
        let each = |time: Duration, count: usize| time.as_millis() as usize / count.max(1);
        println!(
            "{kind:?}: {points} power cuts of {} recordings, {deeper} of them within a recovery; {recoveries} had something to \
             recover; {} could not be mounted; {} ms each, and {} ms for a recording, by {WORKERS} at once",
            self.recordings,
            refused.len(),
            each(self.replaying, *points),
            each(self.recording, self.recordings),
        );
        refused.iter().for_each(|refused| println!("not mounted: {refused}"));
        figures::add(&format!("power cuts on {}, and recoveries", kind.name()), *points);
        let some = faults.iter().take(12).map(String::as_str).collect::<Vec<_>>().join("\n");
        assert!(faults.is_empty(), "{} of {points} power cuts lost something:\n{some}", faults.len());
        assert_eq!(self.recordings, recordings);
        // A filesystem is made to survive what is done to its disk here. Where it does not, nothing is shown of the journal.
        assert!(refused.len() <= 1 + points / 50, "{} of {points} could not be mounted", refused.len());
        // Where next to nothing is to be recovered, next to nothing is shown either.
        assert!(recoveries * 10 >= *points, "only {recoveries} of {points} power cuts left something to recover");
    }
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
    let mut file = fs::File::create(mounted.outside().join("file")).unwrap();
    let bytes = b"these bytes are looked for".repeat(1000);
    file.write_all(&bytes).unwrap();
    // What is only written reaches the disk some seconds later.
    let holds =
        |event: &Event| matches!(event, Event::Write { bytes: written, .. } if written[..SECTOR] == bytes[..SECTOR]);
    assert_eq!(machine.disk.happened(), 0, "{kind:?}: nothing was asked for yet");
    file.sync_all().unwrap();
    drop(file);
    let log = machine.disk.recorded();
    mounted.unmount();
    let data = log.iter().position(holds).expect("what was synced is on the disk");
    let flushes = log[data..].iter().filter(|event| matches!(event, Event::Flush)).count();
    // One between the data and what makes them part of the file, and, last of all, one that forces this out.
    assert!(flushes >= 2, "{kind:?}: {flushes} flushes");
    assert!(matches!(log.last(), Some(Event::Flush)), "{kind:?} ends a sync with a flush");
}
