//! `journalctl-kb exec`, beside the command without it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};

use super::rounds::quiet;
use super::tree::{self, Shape, TREE, Touch};
use crate::child;

/// The environment variable that names the command-line tool.
const TOOL: &str = "JOURNAL_KB_BENCH_TOOL";

/// Nanoseconds of each round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    pub files: usize,
    pub touched: usize,
    /// `true`, alone and under `exec`.
    pub nothing: [Vec<f64>; 2],
    /// A program that writes to files in place, alone and under `exec`.
    pub touching: [Vec<f64>; 2],
    /// A transaction that writes as many files.
    pub commit: Vec<f64>,
}

/// Writes to files in place, as a program of somebody else's.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
    shape: Shape,
    touched: usize,
    round: usize,
}

impl Task {
    pub fn run(&self) -> Result<()> {
        let Self { root, shape, touched, round } = self;
        shape.touched(*touched, *round).try_for_each(|file| tree::touch(root, *shape, file, Touch::InPlace, *round))
    }
}

/// Runs commands over a tree that is there, both sides taking turns.
pub fn measure(root: &Path, shape: Shape, touched: usize, rounds: usize) -> Result<Exec> {
    let journal = quiet(root)?;
    journal.close()?;
    let tool = std::env::var_os(TOOL).ok_or_else(|| format!("{TOOL} does not name the command-line tool"))?;
    let under = |command: &Command| {
        let mut under = Command::new(&tool);
        under.arg("exec").arg("--root").arg(root).args(["--guard", TREE, "--"]);
        under.arg(command.get_program()).args(command.get_args());
        under
    };
    let mut round = 1 << 40;
    let mut touching = || {
        round += 1;
        let root = root.to_owned();
        child::command(&[], &child::Task::Touch(Task { root, shape, touched, round }))
    };
    // What was done to the tree before is taken up first, and is nobody's time here.
    time(under(&Command::new("true")))?;
    let (mut nothing, mut touches) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..rounds {
        nothing[0].push(time(Command::new("true"))?);
        nothing[1].push(time(under(&Command::new("true")))?);
    }
    for _ in 0..rounds {
        touches[0].push(time(touching()?)?);
        touches[1].push(time(under(&touching()?))?);
    }
    let commit = commits(root, shape, touched, rounds)?;
    Ok(Exec { files: shape.files, touched, nothing, touching: touches, commit })
}

fn time(mut command: Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    tree::run(&mut command)?;
    Ok(start.elapsed().as_nanos() as f64)
}

fn commits(root: &Path, shape: Shape, touched: usize, rounds: usize) -> Result<Vec<f64>> {
    let journal = quiet(root)?;
    let mut took = Vec::with_capacity(rounds);
    for round in 0..=rounds {
        let start = Instant::now();
        journal.transact(|txn| {
            shape.touched(touched, round).try_for_each(|file| txn.write(shape.path(file), round.to_le_bytes()))
        })?;
        took.push(start.elapsed().as_nanos() as f64);
    }
    // The first one looks at what nobody has looked at before.
    took.remove(0);
    journal.close()?;
    Ok(took)
}
