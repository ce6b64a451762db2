//! Goes through every crash of a script, and every crash of the recoveries that follow.

use std::collections::HashMap;
use std::fmt;

use super::disk::{FILE, INODES, Profile};
use super::faults::Fault;
use super::judge::{judge, may_need_a_person, reachable};
use super::losses::power_cut;
use super::run::{Run, Step};
use super::scripts::{Script, THEIRS, before};
use super::world::{Books, Rows, State, World};

/// How many crashes in a row: one in the script, the others in recoveries.
const DEPTH: u8 = 2;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stats {
    /// Recoveries that were run to their end and judged.
    pub(super) recoveries: u64,
    /// States that crashes left and that were met before.
    pub(super) met_before: u64,
    /// Not all of it was gone through.
    pub(super) cut_short: bool,
}

impl Stats {
    pub(super) fn add(&mut self, other: Self) {
        self.recoveries += other.recoveries;
        self.met_before += other.met_before;
        self.cut_short |= other.cut_short;
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { recoveries, met_before, cut_short } = self;
        let all = if *cut_short { "; of some scripts not all of them" } else { "" };
        write!(f, "{recoveries} recoveries, {met_before} states met before{all}")
    }
}

/// What is wrong, and how it came to that.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) what: String,
    pub(super) how: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.what, self.how)
    }
}

struct Crashed {
    world: World,
    /// How many more crashes are to come.
    left: u8,
    /// Where this was crashed, and before that.
    how: Vec<String>,
}

pub(super) struct Explorer<'s> {
    script: &'s Script,
    profile: Profile,
    fault: Option<Fault>,
    books: Books,
    /// States that were recovered from, with how many crashes were still to come.
    met: HashMap<u128, u8>,
    waiting: Vec<Crashed>,
    stats: Stats,
    buffer: Vec<u8>,
    /// At most so many recoveries; and so many up to the crash that the script has now come to.
    most: u64,
    share: u64,
}

impl<'s> Explorer<'s> {
    pub(super) fn new(script: &'s Script, profile: Profile, fault: Option<Fault>, most: u64) -> Self {
        Self {
            script,
            profile,
            fault,
            books: Books::default(),
            met: HashMap::new(),
            waiting: Vec::new(),
            stats: Stats::default(),
            buffer: Vec::new(),
            most,
            share: 0,
        }
    }

    pub(super) fn explore(mut self) -> Result<Stats, Violation> {
        let world = before(&mut self.books);
        let mut run = Run::new(world, &mut self.books, self.profile, self.fault);
        run.tells = self.script.tells();
        run.seen = Some(Vec::new());
        let done = run.play(self.script);
        let (seen, steps, end, wrong) = (run.seen.take().unwrap_or_default(), run.steps, run.world, run.wrong);
        let failed = done.err().map(|failed| failed.0.to_owned()).or(wrong);
        if let Some(what) = failed {
            return Err(Violation { what, how: format!("{:?}, without any crash", self.script.events) });
        }
        let shown = |n: usize| format!("script crashed before step {n}, {:?}", steps.get(n));
        let points = seen.len() as u64 + 1;
        for (n, world) in (0..points).zip(seen.into_iter().chain([end])) {
            // Each point has its share, should not all of it be gone through.
            self.share = (self.most / points).max(1).saturating_mul(n + 1);
            self.crash(&world, DEPTH, &[], || shown(n as usize))?;
            self.work()?;
        }
        Ok(self.stats)
    }

