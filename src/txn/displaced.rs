//! What came out of the live tree: never unlinked while it may be anybody's work.
//!
//! It is kept for history if it is the old version that a row expected, under the name that this row knows it by; dropped if
//! there is no byte in it, or none that the row does not have; and set aside for a person otherwise. That an inode has the
//! number of one of ours proves nothing: numbers recur, and somebody may have written to our file in place. Nor do times,
//! after a power cut. So bytes are compared.

use std::os::fd::OwnedFd;

use crate::error::{IoContext, Result};
use crate::fault::{Fault, planted};
use crate::fs::area::{self, Area};
use crate::fs::exchange::{self, ASIDE};
use crate::fs::opener::Opener;
use crate::fs::root::{self, Kind, Meta};
use crate::fs::temp;
use crate::id::TxnId;
use crate::journal::{Redo, What};

/// What a version written once more from the journal is called, behind its name. What it displaces comes back under
/// the same name, for the length of two calls.
pub(crate) const AGAIN: &str = ".again";

/// The quarantine of what belongs to no transaction.
pub(crate) const NOBODYS: TxnId = TxnId(0);

/// Moves a name from a directory of the area into the transaction's quarantine. Answers where it is, for people.
pub(crate) fn set_aside(area: &Area, txn: TxnId, dir: &OwnedFd, name: &str) -> Result<String> {
    let quarantine = area.quarantine_of(txn.get())?;
    let base = area.path.join("quarantine").join(txn.to_string());
    let look = |dir: &OwnedFd, name: &str| root::look(dir, name).at_in("look at", &base, name);
    let here = look(dir, name)?;
    let mut free = name.to_owned();
    for n in 1.. {
        match look(&quarantine, &free)? {
            None => break,
            // A power cut may leave both names of a rename: it is there already.
            Some(there) if here.is_some_and(|here| is_one_file(&here, &there)) => {
                area::unlink(dir, name.as_ref(), &base)?;
                return Ok(base.join(free).display().to_string());
            }
            // Something else, set aside by an earlier recovery of the same row.
            Some(_) => free = format!("{name}.{n}"),
        }
    }
    exchange::take(dir, name.as_ref(), &quarantine, &free).at("set aside", base.join(&free))?;
    Ok(base.join(free).display().to_string())
}

fn is_one_file(one: &Meta, other: &Meta) -> bool {
    one.ino == other.ino && one.kind == other.kind && one.kind != Kind::Directory
}

/// What the fallback without an exchange may have left the old version under, for one staged name: it was put in place under
/// that name, or was written once more.
pub(crate) fn asides(staged: &str) -> [String; 2] {
    [format!("{staged}{ASIDE}"), format!("{staged}{AGAIN}{ASIDE}")]
}

fn holds_new(area: &Area, redo: &Redo) -> Result<bool> {
    let What::Content { ino, .. } = redo.what else { return Ok(false) };
    Ok(area.look_staged(&redo.staged)?.is_some_and(|staged| staged.ino == ino))
}

/// What came, or comes, out of one path.
pub(crate) struct Displaced<'a> {
    pub(crate) opener: &'a Opener,
    pub(crate) area: &'a Area,
    pub(crate) txn: TxnId,
    /// What is to be there.
    pub(crate) redo: &'a Redo,
    /// The effects of all unsettled commits on the path, this one among them: each knows which version it found there.
    pub(crate) found_by: &'a [Redo],
}

