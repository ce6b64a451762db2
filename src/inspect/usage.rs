//! How much lies in a directory of the engine.

use std::path::Path;

use walkdir::WalkDir;

use super::model::AreaUsage;

/// Counting stops here: a status is not worth minutes.
const MOST: u64 = 200_000;

impl AreaUsage {
    /// Adds what lies below `dir`. What is not there counts nothing; nothing is followed or opened but directories.
    pub(super) fn add(&mut self, dir: &Path) {
        for entry in WalkDir::new(dir).min_depth(1).follow_links(false).follow_root_links(false) {
            if self.entries >= MOST {
                self.at_least = true;
                return;
            }
            match entry {
                Ok(entry) => {
                    self.entries += 1;
                    if entry.file_type().is_file() {
                        self.bytes += entry.metadata().map_or(0, |meta| meta.len());
                    }
                }
                Err(error) if error.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) => {}
                Err(_) => self.at_least = true,
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "makes files to count")]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_is_counted_and_what_is_linked_is_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("in/a/b")).unwrap();
        std::fs::create_dir(dir.path().join("out")).unwrap();
        std::fs::write(dir.path().join("out/far"), [0; 1000]).unwrap();
        std::fs::write(dir.path().join("in/a/x"), [0; 10]).unwrap();
        std::fs::write(dir.path().join("in/y"), [0; 5]).unwrap();
        std::os::unix::fs::symlink("../out", dir.path().join("in/link")).unwrap();
        let mut usage = AreaUsage::default();
        usage.add(&dir.path().join("in"));
        usage.add(&dir.path().join("missing"));
        assert_eq!(usage, AreaUsage { entries: 5, bytes: 15, at_least: false });
    }
}
