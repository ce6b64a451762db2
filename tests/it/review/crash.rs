//! Crashes, power cuts and failing calls: made by strace, or by hand as they would leave things.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use journal_kb::{Error, Journal, Retention};

use super::{db, read, saying, states, unsettled, whole};
use crate::skip::skip;
use crate::support::{Tree, child, child_root};

/// As a power cut leaves it: no note of what was applied counts any more.
fn forget_notes(tree: &Tree) {
    db(tree.root()).execute("UPDATE journal_txn SET applied_mark = x'00' WHERE state <> 'settled'", ()).unwrap();
}

/// Runs a child under strace, which makes the calls it is told to fail; none when strace cannot.
pub(crate) fn injected(test: &str, root: &Path, args: &[&str]) -> Option<Output> {
    let usable = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    if !usable.is_ok_and(|output| output.status.success()) {
        skip("failing system calls need strace, and leave to trace");
        return None;
    }
    let test = child(test, root);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null"]).args(args).arg(test.get_program()).args(test.get_args());
    traced.envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))));
    Some(traced.output().unwrap())
}

#[test]
fn small_content_beside_a_move_comes_back_after_a_power_cut() {
    let mut seen = 0;
    for call in ["syncfs", "fsync", "fdatasync"] {
        for nth in 1..=6 {
            let tree = Tree::new();
            tree.put("d/y", "y");
            tree.put("n", "old");
            tree.journal().close().unwrap();
            let inject = format!("inject={call}:signal=KILL:when={nth}");
            let Some(output) = injected("review::crash::moving_child", tree.root(), &["-e", &inject]) else { return };
            if output.status.success() {
                break;
            }
            let applied = read(&tree, "e/m").is_some() && read(&tree, "n").as_deref() == Some("new content");
            if !applied || states(&tree) == ["settled"] {
                continue;
            }
            seen += 1;
            // Names reached the disk, the bytes did not.
            for file in ["n", "e/m"] {
                fs::OpenOptions::new().write(true).open(tree.path(file)).unwrap().set_len(0).unwrap();
            }
            forget_notes(&tree);
            tree.journal().recover().unwrap();
            assert_eq!(whole(&tree), ["e=", "e/m=more", "e/y=y", "n=new content"], "{call} {nth}");
            assert_eq!(states(&tree), ["settled"], "{call} {nth}");
        }
    }
    assert!(seen > 0, "no kill left a commit that was applied and not settled");
}

#[test]
fn moving_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    let mut txn = journal.begin("x").unwrap();
    txn.rename("d", "e").unwrap();
    txn.write("n", b"new content").unwrap();
    txn.write("e/m", b"more").unwrap();
    txn.commit().unwrap();
    std::process::exit(0);
}

#[test]
fn what_a_killed_commit_displaced_unawares_is_kept() {
    let tree = Tree::new();
    tree.journal().close().unwrap();
    // The first rename meets a file that was not there before, the second is the exchange; the third sets it aside.
    let inject = ["-e", "inject=renameat2:signal=KILL:when=3"];
    let Some(output) = injected("review::crash::surprised_child", tree.root(), &inject) else { return };
    assert!(!output.status.success(), "it was to be killed");
    assert_eq!(read(&tree, "f").as_deref(), Some("ours"));
    assert_eq!(states(&tree), ["committed"]);
    tree.journal().recover().unwrap();
    assert_eq!(whole(&tree), ["f=ours"]);
    let kept = saying(tree.root(), "theirs");
    assert!(kept.len() == 1 && kept[0].contains("quarantine"), "{kept:?}");
}

#[test]
fn surprised_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    let mut txn = journal.begin("x").unwrap();
    txn.write("f", b"ours").unwrap();
    // The last that runs before COMMIT: somebody makes the file that the transaction is to make.
    let file = root.join("f");
    txn.sql(move |_| {
        fs::write(&file, "theirs").unwrap();
        Ok(())
    })
    .unwrap();
    txn.commit().unwrap();
    std::process::exit(0);
}

