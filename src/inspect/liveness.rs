//! Who holds a lock file, found out without touching it.
//!
//! `flock` has no call that only asks: trying to take a lock would make a real contender fail. So this reads what the
//! kernel publishes:
//!
//! 1. `/proc/locks` lists every lock with the inode it is on. An entry with the inode **and** the device of the file
//!    settles it.
//! 2. On btrfs and overlayfs the device there is not the one `stat` gives. An entry that agrees on the inode alone
//!    counts when one of its process's descriptors is this very file, or, where those may not be looked at, when the
//!    database names the same process.
//! 3. On overlayfs even the inode may differ. Then `/proc/<pid>/fdinfo` of the process that the database names decides.
//!
//! Processes of another pid namespace (another container on the same directory) are in none of these lists: their locks
//! look free here.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One `flock` of somebody, as `/proc/locks` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Entry {
    /// Waits for it, and holds nothing.
    waits: bool,
    shared: bool,
    pid: i32,
    major: u32,
    minor: u32,
    inode: u64,
}

/// The locks of the machine at one moment.
#[derive(Debug)]
pub(super) struct KernelLocks {
    proc: PathBuf,
    /// None where the kernel does not tell.
    entries: Option<Vec<Entry>>,
}

impl KernelLocks {
    /// Reads the list once, for any number of questions.
    pub(super) fn read() -> Self {
        Self::read_at(Path::new("/proc"))
    }

    fn read_at(proc: &Path) -> Self {
        let read = || {
            let text = fs::read(proc.join("locks")).ok()?;
            let entries = String::from_utf8_lossy(&text).lines().filter_map(parse).collect::<Vec<Entry>>();
            Some((entries, text.len() < ONE_PIECE))
        };
        // The kernel tells a long list in pieces, and of what comes and goes between two of them it leaves lines out.
        let entries = match read() {
            Some((entries, false)) => Some(together(entries, read().map_or_else(Vec::new, |(again, _)| again))),
            at_once => at_once.map(|(entries, _)| entries),
        };
        Self { proc: proc.to_owned(), entries }
    }

    /// True when somebody has a lock of any kind on a file of this inode number, on whatever device: he may be at work
    /// in it. Also true when the kernel does not tell.
    pub(super) fn maybe_in_use(proc: &Path, file: &Path) -> bool {
        let Ok(meta) = fs::symlink_metadata(file) else { return false };
        let inode = meta.ino().to_string();
        let on_it = |line: &str| line.split_whitespace().any(|field| field.rsplit(':').next() == Some(&inode));
        fs::read(proc.join("locks")).map_or(true, |text| String::from_utf8_lossy(&text).lines().any(on_it))
    }

    /// The processes that hold `file`; empty when it is free or not there, none when the kernel does not tell.
    /// `suspects` are the processes that the database names for it.
    pub(super) fn holders(&self, file: &Path, suspects: &[i64]) -> Option<Vec<i32>> {
        let Ok(meta) = fs::symlink_metadata(file) else {
            return self.entries.as_ref().map(|_| Vec::new());
        };
        let suspects: Vec<i32> =
            suspects.iter().filter_map(|&pid| i32::try_from(pid).ok()).filter(|&p| p > 0).collect();
        let mut pids: Vec<i32> = self.on(&meta, &suspects, false)?.map(|entry| entry.pid).collect();
        if pids.is_empty() {
            pids.extend(suspects.into_iter().filter(|&pid| self.holds_by_descriptor(pid, &meta)));
        }
        pids.sort_unstable();
        pids.dedup();
        Some(pids)
    }

    /// The processes that wait for `file`, with as many of each as there are waits.
    pub(super) fn waiters(&self, file: &Path) -> Vec<i32> {
        let Ok(meta) = fs::symlink_metadata(file) else { return Vec::new() };
        self.on(&meta, &[], true).map_or_else(Vec::new, |waiting| waiting.map(|entry| entry.pid).collect())
    }

    /// True when `file` is held by those who share it; none when nobody is known to hold it.
    pub(super) fn is_shared(&self, file: &Path) -> Option<bool> {
        let meta = fs::symlink_metadata(file).ok()?;
        self.on(&meta, &[], false)?.map(|entry| entry.shared).next()
    }

    fn on(&self, meta: &Metadata, suspects: &[i32], waits: bool) -> Option<impl Iterator<Item = &Entry>> {
        let of_file = move |entry: &&Entry| entry.waits == waits && entry.inode == meta.ino();
        Some(self.entries.as_ref()?.iter().filter(of_file).filter(move |entry| self.is_really(entry, meta, suspects)))
    }

