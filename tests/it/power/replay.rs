//! The power fails: what is on the disk then, and what becomes of it.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::Path;

use journal_kb::rusqlite::Connection;
use journal_kb::{Journal, Recovered};

use super::disk::{Event, Fate, SECTOR, crashed};
use super::machine::Machine;
use super::record::{Recording, Shot};
use crate::crash_points::manifest::Manifest;

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

const MANNERS: [Manner; 5] = [Manner::All, Manner::Half, Manner::Torn, Manner::Nothing, Manner::Most];

/// When the power fails, and what that takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    /// So many events of the log have happened.
    pub(super) end: usize,
    manner: Manner,
    seed: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}, {:?}, seed {}", self.end, self.manner, self.seed)
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
        let sectors = length / SECTOR;
        let start = self.below(sectors);
        let end = start + 1 + self.below(sectors - start);
        start * SECTOR..(end * SECTOR).min(length)
    }
}

/// So many points, evenly over the log; where there are more, in every manner. A power cut right after a flush, or a mark, leaves
/// what one before the next write leaves.
pub(super) fn points(recording: &Recording, wanted: usize, seed: u64) -> Vec<Point> {
    let is_write = |event: &Event| matches!(event, Event::Write { .. });
    let log = &recording.log;
    let mut ends: Vec<usize> =
        (0..log.len()).filter(|&n| is_write(&log[n]) || log.get(n + 1).is_none_or(is_write)).map(|n| n + 1).collect();
    ends.dedup();
    let mut random = Random(seed);
    let mut point = |end: usize, n: usize| Point { end, manner: MANNERS[n % MANNERS.len()], seed: random.next() };
    let all = ends.len() * MANNERS.len();
    if wanted >= all {
        return (0..all).map(|n| point(ends[n / MANNERS.len()], n)).collect();
    }
    // With a different manner for neighbours, and the end of the log among them.
    (1..=wanted).map(|n| point(ends[(n * ends.len()).div_ceil(wanted) - 1], n + n / MANNERS.len())).collect()
}

/// What came out of one power cut.
pub(super) enum Outcome {
    /// This state of the history, and what the recovery of it did.
    Found(usize, Recovered),
    /// The filesystem could not be mounted.
    Refused(String),
    Wrong(Vec<String>),
}

/// Cuts the power, mounts what is left and opens the journal in it. The disk remembers that, too.
pub(super) fn cut(machine: &Machine, recording: &Recording, point: &Point) -> Outcome {
    let mut random = Random(point.seed);
    let fate = |_, length| match point.manner {
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
    };
    machine.disk.insert(crashed(&recording.base, &recording.log[..point.end], fate));
    machine.disk.record();
    let mounted = match machine.boot() {
        Ok(mounted) => mounted,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    let outcome = recovered(&mounted.root(), &recording.states, recording.bounds(point.end));
    mounted.unmount();
    match outcome {
        Ok((state, did)) => Outcome::Found(state, did),
        Err(wrong) => Outcome::Wrong(wrong),
    }
}

/// Has a journal recover, and says which of the states between `bounds` it is; else what is wrong with it.
pub(super) fn recovered(
    root: &Path,
    states: &[Shot],
    bounds: (usize, usize),
) -> Result<(usize, Recovered), Vec<String>> {
    let told = |error: journal_kb::Error| vec![format!("{error}: {error:?}")];
    let journal = Journal::open(root).map_err(told)?;
    let did = journal.recover().map_err(told)?;
    let found = Shot::of(&journal).map_err(told)?;
    journal.close().map_err(told)?;
    // What was referred to until then is swept by the next to come, who has nothing else to do.
    let journal = Journal::open(root).map_err(told)?;
    let mut again = journal.recover().map_err(told)?;
    again.swept = 0;
    journal.close().map_err(told)?;

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

    let differences = |state: &usize| {
        let state = &states[*state];
        let mut differences = found.tree.differences(&state.tree);
        if found.rows != state.rows {
            differences.push(format!("rows {:?}, not {:?}", found.rows, state.rows));
        }
        differences
    };
    let (low, high) = bounds;
    let Some(state) = (low..=high).find(|state| differences(state).is_empty()) else {
        let nearest = (0..states.len()).min_by_key(|state| (found.rows != states[*state].rows, differences(state).len()));
        let nearest = nearest.expect("there is a first state");
        wrong.push(format!("neither of the states {low} to {high}; nearest to {nearest}: {:#?}", differences(&nearest)));
        return Err(wrong);
    };
    // What left the tree is kept. Of commits that were never settled only the last version of a path ever gets there.
    let aside = ["history", "quarantine"].map(|name| Manifest::of(&engine.join(name)));
    for bytes in states[0].tree.contents() {
        let kept = |tree: &Manifest| tree.contents().any(|kept| kept.starts_with(bytes) || kept.ends_with(bytes));
        if !kept(&found.tree) && !aside.iter().any(kept) {
            wrong.push(format!("not kept: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(24)])));
        }
    }
    if !wrong.is_empty() && std::env::var("DBG").is_ok() {
        for e in walkdir::WalkDir::new(&engine) { let e = e.unwrap(); eprintln!("{} {}", e.path().display(), e.metadata().unwrap().len()); }
        let db = Connection::open(engine.join("journal.db")).unwrap();
        for t in ["journal_txn", "journal_change", "journal_event", "journal_guard", "journal_preimage"] {
            let mut st = db.prepare(&format!("SELECT * FROM {t}")).unwrap();
            let n = st.column_count();
            let mut rows = st.query([]).unwrap();
            while let Some(r) = rows.next().unwrap() { eprintln!("{t}: {:?}", (0..n).map(|i| format!("{:?}", r.get_ref(i).unwrap()).chars().take(90).collect::<String>()).collect::<Vec<_>>()); }
        }
    }
    if wrong.is_empty() { Ok((state, did)) } else { Err(wrong) }
}

/// What SQLite itself thinks of the database.
fn unsound(database: &Path) -> Option<String> {
    let check = |database: Connection| {
        let said: String = database.query_row("PRAGMA integrity_check", (), |row| row.get(0))?;
        Ok((said != "ok").then_some(said))
    };
    Connection::open(database).and_then(check).unwrap_or_else(|error| Some(error.to_string()))
}
