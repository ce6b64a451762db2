//! Which journal is meant.

use std::path::PathBuf;
use std::time::Duration;

use journal_kb::inspect::{InspectOptions, Inspector};
use journal_kb::{Journal, Options};

use crate::exit::Failure;

/// Where a journal and its parts lie.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) root: PathBuf,
    state_dir: Option<PathBuf>,
    database: Option<PathBuf>,
}

impl Place {
    /// The root as named, else the nearest directory from here upwards that holds `.journal/`.
    pub(crate) fn find(
        root: Option<PathBuf>,
        state_dir: Option<PathBuf>,
        database: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let root = match root {
            Some(root) => root,
            None => {
                let here = std::env::current_dir().map_err(|e| Failure::System("find", ".".into(), e))?;
                let holds = |dir: &&std::path::Path| state_dir.is_some() || dir.join(".journal").is_dir();
                match here.ancestors().find(holds) {
                    Some(root) => root.to_owned(),
                    None => return Err(Failure::NoJournalAbove(here)),
                }
            }
        };
        Self::new(root, state_dir, database)
    }

    /// These places, as seen from here: the library takes the last two relative to the root, a shell from where it is.
    pub(crate) fn new(root: PathBuf, state_dir: Option<PathBuf>, database: Option<PathBuf>) -> Result<Self, Failure> {
        let absolute = |path: Option<PathBuf>| {
            path.map(|path| std::path::absolute(&path).map_err(|error| Failure::System("find", path, error)))
                .transpose()
        };
        Ok(Self { root, state_dir: absolute(state_dir)?, database: absolute(database)? })
    }

    /// To look, and to touch nothing.
    pub(crate) fn inspector(&self) -> Result<Inspector, Failure> {
        let mut options = InspectOptions::default().alone(true);
        if let Some(path) = &self.state_dir {
            options = options.state_dir(path);
        }
        if let Some(path) = &self.database {
            options = options.database(path);
        }
        Ok(Inspector::open_with(&self.root, options)?)
    }

    /// To change something. Makes a journal only where `create` says so.
    pub(crate) fn journal(&self, create: bool) -> Result<Journal, Failure> {
        // How long runs are kept is for the application to say, and not known here.
        let mut options: Options = Journal::options().create(create).run_retention(Duration::MAX);
        if let Some(path) = &self.state_dir {
            options = options.state_dir(path);
        }
        if let Some(path) = &self.database {
            options = options.database(path);
        }
        Ok(options.open(&self.root)?)
    }
}
