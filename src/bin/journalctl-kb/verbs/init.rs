//! `init`: makes a journal.

use std::path::PathBuf;

use serde_json::json;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, path};
use crate::place::Place;

pub(crate) const HELP: &str = "\
Makes .journal/ in DIR and nothing else; the files already there stay as they are. Doing it again is fine.

Examples:
  journalctl-kb init
  journalctl-kb init kb

JSON: root, state_dir, created (false when there was one already), schema";

pub(crate) fn run(
    out: &mut Out,
    dir: Option<PathBuf>,
    root: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    database: Option<PathBuf>,
) -> Result<Outcome, Failure> {
    if dir.is_some() && root.is_some() {
        return Err(Failure::Usage("`init DIR` and --root DIR both name the directory: give one of them"));
    }
    let root = dir.or(root).unwrap_or_else(|| ".".into());
    if !root.exists() {
        #[expect(clippy::disallowed_methods, reason = "there is no root yet, and this is the user's own wish")]
        std::fs::create_dir_all(&root).map_err(|error| Failure::System("make", root.clone(), error))?;
    }
    let place = Place::new(root, state_dir, database)?;
    let created = place.inspector().is_err();
    place.journal(true)?.close()?;
    let status = place.inspector()?.status()?;
    if out.json() {
        out.object(&json!({
            "root": status.root.to_string_lossy(),
            "state_dir": status.state_dir.to_string_lossy(),
            "created": created,
            "schema": status.schema,
        }))?;
    } else if created {
        out.line(format_args!("made a journal for {} in {}", path(&status.root), path(&status.state_dir)))?;
    } else {
        out.line(format_args!("{} has a journal already, in {}", path(&status.root), path(&status.state_dir)))?;
    }
    Ok(Outcome::Fine)
}
