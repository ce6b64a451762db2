//! The promise of a commit: all of it, durable and visible, or nothing; and what is staged is seen by its transaction
//! alone.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use journal_kb::{Begin, ChangeKind, Error, Journal};

use crate::support::{Tree, manifest};

#[test]
fn files_and_rows_become_true_together() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE doc(path TEXT PRIMARY KEY, title TEXT NOT NULL) STRICT"]).unwrap();
    tree.put("pages/old.md", "old");
    tree.put("pages/gone.md", "gone");

    let mut txn = journal.begin("ingest").unwrap();
    txn.write("pages/new.md", b"# New\n").unwrap();
    txn.write("pages/old.md", b"newer").unwrap();
    txn.remove("pages/gone.md").unwrap();
    txn.symlink("new.md", "pages/link").unwrap();
    txn.create_dir_all("empty/inner").unwrap();
    txn.sql(|rows| rows.execute("INSERT INTO doc VALUES (?1, ?2)", ("pages/new.md", "New")).map(drop)).unwrap();
    // Nobody else sees any of it yet; the transaction does.
    assert!(!tree.path("pages/new.md").exists() && tree.path("pages/gone.md").exists());
    assert_eq!(txn.read("pages/new.md").unwrap(), b"# New\n");
    assert_eq!(txn.read("pages/old.md").unwrap(), b"newer");
    assert!(matches!(txn.read("pages/gone.md"), Err(Error::NotFound { .. })));
    assert!(txn.exists("empty/inner").unwrap() && !txn.exists("nothing").unwrap());
    let receipt = txn.commit().unwrap();

    assert_eq!(receipt.warnings(), []);
    assert_eq!(fs::read(tree.path("pages/new.md")).unwrap(), b"# New\n");
    assert_eq!(fs::read(tree.path("pages/old.md")).unwrap(), b"newer");
    assert!(!tree.path("pages/gone.md").exists() && tree.path("empty/inner").is_dir());
    assert_eq!(fs::read_link(tree.path("pages/link")).unwrap().to_str(), Some("new.md"));
    let titles: i64 = journal.read(|rows| rows.query_row("SELECT count(*) FROM doc", (), |row| row.get(0))).unwrap();
    assert_eq!(titles, 1);
    let kinds: Vec<_> = receipt.changes().iter().map(|change| (change.path().to_str().unwrap(), change.kind)).collect();
    for expected in [
        ("pages/new.md", ChangeKind::Created),
        ("pages/old.md", ChangeKind::Replaced),
        ("pages/gone.md", ChangeKind::Removed),
        ("pages/link", ChangeKind::Created),
        ("empty", ChangeKind::Directory),
        ("empty/inner", ChangeKind::Directory),
    ] {
        assert!(kinds.contains(&expected), "{expected:?} in {kinds:?}");
    }
}

#[test]
fn dropping_a_transaction_leaves_nothing() {
    let tree = Tree::new();
    tree.put("a", "a");
    let journal = tree.journal();
    let before = manifest(&tree);
    {
        let mut txn = journal.begin("dropped").unwrap();
        txn.write("a", b"other").unwrap();
        txn.write("b/c", b"new").unwrap();
        txn.write_from("large", &mut &vec![7_u8; 200 << 10][..]).unwrap();
        assert_eq!(txn.read("large").unwrap().len(), 200 << 10);
    }
    assert_eq!(manifest(&tree), before);
    assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
    let failed = journal.transact(|txn| {
        txn.write("a", b"other")?;
        Err::<(), _>(Error::caller("no"))
    });
    assert!(matches!(failed, Err(Error::Caller(_))));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        drop(journal.transact::<()>(|txn| {
            txn.write("a", b"other")?;
            panic!("in the middle")
        }));
    }));
    assert!(panicked.is_err());
    assert_eq!(manifest(&tree), before);
    journal.transact(|txn| txn.write("a", b"the lock is free")).unwrap();
}

