//! The few system calls that no safe crate offers.
#![expect(unsafe_code, reason = "the one place for system calls that no safe crate offers")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Gives the calling thread an empty descriptor table of its own (but for 0, 1 and 2).
///
/// Closing any descriptor of a file drops the POSIX locks that the *table's* owner has on it, SQLite's among them; a
/// thread with its own table can open and close what it likes. Call it first thing on a new thread, which then must
/// not touch descriptors of other threads.
pub(super) fn own_descriptor_table() -> io::Result<()> {
    // SAFETY: the call takes no pointers. The descriptors it closes are this thread's view only: the table is
    // unshared in the same call, and the thread has no object that owns a descriptor yet.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes an open-file-description lock on a range of a file, by its start and length, without waiting; (0, 0) is the whole
/// file. False when somebody has a lock there, this process's own SQLite connections included.
pub(super) fn try_lock_range(file: BorrowedFd<'_>, exclusive: bool, range: (u64, u64)) -> io::Result<bool> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    // SAFETY: an all-zero `flock` is a valid value of that plain C struct.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = range.0 as libc::off_t;
    lock.l_len = range.1 as libc::off_t;
    // SAFETY: the descriptor is open for the call's length, the struct outlives it.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Has the kernel begin to write out what is dirty of a file. It waits for nothing, and marks no error as seen: whoever syncs the
/// file later is told.
pub(super) fn begin_writing_out(file: BorrowedFd<'_>) {
    // SAFETY: the call takes no pointers, and the descriptor is open for its length.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// `listxattrat` (Linux 6.13), which has the same number on every architecture.
const LISTXATTRAT: libc::c_long = 465;

/// Lists the names of the xattrs of `name` in an open directory into the free room of `list`, each with a zero behind it.
pub(super) fn list_xattrs_at(dir: BorrowedFd<'_>, name: &CStr, list: &mut Vec<u8>) -> io::Result<()> {
    let room = list.spare_capacity_mut();
    let (free, length) = (room.as_mut_ptr(), room.len());
    // SAFETY: the name ends with a zero, the kernel writes at most `length` bytes to the vector's own free room, and the
    // descriptor is open for the call's length.
    let listed =
        unsafe { libc::syscall(LISTXATTRAT, dir.as_raw_fd(), name.as_ptr(), libc::AT_SYMLINK_NOFOLLOW, free, length) };
    match usize::try_from(listed) {
        Ok(listed) => {
            // SAFETY: so many bytes behind the vector's length have just been written, and they fit.
            unsafe { list.set_len(list.len() + listed) };
            Ok(())
        }
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Whether anybody else, this process included, has an open file open. The kernel grants a lease on a file only to who alone has
/// it open. None where it does not say: to others than the owner, and on some filesystems.
pub(super) fn is_open_elsewhere(file: BorrowedFd<'_>) -> Option<bool> {
    // Whoever opens the file within these few calls waits for the lease to end, and the kernel signals that: by one that
    // nobody dies of.
    // SAFETY: the descriptor is open for the call's length, and no pointers are passed.
    let set = |what, value: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), what, value) } == 0;
    if !set(F_SETSIG, libc::SIGURG) {
        return None;
    }
    if set(libc::F_SETLEASE, libc::F_WRLCK as libc::c_int) {
        set(libc::F_SETLEASE, libc::F_UNLCK as libc::c_int);
        return Some(false);
    }
    let busy = io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    busy.then_some(true)
}

/// Which signal tells of a lease that ends (`<linux/fcntl.h>`).
const F_SETSIG: libc::c_int = 10;

/// The handle of what lies under a name, not followed: its type, and its bytes.
pub(super) fn file_handle(dir: BorrowedFd<'_>, name: &CStr) -> Result<(i32, Vec<u8>), Errno> {
    /// `struct file_handle` with room for the longest there is.
    #[repr(C)]
    struct Buffer {
        length: libc::c_uint,
        kind: libc::c_int,
        bytes: [u8; LONGEST],
    }
    const LONGEST: usize = 128;
    let mut buffer = Buffer { length: LONGEST as libc::c_uint, kind: 0, bytes: [0; LONGEST] };
    let mut mount: libc::c_int = 0;
    // SAFETY: the name ends with a zero, the buffer says how much room it has, and both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            name.as_ptr(),
            &raw mut buffer,
            &raw mut mount,
            0_i32,
        )
    };
    if done != 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    let length = usize::try_from(buffer.length).unwrap_or(LONGEST).min(LONGEST);
    Ok((buffer.kind, buffer.bytes[..length].to_vec()))
}
