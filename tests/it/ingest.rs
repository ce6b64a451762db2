//! The main job, run as its users run it: the real `ingest` over real documents, killed wherever it stands.
//!
//! The library promises that after SIGKILL at any instant every document is there whole, in the tree, in the rows, in
//! the index and for search, or not at all. [`killed_anywhere_it_ends_like_a_run_nobody_disturbed`] kills `ingest add`
//! at random instants (the first milliseconds, in which it recovers what the kill before left, get their share), lets
//! `ingest check` compare everything after each, and in the end compares the whole with an undisturbed run.

mod stopped;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use journal_kb::rusqlite::Connection;
use journal_kb::rusqlite::types::Value;
use walkdir::WalkDir;

use crate::corpus;

/// No child of these tests works this long: one that does hangs.
const WATCHDOG: Duration = Duration::from_secs(120);

/// The real `ingest` at work.
struct Running {
    command: String,
    child: Child,
    stdout: File,
    stderr: File,
}

/// What it came to.
#[derive(Debug)]
struct Ended {
    command: String,
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Running {
    fn start(args: &[&OsStr]) -> Running {
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut command = Command::new(program());
        command.args(args).stdin(Stdio::null());
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        Running { command: format!("{args:?}"), child: command.spawn().unwrap(), stdout, stderr }
    }

    /// Waits for its end until `deadline`; `None` when it still runs then.
    fn wait(&mut self, deadline: Instant) -> Option<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            sleep(left.min(Duration::from_millis(2)));
        }
    }

    fn end(mut self) -> Ended {
        let Some(status) = self.wait(Instant::now() + WATCHDOG) else {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let Ended { command, stdout, stderr, .. } = self.report(ExitStatus::default());
            panic!("ingest {command} hangs:\n{stdout}{stderr}");
        };
        self.report(status)
    }

    /// Kills it after `delay`; what it came to when it was done before.
    fn kill_after(mut self, delay: Duration) -> Result<(), Ended> {
        let early = self.wait(Instant::now() + delay);
        let status = early.unwrap_or_else(|| {
            self.child.kill().unwrap();
            self.child.wait().unwrap()
        });
        if status.signal() == Some(9) { Ok(()) } else { Err(self.report(status)) }
    }

    fn report(mut self, status: ExitStatus) -> Ended {
        let text = |file: &mut File| {
            let mut bytes = Vec::new();
            file.rewind().and_then(|()| file.read_to_end(&mut bytes)).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (text(&mut self.stdout), text(&mut self.stderr));
        Ended { command: self.command, status, stdout, stderr }
    }
}

impl Ended {
    /// Asserts how it ended; its output.
    #[track_caller]
    fn exit(self, code: i32) -> String {
        let Ended { command, status, stdout, stderr } = self;
        assert_eq!(status.code(), Some(code), "ingest {command}: {status}\n{stdout}{stderr}");
        stdout + &stderr
    }
}

/// The example, which `cargo test` builds beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/ingest");
    assert!(program.exists(), "{} is not there: run `cargo build --example ingest` first", program.display());
    program
}

fn start_add(docs: &Path, kb: &Path) -> Running {
    start_add_with(docs, kb, &[])
}

fn start_add_with(docs: &Path, kb: &Path, options: &[&str]) -> Running {
    let args = ["add".as_ref(), docs.as_os_str(), "--kb".as_ref(), kb.as_os_str()];
    Running::start(&[&args[..], &options.iter().map(OsStr::new).collect::<Vec<_>>()].concat())
}

fn add(docs: &Path, kb: &Path) -> Ended {
    start_add(docs, kb).end()
}

fn start_check(kb: &Path) -> Running {
    Running::start(&["check".as_ref(), "--kb".as_ref(), kb.as_ref()])
}

fn check(kb: &Path) -> Ended {
    start_check(kb).end()
}

fn start_search(words: &[&str], kb: &Path) -> Running {
    let words = words.iter().map(OsStr::new);
    let args: Vec<_> =
        ["search".as_ref(), "--kb".as_ref(), kb.as_ref(), "--".as_ref()].into_iter().chain(words).collect();
    Running::start(&args)
}

/// All that a knowledge base is: its tree byte for byte, its tables row for row.
#[derive(PartialEq)]
struct State {
    tree: BTreeMap<PathBuf, (u32, Vec<u8>)>,
    rows: BTreeMap<String, Vec<Vec<Value>>>,
}

