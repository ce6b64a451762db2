//! Counts that do not depend on the machine: what one transaction asks of the disk.

use std::process::Command;

use journal_kb::Journal;

use crate::skip::skip;
use crate::support::{Tree, child, child_root};

/// How many transactions of each size are looked at.
const ROUNDS: usize = 5;
/// Files in a transaction; the child goes through them in this order, first new files, then overwriting.
const SIZES: [usize; 4] = [0, 1, 10, 100];

#[test]
fn a_transaction_of_small_files_is_one_sync_its_lock_included() {
    let tree = Tree::new();
    let log = tree.path("strace.log");
    let test = child("counts::committing_child", &tree.path("kb"));
    let traced = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-e",
            "trace=getppid,fsync,fdatasync,syncfs,sync_file_range,sync,msync",
            "-o",
        ])
        .arg(&log)
        .arg(test.get_program())
        .args(test.get_args())
        .envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .output();
    let Ok(output) = traced else { return skip("counting syncs needs strace") };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{said}");
        return skip("strace may not trace here");
    }
    let log = std::fs::read_to_string(&log).unwrap();
    let mut between = None;
    let mut counts = Vec::new();
    for call in log.lines().filter(|line| !line.contains("exited") && !line.contains("resumed")) {
        match (call.contains("getppid("), between) {
            (true, None) => between = Some(0),
            (true, Some(count)) => {
                counts.push(count);
                between = None;
            }
            (false, Some(count)) => between = Some(count + 1),
            (false, None) => {}
        }
    }
    assert_eq!(counts, vec![1; SIZES.len() * 2 * ROUNDS], "syncs of each transaction");
}

/// The process whose syncs are counted: a `getppid` before and after each transaction.
#[test]
fn committing_child() {
    let Some(root) = child_root() else { return };
    std::fs::create_dir_all(&root).unwrap();
    let never = std::time::Duration::from_secs(3600);
    let journal = Journal::options().settle_after(never).settle_bytes(u64::MAX).open(&root).unwrap();
    journal.migrate(&["CREATE TABLE n(x)"]).unwrap();
    for files in SIZES {
        for overwrite in [false, true] {
            for round in 0..ROUNDS {
                let round = if overwrite { 0 } else { round };
                let _ = rustix::process::getppid();
                journal
                    .transact(|txn| {
                        for file in 0..files {
                            txn.write(format!("{files}/{}/{round}-{file}", file % 10), vec![round as u8; 4096])?;
                        }
                        txn.sql(|rows| rows.execute("INSERT INTO n VALUES (1)", ()).map(drop))
                    })
                    .unwrap();
                let _ = rustix::process::getppid();
            }
        }
    }
    // Gone without settling, whose syncs are not what is counted.
    std::process::exit(0);
}
