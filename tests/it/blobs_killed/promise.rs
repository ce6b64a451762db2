//! What was said of blobs, held against what there is in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use journal_kb::NewBlob;
use journal_kb::rusqlite::Connection;

use super::judge;
use crate::blobs::bytes;
use crate::support::Tree;

/// What was met.
#[derive(Debug, Default)]
pub(super) struct Met {
    pub(super) answers: usize,
    pub(super) whole_after_waiting: usize,
    pub(super) incomplete_after_waiting: usize,
    /// By the name of a record.
    pub(super) followed: usize,
    /// Blobs whose writers died.
    pub(super) incomplete: usize,
}

/// What is wrong with what was said.
pub(super) fn judge(root: &Path, log: &[String]) -> (Met, Vec<String>) {
    // Who comes next finds out what became of those whose writers died.
    crate::crash_points::open(root).close().unwrap();
    let mut wrong = judge::wrong(root);
    let states = states(root);
    let mut met =
        Met { incomplete: states.values().filter(|(state, _)| state == "incomplete").count(), ..Met::default() };
    let mut readers = BTreeSet::new();
    let (mut begun, mut said) = (BTreeMap::new(), BTreeSet::new());
    let mut answered = BTreeSet::new();
    for (n, line) in log.iter().enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        let state = |id: &str| states.get(id).map_or("unknown", |(state, _)| state.as_str());
        let right = match words[..] {
            ["begun", id, _, size] => begun.insert(id, size.parse::<u64>().unwrap()).is_none(),
            ["sealed", id] => matches!(state(id), "sealed" | "removed"),
            ["aborted", id] => state(id) == "aborted",
            ["removed", id] => state(id) == "removed",
            ["followed", _, id, answer] => {
                met.followed += 1;
                answer == "whole" && matches!(state(id), "sealed" | "removed")
            }
            ["read", who, id, ref answer @ ..] => {
                met.answers += 1;
                readers.insert(who);
                let waited = said.contains(&format!("waits {who} {id}"));
                let right = match *answer {
                    ["whole"] => matches!(state(id), "sealed" | "removed"),
                    // Nobody is told so but of who was about to be killed.
                    ["incomplete", written] => {
                        let writer = id.split('-').next().unwrap();
                        state(id) == "incomplete"
                            && said.contains(&format!("ended {writer}"))
                            && states[id].1.is_some_and(|came| written.parse() == Ok(came) && came <= begun[id])
                    }
                    ["aborted"] => state(id) == "aborted",
                    ["gone"] => state(id) == "removed" && said.contains(&format!("removing {id}")),
                    _ => false,
                };
                met.whole_after_waiting += usize::from(waited && *answer == ["whole"]);
                met.incomplete_after_waiting += usize::from(waited && answer[0] == "incomplete");
                right && answered.insert((who, id))
            }
            ["begins"] | ["waits", ..] | ["ended", _] | ["removing", _] => true,
            _ => false,
        };
        if !right {
            wrong.push(format!(
                "line {n}: {line}; in the end: {:?}",
                words.get(1..).map(|ids| ids.iter().map(|id| state(id)).collect::<Vec<_>>())
            ));
        }
        said.insert(line.clone());
    }
    let unanswered = readers.iter().flat_map(|who| begun.keys().map(move |id| (*who, *id)));
    wrong.extend(
        unanswered.filter(|pair| !answered.contains(pair)).map(|(who, id)| format!("{who} never heard of {id}")),
    );
    wrong.extend(unlike(&states, root));
    (met, wrong)
}

