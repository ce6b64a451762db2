//! The same boot, and yet the cache is gone: a filesystem is shut down under a journal at work, and mounted again, by another
//! loop device and at another place. The kernel's boot id, and the process that looks, are the same as before.

use std::fs::File;
use std::thread;
use std::time::Duration;

use super::child::{self, Act, Answer, Child, Told};
use super::machine::Machine;
use super::replay::{Random, recovered};
use super::sys::{self, Shutdown};
use crate::filesystems::image::Kind;

/// What a process is at when its filesystem goes, each again and again.
const ACTS: [fn(usize) -> Act; 4] = [Act::Small, Act::Large, Act::Keep, |_| Act::Undo];
const ROUNDS: usize = 8;

#[test]
fn a_filesystem_that_is_shut_down_and_mounted_again_has_what_was_committed() {
    // btrfs has no such call.
    for kind in [Kind::Ext4, Kind::Xfs] {
        for how in [Shutdown::LogFlushed, Shutdown::LogLost] {
            thread::scope(|scope| scope.spawn(|| shut_down(kind, how)).join()).unwrap();
        }
    }
}

fn shut_down(kind: Kind, how: Shutdown) {
    let Some(machine) = Machine::new(kind) else { return };
    machine.disk.insert(machine.fresh());
    let mounted = machine.boot().unwrap();
    child::prepare(&mounted.root());
    mounted.unmount();
    let mut random = Random(how as u64);
    let mut told = Told::default();
    let mut lost = 0;
    for round in 0..ROUNDS {
        let mounted = machine.boot().unwrap();
        let mut child = Child::start(&mounted.root());
        let number = |n: usize| round * 10 + n;
        for n in 0..random.below(4) {
            let act = ACTS[(round + n) % ACTS.len()](number(n));
            assert_eq!(child.does(act, &mut told), Answer::Done, "{kind:?}, {act:?}");
        }
        let act = ACTS[round % ACTS.len()](number(9));
        child.begins(act);
        thread::sleep(Duration::from_micros(random.below(4000) as u64));
        sys::shut_down(&File::open(mounted.outside()).unwrap(), how).unwrap();
        let answer = child.ends(act, &mut told);
        lost += usize::from(answer != Answer::Done);
        // A kernel may answer 0 to a sync of what makes a file longer while it shuts down (Linux 6.18, ext4 and xfs), and lose it.
        told.doubts(act);
        drop(child);
        mounted.unmount();

        let mounted = machine.boot().unwrap();
        let wrong = recovered(&mounted.root()).map_or_else(|wrong| wrong, |found| told.denies(&found));
        mounted.unmount();
        assert_eq!(wrong, [""; 0], "{kind:?}, {how:?}, {act:?} in round {round}: {told:#?}");
    }
    println!("{kind:?}, {how:?}: {ROUNDS} times, {lost} of them in the middle of a transaction");
}
