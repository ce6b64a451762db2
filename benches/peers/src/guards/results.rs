//! Everything that was found of guards, between measuring and writing it down.

use std::fs;
use std::path::Path;
use std::time::Instant;

use journal_kb_peers::shared::{DISK, Homes, Place, places};
use journal_kb_peers::{QUICK, Result};
use serde::{Deserialize, Serialize};

use super::exec::{self, Exec};
use super::naive::{self, Naive};
use super::recovery::{self, Recovered};
use super::rounds::{End, Ran, Task, Way};
use super::scale::Scale;
use super::tree::{self, Shape};
use super::{bare, syncing};
use crate::child;
use crate::filesystem;
use crate::machine::Machine;

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub scale: Scale,
    pub machine: Machine,
    pub places: Vec<Found>,
}

/// What was found in one place.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    pub place: String,
    pub filesystem: String,
    pub trees: Vec<Tree>,
    pub exec: Exec,
}

/// What was found of one tree.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tree {
    pub shape: Shape,
    /// Nanoseconds of `cp -al`.
    pub copies: Vec<f64>,
    /// The naive way, by how many files were touched.
    pub naive: Vec<(usize, Vec<Naive>)>,
    /// Nanoseconds of bare links and renames, for as many files as are touched by default.
    pub bare: Vec<f64>,
    pub guards: Vec<Guards>,
    /// What of a guard is no sync, in nanoseconds; none where that cannot be told.
    pub beside_syncs: Vec<(End, Option<Vec<f64>>)>,
    pub recovery: Vec<(Way, Vec<Recovered>)>,
}

/// Transactions of one kind.
#[derive(Debug, Serialize, Deserialize)]
pub struct Guards {
    pub way: Way,
    pub touched: usize,
    pub end: End,
    /// The baseline was made in it, so there is one round in each process.
    pub first: bool,
    pub ran: Vec<Ran>,
}

impl Measured {
    pub fn load(kept: &Path) -> Result<Self> {
        crate::criterion::json(kept)
    }
}

/// Measures, and keeps what was found in a file.
pub fn measure(kept: &Path) -> Result<()> {
    let scale = if std::env::var_os(QUICK).is_some() { Scale::quick() } else { Scale::full() };
    let disk = std::env::var(DISK).map_err(|_| format!("{DISK} does not name the directory to use as disk"))?;
    let machine = Machine::look()?;
    let mut measured = Measured { scale, machine, places: Vec::new() };
    for place in places(&disk) {
        let found = look(&place, &measured.scale).map_err(|error| format!("{}: {error}", place.name))?;
        measured.places.push(found);
        fs::write(kept, serde_json::to_string_pretty(&measured)?)?;
    }
    Ok(())
}

fn look(place: &Place, scale: &Scale) -> Result<Found> {
    let mut homes = Homes::default();
    let mut trees = Vec::new();
    let mut exec = None;
    for shape in scale.trees() {
        let start = Instant::now();
        eprint!("{}: guards, {} files in {} directories", place.name, shape.files, shape.dirs);
        let home = homes.make(place)?;
        let of = Of { scale, root: &home.join("root"), aside: &home.join("aside"), shape };
        fs::create_dir(of.root)?;
        fs::create_dir(of.aside)?;
        shape.make(of.root)?;
        trees.push(of.measure()?);
        if shape == scale.exec {
            eprint!(", exec");
            // Files with other names, such as those in a mirror, are none that an overlay may change in place.
            of.forget_the_journal()?;
            exec = Some(exec::measure(of.root, shape, scale.touched, scale.rounds)?);
        }
        eprintln!(": {} s", start.elapsed().as_secs());
    }
    let exec = exec.ok_or("there was no tree for exec")?;
    let filesystem = filesystem::describe(&place.path)?;
    Ok(Found { place: place.name.to_owned(), filesystem, trees, exec })
}

/// One tree, and what is measured on it.
struct Of<'a> {
    scale: &'a Scale,
    root: &'a Path,
    /// An empty directory on the same filesystem.
    aside: &'a Path,
    shape: Shape,
}