    fn is_really(&self, entry: &Entry, meta: &Metadata, suspects: &[i32]) -> bool {
        if (entry.major, entry.minor) == (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev())) {
            return true;
        }
        match self.descriptors(entry.pid) {
            Some(mut fds) => fds.any(|(_, fd)| fd.dev() == meta.dev() && fd.ino() == meta.ino()),
            None => suspects.contains(&entry.pid),
        }
    }

    fn holds_by_descriptor(&self, pid: i32, meta: &Metadata) -> bool {
        has_lock(&self.proc, pid, (meta.dev(), meta.ino())) == Some(true)
    }

    fn descriptors(&self, pid: i32) -> Option<impl Iterator<Item = (std::ffi::OsString, Metadata)> + use<>> {
        descriptors(&self.proc, pid)
    }
}

/// True when a process has a descriptor of the locked file of this device and inode; none when it may not be looked at.
pub(super) fn has_lock(proc: &Path, pid: i32, place: (u64, u64)) -> Option<bool> {
    let holds = |(name, fd): (std::ffi::OsString, Metadata)| {
        let info = proc.join(pid.to_string()).join("fdinfo").join(name);
        (fd.dev(), fd.ino()) == place
            && fs::read_to_string(info).is_ok_and(|text| {
                let mut locks = text.lines().filter_map(|line| parse(line.strip_prefix("lock:")?));
                locks.any(|lock| !lock.waits)
            })
    };
    descriptors(proc, pid).map(|mut fds| fds.any(holds))
}

/// The open files of a process, with the names of their descriptors; none when they may not be looked at.
fn descriptors(proc: &Path, pid: i32) -> Option<impl Iterator<Item = (std::ffi::OsString, Metadata)> + use<>> {
    let dir = fs::read_dir(proc.join(pid.to_string()).join("fd")).ok()?;
    Some(dir.flatten().filter_map(|entry| Some((entry.file_name(), fs::metadata(entry.path()).ok()?))))
}

/// A list of fewer bytes is told at one moment.
const ONE_PIECE: usize = 4096;

/// What stands in one list or the other, as often as in that which has it more often.
fn together(mut entries: Vec<Entry>, again: Vec<Entry>) -> Vec<Entry> {
    let mut counted = HashMap::new();
    for entry in &entries {
        *counted.entry(*entry).or_insert(0_usize) += 1;
    }
    let is_new = |entry: &Entry| match counted.get_mut(entry) {
        Some(left @ 1..) => {
            *left -= 1;
            false
        }
        _ => true,
    };
    let mut new = again;
    new.retain(is_new);
    entries.append(&mut new);
    entries
}