#[test]
fn an_edit_after_a_commit_that_nobody_noted_is_kept() {
    // Killed before anything was written down but the commit itself; then somebody edits what it wrote. Under load the background
    // may come first, and then there is nothing to see.
    let unnoted = || {
        let tree = Tree::new();
        tree.put("over", "before");
        tree.put("gone", "before");
        tree.journal().close().unwrap();
        let output = child("review::crash::unnoted_child", tree.root()).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
        (states(&tree) == ["committed"]).then_some(tree)
    };
    let tree = (0..20).find_map(|_| unnoted()).expect("a process that is killed before the background comes");
    for file in ["new", "over", "gone"] {
        tree.put(file, "an edit");
    }
    fs::remove_file(tree.path("link")).unwrap();
    let recovered = tree.journal().recover().unwrap();
    assert_eq!((recovered.moved_aside, recovered.quarantined), (0, 0), "{recovered:?}");
    assert_eq!(whole(&tree), ["gone=an edit", "new=an edit", "over=an edit"]);
    assert_eq!(states(&tree), ["settled"]);
}

#[test]
fn unnoted_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    let mut txn = journal.begin("x").unwrap();
    for file in ["new", "over"] {
        txn.write(file, b"committed").unwrap();
    }
    txn.remove("gone").unwrap();
    txn.symlink("over", "link").unwrap();
    txn.commit().unwrap();
    // At once: what is written down a little later is not.
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

#[test]
fn the_newest_content_wins_after_a_power_cut_in_the_middle_of_a_move() {
    let kills = ["syncfs", "fsync", "fdatasync"].into_iter().flat_map(|call| (1..=6).map(move |nth| (call, nth)));
    for (call, nth) in kills {
        let tree = Tree::new();
        tree.put("a", "orig");
        tree.journal().close().unwrap();
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        if injected("review::crash::renaming_child", tree.root(), &["-e", &inject]).is_none() {
            return;
        }
        if whole(&tree) == ["b=orig"] && states(&tree) != ["settled"] {
            return newest_wins(&tree);
        }
    }
    panic!("no kill left a move that was applied and not settled");
}

/// Another process overwrites what was moved, and the power is cut.
fn newest_wins(tree: &Tree) {
    let output = child("review::crash::overwriting_child", tree.root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(whole(tree), ["b=T3"]);
    // The cut: nothing that was not settled reached the disk.
    let sql = "SELECT preimage FROM journal_change WHERE txn = 2 AND path = CAST('b' AS BLOB)";
    let old: String = db(tree.root()).query_row(sql, (), |row| row.get(0)).unwrap();
    let places = ["stage", "history"].map(|place| tree.path(&format!(".journal/{place}/{old}")));
    let old = places.iter().find(|place| place.exists()).unwrap();
    let after = states(tree);
    if after[1] != "settled" {
        fs::remove_file(tree.path("b")).unwrap();
        fs::rename(old, tree.path(if after[0] == "settled" { "b" } else { "a" })).unwrap();
        forget_notes(tree);
    }
    let journal = tree.journal();
    journal.recover().unwrap();
    assert_eq!(whole(tree), ["b=T3"], "T3 is at {:?}", saying(tree.root(), "T3"));
    journal.close().unwrap();
    assert_eq!(states(tree), ["settled", "settled"]);
}

#[test]
fn renaming_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    journal.transact(|txn| txn.rename("a", "b")).unwrap();
    std::process::exit(0);
}

#[test]
fn overwriting_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    journal.transact(|txn| txn.write("b", b"T3")).unwrap();
    std::process::exit(0);
}

#[test]
fn the_source_of_a_pending_move_is_not_written_to() {
    for nth in 1..=12 {
        let tree = Tree::new();
        tree.put("a", "A");
        tree.journal().close().unwrap();
        let inject = format!("inject=renameat2:error=EACCES:when={nth}+");
        let Some(output) = injected("review::crash::pending_child", tree.root(), &["-e", &inject]) else { return };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{nth}: {said}");
        if read(&tree, ".journal/report").is_none() {
            // Refused before COMMIT, or not hit any more.
            continue;
        }
        tree.journal().recover().unwrap();
        assert_eq!(whole(&tree), ["b=A"], "{nth}");
        return;
    }
    panic!("no failing call left a commit pending");
}

