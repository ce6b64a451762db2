//! How much was tried, for `tests/prove`, which adds it up and writes it where people read it.

use std::fs;
use std::io::Write;

/// Adds to a figure: `what` of which harness. Nothing is written unless JOURNAL_KB_FIGURES names a file.
pub(crate) fn add(what: &str, count: usize) {
    let Some(file) = std::env::var_os("JOURNAL_KB_FIGURES") else { return };
    let mut file = fs::File::options().append(true).create(true).open(file).unwrap();
    // In one call, because several tests write at once.
    file.write_all(format!("{count}\t{what}\n").as_bytes()).unwrap();
}
