//! Damage to a journal that lies still: arbitrary values in its rows, changed bytes in its database and its log, files of
//! its own that are gone, cut short or something else.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::OnceLock;

use journal_kb::__fuzz::frame;
use journal_kb::rusqlite::types::Value;
use journal_kb::rusqlite::{Connection, params};

use super::input::Input;
use super::starts::UNTOUCHED;

/// How deep the damage goes: what may be expected afterwards hangs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// Rows with values of the right types.
    Rows,
    /// Files of the journal's own, or of the tree.
    Files,
    /// What no program writes: values of other types, a missing table, `journal_meta`, bytes of the database or its log.
    Database,
}

/// A table.
struct Table {
    name: String,
    /// The columns that are its key.
    key: String,
    columns: Vec<String>,
}

/// Every table of the engine's, as the schema has them; but for `journal_meta`, without which there is no journal.
fn tables(database: &Connection) -> &'static [Table] {
    static TABLES: OnceLock<Vec<Table>> = OnceLock::new();
    TABLES.get_or_init(|| {
        let words = |sql: &str| {
            let mut words = database.prepare(sql).unwrap();
            let words = words.query_map((), |row| row.get::<_, String>(0)).unwrap();
            words.collect::<Result<Vec<_>, _>>().unwrap()
        };
        let names =
            words("SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB 'journal_*' ORDER BY name");
        let tables = names.into_iter().filter(|name| name != "journal_meta").map(|name| Table {
            key: words(&format!("SELECT name FROM pragma_table_info('{name}') WHERE pk > 0 ORDER BY pk")).join(", "),
            columns: words(&format!("SELECT name FROM pragma_table_info('{name}')")),
            name,
        });
        tables.collect()
    })
}

/// Words that the engine knows.
const WORDS: [&str; 41] = [
    "committed",
    "pending",
    "applied",
    "settling",
    "settled",
    "quarantined",
    "active",
    "open",
    "closed",
    "dead",
    "any",
    "replacing",
    "layer",
    "true",
    "changing",
    "created",
    "replaced",
    "removed",
    "renamed",
    "directory",
    "finished",
    "trying",
    "aside",
    "run:open",
    "parked",
    "inline",
    "staged",
    "placed",
    "unwanted",
    "writing",
    "sealed",
    "incomplete",
    "small",
    "t",
    "gone",
    "other",
    "outbox:t",
    "consumer",
    "follower",
    "main",
    "",
];

/// Names and paths that lead out of the root, into the engine's own, nowhere, or to what is there.
const PATHS: [&str; 34] = [
    "../../outside/secret",
    "../outside",
    "/",
    "..",
    ".",
    "",
    "a/..",
    "out/secret",
    "out/dir/file",
    "out",
    "d/secret",
    ".journal",
    ".journal/journal.db",
    ".journal/locks/main.lock",
    ".journal-stage",
    "d/.journal-stage",
    "a//b",
    "a/",
    "a",
    "b",
    "d",
    "d/x",
    "d/y",
    "d/e",
    "d/e/z",
    "f",
    "f/w",
    "g",
    "g/new",
    "f/link",
    "a/below",
    "new\n\u{1b}[2J",
    "a\0b",
    "/dev/shm",
];

