//! `outbox` and `followers`: what waits to be told, who is at it, what is parked and why; and what a person says of it.

use std::path::Path;
use std::time::Duration;

use journal_kb::{Journal, Message, PublishError, TxnId};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::locks::{Started, WATCHDOG, until};
use super::{at, picture, sql};
use crate::support::{child, child_root, wait_for_word};

fn send(journal: &Journal, key: &str, text: &str) {
    journal.transact(|txn| txn.send("t", key, text)).expect("sent");
}

/// Publishes what there is to a sink that takes nothing that begins with `bad`.
fn publish(journal: &Journal, topic: &str) {
    let publisher = |message: &Message| match message.read::<String>() {
        Ok(text) if text.starts_with("bad") => Err(PublishError::Park(format!("the sink\nhates {text}"))),
        _ => Ok(()),
    };
    let drainer = journal.drainer(topic, publisher).start().expect("a drainer");
    assert_eq!(drainer.close(Duration::from_secs(WATCHDOG)).expect("closed"), 0);
}

/// A topic as it is listed.
fn topic(root: &Path, name: &str) -> Value {
    let lines = at(root, &["outbox", "--topic", name, "--json"]).code(0).json();
    lines.into_iter().find(|line| line["kind"] == "topic").expect("a topic")
}

fn messages(root: &Path, words: &[&str]) -> Vec<Value> {
    let lines = at(root, &[&["outbox", "--json"], words].concat()).code(0).json();
    lines.into_iter().filter(|line| line["kind"] == "message").collect()
}

/// One field of each.
fn each<'v>(values: &'v [Value], field: &str) -> Vec<&'v Value> {
    values.iter().map(|value| &value[field]).collect()
}

fn word(number: i64) -> String {
    number.to_string()
}

/// The number of the first message of a transaction.
fn first_of(txn: i64) -> i64 {
    txn << 20
}

