//! A disk that refuses some writes under a real filesystem: those of the write-ahead log, of a file that is being settled, of
//! the stage, of what was written under a guard. The process is told, and dies; the disk works again; a fresh process goes on,
//! and is believed; then the power fails. What any process was told is true afterwards.

use std::fs;
use std::path::Path;
use std::thread;

use super::child::{self, Act, Answer, Child, Told};
use super::disk::Refuses;
use super::machine::Machine;
use super::replay::{MANNERS, Point, Random, recovered};
use crate::filesystems::image::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Log,
    Settling,
    Stage,
    Guarded,
}

#[test]
fn what_is_acknowledged_beside_refused_writes_survives_a_power_cut() {
    let all = [What::Log, What::Settling, What::Stage, What::Guarded];
    thread::scope(|scope| {
        // A machine belongs to its thread, and ends with it.
        let on =
            |kind| move || all.iter().for_each(|&what| thread::scope(|each| drop(each.spawn(|| refused(kind, what)))));
        Kind::ALL.iter().for_each(|&kind| drop(scope.spawn(on(kind))));
    });
}

/// Blocks that begin as this file does. Within the database, and its log, content stands behind something.
fn block_of(act: Act) -> Refuses {
    let start = act.bytes()[..40].to_vec();
    Box::new(move |block| block.starts_with(&start))
}

/// Blocks with the salts of the log as it is now: they stand in its head and in each of its frames.
pub(super) fn log_of(root: &Path) -> Refuses {
    let log = fs::read(root.join(".journal/journal.db-wal")).unwrap();
    let salts = log[16..24].to_vec();
    Box::new(move |block| block.windows(salts.len()).any(|bytes| bytes == salts))
}

fn refused(kind: Kind, what: What) {
    let Some(machine) = Machine::new(kind) else { return };
    let disk = &machine.disk;
    disk.insert(machine.fresh());
    let mounted = machine.boot().unwrap();
    child::prepare(&mounted.root());
    mounted.unmount();

    let base = disk.record();
    let mounted = machine.boot().unwrap();
    let root = mounted.root();
    let mut told = Told::default();
    let mut first = Child::start(&root);
    assert_eq!(first.does(Act::Small(0), &mut told), Answer::Done);
    let act = match what {
        What::Log => Act::Small(1),
        What::Settling => Act::Settle,
        What::Stage => Act::Large(1),
        What::Guarded => Act::Keep(1),
    };
    disk.refuse(match what {
        What::Log => log_of(&root),
        What::Settling => block_of(Act::Small(0)),
        What::Stage | What::Guarded => block_of(act),
    });
    let answer = first.does(act, &mut told);
    assert!(!matches!(answer, Answer::Done), "{kind:?}, {what:?}: it was not told");
    if what == What::Log {
        assert!(matches!(answer, Answer::Unknown(_)), "{kind:?}: {answer:?}");
        // It does nothing any more.
        assert!(matches!(first.does(Act::Small(2), &mut told), Answer::Nothing(_)), "{kind:?}");
    }
    drop(first);
    assert_ne!(disk.refuse_nothing(), 0, "{kind:?}, {what:?}: nothing was refused");

    let mut second = Child::start(&root);
    let (mut acknowledged, mut late) = (Vec::new(), 0);
    for act in [Act::Small(10), Act::Keep(11), Act::Undo, Act::Large(12), Act::Small(13)] {
        // That something on this filesystem was not written the kernel tells to whoever asks first, be it somebody else's.
        let mut answer = second.does(act, &mut told);
        if let Answer::Nothing(why) = &answer {
            late += 1;
            assert!(why.contains("refused to sync"), "{kind:?}, {what:?}, {act:?}: {why}");
            answer = second.does(act, &mut told);
        }
        assert_eq!((answer, late <= 1), (Answer::Done, true), "{kind:?}, {what:?}, {act:?}");
        if what == What::Log {
            // Since there is a commit behind it, it is settled whether there was this one.
            let there = second.does(Act::Has(1), &mut told) == Answer::Yes;
            told.settle(1, there);
        }
        acknowledged.push((disk.happened(), told.clone()));
    }
    drop(second);
    let log = disk.recorded();
    mounted.unmount();

    let mut random = Random(what as u64);
    for (n, (end, told)) in acknowledged.iter().enumerate() {
        // Two each, all in turn.
        for manner in [MANNERS[n % MANNERS.len()], MANNERS[(n + 2) % MANNERS.len()]] {
            let point = Point { end: *end, manner, seed: random.next() };
            disk.insert(point.disk(&base, &log));
            let mounted = machine.boot().unwrap();
            let wrong = recovered(&mounted.root()).map_or_else(|wrong| wrong, |found| told.denies(&found));
            mounted.unmount();
            assert_eq!(wrong, [""; 0], "{kind:?}, {what:?} refused, {point}: {told:#?}");
        }
    }
    println!("{kind:?}, {what:?} refused: {} power cuts", 2 * acknowledged.len());
}