/// Each blob that was named, its state, and how far it came.
fn states(root: &Path) -> BTreeMap<String, (String, Option<u64>)> {
    let database = Connection::open(root.join(".journal/journal.db")).unwrap();
    let mut all = database.prepare("SELECT id, state, written FROM journal_blob").unwrap();
    let all = all.query_map((), |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap();
    all.map(|row| row.unwrap()).collect()
}

/// Blobs that were to be there with a row, and are without, or the other way round.
fn unlike(states: &BTreeMap<String, (String, Option<u64>)>, root: &Path) -> Vec<String> {
    let database = Connection::open(root.join(".journal/journal.db")).unwrap();
    let mut all = database.prepare("SELECT substr(path, 6) FROM doc WHERE path LIKE 'told %'").unwrap();
    let told = all.query_map((), |row| row.get::<_, String>(0)).unwrap().map(|row| row.unwrap());
    told.filter(|id| !states.get(id).is_some_and(|(state, _)| matches!(state.as_str(), "sealed" | "removed")))
        .map(|id| format!("a row tells of {id}, which is not there"))
        .collect()
}

/// A log of what was well done, and what must not be believed in its place.
#[test]
fn what_was_not_so_is_seen() {
    let tree = Tree::new();
    let journal = crate::crash_points::open(tree.root());
    let write = |id: &str| {
        let mut blob = journal.blobs().create_with(NewBlob::new().id(id)).unwrap();
        blob.write_all(&bytes(1, 100)).unwrap();
        blob
    };
    write("1-0-0").seal().unwrap();
    write("1-0-1").abort().unwrap();
    journal.blobs().remove(write("1-0-2").seal().unwrap()).unwrap();
    journal.close().unwrap();
    let database = Connection::open(tree.path(".journal/journal.db")).unwrap();
    let dead =
        "INSERT INTO journal_blob (id, state, written, created_ms, ended_ms) VALUES ('2-0-0', 'incomplete', 50, 1, 2)";
    database.execute(dead, ()).unwrap();
    drop(database);
    let well = "begins\nbegun 1-0-0 1 100\nsealed 1-0-0\nbegun 1-0-1 1 100\naborted 1-0-1\nbegun 1-0-2 1 100\nsealed 1-0-2\n\
        begun 2-0-0 1 100\nwaits 3 2-0-0\nended 2\nread 3 2-0-0 incomplete 50\nread 3 1-0-0 whole\nread 3 1-0-1 aborted\n\
        removing 1-0-2\nremoved 1-0-2\nread 3 1-0-2 gone\nfollowed 0 1-0-0 whole";
    let wrong = |log: &str| judge(tree.root(), &log.lines().map(str::to_owned).collect::<Vec<_>>()).1;
    assert_eq!(wrong(well), [""; 0]);
    for (what, forged) in [
        ("read 3 2-0-0 incomplete 50", "read 3 2-0-0 incomplete 51"),
        ("read 3 2-0-0 incomplete 50", "read 3 2-0-0 whole"),
        ("read 3 2-0-0 incomplete 50", "read 3 2-0-0 gone"),
        ("ended 2\n", ""),
        ("read 3 1-0-0 whole\n", ""),
        ("read 3 1-0-0 whole", "read 3 1-0-0 whole\nread 3 1-0-0 whole"),
        ("read 3 1-0-0 whole", "read 3 1-0-0 99 bytes, and not those of 100"),
        ("read 3 1-0-0 whole", "read 3 1-0-0 incomplete 50"),
        ("read 3 1-0-0 whole", "read 3 1-0-0 refused: it is busy"),
        ("read 3 1-0-1 aborted", "read 3 1-0-1 whole"),
        ("removing 1-0-2\n", ""),
        ("followed 0 1-0-0 whole", "followed 0 2-0-0 whole"),
        ("followed 0 1-0-0 whole", "followed 0 - its writer is dead"),
        ("sealed 1-0-0", "sealed 2-0-0"),
        ("aborted 1-0-1", "aborted 1-0-0"),
        ("removed 1-0-2", "removed 1-0-0"),
    ] {
        assert!(well.contains(what));
        assert_ne!(wrong(&well.replace(what, forged)), [""; 0], "{forged} for {what}");
    }
}

/// The same for what is wrong with rows and files.
#[test]
fn what_is_not_tidy_is_seen() {
    let tree = Tree::new();
    let journal = crate::crash_points::open(tree.root());
    let mut blob = journal.blobs().create_with(NewBlob::new().id("named")).unwrap();
    blob.write_all(&bytes(2, 100_000)).unwrap();
    blob.seal().unwrap();
    journal.settle().unwrap();
    journal.close().unwrap();
    assert_eq!(judge::wrong(tree.root()), [""; 0]);
    let sql = |sql: &str| {
        Connection::open(tree.path(".journal/journal.db")).unwrap().execute_batch(sql).unwrap();
        judge::wrong(tree.root())
    };
    for (harms, mends) in [
        ("UPDATE journal_blob_content SET named = 2", "UPDATE journal_blob_content SET named = 1"),
        (
            "UPDATE journal_blob_content SET hash = CAST(x'00' || substr(hash, 2) AS BLOB)",
            "UPDATE journal_blob_content SET hash = h FROM was",
        ),
        ("UPDATE journal_blob_content SET size = 7", "UPDATE journal_blob_content SET size = 100000"),
    ] {
        sql("CREATE TABLE IF NOT EXISTS was AS SELECT hash AS h FROM journal_blob_content");
        assert_ne!(sql(harms), [""; 0], "{harms}");
        assert_eq!(sql(mends), [""; 0], "{mends}");
    }
    let stray = tree.path(".journal/stage/stray");
    std::fs::write(&stray, "stray").unwrap();
    assert_ne!(judge::wrong(tree.root()), [""; 0]);
    std::fs::remove_file(stray).unwrap();
    let file = std::fs::read_dir(tree.path(".journal/blobs")).unwrap().next().unwrap().unwrap().path();
    let mut content = std::fs::read(&file).unwrap();
    content[5] ^= 1;
    std::fs::write(&file, &content).unwrap();
    assert_ne!(judge::wrong(tree.root()), [""; 0]);
    std::fs::remove_file(file).unwrap();
    assert_ne!(judge::wrong(tree.root()), [""; 0]);
}
