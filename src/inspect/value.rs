//! Reading columns that anybody may have written, and writing paths that need not be UTF-8.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::Row;
use rusqlite::types::ValueRef;
use serde::Serializer;
use serde::ser::SerializeMap;

/// The value of a column, or NULL where there is no such column.
fn value<'a>(row: &'a Row<'_>, column: &str) -> ValueRef<'a> {
    row.get_ref(column).unwrap_or(ValueRef::Null)
}

/// A number; none when it is NULL or something else.
pub(super) fn number(row: &Row<'_>, column: &str) -> Option<i64> {
    match value(row, column) {
        ValueRef::Integer(number) => Some(number),
        _ => None,
    }
}

/// A number; 0 when it is something else.
pub(super) fn number_or_zero(row: &Row<'_>, column: &str) -> i64 {
    number(row, column).unwrap_or(0)
}

/// A size or a count; 0 when it is negative or something else.
pub(super) fn count(row: &Row<'_>, column: &str) -> u64 {
    u64::try_from(number_or_zero(row, column)).unwrap_or(0)
}

/// A size that may be absent.
pub(super) fn size(row: &Row<'_>, column: &str) -> Option<u64> {
    number(row, column).map(|number| u64::try_from(number).unwrap_or(0))
}

/// Text, lossily; none when it is NULL.
pub(super) fn text(row: &Row<'_>, column: &str) -> Option<String> {
    match value(row, column) {
        ValueRef::Null => None,
        ValueRef::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => Some("<not text>".into()),
    }
}

/// Text, lossily; empty when it is NULL.
pub(super) fn text_or_empty(row: &Row<'_>, column: &str) -> String {
    text(row, column).unwrap_or_default()
}

/// Bytes; none when there are none.
pub(super) fn bytes<'a>(row: &'a Row<'_>, column: &str) -> Option<&'a [u8]> {
    match value(row, column) {
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => Some(bytes),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => None,
    }
}

/// A stored path, as it stands: it is shown, never opened.
pub(super) fn path(row: &Row<'_>, column: &str) -> Option<PathBuf> {
    bytes(row, column).map(|bytes| PathBuf::from(OsStr::from_bytes(bytes)))
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Writes `path`, and `path_hex` when it is not UTF-8.
pub(super) fn path_fields<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    two_fields(Some(path), ["path", "path_hex"], serializer)
}

/// Writes `path` (and `path_hex`), or nothing.
pub(super) fn optional_path_fields<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    two_fields(path.as_deref(), ["path", "path_hex"], serializer)
}

/// Writes `from` (and `from_hex`), or nothing.
pub(super) fn from_fields<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    two_fields(path.as_deref(), ["from", "from_hex"], serializer)
}

/// Writes `kept_at` (and `kept_at_hex`), or nothing.
pub(super) fn kept_at_fields<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    two_fields(path.as_deref(), ["kept_at", "kept_at_hex"], serializer)
}

/// Writes `file` (and `file_hex`).
pub(super) fn file_fields<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    two_fields(Some(path), ["file", "file_hex"], serializer)
}

/// Writes `file` (and `file_hex`), or nothing.
pub(super) fn optional_file_fields<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    two_fields(path.as_deref(), ["file", "file_hex"], serializer)
}

/// Writes `item` (and `item_hex`), what names an item of a run.
pub(super) fn item_fields<S: Serializer>(item: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    two_fields(Some(Path::new(OsStr::from_bytes(item))), ["item", "item_hex"], serializer)
}

/// Writes `fingerprint` (and `fingerprint_hex`).
pub(super) fn fingerprint_fields<S: Serializer>(fingerprint: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    two_fields(Some(Path::new(OsStr::from_bytes(fingerprint))), ["fingerprint", "fingerprint_hex"], serializer)
}

/// Writes `payload` (and `payload_hex`), or nothing.
pub(super) fn payload_fields<S: Serializer>(payload: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    let payload = payload.as_deref().map(|bytes| Path::new(OsStr::from_bytes(bytes)));
    two_fields(payload, ["payload", "payload_hex"], serializer)
}

/// Writes a path as one value, lossily.
pub(super) fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

fn two_fields<S: Serializer>(path: Option<&Path>, names: [&'static str; 2], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    if let Some(path) = path {
        map.serialize_entry(names[0], &path.to_string_lossy())?;
        if path.to_str().is_none() {
            map.serialize_entry(names[1], &hex(path.as_os_str().as_bytes()))?;
        }
    }
    map.end()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a database in memory, to read from")]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn whatever_stands_in_a_column_something_is_shown() {
        let database = Connection::open_in_memory().unwrap();
        let sql = "SELECT 7 AS a, -7 AS b, 'text' AS c, x'ff61' AS d, NULL AS e, 1.5 AS f, CAST(x'ff61' AS TEXT) AS g";
        database
            .query_row(sql, (), |row| {
                assert_eq!((number(row, "a"), count(row, "a"), count(row, "b")), (Some(7), 7, 0));
                assert_eq!((number(row, "c"), number_or_zero(row, "d"), size(row, "e")), (None, 0, None));
                assert_eq!(text(row, "c").as_deref(), Some("text"));
                assert_eq!((text(row, "e"), text(row, "f").as_deref()), (None, Some("<not text>")));
                assert_eq!(text_or_empty(row, "g"), "\u{fffd}a");
                assert_eq!(path(row, "d").unwrap().as_os_str().as_bytes(), b"\xffa");
                assert_eq!((path(row, "a"), text(row, "no such column"), bytes(row, "f")), (None, None, None));
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn hex_has_two_digits_a_byte() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
