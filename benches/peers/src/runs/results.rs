//! Everything that was found of runs, between measuring and writing it down.

use std::fs;
use std::path::Path;
use std::time::Instant;

use journal_kb_peers::shared::{DISK, Homes, Place, places};
use journal_kb_peers::{QUICK, Result};
use serde::{Deserialize, Serialize};

use super::commits::{self, Committed};
use super::dbos::{self, Mode};
use super::scale::Scale;
use super::starting::{self, Starts};
use super::work::{self, Recorded, Resumed};
use crate::filesystem;
use crate::machine::Machine;

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub scale: Scale,
    pub machine: Machine,
    /// The version of dbos, or why it could not be had here.
    pub dbos: std::result::Result<String, String>,
    pub places: Vec<Found>,
}

/// What was found in one place. Times are in nanoseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    pub place: String,
    pub filesystem: String,
    pub recorded: Vec<Recorded>,
    pub resumed: Vec<Resumed>,
    /// Of each round.
    pub commits: Vec<Vec<Committed>>,
    /// The same under a tracer, which counts their syncs.
    pub counted: Vec<Committed>,
    /// Those of the journal, of each round.
    pub steps: Vec<Vec<f64>>,
    pub peer_steps: Vec<(Mode, Vec<f64>)>,
    pub starts: Starts,
}

impl Measured {
    pub fn load(kept: &Path) -> Result<Self> {
        crate::criterion::json(kept)
    }

    fn look(&self, place: &Place) -> Result<Found> {
        let scale = &self.scale;
        let mut homes = Homes::default();
        let start = Instant::now();
        let step = |what: &str| eprintln!("{}, after {} s: {what}", place.name, start.elapsed().as_secs());
        step("starting");
        let starts = starting::measure(place, &mut homes, scale)?;
        step("items inside commits");
        let (commits, counted) = commits::measure(place, &mut homes, scale)?;
        step("durable steps");
        let (mut steps, mut peer_steps) = (Vec::new(), Vec::new());
        for _ in 0..scale.rounds {
            steps.push(commits::steps(place, &mut homes, scale)?);
            for mode in Mode::ALL.into_iter().filter(|_| self.dbos.is_ok()) {
                peer_steps.push((mode, dbos::steps(place, &mut homes, scale, mode)?));
            }
        }
        step("many items");
        let (recorded, resumed) = work::measure(place, &mut homes, scale)?;
        let filesystem = filesystem::describe(&place.path)?;
        step("done");
        let place = place.name.to_owned();
        Ok(Found { place, filesystem, recorded, resumed, commits, counted, steps, peer_steps, starts })
    }
}

/// Measures, and keeps what was found in a file.
pub fn measure(kept: &Path) -> Result<()> {
    let scale = if std::env::var_os(QUICK).is_some() { Scale::quick() } else { Scale::full() };
    let disk = std::env::var(DISK).map_err(|_| format!("{DISK} does not name the directory to use as disk"))?;
    let dbos = dbos::look();
    if let Err(why) = &dbos {
        eprintln!("dbos is not measured: {why}");
    }
    let mut measured = Measured { scale, machine: Machine::look()?, dbos, places: Vec::new() };
    for place in places(&disk) {
        let found = measured.look(&place).map_err(|error| format!("{}: {error}", place.name))?;
        measured.places.push(found);
        fs::write(kept, serde_json::to_string_pretty(&measured)?)?;
    }
    Ok(())
}
