//! What was said of blobs, held against what there is in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use journal_kb::rusqlite::Connection;

use super::judge;

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
