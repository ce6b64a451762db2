//! What a power cut may leave of a disk: every state that a profile allows.

use super::disk::{Disk, EMPTY, INODES, Op, Profile, SLOTS, Slot};

/// What becomes of one change of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    No,
    /// Of a rename: the new name came, the old one did not go.
    Half,
    Whole,
}

/// Which changes a sync of certain names carries over: those of these names, and what came before on the same names.
pub(super) fn needed(pending: &[Op], synced: impl Fn(Slot) -> bool) -> Vec<Kept> {
    let mut wanted: [bool; SLOTS] = std::array::from_fn(|slot| synced(slot as Slot));
    let mut kept = vec![Kept::No; pending.len()];
    for (op, kept) in pending.iter().zip(&mut kept).rev() {
        let [a, b] = op.slots().map(usize::from);
        *kept = match op {
            // That the old name has gone shows only where it was.
            _ if op.has_halves() && !wanted[a] && wanted[b] => Kept::Half,
            _ if wanted[a] || wanted[b] => Kept::Whole,
            _ => Kept::No,
        };
        match kept {
            Kept::No => {}
            Kept::Half => wanted[b] = true,
            Kept::Whole => (wanted[a], wanted[b]) = (true, true),
        }
    }
    kept
}

/// Visits all that a power cut may leave, for as long as the visitor wants more. `recorded` are the inodes and ctimes that
/// somebody may compare with.
pub(super) fn power_cut(disk: &Disk, profile: Profile, recorded: &[(u8, u8)], visit: &mut dyn FnMut(Disk) -> bool) {
    let mut pending = disk.pending.clone();
    let mut base = disk.clone();
    base.pending.clear();
    let mut cut = Cut { recorded, visit, enough: false };
    match profile {
        Profile::Ordered => {
            cut.bytes(&base);
            for op in pending.drain(..) {
                base.keep(op, false);
                cut.bytes(&base);
            }
        }
        Profile::OnlySynced => cut.names(base, &pending, &mut [0; SLOTS]),
    }
}

struct Cut<'v> {
    recorded: &'v [(u8, u8)],
    visit: &'v mut dyn FnMut(Disk) -> bool,
    enough: bool,
}

impl Cut<'_> {
    /// Each change is lost or kept by itself; but what comes later on the same name cannot be there without it.
    fn names(&mut self, disk: Disk, pending: &[Op], blocked: &mut [u8; SLOTS]) {
        if self.enough {
            return;
        }
        let Some((&op, rest)) = pending.split_first() else { return self.bytes(&disk) };
        let [a, b] = op.slots().map(usize::from);
        if blocked[a] == 0 && blocked[b] == 0 {
            let mut kept = disk.clone();
            kept.keep(op, false);
            self.names(kept, rest, blocked);
        }
        if op.has_halves() && blocked[b] == 0 {
            let mut half = disk.clone();
            half.keep(op, true);
            blocked[a] += 1;
            self.names(half, rest, blocked);
            blocked[a] -= 1;
        }
        blocked[a] += 1;
        blocked[b] += 1;
        self.names(disk, rest, blocked);
        blocked[a] -= 1;
        blocked[b] -= 1;
    }

    /// Bytes, and with them times, are on the disk or not.
    fn bytes(&mut self, disk: &Disk) {
        if self.enough {
            return;
        }
        let mut there = [false; INODES];
        disk.durable_names.iter().for_each(|&ino| there[ino as usize] = true);
        let dirty: Vec<usize> =
            (1..INODES).filter(|&ino| there[ino] && disk.is_dirty(ino) && disk.stuck & (1 << ino) == 0).collect();
        let mut left = disk.clone();
        for (ino, is_there) in there.into_iter().enumerate() {
            if !is_there {
                left.durable.clear(ino);
            } else if !self.recorded.contains(&(ino as u8, left.durable.ctime[ino])) {
                // Unlike any that somebody knows.
                left.durable.ctime[ino] = 0;
            }
        }
        self.some_bytes(disk, left, &dirty);
    }

    fn some_bytes(&mut self, before: &Disk, left: Disk, dirty: &[usize]) {
        let Some((&ino, rest)) = dirty.split_first() else { return self.done(left) };
        let (now, then) = (&before.inodes, &before.durable);
        // Of a file that is new to the disk the bytes are there or are not. One that was written to in place may have its new
        // bytes without their time, and the other way round.
        let new = then.data[ino] == EMPTY || then.kind[ino] == 0;
        for data in [then.data[ino], now.data[ino]] {
            for mtime in [then.mtime[ino], now.mtime[ino]] {
                if new && (data == now.data[ino]) != (mtime == now.mtime[ino]) && then.mtime[ino] != now.mtime[ino] {
                    continue;
                }
                let mut one = left.clone();
                (one.durable.data[ino], one.durable.mtime[ino]) = (data, mtime);
                self.some_bytes(before, one, rest);
                if then.mtime[ino] == now.mtime[ino] {
                    break;
                }
            }
            if then.data[ino] == now.data[ino] {
                break;
            }
        }
    }

    fn done(&mut self, mut left: Disk) {
        left.names = left.durable_names;
        left.inodes = left.durable.clone();
        left.stuck = 0;
        self.enough = self.enough || !(self.visit)(left);
    }
}
