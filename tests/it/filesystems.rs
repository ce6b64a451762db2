//! The promises on other filesystems than the one the tests happen to run on: ext4, xfs and btrfs in an image each; and where
//! the kernel refuses to exchange two names, or to make a second link.
//!
//! Most of it is this very binary run again, with its temporary directory on such a filesystem, or under a filter of system
//! calls. So `TMPDIR=/a/mount cargo test --test it` does the same for all tests. What only one filesystem has stands in
//! files of its own.

pub(crate) mod image;
mod inside;
mod refused;
mod ways;

use std::path::Path;
use std::process::Command;

use self::image::{Image, Kind};
use self::refused::Refused;

const SEQUENCES: &str = "JOURNAL_KB_GUARD_SEQUENCES";
const POINTS: &str = "JOURNAL_KB_CRASH_POINTS";
/// Each filesystem has this part of the random sequences of the one that the tests run on.
const PART: usize = 20;

/// Guards of every kind and their random model, staged transactions and theirs, and what a crash leaves of both.
const PROMISES: [&str; 9] = [
    "guard::",
    "guard_corners::",
    "guard_database::",
    "guard_model::",
    "guard_review::",
    "guard_tree::",
    "model::",
    "recovery::",
    "transaction::",
];
const MODELS: [&str; 3] = ["guard_model::", "guard_tree::", "model::"];

/// Runs tests of this binary again. A skip is a failure in CI there, too.
fn again(what: &str, tests: &[&str], home: Option<&Path>, refused: Option<Refused>, skipped: &[&str]) {
    let whole: usize = std::env::var(SEQUENCES).map_or(400, |number| number.parse().unwrap());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(tests).args(skipped.iter().flat_map(|test| ["--skip", test]));
    // The model of the protocol has a disk of its own.
    command.args(["--skip", "filesystems::", "--skip", "power_model::", "--test-threads=2"]);
    command.env(SEQUENCES, (whole / PART).max(20).to_string()).env(POINTS, "6");
    if let Some(home) = home {
        command.env("TMPDIR", home);
    }
    if let Some(refused) = refused {
        refused.by(&mut command);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{what}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(tests.iter().all(|test| said.contains(test)), "{what}: some tests are not there any more: {said}");
    println!("{what}: {}", said.lines().rfind(|line| line.starts_with("test result")).unwrap_or_default());
}

fn on(kind: Kind, tests: &[&str], refused: Option<Refused>) {
    let Some(image) = Image::mount(kind) else { return };
    again(&format!("{kind:?}, {refused:?}"), tests, Some(image.root()), refused, refused.map_or(&[], Refused::unlike));
}

#[test]
fn ext4_keeps_the_promises() {
    on(Kind::Ext4, &MODELS, None);
}

#[test]
fn xfs_keeps_the_promises() {
    on(Kind::Xfs, &PROMISES, None);
}

#[test]
fn btrfs_keeps_the_promises() {
    on(Kind::Btrfs, &PROMISES, None);
}

#[test]
fn no_exchange_breaks_no_promise() {
    // With `crash_points::` as a whole it takes minutes.
    let kills = ["of_contents_killed_at_every_call", "registry::guarded_paths_killed", "registry::a_recovery_killed"];
    let tests = [&PROMISES[..], &kills, &["blobs::"]].concat();
    again("no exchange", &tests, None, Some(Refused::Exchange), Refused::Exchange.unlike());
    on(Kind::Xfs, &MODELS, Some(Refused::Exchange));
    on(Kind::Btrfs, &MODELS, Some(Refused::Exchange));
}

/// As on filesystems that know neither, FAT among them.
#[test]
fn neither_exchange_nor_links_break_a_promise() {
    let tests =
        [&MODELS[..], &["guard::", "recovery::", "transaction::", "crash_points::a_transaction_of_contents"]].concat();
    again("no exchange, no links", &tests, None, Some(Refused::Links), Refused::Links.unlike());
}