#[test]
fn what_is_parked_is_told_and_tried_again() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    at(root, &["init"]).code(0);
    at(root, &["outbox"]).code(0).says(&["no messages yet"]);
    at(root, &["outbox", "retry", "--all"]).code(0).says(&["nothing is to be tried again"]);
    let journal = Journal::open(root).expect("open");
    for (key, text) in [("a", "bad 1"), ("b", "good"), ("a", "good"), ("c", "bad 2"), ("d", "bad 3")] {
        send(&journal, key, text);
    }
    publish(&journal, "t");
    journal.transact(|txn| txn.retire("t", "c")).expect("retired");
    let all = topic(root, "t");
    assert_eq!((&all["state"], &all["waiting"], &all["parked"]), (&json!("waiting"), &json!(1), &json!(3)), "{all}");
    assert_eq!((&all["published"], &all["holder"]), (&json!(2), &Value::Null), "{all}");
    assert!(all["oldest_ms"].as_i64() > Some(0) && all["published_ms"].as_i64() > Some(0), "{all}");
    let listed = messages(root, &[]);
    let (a, c, d, gone) = (first_of(1), first_of(4), first_of(5), first_of(6));
    assert_eq!(each(&listed, "id"), [a, c, d, gone], "what is parked comes first");
    assert_eq!(each(&listed, "state"), ["parked", "parked", "parked", "waiting"]);
    assert_eq!(each(&listed, "removal"), [false, false, false, true]);
    assert_eq!((&listed[0]["txn"], &listed[0]["attempts"], &listed[0]["bytes"]), (&json!(1), &json!(1), &json!(7)));
    at(root, &["outbox"]).code(0).says(&["parked", "the sink\\nhates bad 1", "removal", "nobody is publishing it"]);
    let few = at(root, &["outbox", "list", "-n", "2"]).code(0).says(&["… and 1 more are parked"]);
    assert!(!few.out.contains("more wait"), "{few:?}");
    at(root, &["outbox", "--topic", "x"]).code(0).says(&["no messages of \"x\""]);
    at(root, &["outbox", "-n", "1", "show", &word(a)]).code(2);

    let shown = &at(root, &["outbox", "show", &word(a), "--json"]).code(0).json()[0];
    assert_eq!((&shown["payload"], &shown["payload_hex"]), (&json!("\"bad 1\""), &Value::Null), "{shown}");
    assert_eq!((&shown["newest"], &shown["version"], &shown["retired"]), (&json!(2), &json!(1), &json!(false)));
    assert_eq!(shown["error"], "the sink\nhates bad 1");
    at(root, &["outbox", "show", &word(a)]).code(0).says(&["the newest of its key is 2", "\"bad 1\"", "transaction 1"]);
    at(root, &["outbox", "show", &word(c)]).code(0).says(&["its key was retired after it"]);
    at(root, &["outbox", "show", "7"]).code(1).says(&["no message 7", "journalctl-kb outbox"]);
    let status = &at(root, &["status", "--json"]).code(0).json()[0];
    let outbox = &status["outbox"];
    assert_eq!((&outbox["waiting"], &outbox["parked"]), (&json!(1), &json!(3)), "{outbox}");
    assert_eq!((&outbox["oldest_ms"], &outbox["topics"][0]["topic"]), (&all["oldest_ms"], &json!("t")), "{outbox}");
    at(root, &["status"]).code(0).says(&[
        "t: 1 waiting, the oldest from",
        "3 parked",
        "`journalctl-kb outbox --topic=t`",
    ]);

    for usage in [&[][..], &["--all", "--topic", "t"], &["x"], &["1", "--all"]] {
        at(root, &[&["outbox", "retry"], usage].concat()).code(2);
    }
    let again = at(root, &["outbox", "retry", &word(a), "7", "--json"]);
    let said = json!({ "waiting": 1, "outdated": 1, "dropped": 0, "not_there": [7] });
    assert_eq!((again.code, &again.json()[0]), (Some(1), &said), "{again:?}");
    assert_eq!(topic(root, "t")["parked"], 2);
    assert_eq!(topic(root, "t")["waiting"], 2);
    let none = at(root, &["outbox", "retry", "--topic", "nobody", "--json"]).code(0);
    assert_eq!(none.json()[0]["waiting"], 0);
    let again = at(root, &["outbox", "retry", "--topic=t"]).code(0);
    again.says(&["1 message to be tried again", "1 message dropped: the key was retired after it"]);
    assert_eq!(each(&messages(root, &[]), "id"), [a, d, gone]);
    let shown = &at(root, &["outbox", "show", &word(a), "--json"]).code(0).json()[0];
    assert_eq!((&shown["state"], &shown["attempts"]), (&json!("waiting"), &json!(0)), "{shown}");
    // What is still wrong is parked again, and the rest goes.
    publish(&journal, "t");
    assert_eq!(each(&messages(root, &[]), "id"), [a, d]);
    at(root, &["outbox", "retry", "--all", "--json"]).code(0);
    let goes = journal.drainer("t", |_: &Message| Ok(())).start().expect("a drainer");
    assert_eq!(goes.close(Duration::from_secs(WATCHDOG)).expect("closed"), 0);
    assert_eq!(messages(root, &[]).len(), 0);
    let all = topic(root, "t");
    assert_eq!((&all["state"], &all["published"], &all["parked"]), (&json!("idle"), &json!(5), &json!(0)), "{all}");
    assert!(!at(root, &["status"]).code(0).out.contains("outbox"), "nothing is to be told");
}

#[test]
fn what_is_dropped_is_named_and_never_goes() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    for (key, text) in [("a", "bad"), ("b", "bad"), ("c", "bad")] {
        send(&journal, key, text);
    }
    publish(&journal, "t");
    send(&journal, "a", "good");
    let (a, b) = (word(first_of(1)), word(first_of(2)));
    for words in [&["drop", &a][..], &["drop", "--topic=t", "--parked"]] {
        at(root, &[&["outbox"], words].concat()).code(2).says(&["--yes"]);
    }
    at(root, &["outbox", "drop", "--yes"]).code(2);
    at(root, &["outbox", "drop", &a, "--parked", "--yes"]).code(2);
    assert_eq!(topic(root, "t")["parked"], 3);
    // What somebody may have in hand is not dropped.
    let lock = journal.try_lock("outbox:t").expect("an answer").expect("the lock");
    assert_eq!(topic(root, "t")["state"], "publishing");
    for words in [&["drop", &a, "--yes"][..], &["drop", "--topic=t", "--yes"]] {
        at(root, &[&["outbox"], words].concat()).code(75).says(&[&format!("pid {}", std::process::id())]);
    }
    drop(lock);
    assert_eq!(topic(root, "t")["parked"], 3);
    let one = at(root, &["outbox", "drop", &a, "7", "--yes"]).says(&["t a version 1", "not there: 7"]);
    assert_eq!(one.code, Some(1), "{one:?}");
    let one = at(root, &["outbox", "drop", &b, "--yes", "--json"]).code(0);
    assert_eq!(one.json()[0], json!({ "dropped": 1, "not_there": [] }));
    at(root, &["outbox", "drop", "--topic=t", "--parked", "--yes"]).code(0).says(&["dropped 1 message of \"t\""]);
    assert_eq!(each(&messages(root, &[]), "state"), ["waiting"]);
    at(root, &["outbox", "drop", "--topic=t", "--yes"]).code(0).says(&["dropped 1 message"]);
    assert_eq!(messages(root, &[]).len(), 0);
    // Versions go on.
    send(&journal, "a", "good");
    assert_eq!(each(&messages(root, &[]), "version"), [3]);
}

