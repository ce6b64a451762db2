//! Attempts are counted durably before each try, so that a recovery which kills its process every time does not do so for ever.

use std::process::Command;

use super::{count, guarded_tree, killed};
use crate::recovery::{committed, forget_applied, undo_exchange};
use crate::skip::skip;
use crate::support::{Tree, child, manifest};

#[test]
fn a_recovery_that_kills_its_process_every_time_is_given_up_after_five() {
    let transaction = Tree::new();
    committed(&transaction);
    forget_applied(&transaction);
    undo_exchange(&transaction, 1, "replaced");
    let guard = guarded_tree();
    killed(&guard, false);
    for (tree, table) in [(&transaction, "journal_txn"), (&guard, "journal_guard")] {
        let before = manifest(tree);
        for attempt in 1..=5 {
            let test = child("quarantine::hostile::recovering_child", tree.root());
            let traced = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat2", "-e", "inject=renameat2:signal=KILL"])
                .arg(test.get_program())
                .args(test.get_args())
                .envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))))
                .output();
            let Ok(output) = traced else { return skip("killing a recovery needs strace") };
            assert!(!output.status.success(), "{table}: attempt {attempt} was not killed");
            assert_eq!(count(tree, &format!("SELECT attempts FROM {table}")), attempt, "{table}");
        }
        let journal = tree.journal();
        let waits = journal.quarantine().list().unwrap();
        assert_eq!((waits.len(), waits[0].attempts), (1, 5), "{table}");
        assert_eq!(manifest(tree), before, "{table}: given up, so nothing is touched");
        // The lock is free, and what is beside it can be worked on.
        journal.transact(|txn| txn.write("beside-it", "other work")).unwrap();
    }
}