#[test]
fn an_overwritten_file_keeps_what_it_is_besides_its_bytes() {
    let tree = Tree::new();
    tree.put("script", "#!/bin/sh\n");
    fs::set_permissions(tree.path("script"), fs::Permissions::from_mode(0o751)).unwrap();
    let xattr =
        rustix::fs::setxattr(tree.path("script"), "user.kept", b"value", rustix::fs::XattrFlags::empty()).is_ok();
    tree.journal().transact(|txn| txn.write("script", b"#!/bin/false\n")).unwrap();
    assert_eq!(fs::metadata(tree.path("script")).unwrap().mode() & 0o7777, 0o751);
    if xattr {
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(tree.path("script"), "user.kept", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"value");
    }
}

#[test]
fn moves_keep_their_inodes() {
    let tree = Tree::new();
    tree.put("d/one", "1");
    tree.put("d/two", "2");
    tree.put("swap/a", "a");
    tree.put("swap/b", "b");
    tree.put("junk/deep/file", "x");
    let inode = |path: &str| fs::symlink_metadata(tree.path(path)).unwrap().ino();
    let (d, one, a, b) = (inode("d"), inode("d/one"), inode("swap/a"), inode("swap/b"));
    let journal = tree.journal();
    let mut txn = journal.begin("moves").unwrap();
    txn.rename("d", "e").unwrap();
    assert_eq!(txn.read("e/one").unwrap(), b"1");
    txn.write("e/three", b"3").unwrap();
    txn.remove("e/two").unwrap();
    txn.rename("swap/a", "swap/t").unwrap();
    txn.rename("swap/b", "swap/a").unwrap();
    txn.rename("swap/t", "swap/b").unwrap();
    txn.remove_dir_all("junk").unwrap();
    txn.write("junk", b"a file now").unwrap();
    let receipt = txn.commit().unwrap();
    assert_eq!(receipt.warnings(), []);
    assert_eq!((inode("e"), inode("e/one")), (d, one));
    assert_eq!((inode("swap/b"), inode("swap/a")), (a, b));
    assert!(!tree.path("d").exists() && !tree.path("e/two").exists());
    assert_eq!(fs::read(tree.path("e/three")).unwrap(), b"3");
    assert_eq!(fs::read(tree.path("junk")).unwrap(), b"a file now");
}

#[test]
fn staged_directories_can_be_renamed_before_they_exist() {
    let tree = Tree::new();
    let journal = tree.journal();
    let mut txn = journal.begin("fresh").unwrap();
    txn.write("new/a/x", b"x").unwrap();
    txn.rename("new", "other").unwrap();
    txn.rename("other/a", "moved").unwrap();
    txn.rename("moved/x", "moved/y").unwrap();
    assert!(!txn.exists("new").unwrap() && !txn.exists("other/a").unwrap());
    txn.commit().unwrap();
    assert_eq!(fs::read(tree.path("moved/y")).unwrap(), b"x");
    assert!(tree.path("other").is_dir() && !tree.path("new").exists() && !tree.path("other/a").exists());
}

#[test]
fn publishing_moves_a_directory_and_gives_it_back_when_nothing_comes_of_it() {
    let tree = Tree::new();
    let outside = tempfile::tempdir().unwrap();
    let built = outside.path().join("built");
    fs::create_dir_all(built.join("sub")).unwrap();
    fs::write(built.join("sub/page"), "page").unwrap();
    symlink("page", built.join("sub/link")).unwrap();
    let inode = fs::metadata(&built).unwrap().ino();
    let journal = tree.journal();

    let mut txn = journal.begin("dropped").unwrap();
    txn.publish(&built, "sources/report").unwrap();
    assert_eq!(txn.read("sources/report/sub/page").unwrap(), b"page");
    txn.sql(|rows| rows.execute("INSERT INTO nothing VALUES (1)", ()).map(drop)).unwrap();
    txn.commit().unwrap_err();
    assert!(built.join("sub/page").exists(), "the source is back");

    let mut txn = journal.begin("published").unwrap();
    txn.publish(&built, "sources/report").unwrap();
    let staging = txn.staging().unwrap();
    fs::write(staging.join("inner"), "staged").unwrap();
    txn.publish(staging.join("inner"), "sources/inner").unwrap();
    txn.write("sources/report/extra", b"extra").unwrap();
    txn.commit().unwrap();
    assert_eq!(fs::metadata(tree.path("sources/report")).unwrap().ino(), inode);
    assert_eq!(fs::read(tree.path("sources/report/sub/page")).unwrap(), b"page");
    assert_eq!(fs::read(tree.path("sources/report/extra")).unwrap(), b"extra");
    assert_eq!(fs::read(tree.path("sources/inner")).unwrap(), b"staged");
    assert!(!built.exists());
}

