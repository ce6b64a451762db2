//! What waits for a person, and what a person can say about it.

use std::path::Path;

use super::Journal;
use crate::error::Result;
use crate::id::QuarantineId;
use crate::inspect::{InspectOptions, Inspector, QuarantineDetail, QuarantineEntry};
use crate::recovery::{self, Resolved};
use crate::store;

/// What is in quarantine: given up by recovery, with everything kept. Got from [`Journal::quarantine`].
///
/// Only paths that overlap it are refused to others; its lock is free. Nothing here is thrown away but by
/// [`Quarantine::discard`].
///
/// ```no_run
/// # fn main() -> journal_kb::Result<()> {
/// let journal = journal_kb::Journal::open("kb")?;
/// for entry in journal.quarantine().list()? {
///     println!("{}: {}", entry.id, entry.reason.unwrap_or_default());
///     journal.quarantine().retry(entry.id)?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Quarantine<'j> {
    journal: &'j Journal,
}

impl Journal {
    /// What waits for a person, and the four things to be said about it.
    pub fn quarantine(&self) -> Quarantine<'_> {
        Quarantine { journal: self }
    }
}

impl Quarantine<'_> {
    /// Lists what is there: transactions, guards of dead transactions, and files that are kept of what is over. Takes no lock.
    pub fn list(&self) -> Result<Vec<QuarantineEntry>> {
        self.inspector()?.quarantine()
    }

    /// One of them in full, path by path; none when nothing is called so. Takes no lock.
    pub fn show(&self, id: QuarantineId) -> Result<Option<QuarantineDetail>> {
        self.inspector()?.quarantined(id)
    }

    /// Recovers once more, with the count of attempts at zero, once what was in the way has been mended.
    ///
    /// A committed transaction is carried into the tree and settled; what a dead transaction guarded is put back. Where
    /// transactions have changed a path since that one was committed, it stays as they left it, and its version is kept under
    /// `quarantine/`. When it fails again it is pending, with attempts left, or back in quarantine: [`Resolved::standing`]
    /// says which. Killed at any point, it is in quarantine as before, or an unfinished transaction that the next recovery
    /// carries on.
    ///
    /// [`Error::NotInQuarantine`](crate::Error::NotInQuarantine) when nothing of that name waits.
    pub fn retry(&self, id: QuarantineId) -> Result<Resolved> {
        self.decide(id, recovery::retry)
    }

    /// Declares what is in the tree right: it is over, its paths are free, and nothing in the tree is touched.
    ///
    /// Everything that was kept moves to `quarantine/<id>/` in the state directory (and in the `.journal-stage` of other
    /// mounts), until it is discarded, under the path it is of: `new/` has what was committed and is not in the tree, `old/` what
    /// was there before, `displaced/` what an attempt to put things back had taken out. Of a guarded tree the old versions of
    /// what differs are got out of its baseline; those that are not there are told. Durable on return. Killed at any point, it
    /// is in quarantine as before, or over, and the next recovery moves the rest.
    ///
    /// The rows that a committed transaction wrote to the database stay: they are committed.
    pub fn keep_live(&self, id: QuarantineId) -> Result<Resolved> {
        self.decide(id, recovery::keep_live)
    }

    /// Puts as much in place as can be had, path by path, and goes on past what cannot.
    ///
    /// Of a committed transaction that is what it committed, so that files and rows agree again; of a guard it is what was
    /// there before. What is displaced is kept: in `quarantine/<id>/`, with the old versions in history, or, of a guard, as
    /// what its rollback displaced. When everything is in place it is over. Otherwise it **stays in quarantine**, with all
    /// that is still kept, and [`Resolved::left`] says which paths are as they were found and why: mend and repeat, or end
    /// it with [`Quarantine::keep_live`]. So nothing ends without either every path in place or a person's word that what is
    /// there is right. Durable on return. Killed at any point, some paths are in place, and the next restore goes on.
    ///
    /// What later transactions have changed stays as they left it, and counts as in place.
    pub fn restore(&self, id: QuarantineId) -> Result<Resolved> {
        self.decide(id, recovery::restore)
    }

    /// Removes what was kept **for good**, of what is over or, ended first as by [`Quarantine::keep_live`], of what is not.
    ///
    /// Nothing in the tree is touched. Killed at any point, what is not yet removed is still listed; discard it again.
    pub fn discard(&self, id: QuarantineId) -> Result<Resolved> {
        self.decide(id, recovery::discard)
    }

    fn decide(
        &self,
        id: QuarantineId,
        verb: fn(&crate::txn::Ground, QuarantineId) -> Result<Resolved>,
    ) -> Result<Resolved> {
        store::refuse_reentry("a decision about the quarantine")?;
        let resolved = verb(self.journal.ground(), id)?;
        self.journal.settle()?;
        Ok(resolved)
    }

    fn inspector(&self) -> Result<Inspector> {
        let ground = self.journal.ground();
        let database: &Path = &ground.store.database().path;
        let options = InspectOptions::default().state_dir(&ground.state_path).database(database);
        Inspector::open_with(ground.root.path(), options)
    }
}
