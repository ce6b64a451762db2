//! The handle: which journal, and the questions.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::blobs::{self, BlobCheck, BlobDetail, BlobFilter, BlobList, BlobNews, BlobsInfo, BlobsVerified, StrayBlob};
use super::database::ReadOnly;
use super::feed::{self, FollowerInfo, Tail};
use super::holders::{self, LockHolders};
use super::liveness::KernelLocks;
use super::model::{
    EventInfo, GuardInfo, LockInfo, SessionInfo, Status, TransactionDetail, TransactionFilter, TransactionSummary,
    Turnstile,
};
use super::outbox::{self, MessageDetail, MessageFilter, MessageInfo, TopicInfo};
use super::quarantine::{self, QuarantineDetail, QuarantineEntry};
use super::runs::{RunDetail, RunInfo};
use super::{guards, locks, runs, status, transactions};
use crate::error::{Error, IoContext, Result};
use crate::id::{QuarantineId, RunId, TxnId};
use crate::path::STATE_DIR;
use crate::store::{CallerMode, SCHEMA_VERSION, TURNSTILE, Tx};
use crate::wait::StopToken;

/// Where a journal's parts lie when they are not in the usual place.
#[derive(Clone, Debug, Default)]
pub struct InspectOptions {
    state_dir: Option<PathBuf>,
    database: Option<PathBuf>,
    alone: bool,
}

impl InspectOptions {
    /// The state directory, when it is not `.journal`. Relative to the root.
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(path.into());
        self
    }

    /// The database, when it is the application's own. Relative to the root.
    pub fn database(mut self, path: impl Into<PathBuf>) -> Self {
        self.database = Some(path.into());
        self
    }

    /// Promises that this process opens no journal while it inspects, as a command-line tool can. Then not even the
    /// index of the write-ahead log, which SQLite rebuilds after a crash, is written.
    pub fn alone(mut self, alone: bool) -> Self {
        self.alone = alone;
        self
    }
}

/// A read-only view of a journal. Cheap to make and to keep: between two calls it holds nothing open.
#[derive(Clone, Debug)]
pub struct Inspector {
    pub(super) root: PathBuf,
    pub(super) state_dir: PathBuf,
    pub(super) database: ReadOnly,
}

