//! The trees that are guarded: how many files they have, and what is done to them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};

/// The directory below the root that is guarded.
pub const TREE: &str = "tree";

/// The sizes of the files: as different as those of texts. Of a file whose size is a multiple of 512 the engine looks
/// whether it is a database, which would be all of them if they had one round size.
const SIZES: std::ops::Range<usize> = 2048..4096;

/// How many files lie in how many directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub files: usize,
    pub dirs: usize,
}

/// How somebody else's code changes a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Touch {
    /// By a temporary name, then a rename.
    Replace,
    /// By opening it for writing.
    InPlace,
}

impl Shape {
    /// Makes the tree below a root, durably.
    pub fn make(self, root: &Path) -> Result<()> {
        for dir in 0..self.dirs {
            fs::create_dir_all(root.join(TREE).join(format!("d{dir}")))?;
        }
        for file in 0..self.files {
            File::create(root.join(self.path(file)))?.write_all(&content(file, 0))?;
        }
        sync(root)
    }

    /// Where a file lies in the root.
    pub fn path(self, file: usize) -> PathBuf {
        PathBuf::from(format!("{TREE}/d{}/{file}", file % self.dirs))
    }

    /// The files that are changed in some round: others than in the last one, and in as many directories as possible.
    pub fn touched(self, touched: usize, round: usize) -> impl Iterator<Item = usize> {
        let stride = (self.files / touched) | 1;
        (0..touched).map(move |n| (n * stride + round) % self.files)
    }
}

/// What is in a file as its `version`th content.
fn content(file: usize, version: usize) -> Vec<u8> {
    let mut content = vec![b'x'; SIZES.start + file * 37 % SIZES.len()];
    content[..size_of::<usize>()].copy_from_slice(&version.to_le_bytes());
    content
}

/// Changes one file, as code does that knows of no journal.
pub fn touch(root: &Path, shape: Shape, file: usize, how: Touch, version: usize) -> Result<()> {
    let path = root.join(shape.path(file));
    match how {
        Touch::InPlace => fs::write(path, content(file, version))?,
        Touch::Replace => {
            let temporary = path.with_extension("tmp");
            fs::write(&temporary, content(file, version))?;
            fs::rename(temporary, path)?;
        }
    }
    Ok(())
}

/// Which content a file has, with its length.
pub fn version(root: &Path, shape: Shape, file: usize) -> Result<(Vec<u8>, usize)> {
    let found = fs::read(root.join(shape.path(file)))?;
    Ok((found[..found.len().min(size_of::<usize>())].to_vec(), found.len()))
}

/// Makes everything below a directory durable, so that nobody waits for it while he is measured.
pub fn sync(path: &Path) -> Result<()> {
    run(Command::new("sync").arg("--file-system").arg(path))
}

/// Runs a program that says nothing, and has to succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}
