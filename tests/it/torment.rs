//! Many processes and threads that want the same locks, and are killed at any moment: never are there two holders, fences
//! grow, no lock stays stuck, nobody starves, and no error reaches anybody.
//!
//! What happened stands in a [`witness`], which the holders write themselves; `JOURNAL_KB_TORMENT_SIZE` says how many
//! processes there are, and how often each holds a lock: `64x1000`.

mod crew;
mod witness;
mod work;

use std::time::Duration;

pub(crate) use self::crew::Watchdog;
use self::crew::{Crew, Stopped, orders};
use self::witness::Counts;
use self::work::Work;

/// Many times what it takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn locks_survive_random_kills() {
    let size = std::env::var("JOURNAL_KB_TORMENT_SIZE").unwrap_or_else(|_| "8x40".to_owned());
    let (processes, enters) = size.split_once('x').unwrap();
    let (processes, enters): (usize, usize) = (processes.parse().unwrap(), enters.parse().unwrap());
    let _watchdog = Watchdog::new("the torment", LIMIT * (processes * enters).div_ceil(300) as u32);
    // Threads and processes mixed.
    let mut crew =
        Crew::start(orders(processes.div_ceil(2), 1, 3, Work::Hold).chain(orders(processes / 2, 2, 3, Work::Hold)));
    crew.work(enters, Some(Duration::from_millis(60)));
    // Had nobody died with a lock in hand, little would be shown.
    for more in 1.. {
        if crew.somebody_died_inside() {
            break;
        }
        crew.work(enters + more, Some(Duration::from_millis(20)));
    }
    let counts = crew.stop().counts;
    let acquisitions: usize = counts.enters.values().sum();
    let Counts { killed, killed_inside, ref done, .. } = counts;
    println!("{killed} killed, of those {killed_inside} inside; {acquisitions} acquisitions, {} commits", done.len());
    assert!(killed > killed_inside && killed_inside > 0);
    crate::figures::add("processes killed at a random moment, among others that want the same locks", killed);
    crate::figures::add("acquisitions of locks among those, never two at once", acquisitions);
}

#[test]
fn nobody_starves_who_wants_one_lock() {
    let _watchdog = Watchdog::new("wanting one lock", LIMIT);
    let mut crew = Crew::start(orders(6, 1, 1, Work::Hold));
    crew.work(25, None);
    println!("{:?}", crew.enters());
    crew.stop();
}

/// Those who share a lock do so at the same time; who wants it alone gets it all the same, and is alone.
#[test]
fn a_stream_of_those_who_share_starves_nobody_who_wants_to_be_alone() {
    let _watchdog = Watchdog::new("sharing a lock", LIMIT);
    let mut crew = Crew::start(orders(4, 2, 1, Work::Share).chain(orders(1, 1, 1, Work::Hold)));
    crew.work(20, None);
    println!("{:?}", crew.enters());
    let counts = crew.stop().counts;
    assert!(counts.most_at_once > 1, "nobody shared it with anybody");
}

#[test]
fn eight_processes_commit_side_by_side() {
    let _watchdog = Watchdog::new("committing side by side", LIMIT);
    let mut crew = Crew::start(orders(4, 1, 1, Work::Commit).chain(orders(4, 3, 1, Work::Commit)));
    crew.work(40, None);
    println!("{:?}", crew.enters());
    let log = crew.longest_log();
    assert!(log <= 64 << 20, "{log}");
    let Stopped { counts, rows } = crew.stop();
    assert_eq!(rows, counts.done);
}

/// Commits that share a sync are acknowledged when they are there, and each by itself.
#[test]
fn what_was_acknowledged_is_there_whoever_is_killed() {
    let _watchdog = Watchdog::new("committing and being killed", LIMIT);
    let mut crew = Crew::start(orders(4, 4, 1, Work::Commit));
    crew.work(30, Some(Duration::from_millis(60)));
    let Stopped { counts, rows } = crew.stop();
    let lost: Vec<_> = counts.done.difference(&rows).collect();
    assert!(lost.is_empty(), "{lost:?}");
    // A thread that is killed has not said it of one commit at most.
    let unsaid = rows.len() - counts.done.len();
    assert!(unsaid <= 4 * counts.killed, "{unsaid} of {} kills", counts.killed);
    println!("{} killed, {} commits, {unsaid} that nobody was told of", counts.killed, rows.len());
}
