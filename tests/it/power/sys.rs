//! The few system calls of this harness that no safe crate offers.
#![expect(unsafe_code, reason = "loop devices, forced shutdown and namespaces are only to be had by ioctl and unshare")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct loop_config` of `<linux/loop.h>`, with `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    before_flags: [u64; 6],
    key_size: u32,
    flags: u32,
    names_and_key: [u64; 20],
    init: [u64; 2],
    reserved: [u64; 8],
}

const LOOP_CONFIGURE: u32 = 0x4C0A;
const LOOP_CTL_GET_FREE: u32 = 0x4C82;
/// Detached when nobody has it open any more.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Requests go to the file as they are, rather than page by page.
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `EXT4_IOC_SHUTDOWN`, and xfs's `XFS_IOC_GOINGDOWN`, which has the same number: `_IOR('X', 125, __u32)`.
const SHUTDOWN: u32 = 0x8004_587D;
/// `_IOR(0x94, 24, __u64)` and `_IOW(0x94, 22, __u64)` of `<linux/btrfs.h>`.
const BTRFS_START_SYNC: u32 = 0x8008_9418;
const BTRFS_WAIT_SYNC: u32 = 0x4008_9416;
/// `_IOW(0x94, 5, struct btrfs_ioctl_vol_args)`: a number nobody uses, and a path of up to 4,087 bytes.
const BTRFS_FORGET_DEV: u32 = 0x5000_9405;

/// The number of a loop device that nobody uses yet.
pub(super) fn free_loop(control: &File) -> io::Result<u32> {
    // SAFETY: the call takes no pointer.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Lays a loop device over a file, until nobody has the device open any more.
pub(super) fn lay_loop(device: &File, file: &File) -> io::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(file.as_raw_fd()).expect("an open descriptor"),
        block_size: 0,
        before_flags: [0; 6],
        key_size: 0,
        flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
        names_and_key: [0; 20],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: the struct has the layout that the call reads, and outlives it.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) })
}

/// How a filesystem is shut down under those who use it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shutdown {
    /// What its own journal has in memory is written first.
    LogFlushed = 1,
    /// At once.
    LogLost = 2,
}

/// Shuts down the filesystem, ext4 or xfs, that a file lies on: nothing is written to the device any more.
pub(super) fn shut_down(on: &File, how: Shutdown) -> io::Result<()> {
    let flag: u32 = how as u32;
    // SAFETY: the call reads four bytes, which outlive it.
    checked(unsafe { libc::ioctl(on.as_raw_fd(), SHUTDOWN as _, &raw const flag) })
}

/// Has btrfs commit its metadata, as it does by itself every 30 seconds: data that waits to be written is not waited for.
pub(super) fn commit_btrfs(on: &File) -> io::Result<()> {
    let mut transaction: u64 = 0;
    // SAFETY: the calls write and read eight bytes, which outlive them.
    unsafe {
        checked(libc::ioctl(on.as_raw_fd(), BTRFS_START_SYNC as _, &raw mut transaction))?;
        checked(libc::ioctl(on.as_raw_fd(), BTRFS_WAIT_SYNC as _, &raw const transaction))
    }
}

/// Has btrfs forget what it knows of a device that is not mounted.
pub(super) fn forget_btrfs(device: &Path) -> io::Result<()> {
    let control = File::options().read(true).write(true).open("/dev/btrfs-control")?;
    let mut arguments = [0_u8; 4096];
    let path = device.as_os_str().as_bytes();
    arguments[8..8 + path.len()].copy_from_slice(path);
    // SAFETY: the call reads these bytes, which outlive it; the path ends with a zero.
    checked(unsafe { libc::ioctl(control.as_raw_fd(), BTRFS_FORGET_DEV as _, arguments.as_ptr()) })
}

/// Has the writing of a file's data begin and end, without a flush and without its metadata: what the kernel does by itself
/// after some seconds.
pub(super) fn write_back(file: &File) -> io::Result<()> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes no pointer.
    checked(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, all) })
}

/// Gives the calling thread, and those that it starts, mounts of their own: they go when the last of them ends, however
/// it ends.
pub(super) fn own_mounts() -> io::Result<()> {
    // SAFETY: the call takes no pointer, and nobody else sees what it changes.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNS) })
}

/// Gives the calling thread, and those that it starts, descriptors of their own. Nobody else holds what it opens, so that the
/// kernel ends what it serves as soon as it is killed.
pub(super) fn own_descriptors() -> io::Result<()> {
    // SAFETY: the call takes no pointer. What it closes is this thread's view only, which owns no descriptor yet.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn checked(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
