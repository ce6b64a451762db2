//! Everything that was found of blobs, between measuring and writing it down.

use std::fs;
use std::path::Path;
use std::time::Instant;

use journal_kb_peers::shared::{DISK, Homes, Place, places};
use journal_kb_peers::{QUICK, Result};
use serde::{Deserialize, Serialize};

use super::many::{self, Many};
use super::scale::Scale;
use super::small::{self, Written};
use super::streaming::{self, Streamed};
use super::waking::{self, Wakes};
use crate::filesystem;
use crate::machine::{Machine, load};

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub scale: Scale,
    pub machine: Machine,
    /// How many wanted a processor, on average of a minute, before each part.
    pub load: Vec<f64>,
    pub places: Vec<Found>,
}

/// What was found in one place. Times are in nanoseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    pub place: String,
    pub filesystem: String,
    pub streamed: Streamed,
    pub written: Vec<Written>,
    pub wakes: Vec<Wakes>,
    pub many: Many,
}

impl Measured {
    pub fn load(kept: &Path) -> Result<Self> {
        crate::criterion::json(kept)
    }

    fn look(&mut self, place: &Place) -> Result<Found> {
        let scale = self.scale.clone();
        let mut homes = Homes::default();
        let start = Instant::now();
        let mut step = |what: &str| {
            eprintln!("{}, after {} s: {what}", place.name, start.elapsed().as_secs());
            load().map(|load| self.load.push(load))
        };
        step("one large blob")?;
        let streamed = streaming::measure(place, &scale)?;
        step("many blobs, beside cacache")?;
        let written = small::measure(place, &mut homes, &scale)?;
        step("how soon somebody hears of one")?;
        let wakes = waking::measure(place, &mut homes, &scale)?;
        step("a great many")?;
        let many = many::measure(place, &mut homes, &scale)?;
        let filesystem = filesystem::describe(&place.path)?;
        step("done")?;
        Ok(Found { place: place.name.to_owned(), filesystem, streamed, written, wakes, many })
    }
}

/// Measures, and keeps what was found in a file.
pub fn measure(kept: &Path) -> Result<()> {
    let scale = if std::env::var_os(QUICK).is_some() { Scale::quick() } else { Scale::full() };
    let disk = std::env::var(DISK).map_err(|_| format!("{DISK} does not name the directory to use as disk"))?;
    let mut measured = Measured { scale, machine: Machine::look()?, load: Vec::new(), places: Vec::new() };
    for place in places(&disk) {
        let found = measured.look(&place).map_err(|error| format!("{}: {error}", place.name))?;
        measured.places.push(found);
        fs::write(kept, serde_json::to_string_pretty(&measured)?)?;
    }
    Ok(())
}
