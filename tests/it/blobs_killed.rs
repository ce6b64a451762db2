//! Blobs whose writers die, or stop, while readers in other processes wait for them: each gets whole bytes or the right error,
//! none waits for ever, and none sees part of one.
//!
//! Everybody ([`crew`]) says in one log what they are about to do and what came of it; in the end that is held against the rows
//! ([`promise`]). `JOURNAL_KB_BLOBS_SIZE` says how many writers there are, and how often one is killed: `3x30`.

mod crew;
pub(crate) mod judge;
mod promise;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use journal_kb::{BlobError, Error, Journal};
use rustix::process::{Pid, Signal, kill_process};

use self::crew::Crew;
use crate::blobs::bytes;
use crate::crash_points::strace;
use crate::guard_model::Random;
use crate::skip::skip;
use crate::support::{Tree, child, wait_for_word};
use crate::torment::Watchdog;

/// Many times what any of these takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(240);
/// Nobody waits that long.
const LONG: Duration = Duration::from_secs(200);

#[test]
fn who_waits_gets_whole_bytes_or_the_right_error_whoever_is_killed() {
    let size = std::env::var("JOURNAL_KB_BLOBS_SIZE").unwrap_or_else(|_| "3x30".to_owned());
    let (writers, kills) = size.split_once('x').unwrap();
    let (writers, kills): (usize, usize) = (writers.parse().unwrap(), kills.parse().unwrap());
    let _watchdog = Watchdog::new("waiting for blobs", LIMIT * kills.div_ceil(30) as u32);
    let mut crew = Crew::start(writers);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for _ in 0..kills {
        let place = random.below(writers);
        crew.waits_for_blobs(place, 1 + random.below(4));
        std::thread::sleep(Duration::from_micros(random.below(8_000) as u64));
        if random.below(4) == 0 {
            crew.stops(place, Duration::from_millis(random.below(30) as u64));
        }
        crew.kills(place);
    }
    let (root, log) = crew.ends();
    let (met, wrong) = promise::judge(&root, &log);
    assert!(wrong.is_empty(), "{} faults\n{}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
    println!("{kills} kills: {met:?}");
    // Had nobody waited for what came to nothing, and for what was sealed, little would be shown.
    assert!(met.whole_after_waiting > 0 && met.incomplete_after_waiting > 0 && met.incomplete > 0 && met.followed > 0);
    crate::figures::add("processes killed at a random moment that write blobs, with others waiting for them", kills);
    crate::figures::add("blobs opened among those, each whole or refused for the right reason", met.answers);
}

fn start_writer(tree: &Tree) -> Child {
    let mut writer = child("blobs::writer", tree.root());
    let mut writer = writer.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_word(&mut writer, "written");
    writer
}

fn tell(writer: &mut Child, word: &str) {
    writeln!(writer.stdin.take().unwrap(), "{word}").unwrap();
}

/// What [`start_writer`] writes.
fn theirs() -> Vec<u8> {
    [bytes(6, 300_000), bytes(7, 1000)].concat()
}

#[test]
fn a_removal_that_is_not_committed_removes_nothing() {
    let tree = Tree::new();
    let journal = tree.journal();
    let mut blob = journal.blobs().create().unwrap();
    blob.write_all(&theirs()).unwrap();
    let id = blob.seal().unwrap();
    for fails in [true, false] {
        let removed = journal.transact(|txn| {
            txn.remove_blob(&id)?;
            if fails { txn.remove_blob("one that nobody has written") } else { Ok(()) }
        });
        assert_eq!(removed.is_err(), fails);
        assert_eq!(judge::sealed(tree.root()).len(), usize::from(fails));
        let reads = journal
            .blobs()
            .opener()
            .verify(true)
            .open(&id)
            .is_ok_and(|mut blob| blob.read_to_end(&mut Vec::new()).is_ok());
        assert_eq!(reads, fails);
    }
    journal.close().unwrap();
    assert_eq!(judge::wrong(tree.root()), [""; 0]);
}

/// Who does not go on, for however long, is not dead.
#[test]
fn a_writer_that_is_stopped_is_waited_for() {
    let _watchdog = Watchdog::new("a writer that is stopped", LIMIT);
    for dies in [false, true] {
        let tree = Tree::new();
        let journal = tree.journal();
        let mut writer = start_writer(&tree);
        let pid = Pid::from_child(&writer);
        kill_process(pid, Signal::STOP).unwrap();
        let (told, hears) = mpsc::channel();
        let reader = journal.clone();
        let waits = std::thread::spawn(move || {
            let opener = reader.blobs().opener().wait(LONG).on_wait(move |wait| told.send(wait).unwrap());
            opener.open("theirs").map(|mut blob| {
                let mut content = Vec::new();
                blob.read_to_end(&mut content).unwrap();
                content
            })
        });
        // It goes on waiting after it was told so; somebody else may recover meanwhile.
        for _ in 0..3 {
            hears.recv().unwrap();
            journal.recover().unwrap();
        }
        match dies {
            true => writer.kill().unwrap(),
            false => {
                kill_process(pid, Signal::CONT).unwrap();
                tell(&mut writer, "seal");
            }
        }
        match (waits.join().unwrap(), dies) {
            (Ok(content), false) => assert_eq!(content, theirs()),
            (Err(Error::Blob(BlobError::Incomplete { .. })), true) => {}
            (other, _) => panic!("{:?}", other.map(|content| content.len())),
        }
        writer.wait().unwrap();
        assert_eq!(journal.recover().map(drop).map_err(|error| error.to_string()), Ok(()));
        drop(journal);
        assert_eq!(judge::wrong(tree.root()), [""; 0]);
    }
}

/// It has read a row that says that somebody writes a blob, and is then so slow that they have sealed it and ended before it looks
/// whether they are alive.
#[test]
fn who_finds_the_writer_dead_looks_once_more_whether_it_was_sealed() {
    let said = slow_answer(false, |mut writer, _| {
        tell(&mut writer, "seal");
        writer.wait().unwrap();
    });
    assert!(said.is_none_or(|said| said.contains("@whole")));
}

/// It has found them dead twice, and is then so slow that somebody else has recovered before it looks how far they came.
#[test]
fn who_is_told_that_a_blob_is_incomplete_is_told_how_far_it_came_whoever_sweeps_meanwhile() {
    let said = slow_answer(true, |_, journal| _ = journal.recover().unwrap());
    assert!(said.is_none_or(|said| said.contains(&format!("written: {} ", 256 << 10))), "what has left its buffer");
}

/// What a reader says that is slow to look whether the writer is alive, for the second time where that is killed before, and what
/// happens `meanwhile`.
fn slow_answer(dead: bool, meanwhile: impl FnOnce(Child, &Journal)) -> Option<String> {
    if !strace::usable() {
        skip("a slow reader needs strace, and leave to trace");
        return None;
    }
    let _watchdog = Watchdog::new("a slow reader", LIMIT);
    let tree = Tree::new();
    let journal = tree.journal();
    let mut writer = start_writer(&tree);
    let mut reader = child("blobs_killed::slow_reader", tree.root());
    let mut reader = reader.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut said = BufReader::new(reader.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("@ready ") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0);
    }
    // Not before: to open a journal is to sweep what the dead have left.
    if dead {
        writer.kill().unwrap();
        writer.wait().unwrap();
    }
    let thread = line["@ready ".len()..].trim();
    let status = format!("/proc/{}/task/{thread}/status", reader.id());
    let status = || fs::read_to_string(&status).unwrap_or_default();
    let slow = format!("inject=flock:delay_enter=100s:when={}", if dead { 2 } else { 1 });
    let slow = ["-qq", "-o", "/dev/null", "-e", &slow, "-p", thread];
    let mut strace = Command::new("strace").args(slow).stderr(Stdio::null()).spawn().unwrap();
    while !status().contains(&format!("TracerPid:\t{}", strace.id())) {
        std::thread::sleep(Duration::from_millis(1));
    }
    tell(&mut reader, "go");
    // For so long it is stopped only where it is to be slow.
    let mut stopped = 0;
    while stopped < 20 {
        std::thread::sleep(Duration::from_millis(2));
        assert_ne!(status(), "", "it has ended without a look");
        stopped = if status().contains("State:\tt") { stopped + 1 } else { 0 };
    }
    meanwhile(writer, &journal);
    // It goes on.
    kill_process(Pid::from_child(&strace), Signal::TERM).unwrap();
    strace.wait().unwrap();
    let mut answer = String::new();
    said.read_to_string(&mut answer).unwrap();
    assert!(reader.wait().unwrap().success());
    println!("{answer}");
    Some(answer)
}

/// Not a test: what those before start.
#[test]
fn slow_reader() {
    let Some(root) = crate::support::child_root() else { return };
    let journal = Journal::open(root).unwrap();
    strace::ready();
    let mut content = Vec::new();
    let opened = journal.blobs().opener().wait(LONG).open("theirs");
    match opened.map(|mut blob| blob.read_to_end(&mut content)) {
        Ok(Ok(_)) if content == theirs() => strace::say("whole"),
        other => strace::say(&format!("{other:?}, and {} bytes", content.len())),
    }
    journal.close().unwrap();
}
