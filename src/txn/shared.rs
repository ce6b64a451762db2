//! Files of several names: what is kept of each is one file, so that they come back as names of one.

use std::collections::HashMap;

use super::ground::Ground;
use crate::error::Result;
use crate::fs::clone::Way;
use crate::fs::identity::Identity;
use crate::tree::{PreImage, PreImages, Was};

/// Has those of the new pre-images that saw the same file, under different names, share what is kept of it: with each other,
/// and with what was known before.
pub(super) fn share(ground: &Ground, known: &PreImages, new: &mut PreImages) -> Result<()> {
    let mut first: HashMap<(i64, Identity), (String, Identity, bool)> = HashMap::with_capacity(new.len());
    for image in known.values() {
        if let Some((seen, kept)) = copied(image) {
            first.insert((image.area, seen.clone()), (image.name.clone(), kept.clone(), true));
        }
    }
    for image in new.values_mut() {
        let Some((seen, _)) = copied(image) else { continue };
        let key = (image.area, seen.clone());
        let (PreImage { area, name, .. }, Was::File { kept, .. }) = (&*image, &image.was) else { continue };
        let Some((other, of_other, recorded)) = first.get(&key) else {
            first.insert(key, (name.clone(), kept.clone(), false));
            continue;
        };
        let area = ground.area(*area)?;
        // What was put back before is in its place, and what lies there instead was displaced by it.
        let is_there =
            || -> Result<bool> { Ok(area.look_staged(other)?.is_some_and(|staged| of_other.is(&staged, true))) };
        if of_other.ino != kept.ino && (!recorded || is_there()?) && area.link_staged(other, name)? {
            let shared = of_other.clone();
            if let Was::File { kept, .. } = &mut image.was {
                *kept = shared;
            }
        }
    }
    links_say_what_they_are_now(new);
    Ok(())
}

/// A file of its own that is kept for this one.
fn copied(image: &PreImage) -> Option<(&Identity, &Identity)> {
    match &image.was {
        Was::File { seen, kept, way: Way::Reflink | Way::Copy, .. } => Some((seen, kept)),
        _ => None,
    }
}

/// Each link that was made to a file moved its ctime on, and the last one counts.
fn links_say_what_they_are_now(images: &mut PreImages) {
    let mut newest: HashMap<(i64, u64), (i64, u32)> = HashMap::new();
    for image in images.values() {
        if let Was::File { seen, way: Way::Link, .. } = &image.was {
            let ctime = newest.entry((image.area, seen.ino)).or_insert(seen.ctime);
            *ctime = seen.ctime.max(*ctime);
        }
    }
    for image in images.values_mut() {
        if let Was::File { seen, kept, way: Way::Link, .. } = &mut image.was
            && let Some(&ctime) = newest.get(&(image.area, seen.ino))
        {
            (seen.ctime, kept.ctime) = (ctime, ctime);
        }
    }
}
