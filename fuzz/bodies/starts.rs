//! Journals as a crash left them, to be damaged: made once by the library itself, then kept in memory and laid out again
//! for each input.
//!
//! A copy of a tree has other inodes and other times of change than its original, and recovery tells versions by them. So
//! the records are brought to say of the copy what they said of the original ([`journal_kb::__fuzz::moved`]).

use std::any::Any;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use journal_kb::__fuzz::{Copied, moved};
use journal_kb::rusqlite::config::DbConfig;
use journal_kb::rusqlite::{self, Connection};
use journal_kb::{Begin, Guard, Job, Journal, NewBlob, Options, Started};

/// What no row of any of these journals names.
pub(crate) const UNTOUCHED: &str = "untouched";

/// A journal, with its tree.
pub(crate) struct Start {
    /// What lies below the root, each directory before what is in it.
    entries: Vec<Entry>,
    database: Vec<u8>,
    log: Vec<u8>,
}

struct Entry {
    path: PathBuf,
    what: What,
    mode: u32,
    mtime: SystemTime,
    ino: u64,
}

enum What {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
    /// Another name of an earlier file.
    Name(PathBuf),
}

/// All starting states.
pub(crate) fn all() -> &'static [Start] {
    static ALL: OnceLock<Vec<Start>> = OnceLock::new();
    ALL.get_or_init(|| {
        let make: [fn(&Path) -> Kept; 9] =
            [applied, committed, pending, settling, quarantined, guarded, replacing, trees, layer];
        make.iter().map(|make| Start::capture(*make)).collect()
    })
}

/// A directory for what is made, in memory where there is such a place, unless one was named.
pub(crate) fn scratch() -> tempfile::TempDir {
    match std::env::var_os("TMPDIR") {
        Some(_) => tempfile::tempdir(),
        None => tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()),
    }
    .unwrap()
}

/// How journals are opened here: nothing happens in the background by itself, and nobody waits for long.
pub(crate) fn options() -> Options {
    let (never, soon) = (Duration::from_secs(3600), Duration::from_secs(2));
    Journal::options().inline_limit(64).inline_blob(64).settle_after(never).lock_wait(soon).turn_wait(soon).pool_size(1)
}

/// What must stay open while its files are read, as if it had died then.
type Kept = Box<dyn Any>;