#[test]
fn large_content_is_streamed_and_comes_out_whole() {
    let tree = Tree::new();
    tree.put("large", "small before");
    let journal = Journal::options().inline_limit(1 << 10).inline_total(4 << 10).open(tree.root()).unwrap();
    let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at / 7) as u8).collect();
    let mut txn = journal.begin("large").unwrap();
    assert_eq!(txn.write_from("large", &mut &bytes[..]).unwrap(), bytes.len() as u64);
    for n in 0..20 {
        txn.write(format!("small/{n}"), vec![n; 1000]).unwrap();
    }
    txn.commit().unwrap();
    assert_eq!(fs::read(tree.path("large")).unwrap(), bytes);
    for n in 0..20 {
        assert_eq!(fs::read(tree.path(&format!("small/{n}"))).unwrap(), vec![n; 1000]);
    }
    journal.settle().unwrap();
    let stage: Vec<_> = fs::read_dir(tree.path(".journal/stage")).unwrap().collect();
    assert!(stage.is_empty(), "{stage:?}");
}

#[test]
fn a_key_commits_once() {
    let tree = Tree::new();
    tree.put("a", "a");
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE n(x)"]).unwrap();
    let attempt = |content: &'static [u8]| {
        let mut txn = journal.begin_with(Begin::new("once").key("k1"))?;
        txn.write("made", content)?;
        txn.rename("a", "b")?;
        txn.sql(|rows| rows.execute("INSERT INTO n VALUES (1)", ()).map(drop))?;
        txn.commit()
    };
    let first = attempt(b"content").unwrap();
    let second = attempt(b"content").unwrap();
    assert!(!first.repeated() && second.repeated());
    assert_eq!((first.id(), first.fence()), (second.id(), second.fence()));
    assert_eq!(first.changes(), second.changes());
    let rows: i64 = journal.read(|rows| rows.query_row("SELECT count(*) FROM n", (), |row| row.get(0))).unwrap();
    assert_eq!(rows, 1);
    assert!(matches!(attempt(b"other"), Err(Error::KeyReused { txn, .. }) if txn == first.id()));
}

#[test]
fn a_key_is_one_change_whatever_lock_it_is_committed_under() {
    let tree = Tree::new();
    let journal = tree.journal();
    let begin = |lock: &str| {
        let mut txn = journal.begin_with(Begin::new("").lock(lock).key("k")).unwrap();
        txn.write("made", b"content").unwrap();
        txn
    };
    // Both began before either was committed.
    let (one, other) = (begin("one"), begin("other"));
    let first = one.commit().unwrap();
    let second = other.commit().unwrap();
    assert!(second.repeated() && second.id() == first.id());
    journal.begin_with(Begin::new("").lock("other")).unwrap().rollback().unwrap();
}

#[test]
fn a_failing_statement_undoes_files_and_rows() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE n(x UNIQUE)"]).unwrap();
    let before = manifest(&tree);
    let failed = journal.transact(|txn| {
        txn.write("f", b"f")?;
        txn.sql(|rows| rows.execute("INSERT INTO n VALUES (1)", ()).map(drop))?;
        txn.sql(|rows| rows.execute("INSERT INTO n VALUES (1)", ()).map(drop))
    });
    assert!(matches!(&failed, Err(error) if !error.is_retryable()), "{failed:?}");
    assert_eq!(manifest(&tree), before);
    let rows: i64 = journal.read(|rows| rows.query_row("SELECT count(*) FROM n", (), |row| row.get(0))).unwrap();
    assert_eq!(rows, 0);
}
