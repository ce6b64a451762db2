//! Everything that was found of locks, between measuring and writing it down.

use std::fs;
use std::path::Path;
use std::time::Instant;

use journal_kb_peers::shared::{DISK, Homes, Place, places};
use journal_kb_peers::{QUICK, Result};
use serde::{Deserialize, Serialize};

use super::commits::{self, Crowd};
use super::flight::{self, Skips};
use super::holding;
use super::scale::Scale;
use super::side::{Side, Standing};
use crate::filesystem;
use crate::machine::Machine;

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub scale: Scale,
    pub machine: Machine,
    /// The peers, and what became of them.
    pub peers: Vec<(Side, Standing)>,
    pub places: Vec<Found>,
}

/// What was found in one place. Times are in nanoseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    pub place: String,
    pub filesystem: String,
    /// The median of each round.
    pub cycles: Vec<(Side, Vec<f64>)>,
    /// Those of the journal in which the fence is asked for.
    pub fenced: Vec<f64>,
    pub handoffs: Vec<(Side, Vec<f64>)>,
    pub deaths: Vec<(Side, Vec<f64>)>,
    pub skips: Skips,
    pub processes: Vec<Crowd>,
    pub threads: Vec<Crowd>,
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
    let nowhere = tempfile::tempdir()?;
    let peers = [Side::ProperLockfile, Side::Filelock].map(|side| (side, side.look(nowhere.path(), &scale)));
    for (side, why) in &peers {
        if let Err(why) = why {
            eprintln!("{} is not measured: {why}", side.name());
        }
    }
    let mut measured = Measured { scale, machine: Machine::look()?, peers: peers.into(), places: Vec::new() };
    for place in places(&disk) {
        let found = measured.look(&place).map_err(|error| format!("{}: {error}", place.name))?;
        measured.places.push(found);
        fs::write(kept, serde_json::to_string_pretty(&measured)?)?;
    }
    Ok(())
}

impl Measured {
    /// The journal, and those of its peers that are here.
    fn sides(&self) -> impl Iterator<Item = Side> {
        let here = |side: &Side| self.peers.iter().all(|(peer, standing)| peer != side || standing.is_ok());
        Side::ALL.into_iter().filter(here)
    }

    fn look(&self, place: &Place) -> Result<Found> {
        let scale = &self.scale;
        let mut homes = Homes::default();
        let start = Instant::now();
        let step = |what: &str| eprintln!("{}, after {} s: {what}", place.name, start.elapsed().as_secs());
        step("small transactions of many processes");
        let processes = commits::processes(place, &mut homes, scale)?;
        step("small transactions of many threads");
        let threads = commits::threads(place, &mut homes, scale)?;
        let home = homes.make(place)?;
        step("locks that nobody else wants");
        let mut talks = vec![("fenced", Side::Journal.start(&home, scale)?)];
        for side in self.sides() {
            talks.push(("cycle", side.start(&home, scale)?));
        }
        let mut cycles = holding::cycles(&mut talks, scale)?;
        talks.into_iter().try_for_each(|(_, talk)| talk.end())?;
        let fenced = cycles.remove(0);
        let cycles = self.sides().zip(cycles).collect();
        step("flights that are skipped");
        let skips = flight::measure(&home, scale)?;
        step("locks that are handed over");
        let (mut handoffs, mut deaths) = (Vec::new(), Vec::new());
        for side in self.sides() {
            handoffs.push((side, holding::handoffs(side, &home, scale)?));
        }
        step("locks of the dead");
        for side in self.sides() {
            match side {
                Side::Journal | Side::Filelock => deaths.push((side, holding::deaths(side, &home, scale)?)),
                Side::ProperLockfile if scale.waits_for_stale(place.name) => {
                    deaths.push((side, holding::stale_deaths(side, &home, scale)?));
                }
                Side::ProperLockfile => {}
            }
        }
        let filesystem = filesystem::describe(&place.path)?;
        step("done");
        Ok(Found {
            place: place.name.to_owned(),
            filesystem,
            cycles,
            fenced,
            handoffs,
            deaths,
            skips,
            processes,
            threads,
        })
    }
}