#[test]
fn pending_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    let Ok(done) = journal.transact(|txn| txn.rename("a", "b")) else { std::process::exit(0) };
    if done.receipt.warnings().is_empty() {
        std::process::exit(0);
    }
    for path in ["a", "b"] {
        let refused = journal.transact(|txn| txn.write(path, b"NEW"));
        assert!(matches!(refused, Err(Error::PathPending { .. })), "{path}: {refused:?}");
    }
    fs::write(root.join(".journal/report"), "pending").unwrap();
    std::process::exit(0);
}

#[test]
fn a_name_in_the_database_leads_nowhere_out_of_the_stage() {
    let names = ["../../../victim", "../../../victim/precious", "../../kept", "/", "", ".", "..", "../journal.db"];
    for name in names {
        let base = Tree::new();
        base.put("victim/precious", "p");
        base.put("root/f", "f");
        base.put("root/kept", "k");
        let root = base.path("root");
        let journal = unsettled(&root);
        journal.transact(|txn| txn.write("f", b"g")).unwrap();
        journal.close().unwrap();
        let db = db(&root);
        let spoil = "UPDATE journal_change SET preimage = ?1 WHERE preimage IS NOT NULL";
        assert!(db.execute(spoil, [name]).unwrap() > 0);
        drop(db);
        let outside = base.path("victim");
        if let Ok(journal) = Journal::options().history(Retention::OFF).open(&root) {
            let _ = journal.settle();
            let _ = journal.recover();
            let _ = journal.close();
        }
        assert!(outside.join("precious").exists(), "{name:?}");
        assert!(root.join("kept").exists() && root.join("f").exists(), "{name:?}");
        assert!(root.join(".journal/journal.db").exists(), "{name:?}");
    }
}

#[test]
fn a_name_in_a_redo_record_leads_nowhere_out_of_the_stage() {
    for state in ["committed", "pending", "applied", "settling"] {
        for victim in ["victim", "victim/precious", "nothing"] {
            let base = Tree::new();
            base.put("victim/precious", "p");
            base.put("root/replaced", "before");
            base.put("root/removed", "to go");
            let root = base.path("root");
            let output = child("review::crash::redo_child", &root).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let db = db(&root);
            let all: Vec<(i64, Vec<u8>)> = {
                let mut all = db.prepare("SELECT id, record FROM journal_redo").unwrap();
                let rows = all.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
                rows.map(|row| row.unwrap()).collect()
            };
            assert!(all.len() > 3);
            for (id, record) in all {
                let spoiled = renamed(record, victim);
                db.execute("UPDATE journal_redo SET record = ?2 WHERE id = ?1", (id, spoiled)).unwrap();
            }
            db.execute("UPDATE journal_txn SET state = ?1, applied_mark = NULL", [state]).unwrap();
            drop(db);
            // There is something to do again, on every path.
            for path in ["root/replaced", "root/removed", "root/new"] {
                base.put(path, "by hand");
            }
            fs::remove_file(base.path("root/link")).unwrap();
            for _ in 0..2 {
                if let Ok(journal) = Journal::options().history(Retention::OFF).open(&root) {
                    let _ = journal.settle();
                    let _ = journal.recover();
                    let _ = journal.close();
                }
            }
            let outside = |path: &String| !path.starts_with("root");
            let outside: Vec<String> = whole(&base).into_iter().filter(outside).collect();
            assert_eq!(outside, ["victim=", "victim/precious=p"], "{state}, {victim}");
        }
    }
}

/// The record with its name in the stage replaced by one that leads out, of the same length, and a checksum that fits.
fn renamed(mut record: Vec<u8>, victim: &str) -> Vec<u8> {
    // A session in hexadecimal, a dash, a number.
    let is_name = |bytes: &[u8]| bytes[..32].iter().all(u8::is_ascii_hexdigit) && bytes[32] == b'-';
    let at = record.windows(33).position(is_name).unwrap();
    let length = usize::from(record[at - 1]);
    let mut name = format!("../../../{victim}");
    if (length - name.len()) % 2 == 1 {
        name = name.replacen('/', "//", 1);
    }
    while name.len() < length {
        name.insert_str(0, "./");
    }
    record[at..at + length].copy_from_slice(name.as_bytes());
    let body = record.len() - 8;
    let sum = blake3::hash(&record[..body]);
    record[body..].copy_from_slice(&sum.as_bytes()[..8]);
    record
}

