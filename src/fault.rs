//! What tests have happen inside the engine: faults that are planted in it, to see that the proof finds them. Without the
//! feature `planted-faults` nothing of it is compiled in.

/// A fault. The name of the variant, in the variable `JOURNAL_KB_PLANTED`, has it happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Staged content too large for the journal is not synced before the commit point.
    StagedContentUnsynced,
    /// Settling does not sync the live files before redo content goes.
    LiveFilesUnsynced,
}

/// True when a test has planted this fault in this process.
#[cfg(feature = "planted-faults")]
pub(crate) fn planted(fault: Fault) -> bool {
    static PLANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let planted = PLANTED.get_or_init(|| std::env::var("JOURNAL_KB_PLANTED").ok());
    planted.as_ref().is_some_and(|name| *name == format!("{fault:?}"))
}

/// Never, in what is built for use.
#[cfg(not(feature = "planted-faults"))]
#[inline(always)]
pub(crate) const fn planted(_: Fault) -> bool {
    false
}