impl Displaced<'_> {
    /// Judges what was displaced and lies in the stage under `name`. Answers where it was set aside, if it was.
    pub(crate) fn keep(&self, name: &str) -> Result<Option<String>> {
        let Some(meta) = self.area.look_staged(name)? else { return Ok(None) };
        if let Some(kept) = self.preimage_name(&meta) {
            return self.keep_as(&kept, name);
        }
        let ours = matches!(self.redo.what, What::Content { ino, .. } if ino == meta.ino);
        if meta.kind == Kind::File && meta.size == 0 && ours {
            // Our own version, whose bytes a power cut took. With any byte in it, it may be somebody's edit in place.
            self.area.drop_staged(name)?;
            return Ok(None);
        }
        if planted(Fault::DisplacedDropped) {
            return self.area.drop_staged(name).map(|()| None);
        }
        set_aside(self.area, self.txn, &self.area.stage, name).map(Some)
    }

    /// The name that an old version has: that of the effect that found it.
    fn preimage_name(&self, meta: &Meta) -> Option<String> {
        let found = |of: &&Redo| of.old.as_ref().is_some_and(|old| old.is(meta, true));
        let of = self.found_by.iter().find(found)?;
        Some(if of.area == self.redo.area { of.preimage_name() } else { self.redo.preimage_name() })
    }

    /// Gives an old version its name, and whatever lies under that its own. Answers where something was set aside.
    fn keep_as(&self, kept: &str, name: &str) -> Result<Option<String>> {
        if kept == name {
            return Ok(None);
        }
        let mut aside = None;
        if let Some(there) = self.area.look_staged(kept)? {
            if self.area.look_staged(name)?.is_some_and(|here| is_one_file(&here, &there)) {
                return self.area.unlink_staged(name).map(|()| None);
            }
            match self.preimage_name(&there).filter(|other| other != kept) {
                Some(other) if other == name => return self.swap(kept, name),
                Some(other) => aside = self.keep_as(&other, kept)?,
                None if self.is_written_again(kept, &there)? => self.area.drop_staged(kept)?,
                None => aside = Some(set_aside(self.area, self.txn, &self.area.stage, kept)?),
            }
        }
        self.area.rename_staged(name, kept)?;
        Ok(aside)
    }

    /// Two old versions lie under each other's names.
    fn swap(&self, one: &str, other: &str) -> Result<Option<String>> {
        if self.area.swap_staged(one, other).is_ok() {
            return Ok(None);
        }
        // Where the filesystem cannot do that.
        let aside = set_aside(self.area, self.txn, &self.area.stage, one)?;
        self.area.rename_staged(other, one)?;
        Ok(Some(aside))
    }

    /// True when what lies under a staged name was never published: there is no byte in it that is not in its row too.
    fn is_written_again(&self, name: &str, meta: &Meta) -> Result<bool> {
        if meta.kind == Kind::File && meta.size == 0 {
            return Ok(true);
        }
        for of in self.found_by.iter().filter(|of| of.staged == name) {
            if self.is_version(of, name, meta)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True when what lies under a name of the stage is, byte for byte, what an effect puts in place.
    fn is_version(&self, of: &Redo, name: &str, meta: &Meta) -> Result<bool> {
        Ok(match &of.what {
            What::Content { size, hash, .. } => {
                let equal = || self.opener.hash_own(self.area.stage_path(name));
                meta.kind == Kind::File && meta.size == *size && equal()? == Some(*hash)
            }
            What::Symlink { target, .. } => temp::symlink_says(self.area, name, target),
            _ => false,
        })
    }

    /// Judges what lies under the staged names of all that was to come to the path, once it has its newest version: old
    /// versions, what was never published, or somebody's work, be it in an inode of ours. `placed`: what was not published goes
    /// away now. Answers where something was set aside, if it was.
    pub(crate) fn judge_staged(&self, live: Option<&Meta>, placed: bool) -> Result<Option<String>> {
        let mut aside = None;
        for of in self.found_by.iter().filter(|of| of.area == self.redo.area) {
            let name = of.staged.as_str();
            let Some(meta) = self.area.look_staged(name)? else { continue };
            let known = self.preimage_name(&meta).is_some();
            if !known && live.is_some_and(|live| is_one_file(live, &meta)) {
                // A power cut may leave both names of a rename.
                self.area.unlink_staged(name)?;
            } else if known || !self.is_written_again(name, &meta)? {
                aside = self.keep(name)?.or(aside);
            } else if placed {
                self.area.drop_staged(name)?;
            }
        }
        Ok(aside)
    }

    /// Puts right what a recovery that was cut short left in the stage for one effect, before the next one begins.
    /// `live` is what the tree has. Answers where something was set aside, if it was.
    pub(crate) fn reconcile(&self, live: Option<&Meta>) -> Result<Option<String>> {
        let Self { area, redo, .. } = self;
        let mut kept = None;
        let [aside, again_aside] = asides(&redo.staged);
        for name in [format!("{}{AGAIN}", redo.staged), aside.clone(), again_aside] {
            let Some(meta) = area.look_staged(&name)? else { continue };
            // Moved aside, and nothing put in its place yet: the name it is to have is still the new version's.
            if live.is_none() && name == aside && holds_new(area, redo)? {
                continue;
            }
            let ours = match &redo.what {
                What::Content { ino, .. } => {
                    // Made, and not filled: while the tree has another inode than the recorded one, nothing was exchanged.
                    let exchanged = live.is_some_and(|live| live.ino == *ino);
                    // Or after what is in the tree: it was cut short before it could be recorded.
                    let fresh = live.is_some_and(|live| live.btime < meta.btime);
                    let begun = meta.kind == Kind::File && meta.size == 0 && (!exchanged || fresh);
                    begun || self.is_version(redo, &name, &meta)?
                }
                _ => self.is_version(redo, &name, &meta)?,
            };
            let old = self.preimage_name(&meta).is_some();
            // Without an exchange the old version is linked aside first; then both names are one inode.
            let linked = live.is_some_and(|live| is_one_file(live, &meta));
            if linked || (ours && !old) {
                area.unlink_staged(&name)?;
            } else {
                kept = self.keep(&name)?.or(kept);
            }
        }
        Ok(kept)
    }
}
