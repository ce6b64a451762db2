//! What a review found broken, as promises: each test is a state or a sequence that once came out wrong.

pub(crate) mod crash;
mod meanwhile;
mod places;
mod stranger;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal_kb::{Begin, Error, Journal, Result, Transaction, rusqlite};
use rustix::fs::XattrFlags;

use crate::model::holds;
use crate::skip::skip;
use crate::support::{Entry, Tree, manifest};

/// What is staged, and its name.
type Step = (&'static str, fn(&mut Transaction) -> Result<()>);

/// A journal that settles nothing by itself.
fn unsettled(root: &Path) -> Journal {
    Journal::options().settle_after(Duration::from_secs(3600)).open(root).unwrap()
}

fn db(root: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(root.join(".journal/journal.db")).unwrap()
}

fn states(tree: &Tree) -> Vec<String> {
    let db = db(tree.root());
    let mut all = db.prepare("SELECT state FROM journal_txn ORDER BY id").unwrap();
    all.query_map((), |row| row.get(0)).unwrap().map(|state| state.unwrap()).collect()
}

fn read(tree: &Tree, path: &str) -> Option<String> {
    fs::read_to_string(tree.path(path)).ok()
}

/// Every path and its bytes.
fn whole(tree: &Tree) -> Vec<String> {
    let shown =
        |(path, entry): (PathBuf, Entry)| format!("{}={}", path.display(), String::from_utf8_lossy(&entry.bytes));
    manifest(tree).into_iter().filter(|(path, _)| !path.as_os_str().is_empty()).map(shown).collect()
}

/// The files anywhere below a root that say this.
fn saying(root: &Path, content: &str) -> Vec<String> {
    let files = walkdir::WalkDir::new(root).into_iter().map(|entry| entry.unwrap());
    let files = files.filter(|entry| entry.file_type().is_file());
    let same = files.filter(|entry| fs::read(entry.path()).unwrap() == content.as_bytes());
    same.map(|entry| entry.path().strip_prefix(root).unwrap().display().to_string()).collect()
}

#[test]
fn a_directory_may_come_where_the_transaction_took_a_file_away() {
    holds("write c/a i", "remove_dir_all c; write c/a/b w");
    holds("write b i", "rename b c; write b/b/c w");
    holds("write b i", "remove b; write b/b/a w");
    holds("symlink s b", "remove b; symlink t b/a/a");
    holds("write a i", "rename a c; symlink t a/b/c; write c w");
    holds("write c i; write b j", "rename c b; rename b c; write b/a/b w");
    holds("write a/a i", "rename a/a b/b; remove_dir_all b; write a/a/a w");
    holds("write a/b i", "write a/b w; rename a c/a; rename c a/b/a");
    holds("write c i; write b/a/a j", "write b/a/a w; remove c; rename b c/a/b");
    holds("write b/c/a i; write b/b j; write a/a k", "rename a b/a; rename b/c a; remove a/a; rename b/b a/a/b");
}

#[test]
fn what_is_moved_out_of_a_moved_directory_is_moved() {
    holds("write b/b i", "rename b a; rename a/b b/b");
    holds("write c/a i", "rename c b/b; rename b/b/a c/c/a");
    holds("create_dir_all b/b/b", "rename b/b b/a; rename b c/a");
    holds("write b/c/c i", "rename b/c c/c/a; rename b c/a");
    holds("symlink s a/c", "rename a/c a/b; rename a b/a/c");
}

#[test]
fn what_is_taken_out_of_a_directory_does_not_go_with_it() {
    holds("write c/a i", "remove c/a; rename c b; write c/a w");
    holds("write c/a i", "rename c/a d; rename c b; write c/a w");
    holds("write c/a i", "remove c/a; create_dir_all c/a; rename c b; write c/a w");
    holds("write c/a i", "rename c/a b/c; write b/c w; symlink t c/a; rename c b/a/c; write c/a/c v");
    holds("write c/a i", "rename c/a b/b; create_dir_all c/a; remove_dir_all b; rename c b/b; write c/a w");
    holds("write c/a/b i", "remove c/a/b; rename c b; write c/a/b w");
}

#[test]
fn what_is_made_in_a_directory_goes_with_it() {
    holds("create_dir_all b/b", "create_dir_all b/a/b; rename b a/b/c");
    holds("write b/c/b i", "create_dir_all b/a; rename b a/c/c");
    holds("write a/a i", "create_dir_all a/c/b; rename a c/c");
    holds("create_dir_all c", "symlink t c/c/c; rename c a/c");
    holds("write c/a i", "symlink t c/c/a; rename c a/a/c");
}

#[test]
fn what_is_moved_out_of_a_directory_outlives_its_removal() {
    holds("write b/a/b i", "rename b/a/b a; remove_dir_all b/a");
    holds("write a/a/b i", "rename a/a c/b/a; remove_dir_all a");
}

#[test]
fn a_new_directory_takes_along_what_was_moved_into_it() {
    holds("write a/x precious", "rename a c/a; rename c b");
    holds("write a/a/b i", "rename a c/a; rename c a/b/a");
    holds("create_dir_all a/c", "rename a c/c/c; rename c b/c");
}

#[test]
fn a_file_made_where_another_was_taken_away_is_a_new_one() {
    holds("write c i; chmod 755 c", "remove c; write c w");
    holds("write c i; chmod 600 c", "rename c a/a; write c w");
    holds("write a/c i; chmod 600 a/c", "remove_dir_all a; write a/c w");
    // One that is overwritten is the same file still.
    holds("write c i; chmod 755 c; symlink s b", "write c w; write b w");
}

#[test]
fn what_a_transaction_publishes_it_does_not_take_apart() {
    let steps: [Step; 9] = [
        ("remove", |txn| txn.remove("to/dir/f")),
        ("remove_dir_all", |txn| txn.remove_dir_all("to/dir/sub")),
        ("rename out of", |txn| txn.rename("to/dir/f", "elsewhere")),
        ("rename within", |txn| txn.rename("to/dir/sub", "to/dir/other")),
        ("rename onto", |txn| txn.rename("own", "to/dir/sub/g")),
        ("write over", |txn| txn.write("to/dir/f", b"other")),
        ("write over, deeper", |txn| txn.write("to/dir/sub/g", b"other")),
        ("symlink over", |txn| txn.symlink("own", "to/dir/f")),
        ("publish over", |txn| {
            let page = txn.staging()?.join("page");
            fs::write(&page, "other").unwrap();
            txn.publish(page, "to/dir/f")
        }),
    ];
    for moved in [false, true] {
        for (what, step) in steps {
            let tree = Tree::new();
            tree.put("own", "own");
            let journal = tree.journal();
            let mut txn = journal.begin(what).unwrap();
            let staging = txn.staging().unwrap();
            fs::create_dir_all(staging.join("dir/sub")).unwrap();
            fs::write(staging.join("dir/f"), "f").unwrap();
            fs::write(staging.join("dir/sub/g"), "g").unwrap();
            txn.publish(staging.join("dir"), if moved { "first" } else { "to/dir" }).unwrap();
            if moved {
                txn.rename("first", "to/dir").unwrap();
            }
            let refused = step(&mut txn);
            assert!(matches!(refused, Err(Error::BadPath { .. })), "{what}, {moved}: {refused:?}");
            assert_eq!(txn.read("to/dir/f").unwrap(), b"f", "{what}");
            assert_eq!(txn.read("to/dir/sub/g").unwrap(), b"g", "{what}");
            assert_eq!(txn.read("own").unwrap(), b"own", "{what}");
            for free in ["elsewhere", "to/dir/other"] {
                assert!(!txn.exists(free).unwrap(), "{what}: {free}");
            }
            // New names are no trouble.
            txn.create_dir_all("to/dir/sub").unwrap();
            txn.write("to/dir/new", b"new").unwrap();
            txn.write("to/dir/sub/deep/new", b"deep").unwrap();
            assert_eq!(txn.commit().unwrap().warnings(), [], "{what}, {moved}");
            let files = [("own", "own"), ("to/dir/f", "f"), ("to/dir/sub/g", "g"), ("to/dir/new", "new")];
            for (path, content) in files.into_iter().chain([("to/dir/sub/deep/new", "deep")]) {
                assert_eq!(read(&tree, path).as_deref(), Some(content), "{what}: {path}");
            }
            assert!(!tree.path("elsewhere").exists() && !tree.path("to/dir/other").exists(), "{what}");
            assert!(!tree.path("first").exists());
        }
    }
}

#[test]
fn a_file_keeps_mode_and_xattrs_when_it_is_moved_and_written() {
    let tree = Tree::new();
    let mut files = vec![("d/secret", "e/secret"), ("f", "g")];
    for (from, _) in &files {
        tree.put(from, "before");
        fs::set_permissions(tree.path(from), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let (name, value) = ("user.journal-kb", b"kept");
    let set = |path| rustix::fs::setxattr(tree.path(path), name, value, XattrFlags::empty());
    let xattrs = files.iter().all(|(from, _)| set(from).is_ok());
    let journal = tree.journal();
    let done = journal.transact(|txn| {
        txn.rename("d", "e")?;
        txn.write("e/secret", b"after")?;
        txn.rename("f", "g")?;
        txn.write("g", b"after")
    });
    assert_eq!(done.unwrap().receipt.warnings(), []);
    journal.close().unwrap();
    for (_, to) in files.drain(..) {
        assert_eq!(read(&tree, to).as_deref(), Some("after"));
        assert_eq!(fs::metadata(tree.path(to)).unwrap().mode() & 0o7777, 0o600, "{to}");
        if xattrs {
            let mut found = [0; 16];
            let length = rustix::fs::getxattr(tree.path(to), name, &mut found).unwrap();
            assert_eq!(&found[..length], value, "{to}");
        }
    }
    if !xattrs {
        skip("this filesystem has no user xattrs");
    }
}

#[test]
fn a_directory_that_holds_the_database_or_the_state_is_not_removed_nor_moved() {
    let tree = Tree::new();
    fs::create_dir(tree.path("data")).unwrap();
    let app = rusqlite::Connection::open(tree.path("data/app.db")).unwrap();
    app.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).unwrap();
    app.execute_batch("CREATE TABLE t(x)").unwrap();
    drop(app);
    fs::create_dir_all(tree.path("deep/x")).unwrap();
    let journal = Journal::options().database("data/app.db").state_dir("deep/x/state").open(tree.root()).unwrap();
    for dir in ["data", "deep", "deep/x"] {
        for refused in [
            journal.transact(|txn| txn.remove_dir_all(dir)),
            journal.transact(|txn| txn.rename(dir, "elsewhere")),
            journal.transact(|txn| {
                txn.write("beside", b"x")?;
                txn.rename(dir, "elsewhere/deep")
            }),
        ] {
            assert!(matches!(refused, Err(Error::BadPath { .. })), "{dir}: {refused:?}");
        }
    }
    assert!(tree.path("data/app.db").exists() && tree.path("deep/x/state").exists());
    assert!(!tree.path("elsewhere").exists() && !tree.path("beside").exists());
    journal.transact(|txn| txn.write("data/beside", b"x")).unwrap();
}

#[test]
fn a_repeated_key_answers_the_first_receipt_whatever_its_transaction_did() {
    let cases: [Step; 4] = [
        ("a directory is renamed, and written into", |txn| {
            txn.rename("d", "e")?;
            txn.write("e/new", b"n")
        }),
        ("a file takes a directory's place", |txn| {
            txn.remove_dir_all("d")?;
            txn.write("d", b"n")
        }),
        ("a directory takes a file's place", |txn| {
            txn.remove("f")?;
            txn.write("f/x", b"n")?;
            txn.rename("f", "g")
        }),
        ("a new directory is renamed and made again", |txn| {
            txn.write("q/x", b"1")?;
            txn.rename("q", "w")?;
            txn.write("q/y", b"2")
        }),
    ];
    for (what, stage) in cases {
        let tree = Tree::new();
        tree.put("d/x", "x");
        tree.put("f", "f");
        let journal = tree.journal();
        let commit = || {
            let mut txn = journal.begin_with(Begin::new("keyed").key("k"))?;
            stage(&mut txn)?;
            txn.commit()
        };
        let first = commit().unwrap();
        let after = whole(&tree);
        let again = commit().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((again.repeated(), again.id()), (true, first.id()), "{what}");
        assert_eq!(whole(&tree), after, "{what}");
        let mut other = journal.begin_with(Begin::new("keyed").key("k")).unwrap();
        other.write("something/else", b"x").unwrap();
        assert!(matches!(other.commit(), Err(Error::KeyReused { .. })), "{what}");
        assert_eq!(whole(&tree), after, "{what}");
    }
}

#[test]
fn a_commit_that_fails_gives_back_a_source_inside_another() {
    let (tree, outside) = (Tree::new(), Tree::new());
    outside.put("src/sub/f", "f");
    outside.put("src/g", "g");
    let before = manifest(&outside);
    for inner_first in [true, false] {
        let journal = tree.journal();
        let mut txn = journal.begin("x").unwrap();
        let mut sources = [("src/sub", "a"), ("src", "b")];
        if !inner_first {
            sources.reverse();
        }
        // To publish the outer one alone, or to refuse the pair, would be as good; to lose one is not.
        let staged = sources.into_iter().try_for_each(|(from, to)| txn.publish(outside.path(from), to));
        let failing = txn.sql(|rows| rows.execute("INSERT INTO nothing VALUES (1)", ()).map(drop));
        assert!(staged.and(failing).and_then(|()| txn.commit()).is_err());
        drop(journal);
        tree.journal().close().unwrap();
        assert_eq!(manifest(&outside), before, "inner first: {inner_first}; {:?}", saying(tree.root(), "f"));
    }
}
