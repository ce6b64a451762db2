//! Everything that was found of the outbox, between measuring and writing it down.

use std::fs;
use std::path::Path;
use std::time::Instant;

use journal_kb_peers::shared::{DISK, Homes, Place, places};
use journal_kb_peers::{QUICK, Result};
use serde::{Deserialize, Serialize};

use super::commits::{self, Committed, Kind};
use super::draining::{self, Drained, Waited};
use super::healing;
use super::latency::{self, Heard};
use super::peers::{self, Side, Standing};
use super::queue::Queued;
use super::scale::Scale;
use crate::filesystem;
use crate::machine::{Machine, load};

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub scale: Scale,
    pub machine: Machine,
    /// The peers, and what became of them.
    pub peers: Vec<(Side, Standing)>,
    /// How many wanted a processor, on average of a minute, before each part.
    pub load: Vec<f64>,
    pub places: Vec<Found>,
}

/// What was found in one place. Times are in nanoseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    pub place: String,
    pub filesystem: String,
    /// Of each round.
    pub commits: Vec<Vec<Committed>>,
    /// System calls that sync, of each commit.
    pub syncs: Vec<(Kind, Vec<f64>)>,
    pub heard: Vec<Heard>,
    pub drained: Vec<Drained>,
    pub waited: Vec<Waited>,
    pub healed: Vec<f64>,
    pub queued: Vec<(Side, Queued)>,
    /// System calls that sync, of each message that is put in by itself.
    pub queue_syncs: Vec<(Side, f64)>,
}

impl Measured {
    pub fn load(kept: &Path) -> Result<Self> {
        crate::criterion::json(kept)
    }

    fn look(&mut self, place: &Place) -> Result<Found> {
        let scale = self.scale.clone();
        let sides: Vec<_> = self.sides().collect();
        let mut homes = Homes::default();
        let start = Instant::now();
        let mut step = |what: &str| {
            eprintln!("{}, after {} s: {what}", place.name, start.elapsed().as_secs());
            load().map(|load| self.load.push(load))
        };
        step("messages inside commits")?;
        let (commits, syncs) = commits::measure(place, &mut homes, &scale)?;
        step("how soon they are published")?;
        let heard = latency::measure(place, &mut homes, &scale)?;
        step("queues")?;
        let (queued, queue_syncs) = peers::measure(place, &mut homes, &scale, &sides)?;
        step("backlogs")?;
        let drained = draining::measure(place, &mut homes, &scale)?;
        step("sinks that take nothing")?;
        let waited = draining::stuck(place, &mut homes, &scale)?;
        step("sinks that are back")?;
        let healed = healing::measure(place, &mut homes, &scale)?;
        let filesystem = filesystem::describe(&place.path)?;
        step("done")?;
        let place = place.name.to_owned();
        Ok(Found { place, filesystem, commits, syncs, heard, drained, waited, healed, queued, queue_syncs })
    }

    /// The journal, and those of its peers that are here.
    fn sides(&self) -> impl Iterator<Item = Side> {
        let here = |side: &Side| self.peers.iter().all(|(peer, standing)| peer != side || standing.is_ok());
        Side::ALL.into_iter().filter(here)
    }
}

/// Measures, and keeps what was found in a file.
pub fn measure(kept: &Path) -> Result<()> {
    let scale = if std::env::var_os(QUICK).is_some() { Scale::quick() } else { Scale::full() };
    let disk = std::env::var(DISK).map_err(|_| format!("{DISK} does not name the directory to use as disk"))?;
    let others = Side::ALL.into_iter().filter(|side| *side != Side::Journal);
    let peers: Vec<_> = others.map(|side| (side, side.look(scale.crowd))).collect();
    for (side, why) in &peers {
        if let Err(why) = why {
            eprintln!("{} is not measured: {why}", side.name());
        }
    }
    let machine = Machine::look()?;
    let mut measured = Measured { scale, machine, peers, load: Vec::new(), places: Vec::new() };
    for place in places(&disk) {
        let found = measured.look(&place).map_err(|error| format!("{}: {error}", place.name))?;
        measured.places.push(found);
        fs::write(kept, serde_json::to_string_pretty(&measured)?)?;
    }
    Ok(())
}
