//! The promise of a guard: whatever anybody does to the guarded paths is put back unless the transaction commits: bytes,
//! mode, owner, times, xattrs, links, and what was not there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal_kb::inspect::Inspector;
use journal_kb::{Begin, ChangeKind, Error, Guard, Journal};

use crate::support::{Tree, child, child_root, wait_for_word};

/// All that the promise names, of one path. Times of directories included.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    pub(crate) bytes: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// All names that the same file has in the tree.
    pub(crate) names: Vec<PathBuf>,
}

impl Entry {
    pub(crate) fn mtime(&self) -> (i64, i64) {
        self.mtime
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(16)]);
        let Self { mode, owner, mtime, xattrs, bytes, names } = self;
        write!(f, "{mode:o} {owner:?} {mtime:?} {} bytes {start:?} {xattrs:?} {names:?}", bytes.len())
    }
}

pub(crate) fn full(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let walk = walkdir::WalkDir::new(root).sort_by_file_name().into_iter();
    let mut inodes: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    let mut found: BTreeMap<PathBuf, Entry> = walk
        .filter_entry(|entry| entry.file_name() != ".journal" && entry.file_name() != ".journal-stage")
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.path().symlink_metadata().unwrap();
            let bytes = match () {
                () if meta.is_symlink() => fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes(),
                () if meta.is_file() => fs::read(entry.path()).unwrap(),
                () => Vec::new(),
            };
            let found = Entry {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                mtime: (meta.mtime(), meta.mtime_nsec()),
                bytes,
                xattrs: xattrs(entry.path()),
                names: Vec::new(),
            };
            let path = entry.path().strip_prefix(root).unwrap().to_owned();
            if meta.is_file() && meta.nlink() > 1 {
                inodes.entry((meta.dev(), meta.ino())).or_default().push(path.clone());
            }
            (path, found)
        })
        .collect();
    for names in inodes.values() {
        for name in names.iter().filter(|_| names.len() > 1) {
            found.get_mut(name).unwrap().names = names.clone();
        }
    }
    found
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else { return Vec::new() };
    let names = names[..length].split(|&byte| byte == 0).filter(|name| name.starts_with(b"user."));
    let mut found: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 4096];
            let name = String::from_utf8(name.to_vec()).unwrap();
            let length = rustix::fs::lgetxattr(path, &name, &mut value).unwrap();
            (name.into_bytes(), value[..length].to_vec())
        })
        .collect();
    found.sort();
    found
}

/// A tree with one of everything, and the journal beside it.
fn tree() -> (Tree, Journal) {
    let tree = Tree::new();
    for (path, content) in [("a", "one"), ("b", ""), ("d/x", "two"), ("d/y", "three"), ("d/e/z", "four")] {
        tree.put(path, content);
    }
    symlink("a", tree.path("link")).unwrap();
    fs::create_dir(tree.path("empty")).unwrap();
    fs::set_permissions(tree.path("d/y"), fs::Permissions::from_mode(0o640)).unwrap();
    let long = std::iter::repeat_n("x", 250).collect::<String>();
    tree.put(&long, "long");
    let mut sparse = fs::File::create(tree.path("sparse")).unwrap();
    sparse.seek(std::io::SeekFrom::Start(1 << 20)).unwrap();
    sparse.write_all(b"end").unwrap();
    drop(sparse);
    let journal = tree.journal();
    (tree, journal)
}

const ALL: [&str; 13] =
    ["a", "b", "d", "d/x", "d/y", "d/e", "d/e/z", "link", "empty", "sparse", "new", "n/e/w", "d/new"];

