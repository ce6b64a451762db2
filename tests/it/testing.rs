//! The feature `testing`: a crash at every step shows what is not all or nothing, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use journal_kb::testing::{Crash, CrashTest, Steps, TempJournal, crash_at_every_step};
use journal_kb::{BlobReader, BlobWriter, Error, Journal, Options, Result};

use crate::blobs_killed::judge::by_content;
use crate::figures;

const SCHEMA: &str = "CREATE TABLE doc (path TEXT PRIMARY KEY) STRICT";

/// Which of the rows and files of a transaction are there.
fn there(journal: &Journal, files: &[&str]) -> BTreeSet<String> {
    let rows = |rows: &journal_kb::Rows<'_>| rows.query_map("SELECT path FROM doc", (), |row| row.get::<_, String>(0));
    let mut there: BTreeSet<_> = journal.read(rows).unwrap().into_iter().map(|path| format!("row {path}")).collect();
    there.extend(files.iter().filter(|file| journal.root().join(file).exists()).map(|file| format!("file {file}")));
    there
}

/// Something of every kind: content small and large, moves, a removed directory, a guard whose writer is somebody else, rows.
fn everything(journal: &Journal) -> Result<()> {
    let mut txn = journal.begin("everything")?;
    txn.guard_paths(["guarded.md"])?;
    fs::write(journal.root().join("guarded.md"), "after").unwrap();
    txn.write("new.md", "new")?;
    txn.write_from("large.bin", &mut &[b'n'; 100_000][..])?;
    txn.rename("from", "to")?;
    txn.remove_dir_all("dead")?;
    txn.sql(|rows| rows.execute("INSERT INTO doc VALUES ('new.md')", ()).map(drop))?;
    txn.commit().map(drop)
}

fn before(journal: &Journal) -> Result<()> {
    journal.migrate(&[SCHEMA])?;
    journal.transact(|txn| {
        txn.write("from/a.md", "a")?;
        txn.write("dead/b.md", "b")?;
        txn.write("guarded.md", "before")
    })?;
    Ok(())
}

fn whole_or_absent(journal: &Journal, crash: &Crash) {
    let there = there(journal, &["new.md", "large.bin", "to/a.md", "from/a.md", "dead/b.md"]);
    let is = |all: &[&str]| there == all.iter().map(|&name| name.to_owned()).collect();
    let guarded = fs::read_to_string(journal.root().join("guarded.md")).unwrap();
    match guarded.as_str() {
        "before" => assert!(!crash.returned && is(&["file from/a.md", "file dead/b.md"]), "{there:?}"),
        "after" => assert!(is(&["row new.md", "file new.md", "file large.bin", "file to/a.md"]), "{there:?}"),
        other => panic!("{other}"),
    }
}

fn tell(steps: Steps) {
    println!("{steps:?}");
    figures::add("processes ended at a step of the engine, and recovered", steps.crashes as usize);
    figures::add("recoveries ended at a step of the engine, and recovered", steps.crashed_recoveries as usize);
}

#[test]
fn a_transaction_of_everything_is_whole_or_absent_after_a_crash_at_every_step() {
    let steps = crash_at_every_step(before, everything, whole_or_absent);
    assert!(steps.crashes > 20 && steps.crashed_recoveries == 0, "{steps:?}");
    tell(steps);
}

#[test]
fn so_it_is_after_a_crash_at_every_step_of_the_recovery_too() {
    // Small, because it is one process for each pair of steps.
    let work = |journal: &Journal| {
        let mut txn = journal.begin("small")?;
        txn.write("new.md", "new")?;
        txn.sql(|rows| rows.execute("INSERT INTO doc VALUES ('new.md')", ()).map(drop))?;
        txn.commit().map(drop)
    };
    let check = |journal: &Journal, crash: &Crash| {
        let there = there(journal, &["new.md"]);
        assert!(there.len() == 2 || there.is_empty() && !crash.returned, "{there:?}");
    };
    let steps = CrashTest::default().recoveries_too().run(|journal| journal.migrate(&[SCHEMA]), work, check);
    assert!(steps.crashes > 3 && steps.crashed_recoveries > steps.crashes, "{steps:?}");
    tell(steps);
}

#[test]
fn so_it_is_with_a_blob_that_is_sealed_and_one_that_is_removed() {
    let write = |journal: &Journal, bytes: &[u8]| -> Result<BlobWriter> {
        let mut blob = journal.blobs().create()?;
        blob.write_all(bytes).map_err(Error::caller)?;
        Ok(blob)
    };
    let (old, new) = ([1; 70_000], [2; 70_000]);
    let ids = [old, new].map(|content| by_content(&content));
    let work = |journal: &Journal| {
        journal.transact(|txn| {
            txn.seal(write(journal, &new)?)?;
            txn.remove_blob(&ids[0])
        })?;
        journal.settle().map(drop)
    };
    let check = |journal: &Journal, crash: &Crash| {
        let there = ids.each_ref().map(|id| {
            let all = |mut blob: BlobReader| blob.read_to_end(&mut Vec::new()).unwrap();
            journal.blobs().opener().verify(true).open(id).map(all).is_ok()
        });
        assert!(there == [false, true] || there == [true, false] && !crash.returned, "{there:?}");
    };
    let seal = |journal: &Journal| write(journal, &old)?.seal().map(drop);
    let steps = crash_at_every_step(seal, work, check);
    assert!(steps.crashes > 8, "{steps:?}");
    tell(steps);
}

#[test]
fn what_is_not_all_or_nothing_is_found() {
    // Two transactions, where one was meant.
    let work = |journal: &Journal| {
        journal.transact(|txn| txn.write("page.md", "page"))?;
        journal.transact(|txn| txn.sql(|rows| rows.execute("INSERT INTO doc VALUES ('page.md')", ()).map(drop)))?;
        Ok(())
    };
    let check = |journal: &Journal, _: &Crash| {
        let there = there(journal, &["page.md"]);
        assert_ne!(there.len(), 1, "half of it");
    };
    let found =
        catch_unwind(AssertUnwindSafe(|| crash_at_every_step(|journal| journal.migrate(&[SCHEMA]), work, check)));
    let message = *found.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("half of it"), "{message}");
}

#[test]
fn work_that_fails_by_itself_is_told() {
    let work = |journal: &Journal| journal.transact(|txn| txn.remove("not-there.md")).map(drop);
    let found = catch_unwind(AssertUnwindSafe(|| crash_at_every_step(|_| Ok(()), work, |_, _| ())));
    let message = *found.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("not-there.md"), "{message}");
}

#[test]
fn a_temporary_journal_is_gone_with_its_directory() {
    let journal = TempJournal::with(Options::default().state_dir("state")).unwrap();
    journal.transact(|txn| txn.write("a", "a")).unwrap();
    let root: PathBuf = journal.root().to_owned();
    assert!(root.join("state/journal.db").exists());
    drop(journal);
    assert!(!root.exists());
}
