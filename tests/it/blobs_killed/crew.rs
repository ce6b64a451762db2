//! Processes that write blobs, and are killed; and such as wait for these, by name or by a record.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use journal_kb::{Begin, BlobError, BlobId, BlobReader, Error, Journal, NewBlob, Result, Rows};
use rustix::process::{Pid, Signal, kill_process};

use super::LONG;
use crate::blobs::bytes;
use crate::crash_points::open;
use crate::guard_model::Random;
use crate::support;

const ROLE: &str = "JOURNAL_KB_TEST_BLOBS";
/// In the database, in one piece, in several.
const SIZES: [usize; 5] = [100, 20_000, 80_000, 300_000, 700_000];
/// Threads of a writer. There is a record for each, which names what is newest.
const THREADS: usize = 2;
/// So many blobs a reader waits for at once.
const AT_ONCE: usize = 6;
/// Who waits by name.
const READERS: u32 = 2;

/// Writers, readers, their journal, and what they say.
pub(super) struct Crew {
    home: tempfile::TempDir,
    writers: Vec<Member>,
    readers: Vec<Member>,
    /// Numbers are given out once.
    numbers: u32,
}

struct Member {
    who: u32,
    child: Child,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Crew {
    /// Has so many writers begin their work, with others that wait for what they write.
    pub(super) fn start(writers: usize) -> Self {
        let home = support::directory();
        let mut crew = Self { home, writers: Vec::new(), readers: Vec::new(), numbers: 0 };
        fs::create_dir(crew.root()).unwrap();
        open(&crew.root()).close().unwrap();
        Log::beside(&crew.root()).say("begins");
        crew.readers = (0..READERS).map(|_| crew.spawn("reads")).collect();
        let follow = (0..THREADS).map(|slot| crew.spawn(&format!("follows-{slot}"))).collect::<Vec<_>>();
        crew.readers.extend(follow);
        crew.writers = (0..writers).map(|_| crew.spawn("writes")).collect();
        crew
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("root")
    }

    fn spawn(&mut self, role: &str) -> Member {
        self.numbers += 1;
        let who = self.numbers;
        let mut command = support::child("blobs_killed::crew::process", &self.root());
        command.env(ROLE, format!("{role} {who}"));
        let said = File::create(self.said(who)).unwrap();
        command.stdin(Stdio::piped()).stdout(said.try_clone().unwrap()).stderr(said);
        Member { who, child: command.spawn().unwrap() }
    }

    fn said(&self, who: u32) -> PathBuf {
        self.home.path().join(format!("said.{who}"))
    }

    /// Waits until whoever has this place has begun so many blobs; it has to live until then.
    pub(super) fn waits_for_blobs(&mut self, place: usize, blobs: usize) {
        let log = Log::beside(&self.root());
        let own = format!("begun {}-", self.writers[place].who);
        let (mut seen, mut begun) = (0, 0);
        loop {
            begun += log.since(&mut seen).iter().filter(|line| line.starts_with(&own)).count();
            if begun >= blobs {
                return;
            }
            for Member { who, child } in self.writers.iter_mut().chain(&mut self.readers) {
                if let Some(status) = child.try_wait().unwrap() {
                    let said = fs::read_to_string(self.home.path().join(format!("said.{who}"))).unwrap();
                    panic!("{who} ended: {status}: {said}");
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whoever has this place does nothing for that time.
    pub(super) fn stops(&self, place: usize, time: Duration) {
        let pid = Pid::from_child(&self.writers[place].child);
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::sleep(time);
        kill_process(pid, Signal::CONT).unwrap();
    }

    /// Kills who has this place, and another one takes it.
    pub(super) fn kills(&mut self, place: usize) {
        Log::beside(&self.root()).say(&format!("ended {}", self.writers[place].who));
        self.writers[place].child.kill().unwrap();
        self.writers[place].child.wait().unwrap();
        self.writers[place] = self.spawn("writes");
    }

    /// Has everybody end in order, readers once they have seen everything. The journal, and what was said.
    pub(super) fn ends(&mut self) -> (PathBuf, Vec<String>) {
        let writers = std::mem::take(&mut self.writers);
        self.end(writers);
        // Who follows a record whose blob came to nothing waits for another one.
        let (root, log) = (self.root(), Log::beside(&self.root()));
        let journal = open(&root);
        let mut random = Random(1);
        (0..THREADS)
            .for_each(|slot| write(&journal, &log, &mut random, &format!("last-{slot}"), slot, Ends::Sealed).unwrap());
        let readers = std::mem::take(&mut self.readers);
        self.end(readers);
        journal.close().unwrap();
        (root, log.since(&mut 0))
    }

    fn end(&self, mut members: Vec<Member>) {
        members.iter_mut().for_each(|member| drop(member.child.stdin.take()));
        for mut member in members {
            let status = member.child.wait().unwrap();
            assert!(status.success(), "{status}: {}", fs::read_to_string(self.said(member.who)).unwrap());
        }
    }
}

/// What everybody says, in its order.
struct Log(PathBuf);

impl Log {
    fn beside(root: &Path) -> Self {
        Self(root.with_extension("log"))
    }

    fn say(&self, line: &str) {
        let mut log = File::options().create(true).append(true).open(&self.0).unwrap();
        log.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// What was said since so many bytes of it were read: whole lines only.
    fn since(&self, seen: &mut u64) -> Vec<String> {
        let (mut log, mut new) = (File::open(&self.0).unwrap(), String::new());
        log.seek(SeekFrom::Start(*seen)).unwrap();
        log.read_to_string(&mut new).unwrap();
        let whole = new.rfind('\n').map_or("", |end| &new[..=end]);
        *seen += whole.len() as u64;
        whole.lines().map(str::to_owned).collect()
    }
}

/// Not a test: what the others start.
#[test]
fn process() {
    let Some(root) = support::child_root() else { return };
    let role = std::env::var(ROLE).unwrap();
    let (role, who) = role.split_once(' ').unwrap();
    let (journal, log, over) = (open(&root), Log::beside(&root), AtomicBool::new(false));
    std::thread::scope(|scope| {
        match role {
            "writes" => (0..THREADS).for_each(|slot| {
                let (journal, log, over) = (&journal, &log, &over);
                drop(scope.spawn(move || writes(journal, log, who, slot, over)));
            }),
            "reads" => drop(scope.spawn(|| reads(&journal, &log, who, &over))),
            slot => drop(scope.spawn(|| follows(&journal, &log, slot.split_once('-').unwrap().1, &over))),
        }
        let _ = std::io::stdin().read(&mut [0]);
        over.store(true, Ordering::SeqCst);
    });
    journal.close().unwrap();
}

/// What becomes of a blob.
#[derive(Clone, Copy)]
enum Ends {
    Sealed,
    WithARow,
    Aborted,
    Dropped,
}

fn writes(journal: &Journal, log: &Log, who: &str, slot: usize, over: &AtomicBool) {
    let mut random = Random(who.parse::<u64>().unwrap() << 8 | slot as u64 | 1 << 40);
    let mut sealed = Vec::new();
    for n in 0.. {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let id = format!("{who}-{slot}-{n}");
        let ends = match random.below(10) {
            0 => Ends::Aborted,
            1 => Ends::Dropped,
            2..5 => Ends::WithARow,
            _ => Ends::Sealed,
        };
        write(journal, log, &mut random, &id, slot, ends).unwrap();
        if let Ends::Sealed | Ends::WithARow = ends {
            sealed.push(id);
        }
        if sealed.len() > 3 && random.below(2) == 0 {
            let id = sealed.remove(random.below(sealed.len()));
            log.say(&format!("removing {id}"));
            journal.blobs().remove(&id).unwrap();
            log.say(&format!("removed {id}"));
        }
    }
}

/// Writes a blob in pieces, once a record names it.
fn write(journal: &Journal, log: &Log, random: &mut Random, id: &str, slot: usize, ends: Ends) -> Result<()> {
    let (seed, size) = (random.below(4), SIZES[random.below(SIZES.len())]);
    let content = bytes(seed as u8, size);
    let mut blob = journal.blobs().create_with(NewBlob::new().id(id))?;
    log.say(&format!("begun {id} {seed} {size}"));
    journal.write(|rows| rows.execute("INSERT OR REPLACE INTO doc VALUES (?1, ?2)", (format!("newest-{slot}"), id)))?;
    for piece in content.chunks(1 + size / 4) {
        blob.write_all(piece).map_err(Error::caller)?;
        std::thread::sleep(Duration::from_micros(random.below(2_000) as u64));
    }
    let word = match ends {
        Ends::Sealed => blob.seal().map(|_| "sealed")?,
        Ends::WithARow => {
            let mut txn = journal.begin_with(Begin::new("").lock(format!("writer-{slot}")))?;
            txn.seal(blob)?;
            let row = format!("told {id}");
            txn.sql(move |rows| rows.execute("INSERT INTO doc VALUES (?1, '')", [&row]).map(drop))?;
            txn.commit().map(|_| "sealed")?
        }
        Ends::Aborted => blob.abort().map(|()| "aborted")?,
        Ends::Dropped => {
            drop(blob);
            "aborted"
        }
    };
    log.say(&format!("{word} {id}"));
    Ok(())
}

/// What a blob says, by what its writer has said of it.
fn content(line: &str) -> Option<(&str, Vec<u8>)> {
    let mut words = line.strip_prefix("begun ")?.split(' ');
    let (id, seed, size) = (words.next()?, words.next()?, words.next()?);
    Some((id, bytes(seed.parse().ok()?, size.parse().ok()?)))
}

/// Opens every blob that is begun, several at once, and says what came of it.
fn reads(journal: &Journal, log: &Log, who: &str, over: &AtomicBool) {
    let (hand, comes) = mpsc::channel::<String>();
    let comes = Mutex::new(comes);
    std::thread::scope(|scope| {
        for n in 0..AT_ONCE {
            let comes = &comes;
            scope.spawn(move || {
                loop {
                    let Ok(line) = comes.lock().unwrap().recv() else { return };
                    let (id, content) = content(&line).unwrap();
                    log.say(&format!("read {who} {id} {}", read(journal, log, who, id, &content, n % 2 == 0)));
                }
            });
        }
        let mut seen = 0;
        loop {
            let last = over.load(Ordering::SeqCst);
            let begun = log.since(&mut seen).into_iter().filter(|line| content(line).is_some());
            begun.for_each(|line| hand.send(line).unwrap());
            if last {
                return drop(hand);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

fn read(journal: &Journal, log: &Log, who: &str, id: &str, content: &[u8], verify: bool) -> String {
    let waits = (Log(log.0.clone()), format!("waits {who} {id}"));
    let mut is_first = true;
    let told = move |_| {
        if std::mem::take(&mut is_first) {
            waits.0.say(&waits.1);
        }
    };
    match journal.blobs().opener().wait(LONG).verify(verify).on_wait(told).open(id) {
        Ok(blob) => whole(blob, content),
        Err(Error::Blob(BlobError::Incomplete { written, .. })) => format!("incomplete {written}"),
        Err(Error::Blob(BlobError::Aborted { .. })) => "aborted".to_owned(),
        Err(Error::Blob(BlobError::NotFound { .. })) => "gone".to_owned(),
        Err(error) => format!("refused: {error}"),
    }
}

fn whole(mut blob: BlobReader, content: &[u8]) -> String {
    let mut bytes = Vec::new();
    match blob.read_to_end(&mut bytes) {
        Ok(_) if bytes == content => "whole".to_owned(),
        Ok(_) => format!("{} bytes, and not those of {}", bytes.len(), content.len()),
        Err(error) => format!("unreadable: {error}"),
    }
}

/// Opens what a record names, again and again, whoever has died of it.
fn follows(journal: &Journal, log: &Log, slot: &str, over: &AtomicBool) {
    let record = format!("newest-{slot}");
    let (mut seen, mut contents) = (0, HashMap::new());
    loop {
        let last = over.load(Ordering::SeqCst);
        let sql = "SELECT title FROM doc WHERE path = ?1";
        let named = |rows: &Rows<'_>| rows.query_opt(sql, [&record], |row| row.get::<_, BlobId>(0));
        let answer = match journal.blobs().opener().open_with(named, LONG) {
            Ok(blob) => {
                let begun = log.since(&mut seen).into_iter().filter(|line| line.starts_with("begun "));
                contents.extend(begun.map(|line| (line.split(' ').nth(1).unwrap().to_owned(), line)));
                let id = blob.id().to_string();
                format!("{id} {}", whole(blob, &content(&contents[&id]).unwrap().1))
            }
            Err(error) => format!("- {error}"),
        };
        log.say(&format!("followed {slot} {answer}"));
        if last {
            return;
        }
    }
}