#[test]
fn whatever_was_done_is_put_back() {
    for replacing in [false, true] {
        let (tree, journal) = tree();
        let has_xattrs = rustix::fs::setxattr(tree.path("a"), "user.k", b"v", rustix::fs::XattrFlags::empty()).is_ok();
        let before = full(tree.root());
        let mut txn = journal.begin("anything").unwrap();
        let guard = Guard::paths(ALL);
        txn.guard_with(if replacing { guard.replacing() } else { guard }).unwrap();
        let at = |path: &str| tree.path(path);
        // Replaced, created, removed, swapped for another kind, nested, linked, dressed otherwise.
        fs::write(at("d/x.tmp"), "other").unwrap();
        fs::rename(at("d/x.tmp"), at("d/x")).unwrap();
        fs::write(at("new"), "new").unwrap();
        fs::create_dir_all(at("n/e/w/deep/er")).unwrap();
        fs::write(at("n/e/w/deep/file"), "deep").unwrap();
        fs::remove_dir_all(at("d/e")).unwrap();
        fs::write(at("d/e"), "a file now").unwrap();
        fs::remove_file(at("link")).unwrap();
        symlink("elsewhere", at("link")).unwrap();
        fs::remove_dir(at("empty")).unwrap();
        fs::remove_file(at("b")).unwrap();
        fs::create_dir(at("b")).unwrap();
        fs::set_permissions(at("d/y"), fs::Permissions::from_mode(0o777)).unwrap();
        fs::remove_file(at("sparse")).unwrap();
        if has_xattrs {
            rustix::fs::removexattr(at("a"), "user.k").unwrap();
            rustix::fs::setxattr(at("a"), "user.other", b"w", rustix::fs::XattrFlags::empty()).unwrap();
        }
        if !replacing {
            fs::OpenOptions::new().append(true).open(at("a")).unwrap().write_all(b" and more").unwrap();
        }
        let done = txn.rollback().unwrap();
        assert_eq!(full(tree.root()), before, "replacing: {replacing}");
        assert_eq!(done.damaged, Vec::<PathBuf>::new());
        assert!(done.restored.contains(&PathBuf::from("d/x")) && !done.restored.contains(&PathBuf::from("d/e/no")));
        // The hole is one still.
        assert!(fs::metadata(at("sparse")).unwrap().blocks() * 512 < 1 << 19);
        // What was displaced is kept, and named.
        let shown = Inspector::open(tree.root()).unwrap().transaction(done.id.unwrap()).unwrap().unwrap();
        let kept: Vec<_> =
            shown.paths.iter().map(|change| (change.path.to_str().unwrap(), change.kind.as_str())).collect();
        assert!(kept.contains(&("d/x", "replaced")) && kept.contains(&("new", "created")), "{kept:?}");
        let history: Vec<_> = fs::read_dir(tree.path(".journal/history")).unwrap().collect();
        assert!(
            history
                .iter()
                .any(|entry| { fs::read(entry.as_ref().unwrap().path()).is_ok_and(|bytes| bytes == b"other") })
        );
        assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
    }
}