/// Damages the database by as many edits as the input says, and what lies beside it. Says how deep that goes.
pub(crate) fn damage(input: &mut Input<'_>, root: &Path, database: Connection) -> Depth {
    database.execute_batch("PRAGMA ignore_check_constraints = ON; PRAGMA synchronous = OFF; BEGIN").unwrap();
    let mut depth = Depth::Rows;
    let mut bytes = Vec::new();
    for _ in 0..input.below(8) {
        match input.byte() {
            0..=199 => depth = depth.max(edit_rows(input, &database)),
            200..=225 => {
                if edit_files(input, root) {
                    depth = depth.max(Depth::Files);
                }
            }
            226..=245 => bytes.push((input.byte(), input.number() as u64, input.byte())),
            _ => {
                let table = &input.one(tables(&database)).name;
                let verb = input.one(&["DROP TABLE", "DELETE FROM"]);
                let _ = database.execute(&format!("{verb} {table}"), ());
                depth = depth.max(if *verb == "DELETE FROM" { Depth::Rows } else { Depth::Database });
            }
        }
    }
    database.execute_batch("COMMIT").unwrap();
    if input.byte() > 127 {
        let _ = database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
    }
    drop(database);
    for (which, at, change) in bytes {
        let name = if which < 160 { "journal.db" } else { "journal.db-wal" };
        let Ok(file) = fs::File::options().read(true).write(true).open(root.join(".journal").join(name)) else {
            continue;
        };
        let length = file.metadata().unwrap().len();
        let mut byte = [0];
        if length > 0 && change > 0 && file.read_exact_at(&mut byte, at % length).is_ok() {
            file.write_all_at(&[byte[0] ^ change], at % length).unwrap();
            depth = Depth::Database;
        }
    }
    depth
}

/// Damages some row of some table.
pub(crate) fn edit_rows(input: &mut Input<'_>, database: &Connection) -> Depth {
    let all = tables(database);
    let wanted = input.below(all.len());
    let rows = |table: &str| {
        database.query_row(&format!("SELECT count(*) FROM {table}"), (), |row| row.get::<_, usize>(0)).unwrap_or(0)
    };
    // Of those that have rows, from the wanted one on.
    let filled = (0..all.len()).map(|n| &all[(wanted + n) % all.len()]).find(|table| rows(&table.name) > 0);
    let Some(Table { name: table, key, columns }) = filled else { return Depth::Rows };
    let count = rows(table);
    let (column, row) = (input.one(columns), input.below(count));
    let one = |row: usize| format!("({key}) IN (SELECT {key} FROM {table} LIMIT 1 OFFSET {row})");
    let kind = |column: &str| {
        let kind = format!("SELECT typeof({column}) FROM {table} WHERE {}", one(row));
        database.query_row(&kind, (), |row| row.get::<_, String>(0)).unwrap_or_default()
    };
    let done = match input.byte() {
        0..=119 => {
            let value = value(input, &kind(column));
            database.execute(&format!("UPDATE {table} SET {column} = ?1 WHERE {}", one(row)), params![value])
        }
        120..=179 => {
            // A record that is true to its checksum, and says something else.
            let stored = database.query_row(&format!("SELECT {column} FROM {table} WHERE {}", one(row)), (), |row| {
                row.get::<_, Vec<u8>>(0)
            });
            let Ok(mut stored) = stored else { return Depth::Rows };
            let framed = stored.len() > 9;
            if framed {
                stored = stored[1..stored.len() - 8].to_vec();
            }
            for _ in 0..1 + input.below(4) {
                let at = input.below(stored.len() + 1);
                match (input.byte(), at < stored.len()) {
                    (0..=99, true) => stored[at] ^= input.byte(),
                    (100..=139, true) => drop(stored.remove(at)),
                    (140..=199, _) => drop(stored.splice(at..at, input.bytes().iter().copied())),
                    (200..=229, true) => stored[at] = *input.one(&[0, 1, 2, 3, 250, 251, 252, 253, 255]),
                    _ => stored.truncate(at),
                }
            }
            let stored = if framed { frame(&stored) } else { stored };
            database.execute(&format!("UPDATE {table} SET {column} = ?1 WHERE {}", one(row)), params![stored])
        }
        180..=209 => {
            let other = format!("(SELECT {column} FROM {table} LIMIT 1 OFFSET {})", input.below(count));
            database.execute(&format!("UPDATE {table} SET {column} = {other} WHERE {}", one(row)), ())
        }
        210..=234 => {
            let others = columns.iter().map(|other| if other == column { "?1" } else { other }).collect::<Vec<_>>();
            let (names, others) = (columns.join(", "), others.join(", "));
            let copy = format!("INSERT INTO {table} ({names}) SELECT {others} FROM {table} WHERE {}", one(row));
            database.execute(&copy, params![value(input, &kind(column))])
        }
        235..=249 => database.execute(&format!("DELETE FROM {table} WHERE {}", one(row)), ()),
        _ => {
            let column =
                *input.one(&["schema", "app_schema", "created_ms", "fence", "fence_ceiling", "fence_mark", "id"]);
            let value = value(input, if column == "fence_mark" { "blob" } else { "integer" });
            let done = database.execute(&format!("UPDATE journal_meta SET {column} = ?1"), params![value]);
            return if done.is_ok() { Depth::Database } else { Depth::Rows };
        }
    };
    // A value that the table does not take leaves it as it was.
    let _ = done;
    Depth::Rows
}

