//! What is measured in processes of their own.

use std::time::Instant;

use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{many, small, streaming, waking};

/// A part of a measurement that has a process of its own.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    Stream(streaming::Task),
    Small(small::Task),
    Huge(streaming::Huge),
    Fill(many::Fill),
    Open(many::Open),
    Sweep(many::Sweep),
    Both(waking::Both),
    Seal(waking::Seal),
    Wait(waking::Wait),
}

impl Task {
    /// What it found; none where it has said everything line by line.
    pub fn run(&self) -> Result<Option<Value>> {
        Ok(Some(match self {
            Self::Stream(task) => serde_json::to_value(task.run()?)?,
            Self::Small(task) => serde_json::to_value(task.run()?)?,
            Self::Huge(task) => serde_json::to_value(task.run()?)?,
            Self::Fill(task) => serde_json::to_value(task.run()?)?,
            Self::Open(task) => serde_json::to_value(task.run()?)?,
            Self::Sweep(task) => serde_json::to_value(task.run()?)?,
            Self::Both(task) => serde_json::to_value(task.run()?)?,
            Self::Seal(task) => return task.run().map(|()| None),
            Self::Wait(task) => return task.run().map(|()| None),
        }))
    }
}

pub fn nanoseconds(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64
}

/// So many bytes as no other blob has.
pub fn bytes(number: usize, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 8);
    // A generator of Marsaglia's: nothing that a disk could make small, and soon made.
    let mut state = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// The same of many: all but the beginning is alike, so that making it costs nothing beside writing it.
pub fn renew(bytes: &mut [u8], number: usize) {
    bytes[..size_of::<usize>()].copy_from_slice(&number.to_le_bytes());
}
