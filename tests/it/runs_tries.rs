//! What counts as a try of an item.

use journal_kb::Verdict;

use crate::runs::{count, running};
use crate::support::Tree;

#[test]
fn what_fails_before_it_is_begun_was_tried_too() {
    let tree = Tree::new();
    let journal = tree.journal();
    for tries in 1..=3 {
        let run = running(journal.run("a", "1"));
        for item in run.pending(["item-0"]) {
            assert_eq!(run.fail(item, "it cannot be read").unwrap() == Verdict::SetAside, tries == 3);
        }
        let _ = run.finish().unwrap();
        let sql = "SELECT tries FROM journal_run_try WHERE error = 'it cannot be read'";
        assert_eq!(count(&tree, sql), tries);
    }
    // Nothing more is counted once it is set aside.
    let run = running(journal.run("a", "1"));
    assert_eq!(run.fail("item-0", "again").unwrap(), Verdict::SetAside);
    let _ = run.finish().unwrap();
    assert_eq!(count(&tree, "SELECT tries FROM journal_run_try WHERE error = 'again'"), 3);
}