#[test]
fn a_rollback_is_told_as_what_it_was() {
    let (tree, journal) = tree();
    let mut txn = journal.begin("").unwrap();
    txn.guard_with(Guard::paths(["a", "d", "d/x", "d/y", "new"]).replacing()).unwrap();
    fs::set_permissions(tree.path("a"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(tree.path("d/x")).unwrap();
    fs::write(tree.path("d/y.tmp"), "other").unwrap();
    fs::rename(tree.path("d/y.tmp"), tree.path("d/y")).unwrap();
    fs::write(tree.path("new"), "new").unwrap();
    let id = txn.rollback().unwrap().id.unwrap();
    let shown = Inspector::open(tree.root()).unwrap().transaction(id).unwrap().unwrap();
    let told: Vec<_> = shown.paths.iter().map(|path| (path.path.to_str().unwrap(), path.kind.as_str())).collect();
    assert_eq!(told, [("a", "replaced"), ("d/x", "removed"), ("d/y", "replaced"), ("new", "created")]);
}

#[test]
fn dropping_and_failing_put_back_too() {
    let (tree, journal) = tree();
    let before = full(tree.root());
    let failed = journal.transact(|txn| {
        txn.touch("a")?;
        fs::write(tree.path("a"), "half").unwrap();
        Err::<(), _>(Error::Caller("no".into()))
    });
    assert!(failed.is_err());
    assert_eq!(full(tree.root()), before);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        journal.transact(|txn| {
            txn.touch("d/x")?;
            fs::remove_file(tree.path("d/x")).unwrap();
            if tree.path("a").exists() {
                panic!("as it happens");
            }
            Ok(())
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(full(tree.root()), before);
}

#[test]
fn a_commit_keeps_what_was_done_and_says_what_that_was() {
    let (tree, journal) = tree();
    let mut txn = journal.begin("reindex").unwrap();
    txn.guard_paths(["a", "d/x", "d/y", "new", "b"]).unwrap();
    fs::write(tree.path("a"), "in place").unwrap();
    fs::write(tree.path("new"), "new").unwrap();
    fs::remove_file(tree.path("d/x")).unwrap();
    txn.write("staged", "beside it").unwrap();
    let receipt = txn.commit().unwrap();
    assert_eq!(receipt.warnings(), []);
    let mut changes: Vec<_> =
        receipt.changes().iter().map(|change| (change.path().to_str().unwrap(), change.kind)).collect();
    changes.sort_by_key(|(path, _)| *path);
    let expected = [
        ("a", ChangeKind::Replaced),
        ("d/x", ChangeKind::Removed),
        ("new", ChangeKind::Created),
        ("staged", ChangeKind::Created),
    ];
    assert_eq!(changes, expected);
    let new = receipt.changes().iter().find(|change| change.path() == Path::new("new")).unwrap();
    assert_eq!((new.size, new.hash), (Some(3), Some(*blake3::hash(b"new").as_bytes())));
    assert_eq!(fs::read(tree.path("a")).unwrap(), b"in place");
    assert!(!tree.path("d/x").exists() && tree.path("staged").exists());
    // The old versions are kept, and nothing else is.
    let kept = |dir: &str| {
        let mut found: Vec<_> = fs::read_dir(tree.path(dir))
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        found.sort();
        found
    };
    assert_eq!(kept(".journal/history"), ["one", "two"]);
    journal.close().unwrap();
    assert_eq!(kept(".journal/stage"), Vec::<String>::new());
    // Over: nothing is put back any more.
    fs::write(tree.path("a"), "later").unwrap();
    tree.journal().close().unwrap();
    assert_eq!(fs::read(tree.path("a")).unwrap(), b"later");
}

#[test]
fn what_is_guarded_is_nobody_elses() {
    let (tree, journal) = tree();
    let mut txn = journal.begin_with(Begin::new("long work").lock("one")).unwrap();
    txn.guard_paths(["d/x"]).unwrap();
    let other = |path: &str| {
        let mut other = journal.begin_with(Begin::new("other").lock("two"))?;
        other.write(path, "theirs")?;
        other.commit()
    };
    let busy = other("d/x").unwrap_err();
    assert!(matches!(&busy, Error::PathBusy { .. }), "{busy}");
    assert!(busy.is_retryable() && busy.to_string().contains("long work"), "{busy}");
    other("d/other").unwrap();
    let mut third = journal.begin_with(Begin::new("third").lock("three")).unwrap();
    assert!(matches!(third.guard_paths(["d/x"]), Err(Error::PathBusy { .. })));
    third.remove_dir_all("d").unwrap();
    assert!(matches!(third.commit(), Err(Error::PathBusy { .. })));
    txn.rollback().unwrap();
    other("d/x").unwrap();
    assert_eq!(fs::read(tree.path("d/x")).unwrap(), b"theirs");
}

#[test]
fn writing_in_place_under_a_promise_not_to_is_found_and_left() {
    let (tree, journal) = tree();
    let mut txn = journal.begin("promised").unwrap();
    txn.guard_with(Guard::paths(["a", "d/x"]).replacing()).unwrap();
    fs::OpenOptions::new().append(true).open(tree.path("a")).unwrap().write_all(b" more").unwrap();
    fs::remove_file(tree.path("d/x")).unwrap();
    let done = txn.rollback().unwrap();
    assert_eq!(done.damaged, [PathBuf::from("a")]);
    assert_eq!(fs::read(tree.path("a")).unwrap(), b"one more");
    assert_eq!(fs::read(tree.path("d/x")).unwrap(), b"two");
}

#[test]
fn what_is_not_settled_is_settled_before_it_is_guarded() {
    let tree = Tree::new();
    let never = Duration::from_secs(3600);
    let journal = Journal::options().settle_after(never).open(tree.root()).unwrap();
    journal.transact(|txn| txn.write("a", "committed")).unwrap();
    let mut txn = journal.begin("").unwrap();
    txn.guard_paths(["a"]).unwrap();
    fs::write(tree.path("a"), "changed").unwrap();
    txn.rollback().unwrap();
    assert_eq!(fs::read(tree.path("a")).unwrap(), b"committed");
}

#[test]
fn bad_paths_are_refused_and_nothing_is_guarded() {
    let (tree, journal) = tree();
    let mut txn = journal.begin("").unwrap();
    for bad in ["../a", ".journal/journal.db", "/etc/passwd", ""] {
        assert!(matches!(txn.touch(bad), Err(Error::BadPath { .. })), "{bad}");
    }
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(matches!(txn.guard_paths(["a", "fifo"]), Err(Error::BadPath { .. })));
    assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
    fs::write(tree.path("a"), "not guarded").unwrap();
    txn.rollback().unwrap();
    assert_eq!(fs::read(tree.path("a")).unwrap(), b"not guarded");
}

#[test]
fn a_killed_process_leaves_everything_as_before() {
    for replacing in ["any", "replacing"] {
        let (tree, journal) = tree();
        journal.close().unwrap();
        let before = full(tree.root());
        let mut guarding = child("guard::guarding_child", tree.root())
            .env("REPLACING", replacing)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The child says so when it has done its damage.
        wait_for_word(&mut guarding, "damage done");
        // Alive it is left alone, by those who open the journal and by those who write.
        let journal = tree.journal();
        assert!(!tree.path("d/x").exists());
        let mut other = journal.begin_with(Begin::new("").lock("other")).unwrap();
        other.write("d/x", "theirs").unwrap();
        assert!(matches!(other.commit(), Err(Error::PathBusy { .. })));
        drop(journal);
        guarding.kill().unwrap();
        guarding.wait().unwrap();
        assert!(!tree.path("d/x").exists());
        let journal = tree.journal();
        assert_eq!(full(tree.root()), before, "{replacing}");
        assert_eq!(journal.recover().unwrap().rolled_back, 1);
        journal.close().unwrap();
        assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
    }
}

/// Guards paths, changes them, and waits to be killed.
#[test]
fn guarding_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("to be killed").unwrap();
    let guard = Guard::paths(ALL);
    let replacing = std::env::var_os("REPLACING").is_some_and(|value| value == "replacing");
    txn.guard_with(if replacing { guard.replacing() } else { guard }).unwrap();
    if !replacing {
        fs::write(root.join("a"), "in place").unwrap();
    }
    fs::remove_file(root.join("d/x")).unwrap();
    fs::create_dir_all(root.join("n/e/w")).unwrap();
    fs::write(root.join("new"), "new").unwrap();
    println!("damage done");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn what_was_appended_is_cut_off_and_kept() {
    for size in [0, 10, 200_000] {
        let (tree, journal) = tree();
        fs::write(tree.path("log"), "x".repeat(size)).unwrap();
        let before = full(tree.root());
        let mut txn = journal.begin("").unwrap();
        txn.guard_with(Guard::append(["log", "new.log"])).unwrap();
        for path in ["log", "new.log"] {
            let mut log = fs::OpenOptions::new().append(true).create(true).open(tree.path(path)).unwrap();
            log.write_all(b"appended\n").unwrap();
        }
        let done = txn.rollback().unwrap();
        assert_eq!(full(tree.root()), before);
        assert_eq!(done.damaged, Vec::<PathBuf>::new());
        let kept = fs::read_dir(tree.path(".journal/history")).unwrap();
        let kept: Vec<_> = kept.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
        assert_eq!(kept, ["appended\n", "appended\n"]);
        // Kept, when it commits.
        let mut txn = journal.begin("").unwrap();
        txn.guard_with(Guard::append(["log"])).unwrap();
        append(&tree.path("log"), "more");
        let receipt = txn.commit().unwrap();
        assert_eq!(receipt.changes()[0].size, Some(size as u64 + 4));
        // Only touched, as by an attempt to cut it off that got no further than that.
        let before = full(tree.root());
        let mut txn = journal.begin("").unwrap();
        txn.guard_with(Guard::append(["log"])).unwrap();
        let log = fs::File::options().append(true).open(tree.path("log")).unwrap();
        log.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        txn.rollback().unwrap();
        assert_eq!(full(tree.root()), before);
        // Anything else than appending is found, and left.
        let mut txn = journal.begin("").unwrap();
        txn.guard_with(Guard::append(["log"])).unwrap();
        fs::write(tree.path("log"), "written anew, and no longer what it was").unwrap();
        let done = txn.rollback().unwrap();
        let damaged = size > 0 || !fs::read(tree.path("log")).unwrap().starts_with(b"more");
        assert_eq!(done.damaged.is_empty(), !damaged);
    }
}

fn append(path: &Path, bytes: &str) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes.as_bytes()).unwrap();
}
