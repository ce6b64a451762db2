//! The system calls by which the engine changes files, each one a step of [`crate::fault::step`]: the one place where a test
//! can stop the engine between any two of them. Creating an empty file is no step: what follows it is one.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Mode, RenameFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Result;
use rustix::path::Arg;

use crate::fault::step;

/// Functions of rustix, under their own names, with a step before them.
macro_rules! calls {
    ($($of:ident::$name:ident<$($generic:ident: $bound:ident),*>($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {
        $(pub(super) fn $name<$($generic: $bound),*>($($arg: $ty),*) -> Result<$out> {
            step(stringify!($name));
            rustix::$of::$name($($arg),*)
        })*
    };
}

calls! {
    fs::renameat<D: AsFd, P: Arg, E: AsFd, Q: Arg>(from_dir: D, from: P, to_dir: E, to: Q) -> ();
    fs::renameat_with<D: AsFd, P: Arg, E: AsFd, Q: Arg>(from_dir: D, from: P, to_dir: E, to: Q, how: RenameFlags) -> ();
    fs::linkat<D: AsFd, P: Arg, E: AsFd, Q: Arg>(from_dir: D, from: P, to_dir: E, to: Q, flags: AtFlags) -> ();
    fs::unlinkat<D: AsFd, P: Arg>(dir: D, name: P, flags: AtFlags) -> ();
    fs::unlink<P: Arg>(path: P) -> ();
    fs::mkdir<P: Arg>(path: P, mode: Mode) -> ();
    fs::mkdirat<D: AsFd, P: Arg>(dir: D, name: P, mode: Mode) -> ();
    fs::symlinkat<P: Arg, D: AsFd, Q: Arg>(target: P, dir: D, name: Q) -> ();
    fs::fsync<F: AsFd>(file: F) -> ();
    fs::syncfs<F: AsFd>(file: F) -> ();
    fs::ftruncate<F: AsFd>(file: F, size: u64) -> ();
    fs::fchmod<F: AsFd>(file: F, mode: Mode) -> ();
    fs::chmodat<D: AsFd, P: Arg>(dir: D, name: P, mode: Mode, flags: AtFlags) -> ();
    fs::fchown<F: AsFd>(file: F, owner: Option<Uid>, group: Option<Gid>) -> ();
    fs::chownat<D: AsFd, P: Arg>(dir: D, name: P, owner: Option<Uid>, group: Option<Gid>, flags: AtFlags) -> ();
    fs::utimensat<D: AsFd, P: Arg>(dir: D, name: P, times: &Timestamps, flags: AtFlags) -> ();
    fs::futimens<F: AsFd>(file: F, times: &Timestamps) -> ();
    fs::fsetxattr<F: AsFd, N: Arg>(file: F, name: N, value: &[u8], flags: XattrFlags) -> ();
    fs::setxattr<P: Arg, N: Arg>(path: P, name: N, value: &[u8], flags: XattrFlags) -> ();
    fs::removexattr<P: Arg, N: Arg>(path: P, name: N) -> ();
    fs::ioctl_ficlone<F: AsFd, G: AsFd>(to: F, from: G) -> ();
    fs::copy_file_range<F: AsFd, G: AsFd>(from: F, at: Option<&mut u64>, to: G, to_at: Option<&mut u64>, count: usize) -> usize;
    io::write<F: AsFd>(file: F, bytes: &[u8]) -> usize;
    io::pwrite<F: AsFd>(file: F, bytes: &[u8], at: u64) -> usize;
}
