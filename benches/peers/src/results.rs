//! Everything that was found, between measuring and writing it down.

use std::fs;
use std::path::Path;

use journal_kb_peers::shared::{DISK, Homes, Place, places};
use journal_kb_peers::{QUICK, Result};
use serde::{Deserialize, Serialize};

use crate::criterion::{self, Medians};
use crate::filesystem;
use crate::machine::Machine;
use crate::memory::{self, Memory};
use crate::quantity::Span;
use crate::recovery;
use crate::scale::Scale;
use crate::series::{self, Series};
use crate::syncs::{self, Syncs};

/// What this program measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub scale: Scale,
    pub machine: Machine,
    pub places: Vec<Found>,
}

/// What it found in one place.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    pub place: String,
    pub filesystem: String,
    pub syncs: Vec<Syncs>,
    /// Of new files, and of overwriting them.
    pub series: [Series; 2],
    pub memory: Memory,
    /// Nanoseconds to open what has much to recover.
    pub recovery: Vec<f64>,
}

/// That, and what Criterion found.
#[derive(Debug)]
pub struct Results {
    pub measured: Measured,
    pub medians: Medians,
}

impl Results {
    pub fn load(measured: &Path, criterion: &Path) -> Result<Self> {
        Ok(Self { measured: criterion::json(measured)?, medians: criterion::medians(criterion)? })
    }

    /// What Criterion found under this name.
    pub fn median(&self, name: &str) -> Result<Span> {
        Ok(*self.medians.get(name).ok_or_else(|| format!("{name}: Criterion has no such result"))?)
    }
}

/// Measures everything that Criterion does not, and keeps it in a file.
pub fn measure(kept: &Path) -> Result<()> {
    let scale = if std::env::var_os(QUICK).is_some() { Scale::QUICK } else { Scale::FULL };
    let disk = std::env::var(DISK).map_err(|_| format!("{DISK} does not name the directory to use as disk"))?;
    let machine = Machine::look()?;
    let mut homes = Homes::default();
    let mut found = Vec::new();
    for place in places(&disk) {
        found.push(look(&place, &mut homes, &scale).map_err(|error| format!("{}: {error}", place.name))?);
    }
    let measured = Measured { scale, machine, places: found };
    Ok(fs::write(kept, serde_json::to_string_pretty(&measured)?)?)
}

fn look(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Found> {
    let step = |what: &str| eprintln!("{}: {what}", place.name);
    step("syncs");
    let syncs = syncs::measure(place, homes, scale)?;
    step("transactions back to back");
    let series = series::measure(place, homes, scale)?;
    step("recovery");
    let recovery = recovery::measure(place, homes, scale)?;
    step("memory");
    let memory = memory::measure(place, scale)?;
    let filesystem = filesystem::describe(&place.path)?;
    Ok(Found { place: place.name.to_owned(), filesystem, syncs, series, memory, recovery })
}