/// The child: publishes `t` to a sink that cannot be reached.
#[test]
fn a_drainer() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).expect("open");
    let mut asked = 0;
    let down = move |_: &Message| {
        asked += 1;
        Err(PublishError::Unavailable(format!("connection\nrefused {asked}")))
    };
    let _drainer = journal.drainer("t", down).start().expect("a drainer");
    println!("at work");
    // Nobody waits for a child for ever.
    std::thread::sleep(Duration::from_secs(2 * WATCHDOG));
    std::process::abort();
}

#[test]
fn a_topic_is_paused_while_its_drainer_lives_and_not_longer() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    send(&journal, "a", "x");
    let mut started = Started(child("cli::outbox::a_drainer", root).spawn().expect("a child"));
    wait_for_word(&mut started.0, "at work");
    let pid = started.0.id();
    let paused = until("nobody says that the sink is down", || {
        let all = topic(root, "t");
        (all["state"] == "paused").then_some(all)
    });
    let reason = &paused["reason"];
    assert!(reason.as_str().is_some_and(|reason| reason.starts_with("connection\nrefused")), "{paused}");
    assert_eq!(paused["holder"]["pid"], pid, "{paused}");
    assert!(paused["paused_ms"].as_i64() >= paused["oldest_ms"].as_i64(), "{paused}");
    let words = [&format!("[{pid}] paused"), "connection\\nrefused"];
    at(root, &["outbox"]).code(0).says(&words);
    at(root, &["status"]).code(0).says(&words);
    let later = until("it is asked once", || Some(topic(root, "t")).filter(|later| later["reason"] != *reason));
    assert_eq!(later["paused_ms"], paused["paused_ms"], "since the first time");
    // A sink that cannot be reached is no reason to keep anybody from setting it right.
    let id = word(first_of(1));
    assert_eq!(at(root, &["outbox", "retry", &id, "--json"]).code(0).json()[0]["waiting"], 1);
    drop(started);
    let all = topic(root, "t");
    assert_eq!((&all["state"], &all["reason"], &all["holder"]), (&json!("waiting"), &json!(""), &Value::Null), "{all}");

    // Closed in good order, while its process lives on.
    let down = |_: &Message| Err(PublishError::Unavailable("down".into()));
    let drainer = journal.drainer("t", down).start().expect("a drainer");
    until("nobody says that the sink is down", || (topic(root, "t")["reason"] == "down").then_some(()));
    drop(drainer);
    assert_eq!(topic(root, "t")["state"], "waiting");
    // And one that is healed.
    let down = std::sync::atomic::AtomicBool::new(true);
    let publisher = move |_: &Message| match down.swap(false, std::sync::atomic::Ordering::SeqCst) {
        true => Err(PublishError::Unavailable("down".into())),
        false => Ok(()),
    };
    let drainer = journal.drainer("t", publisher).start().expect("a drainer");
    until("it heals", || (topic(root, "t")["state"] == "idle").then_some(()));
    sql(root, "SELECT 1 / (SELECT count(*) FROM journal_outbox_topic WHERE paused_ms IS NULL AND session IS NULL)");
    drop(drainer);
}