impl State {
    fn of(kb: &Path) -> State {
        let walk = WalkDir::new(kb).min_depth(1).into_iter();
        let walk = walk.filter_entry(|entry| entry.depth() != 1 || entry.file_name() != ".journal");
        let tree = walk.map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            let content = if meta.is_dir() {
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(entry.path()).unwrap()
            };
            let path = entry.path().strip_prefix(kb).unwrap().to_owned();
            (path, (meta.permissions().mode(), content)) // the mode says which type it is
        });

        let db = database(kb);
        let strings = |sql: &str| {
            let mut statement = db.prepare(sql).unwrap();
            let found = statement.query_map((), |row| row.get::<_, String>(0)).unwrap();
            found.map(Result::unwrap).collect::<Vec<_>>()
        };
        assert_eq!(strings("PRAGMA integrity_check"), ["ok"]);
        db.execute("INSERT INTO document_fts (document_fts) VALUES ('integrity-check')", ()).unwrap();
        // The shadow tables of the full-text index are among them: it was built in the same steps, or it differs.
        let tables = strings("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'journal_*'");
        let rows = tables.into_iter().map(|table| {
            let mut statement = db.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap();
            let columns = statement.column_count();
            let rows = statement.query_map((), |row| (0..columns).map(|i| row.get(i)).collect()).unwrap();
            let rows = rows.map(Result::unwrap).collect();
            (table, rows)
        });
        State { tree: tree.collect(), rows: rows.collect() }
    }

    #[track_caller]
    fn assert_is(&self, wanted: &State) {
        let paths = self.tree.keys().chain(wanted.tree.keys());
        let differ: BTreeSet<_> = paths.filter(|path| self.tree.get(*path) != wanted.tree.get(*path)).collect();
        let shown = |path| {
            let shown = |state: &State| state.tree.get(path).map(|(mode, bytes)| (format!("{mode:o}"), short(bytes)));
            format!("{path:?} is {:?}, not {:?}", shown(self), shown(wanted))
        };
        let differ: Vec<_> = differ.into_iter().map(shown).collect();
        assert!(differ.is_empty(), "these paths differ:\n{}", differ.join("\n"));
        assert_eq!(self.rows.keys().collect::<Vec<_>>(), wanted.rows.keys().collect::<Vec<_>>());
        for (table, rows) in &wanted.rows {
            let own = &self.rows[table];
            let first = own.iter().zip(rows).position(|(own, row)| own != row).unwrap_or(own.len().min(rows.len()));
            let (count, wanted) = (own.len(), rows.len());
            let shown = |rows: &[Vec<Value>]| rows.get(first).map(|row| short(format!("{row:?}").as_bytes()));
            let what = || format!("{:?}, not {:?}", shown(own), shown(rows));
            assert!(own == rows, "{table} has {count} rows, not {wanted}, and row {first} is {}", what());
        }
        assert!(self == wanted);
    }
}

/// The length of something, and how it begins.
fn short(bytes: &[u8]) -> String {
    format!("{} bytes: {}", bytes.len(), String::from_utf8_lossy(&bytes[..bytes.len().min(300)]))
}

fn database(kb: &Path) -> Connection {
    Connection::open(kb.join(".journal/journal.db")).unwrap()
}