    /// Everything that a crash in this state may leave.
    fn crash(&mut self, world: &World, left: u8, how: &[String], shown: impl Fn() -> String) -> Result<(), Violation> {
        let room = self.share.saturating_sub(self.stats.recoveries);
        if room == 0 {
            self.stats.cut_short = true;
            return Ok(());
        }
        let how = |what: &str| how.iter().cloned().chain([format!("{} ({what})", shown())]).collect::<Vec<_>>();
        self.meet(world.clone(), left, || how("killed"));
        let rows = self.books.rows(world.now());
        if rows.txns.iter().any(|txn| txn.state == State::Settling) {
            // What was being synced failed to reach the disk, and the one who would have been told is dead.
            let dirty = (1..INODES).filter(|&ino| world.disk.inodes.kind[ino] == FILE && world.disk.is_dirty(ino));
            let stuck = dirty.fold(0, |stuck, ino| stuck | 1 << ino);
            if stuck != 0 {
                let mut failed = world.clone();
                failed.disk.stuck |= stuck;
                self.meet(failed, left, || how("killed, and writing back failed"));
            }
        }
        let mut numbers: Vec<u32> = world.log.clone();
        numbers.dedup();
        for number in numbers {
            let recorded = self.books.recorded(number);
            let log = vec![self.books.after_a_cut(number)];
            let mut lost = None;
            let mut found = Vec::new();
            power_cut(&world.disk, self.profile, &recorded, &mut |disk| {
                let mut left = World { disk, log: log.clone(), ghost: world.ghost.clone() };
                left.ghost.cut = true;
                let theirs = reachable(&left, |_| true) & (u32::MAX << THEIRS);
                if left.ghost.theirs & !theirs != 0 {
                    lost.get_or_insert(left.ghost.theirs & !theirs);
                }
                left.ghost.theirs = theirs;
                found.push(left);
                // Some of them were met before.
                (found.len() as u64) / 4 <= room
            });
            if let Some(lost) = lost {
                let what = format!("somebody's work was durable, and is lost: {lost:#x}");
                return Err(Violation { what, how: how("power cut").join("; ") });
            }
            for world in found {
                self.meet(world, left, || how("power cut"));
            }
        }
        Ok(())
    }

    fn meet(&mut self, world: World, left: u8, how: impl Fn() -> Vec<String>) {
        let key = world.key(&mut self.buffer);
        let known = self.met.entry(key).or_insert(0);
        if *known >= left {
            self.stats.met_before += 1;
            return;
        }
        *known = left;
        self.waiting.push(Crashed { world, left, how: how() });
    }

    /// Recovers all that waits, and what crashes of that leave.
    fn work(&mut self) -> Result<(), Violation> {
        while let Some(Crashed { world, left, how }) = self.waiting.pop() {
            if self.stats.recoveries >= self.share {
                self.stats.cut_short = true;
                self.waiting.clear();
                break;
            }
            self.recover(world, left, &how)?;
        }
        Ok(())
    }

    fn recover(&mut self, mut found: World, left: u8, how: &[String]) -> Result<(), Violation> {
        self.stats.recoveries += 1;
        if let Some(work) = self.script.after_crash.filter(|_| left == DEPTH) {
            let mut somebody = Run::new(found, &mut self.books, self.profile, None);
            somebody.work(&[work]);
            found = somebody.world;
            found.ghost.theirs &= reachable(&found, |_| true);
        }
        let mut run = Run::new(found.clone(), &mut self.books, self.profile, self.fault);
        run.seen = (left > 1).then(Vec::new);
        let done = run.recover();
        let (seen, steps, end, wrong, failed) = (run.seen.take(), run.steps, run.world, run.wrong, run.failed);
        let rows = self.books.rows(end.now()).clone();
        let verdict = match (done, wrong) {
            (Err(failed), _) => Err(failed.0.to_owned()),
            (_, Some(wrong)) => Err(wrong),
            _ => judge(self.script, &found, &end, &rows).and_then(|()| self.is_over(&end, &rows)),
        };
        if let Err(what) = verdict {
            let how = format!("{:?}; {}; recovery: {steps:?} {failed:?}", self.script, how.join("; "));
            return Err(Violation { what, how });
        }
        let Some(seen) = seen else { return Ok(()) };
        for (n, world) in seen.into_iter().chain([end]).enumerate() {
            self.crash(&world, left - 1, how, || format!("recovery crashed before step {n}, {:?}", steps.get(n)))?;
        }
        Ok(())
    }

    /// One more recovery finds nothing to do.
    fn is_over(&mut self, end: &World, rows: &Rows) -> Result<(), String> {
        let mut run = Run::new(end.clone(), &mut self.books, self.profile, self.fault);
        let done = run.recover();
        // But for the rows of its own session.
        match run.steps.iter().find(|step| **step != Step::Log) {
            None if done.is_ok() && run.world.now() == end.now() => Ok(()),
            // It is tried again each time.
            _ if rows.txns.iter().any(|txn| may_need_a_person(self.script, txn)) => Ok(()),
            step => Err(format!("one more recovery found something to do: {step:?}")),
        }
    }
}
