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

/// When a process started, by the clock as it is now; none when it has ended, or the kernel does not say.
pub(crate) fn process_began_ms(pid: u32) -> Option<i64> {
    let ticks = i64::try_from(rustix::param::clock_ticks_per_second()).ok().filter(|ticks| *ticks > 0)?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime_ms = uptime.split_whitespace().next()?.parse::<f64>().ok()? * 1000.0;
    Some(now_ms() - (uptime_ms as i64 - started(&pid.to_string())? * 1000 / ticks))
}

/// When this process started, in clock ticks since boot: with the pid, an identity that is not reused.
pub(crate) fn process_start() -> i64 {
    started("self").unwrap_or(0)
}

/// A process, for as long as it lives: its boot, number and start tell it from any other.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Process {
    boot: Vec<u8>,
    pid: u32,
    started: i64,
}

impl Process {
    /// The one that has this number now; none when nobody has.
    pub(crate) fn find(pid: u32) -> Option<Self> {
        Some(Self { boot: boot_id(), pid, started: started(&pid.to_string())? })
    }

    /// One that is on record.
    pub(crate) fn recorded(boot: Vec<u8>, pid: u32, started: i64) -> Self {
        Self { boot, pid, started }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn boot(&self) -> &[u8] {
        &self.boot
    }

    /// In clock ticks since boot.
    pub(crate) fn started(&self) -> i64 {
        self.started
    }

    /// True until it has ended, and with it, where it is process 1 of a pid namespace, all in that. One of a container further in
    /// is known by the number it has there; one of a container beside is not seen.
    pub(crate) fn lives(&self) -> bool {
        self.lives_here() || (self.boot == boot_id() && self.lives_further_in())
    }

    /// True until it has ended, where it is known here by the same number.
    pub(crate) fn lives_here(&self) -> bool {
        self.boot == boot_id() && started(&self.pid.to_string()) == Some(self.started)
    }

    fn lives_further_in(&self) -> bool {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut numbers = processes.filter_map(|name| name.to_str()?.parse::<u32>().ok());
        numbers.any(|number| {
            started(&number.to_string()) == Some(self.started) && numbers_of(number).contains(&i64::from(self.pid))
        })
    }
}

/// The number of a process in each pid namespace that it is in, from the one here inwards; none when it has ended.
pub(crate) fn numbers_of(pid: u32) -> Vec<i64> {
    let status = std::fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// The start of a process that has not ended. One that has and is only waited for has ended.
fn started(process: &str) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The command in parentheses may hold spaces; the state is the first field behind it, the start the 20th.
    let mut behind = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(behind.next()?, "Z" | "X") {
        return None;
    }
    behind.nth(18)?.parse().ok()
}
