//! Any bytes as a path of the tree: refused, or something that can only lie below the root and outside the engine's own
//! directories.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

pub(crate) fn run(bytes: &[u8]) {
    let Some(path) = journal_kb::__fuzz::path(bytes) else { return };
    assert!(path.len() < 4096 && !path.contains(&0), "{path:?}");
    for (depth, name) in path.split(|&byte| byte == b'/').enumerate() {
        assert!(!name.is_empty() && name.len() <= 255 && name != b"." && name != b"..", "{path:?}");
        assert!(name != b".journal-stage" && (depth > 0 || name != b".journal"), "{path:?} is the engine's");
    }
    // As the standard library sees it, too: nothing but names, so joining it to a root stays below that root.
    let names = Path::new(OsStr::from_bytes(&path)).components();
    assert!(names.into_iter().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
    // What is stored is read back as itself.
    assert_eq!(journal_kb::__fuzz::path(&path).as_ref(), Some(&path), "from {bytes:?}");
}
