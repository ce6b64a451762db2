//! What everything that measures shares: where, which files, and the loop that people write by hand.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The bytes of a small file.
pub const SIZE: usize = 4096;
/// How many directories the files are spread over.
pub const DIRECTORIES: usize = 10;
/// The environment variable that names the directory to use as `disk`.
pub const DISK: &str = "JOURNAL_KB_BENCH_DISK";

/// A directory to measure in, under the name it has in the results.
#[derive(Clone, Debug)]
pub struct Place {
    pub name: &'static str,
    pub path: PathBuf,
}

/// A disk, which is `disk` unless the environment names another, and memory.
pub fn places(disk: &str) -> Vec<Place> {
    let disk = std::env::var_os(DISK).map_or_else(|| disk.into(), PathBuf::from);
    let memory = PathBuf::from("/dev/shm");
    let places = [Place { name: "disk", path: disk }, Place { name: "tmpfs", path: memory }];
    places.into_iter().filter(|place| place.path.is_dir()).collect()
}

/// The trees that were measured in.
///
/// On a disk they stay until the end: removing thousands of files leaves the filesystem with work that whoever is measured
/// next would wait for. In memory nothing remains to be done, and the room is needed.
#[derive(Debug, Default)]
pub struct Homes(Vec<TempDir>);

impl Homes {
    /// Makes a new tree with its directories. What those before left to be written is written first.
    pub fn make(&mut self, place: &Place) -> std::io::Result<PathBuf> {
        if place.name == "tmpfs" {
            self.0.retain(|home| !home.path().starts_with(&place.path));
        }
        let home = tempfile::Builder::new().prefix("journal-kb-").tempdir_in(&place.path)?;
        let root = home.path().to_owned();
        self.0.push(home);
        (0..DIRECTORIES).try_for_each(|n| fs::create_dir(root.join(format!("d{n}"))))?;
        Command::new("sync").arg("--file-system").arg(&root).status()?;
        Ok(root)
    }
}

/// Where file number `file` lies in a tree.
pub fn path(file: usize) -> String {
    format!("d{}/{file}", file % DIRECTORIES)
}

/// Contents that differ from one round to the next, so that none can be skipped as unchanged.
pub fn content(round: usize) -> Vec<u8> {
    let mut content = vec![7; SIZE];
    content[..size_of::<usize>()].copy_from_slice(&round.to_le_bytes());
    content
}

/// The bare atomic write: a temporary name, its sync, the rename, the sync of the directory.
pub fn bare(root: &Path, file: usize, content: &[u8]) -> std::io::Result<()> {
    let target = root.join(path(file));
    let directory = target.parent().unwrap_or(root);
    let temporary = directory.join(format!(".{file}.tmp"));
    let mut new = File::create(&temporary)?;
    new.write_all(content)?;
    new.sync_all()?;
    fs::rename(&temporary, &target)?;
    File::open(directory)?.sync_all()
}
