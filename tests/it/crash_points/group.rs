//! Three threads whose commits share one COMMIT: two change files and rows, one rows alone.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use journal_kb::{Begin, Journal, Result, Rows, Transaction};

use super::sweep::Workload;

type Part = Box<dyn FnOnce() + Send>;

/// The threads are there before the child is watched, so that each is known, and its calls are counted by themselves.
static CREW: Mutex<Vec<mpsc::Sender<Part>>> = Mutex::new(Vec::new());

const MEMBERS: u32 = 3;

pub(crate) fn registered() -> Vec<Workload> {
    let prepare = |root: &Path| super::prepare(root).unwrap();
    let group = Workload {
        past: Box::new(|_| *CREW.lock().unwrap() = (0..MEMBERS).map(hire).collect()),
        ..Workload::new("group", prepare, work)
    };
    vec![group]
}

fn hire(n: u32) -> mpsc::Sender<Part> {
    let (send, parts) = mpsc::channel::<Part>();
    let work = move || parts.into_iter().for_each(|part| part());
    thread::Builder::new().name(format!("member-{n}")).spawn(work).unwrap();
    send
}

fn work(journal: &Journal, say: &dyn Fn(&str)) {
    let parts: [fn(&Journal, &Gate) -> Result<()>; MEMBERS as usize] = [
        |journal, gate| {
            commit(journal, gate, "first", |txn| {
                txn.write("pages/new.md", "new\n")?;
                txn.write("pages/old.md", "overwritten\n")
            })
        },
        |journal, gate| {
            gate.wait();
            journal.write(|rows| insert(rows, "rows"))
        },
        |journal, gate| {
            commit(journal, gate, "second", |txn| {
                txn.remove("pages/gone.md")?;
                txn.write("made/on/the/way.md", "way\n")
            })
        },
    ];
    let (tell, done) = mpsc::channel();
    let gates: Vec<_> = CREW
        .lock()
        .unwrap()
        .drain(..)
        .zip(parts)
        .enumerate()
        .map(|(n, (member, part))| {
            let (open, opened) = mpsc::channel();
            let (journal, tell) = (journal.clone(), tell.clone());
            let asks = Box::new(move || {
                THREADS[n].store(rustix::thread::gettid().as_raw_nonzero().get() as u32, Ordering::SeqCst);
                let answer = part(&journal, &Gate(opened));
                drop(journal);
                let _ = tell.send(answer);
            });
            member.send(asks).unwrap();
            open
        })
        .collect();
    drop(tell);
    // By now the background has recorded who holds which lock: it does not come in between any more.
    (0..gates.len()).for_each(wait_until_asleep);
    // Whoever has the turn lets all of them come, one after the other, and writes nothing.
    let together = journal.write(|_| {
        for (n, gate) in gates.iter().enumerate() {
            let _ = gate.send(());
            wait_until_asleep(n);
        }
        Ok(())
    });
    let answers: Result<Vec<()>> = together.and_then(|()| done.iter().collect());
    match answers {
        Ok(all) if all.len() == MEMBERS as usize => say("committed"),
        other => say(&format!("not committed: {other:?}")),
    }
}

/// Where a member waits once it has staged what it will commit.
struct Gate(mpsc::Receiver<()>);

impl Gate {
    fn wait(&self) {
        let _ = self.0.recv();
    }
}

static THREADS: [AtomicU32; MEMBERS as usize] = [const { AtomicU32::new(0) }; MEMBERS as usize];

/// Until it has done what it can and waits: then it sleeps, and goes on sleeping.
fn wait_until_asleep(n: usize) {
    let mut asleep = 0;
    while asleep < 6 {
        thread::sleep(Duration::from_millis(10));
        let thread = THREADS[n].load(Ordering::SeqCst);
        let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap_or_default();
        asleep = if status.contains("State:\tS") { asleep + 1 } else { 0 };
    }
}

fn commit(journal: &Journal, gate: &Gate, name: &'static str, stage: fn(&mut Transaction) -> Result<()>) -> Result<()> {
    let mut txn = journal.begin_with(Begin::new(name).lock(name))?;
    stage(&mut txn)?;
    gate.wait();
    txn.sql(move |rows| insert(rows, name))?;
    txn.commit().map(drop)
}

fn insert(rows: &Rows<'_>, name: &str) -> Result<()> {
    rows.execute("INSERT INTO doc VALUES (?1, ?1)", [name]).map(drop)
}
