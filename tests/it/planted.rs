//! The proof is proved: every fault that can be planted in the engine is found by a test that is there for its promise.
//!
//! Each fault of `src/fault.rs` is planted in a process of its own, which runs the one test that has to find it, and has to
//! fail. docs/crash-safety.md has the same table; it is compared.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{figures, skip};

/// Which test finds which fault; of those that cut the power, with which workloads.
const FOUND_BY: &[(&str, &str, &str)] = &[
    ("AcquiredWithoutRecovery", "locks::any_acquisition_recovers_whatever_died", ""),
    ("AppliedBeforeCommit", "testing::a_transaction_of_everything_is_whole_or_absent_after_a_crash_at_every_step", ""),
    (
        "AttemptNotCounted",
        "quarantine::attempts::a_recovery_that_kills_its_process_every_time_is_given_up_after_five",
        "",
    ),
    ("AttemptNotGivenBack", "quarantine::hostile::an_attempt_for_want_of_room_is_given_back", ""),
    ("BaselineNotMarkedChanging", "power::btrfs_survives_power_cuts", "baseline"),
    ("BaselineUnsynced", "power::btrfs_survives_power_cuts", "baseline"),
    ("BlobPlaceUnsynced", "power::btrfs_survives_power_cuts", "blobs"),
    ("BlobRemovedBeforeCommit", "blobs_killed::a_removal_that_is_not_committed_removes_nothing", ""),
    ("BlobRemovedUnchecked", "blobs_review::what_is_sealed_again_while_it_is_being_removed_stays", ""),
    ("BlobUnsynced", "power::ext4_survives_power_cuts", "blobs"),
    ("ChildKeepsLocks", "fork::everything_a_dead_parent_held_is_free_while_its_child_lives", ""),
    ("CommitNotDurable", "power::btrfs_survives_power_cuts", "small"),
    ("CommittedBlobsSwept", "blobs_review::the_directory_of_blobs_may_go_and_what_comes_later_is_not_lost", ""),
    ("DeadWriterNotReadAgain", "blobs_killed::who_finds_the_writer_dead_looks_once_more_whether_it_was_sealed", ""),
    ("DisplacedDropped", "recovery::somebody_elses_version_is_set_aside_when_the_commit_was_not_noted", ""),
    ("DroppedBeforeTold", "delivery::what_is_committed_is_delivered_in_order_and_at_least_once_whoever_is_killed", ""),
    ("FailedFlushForgotten", "runs_unwritable::what_a_flush_could_not_write_goes_with_the_next_one", ""),
    ("FailedLogSyncForgotten", "trouble::a_failed_sync_of_the_log_is_cured_before_the_next_commit", ""),
    ("FailedPartKept", "group::everybody_is_answered_for_what_it_did_itself", ""),
    ("FailedSyncTriedAgain", "recovery::after_a_settle_cut_short_bytes_are_written_into_a_new_inode", ""),
    ("FenceNotChecked", "locks_lost::a_loss_is_seen_inside_commit_at_the_latest", ""),
    ("FlushedAfterRelease", "runs::who_is_asked_to_stop_banks_and_says_so", ""),
    (
        "GuardAttemptNotCounted",
        "quarantine::attempts::a_recovery_that_kills_its_process_every_time_is_given_up_after_five",
        "",
    ),
    ("GuardNotDurable", "power::btrfs_survives_power_cuts", "under a guard"),
    ("GuardRecordedBeforeSync", "power::btrfs_survives_power_cuts", "under a guard"),
    ("GuardedWorkUnsynced", "power::btrfs_survives_power_cuts", "under a guard"),
    ("ItemBesideCommit", "runs::an_item_and_its_effect_are_one", ""),
    ("LiveFilesUnsynced", "power::btrfs_survives_power_cuts", "small"),
    ("LivingSessionsSwept", "opening::many_processes_may_make_one_journal_at_once", ""),
    ("LockFileNotChecked", "locks_lost::work_that_has_finished_or_failed_when_its_lock_is_lost_keeps_its_outcome", ""),
    ("OldVersionsUnsynced", "power::btrfs_survives_power_cuts", "under a guard"),
    ("OldestEffectWins", "recovery::the_newest_commit_on_a_path_decides", ""),
    ("OverlappingPartsShare", "group::what_overlaps_follows_the_order_of_commits", ""),
    ("ParkedNotNoted", "outbox_review::that_a_message_is_parked_is_on_record_before_the_next_one_of_its_key_goes", ""),
    ("PutBackUnsynced", "power::btrfs_survives_power_cuts", "under a guard"),
    ("RefusedOvertaken", "delivery::what_is_committed_is_delivered_in_order_and_at_least_once_whoever_is_killed", ""),
    ("RetiredNotSuperseded", "outbox::what_is_retired_is_not_resurrected", ""),
    ("SettledBeforeSync", "power::btrfs_survives_power_cuts", "in a row"),
    ("SettledNotDurable", "power::btrfs_survives_power_cuts", "edited by hand"),
    ("StagedContentUnsynced", "power::ext4_survives_power_cuts", "some large"),
    ("StaleBaselineTrusted", "guard_tree::edits_by_hand_in_between_are_taken_over", ""),
    ("StaleMarkTrusted", "power::btrfs_survives_power_cuts", "small"),
    ("StoredPathsBelieved", "recovery::a_row_that_cannot_be_read_stops_nothing_else", ""),
    ("TimesBelieved", "guard_power::bytes_that_survived_a_power_cut_without_their_times_are_put_back", ""),
    ("ToldBeforeFiles", "outbox_review::nobody_is_told_before_the_files_are_in_place", ""),
    ("ToldBeforeSync", "power::btrfs_survives_power_cuts", "messages"),
    (
        "ToldNotNoted",
        "outbox_review::what_was_published_is_not_published_again_because_that_could_not_be_written_down",
        "",
    ),
    ("TopicNotLocked", "delivery::nobody_publishes_beside_a_drainer_that_is_stopped", ""),
    (
        "TryNotCounted",
        "runs_killed::an_item_that_kills_its_process_is_set_aside_after_three_tries_and_nothing_else_is_tried_twice",
        "",
    ),
    ("VersionsOfWaiting", "outbox::what_is_committed_is_told_and_nothing_else", ""),
];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A power cut is a random sample, and one of them may miss what another finds: so many are taken before a fault counts as missed.
const SAMPLES: u64 = 5;