#[test]
fn a_list_that_is_long_is_told_a_piece_at_a_time_and_each_message_once() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    send(&journal, "a", "x");
    journal.close().expect("close");
    sql(
        root,
        "INSERT INTO journal_outbox (id, topic, key, version, fence, state, enqueued_ms, payload)
           WITH RECURSIVE n(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 4500)
           SELECT n << 20, iif(n % 2, 't', 'u'), 'k' || n, 1, 1, iif(n % 3, 'pending', 'parked'), n, zeroblob(100) FROM n;
         INSERT INTO journal_outbox (id, topic, key, version, fence, state, enqueued_ms) VALUES
           (9223372036854775807, 't', 'last', 1, 1, 'pending', 1)",
    );
    let all = messages(root, &["-n", "0"]);
    let mut ids: Vec<i64> = all.iter().map(|message| message["id"].as_i64().expect("a number")).collect();
    let parked = all.iter().take_while(|message| message["state"] == "parked").count();
    assert_eq!((all.len(), parked), (4501, 1500));
    assert!(ids[..parked].is_sorted() && ids[parked..].is_sorted());
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4501);
    assert_eq!(messages(root, &["-n", "1001", "--topic", "u"]).len(), 750 + 1001);
    assert_eq!(each(&messages(root, &["-n", "1", "--topic", "t"]), "topic"), ["t", "t"]);
    let text = at(root, &["outbox", "-n", "0"]).code(0);
    assert!(!text.out.contains("more") && text.out.lines().count() > 4501, "{}", text.out.lines().count());
    at(root, &["outbox"]).code(0).says(&["… and 1490 more are parked", "… and 2991 more wait"]);
    // More of them than one commit takes.
    let again = at(root, &["outbox", "retry", "--all", "--json"]).code(0);
    assert_eq!((&again.json()[0]["waiting"], &topic(root, "u")["parked"]), (&json!(1500), &json!(0)));
    let dropped = at(root, &["outbox", "drop", "--topic", "t", "--yes", "--json"]).code(0);
    assert_eq!(dropped.json()[0]["dropped"], 2251);
    assert_eq!(messages(root, &["-n", "0"]).len(), 2250);
}

