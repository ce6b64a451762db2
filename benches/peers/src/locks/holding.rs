//! Locks that are taken, handed over, and left by the dead.

use std::path::Path;
use std::time::Duration;

use journal_kb_peers::Result;

use super::scale::Scale;
use super::side::Side;
use super::talk::Talk;
use crate::quantity::Span;

/// Not counted: what is first done costs more, on whatever side.
const WARM_UP: usize = 200;

/// What an acquisition and its release take when nobody else wants the lock: the median of each round. `verb`: of which kind.
pub fn cycles(talks: &mut [(&'static str, Talk)], scale: &Scale) -> Result<Vec<Vec<f64>>> {
    let mut found = vec![Vec::new(); talks.len()];
    for (verb, talk) in &mut *talks {
        talk.ask::<Vec<f64>>(&format!("{verb} cycles {}", WARM_UP.min(scale.cycles)))?;
    }
    for round in 0..scale.rounds {
        for turn in 0..talks.len() {
            let at = (round + turn) % talks.len();
            let (verb, talk) = &mut talks[at];
            let took: Vec<f64> = talk.ask(&format!("{verb} cycles {}", scale.cycles))?;
            found[at].push(Span::median(took).ok_or("nothing was measured")?.value);
        }
    }
    Ok(found)
}

/// From the moment one process begins to release a lock until another one has it, which waits for it.
pub fn handoffs(side: Side, directory: &Path, scale: &Scale) -> Result<Vec<f64>> {
    let times = if side == Side::Journal { scale.handoffs } else { scale.peer_handoffs };
    let (mut holder, mut waiter) = (side.start(directory, scale)?, side.start(directory, scale)?);
    holder.ask::<u64>("take handed-over")?;
    let mut took = Vec::new();
    for round in 0..times {
        waiter.tell("take handed-over")?;
        pause(round);
        let released: u64 = holder.ask("free handed-over")?;
        took.push(waiter.hear::<u64>()?.saturating_sub(released) as f64);
        std::mem::swap(&mut holder, &mut waiter);
    }
    holder.ask::<u64>("free handed-over")?;
    holder.end()?;
    waiter.end()?;
    Ok(took)
}

/// From the SIGKILL of a process that holds a lock, and has a transaction begun where there are such, until another one has it.
pub fn deaths(side: Side, directory: &Path, scale: &Scale) -> Result<Vec<f64>> {
    let (times, verb) = if side == Side::Journal { (scale.deaths, "begin") } else { (scale.peer_deaths, "take") };
    let mut waiter = side.start(directory, scale)?;
    let mut took = Vec::new();
    for round in 0..times {
        let mut holder = side.start(directory, scale)?;
        holder.ask::<u64>(&format!("{verb} left"))?;
        waiter.tell("take left")?;
        pause(round);
        let killed = holder.kill()?;
        took.push(waiter.hear::<u64>()?.saturating_sub(killed) as f64);
        waiter.ask::<u64>("free left")?;
    }
    waiter.end()?;
    Ok(took)
}

/// The same, of locks that only time sets free: all of them at once.
pub fn stale_deaths(side: Side, directory: &Path, scale: &Scale) -> Result<Vec<f64>> {
    let mut waiting = Vec::new();
    for number in 0..scale.stale_deaths {
        let (mut holder, mut waiter) = (side.start(directory, scale)?, side.start(directory, scale)?);
        holder.ask::<u64>(&format!("take stale-{number}"))?;
        waiter.tell(&format!("take stale-{number}"))?;
        waiting.push((holder, waiter));
    }
    pause(0);
    let mut killed = Vec::new();
    for (holder, waiter) in waiting {
        killed.push((holder.kill()?, waiter));
    }
    let mut took = Vec::new();
    for (killed, mut waiter) in killed {
        took.push(waiter.hear::<u64>()?.saturating_sub(killed) as f64);
    }
    Ok(took)
}

/// Until a waiter sleeps and a holder is known, and never in step with anybody's polling.
fn pause(round: usize) {
    std::thread::sleep(Duration::from_millis(25 + (round * 7 % 26) as u64));
}
