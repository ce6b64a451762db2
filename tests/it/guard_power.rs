//! The promise after a power cut: bytes that were written in place under a guard and reached the disk are found, and put back,
//! though the times that would tell of them did not reach it.
//!
//! The state is made on an ext4 in a file: while it is unmounted, the blocks that hold the bytes are overwritten in the file.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use journal_kb::{Guard, Journal};

use crate::guard::full;
use crate::guard_review::append;
use crate::skip::skip;
use crate::support::{child, child_root, wait_for_word};

const BLOCK: u64 = 4096;

/// An ext4 that can be unmounted, written to from below, and mounted again. Unmounted on drop.
struct Disk(tempfile::TempDir);

impl Disk {
    fn make() -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        fs::create_dir(disk.root()).unwrap();
        fs::File::create(disk.image()).unwrap().set_len(64 << 20).unwrap();
        let block = BLOCK.to_string();
        let made = done(Command::new("mkfs.ext4").args(["-q", "-F", "-b", &block]).arg(disk.image()));
        if !made || !disk.mount() {
            skip("an ext4 cannot be mounted here");
            return None;
        }
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.0.path().join("image")
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    fn mount(&self) -> bool {
        done(Command::new("mount").args(["-t", "ext4", "-o", "loop,strictatime"]).arg(self.image()).arg(self.root()))
    }

    fn unmount(&self) {
        assert!(done(Command::new("umount").arg(self.root())));
    }

    /// What a power cut may leave: other bytes in the first block of a file, and nothing else.
    fn write_below(&self, path: &str, bytes: &[u8]) {
        let ask = format!("bmap /{path} 0");
        let told = Command::new("debugfs").args(["-R", &ask]).arg(self.image()).output().unwrap();
        let block: u64 = String::from_utf8(told.stdout).unwrap().trim().parse().unwrap();
        let mut image = fs::File::options().read(true).write(true).open(self.image()).unwrap();
        let mut before = vec![0; bytes.len()];
        image.seek(SeekFrom::Start(block * BLOCK)).unwrap();
        image.read_exact(&mut before).unwrap();
        assert_ne!(before, bytes);
        image.seek(SeekFrom::Start(block * BLOCK)).unwrap();
        image.write_all(bytes).unwrap();
        image.sync_all().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.root()).stderr(Stdio::null()).status();
    }
}

fn done(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Everything that is guarded, each larger than a block; and what is not touched.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("wiki/d")).unwrap();
    fs::create_dir_all(root.join("links")).unwrap();
    for name in ["wiki/page", "wiki/d/page", "wiki/d/other", "named", "other", "links/page"] {
        fs::write(root.join(name), name.repeat(1000)).unwrap();
    }
    fs::hard_link(root.join("wiki/page"), root.join("wiki/d/name")).unwrap();
    // What is compared of a log is the end of it, and that it is as long as it was.
    fs::write(root.join("log"), "line\n".repeat(1000)).unwrap();
    for name in ["wiki/database", "database"] {
        let database = rusqlite::Connection::open(root.join(name)).unwrap();
        database.execute_batch("CREATE TABLE page (x); INSERT INTO page VALUES ('one')").unwrap();
    }
}

#[test]
fn bytes_that_survived_a_power_cut_without_their_times_are_put_back() {
    let Some(disk) = Disk::make() else { return };
    let root = disk.root();
    fill(&root);
    Journal::open(&root).unwrap().close().unwrap();
    let before = full(&root);
    let number = |path: &str| fs::metadata(root.join(path)).unwrap().ino();
    let untouched = ["wiki/d/other", "other", "links/page"].map(number);
    let mut guarding = child("guard_power::guarding_child", &root).spawn().unwrap();
    wait_for_word(&mut guarding, "guarded");
    guarding.kill().unwrap();
    guarding.wait().unwrap();
    disk.unmount();
    for path in ["wiki/page", "wiki/d/page", "named", "wiki/database", "database", "log"] {
        disk.write_below(path, format!("by the program, to {path}").as_bytes());
    }
    assert!(disk.mount());
    for (path, entry) in full(&root) {
        assert_eq!(entry.mtime(), before[&path].mtime(), "{} would be noticed anyway", path.display());
    }
    assert!(fs::read(root.join("wiki/d/name")).unwrap().starts_with(b"by the program, to wiki/page"));
    let journal = Journal::open(&root).unwrap();
    let mut found = full(&root);
    // Of a log only the end is kept, so what is left of it is all there is.
    assert!(found.remove(Path::new("log")).unwrap().bytes.starts_with(b"by the program, to log"));
    let mut expected = before;
    expected.remove(Path::new("log"));
    assert_eq!(found, expected);
    assert_eq!(["wiki/d/other", "other", "links/page"].map(number), untouched);
    let history = fs::read_dir(root.join(".journal/history")).unwrap();
    let displaced: Vec<_> = history.map(|entry| fs::read(entry.unwrap().path()).unwrap_or_default()).collect();
    for path in ["wiki/page", "wiki/d/page", "named"] {
        let written = format!("by the program, to {path}");
        assert!(displaced.iter().any(|bytes| bytes.starts_with(written.as_bytes())), "{path}");
    }
    let shown = journal_kb::inspect::Inspector::open(&root).unwrap();
    let said = format!("{:?}", shown.events(0).unwrap());
    assert!(said.contains("damaged") && said.contains("log"), "{said}");
    journal.close().unwrap();
}

/// Guards in every way, changes nothing that the kernel would stamp, and waits to be killed.
#[test]
fn guarding_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("").unwrap();
    txn.guard("wiki").unwrap();
    txn.guard_paths(["named", "other", "database"]).unwrap();
    txn.guard_with(Guard::append(["log"])).unwrap();
    txn.guard_with(Guard::tree("links").replacing()).unwrap();
    println!("guarded");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

/// Where nothing can have been lost, times tell, and nothing is read.
#[test]
fn a_killed_process_does_not_have_its_files_read() {
    let Some(disk) = Disk::make() else { return };
    let root = disk.root();
    fill(&root);
    Journal::open(&root).unwrap().close().unwrap();
    let mut guarding = child("guard_power::guarding_child", &root).spawn().unwrap();
    wait_for_word(&mut guarding, "guarded");
    guarding.kill().unwrap();
    guarding.wait().unwrap();
    append(root.join("wiki/d/page"), "by the program");
    let read = root.join("wiki/d/other");
    let accessed = || fs::metadata(&read).map(|meta| (meta.atime(), meta.atime_nsec(), meta.ino())).unwrap();
    let before = accessed();
    Journal::open(&root).unwrap().close().unwrap();
    assert_eq!(fs::read_to_string(root.join("wiki/d/page")).unwrap(), "wiki/d/page".repeat(1000));
    assert_eq!(accessed(), before);
    fs::read(&read).unwrap();
    assert_ne!(accessed(), before);
}
