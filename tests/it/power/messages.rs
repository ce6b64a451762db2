//! Messages of which others hear, who have power when the disk has none: what they know by then was committed, and what is left
//! is still to be told.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use journal_kb::{Drainer, Journal};

use super::child::{self, Act, Answer, Child, Told};
use super::disk::{Disk, Event, Mark};
use super::machine::Machine;
use super::record::{Recorder, Recording, SOON};
use super::refused::log_of;
use super::replay::{Manner, Point, recovered};
use crate::crash_points::open;
use crate::delivery::promise;
use crate::delivery::sink::{self, TOPICS};
use crate::filesystems::image::Kind;

/// What is committed is delivered while more is.
pub(super) fn work(recorder: &Recorder<'_>) {
    let journal = recorder.open_used();
    let drainers = drain(recorder, &journal);
    for n in 0..5 {
        recorder.commits(&journal, || {
            let done = journal.transact(|txn| {
                for topic in TOPICS {
                    let names = ["taken", "later", "file", "never"].map(|word| format!("{word}-{topic}-in-a-row-{n}"));
                    txn.write(sink::file(&names[2]), "told of\n")?;
                    sink::send(txn, topic, "a", &names[2], n == 3)?;
                    sink::send(txn, topic, "b", &names[n % 4 / 2 * 3], false)?;
                    sink::send(txn, topic, "c", &names[n % 2], n == 4)?;
                }
                Ok(())
            });
            done.unwrap();
        });
    }
    for drainer in drainers {
        drainer.close(10 * SOON).unwrap();
    }
    journal.close().unwrap();
}

/// Publishes what is committed to somebody whom the power does not fail. Every commit waits for one topic, and none for the other.
fn drain(recorder: &Recorder<'_>, journal: &Journal) -> Vec<Drainer> {
    let waits = [Duration::from_secs(60), Duration::ZERO];
    let start = |(topic, waits): (&&str, Duration)| {
        let publisher = sink::publisher(1, tells(recorder.disk, &recorder.root), sink::answer);
        sink::drainer(journal, topic, publisher).inline(waits).start().unwrap()
    };
    TOPICS.iter().zip(waits).map(start).collect()
}

/// Has the disk's log say what somebody is told.
fn tells(disk: &Arc<Disk>, root: &Path) -> impl Fn(&promise::Event) -> bool + Clone + Send + 'static {
    let (disk, root) = (Arc::clone(disk), root.to_owned());
    move |event| {
        let early = sink::early(&root, event);
        early.into_iter().chain([event.clone()]).for_each(|event| disk.mark(Mark::Told(event)));
        true
    }
}

/// Has what is left in the outbox delivered; what is wrong then with all that was `told`.
pub(super) fn untold(machine: &Machine, root: &Path, mut told: Vec<promise::Event>) -> Vec<String> {
    let sent = sink::sent(root);
    if sent.is_empty() && told == [promise::Event::Cut] {
        return Vec::new();
    }
    let who = 1 + told.iter().filter(|event| **event == promise::Event::Cut).count() as u32;
    let before = machine.disk.happened();
    let journal = open(root);
    sink::drain(&journal, who, tells(&machine.disk, root));
    journal.close().unwrap();
    told.extend(machine.disk.told_since(before));
    promise::broken(&sent, &told, &sink::left(root))
}

/// What stands in a log that could not be synced is told to nobody before it is durable, whoever finds it there.
#[test]
fn nobody_is_told_what_a_failed_sync_may_have_lost() {
    std::thread::scope(|scope| {
        // A machine belongs to its thread.
        Kind::ALL.iter().for_each(|&kind| drop(scope.spawn(move || after_a_failed_sync(kind))));
    });
}

fn after_a_failed_sync(kind: Kind) {
    let Some(machine) = Machine::new(kind) else { return };
    let disk = &machine.disk;
    disk.insert(machine.fresh());
    let mounted = machine.boot().unwrap();
    child::prepare(&mounted.root());
    mounted.unmount();

    let base = disk.record();
    let mounted = machine.boot().unwrap();
    let root = mounted.root();
    let mut first = Child::start(&root);
    let mut told = Told::default();
    assert_eq!(first.does(Act::Tell(0), &mut told), Answer::Done);
    disk.refuse(log_of(&root));
    assert!(matches!(first.does(Act::Tell(1), &mut told), Answer::Unknown(_)), "{kind:?}");
    drop(first);
    assert_ne!(disk.refuse_nothing(), 0, "{kind:?}");
    let journal = open(&root);
    sink::drain(&journal, 1, tells(disk, &root));
    journal.close().unwrap();
    let log = disk.recorded();
    mounted.unmount();

    let is_told = |event: &Event| matches!(event, Event::Mark(Mark::Told(promise::Event::Offered(..))));
    let ends: Vec<usize> = (1..=log.len()).filter(|end| is_told(&log[end - 1])).collect();
    let what = format!("{kind:?}, a failed sync");
    let recording = Recording { what, base, log, states: Vec::new(), first: (0, 0), opening: 0, told: Vec::new() };
    println!("{}: {} were told", recording.what, ends.len());
    assert!(!ends.is_empty());
    for end in ends {
        let point = Point { end, manner: Manner::Nothing, seed: 1 };
        disk.insert(point.disk(&recording.base, &recording.log));
        disk.record();
        let mounted = machine.boot().unwrap();
        let found = recovered(&mounted.root());
        let wrong = found.map_or_else(|wrong| wrong, |_| untold(&machine, &mounted.root(), recording.told(end)));
        mounted.unmount();
        assert_eq!(wrong, [""; 0], "{kind:?}, {point}");
    }
}
