//! What is mounted for a command: overlays, empty covers, files that are seen through them, and its own /proc.

use std::fmt::Display;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::View;

/// What an overlay is asked for, and what it has to say it does. Copying up has to copy the bytes; a second name of a file
/// has to be a file of its own.
const WANTED: [(&str, &str); 2] = [("metacopy", "off"), ("index", "off")];
const BY_ROOT: (&str, &str) = ("redirect_dir", "on");

/// Mounts all of it, in this process's own mount namespace.
pub(super) fn mount(view: &View, user: bool) -> Result<(), String> {
    let here = std::env::current_dir().map_err(|e| failed("find", Path::new("."), &e))?;
    let here = by_way_of_overlay(&here, view);
    let root = Path::new("/");
    // What is mounted outside from now on shows up here, and nothing from here shows up there.
    rustix::mount::mount_change(root, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|e| failed("make mounts its own", root, &e))?;
    let through: Vec<(OwnedFd, &PathBuf)> =
        view.through.iter().map(|file| Ok((open(file)?, file))).collect::<Result<_, String>>()?;
    for [lower, upper, work] in &view.layers {
        overlay(lower, upper, work, user)?;
    }
    for cover in &view.covers {
        if !cover.is_dir() {
            rustix::mount::mount_bind("/dev/null", cover).map_err(|e| failed("cover", cover, &e))?;
            continue;
        }
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount("tmpfs", cover, "tmpfs", flags, Some(c"size=4k,mode=0555"))
            .map_err(|e| failed("cover", cover, &e))?;
    }
    for (fd, file) in through {
        rustix::mount::mount_bind(by_fd(&fd), file).map_err(|e| failed("show", file, &e))?;
    }
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    // Where parts of /proc are hidden from this user it cannot be had; then that of the outside goes on to be seen.
    let _ = rustix::mount::mount("proc", "/proc", "proc", flags, None);
    // IMPORTANT: the working directory from before leads past the overlays, into the live tree.
    std::env::set_current_dir(&here).map_err(|e| failed("enter", &here, &e))
}

/// The same directory by a path that leads through the overlays, should it lead to one of their trees by another mount.
fn by_way_of_overlay(here: &Path, view: &View) -> PathBuf {
    let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    for [lower, ..] in &view.layers {
        let tree = identity(lower);
        let above = here.ancestors().find(|above| tree.is_some() && identity(above) == tree);
        if let Some(rest) = above.and_then(|above| here.strip_prefix(above).ok()) {
            return lower.join(rest);
        }
    }
    here.to_owned()
}

fn failed(what: &str, path: &Path, error: &dyn Display) -> String {
    format!("cannot {what} {}: {error}", path.display())
}

fn open(path: &Path) -> Result<OwnedFd, String> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed("open", path, &e))
}

/// An open file's name, which no comma or colon can spoil.
fn by_fd(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn overlay(lower: &Path, upper: &Path, work: &Path, user: bool) -> Result<(), String> {
    let (low, up, works) = (open(lower)?, open(upper)?, open(work)?);
    let mut options = format!("lowerdir={},upperdir={},workdir={}", by_fd(&low), by_fd(&up), by_fd(&works));
    let wanted = || WANTED.into_iter().chain((!user).then_some(BY_ROOT));
    for (name, value) in wanted() {
        options += &format!(",{name}={value}");
    }
    if user {
        options += ",userxattr";
    }
    // What the command syncs need not be on disk before the commit that makes it count.
    let volatile = format!("{options},volatile");
    let mount = |options: String| {
        let options = std::ffi::CString::new(options).map_err(|_| rustix::io::Errno::INVAL)?;
        rustix::mount::mount("overlay", lower, "overlay", MountFlags::empty(), Some(options.as_c_str()))
    };
    match mount(volatile) {
        Err(rustix::io::Errno::INVAL) => mount(options),
        other => other,
    }
    .map_err(|e| failed("mount an overlay over", lower, &e))?;
    let options = options_at(lower).ok_or_else(|| failed("find the overlay at", lower, &"it is not listed"))?;
    for (name, value) in wanted() {
        let is = option(&options, name);
        if is.as_deref() != Some(value) {
            let why = format!("it was mounted with {name}={}", is.unwrap_or_else(|| "?".into()));
            return Err(failed("use the overlay at", lower, &why));
        }
    }
    Ok(())
}

/// The options of the overlay that is seen at a path, as the kernel lists them by the numbers of mounts.
fn options_at(path: &Path) -> Option<String> {
    let seen = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).ok()?;
    // Paths in it may be any bytes; what is read here is not.
    let list = std::fs::read("/proc/self/mountinfo").ok()?;
    let list = String::from_utf8_lossy(&list);
    let mount = list.lines().find(|line| line.split(' ').next() == Some(seen.stx_mnt_id.to_string().as_str()))?;
    // Behind the dash: kind, source, options.
    let mut behind = mount.split_once(" - ")?.1.split(' ');
    let options = behind.clone().nth(2)?;
    (behind.next() == Some("overlay")).then(|| options.to_owned())
}

/// What an overlay does; where it does as the module was told to by default, only that says it.
fn option(options: &str, name: &str) -> Option<String> {
    let listed = options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    if let Some(listed) = listed {
        return Some(listed.to_owned());
    }
    let default = std::fs::read_to_string(format!("/sys/module/overlay/parameters/{name}")).ok()?;
    Some(match default.trim() {
        "Y" => "on".to_owned(),
        "N" => "off".to_owned(),
        other => other.to_owned(),
    })
}
