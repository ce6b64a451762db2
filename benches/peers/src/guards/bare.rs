//! What a guard is compared with that is no guard at all.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use journal_kb_peers::Result;

use super::tree::{self, Shape, TREE, Touch, touch};

/// Nanoseconds to link some files elsewhere, with one sync, and to rename the links back. Somebody replaces the files in
/// between: a rename to another name of the same file would do nothing.
pub fn link_and_rename(root: &Path, aside: &Path, shape: Shape, touched: usize, round: usize) -> Result<f64> {
    let files: Vec<usize> = shape.touched(touched, round).collect();
    let kept = |file: &usize| aside.join(file.to_string());
    let live = |file: &usize| root.join(shape.path(*file));
    let start = Instant::now();
    files.iter().try_for_each(|file| fs::hard_link(live(file), kept(file)))?;
    File::open(aside)?.sync_all()?;
    let linked = start.elapsed();
    files.iter().try_for_each(|&file| touch(root, shape, file, Touch::Replace, round))?;
    let start = Instant::now();
    files.iter().try_for_each(|file| fs::rename(kept(file), live(file)))?;
    Ok((linked + start.elapsed()).as_nanos() as f64)
}

/// Nanoseconds of `cp -al` of the tree.
pub fn copy_links(root: &Path, to: &Path) -> Result<f64> {
    let start = Instant::now();
    tree::run(Command::new("cp").arg("-al").arg(root.join(TREE)).arg(to))?;
    let took = start.elapsed();
    fs::remove_dir_all(to)?;
    tree::sync(root)?;
    Ok(took.as_nanos() as f64)
}
