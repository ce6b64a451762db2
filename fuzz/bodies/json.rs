//! Whatever stands in a journal, as the command shows it: what `--json` writes is JSON, an object a line, and says what the
//! library says; from `path_hex` come the exact bytes of a path; nothing for people holds a command for their terminal.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use journal_kb::__fuzz::frame;
use journal_kb::inspect::{InspectOptions, Inspector, TransactionFilter};
use journal_kb::rusqlite::types::Value as Stored;
use journal_kb::rusqlite::{Connection, params};
use serde::Serialize;
use serde_json::Value;

use super::edits::edit_rows;
use super::input::Input;
use super::starts;

/// The command, for who runs this without it having been built beside.
const COMMAND: &str = "JOURNALCTL_KB";

pub(crate) fn run(bytes: &[u8]) {
    let home = home();
    let root = home.join("root");
    let _ = std::fs::remove_dir_all(&root);
    let mut input = Input::new(bytes);
    let verb = input.byte() % 8;
    let database = input.one(starts::all()).lay(&root);
    put(&mut input, &database);
    let alone = InspectOptions::default().alone(true);
    // Without the row that says so it is none.
    let Ok(inspector) = Inspector::open_with(&root, alone) else { return };
    match verb {
        0 => {
            let status = inspector.status().expect("status");
            compare(&root, &["status"], &[status]);
        }
        1 => {
            let all = TransactionFilter { limit: None, since_ms: None };
            let all = inspector.transactions(all).expect("log");
            for (told, (id, label)) in compare(&root, &["log", "-n", "0"], &all).iter().zip(labels(&database)) {
                assert_eq!((told["id"].as_i64(), told["label"].as_str()), (Some(id), Some(label.as_str())));
            }
        }
        2 => drop(compare(&root, &["quarantine"], &inspector.quarantine().expect("the quarantine"))),
        3 => {
            let all = inspector.quarantine().expect("the quarantine");
            let Some(entry) = all.get(input.below(all.len())) else { return };
            let shown = inspector.quarantined(entry.id).expect("what is in quarantine").expect("it is there");
            compare(&root, &["quarantine", "show", &entry.id.to_string()], &[shown]);
        }
        4 => {
            let locks = inspector.locks().expect("locks");
            let mut said: Vec<_> = locks.iter().map(|lock| serde_json::to_value(lock).expect("JSON")).collect();
            said.push(serde_json::json!({ "turnstile": inspector.turnstile() }));
            drop(compare(&root, &["locks"], &said));
        }
        5 => drop(compare(&root, &["runs", "-n", "0"], &inspector.runs(None).expect("runs"))),
        6 => {
            let all = inspector.runs(None).expect("runs");
            let Some(run) = all.get(input.below(all.len())) else { return };
            let shown = inspector.run(run.id, Some(5)).expect("a run").expect("it is there");
            // Another job may be called like its number.
            let shown = inspector.run_of(&run.id.to_string(), Some(5)).expect("a run").unwrap_or(shown);
            let told = compare(&root, &["runs", "show", "--items", "5", "--", &run.id.to_string()], &[shown]);
            for tried in told[0]["tries"].as_array().expect("a list of tries") {
                // Of no bytes SQLite takes no part.
                let stored =
                    "SELECT EXISTS (SELECT 1 FROM journal_run_try WHERE ifnull(substr(item, 1, 4096), x'') = ?1)";
                let is_there = database.query_row(stored, [exact(tried, "item")], |row| row.get::<_, bool>(0));
                assert!(is_there.unwrap(), "{tried}");
            }
        }
        _ => {
            let ids = labels(&database);
            let Some((id, _)) = ids.get(input.below(ids.len())).filter(|(id, _)| *id > 0) else { return };
            let shown = inspector.transaction((*id).into()).expect("show").expect("it is there");
            let told = compare(&root, &["show", &id.to_string()], &[shown]);
            let paths = told[0]["paths"].as_array().expect("a list of paths").iter().map(|told| exact(told, "path"));
            assert_eq!(paths.collect::<Vec<_>>(), stored_paths(&database, "path", *id));
            let told = told[0]["paths"].as_array().expect("a list of paths").iter().map(|told| exact(told, "from"));
            assert_eq!(told.collect::<Vec<_>>(), stored_paths(&database, "origin", *id));
        }
    }
}

fn home() -> &'static Path {
    static HOME: OnceLock<tempfile::TempDir> = OnceLock::new();
    HOME.get_or_init(starts::scratch).path()
}