/// A tree of a few files, with symlinks that lead out of it.
fn plant(root: &Path) {
    for directory in ["d/e", "f", "untouched/deep"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for file in ["a", "b", "d/x", "d/y", "d/e/z", "f/w", "untouched/one", "untouched/deep/two"] {
        fs::write(root.join(file), format!("the old content of {file}")).unwrap();
    }
    symlink("../outside", root.join("out")).unwrap();
    symlink("../outside/secret", root.join("d/secret")).unwrap();
    symlink("../../outside/secret", root.join("untouched/secret")).unwrap();
}

fn commits(root: &Path) -> Journal {
    plant(root);
    let journal = options().open(root).unwrap();
    let named = |label: &str| Begin::new(label).lock("other").key("a key");
    let mut txn = journal.begin_with(named("the first")).unwrap();
    txn.write("a", "new").unwrap();
    txn.write("d/x", [7; 200]).unwrap();
    txn.write("g/new", "new").unwrap();
    txn.remove("b").unwrap();
    txn.symlink("a", "f/link").unwrap();
    txn.create_dir_all("g/h").unwrap();
    for (topic, key) in [("t", "a"), ("t", "gone"), ("t", "a"), ("t", "bad"), ("other", "a")] {
        txn.send(topic, key, "new").unwrap();
    }
    txn.commit().unwrap();
    journal
        .transact(|txn| {
            txn.write("a", "newer").and_then(|()| txn.write("f/w", "new"))?;
            txn.send("t", "a", "newer").and_then(|()| txn.retire("t", "gone"))
        })
        .unwrap();
    jobs(root, &journal);
    told(root);
    blobs(root, &journal);
    journal
}

/// A run that is over, and one whose session died: both have done something, and set something aside.
fn jobs(root: &Path, journal: &Journal) {
    for job in ["over", "open"] {
        let Started::Running(run) = journal.run_with(Job::new(job).fingerprint("1").tries(1)).unwrap() else { return };
        run.record("one").unwrap();
        run.fail("bad", "it is poison").unwrap();
        run.set_cursor("one").unwrap();
        let _ = if job == "over" { run.finish() } else { run.stop("later") }.unwrap();
    }
    sql(
        root,
        "UPDATE journal_run SET session = (SELECT max(id) FROM journal_session), reason = '' WHERE job = 'open';
         INSERT INTO journal_run_try SELECT id + 1, CAST('two' AS BLOB), 1, 'trying', at_ms, '' FROM journal_run_try
           ORDER BY id DESC LIMIT 1",
    );
}

/// What blobs say: one that stands in the database, and files of which one is in place, one in the stage, and one is to go.
pub(crate) const CONTENTS: [&[u8]; 4] = [b"small", &[1; 100], &[2; 100], &[3; 100]];
/// Those with a name, of which the last three came to nothing.
pub(crate) const NAMED: [&str; 5] = ["small", "placed", "writing", "aborted", "incomplete"];

fn blobs(root: &Path, journal: &Journal) {
    for (n, content) in CONTENTS.iter().enumerate() {
        for name in [None, NAMED[..2].get(n)] {
            let new = name.map_or(NewBlob::new(), |name| NewBlob::new().id(*name));
            let mut blob = journal.blobs().create_with(new).unwrap();
            blob.write_all(content).unwrap();
            blob.seal().unwrap();
        }
    }
    let of = |n: usize| {
        format!("(SELECT name FROM journal_blob_content WHERE hash = x'{}')", blake3::hash(CONTENTS[n]).to_hex())
    };
    // As if it had died with two of them in the stage.
    sql(
        root,
        &format!(
            "UPDATE journal_blob_content SET state = 'placed' WHERE name = {};
             UPDATE journal_blob_content SET state = 'unwanted', direct = 0 WHERE name = {};
             INSERT INTO journal_blob (id, state, session, name, created_ms)
               SELECT 'writing', 'writing', max(id), lower(hex(max(id))) || '-99', 1 FROM journal_session;
             INSERT INTO journal_blob (id, state, written, created_ms, ended_ms)
               VALUES ('aborted', 'aborted', NULL, 1, 2), ('incomplete', 'incomplete', 50, 1, 2)",
            of(1),
            of(3)
        ),
    );
    for entry in fs::read_dir(root.join(".journal/blobs")).unwrap() {
        let path = entry.unwrap().path();
        if fs::read(&path).unwrap() != CONTENTS[1] {
            let staged = path.extension().unwrap().to_owned();
            fs::rename(&path, root.join(".journal/stage").join(staged)).unwrap();
        }
    }
    let session: Vec<u8> = Connection::open(root.join(".journal/journal.db"))
        .unwrap()
        .query_row("SELECT max(id) FROM journal_session", (), |row| row.get(0))
        .unwrap();
    let hex: String = session.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(root.join(".journal/stage").join(format!("{hex}-99")), "as far as it came").unwrap();
}

/// Of the messages one is parked, and one was applied; somebody follows.
fn told(root: &Path) {
    sql(
        root,
        "UPDATE journal_outbox SET state = 'parked', attempts = 20, error = 'no' WHERE key = 'bad';
         INSERT INTO journal_outbox_topic (topic, published, published_ms) VALUES ('t', 3, 1);
         INSERT INTO journal_applied VALUES ('consumer', 't', 'a', 1);
         INSERT INTO journal_follower VALUES ('follower', 1, 1)",
    );
}

fn sql(root: &Path, sql: &str) {
    Connection::open(root.join(".journal/journal.db")).unwrap().execute_batch(sql).unwrap();
}

fn applied(root: &Path) -> Kept {
    Box::new(commits(root))
}

/// As before the apply, in part; somebody wrote to one of the paths.
fn committed(root: &Path) -> Kept {
    let journal = commits(root);
    sql(root, "UPDATE journal_txn SET state = 'committed', applied_mark = NULL");
    fs::remove_file(root.join("g/new")).unwrap();
    fs::write(root.join("d/x"), "by hand").unwrap();
    fs::write(root.join("b"), "by hand").unwrap();
    Box::new(journal)
}

fn pending(root: &Path) -> Kept {
    let journal = commits(root);
    sql(root, "UPDATE journal_txn SET state = 'pending', applied_mark = NULL, attempts = 3 WHERE id = 1");
    fs::remove_file(root.join("f/link")).unwrap();
    fs::create_dir(root.join("f/link")).unwrap();
    Box::new(journal)
}

/// With moves and removed directories, whose rows a trigger has kept from being dropped.
fn settling(root: &Path) -> Kept {
    let journal = commits(root);
    journal.settle().unwrap();
    sql(root, "CREATE TRIGGER stop BEFORE DELETE ON journal_redo BEGIN SELECT RAISE(ABORT, 'kept'); END");
    let done = journal.transact(|txn| {
        txn.rename("d", "moved")?;
        txn.rename("f/w", "g/w")?;
        txn.remove_dir_all("f")?;
        txn.create_dir_all("f/again")
    });
    assert!(done.is_ok(), "{done:?}");
    sql(root, "DROP TRIGGER stop");
    sql(root, "UPDATE journal_txn SET state = 'settling' WHERE structural = 1");
    Box::new(journal)
}

fn quarantined(root: &Path) -> Kept {
    let journal = commits(root);
    sql(root, "UPDATE journal_txn SET state = 'quarantined' WHERE id = 1");
    sql(root, "INSERT INTO journal_area (path) VALUES (x'66'), (x'676f6e65')");
    let mut txn = journal.begin_with(Begin::new("quarantined").lock("third")).unwrap();
    txn.guard_paths(["d/y", "f/absent"]).unwrap();
    fs::write(root.join("d/y"), "changed").unwrap();
    sql(root, "UPDATE journal_guard SET state = 'quarantined', attempts = 5");
    let kept = root.join(".journal/quarantine/1");
    fs::create_dir_all(&kept).unwrap();
    fs::write(kept.join("somebody's"), "kept").unwrap();
    Box::new((journal, txn))
}

fn guarded(root: &Path) -> Kept {
    plant(root);
    fs::write(root.join("growing"), "a line\n").unwrap();
    Connection::open(root.join("rows.db"))
        .unwrap()
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x)")
        .unwrap();
    let journal = options().open(root).unwrap();
    let mut txn = journal.begin("a guard").unwrap();
    txn.guard_paths(["a", "b", "d/e", "d/e/z", "f/absent", "d/secret", "rows.db"]).unwrap();
    txn.guard_with(Guard::append(["growing"])).unwrap();
    fs::write(root.join("a"), "changed").unwrap();
    fs::remove_file(root.join("b")).unwrap();
    fs::write(root.join("f/absent"), "made").unwrap();
    fs::remove_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("growing"), "a line\nand another\n").unwrap();
    Connection::open(root.join("rows.db")).unwrap().execute_batch("INSERT INTO t VALUES (1)").unwrap();
    Box::new((journal, txn))
}

