//! Random sequences of real changes made by a command over an overlay: what it saw last is what the tree holds when it ends
//! well, and otherwise the tree is as it was. The journal's state stays from one sequence to the next.
//! `JOURNAL_KB_GUARD_SEQUENCES` says how many; a twentieth of that is run here, as each is three processes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guard::{Entry, full};
use crate::guard_model::{Random, change};
use crate::skip::skip;
use crate::support::{Tree, child, child_root};

const SEED: &str = "JOURNAL_KB_TEST_SEED";
pub(crate) const SEEN: &str = "JOURNAL_KB_TEST_SEEN";

fn exec(root: &Path, guard: &str) -> Command {
    let mut exec = Command::new(env!("CARGO_BIN_EXE_journalctl-kb"));
    exec.args(["exec", "--isolate", "overlay", "--guard", guard, "--root"]).arg(root);
    exec
}

/// What a command saw, in words that can be compared.
pub(crate) fn said(seen: &BTreeMap<PathBuf, Entry>) -> String {
    seen.iter().map(|(path, entry)| format!("{} {entry:?}\n", path.display())).collect()
}

/// A command that only writes down what it sees.
#[test]
fn the_manifest() {
    let (Some(root), Some(seen)) = (child_root(), std::env::var_os(SEEN)) else { return };
    fs::write(seen, said(&full(&root))).unwrap();
}

/// The command: changes the tree, and writes down what it sees.
#[test]
fn the_command() {
    let (Some(root), Ok(seed)) = (child_root(), std::env::var(SEED)) else { return };
    let mut random = Random(seed.parse().unwrap());
    for _ in 0..1 + random.below(10) {
        println!("{}", change(&mut random, &root.join("t"), true, true));
    }
    fs::write(std::env::var_os(SEEN).unwrap(), said(&full(&root))).unwrap();
    assert!(random.below(4) > 0, "it ends badly on purpose");
}

#[test]
fn what_a_command_saw_last_is_what_the_tree_holds() {
    let tree = Tree::new();
    let beside = tempfile::tempdir().unwrap();
    let (root, seen) = (tree.path("t"), beside.path().join("seen"));
    fs::create_dir(&root).unwrap();
    tree.journal().close().unwrap();
    if !exec(tree.root(), "t").args(["--", "true"]).output().unwrap().status.success() {
        return skip("this needs overlays");
    }
    let sequences = std::env::var("JOURNAL_KB_GUARD_SEQUENCES").map_or(40, |n| n.parse::<usize>().unwrap() / 20);
    let mut random = Random(0x1234_5678_9abc_def1);
    let (mut kept, mut conflicts) = (0, 0);
    for sequence in 0..sequences {
        let by_hand: Vec<_> = (0..random.below(3)).map(|_| change(&mut random, &root, true, true)).collect();
        let before = full(tree.root());
        let linked = walkdir::WalkDir::new(&root)
            .into_iter()
            .any(|entry| entry.unwrap().path().symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.nlink() > 1));
        let seed = random.below(usize::MAX).to_string();
        let command = child("overlay_model::the_command", tree.root());
        let mut exec = exec(tree.root(), if sequence % 2 == 0 { "t" } else { "." });
        exec.arg("--").arg(command.get_program()).args(command.get_args());
        exec.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env(SEED, &seed)
            .env(SEEN, &seen);
        let ran = exec.output().unwrap();
        let told = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        let what = format!("sequence {sequence}, by hand {by_hand:?}, {told:?}");
        let now = said(&full(tree.root()));
        match ran.status.code() {
            Some(0) => {
                kept += 1;
                assert_eq!(now, fs::read_to_string(&seen).unwrap(), "{what}");
            }
            // Writing to one of several names of a file is refused: the others would keep the old content.
            Some(1) if linked => {
                conflicts += 1;
                assert_eq!(now, said(&before), "{what}");
            }
            Some(101) => assert_eq!(now, said(&before), "{what}"),
            code => panic!("{code:?}: {what}"),
        }
    }
    assert!(kept * 3 > sequences && conflicts * 3 <= sequences, "{kept} kept, {conflicts} conflicts of {sequences}");
}