/// Puts arbitrary values where people's own go, and a few anywhere.
fn put(input: &mut Input<'_>, database: &Connection) {
    database.execute_batch("PRAGMA ignore_check_constraints = ON; PRAGMA synchronous = OFF; BEGIN").unwrap();
    const TEXTS: [&str; 21] = [
        "journal_txn SET label",
        "journal_txn SET lock",
        "journal_txn SET key",
        "journal_txn SET state",
        "journal_session SET program",
        "journal_lock SET purpose",
        "journal_lock SET name",
        "journal_guard SET label",
        "journal_guard SET lock",
        "journal_event SET kind",
        "journal_change SET preimage",
        "journal_change SET kind",
        "journal_run SET job",
        "journal_run SET reason",
        "journal_run SET cursor",
        "journal_run_try SET error",
        "journal_outbox SET topic",
        "journal_outbox SET key",
        "journal_outbox SET error",
        "journal_outbox_topic SET topic",
        "journal_follower SET name",
    ];
    const PATHS: [&str; 8] = [
        "journal_change SET path",
        "journal_change SET origin",
        "journal_redo SET path",
        "journal_event SET path",
        "journal_preimage SET path",
        "journal_run SET fingerprint",
        "journal_run_try SET item",
        "journal_run_item SET item",
    ];
    const NUMBERS: [&str; 15] = [
        "journal_change SET size",
        "journal_change SET old_size",
        "journal_txn SET committed_ms",
        "journal_txn SET bytes",
        "journal_txn SET history",
        "journal_event SET at_ms",
        "journal_lock SET acquired_ms",
        "journal_session SET pid",
        "journal_run SET started_ms",
        "journal_run SET started_at",
        "journal_run SET expected",
        "journal_run_item SET at_ms",
        "journal_outbox SET enqueued_ms",
        "journal_outbox_topic SET published",
        "journal_follower SET position",
    ];
    while !input.is_empty() {
        let (what, value) = match input.byte() {
            // Text need not be UTF-8 either.
            0..=89 => (*input.one(&TEXTS), Stored::Blob(input.bytes().to_vec())),
            90..=149 => (*input.one(&PATHS), Stored::Blob(input.bytes().to_vec())),
            150..=189 => (*input.one(&NUMBERS), Stored::Integer(input.number())),
            190..=209 => {
                let text = String::from_utf8_lossy(input.bytes()).into_owned();
                // As bincode writes a text: its length, in one byte as long as that will do.
                let length = u8::try_from(text.len()).ok().filter(|length| *length < 251).unwrap_or(0);
                let payload = [&[length], text.as_bytes()[..usize::from(length)].as_ref()].concat();
                ("journal_event SET details", Stored::Blob(frame(&payload)))
            }
            _ => {
                edit_rows(input, database);
                continue;
            }
        };
        let is_text = TEXTS.contains(&what);
        let (table, column) = what.split_once(" SET ").expect("a table and its column");
        let value_is = if is_text { "CAST(?1 AS TEXT)" } else { "?1" };
        // All rows, or every other one where they are numbered.
        const NUMBERED: [&str; 5] =
            ["journal_txn", "journal_event", "journal_redo", "journal_preimage", "journal_outbox"];
        let numbered = NUMBERED.contains(&table);
        let some = if numbered && input.byte() > 127 { "WHERE id % 2 = 0" } else { "" };
        let _ = database.execute(&format!("UPDATE {table} SET {column} = {value_is} {some}"), params![value]);
    }
    database.execute_batch("COMMIT").unwrap();
}

/// The transactions as they are stored, newest first: number and label.
fn labels(database: &Connection) -> Vec<(i64, String)> {
    let mut rows = database.prepare("SELECT id, CAST(label AS BLOB) FROM journal_txn ORDER BY id DESC").unwrap();
    let rows = rows.query_map((), |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?))).unwrap();
    rows.map(|row| row.map(|(id, label)| (id, String::from_utf8_lossy(&label).into_owned())).unwrap()).collect()
}

fn stored_paths(database: &Connection, column: &str, txn: i64) -> Vec<Option<Vec<u8>>> {
    let mut rows = database.prepare(&format!("SELECT {column} FROM journal_change WHERE txn = ?1 ORDER BY n")).unwrap();
    let paths = rows.query_map([txn], |row| row.get::<_, Option<Vec<u8>>>(0)).unwrap().map(Result::unwrap);
    // The root, which has no name, is told as people know it.
    paths.map(|path| path.map(|path| if path.is_empty() { b".".to_vec() } else { path })).collect()
}

/// The exact bytes of a path in an object.
fn exact(told: &Value, name: &str) -> Option<Vec<u8>> {
    match told.get(format!("{name}_hex")) {
        Some(hex) => {
            let digits = hex.as_str().expect("text").as_bytes();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).expect("two digits");
            Some(digits.chunks(2).map(byte).collect())
        }
        None => told.get(name).map(|path| path.as_str().expect("text").as_bytes().to_vec()),
    }
}

/// Has the command tell the same as the library, and gives what it told.
fn compare<T: Serialize>(root: &Path, words: &[&str], said: &[T]) -> Vec<Value> {
    let told = command(root, words, true);
    let lines: Vec<Value> =
        told.lines().map(|line| serde_json::from_str(line).expect("JSON, an object a line")).collect();
    let known = |mut value: Value| {
        // That others use the disk too is nothing of the journal's.
        value.as_object_mut().expect("an object").remove("free_bytes");
        value
    };
    let said = said.iter().map(|said| known(serde_json::to_value(said).unwrap())).collect::<Vec<_>>();
    assert_eq!(lines.iter().cloned().map(known).collect::<Vec<_>>(), said, "{words:?}");
    command(root, words, false);
    lines
}

/// What the command says, which must not have failed, and holds nothing that a terminal obeys.
fn command(root: &Path, words: &[&str], json: bool) -> String {
    let program = std::env::var_os(COMMAND)
        .or_else(|| option_env!("CARGO_BIN_EXE_journalctl-kb").map(OsString::from))
        .expect("the command, named by JOURNALCTL_KB");
    let mut command = Command::new(program);
    command.arg("--root").arg(root).args(json.then_some("--json")).args(words);
    // As on a terminal, which gets what is written as it is.
    command.env_remove("NO_COLOR").env("CLICOLOR_FORCE", "1");
    let Output { status, stdout, stderr } = command.output().expect("the command runs");
    let text = String::from_utf8(stdout).expect("UTF-8");
    let complaint = String::from_utf8_lossy(&stderr);
    assert!(matches!(status.code(), Some(0 | 1 | 76)) && complaint.is_empty(), "{words:?}: {status}: {complaint}");
    let obeyed = without_styles(&text).chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(obeyed, None, "{words:?}: {text:?}");
    text
}

/// Without the codes for colours that the command itself writes.
fn without_styles(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let codes = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').len();
        match part[codes..].strip_prefix('m') {
            Some(rest) => plain.push_str(rest),
            None => plain.extend(["\u{1b}[", part]),
        }
    }
    plain
}