#[test]
fn rows_of_messages_that_make_no_sense_hide_nothing() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    send(&journal, "sane", "bad");
    publish(&journal, "t");
    journal.follower("sane").expect("a follower").advance(TxnId::from(1)).expect("advanced");
    journal.close().expect("close");
    sql(
        root,
        "PRAGMA ignore_check_constraints = ON;
         INSERT INTO journal_outbox (id, topic, key, version, fence, state, attempts, enqueued_ms, tried_ms, error, payload) VALUES
           (-7, '../../etc', char(27) || '[2J', -1, -1, 'dreaming', -1, -9223372036854775808, 9223372036854775807, char(27), x'ff1b'),
           (9223372036854775807, '', '', 9223372036854775807, 0, 'pending', 9223372036854775807, 9223372036854775807, NULL, '', NULL),
           (-9223372036854775808, printf('%.100000c', 't'), printf('%.100000c', 'k'), 1, 1, 'pending', 1, 0, 0, printf('%.100000c', 'e'), zeroblob(200000)),
           (3, CAST(x'ff62' AS TEXT), CAST(x'ff' AS TEXT), 1, 1, 'parked', 1, 1, 1, CAST(x'ff' AS TEXT), CAST(char(27) || ']0;x' AS BLOB));
         INSERT INTO journal_outbox_key VALUES ('', '', -5, 9223372036854775807);
         INSERT INTO journal_outbox_topic VALUES ('nobody', -5, -5, 9223372036854775807, x'00', char(27) || '[2J', -1),
           ('', 9223372036854775807, NULL, -1, zeroblob(100000), printf('%.100000c', 'r'), 9223372036854775807);
         INSERT INTO journal_follower VALUES ('', -9223372036854775808, -1), (char(27), 9223372036854775807, 9223372036854775807),
           (printf('%.100000c', 'f'), 0, 0), (CAST(x'ff' AS TEXT), 1, 1)",
    );
    let listed = messages(root, &["-n", "0"]);
    assert_eq!(each(&listed, "id"), [-7, 3, first_of(1), i64::MIN, i64::MAX]);
    assert_eq!(each(&listed, "state"), ["dreaming", "parked", "parked", "refused", "refused"]);
    let topics = at(root, &["outbox", "--json"]).code(0).json();
    assert_eq!(topics.iter().filter(|line| line["kind"] == "topic").count(), 6, "{topics:?}");
    let text = at(root, &["outbox"]).code(0).says(&["hates bad", "dreaming", "../../etc", "\u{fffd}b"]);
    assert!(!text.out.contains('\u{1b}') && text.out.len() < 50_000, "{} {text:?}", text.out.len());
    for id in [-7, 3, first_of(1), i64::MIN, i64::MAX] {
        let shown = at(root, &["outbox", "show", &word(id)]).code(0);
        assert!(!shown.out.contains('\u{1b}') && shown.out.len() < 10_000, "{} {shown:?}", shown.out.len());
        let json = at(root, &["outbox", "show", &word(id), "--json"]).code(0);
        assert!(!json.out.contains('\u{1b}') && json.json().len() == 1);
    }
    let strange = &at(root, &["outbox", "show", "-7", "--json"]).code(0).json()[0];
    assert_eq!((&strange["payload_hex"], &strange["bytes"]), (&json!("ff1b"), &json!(2)), "{strange}");
    let followers = at(root, &["followers", "--json"]).code(0).json();
    assert_eq!(followers.len(), 5);
    assert!(followers.iter().any(|follower| follower["name"] == "sane" && follower["behind"] == 0), "{followers:?}");
    let text = at(root, &["followers"]).code(0).says(&["sane"]);
    assert!(!text.out.contains('\u{1b}') && text.out.len() < 10_000, "{text:?}");
    let status = at(root, &["status"]).code(0).says(&["t: 1 parked", "sane at 1, 0 behind"]);
    assert!(!status.out.contains('\u{1b}'), "{status:?}");
    // They can be had tried again, or dropped, like any other.
    let again = at(root, &["outbox", "retry", "--all", "--json"]).code(0);
    assert_eq!((&again.json()[0]["waiting"], &again.json()[0]["dropped"]), (&json!(3), &json!(0)));
    for id in [-7, 3, i64::MIN, i64::MAX] {
        assert_eq!(at(root, &["outbox", "drop", &word(id), "--yes", "--json"]).code(0).json()[0]["dropped"], 1, "{id}");
    }
    assert_eq!(each(&messages(root, &[]), "id"), [first_of(1)]);
    // And without the tables, as a version without an outbox left it, there is none.
    sql(root, "DROP TABLE journal_outbox; DROP TABLE journal_follower");
    at(root, &["outbox"]).code(0).says(&["no messages yet"]);
    at(root, &["outbox", "show", "3"]).code(1);
    at(root, &["followers"]).code(0).says(&["nobody follows"]);
    at(root, &["status"]).code(0);
}

#[test]
fn followers_are_told_of_and_can_be_forgotten() {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path();
    let journal = Journal::open(root).expect("open");
    at(root, &["followers"]).code(0).says(&["nobody follows the changes under a name"]);
    for n in 0..5 {
        send(&journal, "a", &word(n));
    }
    journal.follower("index").expect("a follower").advance(TxnId::from(2)).expect("advanced");
    let follower = &at(root, &["followers", "--json"]).code(0).json()[0];
    assert_eq!((&follower["name"], &follower["position"]), (&json!("index"), &json!(2)), "{follower}");
    assert_eq!((&follower["behind"], &follower["exact"]), (&json!(3), &json!(true)), "{follower}");
    at(root, &["status"]).code(0).says(&["index at 2, 3 behind"]);
    assert_eq!(at(root, &["status", "--json"]).code(0).json()[0]["followers"][0], *follower);
    let before = picture(root);
    at(root, &["followers", "forget", "nobody"]).code(1).says(&["\"nobody\"", "journalctl-kb followers"]);
    assert!(picture(root) == before, "nothing is opened to forget nobody");
    let forgot = at(root, &["followers", "forget", "index", "--json"]).code(0);
    assert_eq!(forgot.json()[0], json!({ "name": "index", "position": 2 }));
    assert_eq!(at(root, &["followers", "--json"]).code(0).json().len(), 0);
    assert_eq!(journal.follower("index").expect("a follower").position().expect("a position"), TxnId::from(0));
}
