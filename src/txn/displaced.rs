//! What came out of the live tree: never unlinked while it may be anybody's work.
//!
//! It is kept for history if it is the old version that a row expected, dropped if there is no byte in it, and set
//! aside for a person otherwise.

use std::os::fd::OwnedFd;

use crate::error::{IoContext, Result};
use crate::fault::{Fault, planted};
use crate::fs::area::Area;
use crate::fs::exchange::{self, ASIDE};
use crate::fs::identity::Identity;
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
    // An attempt before this one may have set something aside that bore the same name.
    let (mut n, mut kept) = (0, name.to_owned());
    while root::look(&quarantine, &kept).at("look at", base.join(&kept))?.is_some() {
        n += 1;
        kept = format!("{name}.{n}");
    }
    exchange::take(dir, name.as_ref(), &quarantine, &kept).at("set aside", base.join(&kept))?;
    Ok(base.join(kept).display().to_string())
}

/// Judges what was displaced and lies in the stage under `name`. `older` are the versions that may be expected: what
/// unsettled commits found at the path. Answers where it was set aside, if it was.
pub(crate) fn keep(area: &Area, txn: TxnId, redo: &Redo, older: &[Identity], name: &str) -> Result<Option<String>> {
    let Some(meta) = area.look_staged(name)? else { return Ok(None) };
    if older.iter().any(|old| old.is(&meta, true)) {
        let kept = redo.preimage_name();
        if kept != name {
            // The temporary file of the first try, if it survived, was never published.
            area.drop_staged(&kept)?;
            area.rename_staged(name, &kept)?;
        }
        return Ok(None);
    }
    let ours = matches!(redo.what, What::Content { ino, .. } if ino == meta.ino);
    if meta.kind == Kind::File && meta.size == 0 && ours {
        // Our own version, whose bytes a power cut took. With any byte in it, it may be somebody's edit in place.
        area.drop_staged(name)?;
        return Ok(None);
    }
    if planted(Fault::DisplacedDropped) {
        return area.drop_staged(name).map(|()| None);
    }
    set_aside(area, txn, &area.stage, name).map(Some)
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

/// Puts right what a recovery that was cut short left in the stage for one effect, before the next one begins.
/// `live` is what the tree has. Answers where something was set aside, if it was.
pub(crate) fn reconcile(
    area: &Area,
    txn: TxnId,
    redo: &Redo,
    older: &[Identity],
    live: Option<&Meta>,
) -> Result<Option<String>> {
    let mut kept = None;
    let [aside, again_aside] = asides(&redo.staged);
    for name in [format!("{}{AGAIN}", redo.staged), aside.clone(), again_aside] {
        let Some(meta) = area.look_staged(&name)? else { continue };
        // Moved aside, and nothing put in its place yet: the name it is to have is still the new version's.
        if live.is_none() && name == aside && holds_new(area, redo)? {
            continue;
        }
        let ours = match &redo.what {
            What::Content { ino, size, attrs, .. } => {
                // Made, not yet recorded; or recorded, not yet filled: while the tree has another inode than the
                // recorded one, nothing was exchanged.
                let exchanged = live.is_some_and(|live| live.ino == *ino);
                let begun = meta.kind == Kind::File && (meta.size == 0 || meta.ino == *ino);
                // Or it was in the tree once, and nobody has written to it since.
                let untouched = meta.kind == Kind::File && meta.size == *size && meta.mtime == attrs.mtime;
                // Made after what is in the tree, and never written to: it was cut short before it could be recorded.
                let fresh =
                    meta.kind == Kind::File && meta.size == 0 && live.is_some_and(|live| live.btime < meta.btime);
                (begun && !exchanged) || untouched || fresh
            }
            What::Symlink { target, .. } => temp::symlink_says(area, &name, target),
            _ => false,
        };
        let old = older.iter().any(|old| old.is(&meta, true));
        // Without an exchange the old version is linked aside first; then both names are one inode.
        let is_live = |live: &Meta| live.ino == meta.ino && live.kind == meta.kind && live.kind != Kind::Directory;
        let linked = live.is_some_and(is_live);
        if linked || (ours && !old) {
            area.unlink_staged(&name)?;
        } else {
            kept = keep(area, txn, redo, older, &name)?.or(kept);
        }
    }
    Ok(kept)
}