impl Inspector {
    /// Looks at the journal of `root`, with everything in its usual place.
    ///
    /// Errors with [`Error::NoJournal`] when there is none, and with [`Error::NewerSchema`] when a newer version made
    /// it. Nothing is created or changed.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(root, InspectOptions::default())
    }

    /// Looks at the journal of `root`.
    pub fn open_with(root: impl AsRef<Path>, options: InspectOptions) -> Result<Self> {
        let root = std::fs::canonicalize(root.as_ref()).at("find the root", root.as_ref())?;
        if !std::fs::metadata(&root).at("look at", &root)?.is_dir() {
            return Err(Error::NotADirectory { path: root });
        }
        let state_dir = root.join(options.state_dir.as_deref().unwrap_or(Path::new(STATE_DIR)));
        let database = options.database.map_or_else(|| state_dir.join("journal.db"), |path| root.join(path));
        let missing = |error: &Error| matches!(error, Error::NotFound { .. });
        match std::fs::metadata(&state_dir).at("look at the state directory", &state_dir) {
            Ok(meta) if !meta.is_dir() => return Err(Error::NotADirectory { path: state_dir }),
            Ok(_) => {}
            Err(error) if missing(&error) => return Err(Error::NoJournal { root }),
            Err(error) => return Err(error),
        }
        match std::fs::metadata(&database).at("look at the database", &database) {
            Ok(_) => {}
            Err(error) if missing(&error) => return Err(Error::NoJournal { root }),
            Err(error) => return Err(error),
        }
        let database = ReadOnly::new(database, options.alone).with_lock(state_dir.join(TURNSTILE));
        let inspector = Self { root, state_dir, database };
        match inspector.database.snapshot(schema)? {
            None => Err(Error::NoJournal { root: inspector.root }),
            Some(found) if found > SCHEMA_VERSION => {
                Err(Error::NewerSchema { path: inspector.database.path().to_owned(), found, known: SCHEMA_VERSION })
            }
            Some(_) => Ok(inspector),
        }
    }

    /// The directory whose tree is protected.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    pub(crate) fn database_path(&self) -> &Path {
        self.database.path()
    }

    /// Runs the engine's own queries on one snapshot. `work` may run several times, and only the last counts.
    pub(crate) fn rows<T>(&self, mut work: impl FnMut(&Tx<'_>) -> Result<T>) -> Result<T> {
        let mode = CallerMode::default();
        self.database.snapshot(|connection| Ok(work(&Tx::over(connection, &mode))))?
    }

    /// The journal as a whole, and what to do next.
    pub fn status(&self) -> Result<Status> {
        status::status(self)
    }

    /// Transactions, newest first.
    pub fn transactions(&self, filter: TransactionFilter) -> Result<Vec<TransactionSummary>> {
        self.database.snapshot(|connection| transactions::list(connection, filter))
    }

    /// The same, oldest first, and then those that come, of whatever process, until `stop` is asked to. They are told of within
    /// some milliseconds; while nothing is written it costs next to nothing. Between two looks nothing is held open.
    pub fn tail(&self, filter: TransactionFilter, stop: &StopToken) -> Result<Tail> {
        Tail::new(self, filter, stop)
    }

    /// One transaction in full; none when there is none of that number.
    pub fn transaction(&self, id: TxnId) -> Result<Option<TransactionDetail>> {
        self.database.snapshot(|connection| transactions::detail(connection, id))
    }

    /// What happened after the event of that number, oldest first; 0 for all.
    pub fn events(&self, after: i64) -> Result<Vec<EventInfo>> {
        self.database.snapshot(|connection| transactions::events(connection, after))
    }

    /// The number of the newest event; 0 when there is none.
    pub fn last_event(&self) -> Result<i64> {
        const NEWEST: &str = "SELECT coalesce(max(id), 0) AS newest FROM main.journal_event";
        self.database.snapshot(|connection| {
            connection.query_row(NEWEST, (), |row| Ok(super::value::number_or_zero(row, "newest")))
        })
    }

    /// All locks that were ever taken, by name.
    pub fn locks(&self) -> Result<Vec<LockInfo>> {
        locks::locks(self)
    }

    /// The processes that hold the lock `name`, each compared with what the journal has on record; none when no such lock was
    /// ever taken. Shares the lock for an instant when it is free.
    pub fn lock_holders(&self, name: &str) -> Result<Option<LockHolders>> {
        holders::holders(self, name)
    }

    /// Whose turn it is to write, at this moment.
    pub fn turnstile(&self) -> Turnstile {
        locks::turnstile(&self.state_dir, &KernelLocks::read())
    }

    /// The sessions that did not say goodbye: alive, or dead and not yet recovered.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>> {
        locks::sessions(self)
    }

    /// The transactions that guard paths and have not ended: at work, dead and not yet recovered, or in quarantine. The
    /// first 50.
    pub fn guards(&self) -> Result<Vec<GuardInfo>> {
        guards::guards(self)
    }

    /// The runs of jobs: those that are open, then those that are over, each newest first; at most so many. Of some million
    /// items the number is told without counting them: see [`RunInfo::exact`].
    pub fn runs(&self, limit: Option<u64>) -> Result<Vec<RunInfo>> {
        runs::runs(self, limit)
    }

    /// One run in full, with at most so many of its newest items, and of those that were set aside, failed, or are being tried;
    /// none when there is none of that number.
    pub fn run(&self, id: RunId, items: Option<u64>) -> Result<Option<RunDetail>> {
        runs::run(self, Some(id), None, items)
    }

    /// The same for the run of a job that is open, or else was the last.
    pub fn run_of(&self, job: &str, items: Option<u64>) -> Result<Option<RunDetail>> {
        runs::run(self, None, Some(job), items)
    }

    /// The topics of the outbox, by name: what of each waits, who is at it, how much is parked. The first 1000.
    pub fn topics(&self) -> Result<Vec<TopicInfo>> {
        outbox::topics(self)
    }

    /// The messages that wait, or those that are parked, oldest first. Of many, ask for some at a time.
    pub fn messages(&self, filter: &MessageFilter) -> Result<Vec<MessageInfo>> {
        self.database.snapshot(|connection| outbox::messages(connection, filter))
    }

    /// One message in full; none when there is none of that number: it was published, or dropped.
    pub fn message(&self, id: i64) -> Result<Option<MessageDetail>> {
        self.database.snapshot(|connection| outbox::message_detail(connection, id))
    }

    /// Blobs, read some at a time as they are asked for.
    pub fn blobs(&self, filter: BlobFilter) -> BlobList {
        BlobList::new(self, filter)
    }

    /// How many blobs there are, how large, and what is still to go. Each table is counted as far as two million rows.
    pub fn blobs_summary(&self) -> Result<BlobsInfo> {
        blobs::summary(self)
    }

    /// One blob in full, by all of its name; none when there is none.
    pub fn blob(&self, id: &str) -> Result<Option<BlobDetail>> {
        blobs::detail(self, id)
    }

    /// What content is called whose hash begins with these hexadecimal digits, behind `blake3:` or not: the first ten.
    pub fn blob_ids(&self, prefix: &str) -> Result<Vec<String>> {
        blobs::ids(self, prefix)
    }

    /// Reads what blobs say, each content once, and compares it with what was sealed. Takes no lock, and keeps nobody from removing a
    /// blob meanwhile: that is no finding. What is sealed while it lasts is left to the next time.
    pub fn verify_blobs(&self, check: &BlobCheck, mut told: impl FnMut(BlobNews<'_>)) -> Result<BlobsVerified> {
        blobs::verify(self, check, &mut told)
    }

    /// What [`Blobs::sweep`](crate::Blobs::sweep) would remove, by what there is at this moment.
    pub fn stray_blobs(&self) -> Result<Vec<StrayBlob>> {
        blobs::strays(self)
    }

    /// Those who follow the changes under a name, and how far each is. The first 1000.
    pub fn followers(&self) -> Result<Vec<FollowerInfo>> {
        self.database.snapshot(feed::followers)
    }

    /// What is in quarantine: what waits for a person, and what is kept of what is over.
    pub fn quarantine(&self) -> Result<Vec<QuarantineEntry>> {
        quarantine::list(self)
    }

    /// One of it in full, path by path; none when nothing is called so.
    pub fn quarantined(&self, id: QuarantineId) -> Result<Option<QuarantineDetail>> {
        quarantine::show(self, id)
    }
}

/// The version of the schema; none when the database holds no journal.
fn schema(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    let there: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'journal_meta')",
        (),
        |row| row.get(0),
    )?;
    if !there {
        return Ok(None);
    }
    let mut statement = connection.prepare("SELECT schema FROM main.journal_meta WHERE id = 1")?;
    let mut rows = statement.query(())?;
    Ok(rows.next()?.map(|row| super::value::number_or_zero(row, "schema")))
}
