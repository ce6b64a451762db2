//! What a directory lies on: for the page, and for the flushes that its device is asked for.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use journal_kb_peers::Result;

/// The numbers of a device, as the kernel writes them: `7:0`.
fn device_of(path: &Path) -> Result<String> {
    let device = fs::metadata(path)?.dev();
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    Ok(format!("{major}:{minor}"))
}

/// Where the kernel tells of the block device below a path; none for a filesystem in memory.
fn block_device(path: &Path) -> Result<Option<PathBuf>> {
    Ok(fs::canonicalize(format!("/sys/dev/block/{}", device_of(path)?)).ok())
}

/// The device below a path, when it is a loop device: nobody else uses that.
#[derive(Debug)]
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    pub fn below(path: &Path) -> Result<Option<Self>> {
        Ok(block_device(path)?.filter(|device| device.join("loop").is_dir()).map(Self))
    }

    /// How many flushes it has completed: the 16th figure of Documentation/block/stat.rst.
    pub fn flushes(&self) -> Result<u64> {
        let stat = fs::read_to_string(self.0.join("stat"))?;
        let flushes = stat.split_whitespace().nth(15).ok_or("this kernel does not count flushes")?;
        Ok(flushes.parse()?)
    }

    fn image(&self) -> Result<PathBuf> {
        Ok(fs::read_to_string(self.0.join("loop/backing_file"))?.trim_end().into())
    }
}

/// Says on what a directory lies, down to the device.
pub fn describe(path: &Path) -> Result<String> {
    let (kind, options) = mount(&device_of(path)?)?;
    let mut told = format!("{kind} ({options})");
    let Some(device) = block_device(path)? else { return Ok(told) };
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    let cache = fs::read_to_string(device.join("queue/write_cache")).unwrap_or_default();
    told += &format!(" on {name}, cache: {}", cache.trim());
    if let Some(device) = LoopDevice::below(path)? {
        let direct = fs::read_to_string(device.0.join("loop/dio"))?.trim() == "1";
        let io = if direct { "direct" } else { "buffered" };
        told += &format!(", {io} I/O; its image lies on {}", describe(&device.image()?)?);
    }
    Ok(told)
}

/// The type and the options of the mount of a device.
fn mount(device: &str) -> Result<(String, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let entry = table.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mount: Vec<_> = mount.split(' ').collect();
        let filesystem: Vec<_> = filesystem.split(' ').collect();
        (mount.get(2) == Some(&device)).then_some((*filesystem.first()?, *filesystem.get(2)?))
    });
    let (kind, options) = entry.ok_or_else(|| format!("no mount of device {device} is known here"))?;
    Ok((kind.to_owned(), options.to_owned()))
}
