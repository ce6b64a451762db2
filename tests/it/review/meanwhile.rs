//! What somebody else did between staging and COMMIT.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use journal_kb::{Begin, Error, Receipt, Result, Transaction};

use super::{saying, states, whole};
use crate::support::Tree;

/// True once a transaction that only puts content has written it to the stage.
fn has_staged(state: &Path) -> bool {
    fs::read_dir(state.join("stage")).unwrap().next().is_some()
}

/// True once a transaction that moves something has been prepared: it takes this lock right after.
fn may_settle(state: &Path) -> bool {
    let lock = fs::File::open(state.join("settle.lock"));
    lock.is_ok_and(|lock| fs4::FileExt::try_lock(&lock).is_err())
}

/// Commits A, which is prepared while B is inside its COMMIT. `ready` says when it has been.
fn overtaken(
    tree: &Tree,
    a: fn(&mut Transaction),
    b: fn(&mut Transaction),
    ready: fn(&Path) -> bool,
) -> Result<Receipt> {
    let journal = tree.journal();
    let state = tree.path(".journal");
    let mut first = journal.begin_with(Begin::new("a").lock("a")).unwrap();
    a(&mut first);
    let outcome = std::thread::scope(|scope| {
        let (inside, entered) = mpsc::channel();
        let journal = journal.clone();
        let other = scope.spawn(move || {
            let mut txn = journal.begin_with(Begin::new("b").lock("b")).unwrap();
            b(&mut txn);
            txn.sql(move |_| {
                inside.send(()).unwrap();
                // What is left to do for A until it waits for its turn takes microseconds.
                let prepared = (0..3000).any(|_| {
                    std::thread::sleep(Duration::from_millis(10));
                    ready(&state)
                });
                assert!(prepared, "A is not prepared");
                std::thread::sleep(Duration::from_millis(100));
                Ok(())
            })
            .unwrap();
            assert_eq!(txn.commit().unwrap().warnings(), []);
        });
        entered.recv().unwrap();
        let outcome = first.commit();
        other.join().unwrap();
        outcome
    });
    journal.close().unwrap();
    outcome
}

#[test]
fn a_file_is_written_where_it_was_said_though_its_directory_moved_meanwhile() {
    let moves: [fn(&mut Transaction); 2] = [|b| b.rename("d", "e").unwrap(), |b| b.remove_dir_all("d").unwrap()];
    for (n, b) in moves.into_iter().enumerate() {
        let tree = Tree::new();
        tree.put("d/y", "y");
        let outcome = overtaken(&tree, |a| a.write("d/x", b"AAA").unwrap(), b, has_staged);
        let of_b: &[&str] = if n == 0 { &["e=", "e/y=y"] } else { &[] };
        match outcome {
            Ok(receipt) => {
                assert_eq!(receipt.warnings(), [], "{n}");
                assert_eq!(whole(&tree), [&["d=", "d/x=AAA"], of_b].concat(), "{n}: {:?}", saying(tree.root(), "AAA"));
            }
            Err(_) => assert_eq!(whole(&tree), of_b, "{n}"),
        }
    }
}

#[test]
fn a_move_whose_ends_somebody_else_changed_meanwhile_is_refused_before_commit() {
    type Stage = fn(&mut Transaction);
    let cases: [(&str, Stage, Stage, &[&str]); 3] = [
        (
            "the source is gone",
            |a| {
                a.rename("f", "g").unwrap();
                a.write("h", b"h").unwrap();
            },
            |b| b.remove("f").unwrap(),
            &[],
        ),
        (
            "a directory is there",
            |a| a.rename("f", "g").unwrap(),
            |b| b.write("g/inner", b"BBB").unwrap(),
            &["f=f", "g=", "g/inner=BBB"],
        ),
        ("a file is there", |a| a.rename("f", "g").unwrap(), |b| b.write("g", b"BBB").unwrap(), &["f=f", "g=BBB"]),
    ];
    for (what, a, b, of_b) in cases {
        let tree = Tree::new();
        tree.put("f", "f");
        if what == "a file is there" {
            tree.put("g", "before");
        }
        let refused = overtaken(&tree, a, b, may_settle).expect_err(what);
        assert!(matches!(refused, Error::ChangedMeanwhile { .. }), "{what}: {refused:?}");
        assert!(refused.is_retryable(), "{what}");
        assert_eq!(whole(&tree), of_b, "{what}");
        assert_eq!(states(&tree).len(), 1, "{what}: only B");
    }
}
