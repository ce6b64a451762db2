//! Device syncs, of all threads.

use super::system_calls::{Call, watched};
use super::{Bound, Counts, NO_ROOM, looked_at};

#[test]
fn a_transaction_of_small_files_is_one_sync_its_lock_included() {
    let Some(transactions) =
        watched(&["--seccomp-bpf", "-e", "trace=getppid,fsync,fdatasync,syncfs,sync_file_range,sync,msync"])
    else {
        return;
    };
    let mut counts = Counts::default();
    for (kind, calls) in looked_at().zip(&transactions) {
        counts.note("syncs", kind, syncs(calls));
    }
    counts.check("device syncs, of all threads", &[Bound::new("syncs", 1.0, 0.0, 0.0, 0.0, 0.0)], NO_ROOM);
    // Not the least of them: every one.
    let syncs: Vec<usize> = transactions.iter().map(|calls| syncs(calls)).collect();
    assert_eq!(syncs, vec![1; looked_at().count()], "syncs of each transaction");
}

/// How many of the calls sync. Those that strace has no name for, it shows whatever it was asked for.
fn syncs(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.has_a_name()).count()
}
