//! The power fails: what is on the disk then, and what becomes of it.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use journal_kb::Recovered;
use journal_kb::rusqlite::Connection;

use super::disk::{Content, Event, Fate, SECTOR, crashed};
use super::machine::Machine;
use super::messages::untold;
use super::record::{Recording, Shot};
use crate::blobs_killed::judge;
use crate::crash_points::manifest::Manifest;
use crate::crash_points::open;

/// Which of the writes behind the last flush survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    All,
    Nothing,
    Half,
    /// All but one in eight.
    Most,
    /// Half of them, and of these some only in part.
    Torn,
}

pub(super) const MANNERS: [Manner; 5] = [Manner::All, Manner::Half, Manner::Torn, Manner::Nothing, Manner::Most];

/// When the power fails, and what that takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    /// So many events of the log have happened.
    pub(super) end: usize,
    pub(super) manner: Manner,
    pub(super) seed: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}, {:?}, seed {}", self.end, self.manner, self.seed)
    }
}

impl Point {
    /// The disk after it.
    pub(super) fn disk(&self, base: &Content, log: &[Event]) -> Content {
        let mut random = Random(self.seed);
        crashed(base, &log[..self.end], |length| match self.manner {
            Manner::All => Fate::Kept,
            Manner::Nothing => Fate::Lost,
            Manner::Half if random.below(2) == 0 => Fate::Lost,
            Manner::Most if random.below(8) == 0 => Fate::Lost,
            Manner::Torn => match random.below(4) {
                0 | 1 => Fate::Lost,
                2 => Fate::Torn(random.part(length)),
                _ => Fate::Kept,
            },
            Manner::Half | Manner::Most => Fate::Kept,
        })
    }
}

/// Numbers that are the same for the same seed (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn part(&mut self, length: usize) -> Range<usize> {
        let sectors = length.div_ceil(SECTOR);
        let start = self.below(sectors);
        let end = start + 1 + self.below(sectors - start);
        start * SECTOR..(end * SECTOR).min(length)
    }
}

/// Points of a log. A power cut right behind a flush or a mark leaves what one before the next write leaves, so there is one
/// for each write, and one for each last event before a write, in every manner.
///
/// As many as are `wanted` lie evenly over what happened once the work had begun, each somewhere within its part of it.
pub(super) fn points(recording: &Recording, wanted: Option<usize>, random: &mut Random) -> Vec<Point> {
    let log = &recording.log;
    let is_write = |n: usize| log.get(n).is_none_or(|event| matches!(event, Event::Write { .. }));
    let ends = (0..log.len()).filter(|&n| is_write(n) || is_write(n + 1)).map(|n| n + 1);
    let from = if wanted.is_some() { recording.opening } else { 0 };
    let ends: Vec<usize> = ends.filter(|&end| end > from).collect();
    let all = ends.len() * MANNERS.len();
    let mut point = |end: usize, manner: usize| Point {
        end: ends[end],
        manner: MANNERS[manner % MANNERS.len()],
        seed: random.next(),
    };
    match wanted {
        Some(wanted) if wanted < all => {
            let mut parts = Random(point(0, 0).seed);
            let first = parts.below(MANNERS.len());
            let within = |n: usize, parts: &mut Random| {
                let (start, end) = (n * ends.len() / wanted, (n + 1) * ends.len() / wanted);
                (start + parts.below(end - start)).min(ends.len() - 1)
            };
            (0..wanted).map(|n| point(within(n, &mut parts), first + n)).collect()
        }
        _ => (0..all).map(|n| point(n / MANNERS.len(), n)).collect(),
    }
}

/// What came out of one power cut.
pub(super) enum Outcome {
    /// This state of the history, and what the recovery of it did.
    Found(usize, Recovered),
    /// The filesystem could not be mounted.
    Refused(String),
    Wrong(Vec<String>),
}

