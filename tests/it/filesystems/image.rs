//! A filesystem in an image of its own, mounted for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::skip::skip;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    pub(crate) fn quietly(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["-q", "-F"],
            Self::Xfs | Self::Btrfs => &["-q", "-f"],
        }
    }
}

/// The least that mkfs.xfs makes is 300 MB. Nearly all of it are holes.
const SIZE: u64 = 400 << 20;

/// In memory where all of it has room, so that a sync costs next to nothing: a device over a full tmpfs loses what is written.
fn home() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).is_ok_and(|found| found.f_bavail * found.f_frsize > 4 * SIZE);
    if room && std::env::var_os("TMPDIR").is_none() {
        return tempfile::tempdir_in(memory).unwrap();
    }
    tempfile::tempdir().unwrap()
}

/// Unmounted and removed on drop.
pub(super) struct Image {
    home: tempfile::TempDir,
    root: PathBuf,
}

impl Image {
    /// None, and said so, where it cannot be.
    pub(super) fn mount(kind: Kind) -> Option<Self> {
        Self::mount_at(kind, None)
    }

    /// The same, at a place of its own or at a given one.
    pub(super) fn mount_at(kind: Kind, at: Option<PathBuf>) -> Option<Self> {
        let home = home();
        let (image, root) = (home.path().join("image"), at.unwrap_or(home.path().join("root")));
        fs::create_dir_all(&root).unwrap();
        fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let make = format!("mkfs.{}", kind.name());
        if !done(Command::new(&make).args(kind.quietly()).arg(&image)) {
            skip(&format!("{make} is not here (Debian: e2fsprogs, xfsprogs, btrfs-progs), or made nothing"));
            return None;
        }
        let mounted = Self { home, root };
        if !mounted.mounts() {
            skip(&format!(
                "{} cannot be mounted here: that takes root, a loop device and a kernel that knows it",
                kind.name()
            ));
            return None;
        }
        Some(mounted)
    }

    pub(super) fn mounts(&self) -> bool {
        done(Command::new("mount").args(["-o", "loop"]).arg(self.home.path().join("image")).arg(&self.root))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the filesystem away.
    pub(super) fn unmount(&self) {
        assert!(done(Command::new("umount").arg(&self.root)), "somebody is at work in {}", self.root.display());
    }

    /// Takes it away and brings it back, as a reboot does.
    pub(super) fn mount_again(&self) {
        self.unmount();
        assert!(self.mounts());
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        unmount(&self.root);
    }
}

/// At once or, where somebody is still there, when they are gone.
pub(super) fn unmount(at: &Path) {
    if !done(Command::new("umount").arg(at)) {
        done(Command::new("umount").arg("--lazy").arg(at));
    }
}

/// Runs a command, and says whether it did what it was told.
pub(crate) fn done(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
