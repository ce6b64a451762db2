//! The guarded tree: its baseline, and what differs from it; as `src/txn/{trees,comparing,old_versions}.rs` do it. The tree is
//! the directory C with two files.

use super::disk::{Dir, PLAIN, Slot, slots, staged};
use super::faults::Fault;
use super::run::{Done, Durability, Run};
use super::world::{C, Entry, Guard, Id, Image, Path, Rows, Was};

const CHILDREN: [u8; 2] = [1, 2];

fn mirrored(child: u8) -> Slot {
    slots(Dir::Mirror).start + child - 1
}

fn path(child: u8) -> Path {
    Path(C.0, child)
}

impl Run<'_> {
    /// Brings the baseline up to date, and says that the guard is ready.
    pub(super) fn guard_tree(&mut self, links: bool) -> Done {
        self.stand_alone()?;
        self.commit(Durability::Normal, |rows| {
            rows.guard = Some(Guard { attempts: 0, mark: true, images: Vec::new(), tree: Some(false) });
        });
        if !self.rows().is_true {
            CHILDREN.iter().for_each(|child| self.unlink(mirrored(*child)));
            self.commit(Durability::Normal, |rows| rows.entries.clear());
        }
        let rows = self.rows();
        let (fresh, different) = (rows.entries.is_empty(), self.different(&rows, false));
        if fresh || !different.is_empty() {
            if rows.is_true && !self.is(Fault::ChangingNotNoted) {
                self.commit(Durability::Full, |rows| rows.is_true = false);
            }
            self.adopt(&different, links);
            if !self.is(Fault::BaselineUnsynced) {
                self.sync_all();
            }
        }
        self.commit(Durability::Full, |rows| {
            rows.is_true = true;
            if let Some(guard) = &mut rows.guard {
                guard.tree = Some(true);
            }
        });
        Ok(())
    }

    /// The files that are not as recorded. `in_doubt`: no time proves anything, so copies are read.
    fn different(&self, rows: &Rows, in_doubt: bool) -> Vec<u8> {
        let differs = |child: &u8| {
            let entry = rows.entries.iter().find(|entry| entry.child == *child);
            match (entry, self.look(path(*child))) {
                (None, None) => false,
                (Some(entry), Some(live)) if entry.id.is(live, false) => {
                    let slot = path(*child).slot(&self.world.disk);
                    let equal = |slot| self.world.disk.data(slot) == self.world.disk.data(mirrored(*child));
                    in_doubt && !entry.link && !self.is(Fault::TimesAreBelieved) && !slot.is_some_and(equal)
                }
                _ => true,
            }
        };
        CHILDREN.into_iter().filter(differs).collect()
    }

    /// Takes differences into the baseline.
    fn adopt(&mut self, different: &[u8], links: bool) {
        let known = self.rows();
        let mut entries = known.entries.clone();
        for child in different {
            if entries.iter().any(|entry| entry.child == *child) {
                self.unlink(mirrored(*child));
            }
            entries.retain(|entry| entry.child != *child);
            let Some(live) = path(*child).slot(&self.world.disk) else { continue };
            let Some(meta) = self.meta_at(live) else { continue };
            self.keep_file(live, mirrored(*child), links && !meta.empty);
            let seen = Id::from(self.world.disk.meta_of(self.world.disk.at(live)));
            entries.push(Entry { child: *child, id: seen, link: links && !meta.empty });
        }
        entries.sort_by_key(|entry| entry.child);
        self.commit(Durability::Normal, |rows| rows.entries = entries);
    }

    /// Finds what was touched in the guarded tree, and gets what it was out of the mirror. Nothing of it is synced.
    pub(super) fn find_touched_of_tree(&mut self, in_doubt: bool) -> Vec<Image> {
        let rows = self.rows();
        if rows.guard.as_ref().is_none_or(|guard| guard.tree != Some(true)) {
            return Vec::new();
        }
        if !rows.is_true {
            self.complain(|| "a baseline was being changed while it was relied upon".into());
            return Vec::new();
        }
        let mut images = Vec::new();
        for child in self.different(&rows, in_doubt) {
            let staged_number = self.fresh_number();
            let name = staged(staged_number, PLAIN);
            let entry = rows.entries.iter().find(|entry| entry.child == child);
            let was = match entry {
                None => Was::Absent,
                Some(entry) => {
                    let from = mirrored(child);
                    let Some(meta) = self.meta_at(from) else {
                        self.complain(|| format!("the baseline has lost file {child} of the guarded tree"));
                        continue;
                    };
                    if meta.empty || (entry.link && meta.ino != entry.id.ino) {
                        self.complain(|| format!("the baseline of file {child} is not what was recorded"));
                        continue;
                    }
                    match self.keep_file(from, name, entry.link) {
                        Was::File { kept, mtime, link, .. } => Was::File { seen: entry.id, kept, mtime, link },
                        other => other,
                    }
                }
            };
            images.push(Image { path: path(child), staged: staged_number, was });
        }
        images
    }
}