/// `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`; of a waiter `1: -> FLOCK …`.
fn parse(line: &str) -> Option<Entry> {
    let mut fields = line.split_whitespace().skip(1).peekable();
    let waits = fields.next_if_eq(&"->").is_some();
    if fields.next()? != "FLOCK" {
        return None;
    }
    let shared = fields.nth(1)? == "READ";
    let pid = fields.next()?.parse().ok()?;
    let mut place = fields.next()?.splitn(3, ':');
    let major = u32::from_str_radix(place.next()?, 16).ok()?;
    let minor = u32::from_str_radix(place.next()?, 16).ok()?;
    Some(Entry { waits, shared, pid, major, minor, inode: place.next()?.parse().ok()? })
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "makes files to lock")]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn locks_and_who_waits_for_them_are_read_whatever_else_stands_there() {
        let entry = |pid, major, minor, inode| Some(Entry { waits: false, shared: false, pid, major, minor, inode });
        let and = |entry: Option<Entry>, waits, shared| entry.map(|entry| Entry { waits, shared, ..entry });
        for (line, want) in [
            ("1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF", entry(4711, 0xfe, 0, 1234)),
            (
                "22: FLOCK  ADVISORY  READ 1 00:2b:18446744073709551615 0 EOF",
                and(entry(1, 0, 0x2b, u64::MAX), false, true),
            ),
            ("\t1: FLOCK  ADVISORY  WRITE -1 103:05:7 0 EOF", entry(-1, 0x103, 5, 7)),
            ("1: -> FLOCK  ADVISORY  WRITE 4712 fe:00:1234 0 EOF", and(entry(4712, 0xfe, 0, 1234), true, false)),
            ("1: -> FLOCK  ADVISORY  READ 4712 fe:00:1234 0 EOF", and(entry(4712, 0xfe, 0, 1234), true, true)),
            ("1: -> POSIX  ADVISORY  WRITE 4712 fe:00:1234 0 EOF", None),
            ("1: ->", None),
            ("2: POSIX  ADVISORY  READ 9 fe:00:1234 128 128", None),
            ("2: OFDLCK ADVISORY  READ -1 fe:00:1234 128 128", None),
            ("1: FLOCK  ADVISORY  WRITE", None),
            ("1: FLOCK  ADVISORY  WRITE x fe:00:1 0 EOF", None),
            ("1: FLOCK  ADVISORY  WRITE 1 fe:00 0 EOF", None),
            ("1: FLOCK  ADVISORY  WRITE 1 zz:00:1 0 EOF", None),
            ("", None),
        ] {
            assert_eq!(parse(line), want, "{line}");
        }
    }

    #[test]
    fn a_held_file_has_its_holder_and_a_free_one_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.lock");
        let file = File::create(&path).unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        assert_eq!(KernelLocks::read().holders(&path, &[i64::from(me)]), Some(vec![]));
        fs4::FileExt::lock(&file).unwrap();
        assert_eq!(KernelLocks::read().holders(&path, &[]), Some(vec![me]));
        assert_eq!((KernelLocks::read().is_shared(&path), KernelLocks::read().waiters(&path)), (Some(false), vec![]));
        fs4::FileExt::unlock(&file).unwrap();
        assert_eq!(KernelLocks::read().holders(&path, &[i64::from(me)]), Some(vec![]));
        fs4::FileExt::lock_shared(&file).unwrap();
        assert_eq!(KernelLocks::read().is_shared(&path), Some(true));
        fs4::FileExt::unlock(&file).unwrap();
        assert_eq!(KernelLocks::read().is_shared(&path), None);
        assert_eq!(KernelLocks::read().holders(&dir.path().join("none"), &[1, -1, i64::MAX]), Some(vec![]));
    }

    #[test]
    fn where_the_list_does_not_know_the_file_the_named_process_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.lock");
        let file = File::create(&path).unwrap();
        fs4::FileExt::lock(&file).unwrap();
        let me = i64::from(std::process::id());
        // As on overlayfs: another inode in the list.
        let mut locks = KernelLocks { proc: "/proc".into(), entries: Some(Vec::new()) };
        assert_eq!(locks.holders(&path, &[]), Some(vec![]));
        assert_eq!(locks.holders(&path, &[me]), Some(vec![std::process::id() as i32]));
        // As on btrfs: the inode, but another device.
        let inode = fs::metadata(&path).unwrap().ino();
        let entry = |pid| Entry { waits: false, shared: false, pid, major: 0, minor: 0xffff, inode };
        locks.entries = Some(vec![entry(std::process::id() as i32)]);
        assert_eq!(locks.holders(&path, &[]), Some(vec![std::process::id() as i32]));
        // A neighbour's file with the same inode number on another device is not this one.
        locks.entries = Some(vec![entry(1)]);
        assert_eq!(locks.holders(&path, &[]).unwrap().len(), 0);
    }

    #[test]
    fn a_file_with_a_lock_of_any_kind_may_be_in_use() {
        let proc = tempfile::tempdir().unwrap();
        let file = proc.path().join("shm");
        assert!(!KernelLocks::maybe_in_use(proc.path(), &file), "it is not there");
        fs::write(&file, "").unwrap();
        assert!(KernelLocks::maybe_in_use(proc.path(), &file), "nobody tells");
        let inode = fs::metadata(&file).unwrap().ino();
        for (line, want) in [
            (format!("1: POSIX  ADVISORY  READ 4711 fe:00:{inode} 128 128"), true),
            (format!("1: OFDLCK ADVISORY  READ -1 00:2b:{inode} 128 128"), true),
            (format!("1: POSIX  ADVISORY  READ 4711 fe:00:{inode}0 128 128"), false),
            (String::new(), false),
        ] {
            fs::write(proc.path().join("locks"), &line).unwrap();
            assert_eq!(KernelLocks::maybe_in_use(proc.path(), &file), want, "{line}");
        }
    }

    #[test]
    fn two_looks_at_a_long_list_are_one_list() {
        let entry = |pid| Entry { pid, major: 0, minor: 1, inode: 2, shared: false, waits: false };
        let [a, b, c] = [1, 2, 3].map(entry);
        assert_eq!(together(vec![a, b, b], vec![b, c, a, c]), vec![a, b, b, c, c]);
        assert_eq!(together(vec![], vec![a]), vec![a]);
    }

    #[test]
    fn where_the_kernel_does_not_tell_nothing_is_claimed() {
        assert_eq!(KernelLocks::read_at(Path::new("/nonexistent")).holders(Path::new("/"), &[1]), None);
    }
}