/// What came of a test in a process that has a fault planted in it.
enum Tried {
    Found,
    /// It passed, or failed for another reason. What it said.
    Missed(String),
    Skipped,
}

/// Runs the test that is to find a fault, with a sample of its own where it takes one.
fn plant(fault: &str, test: &str, workloads: &str, sample: u64) -> Tried {
    // What it does where it should not is done in there.
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--test-threads=1", "--nocapture"])
        .env("TMPDIR", home.path())
        .env("JOURNAL_KB_PLANTED", fault)
        .env("JOURNAL_KB_POWER_WORKLOADS", workloads)
        .env("JOURNAL_KB_POWER_SEED", sample.to_string())
        .env_remove("JOURNAL_KB_POWER_POINTS")
        .env_remove("JOURNAL_KB_FIGURES")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    // Failed by an assertion, and not for want of a tool.
    if said.contains("1 failed") && said.contains("panicked") && !said.contains("nothing may be skipped") {
        Tried::Found
    } else if output.status.success() && said.contains(skip::MARK) {
        Tried::Skipped
    } else {
        Tried::Missed(said)
    }
}

#[test]
fn every_planted_fault_is_found() {
    let missed = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((fault, test, workloads)) = FOUND_BY.get(next.fetch_add(1, Ordering::Relaxed)) {
            let samples = if test.starts_with("power::") { SAMPLES } else { 1 };
            for sample in 1..=samples {
                match plant(fault, test, workloads, sample) {
                    Tried::Found => figures::add("faults planted in the engine, and found", 1),
                    Tried::Skipped => skip::skip(&format!("{test} cannot run here, so nothing finds {fault}")),
                    Tried::Missed(_) if sample < samples => {
                        println!("{fault} was missed by sample {sample} of {test}");
                        continue;
                    }
                    Tried::Missed(said) => {
                        missed.lock().unwrap().push(format!("{fault}, which {test} is to find:\n{said}"));
                    }
                }
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "{} faults are not found\n{}", missed.len(), missed.join("\n"));
}

#[test]
fn no_fault_is_forgotten_and_the_docs_have_them_all() {
    let source = fs::read_to_string(repository("src/fault.rs")).unwrap();
    let variants = source.split("enum Fault {").nth(1).unwrap().split("\n}").next().unwrap();
    let variants: BTreeSet<&str> = variants
        .lines()
        .map(str::trim)
        .filter_map(|line| line.strip_suffix(','))
        .filter(|v| !v.starts_with('/'))
        .collect();
    let table: BTreeSet<&str> = FOUND_BY.iter().map(|(fault, ..)| *fault).collect();
    assert_eq!(variants, table);
    assert!(table.len() >= 12 && FOUND_BY.len() == table.len());
    let docs = fs::read_to_string(repository("docs/crash-safety.md")).unwrap();
    let row = |(fault, test, workloads): &(&str, &str, &str)| match *workloads {
        "" => format!("| `{fault}` | `{test}` |"),
        workloads => format!("| `{fault}` | `{test}`, workloads \"{workloads}\" |"),
    };
    let missing: Vec<_> = FOUND_BY.iter().map(row).filter(|row| !docs.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "docs/crash-safety.md lacks\n{}", missing.join("\n"));
}