/// A value, mostly of the type that is there.
pub(crate) fn value(input: &mut Input<'_>, kind: &str) -> Value {
    let word = |input: &mut Input<'_>| match input.byte() {
        0..=127 => input.one(&WORDS).as_bytes().to_vec(),
        128..=199 => input.one(&PATHS).as_bytes().to_vec(),
        _ => input.bytes().to_vec(),
    };
    let bytes = |input: &mut Input<'_>| match input.byte() {
        0..=119 => input.one(&PATHS).as_bytes().to_vec(),
        120..=149 => input.bytes().to_vec(),
        150..=244 => frame(input.bytes()),
        _ => input.bytes().repeat(1 + 4 * usize::from(input.byte())),
    };
    match (input.byte(), kind) {
        (0..=9, _) => Value::Null,
        (10..=99, "integer") | (240..=243, _) => Value::Integer(input.number()),
        (100..=239, "integer") => Value::Integer(i64::from(input.byte()) % 8),
        (10..=239, "text") | (244..=248, _) => Value::Text(String::from_utf8_lossy(&word(input)).into_owned()),
        (249..=250, _) => Value::Real(input.number() as f64),
        _ => Value::Blob(bytes(input)),
    }
}

/// Does something to a file of the journal's own or of the tree, but for what nothing may touch.
fn edit_files(input: &mut Input<'_>, root: &Path) -> bool {
    let of_journal = input.byte() < 180;
    let top = if of_journal { root.join(".journal") } else { root.to_owned() };
    let ours = |entry: &walkdir::DirEntry| {
        let name = entry.file_name().as_bytes();
        name != UNTOUCHED.as_bytes() && !name.starts_with(b"journal.db") && (of_journal || name != b".journal")
    };
    let walk = walkdir::WalkDir::new(top).min_depth(1).sort_by_file_name().into_iter().filter_entry(ours);
    let all: Vec<_> = walk.filter_map(Result::ok).collect();
    let Some(entry) = all.get(input.below(all.len())) else { return false };
    let path = entry.path();
    let is_directory = entry.file_type().is_dir();
    let clear = || {
        let _ = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    };
    let _ = match input.byte() {
        0..=39 => {
            clear();
            Ok(())
        }
        40..=79 if entry.file_type().is_file() => fs::write(path, input.bytes()),
        80..=119 => {
            clear();
            symlink(root.join("../outside/secret"), path)
        }
        120..=149 => {
            clear();
            symlink(root.join("../outside"), path)
        }
        150..=179 => {
            clear();
            fs::create_dir_all(path.join("in/the/way"))
        }
        180..=199 => {
            clear();
            std::os::unix::net::UnixListener::bind(path).map(drop)
        }
        200..=229 => fs::rename(path, path.with_file_name("elsewhere")),
        _ if !entry.file_type().is_symlink() => {
            fs::set_permissions(path, fs::Permissions::from_mode(u32::from(input.byte())))
        }
        _ => return false,
    };
    true
}
