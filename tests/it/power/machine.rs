//! A machine: a disk, and one of the filesystems on it, that can be cut off at any time.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::disk::{BLOCK, Content, Disk};
use super::serve::Served;
use super::sys;
use crate::filesystems::image::{Kind, done};
use crate::skip::skip;

/// How small a filesystem may be, in MiB, and how it is made so. Nothing is left for the kernel to do in the background.
fn layout(kind: Kind) -> (u64, &'static [&'static str]) {
    match kind {
        Kind::Ext4 => (64, &["-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]),
        // The least that mkfs.xfs makes. Nearly all of it are holes.
        Kind::Xfs => (300, &["-K"]),
        Kind::Btrfs => (128, &["-K", "-m", "single"]),
    }
}

/// Where machines mount things, each out of sight of everybody else. A temporary directory could be removed by somebody who
/// does not see that it is in use.
const HOME: &str = "/media";

/// A thread's machine.
pub(super) struct Machine {
    pub(super) kind: Kind,
    pub(super) disk: Arc<Disk>,
    made: Content,
    boots: Cell<usize>,
    served: Served,
}

impl Machine {
    /// None, and said so, where it cannot be. The calling thread, and those that it starts, have mounts of their own from here on.
    pub(super) fn new(kind: Kind) -> Option<Self> {
        if let Err(error) = own_home() {
            skip(&format!("power cuts need root, and mounts of their own: {error}"));
            return None;
        }
        let home = Path::new(HOME);
        let image = home.join("image");
        let (size, how) = layout(kind);
        let size = size << 20;
        File::create(&image).unwrap().set_len(size).unwrap();
        let make = format!("mkfs.{}", kind.name());
        if !done(Command::new(&make).args(kind.quietly()).args(how).arg(&image)) {
            skip(&format!("{make} is not here (Debian: e2fsprogs, xfsprogs, btrfs-progs), or made nothing"));
            return None;
        }
        let made = read_image(&image).unwrap();
        fs::remove_file(image).unwrap();
        let disk = Arc::new(Disk::default());
        match Served::new(&disk, size, &home.join("fuse")) {
            Ok(served) => Some(Self { kind, disk, made, boots: Cell::new(0), served }),
            Err(error) => {
                skip(&format!("power cuts need FUSE: {error}"));
                None
            }
        }
    }

    /// A disk with nothing but an empty filesystem.
    pub(super) fn fresh(&self) -> Content {
        self.made.clone()
    }

    /// Mounts what is on the disk: each time by another loop device, at another place, and after other mounts.
    pub(super) fn boot(&self) -> io::Result<Mounted> {
        let boot = self.boots.replace(self.boots.get() + 1);
        let aside = (boot % 2 == 1).then(|| Path::new(HOME).join("aside"));
        if let Some(aside) = &aside {
            rustix::mount::mount("journal-kb-power", aside, "tmpfs", MountFlags::empty(), c"size=64k")?;
        }
        let mut mounted = Mounted { at: None, aside, device: PathBuf::new() };
        let device = attached(&File::options().read(true).write(true).open(self.served.file())?, boot as u32 % 3)?;
        let at = Path::new(HOME).join(["a", "b", "c"][boot % 3]);
        let options = match self.kind {
            Kind::Ext4 => c"noinit_itable",
            Kind::Xfs | Kind::Btrfs => c"",
        };
        mounted.device = device.0;
        rustix::mount::mount(&mounted.device, &at, self.kind.name(), MountFlags::NOATIME, options)?;
        mounted.at = Some(at);
        Ok(mounted)
    }
}

/// Has the calling thread see nothing but its own in [`HOME`].
fn own_home() -> io::Result<()> {
    sys::own_mounts()?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::mount::mount("journal-kb-power", HOME, "tmpfs", MountFlags::empty(), None)?;
    ["fuse", "aside", "a", "b", "c"].iter().try_for_each(|name| fs::create_dir(Path::new(HOME).join(name)))
}

/// The path of a loop device over a file, and the device, which goes as soon as nobody has it open.
fn attached(file: &File, other: u32) -> io::Result<(PathBuf, File)> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    let mut refused = io::Error::from(io::ErrorKind::NotFound);
    // Somebody else may be faster, and there may be no further one.
    for attempt in 0..200 {
        let number = sys::free_loop(&control)? + if attempt == 0 { other } else { 0 };
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(true).open(&path);
        match device.and_then(|device| sys::lay_loop(&device, file).map(|()| device)) {
            Ok(device) => return Ok((path, device)),
            Err(error) => refused = error,
        }
        std::thread::sleep(Duration::from_millis(attempt));
    }
    Err(refused)
}

/// All of a file but its holes.
fn read_image(image: &Path) -> io::Result<Content> {
    let mut file = File::open(image)?;
    let mut content = Content::default();
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data))?;
        file.seek(io::SeekFrom::Start(data))?;
        let mut bytes = vec![0; (hole - data) as usize];
        file.read_exact(&mut bytes)?;
        for (n, block) in bytes.chunks(BLOCK).enumerate() {
            content.write(data + (n * BLOCK) as u64, block);
        }
        at = hole;
    }
    Ok(content)
}

/// A filesystem that is in use, unmounted on drop.
pub(super) struct Mounted {
    at: Option<PathBuf>,
    aside: Option<PathBuf>,
    device: PathBuf,
}

impl Mounted {
    /// What a journal is opened in.
    pub(super) fn root(&self) -> PathBuf {
        self.outside().join("kb")
    }

    /// A directory of the same filesystem that is not in the tree.
    pub(super) fn outside(&self) -> PathBuf {
        self.at.clone().expect("it is mounted")
    }

    /// Waits until nobody uses it any more: threads may be a little later than what they do.
    pub(super) fn unmount(mut self) {
        assert!(self.done(), "somebody is at work in {}", self.outside().display());
    }

    fn done(&mut self) -> bool {
        let Some(at) = &self.at else { return true };
        let gone = (0..1000_u64).any(|attempt| match rustix::mount::unmount(at, UnmountFlags::empty()) {
            Err(Errno::BUSY) => {
                std::thread::sleep(Duration::from_millis(attempt.min(5)));
                false
            }
            _ => true,
        });
        if !gone {
            let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
            return false;
        }
        self.at = None;
        // btrfs remembers what it has seen of each device, and believes the newest of them.
        let _ = sys::forget_btrfs(&self.device);
        true
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.done() {
            eprintln!("somebody is at work in {}", self.outside().display());
        }
        if let Some(aside) = &self.aside {
            let _ = rustix::mount::unmount(aside, UnmountFlags::DETACH);
        }
    }
}