fn copy(from: &Path, to: &Path) {
    for entry in WalkDir::new(from) {
        let entry = entry.unwrap();
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            fs::create_dir(target).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The first file below `dir` by name.
fn first(dir: &Path) -> PathBuf {
    let mut files = WalkDir::new(dir).sort_by_file_name().into_iter().map(Result::unwrap);
    files.find(|entry| entry.file_type().is_file()).unwrap().into_path()
}

#[test]
fn documents_are_added_once_found_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (docs, kb) = (dir.path().join("docs"), dir.path().join("kb"));
    assert_eq!(corpus::documents(60, &docs), 60);

    assert!(add(&docs, &kb).exit(0).contains(" 0 failed"));
    let state = State::of(&kb);
    let said = check(&kb).exit(0);
    assert!(said.contains(&format!("{} documents", state.rows["document"].len())), "{said}");
    assert!(said.contains("agree"), "{said}");

    let said = add(&docs, &kb).exit(0);
    assert_eq!(said, "0 added, 60 skipped, 0 failed\n"); // and nothing of a progress bar: this is no terminal
    State::of(&kb).assert_is(&state);

    let said = start_search(&["license"], &kb).end().exit(0);
    assert!(said.contains("pages/"), "{said}");
    assert!(said.to_lowercase().contains("[licens"), "{said}");
    for odd in [&["\"license\" OR", "NEAR(", "a*b", "-"][..], &["xyzzyplugh"], &["!!!"], &["'"], &["\""]] {
        assert!(start_search(odd, &kb).end().exit(1).contains("nothing found"), "{odd:?}");
    }
}

#[test]
fn a_check_finds_what_was_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (docs, kb) = (dir.path().join("docs"), dir.path().join("kb"));
    corpus::documents(20, &docs);
    add(&docs, &kb).exit(0);

    type Damage = fn(&Path);
    let damages: [(&str, Damage); 11] = [
        ("missing", |kb| fs::remove_file(first(&kb.join("pages"))).unwrap()),
        ("missing", |kb| fs::remove_file(first(&kb.join("raw"))).unwrap()),
        ("missing", |kb| fs::remove_file(kb.join("index.md")).unwrap()),
        ("not what the rows say", |kb| fs::write(first(&kb.join("pages")), "other").unwrap()),
        ("not what the rows say", |kb| fs::write(first(&kb.join("raw")), "other").unwrap()),
        ("not what the rows say", |kb| fs::write(first(&kb.join("index")), "other").unwrap()),
        ("pages/stray.md: no row", |kb| fs::write(kb.join("pages/stray.md"), "stray").unwrap()),
        ("raw/zz: no row", |kb| fs::create_dir(kb.join("raw/zz")).unwrap()),
        ("no row knows it", |kb| {
            let page = first(&kb.join("pages"));
            fs::rename(&page, kb.join("elsewhere.md")).unwrap();
            symlink("../elsewhere.md", page).unwrap();
        }),
        ("no row knows it", |kb| _ = database(kb).execute("DELETE FROM document WHERE id = 3", ()).unwrap()),
        ("search does not know it", |kb| {
            _ = database(kb).execute("DELETE FROM document_fts WHERE rowid = 3", ()).unwrap()
        }),
    ];
    for (n, (finding, damage)) in damages.into_iter().enumerate() {
        let damaged = dir.path().join(format!("damaged-{n}"));
        copy(&kb, &damaged);
        check(&damaged).exit(0);
        damage(&damaged);
        let said = check(&damaged).exit(1);
        assert!(said.contains(finding), "damage {n}: {said}");
    }
}

#[test]
fn what_is_no_knowledge_base_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    for said in [check(dir.path()).exit(2), start_search(&["word"], dir.path()).end().exit(2)] {
        assert!(said.starts_with("ingest: "), "{said}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "looking made something");
    check(&dir.path().join("absent")).exit(2);
    add(&dir.path().join("absent"), &dir.path().join("kb")).exit(2);
    Running::start(&["add".as_ref()]).end().exit(2);
}

#[test]
fn a_bad_document_does_not_end_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (docs, kb) = (dir.path().join("docs"), dir.path().join("kb"));
    let large = "A line of a large document.\n".repeat(1 << 20); // 28 MiB, more than a page shows
    for (name, bytes) in [
        ("1/same.md", &b"\xef\xbb\xbf# Same *title* \r\n\r\nfirst  \r\n\r\n\r\n"[..]),
        ("2/same.md", b"Same title\n==========\nsecond"),
        ("3/copy of 1.md", b"\xef\xbb\xbf# Same *title* \r\n\r\nfirst  \r\n\r\n\r\n"),
        ("bytes.TXT", b"caf\xe9"),
        ("deep.html", "<div>".repeat(1000).as_bytes()),
        ("empty.md", b""),
        ("large.txt", large.as_bytes()),
        ("page.HTM", b"<title>Tea &amp; cake</title><script>no()</script><p>Two<br>lines"),
        ("picture.png", b"no document"),
    ] {
        fs::create_dir_all(docs.join(name).parent().unwrap()).unwrap();
        fs::write(docs.join(name), bytes).unwrap();
    }
    let said = add(&docs, &kb).exit(1);
    assert!(said.contains("5 added, 2 skipped, 1 failed"), "{said}");
    assert!(said.contains("deep.html: failed: "), "{said}");
    assert!(said.contains("empty.md: skipped: "), "{said}");
    check(&kb).exit(0);

    let page = |slug: &str| {
        let pages = WalkDir::new(kb.join("pages")).into_iter().map(Result::unwrap);
        let mut pages = pages.filter(|page| page.file_name().to_str().unwrap().starts_with(slug));
        fs::read_to_string(pages.next().unwrap_or_else(|| panic!("no page {slug}")).path()).unwrap()
    };
    assert!(page("same-title-").starts_with("---\ntitle: \"Same title\"\nsource: \""));
    assert!(page("tea-cake-").ends_with("\n---\n\n# Tea & cake\n\nTwo\\\nlines\n"), "{}", page("tea-cake-"));
    assert!(page("bytes-").contains("note: \"not valid UTF-8"), "{}", page("bytes-"));
    assert!(page("large-").len() < large.len());
    assert_eq!(fs::read_dir(kb.join("pages")).unwrap().count(), 5);
    assert!(fs::read_to_string(kb.join("index/s.md")).unwrap().contains("[Same title](../pages/same-title-"));

    fs::remove_file(docs.join("deep.html")).unwrap();
    assert!(add(&docs, &kb).exit(0).contains("0 added, 7 skipped, 0 failed"));
}