fn replacing(root: &Path) -> Kept {
    plant(root);
    let journal = options().open(root).unwrap();
    journal.transact(|txn| txn.guard_with(Guard::tree("f"))).unwrap();
    let mut txn = journal.begin("a guard").unwrap();
    txn.guard_with(Guard::paths(["a", "d/x", "b"]).replacing()).unwrap();
    for file in ["a", "d/x"] {
        fs::write(root.join("temporary"), "replaced").unwrap();
        fs::rename(root.join("temporary"), root.join(file)).unwrap();
    }
    Box::new((journal, txn))
}

fn trees(root: &Path) -> Kept {
    plant(root);
    let journal = options().open(root).unwrap();
    for change in ["one", "two"] {
        journal
            .transact(|txn| {
                txn.guard_with(Guard::tree("d"))?;
                txn.guard_with(Guard::tree("f").replacing())?;
                fs::write(root.join("d/x"), change).unwrap();
                fs::write(root.join("f/made"), change).unwrap();
                Ok(())
            })
            .unwrap();
    }
    let mut txn = journal.begin("trees").unwrap();
    txn.guard_with(Guard::tree("d")).unwrap();
    txn.guard_with(Guard::tree("f").replacing()).unwrap();
    fs::write(root.join("d/x"), "changed").unwrap();
    fs::rename(root.join("d/e"), root.join("d/elsewhere")).unwrap();
    fs::write(root.join("f/another"), "made").unwrap();
    Box::new((journal, txn))
}

fn layer(root: &Path) -> Kept {
    plant(root);
    let journal = options().open(root).unwrap();
    let mut txn = journal.begin("a layer").unwrap();
    let layer = txn.layer("d", [""; 0]).unwrap();
    fs::write(layer.upper().join("x"), "written").unwrap();
    Box::new((layer, txn, journal))
}

