//! The one place that reads clocks. Times are for people; no decision uses them, but for deadlines of waiting.
#![expect(clippy::disallowed_methods, reason = "the one place that reads clocks")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, in UTC.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// An instant after which waiting ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    started: Instant,
    wait: Duration,
}

impl Deadline {
    pub(crate) fn after(wait: Duration) -> Self {
        Self { started: Instant::now(), wait }
    }

    /// What is left; zero once it has passed.
    pub(crate) fn left(&self) -> Duration {
        self.wait.saturating_sub(self.started.elapsed())
    }

    pub(crate) fn passed(&self) -> bool {
        self.left().is_zero()
    }

    /// How long has been waited.
    pub(crate) fn waited(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The identity of this boot of the machine: 16 bytes, or empty where the kernel does not say.
pub(crate) fn boot_id() -> Vec<u8> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    uuid::Uuid::try_parse(text.trim()).map(|id| id.as_bytes().to_vec()).unwrap_or_default()
}

/// When this process started, in clock ticks since boot: with the pid, an identity that is not reused.
pub(crate) fn process_start() -> i64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command in parentheses may hold spaces; the start time is the 20th field behind it.
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    behind.split_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}
