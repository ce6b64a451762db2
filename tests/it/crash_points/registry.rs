//! Every workload there is, and what is done to each. A new capability adds its own here.

use std::path::PathBuf;

use super::sweep::{self, Workload};
use super::{blobs, group, guards, locks, messages, plain, runs};

pub(crate) fn workloads() -> Vec<Workload> {
    let all = [
        blobs::registered(),
        group::registered(),
        guards::registered(),
        locks::registered(),
        messages::registered(),
        plain::registered(),
        runs::registered(),
    ];
    all.into_iter().flatten().collect()
}

/// Those whose name begins like this.
fn each(names: &[&str], what: impl Fn(&Workload)) {
    for name in names {
        let found: Vec<_> = workloads().into_iter().filter(|workload| workload.name.starts_with(name)).collect();
        assert!(!found.is_empty(), "{name}");
        found.iter().for_each(&what);
    }
}

/// Not a test: what the others start as a child.
#[test]
fn child() {
    let Ok(name) = std::env::var("JOURNAL_KB_CHILD") else { return };
    let root = PathBuf::from(std::env::var_os("JOURNAL_KB_ROOT").unwrap());
    let workloads = workloads();
    let found = workloads.iter().find(|workload| workload.name == name);
    assert_eq!(found.is_none(), name == "recovery", "{name}");
    sweep::run(found, &root);
}

#[test]
fn guarded_paths_killed_at_every_call_are_as_before_or_as_committed() {
    each(&["paths", "removed"], sweep::killed);
}

#[test]
fn a_guarded_tree_killed_at_every_call_is_as_before_or_as_committed() {
    each(&["first baseline", "baseline with a past"], sweep::killed);
}

#[test]
fn a_tree_guarded_for_replacing_killed_at_every_call_is_as_before_or_as_committed() {
    each(&["replacing"], sweep::killed);
}

#[test]
fn a_layer_that_is_absorbed_killed_at_every_call_is_as_before_or_as_committed() {
    each(&["layer"], sweep::killed);
}

#[test]
fn a_guarded_database_killed_at_every_call_is_as_before_or_as_committed() {
    each(&["database"], sweep::killed);
}

#[test]
fn a_log_that_is_appended_to_killed_at_every_call_is_as_before_or_as_committed() {
    each(&["append"], sweep::killed);
}

#[test]
fn a_group_killed_at_every_call_is_whole_or_absent() {
    each(&["group"], sweep::killed);
}

#[test]
fn a_settle_killed_at_every_call_changes_nothing() {
    each(&["settle"], sweep::killed);
}

#[test]
fn a_flight_killed_at_every_call_has_happened_or_not_and_leaves_no_lock_stuck() {
    each(&["flight"], sweep::killed);
}

#[test]
fn a_flight_meets_an_error_at_every_call_and_leaves_no_lock_stuck() {
    each(&["flight"], fail);
}

#[test]
fn a_run_killed_at_every_call_has_what_it_has_banked_and_can_be_gone_on_with() {
    each(&["run"], sweep::killed);
}

#[test]
fn a_run_meets_an_error_at_every_call_and_can_be_gone_on_with() {
    each(&["run"], fail);
}

#[test]
fn messages_killed_at_every_call_are_delivered_in_order_and_at_least_once() {
    each(&["messages"], sweep::killed);
}

#[test]
fn messages_meet_an_error_at_every_call_and_are_delivered_in_order_and_at_least_once() {
    each(&["messages, drained"], fail);
}

#[test]
fn blobs_killed_at_every_call_are_whole_or_not_there_and_leave_nothing() {
    each(&["blobs"], sweep::killed);
}

#[test]
fn blobs_meet_an_error_at_every_call_and_are_whole_or_not_there_and_leave_nothing() {
    each(&["blobs"], fail);
}

#[test]
fn a_recovery_of_blobs_killed_at_every_call_is_done_by_the_next() {
    each(&["blobs"], sweep::recovery_killed);
}

#[test]
fn a_recovery_killed_at_every_call_is_done_by_the_next() {
    each(
        &[
            "paths, rolled back",
            "baseline with a past, rolled back",
            "replacing, rolled back",
            "layer, rolled back",
            "database, rolled back",
            "append, rolled back",
            "settle",
            "group",
            "run",
            "messages, drained",
        ],
        sweep::recovery_killed,
    );
}

#[test]
fn staged_operations_meet_an_error_at_every_call_and_nothing_is_lost() {
    each(&["staged", "settle"], fail);
}

#[test]
fn guarded_paths_meet_an_error_at_every_call_and_nothing_is_lost() {
    each(&["paths", "append", "database"], fail);
}

#[test]
fn a_guarded_tree_meets_an_error_at_every_call_and_nothing_is_lost() {
    each(&["baseline with a past, rolled back", "baseline with a past, committed", "replacing", "layer"], fail);
}

/// The look at the tree for the commit had been told by a watch what was changed in place, and the rollback looks again.
#[test]
fn what_was_changed_in_place_is_put_back_where_the_commit_could_not_link() {
    each(&["replacing, committed"], |workload| {
        sweep::failed_at(workload, "EIO", |points| {
            let links: Vec<_> = points.into_iter().filter(|point| point.call == "linkat").collect();
            assert!(!links.is_empty());
            links
        });
    });
}

fn fail(workload: &Workload) {
    for error in ["EIO", "ENOSPC"] {
        sweep::failed(workload, error);
    }
}
