//! The judge is tried with what never happened: everything that must not happen is noticed, and nothing else is.

use std::collections::BTreeSet;

use super::promise::{Event, Left, NEWEST, Sent, broken};

/// Messages of one key, of this topic: `-` takes it back.
fn sent(topic: &str, texts: &[&str]) -> Vec<Sent> {
    let sent = |text: &&str| Sent {
        topic: topic.to_owned(),
        key: "k".to_owned(),
        text: (*text != "-").then(|| (*text).to_owned()),
    };
    texts.iter().map(sent).collect()
}

/// Lines of a log, of which `1 2 x!` is short for: 1 offers version 2 with the text x, and that is refused for good; `=` is for taken,
/// `~` for refused, `?` for: the sink is away, and `…` for no answer.
fn log(topic: &str, short: &[&str]) -> Vec<Event> {
    let lines = short.iter().flat_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [who, version, rest] = *words.as_slice() else { return vec![(*line).to_owned()] };
        if who == "early" {
            return vec![(*line).to_owned()];
        }
        let at = rest.char_indices().last().expect("it has an answer").0;
        let (text, end) = rest.split_at(at);
        let (text, attempts) = text.split_once('@').unwrap_or((text, "0"));
        let offered = format!("offered {who} {version} {topic} k {version} {attempts} {text}");
        let answer = match end {
            "=" => "Taken",
            "~" => "Refused",
            "!" => "Parked",
            "?" => "Unavailable",
            _ => return vec![offered],
        };
        vec![offered, format!("answered {who} {version} {answer}")]
    });
    Event::all(&lines.collect::<Vec<_>>().join("\n"))
}

fn parked(ids: &[i64]) -> Left {
    Left { parked: BTreeSet::from_iter(ids.iter().copied()), ..Left::default() }
}

#[track_caller]
fn is_fine(topic: &str, texts: &[&str], short: &[&str], left: &Left) {
    assert_eq!(broken(&sent(topic, texts), &log(topic, short), left), [""; 0]);
}

#[track_caller]
fn is_found(what: &str, topic: &str, texts: &[&str], short: &[&str], left: &Left) {
    let wrong = broken(&sent(topic, texts), &log(topic, short), left);
    assert!(wrong.iter().any(|wrong| wrong.contains(what)), "{what}: {wrong:?}");
}

#[test]
fn what_may_happen_is_fine() {
    let none = Left::default();
    is_fine("each", &["x", "y", "z"], &["1 1 x=", "1 2 y=", "1 3 z="], &none);
    // Killed before it was written down that they were taken.
    is_fine("each", &["x", "y"], &["1 1 x=", "1 2 y…", "ended 1", "2 1 x=", "2 2 y="], &none);
    is_fine("each", &["x", "y"], &["1 1 x?", "1 1 x~", "1 1 x@1=", "1 2 y="], &none);
    is_fine("each", &["x", "y"], &["1 1 x~", "1 1 x@1~", "1 1 x@2~", "1 2 y="], &parked(&[1]));
    is_fine("each", &["x", "y"], &["1 1 x!", "ended 1", "2 1 x!", "2 2 y="], &parked(&[1]));
    is_fine("each", &["x", "-", "y"], &["1 2 -=", "1 3 y="], &none);
    is_fine("each", &["x", "-", "y"], &["1 1 x~", "1 2 -=", "1 3 y="], &none);
    is_fine(NEWEST, &["x", "y", "z"], &["1 1 x=", "1 3 z="], &none);
    // After a power cut what was not synced happens again.
    is_fine("each", &["x", "y"], &["1 1 x!", "1 2 y=", "cut", "2 1 x!", "2 2 y="], &parked(&[1]));
}

#[test]
fn what_must_not_happen_is_found() {
    let none = Left::default();
    is_found("nobody was told", "each", &["x", "y"], &["1 1 x="], &none);
    is_found("nobody was told", "each", &["x", "-"], &["1 1 x="], &none);
    is_found("nobody was told", "each", &["x", "y"], &["1 1 x=", "1 2 y…", "ended 1"], &none);
    is_found("nobody was told", NEWEST, &["x", "y"], &["1 1 x="], &none);
    is_found("still pending", "each", &["x"], &["1 1 x="], &Left { pending: BTreeSet::from([1]), ..none.clone() });
    is_found("was not committed", "each", &["x"], &["1 1 x=", "1 2 y="], &none);
    is_found("was not committed", "each", &["x"], &["1 1 z="], &none);
    is_found("nothing was committed", "each", &[], &["1 1 x="], &none);
    is_found("passed over", "each", &["x", "y"], &["1 2 y=", "1 1 x="], &none);
    is_found("first time behind a newer", "each", &["x", "y"], &["1 2 y=", "ended 1", "2 1 x="], &none);
    is_found("passed over", "each", &["x", "y"], &["1 1 x~", "1 2 y=", "1 1 x@1="], &none);
    is_found("a newer one of its key before", "each", &["x", "y"], &["1 1 x=", "1 2 y=", "1 1 x="], &none);
    is_found("behind a removal", "each", &["x", "-"], &["1 1 x=", "1 2 -=", "ended 1", "2 1 x=", "2 2 -="], &none);
    is_found("behind a removal", "each", &["x", "-"], &["1 1 x=", "1 2 -=", "cut", "2 1 x=", "2 2 -="], &none);
    is_found("who lived", "each", &["x"], &["1 1 x=", "2 1 x="], &none);
    is_found("who lived", "each", &["x"], &["1 1 x=", "1 1 x="], &none);
    is_found("while 1 is at", "each", &["x", "y"], &["1 1 x…", "2 1 x="], &none);
    is_found("was given up", "each", &["x", "y"], &["1 1 x!", "1 2 y=", "ended 1", "2 1 x!"], &parked(&[1]));
    is_found("was not given up", "each", &["x"], &["1 1 x~"], &parked(&[1]));
    is_found("and was taken", "each", &["x"], &["1 1 x="], &parked(&[1]));
    is_found("was never offered", "each", &["x"], &["1 1 x="], &parked(&[7]));
    is_found("before its file", "each", &["x"], &["early 1 1", "1 1 x="], &none);
    let number = "answered 1 1 Taken\noffered 1 1 each k 2 0 y";
    let lines = format!("offered 1 1 each k 1 0 x\n{number}\nanswered 1 1 Taken");
    let wrong = broken(&sent("each", &["x", "y"]), &Event::all(&lines), &none);
    assert!(wrong.iter().any(|wrong| wrong.contains("one number for two")), "{wrong:?}");
}