impl Of<'_> {
    fn measure(&self) -> Result<Tree> {
        let Self { scale, root, aside, shape } = *self;
        let by_file = scale.rounds_by_file(shape);
        // Before there is a mirror: a filesystem in memory may have no room for a third name of each file.
        let naive = self.naive()?;
        let (mut copies, mut first) = (Vec::new(), Vec::new());
        for _ in 0..by_file {
            self.forget_the_journal()?;
            copies.push(bare::copy_links(root, &aside.join("copy"))?);
            first.push(self.run(Way::Replacing, scale.touched, End::RollBack, 1, false)?);
        }
        let mut bare = Vec::new();
        for round in 0..2 * scale.rounds {
            bare.push(bare::link_and_rename(root, aside, shape, scale.touched, round)?);
        }
        let of_first = |way, ran| Guards { way, touched: scale.touched, end: End::RollBack, first: true, ran };
        let mut guards = vec![of_first(Way::Replacing, first)];
        self.guards(&[Way::Paths, Way::PathsReplacing, Way::Replacing], &mut guards)?;
        let mut beside_syncs = Vec::new();
        if shape == scale.middle {
            for end in [End::RollBack, End::Commit] {
                let task = self.task(Way::Replacing, scale.touched, end, scale.rounds, true);
                beside_syncs.push((end, syncing::beside_syncs(task)?));
            }
        }
        let mut recovery = vec![(Way::Replacing, self.recovery(Way::Replacing)?)];
        if scale.has_any(shape) {
            let first = self.run(Way::Any, scale.touched, End::RollBack, 1, false)?;
            guards.push(of_first(Way::Any, vec![first]));
            self.guards(&[Way::Any], &mut guards)?;
            recovery.push((Way::Any, self.recovery(Way::Any)?));
        }
        Ok(Tree { shape, copies, naive, bare, guards, beside_syncs, recovery })
    }

    /// How many files are touched here: for one tree all that the curve asks for.
    fn touches(&self) -> Vec<usize> {
        if self.shape == self.scale.middle { self.scale.touches.clone() } else { vec![self.scale.touched] }
    }

    fn naive(&self) -> Result<Vec<(usize, Vec<Naive>)>> {
        let mut found = Vec::new();
        for touched in self.touches() {
            let round = |round| naive::round(self.root, &self.aside.join("shadow"), self.shape, touched, round);
            let rounds: Result<Vec<Naive>> = (1..=self.scale.rounds_by_file(self.shape)).map(round).collect();
            found.push((touched, rounds?));
        }
        tree::sync(self.root)?;
        Ok(found)
    }

    fn guards(&self, ways: &[Way], found: &mut Vec<Guards>) -> Result<()> {
        let scale = self.scale;
        for touched in self.touches() {
            for &way in ways {
                let rounds = match way {
                    Way::Paths | Way::PathsReplacing => scale.rounds_by_touch(touched),
                    Way::Replacing | Way::Any => scale.rounds_by_look(self.shape).min(scale.rounds_by_touch(touched)),
                };
                for end in [End::RollBack, End::Commit] {
                    let ran = self.run(way, touched, end, rounds, true)?;
                    found.push(Guards { way, touched, end, first: false, ran: vec![ran] });
                }
            }
        }
        Ok(())
    }

    fn recovery(&self, way: Way) -> Result<Vec<Recovered>> {
        let task = self.task(way, self.scale.touched, End::Death, 1, false);
        let rounds = self.scale.rounds_by_look(self.shape).min(5);
        (0..rounds).map(|_| recovery::measure(&task)).collect()
    }

    fn task(&self, way: Way, touched: usize, end: End, rounds: usize, warms_up: bool) -> Task {
        Task { root: self.root.to_owned(), shape: self.shape, way, touched, end, rounds, warms_up }
    }

    fn run(&self, way: Way, touched: usize, end: End, rounds: usize, warms_up: bool) -> Result<Ran> {
        let task = self.task(way, touched, end, rounds, warms_up);
        child::answer_of(child::command(&[], &child::Task::Guards(task))?)
    }

    /// So that the next guard makes a baseline.
    fn forget_the_journal(&self) -> Result<()> {
        let state = self.root.join(".journal");
        if state.exists() {
            fs::remove_dir_all(state)?;
            tree::sync(self.root)?;
        }
        Ok(())
    }
}