/// Cuts the power, mounts what is left and opens the journal in it. The disk remembers that in its turn.
pub(super) fn cut(machine: &Machine, recording: &Recording, point: &Point) -> Outcome {
    machine.disk.insert(point.disk(&recording.base, &recording.log));
    machine.disk.record();
    let mounted = match machine.boot() {
        Ok(mounted) => mounted,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    let bounds = recording.bounds(point.end);
    let found = recovered(&mounted.root()).and_then(|found| {
        let (state, mut wrong) = found.is_one_of(&recording.states, bounds);
        wrong.extend(found.lacks(&recording.states[0].tree));
        wrong.extend(untold(machine, &mounted.root(), recording.told(point.end)));
        if wrong.is_empty() { Ok((state, found.did)) } else { Err(wrong) }
    });
    mounted.unmount();
    match found {
        Ok((state, did)) => Outcome::Found(state, did),
        Err(wrong) => Outcome::Wrong(wrong),
    }
}

/// What a recovery led to.
pub(super) struct Found {
    pub(super) shot: Shot,
    pub(super) did: Recovered,
    /// What the engine has kept.
    aside: [Manifest; 2],
}

impl Found {
    /// The only state within the bounds that it may be, else the nearest, and what is wrong then.
    fn is_one_of(&self, states: &[Shot], (low, high): (usize, usize)) -> (usize, Vec<String>) {
        let differences = |state: usize| {
            let mut differences = self.shot.tree.differences(&states[state].tree);
            if self.shot.rows != states[state].rows {
                differences.push(format!("rows {:?}, not {:?}", self.shot.rows, states[state].rows));
            }
            differences
        };
        if let Some(state) = (low..=high).find(|&state| differences(state).is_empty()) {
            return (state, Vec::new());
        }
        let unlike = |state: &usize| (self.shot.rows != states[*state].rows, differences(*state).len());
        let nearest = (0..states.len()).min_by_key(unlike).expect("there is a first state");
        let mut wrong =
            vec![format!("it is none of the states {low} to {high} of {}, but like {nearest}", states.len())];
        wrong.extend(differences(nearest));
        (nearest, wrong)
    }

    /// What left the tree is kept. Of commits that were never settled only the last version of a path ever gets there, so this
    /// is asked of what was there before all of them.
    fn lacks(&self, before: &Manifest) -> Vec<String> {
        let kept = |bytes: &[u8]| {
            let mut all = self.aside.iter().chain([&self.shot.tree]).flat_map(Manifest::contents);
            // What was only appended to is there as the beginning of what it is now.
            all.any(|kept| kept.starts_with(bytes) || kept.ends_with(bytes))
        };
        let lost = before.contents().filter(|bytes| !kept(bytes));
        lost.map(|bytes| format!("not kept: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(24)]))).collect()
    }
}

/// Has a journal recover what it finds, and looks; else what is wrong with it.
pub(super) fn recovered(root: &Path) -> Result<Found, Vec<String>> {
    // What cannot even be read is a fault like any other.
    catch_unwind(AssertUnwindSafe(|| look(root))).unwrap_or_else(|_| Err(vec!["it panicked, see above".to_owned()]))
}

fn look(root: &Path) -> Result<Found, Vec<String>> {
    let told = |error: journal_kb::Error| vec![format!("{error}: {error:?}")];
    let journal = open(root);
    let did = journal.recover().map_err(told)?;
    let shot = Shot::of(&journal).map_err(told)?;
    journal.close().map_err(told)?;
    // What was referred to until then is swept by the next to come, who has nothing else to do.
    let journal = open(root);
    let mut again = journal.recover().map_err(told)?;
    journal.close().map_err(told)?;
    again.swept = 0;

    let mut wrong = Vec::new();
    if (did.pending, did.quarantined) != (0, 0) {
        wrong.push(format!("not all of it could be recovered: {did:?}"));
    }
    if again != Recovered::default() {
        wrong.push(format!("the second to come had something to do: {again:?}"));
    }
    let engine = root.join(".journal");
    wrong.extend(fs::read_dir(engine.join("stage")).unwrap().map(|stray| format!("a stray: {stray:?}")));
    wrong.extend(unsound(&engine.join("journal.db")));
    if shot.rows.iter().any(|(what, _)| what.starts_with("content ") || what.starts_with("blob ")) {
        wrong.extend(judge::wrong(root));
    }
    let aside = ["history", "quarantine"].map(|name| Manifest::of(&engine.join(name)));
    if wrong.is_empty() { Ok(Found { shot, did, aside }) } else { Err(wrong) }
}

/// What SQLite itself thinks of the database.
fn unsound(database: &Path) -> Option<String> {
    let check = |database: Connection| {
        let said: String = database.query_row("PRAGMA integrity_check", (), |row| row.get(0))?;
        Ok((said != "ok").then_some(said))
    };
    Connection::open(database).and_then(check).unwrap_or_else(|error| Some(error.to_string()))
}
