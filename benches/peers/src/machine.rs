//! What all this was measured on.

use std::fs;
use std::process::Command;

use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub date: String,
    /// The commit of this repository, if it is known.
    pub commit: Option<String>,
    pub processor: String,
    pub cores: usize,
    pub memory: u64,
    pub kernel: String,
    pub rust: String,
    pub sqlite: String,
}

impl Machine {
    pub fn look() -> Result<Self> {
        let processors = fs::read_to_string("/proc/cpuinfo")?;
        let memory = field(&fs::read_to_string("/proc/meminfo")?, "MemTotal").unwrap_or_default();
        let memory: u64 = memory.trim_end_matches(" kB").parse()?;
        Ok(Self {
            date: jiff::Zoned::now().date().to_string(),
            commit: said("git", &["describe", "--always", "--dirty"]),
            processor: field(&processors, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            memory: memory << 10,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            rust: said("rustc", &["--version"]).unwrap_or_default(),
            sqlite: rusqlite::version().to_owned(),
        })
    }
}

/// The first value of a name in one of the kernel's lists.
pub fn field(list: &str, name: &str) -> Option<String> {
    let value =
        |line: &str| line.strip_prefix(name)?.trim_start().strip_prefix(':').map(|value| value.trim().to_owned());
    list.lines().find_map(value)
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// How many wanted a processor, on average of the last minute.
pub fn load() -> Result<f64> {
    let told = fs::read_to_string("/proc/loadavg")?;
    Ok(told.split(' ').next().unwrap_or_default().parse()?)
}