#[test]
fn a_knowledge_base_inside_what_is_added_does_not_eat_itself() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("note.md"), "# A note\n").unwrap();
    for kb in [dir.path().to_owned(), dir.path().join("kb")] {
        assert!(add(dir.path(), &kb).exit(0).contains("1 added, 0 skipped"), "{}", kb.display());
        assert!(add(dir.path(), &kb).exit(0).contains("0 added, 1 skipped"), "{}", kb.display());
        check(&kb).exit(0);
        if kb == dir.path() {
            for own in ["raw", "pages", "index", "index.md", ".journal"] {
                let path = kb.join(own);
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
            }
        }
    }
}

#[test]
fn killed_anywhere_it_ends_like_a_run_nobody_disturbed() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let kills = number("JOURNAL_KB_KILLS").unwrap_or(200);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let mut random = Random(number("JOURNAL_KB_SEED").unwrap_or(now.as_nanos() as u64));
    println!("JOURNAL_KB_SEED={} JOURNAL_KB_KILLS={kills}", random.0);

    let dir = tempfile::tempdir().unwrap();
    let docs = dir.path().join("docs");
    let found = corpus::documents(1050, &docs);
    assert!(found >= 1000, "this machine has only {found} real documents");

    let undisturbed = dir.path().join("undisturbed");
    let begun = Instant::now();
    add(&docs, &undisturbed).exit(0);
    let work = begun.elapsed();
    check(&undisturbed).exit(0);
    let wanted = State::of(&undisturbed);
    let begun = Instant::now();
    add(&docs, &undisturbed).exit(0);
    let scan = begun.elapsed(); // what it takes to see that all is there
    let total = wanted.rows["document"].len();
    println!("{found} documents, {total} of them different: {work:?} to add, {scan:?} to find them added");

    // Three of ten kills come early, in opening, recovery and scan; the others each when about one part in
    // 0.7 × `kills` of the work is done.
    let step = work.mul_f64(2.0 / (0.7 * kills.max(1) as f64));
    let (mut killed, mut openings, mut round, mut done) = (0, 0, 0, 0);
    let mut kb = dir.path().join("killed-0");
    while killed < kills {
        let delay = match random.below(10) {
            0..3 => random.up_to(scan),
            _ => random.up_to(step),
        };
        let ended = start_killed(&docs, &kb).kill_after(delay);
        // Shown when something fails.
        println!("{}: {killed} kills, then after {delay:?} of {done} documents: {ended:?}", kb.display());
        if let Err(ended) = ended {
            ended.exit(0);
            check(&kb).exit(0);
            State::of(&kb).assert_is(&wanted);
            round += 1;
            done = 0;
            kb = dir.path().join(format!("killed-{round}"));
            continue;
        }
        killed += 1;
        if !kb.join(".journal/journal.db").exists() {
            continue; // it had not even begun
        }
        if random.below(4) == 0 {
            // Whoever opens a knowledge base recovers it, and may be killed in that too.
            let reader = if random.below(2) == 0 { start_check(&kb) } else { start_search(&["the"], &kb) };
            let ended = reader.kill_after(random.up_to(Duration::from_millis(20)));
            println!("opened meanwhile: {ended:?}");
            openings += u64::from(ended.is_ok());
        }
        let said = check(&kb).exit(0);
        let before = std::mem::replace(&mut done, said.split(' ').next().unwrap().parse::<usize>().unwrap());
        assert!(before <= done, "{before} documents became {done}");
    }
    let aside = kb.join(".journal/quarantine");
    assert_eq!(WalkDir::new(aside).min_depth(1).into_iter().count(), 0, "set aside, though nobody worked by hand");
    println!("killed {killed} times at work and {openings} times opening, {round} times to the end, then at {done}");
    start_killed(&docs, &kb).end().exit(0);
    check(&kb).exit(0);
    State::of(&kb).assert_is(&wanted);
}

/// A document that was at work three times when somebody killed the process is none that kills it.
fn start_killed(docs: &Path, kb: &Path) -> Running {
    start_add_with(docs, kb, &["--tries", "1000000"])
}

/// SplitMix64: all that is needed of chance here.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        Duration::from_nanos(self.below(longest.as_nanos() as u64 + 1))
    }
}
