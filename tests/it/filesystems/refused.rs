//! A process whose kernel refuses some system calls, as some filesystems do: by a filter (seccomp) that it and its children
//! cannot take off.
#![expect(unsafe_code, reason = "a filter of system calls is installed between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// `RENAME_EXCHANGE`, with the error of a filesystem that does not know it.
    Exchange,
    /// That, and hard links.
    Links,
}

/// Where a filter finds the number of the call and the low half of its fifth argument: `struct seccomp_data`.
const NUMBER: u32 = 0;
const FIFTH: u32 = if cfg!(target_endian = "little") { 16 + 4 * 8 } else { 16 + 4 * 8 + 4 };
const RENAME_EXCHANGE: u32 = 2;

impl Refused {
    /// Has a command run with these calls refused.
    pub(super) fn by(self, command: &mut Command) {
        // SAFETY: between fork and exec only two system calls are made, on memory that was filled before.
        unsafe {
            let mut filter = self.filter();
            command.pre_exec(move || install(&mut filter));
        }
    }

    /// Tests that are about the very thing that is refused, or count calls.
    pub(super) fn unlike(self) -> &'static [&'static str] {
        match self {
            Self::Exchange => &[],
            // They show what becomes of a file that is kept as a link only.
            Self::Links => &[
                "guard::writing_in_place_under_a_promise_not_to_is_found_and_left",
                "guard_corners::names_that_are_not_text_and_a_file_of_two_names",
                "guard_corners::what_is_left_of_a_file_that_was_written_in_place_is_kept",
                "guard_review::a_weaker_guard_does_not_stand_for_a_stronger_one",
                "guard_review::one_path_that_cannot_be_put_back_does_not_keep_the_others",
            ],
        }
    }

    fn filter(self) -> Vec<libc::sock_filter> {
        let step =
            |code: u32, yes: u8, no: u8, value: u32| libc::sock_filter { code: code as u16, jt: yes, jf: no, k: value };
        let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
        let is = |value: u32, yes, no| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value);
        let answer = |value| step(libc::BPF_RET | libc::BPF_K, 0, 0, value);
        let error = |error: i32| answer(libc::SECCOMP_RET_ERRNO | error as u32);
        let links = if self == Self::Links { libc::SYS_linkat as u32 } else { u32::MAX };
        vec![
            load(NUMBER),
            is(links, 5, 0),
            is(libc::SYS_renameat2 as u32, 0, 3),
            load(FIFTH),
            is(RENAME_EXCHANGE, 0, 1),
            error(libc::EINVAL),
            answer(libc::SECCOMP_RET_ALLOW),
            error(libc::EPERM),
        ]
    }
}

fn install(filter: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program outlives the call, and its length is that of the filter.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn what_is_to_be_refused_is_refused() {
    for (refused, exchanges, links) in
        [(None, true, true), (Some(Refused::Exchange), false, true), (Some(Refused::Links), false, false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut test = crate::support::child("filesystems::refused::refused_child", dir.path());
        if let Some(refused) = refused {
            refused.by(&mut test);
        }
        test.env("EXCHANGES", exchanges.to_string()).env("LINKS", links.to_string());
        let output = test.output().unwrap();
        assert!(output.status.success(), "{refused:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn refused_child() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let Some(root) = crate::support::child_root() else { return };
    let (a, b) = (root.join("a"), root.join("b"));
    std::fs::write(&a, "a").unwrap();
    std::fs::write(&b, "b").unwrap();
    let works = |what: &str| std::env::var(what).unwrap() == "true";
    let exchanged = renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE);
    assert_eq!(exchanged, if works("EXCHANGES") { Ok(()) } else { Err(rustix::io::Errno::INVAL) });
    renameat_with(CWD, &a, CWD, root.join("c"), RenameFlags::NOREPLACE).unwrap();
    assert_eq!(std::fs::hard_link(&b, &a).is_ok(), works("LINKS"));
}
