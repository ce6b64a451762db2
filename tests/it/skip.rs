//! How a test says that it cannot run here.

/// How the line begins by which a test says so.
pub(crate) const MARK: &str = "SKIP:";

/// Reports a test that lacks a tool or a permission. CI has to provide everything, so there it is a failure; anywhere
/// else it is a line that begins with `SKIP:`.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "nothing may be skipped in CI: {why}");
    eprintln!("{MARK} {why}");
}
