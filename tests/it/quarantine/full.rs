//! A disk that stays full through many recoveries: each attempt is given back, nothing is lost, and with room it completes.

use std::fs;
use std::path::Path;

use journal_kb::Journal;

use super::{change_all, open_db};
use crate::support::{Entry, Tree, child, child_root, manifest_of, wait_for_word};
use crate::trouble::Small;

/// More than the attempts there are.
const OFTEN: usize = 7;

fn open(root: &Path, state: &Path) -> journal_kb::Result<Journal> {
    Journal::options().state_dir(state).settle_after(std::time::Duration::from_secs(3600)).open(root)
}

/// Commits, or guards and changes everything, and waits to be killed.
#[test]
fn full_child() {
    let Some(root) = child_root() else { return };
    let state = std::path::PathBuf::from(std::env::var_os("STATE").unwrap());
    let journal = open(&root, &state).unwrap();
    let mut txn = journal.begin("to be killed").unwrap();
    if std::env::var_os("GUARD").is_some() {
        txn.guard_paths(super::PATHS).unwrap();
        change_all(&root);
    } else {
        for n in 0..8 {
            txn.write(format!("made/{n}"), vec![b'x'; 20_000]).unwrap();
        }
        txn.write("a", "a committed").unwrap();
        txn.commit().unwrap();
    }
    println!("change done");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

fn run(root: &Path, state: &Path, guard: bool) {
    let mut command = child("quarantine::full::full_child", root);
    command.env("STATE", state);
    if guard {
        command.env("GUARD", "1");
    }
    let mut process = command.spawn().unwrap();
    wait_for_word(&mut process, "change done");
    process.kill().unwrap();
    process.wait().unwrap();
}

/// Takes all room, and all inodes.
fn fill(root: &Path) {
    fs::create_dir(root.join("filler")).unwrap();
    fs::write(root.join("filler/large"), vec![0; 64 << 20]).unwrap_err();
    for n in 0.. {
        if fs::write(root.join("filler").join(n.to_string()), "").is_err() {
            return;
        }
    }
}

fn put_all(root: &Path) {
    for (path, content) in [("a", "one"), ("b", "two"), ("c", "three"), ("d/e", "four")] {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), content).unwrap();
    }
    std::os::unix::fs::symlink("a", root.join("link")).unwrap();
}

fn picture(root: &Path) -> Vec<(std::path::PathBuf, Entry)> {
    let all = manifest_of(root).into_iter().filter(|(path, _)| !path.starts_with("filler"));
    all.map(|(path, entry)| (path, Entry { mtime: None, ..entry })).collect()
}

#[test]
fn a_transaction_waits_for_room() {
    let Some(small) = Small::mount("4m,nr_inodes=200") else { return };
    let (root, state) = (small.0.path(), Tree::new());
    put_all(root);
    open(root, &state.path("state")).unwrap().close().unwrap();
    run(root, &state.path("state"), false);
    let committed = picture(root);
    // As if its apply had not reached the disk.
    let db = |sql: &str| rusqlite_at(&state.path("state")).execute(sql, ()).unwrap();
    assert_eq!(db("UPDATE journal_txn SET state = 'committed', applied_mark = NULL"), 1);
    fs::remove_dir_all(root.join("made")).unwrap();
    fill(root);
    for n in 0..OFTEN {
        let journal = open(root, &state.path("state")).unwrap();
        assert!(!root.join("made/7").exists(), "{n}: there was room");
        let attempts = journal.quarantine().list().unwrap();
        assert!(attempts.is_empty(), "{n}: {attempts:?}");
    }
    let counted = "SELECT attempts FROM journal_txn";
    assert_eq!(rusqlite_at(&state.path("state")).query_row(counted, (), |row| row.get::<_, i64>(0)).unwrap(), 0);
    fs::remove_dir_all(root.join("filler")).unwrap();
    let journal = open(root, &state.path("state")).unwrap();
    assert_eq!(journal.recover().unwrap().pending, 0);
    assert_eq!(picture(root), committed);
}

#[test]
fn what_was_guarded_waits_for_room() {
    let Some(small) = Small::mount("4m,nr_inodes=200") else { return };
    let (root, state) = (small.0.path(), Tree::new());
    put_all(root);
    open(root, &state.path("state")).unwrap().close().unwrap();
    let before = picture(root);
    run(root, &state.path("state"), true);
    fill(root);
    for n in 0..OFTEN {
        let journal = open(root, &state.path("state")).unwrap();
        assert!(!root.join("d").exists(), "{n}: there was room");
        assert!(journal.quarantine().list().unwrap().is_empty(), "{n}");
    }
    fs::remove_dir_all(root.join("filler")).unwrap();
    let journal = open(root, &state.path("state")).unwrap();
    assert_eq!(journal.recover().unwrap().pending, 0);
    assert_eq!(picture(root), before);
}

#[test]
fn with_the_journal_on_the_full_disk_too_nothing_is_lost() {
    for guard in [false, true] {
        let Some(small) = Small::mount("8m,nr_inodes=400") else { return };
        let root = small.0.path();
        let state = root.join(".journal");
        put_all(root);
        open(root, &state).unwrap().close().unwrap();
        let before = picture(root);
        run(root, &state, guard);
        let after = picture(root);
        let wanted = if guard { before } else { after };
        if !guard {
            let forget = "UPDATE journal_txn SET state = 'committed', applied_mark = NULL";
            assert_eq!(open_db(root).execute(forget, ()).unwrap(), 1);
            fs::remove_dir_all(root.join("made")).unwrap();
        }
        fill(root);
        let mut refused = 0;
        for n in 0..OFTEN {
            match open(root, &state) {
                Ok(journal) => assert!(journal.quarantine().list().unwrap().is_empty(), "{n}"),
                Err(error) => {
                    assert!(error.is_io(), "{n}: {error}");
                    refused += 1;
                }
            }
        }
        println!("guard {guard}: opening was refused {refused} times of {OFTEN}");
        fs::remove_dir_all(root.join("filler")).unwrap();
        let journal = open(root, &state).unwrap();
        let recovered = journal.recover().unwrap();
        assert_eq!((recovered.pending, recovered.quarantined), (0, 0), "guard {guard}");
        assert_eq!(picture(root), wanted, "guard {guard}");
    }
}

fn rusqlite_at(state: &Path) -> journal_kb::rusqlite::Connection {
    journal_kb::rusqlite::Connection::open(state.join("journal.db")).unwrap()
}
