//! What is claimed of guards, each claim with what was found.

use journal_kb_peers::Result;

use super::results::{Found, Guards, Measured, Tree};
use super::rounds::{End, Round, Way};
use super::scale::Scale;
use super::tree::Shape;
use crate::claims::Claim;
use crate::quantity::{Span, Unit, grouped};

/// As much as two runs of the same may differ.
const EQUAL_AT_MOST: f64 = 1.25;
const PATHS_AT_MOST: f64 = 3.0;
const BESIDE_SYNCS_AT_MOST: f64 = 20e6;
const OF_NAIVE_AT_MOST: f64 = 0.02;
const GROWTH_AT_MOST: f64 = 5.0;
const FILE_AT_MOST: f64 = 2e3;
const RECOVERY_AT_MOST: f64 = 1.0;
const ROLLBACKS_OF_RECOVERY: f64 = 2.0;
const FIRST_AT_MOST: f64 = 1.3;
const MEMORY_AT_MOST: f64 = (128_u64 << 20) as f64;
const EXEC_AT_MOST: f64 = 5e6;

impl Found {
    pub fn tree(&self, shape: Shape) -> Result<&Tree> {
        Ok(self.trees.iter().find(|tree| tree.shape == shape).ok_or("a tree was not measured")?)
    }
}

impl Tree {
    /// The transactions of one kind.
    fn guarded(&self, way: Way, touched: usize, end: End, first: bool) -> Result<&Guards> {
        let wanted =
            |guards: &&Guards| (guards.way, guards.touched, guards.end, guards.first) == (way, touched, end, first);
        Ok(self.guards.iter().find(wanted).ok_or_else(|| {
            format!("{way:?} guards of {touched} of {} files that end in {end:?} were not measured", self.shape.files)
        })?)
    }

    /// The median of some figure of the transactions of one kind.
    pub fn took(&self, way: Way, touched: usize, end: End, of: fn(&Round) -> f64) -> Result<Span> {
        median(self.guarded(way, touched, end, false)?.ran.iter().flat_map(|ran| ran.rounds.iter().map(of)))
    }

    /// What the making of the baseline took.
    pub fn first(&self, way: Way, touched: usize) -> Result<Span> {
        let ran = &self.guarded(way, touched, End::RollBack, true)?.ran;
        median(ran.iter().flat_map(|ran| ran.rounds.iter().map(|round| round.begin)))
    }

    /// The median of the naive way.
    pub fn naive(&self, touched: usize, end: End) -> Result<Span> {
        let rounds = self.naive.iter().find(|(of, _)| *of == touched).ok_or("the naive way was not measured")?;
        median(rounds.1.iter().map(|naive| naive.total(end == End::RollBack)))
    }

    pub fn copied(&self) -> Result<Span> {
        median(self.copies.iter().copied())
    }

    /// Which ways of guarding this tree as a whole were measured.
    pub fn ways(&self) -> impl Iterator<Item = Way> {
        self.recovery.iter().map(|(way, _)| *way)
    }

    pub fn recovered(&self, way: Way) -> Result<Span> {
        let found = self.recovery.iter().find(|(of, _)| *of == way).ok_or("no recovery was measured")?;
        median(found.1.iter().map(|recovered| recovered.took))
    }
}

pub fn median(values: impl IntoIterator<Item = f64>) -> Result<Span> {
    Ok(Span::median(values).ok_or("nothing was measured")?)
}

/// All claims, as they were found in one place.
pub fn of(measured: &Measured, found: &Found) -> Result<Vec<Claim>> {
    let scale = &measured.scale;
    let mut claims = paths(scale, found)?;
    for end in [End::RollBack, End::Commit] {
        claims.extend(trees(scale, found, end)?);
    }
    claims.extend(any(scale, found)?);
    claims.extend(recovery(scale, found)?);
    claims.extend(first(scale, found)?);
    claims.extend(memory(scale, found)?);
    claims.extend(exec(found)?);
    Ok(claims)
}

fn paths(scale: &Scale, found: &Found) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    let touched = scale.touched;
    let (small, large) = (found.tree(scale.smallest())?, found.tree(scale.largest())?);
    for (way, name) in [(Way::Paths, "`guard_paths`"), (Way::PathsReplacing, "`guard_paths`, replacing,")] {
        for end in [End::RollBack, End::Commit] {
            let took = |tree: &Tree| tree.took(way, touched, end, Round::total);
            let work = format!("{name} of {touched} files + {}, {}", told(end), files(large.shape));
            let smaller = took(small)?;
            claims.push(Claim::compared(&work, EQUAL_AT_MOST, took(large)?, "the smallest tree", smaller));
            let bare = median(large.bare.iter().copied())?;
            claims.push(Claim::compared(&work, PATHS_AT_MOST, took(large)?, "bare links, renames, one sync", bare));
        }
    }
    Ok(claims)
}

fn trees(scale: &Scale, found: &Found, end: End) -> Result<Vec<Claim>> {
    let touched = scale.touched;
    let (small, large) = (found.tree(scale.smallest())?, found.tree(scale.largest())?);
    let middle = found.tree(scale.middle)?;
    let took = |tree: &Tree| tree.took(Way::Replacing, touched, end, Round::total);
    let work = |tree: &Tree| format!("guard, replacing, + {}, {}", told(end), spread(tree.shape));
    let mut claims = Vec::new();
    let beside = middle.beside_syncs.iter().find(|(of, _)| *of == end).and_then(|(_, beside)| beside.as_ref());
    if let Some(beside) = beside {
        let beside = median(beside.iter().copied())?;
        let work = format!("{}: beside the syncs", work(middle));
        claims.push(Claim::absolute(work, BESIDE_SYNCS_AT_MOST, beside, Unit::Nanoseconds));
    }
    let naive = middle.naive(touched, end)?;
    claims.push(Claim::compared(work(middle), OF_NAIVE_AT_MOST, took(middle)?, "the naive way", naive));
    claims.push(Claim::compared(work(large), GROWTH_AT_MOST, took(large)?, "the smallest tree", took(small)?));
    Ok(claims)
}