impl Start {
    fn capture(make: fn(&Path) -> Kept) -> Self {
        let home = scratch();
        let root = home.path().join("root");
        fs::create_dir_all(home.path().join("outside")).unwrap();
        fs::create_dir(&root).unwrap();
        let kept = make(&root);
        let state = root.join(".journal");
        let read = |name: &str| fs::read(state.join(name)).unwrap_or_default();
        let (database, log) = (read("journal.db"), read("journal.db-wal"));
        let mut names = HashMap::new();
        let mut entries = Vec::new();
        for entry in walkdir::WalkDir::new(&root).min_depth(1).sort_by_file_name() {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(&root).unwrap().to_owned();
            if path.to_str().unwrap().starts_with(".journal/journal.db") {
                continue;
            }
            let meta = entry.path().symlink_metadata().unwrap();
            let what = if meta.is_dir() {
                What::Directory
            } else if meta.is_symlink() {
                What::Link(fs::read_link(entry.path()).unwrap())
            } else if let Some(first) = names.get(&meta.ino()) {
                What::Name(PathBuf::clone(first))
            } else {
                names.insert(meta.ino(), path.clone());
                What::File(fs::read(entry.path()).unwrap())
            };
            let mtime = meta.modified().unwrap();
            entries.push(Entry { path, what, mode: meta.permissions().mode(), mtime, ino: meta.ino() });
        }
        drop(kept);
        Self { entries, database, log }
    }

    /// Lays the journal and its tree out below `root`, and opens its database.
    pub(crate) fn lay(&self, root: &Path) -> Connection {
        fs::create_dir_all(root).unwrap();
        for entry in &self.entries {
            let path = root.join(&entry.path);
            match &entry.what {
                What::Directory => fs::create_dir(&path).unwrap(),
                What::File(bytes) => fs::write(&path, bytes).unwrap(),
                What::Link(target) => symlink(target, &path).unwrap(),
                What::Name(first) => fs::hard_link(root.join(first), &path).unwrap(),
            }
        }
        // From the bottom up, or what is made in a directory would move its time on.
        for entry in self.entries.iter().rev().filter(|entry| !matches!(entry.what, What::Link(_))) {
            let path = root.join(&entry.path);
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)).unwrap();
            fs::File::open(&path).and_then(|file| file.set_modified(entry.mtime)).unwrap();
        }
        let state = root.join(".journal");
        fs::write(state.join("journal.db"), &self.database).unwrap();
        if !self.log.is_empty() {
            fs::write(state.join("journal.db-wal"), &self.log).unwrap();
        }
        let mut copies = HashMap::new();
        for entry in &self.entries {
            let meta = root.join(&entry.path).symlink_metadata().unwrap();
            let since = |time: std::io::Result<SystemTime>| {
                let since =
                    time.ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
                (since.as_secs() as i64, since.subsec_nanos())
            };
            let ctime = (meta.ctime(), meta.ctime_nsec() as u32);
            copies.insert(entry.ino, Copied { ino: meta.ino(), ctime, btime: since(meta.created()) });
        }
        let database = Connection::open(state.join("journal.db")).unwrap();
        // What stands in the log is to stay there.
        database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        bring(&database, &copies).unwrap();
        database
    }
}

/// Has the journal not know that it was copied.
pub(crate) fn make_at_home(database: &Connection) {
    database.execute("UPDATE journal_meta SET home = NULL", ()).unwrap();
}

/// Brings the records to say of the copy what they said of the original.
fn bring(database: &Connection, copies: &HashMap<u64, Copied>) -> rusqlite::Result<()> {
    database.execute_batch("PRAGMA synchronous = OFF; BEGIN")?;
    for (table, column) in [
        ("journal_redo", "record"),
        ("journal_preimage", "record"),
        ("journal_tree_part", "record"),
        ("journal_txn", "applied_mark"),
        ("journal_guard", "mark"),
    ] {
        let mut rows = database.prepare(&format!("SELECT id, {column} FROM {table} WHERE {column} IS NOT NULL"))?;
        let records = rows.query_map((), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        for (id, record) in records.collect::<Result<Vec<_>, _>>()? {
            let record = moved(table, &record, copies).expect("what the library wrote can be read");
            database.execute(&format!("UPDATE {table} SET {column} = ?2 WHERE id = ?1"), (id, record))?;
        }
    }
    let mut directories = database.prepare("SELECT id, ino FROM journal_tree_dir")?;
    let rows = directories.query_map((), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
    for (id, ino) in rows.collect::<Result<Vec<_>, _>>()? {
        let Some(copied) = copies.get(&(ino as u64)) else { continue };
        database.execute(
            "UPDATE journal_tree_dir SET ino = ?2, ctime_s = ?3, ctime_ns = ?4 WHERE id = ?1",
            (id, copied.ino as i64, copied.ctime.0, copied.ctime.1),
        )?;
    }
    database.execute_batch("COMMIT")
}
