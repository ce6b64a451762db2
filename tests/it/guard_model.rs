//! Random sequences of real changes inside each way of guarding, rolled back, dropped or committed, against the tree as it
//! was or as it was left. The journal stays open from one sequence to the next, so every baseline has a past; between two
//! somebody may change the tree by hand. `JOURNAL_KB_GUARD_SEQUENCES` says how many.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use journal_kb::{Guard, Journal};

use crate::guard::full;
use crate::support::Tree;

/// A small universe, so that operations meet.
const NAMES: [&str; 12] = ["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "f", "f/a", "f/b", "g"];
const SEQUENCES: &str = "JOURNAL_KB_GUARD_SEQUENCES";

/// A generator of numbers that needs no seed but one.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// How a sequence is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Paths,
    PathsReplacing,
    Tree,
    TreeReplacing,
}

const WAYS: [Way; 4] = [Way::Paths, Way::PathsReplacing, Way::Tree, Way::TreeReplacing];

/// One change of the tree, if it can be made; said in words for whoever has to find out why something failed.
/// `whole`: also with directories whose content nobody named.
pub(crate) fn change(random: &mut Random, root: &Path, in_place: bool, whole: bool) -> String {
    let (name, other) = (*random.one(&NAMES), *random.one(&NAMES));
    let (path, to) = (root.join(name), root.join(other));
    let bytes = "x".repeat(random.below(3000));
    let exists = path.symlink_metadata();
    let is_file = exists.as_ref().is_ok_and(|meta| meta.is_file());
    let done = match random.below(16) {
        0 | 1 if in_place || exists.is_err() => ("write", fs::write(&path, bytes)),
        0..=3 => {
            let temporary = root.join("temporary");
            let write = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path));
            let _ = fs::remove_file(&temporary);
            ("replace", write)
        }
        4 if in_place && is_file => {
            ("append", fs::OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(b"more")))
        }
        5 if in_place && is_file => {
            ("truncate", fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(1)))
        }
        6 => ("remove", fs::remove_file(&path)),
        7 if whole => ("remove all", fs::remove_dir_all(&path)),
        8 | 9 => ("make", fs::create_dir_all(&path)),
        10 | 11 if whole || !path.is_dir() => ("rename", fs::rename(&path, &to)),
        12 => ("symlink", symlink("/no/where", &path)),
        // Under a promise to replace files, what somebody changed besides their bytes is only known since the promise.
        13 if in_place && exists.as_ref().is_ok_and(|meta| !meta.is_symlink()) => {
            let mode = if is_file { 0o600 } else { 0o700 } + random.below(8) as u32;
            ("mode", fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
        }
        14 if in_place && is_file => {
            let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(random.next() % (1 << 60));
            ("time", fs::File::options().write(true).open(&path).and_then(|file| file.set_modified(time)))
        }
        15 if is_file && !fs::exists(&to).unwrap_or(true) => ("link", fs::hard_link(&path, &to)),
        _ => ("nothing", Ok(())),
    };
    format!("{} {name} {other}: {:?}", done.0, done.1.err().map(|error| error.kind()))
}

fn guard(journal: &Journal, way: Way) -> journal_kb::Transaction {
    let mut txn = journal.begin("").unwrap();
    let names = NAMES.iter().map(|name| PathBuf::from("t").join(name)).chain(["t/temporary".into()]);
    // A path by way of a symlink is refused.
    let by_symlink = |path: &PathBuf| path.ancestors().skip(1).any(|above| journal.root().join(above).is_symlink());
    let names = names.filter(|path| !by_symlink(path));
    txn.guard_with(match way {
        Way::Paths => Guard::paths(names),
        Way::PathsReplacing => Guard::paths(names).replacing(),
        Way::Tree => Guard::tree("t"),
        Way::TreeReplacing => Guard::tree("t").replacing(),
    })
    .unwrap();
    txn
}

fn run(seed: u64, sequences: usize) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let tree = Tree::new();
    let root = tree.path("t");
    fs::create_dir(&root).unwrap();
    let journal = tree.journal();
    for sequence in 0..sequences {
        let way = *random.one(&WAYS);
        let in_place = matches!(way, Way::Paths | Way::Tree);
        let whole = matches!(way, Way::Tree | Way::TreeReplacing);
        let by_hand: Vec<_> = (0..random.below(3)).map(|_| change(&mut random, &root, true, true)).collect();
        let before = full(tree.root());
        let txn = guard(&journal, way);
        let said: Vec<_> = (0..random.below(8)).map(|_| change(&mut random, &root, in_place, whole)).collect();
        let after = full(tree.root());
        let end = random.below(3);
        let what = format!("seed {seed}, sequence {sequence}, {way:?}, {end}, by hand {by_hand:?}, guarded {said:?}");
        let expected = match end {
            0 => {
                let receipt = txn.commit().unwrap_or_else(|error| panic!("{error}: {what}"));
                let mut told: Vec<_> = receipt.changes().iter().map(|change| change.path().to_owned()).collect();
                told.sort();
                let mut changed: Vec<_> = before.keys().chain(after.keys()).cloned().collect();
                changed.sort();
                changed.dedup();
                // The times of a directory are no change of it.
                changed.retain(|path| {
                    let same = |a: &crate::guard::Entry, b: &crate::guard::Entry| {
                        a == b || (a.mode, b.mode) == (b.mode, a.mode) && a.mode & libc::S_IFMT == libc::S_IFDIR
                    };
                    !matches!((before.get(path), after.get(path)), (Some(a), Some(b)) if same(a, b))
                });
                // What was replaced by equal bytes was touched all the same.
                for path in &changed {
                    assert!(told.contains(path), "{} is not told of: {told:?}, {what}", path.display());
                }
                after
            }
            1 => {
                let done = txn.rollback().unwrap_or_else(|error| panic!("{error}: {what}"));
                assert_eq!(done.damaged, Vec::<PathBuf>::new(), "{what}");
                before
            }
            _ => {
                drop(txn);
                before
            }
        };
        let found = full(tree.root());
        for (path, entry) in &expected {
            let found = found.get(path);
            // What several names stand for, others than these names may have changed.
            assert_eq!(found, Some(entry), "{}, {what}", path.display());
        }
        assert_eq!(found.len(), expected.len(), "{:?}, {what}", found.keys());
    }
}

#[test]
fn random_changes_are_put_back_or_kept() {
    let sequences: usize = std::env::var(SEQUENCES).map_or(400, |number| number.parse().unwrap());
    let threads = 2;
    std::thread::scope(|scope| {
        for seed in 0..threads {
            scope.spawn(move || run(seed as u64 + 1, sequences / threads));
        }
    });
}