/// What a look at every file costs.
fn any(scale: &Scale, found: &Found) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    let (stored, touched) = (scale.stored.iter().rev(), scale.touched);
    let largest =
        stored.filter_map(|shape| found.tree(*shape).ok()).find(|tree| tree.ways().any(|way| way == Way::Any));
    for tree in [Some(found.tree(scale.middle)?), largest].into_iter().flatten() {
        let mut claim = |step: &str, end: End, of: fn(&Round) -> f64| {
            let (any, replacing) =
                (tree.took(Way::Any, touched, end, of)?, tree.took(Way::Replacing, touched, end, of)?);
            let work = format!("guard, any writer, {}: additional for each file {step}", spread(tree.shape));
            let each = any.less(replacing).divided(tree.shape.files as f64);
            claims.push(Claim::absolute(work, FILE_AT_MOST, each, Unit::Nanoseconds));
            Result::Ok(())
        };
        claim("at begin", End::RollBack, |round| round.begin)?;
        claim("at rollback", End::RollBack, |round| round.end)?;
        claim("at commit", End::Commit, |round| round.end)?;
    }
    Ok(claims)
}

fn recovery(scale: &Scale, found: &Found) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for tree in [found.tree(scale.middle)?, found.tree(scale.largest())?] {
        for way in tree.ways() {
            let rollback = tree.took(way, scale.touched, End::RollBack, |round| round.end)?;
            let looks = FILE_AT_MOST * tree.shape.files as f64;
            let bound = rollback.divided(1.0 / ROLLBACKS_OF_RECOVERY).more(looks);
            let writers = if way == Way::Any { "any writer" } else { "replacing" };
            let work = format!("recovery after SIGKILL, guard, {writers}, {}", spread(tree.shape));
            let took = tree.recovered(way)?;
            claims.push(Claim::compared(work, RECOVERY_AT_MOST, took, "2 rollbacks + 2 µs a file", bound));
        }
    }
    Ok(claims)
}

fn first(scale: &Scale, found: &Found) -> Result<Vec<Claim>> {
    let trees = [found.tree(scale.middle)?, found.tree(scale.largest())?];
    let claim = |tree: &Tree| {
        let work = format!("first baseline, replacing, {}", spread(tree.shape));
        let took = tree.first(Way::Replacing, scale.touched)?;
        Ok(Claim::compared(work, FIRST_AT_MOST, took, "`cp -al`", tree.copied()?))
    };
    trees.into_iter().map(claim).collect()
}

fn memory(scale: &Scale, found: &Found) -> Result<Vec<Claim>> {
    let tree = found.tree(scale.largest())?;
    let mut claims = Vec::new();
    let mut claim = |work: &str, peaks: Vec<u64>| {
        let peak = Span::greatest(peaks.into_iter().map(|peak| peak as f64)).ok_or("no memory was measured")?;
        let work = format!("peak memory, {work}, {}", spread(tree.shape));
        claims.push(Claim::absolute(work, MEMORY_AT_MOST, peak, Unit::Bytes));
        Result::Ok(())
    };
    for way in tree.ways() {
        let writers = if way == Way::Any { "any writer" } else { "replacing" };
        for (what, end, first) in [
            ("first baseline", End::RollBack, true),
            ("guard + rollback", End::RollBack, false),
            ("guard + commit", End::Commit, false),
        ] {
            let guards = tree.guarded(way, scale.touched, end, first)?;
            claim(&format!("{what}, {writers}"), guards.ran.iter().map(|ran| ran.peak).collect())?;
        }
        let recovered = tree.recovery.iter().filter(|(of, _)| *of == way).flat_map(|(_, recovered)| recovered);
        claim(&format!("recovery, {writers}"), recovered.map(|recovered| recovered.peak).collect())?;
    }
    Ok(claims)
}

fn exec(found: &Found) -> Result<[Claim; 2]> {
    let exec = &found.exec;
    let additional = |[alone, under]: &[Vec<f64>; 2]| {
        Result::Ok(median(under.iter().copied())?.less(median(alone.iter().copied())?))
    };
    let over = format!("over {} files: beside", grouped(exec.files));
    let nothing = format!("`exec true` {over} `true` itself");
    let touching =
        format!("`exec` of a program that touches {} files {over} itself and a commit of as many", exec.touched);
    let commit = median(exec.commit.iter().copied())?;
    Ok([
        Claim::absolute(nothing, EXEC_AT_MOST, additional(&exec.nothing)?, Unit::Nanoseconds),
        Claim::absolute(touching, EXEC_AT_MOST, additional(&exec.touching)?.less(commit), Unit::Nanoseconds),
    ])
}

pub fn told(end: End) -> &'static str {
    match end {
        End::RollBack => "rollback",
        End::Commit => "commit",
        End::Death => "SIGKILL",
    }
}

pub fn files(shape: Shape) -> String {
    format!("{} files", grouped(shape.files))
}

pub fn spread(shape: Shape) -> String {
    match shape.dirs {
        1 => format!("{} in one directory", files(shape)),
        dirs => format!("{} in {} directories", files(shape), grouped(dirs)),
    }
}
