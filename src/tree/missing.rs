//! What of a guard could not be put back because its old version is not there any more, or is not what was kept: found out
//! before any live file is touched.

use super::preimage::{Difference, PreImage, PreImages, Was};
use super::restorer::{TreeRestorer, set_of};
use crate::error::Result;
use crate::fs::clone::Way;
use crate::fs::root::{Kind, Meta};
use crate::path::RelPath;

impl TreeRestorer<'_> {
    /// The paths whose old versions are needed and missing, and why; with a database all that lies beside it. `again`: an
    /// attempt before this one may have put some back, and what lies in the stage instead was displaced by them.
    pub(crate) fn missing(&mut self, images: &PreImages, again: bool) -> Result<Vec<(RelPath, String)>> {
        self.torn = self.find_torn(images);
        let mut missing = Vec::new();
        for (path, image) in images {
            // In a directory that was closed to this user nobody can look before it is put back: then it is needed.
            let (live, difference) = self.compare(path, image).unwrap_or((None, Difference::All));
            if difference != Difference::All {
                continue;
            }
            let staged = self.area(image)?.look_staged(&image.name)?;
            missing.extend(why(image, live, staged, again).map(|why| (path.clone(), why)));
        }
        let sets: Vec<RelPath> = missing.iter().filter_map(|(path, _)| set_of(path, images)).collect();
        for (path, _) in images.iter().filter(|(path, _)| set_of(path, images).is_some_and(|set| sets.contains(&set))) {
            if missing.iter().all(|(known, _)| known != path) {
                missing.push((path.clone(), "it goes with a database of which something is missing".to_owned()));
            }
        }
        missing.sort();
        Ok(missing)
    }
}

/// Why what lies in the stage cannot be the old version. None where it is that, or where none is needed.
fn why(image: &PreImage, live: Option<Meta>, staged: Option<Meta>, again: bool) -> Option<String> {
    let (Was::File { kept, .. } | Was::Database { kept, .. }) = &image.was else { return None };
    let is_file = |meta: &Meta| meta.kind == Kind::File && meta.ino == kept.ino;
    // Written to in place, where nobody should or since it was put back: what is there is the very file.
    if live.as_ref().is_some_and(is_file) {
        return None;
    }
    let link = matches!(&image.was, Was::File { way: Way::Link, .. });
    match staged {
        Some(staged) if kept.is(&staged, true) => None,
        Some(staged) if is_file(&staged) && link => None,
        Some(staged) if is_file(&staged) => Some(format!(
            "its old version is not what was kept: {} bytes of {}, or written to since",
            staged.size, kept.size
        )),
        // Displaced, when somebody replaced by hand what had been put back.
        _ if again => None,
        Some(_) => Some("in place of its old version something else lies in the stage".to_owned()),
        None => Some("its old version is not in the stage any more".to_owned()),
    }
}
