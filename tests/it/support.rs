//! What tests share: a temporary tree, and its full manifest.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use journal_kb::Journal;

/// A temporary tree, removed on drop.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub(crate) fn journal(&self) -> Journal {
        Journal::open(self.root()).unwrap()
    }

    /// Puts a file there by hand.
    pub(crate) fn put(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// What a path is: all that the promise of recovery names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) mtime: Option<(i64, i64)>,
}

/// Everything below a root but the engine's own, with modification times of what is not a directory.
pub(crate) fn manifest(tree: &Tree) -> BTreeMap<PathBuf, Entry> {
    manifest_of(tree.root())
}

/// See [`manifest`].
pub(crate) fn manifest_of(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let walk = walkdir::WalkDir::new(root).into_iter();
    let own = |name: &std::ffi::OsStr| name == ".journal" || name == ".journal-stage";
    walk.filter_entry(|entry| !own(entry.file_name()))
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.path().symlink_metadata().unwrap();
            let bytes = if meta.is_symlink() {
                fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes()
            } else if meta.is_file() {
                fs::read(entry.path()).unwrap()
            } else {
                Vec::new()
            };
            let mtime = (!meta.is_dir()).then(|| (meta.mtime(), meta.mtime_nsec()));
            (entry.path().strip_prefix(root).unwrap().to_owned(), Entry { mode: meta.mode(), bytes, mtime })
        })
        .collect()
}

/// In memory where that has room, and nothing else is asked for: a sync costs next to nothing there, and who is killed loses none.
pub(crate) fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).is_ok_and(|found| found.f_bavail * found.f_frsize > 512 << 20);
    match room && std::env::var_os("TMPDIR").is_none() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

const CHILD: &str = "JOURNAL_KB_TEST_CHILD";

/// This test binary, to run one test as a process of its own that finds its root with [`child_root`].
pub(crate) fn child(test: &str, root: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, root);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command
}

/// Reads what a child says until it has said this. The name of its test, which stands before that, is not its own word.
pub(crate) fn wait_for_word(child: &mut std::process::Child, word: &str) {
    let mut out = child.stdout.take().unwrap();
    let mut said = String::new();
    let heard = |said: &str| match said.split_once(" ... ") {
        Some((_, own)) => own.contains(word),
        None => !said.trim_start().starts_with("running ") && said.contains(word),
    };
    while !heard(&said) {
        let mut buffer = [0; 256];
        let read = std::io::Read::read(&mut out, &mut buffer).unwrap();
        assert!(read > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    child.stdout = Some(out);
}

/// The root a child was given; none in the ordinary run of tests, where its body has nothing to do.
pub(crate) fn child_root() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}
