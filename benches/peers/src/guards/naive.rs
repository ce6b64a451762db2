//! What people do without a journal: a link to every file of the tree, and afterwards a look at all of them.
//!
//! It is written to be fast. Two names are the same file when the listings of their directories give the same number, so
//! no file is looked at; and nothing is synced, so a crash loses what this protects from: the journal has to beat it all
//! the same, syncs included.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};

use super::tree::{Shape, TREE, Touch, touch};

/// One round, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Naive {
    /// Linking every file into a shadow tree.
    pub begin: f64,
    /// Comparing all of it.
    pub compare: f64,
    /// Putting back what was found.
    pub put_back: f64,
    /// Removing the shadow tree.
    pub remove: f64,
}

impl Naive {
    /// A round that ends in putting everything back, or in leaving it as it is.
    pub fn total(&self, puts_back: bool) -> f64 {
        self.begin + self.compare + if puts_back { self.put_back } else { 0.0 } + self.remove
    }
}

/// What differs: names in the tree that were not there, and files that were.
#[derive(Debug, Default)]
struct Differences {
    new: Vec<PathBuf>,
    other: Vec<(PathBuf, PathBuf)>,
}

/// Does one round by hand.
pub fn round(root: &Path, shadow: &Path, shape: Shape, touched: usize, round: usize) -> Result<Naive> {
    let tree = root.join(TREE);
    let start = Instant::now();
    link_all(&tree, shadow)?;
    let begin = start.elapsed();
    for file in shape.touched(touched, round) {
        touch(root, shape, file, Touch::Replace, round)?;
    }
    let start = Instant::now();
    let mut found = Differences::default();
    compare(&tree, shadow, &mut found)?;
    let compared = start.elapsed();
    let start = Instant::now();
    found.new.iter().try_for_each(fs::remove_file)?;
    for (live, old) in &found.other {
        let temporary = live.with_extension("tmp");
        fs::hard_link(old, &temporary)?;
        fs::rename(&temporary, live)?;
    }
    let put_back = start.elapsed();
    let start = Instant::now();
    fs::remove_dir_all(shadow)?;
    let remove = start.elapsed();
    if found.other.len() != touched || !found.new.is_empty() {
        return Err(format!("of {touched} files that were changed {} were found", found.other.len()).into());
    }
    let [begin, compare, put_back, remove] = [begin, compared, put_back, remove].map(|took| took.as_nanos() as f64);
    Ok(Naive { begin, compare, put_back, remove })
}

fn link_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link_all(&entry.path(), &target)?;
        } else {
            fs::hard_link(entry.path(), target)?;
        }
    }
    Ok(())
}

fn compare(live: &Path, shadow: &Path, found: &mut Differences) -> Result<()> {
    let mut old: HashMap<OsString, u64> = HashMap::new();
    for entry in fs::read_dir(shadow)? {
        let entry = entry?;
        old.insert(entry.file_name(), entry.ino());
    }
    for entry in fs::read_dir(live)? {
        let entry = entry?;
        let name = entry.file_name();
        match old.remove(&name) {
            None => found.new.push(entry.path()),
            Some(_) if entry.file_type()?.is_dir() => compare(&entry.path(), &shadow.join(&name), found)?,
            Some(ino) if ino == entry.ino() => {}
            Some(_) => found.other.push((entry.path(), shadow.join(&name))),
        }
    }
    found.other.extend(old.into_keys().map(|name| (live.join(&name), shadow.join(&name))));
    Ok(())
}