#[test]
fn redo_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    let mut txn = journal.begin("x").unwrap();
    txn.write("replaced", b"after").unwrap();
    txn.write("new", b"new").unwrap();
    txn.write("large", vec![b'l'; 100 << 10]).unwrap();
    txn.remove("removed").unwrap();
    txn.symlink("new", "link").unwrap();
    txn.commit().unwrap();
    std::process::exit(0);
}

#[test]
fn an_edit_by_hand_that_a_cut_settle_had_set_aside_is_kept() {
    let tree = Tree::new();
    tree.put("f", "before");
    let output = child("review::crash::settling_child", tree.root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sql = "SELECT preimage FROM journal_change WHERE preimage IS NOT NULL";
    let old: String = db(tree.root()).query_row(sql, (), |row| row.get(0)).unwrap();
    db(tree.root()).execute("UPDATE journal_txn SET state = 'settling'", ()).unwrap();
    fs::write(tree.path(&format!(".journal/stage/{old}.again")), "by hand").unwrap();
    let journal = tree.journal();
    journal.settle().unwrap();
    journal.recover().unwrap();
    let kept = saying(tree.root(), "by hand");
    assert!(matches!(&kept[..], [kept] if kept.starts_with(".journal/quarantine/")), "{kept:?}");
    assert_eq!(read(&tree, "f").as_deref(), Some("committed"));
}

#[test]
fn settling_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    journal.transact(|txn| txn.write("f", b"committed")).unwrap();
    std::process::exit(0);
}

#[test]
fn a_sync_of_the_log_that_fails_in_a_checkpoint_poisons_too() {
    let mut seen = 0;
    for nth in 1..=12 {
        let tree = Tree::new();
        fs::create_dir(tree.path("kb")).unwrap();
        let (log, trace) = (tree.path("kb/.journal/journal.db-wal"), tree.path("trace"));
        let inject = format!("inject=fsync,fdatasync:error=EIO:when={nth}");
        let args = ["-e", "trace=fsync,fdatasync", "-e", &inject, "-P", log.to_str().unwrap()];
        let args = [&["-o", trace.to_str().unwrap()][..], &args].concat();
        let Some(output) = injected("review::crash::checkpointing_child", &tree.path("kb"), &args) else { return };
        let failed = fs::read_to_string(&trace).unwrap_or_default().contains("INJECTED");
        let Some(report) = read(&tree, "kb/report") else {
            assert!(failed, "{}", String::from_utf8_lossy(&output.stderr));
            continue;
        };
        let steps: Vec<&str> = report.lines().collect();
        match steps[..] {
            _ if !failed => assert_eq!(steps, ["ok", "ok", "unmarked", "ok"], "{nth}"),
            // It was a sync of the commit's own.
            ["unknown", ..] | ["ok", _, _, "unknown"] => {}
            _ => {
                assert_eq!([steps[0], steps[2], steps[3]], ["ok", "marked", "poisoned"], "{nth}: {steps:?}");
                seen += 1;
            }
        }
        assert_eq!(tree.path("kb/.journal/sync-failed").exists(), failed, "{nth}: {steps:?}");
        // The next process cures it, and what was acknowledged is there.
        let journal = Journal::open(tree.path("kb")).unwrap();
        journal.transact(|txn| txn.write("next", b"next")).unwrap();
        assert!(!tree.path("kb/.journal/sync-failed").exists(), "{nth}: cured");
        for (file, step) in [("f", steps[0]), ("g", steps[3])] {
            assert!(step != "ok" || tree.path("kb").join(file).exists(), "{nth}: {steps:?}");
        }
    }
    assert!(seen > 0, "no sync of the log failed in a checkpoint");
}

#[test]
fn checkpointing_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    let commit = |name: &str| match journal.transact(|txn| txn.write(name, b"x")) {
        Ok(_) => "ok",
        Err(error) if error.is_outcome_unknown() => "unknown",
        Err(Error::Poisoned { .. }) => "poisoned",
        Err(error) => panic!("{error}"),
    };
    let first = commit("f");
    let settled = if journal.settle().is_ok() { "ok" } else { "error" };
    let marked = if root.join(".journal/sync-failed").exists() { "marked" } else { "unmarked" };
    let report = format!("{first}\n{settled}\n{marked}\n{}\n", commit("g"));
    fs::write(root.join("report"), report).unwrap();
    std::process::exit(0);
}
