//! Messages are delivered, whoever dies: processes that commit and drain side by side are killed and stopped at random.
//!
//! Each ([`crew`]) sends messages, takes some back, and drains both topics. What it publishes goes into a file that it shares with
//! the others ([`sink`]), so that the order of everything is known, and then applies it to rows of its own, once. In the end the rest is drained, and what was told is held
//! against the application's own rows ([`promise`], itself tried with forged ones). `JOURNAL_KB_DELIVERY_SIZE` says how many
//! processes there are, and how often one is killed: `3x30`.

mod crew;
mod forged;
pub(crate) mod promise;
pub(crate) mod sink;

use std::time::Duration;

use journal_kb::Journal;

use self::crew::Crew;
use self::promise::{Event, Offer};
use self::sink::{TOPICS, answer, drainer, publisher};
use crate::guard_model::Random;
use crate::torment::Watchdog;

/// Many times what any of these takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn what_is_committed_is_delivered_in_order_and_at_least_once_whoever_is_killed() {
    let size = std::env::var("JOURNAL_KB_DELIVERY_SIZE").unwrap_or_else(|_| "3x30".to_owned());
    let (processes, kills) = size.split_once('x').unwrap();
    let (processes, kills): (usize, usize) = (processes.parse().unwrap(), kills.parse().unwrap());
    let _watchdog = Watchdog::new("delivering messages", LIMIT * kills.div_ceil(30) as u32);
    let mut crew = Crew::start(processes);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut within = 0;
    for _ in 0..kills {
        let place = random.below(processes);
        crew.waits_for_offers(place, 1 + random.below(40));
        std::thread::sleep(Duration::from_micros(random.below(5_000) as u64));
        if random.below(4) == 0 {
            crew.stops(place, Duration::from_millis(random.below(30) as u64));
        }
        within += usize::from(crew.kills(place));
    }
    let (events, wrong) = crew.ends();
    assert!(wrong.is_empty(), "{} faults\n{}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
    assert_eq!(crew::not_applied(&crew.root(), &events), [""; 0]);
    let offers = events.iter().filter(|event| matches!(event, Event::Offered(..))).count();
    let again = repeated(&events);
    println!(
        "{kills} kills, {within} of them within a publish; {offers} offers, {again} of messages that were taken before"
    );
    // Had nobody died between the sink's word and its being written down, little would be shown.
    assert!(again > 0 && within > 0);
    crate::figures::add("processes killed at a random moment that deliver messages", kills);
    crate::figures::add("messages handed to a sink among those, none lost, early or out of order", offers);
}

/// How many messages were offered that somebody else had offered before.
fn repeated(events: &[Event]) -> usize {
    let mut seen = std::collections::BTreeMap::new();
    let again = events.iter().filter(|event| match event {
        Event::Offered(who, Offer { id, .. }) => *seen.entry(*id).or_insert(*who) != *who,
        _ => false,
    });
    again.count()
}

/// Who holds a topic and does not go on, for however long, is waited for; once it is dead, the next one tells what it was at.
#[test]
fn nobody_publishes_beside_a_drainer_that_is_stopped() {
    let _watchdog = Watchdog::new("a drainer that is stopped", LIMIT);
    for dies in [false, true] {
        let mut crew = Crew::start(0);
        let topic = TOPICS[0];
        let (root, sink) = (crew.root(), crew.sink());
        let journal = Journal::options().turn_wait(Duration::from_millis(500)).open(&root).unwrap();
        let send = |name: &str| journal.transact(|txn| self::sink::send(txn, topic, "a", name, false));
        (1..=2).for_each(|n| _ = send(&format!("taken-{n}")).unwrap());
        let other = crew.starts_one_that_stops(|| send("taken-3").is_ok());
        let own = drainer(&journal, topic, publisher(100, sink.tells(), answer)).start().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let offers = || Event::all(&sink.log()).iter().filter(|event| matches!(event, Event::Offered(..))).count();
        assert_eq!(offers(), 1, "it is in the middle of its first message");
        match dies {
            true => drop(crew.kill(other)),
            false => crew.goes_on(other),
        }
        assert_eq!(own.close(LIMIT).unwrap(), 0);
        journal.close().unwrap();
        let told = if dies { 4 } else { 3 };
        assert_eq!(offers(), told, "{}", sink.log());
        let (_, wrong) = crew.ends();
        assert_eq!(wrong, [""; 0]);
    }
}
