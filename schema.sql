-- The fresh schema of a journal, version 2. `store::migrate` runs it by include_str!, and a test compares it with
-- what the append-only list of migrations leads to. Times are milliseconds since 1970 in UTC and are for people only:
-- no decision reads them. Paths are bytes relative to the root. BLOB columns named `record` and `details` are
-- versioned, length-limited and checksummed by `codec`.

-- One row: what is true of the journal as a whole.
CREATE TABLE journal_meta (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    schema        INTEGER NOT NULL,             -- the version of this file
    app_schema    INTEGER NOT NULL DEFAULT 0,   -- how many of the application's own migrations have run
    created_ms    INTEGER NOT NULL,
    fence         INTEGER NOT NULL DEFAULT 0,   -- the largest fencing token handed out
    fence_ceiling INTEGER NOT NULL DEFAULT 0,   -- durable: no token above it was ever handed out
    fence_mark    BLOB NOT NULL DEFAULT x'',    -- the boot and mount in which `fence` was last true
    guard_floor   INTEGER NOT NULL DEFAULT 0,   -- of guards up to this number something may lie in quarantine/
    home          BLOB,                         -- recovery::Home: which directories the root and the state directory are
    CHECK (fence <= fence_ceiling)
) STRICT;

-- A process that has, or had, the journal open. Alive is who holds sessions/<id>.lock, not what stands here.
CREATE TABLE journal_session (
    id         BLOB PRIMARY KEY CHECK (length(id) = 16),
    pid        INTEGER NOT NULL,
    started    INTEGER NOT NULL,                -- the process's start time in clock ticks since boot, against pid reuse
    boot       BLOB NOT NULL,
    program    TEXT NOT NULL,
    opened_ms  INTEGER NOT NULL,
    ended_ms   INTEGER,
    state      TEXT NOT NULL CHECK (state IN ('open', 'closed', 'dead'))
) STRICT, WITHOUT ROWID;
CREATE INDEX journal_session_open ON journal_session (state) WHERE state = 'open';

-- A named lock: who holds it, why and since when. That it is held is the kernel's word (locks/<name>.lock).
CREATE TABLE journal_lock (
    name         TEXT PRIMARY KEY,
    fence        INTEGER NOT NULL,              -- the token of the newest acquisition
    session      BLOB,                          -- NULL when released
    pid          INTEGER,
    purpose      TEXT NOT NULL DEFAULT '',
    acquired_ms  INTEGER NOT NULL,
    heartbeat_ms INTEGER NOT NULL,
    progress     TEXT NOT NULL DEFAULT '',
    acquisitions INTEGER NOT NULL DEFAULT 1,
    crashes      INTEGER NOT NULL DEFAULT 0,    -- acquisitions that found it held by the dead
    losses       INTEGER NOT NULL DEFAULT 0,    -- holders that found their fence overtaken
    waits        INTEGER NOT NULL DEFAULT 0,    -- acquisitions that waited for more than a second
    longest_wait_ms INTEGER NOT NULL DEFAULT 0  -- the longest of these
) STRICT, WITHOUT ROWID;

-- Who has waited for a lock for more than a second, until he gets it or gives up. That he waits is the kernel's word.
CREATE TABLE journal_wait (
    id       INTEGER PRIMARY KEY,
    lock     TEXT NOT NULL,
    session  BLOB NOT NULL,
    pid      INTEGER NOT NULL,
    since_ms INTEGER NOT NULL
) STRICT;

-- A transaction. A staged one has no row before its COMMIT.
CREATE TABLE journal_txn (
    id           INTEGER PRIMARY KEY,           -- commit order
    state        TEXT NOT NULL CHECK (state IN
                   ('committed', 'pending', 'applied', 'settling', 'settled', 'quarantined')),
    lock         TEXT NOT NULL,
    fence        INTEGER NOT NULL,
    session      BLOB NOT NULL,
    label        TEXT NOT NULL DEFAULT '',
    key          TEXT,                          -- the idempotency key
    digest       BLOB,                          -- of the effects, to compare a repeat of the key
    ran_sql      INTEGER NOT NULL DEFAULT 0 CHECK (ran_sql IN (0, 1)),
    structural   INTEGER NOT NULL DEFAULT 0 CHECK (structural IN (0, 1)),   -- moves or removes directories
    changes      INTEGER NOT NULL DEFAULT 0,    -- rows of journal_change
    bytes        INTEGER NOT NULL DEFAULT 0,    -- of new content
    kept         INTEGER NOT NULL DEFAULT 0,    -- pre-images that are still kept
    history      INTEGER NOT NULL DEFAULT 0,    -- their bytes
    attempts     INTEGER NOT NULL DEFAULT 0,    -- recoveries begun and not ended
    began_ms     INTEGER NOT NULL,
    committed_ms INTEGER NOT NULL,
    applied_mark BLOB,                          -- boot, mounts and state directory in which its apply counts
    settled_ms   INTEGER,
    rolled_back  INTEGER NOT NULL DEFAULT 0 CHECK (rolled_back IN (0, 1))   -- guarded paths, and put them back
) STRICT;
CREATE UNIQUE INDEX journal_txn_key ON journal_txn (key) WHERE key IS NOT NULL;
CREATE INDEX journal_txn_unsettled ON journal_txn (state) WHERE state <> 'settled';
CREATE INDEX journal_txn_history ON journal_txn (id) WHERE kept > 0;
CREATE INDEX journal_txn_structure ON journal_txn (id) WHERE structural = 1 AND state IN ('applied', 'settling');

-- What recovery needs to carry an effect into the tree again; gone once the transaction is settled. One integer holds
-- transaction and effect, because content overflows its page: a key in the row would be compared by reading it all.
CREATE TABLE journal_redo (
    id      INTEGER PRIMARY KEY,                -- transaction * 2^20 + number of the effect
    path    BLOB NOT NULL,
    record  BLOB NOT NULL,                      -- journal::record::Redo
    content BLOB                                -- the new bytes, when small enough
) STRICT;

-- A transaction that guards paths, from its first guard until it commits or everything is put back. Whose lock is free
-- while its row is here is dead.
CREATE TABLE journal_guard (
    id       INTEGER PRIMARY KEY,
    state    TEXT NOT NULL CHECK (state IN ('active', 'quarantined', 'ending')),   -- ending: what it kept is on its way
    lock     TEXT NOT NULL,                     -- to quarantine/, because a person said so
    session  BLOB NOT NULL,
    label    TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,        -- to put everything back, begun and not ended
    began_ms INTEGER NOT NULL,
    fence    INTEGER NOT NULL DEFAULT 0,        -- of its lock
    mark     BLOB NOT NULL DEFAULT x'',         -- boot, mounts and state directory in which unsynced times are still true
    worker   BLOB,                              -- time::Process: who works under it, and may outlive whoever began it
    reason   TEXT,                              -- why it was given up
    given_up_ms INTEGER
) STRICT;

-- What each guarded path was.
CREATE TABLE journal_preimage (
    id     INTEGER PRIMARY KEY,                 -- guard * 2^32 + number of the path
    path   BLOB NOT NULL,
    record BLOB NOT NULL                        -- tree::PreImage
) STRICT;

-- A tree that was guarded, and how its baseline stands: the mirror of it as it was last committed.
CREATE TABLE journal_tree (
    id      INTEGER PRIMARY KEY,
    path    BLOB NOT NULL,                      -- of its topmost directory; empty for the root
    writers TEXT NOT NULL CHECK (writers IN ('any', 'replacing', 'layer')),
    area    INTEGER NOT NULL,                   -- whose baseline/ holds the mirror
    state   TEXT NOT NULL CHECK (state IN ('changing', 'true')),   -- while it changes, mirror and rows may disagree
    UNIQUE (path, writers)
) STRICT;

-- A directory of such a tree, as it was when it was last looked at.
CREATE TABLE journal_tree_dir (
    id       INTEGER PRIMARY KEY,               -- tree * 2^24 + number; the name of its mirror
    tree     INTEGER NOT NULL,
    path     BLOB NOT NULL,
    ino      INTEGER NOT NULL,
    mtime_s  INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_s  INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    racy     INTEGER NOT NULL CHECK (racy IN (0, 1)),   -- the times prove nothing: list it anyway
    looks    INTEGER NOT NULL CHECK (looks IN (0, 1)),  -- some of its entries are looked at whatever the times say
    attrs    BLOB NOT NULL                      -- fs::Attrs, and when it was made
) STRICT;
CREATE INDEX journal_tree_dir_path ON journal_tree_dir (tree, path);

-- Its entries, some thousand to a row.
CREATE TABLE journal_tree_part (
    id     INTEGER PRIMARY KEY,                 -- directory * 2^20 + number of the part
    record BLOB NOT NULL                        -- a list of tree::Entry
) STRICT;

-- The trees that a transaction guards. Until one is ready nobody may have changed it.
CREATE TABLE journal_guard_tree (
    guard INTEGER NOT NULL,
    tree  INTEGER NOT NULL,
    ready INTEGER NOT NULL CHECK (ready IN (0, 1)),
    began_s  INTEGER NOT NULL,                 -- when it became ready, by the clock of its filesystem
    began_ns INTEGER NOT NULL,
    PRIMARY KEY (guard, tree)
) STRICT, WITHOUT ROWID;

-- What a transaction did to each path, for people, history and the change feed.
CREATE TABLE journal_change (
    txn      INTEGER NOT NULL,
    n        INTEGER NOT NULL,
    path     BLOB NOT NULL,
    kind     TEXT NOT NULL CHECK (kind IN ('created', 'replaced', 'removed', 'renamed', 'directory')),
    origin   BLOB,                              -- renamed: the path it had before
    size     INTEGER,                           -- of the new version
    hash     BLOB,                              -- BLAKE3 of the new version
    old_size INTEGER,
    preimage TEXT,                              -- the name of the old version in stage/, then history/
    area     INTEGER NOT NULL DEFAULT 0,        -- where that name lies: 0 = the state directory, else journal_area
    PRIMARY KEY (txn, n)
) STRICT, WITHOUT ROWID;

-- Mounts and subvolumes inside the root that need a stage of their own, because a rename cannot cross to them.
CREATE TABLE journal_area (
    id   INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE                   -- the directory that holds the area's `.journal-stage`
) STRICT;

-- A run: how far a resumable job is, or was.
CREATE TABLE journal_run (
    id          INTEGER PRIMARY KEY,
    job         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,                  -- of what the job works on; another one begins afresh
    state       TEXT NOT NULL CHECK (state IN ('open', 'finished', 'abandoned', 'replaced')),
    session     BLOB,                           -- that works at it, or died of it; NULL when it said how it ended
    starts      INTEGER NOT NULL DEFAULT 1,     -- sessions that worked at it
    began_ms    INTEGER NOT NULL,
    started_ms  INTEGER NOT NULL,               -- when the newest of them started
    started_at  INTEGER NOT NULL DEFAULT 0,     -- the number of its first item
    stopped_ms  INTEGER,                        -- when it said how it ended
    reason      TEXT NOT NULL DEFAULT '',       -- why
    expected    INTEGER,                        -- how many items there are in all, where the job says so
    banked      INTEGER,                        -- how many there were when the run was over
    cursor      TEXT,                           -- JSON: the job's own word of where to go on
    bad_cursor  TEXT                            -- one that the job could not read
) STRICT;
CREATE UNIQUE INDEX journal_run_open ON journal_run (job) WHERE state = 'open';

-- An item that is done. Rows are only added, at the end of their run.
CREATE TABLE journal_run_item (
    id    INTEGER PRIMARY KEY,                  -- run * 2^36 + number
    item  BLOB NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;

-- An item that was tried and is not done. It is counted before it is tried. (SQLite makes a table of an IN with more than two
-- words each time that a row is written.)
CREATE TABLE journal_run_try (
    id    INTEGER PRIMARY KEY,                  -- run * 2^36 + number
    item  BLOB NOT NULL,
    tries INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state = 'trying' OR state = 'failed' OR state = 'aside'),
    at_ms INTEGER NOT NULL,
    error TEXT NOT NULL DEFAULT ''              -- of the newest try
) STRICT;

-- A message that waits to be published, or was refused too often. What it says stands last: a row is judged without reading that.
CREATE TABLE journal_outbox (
    id          INTEGER PRIMARY KEY,            -- transaction * 2^20 + number of the message
    topic       TEXT NOT NULL,
    key         TEXT NOT NULL,
    version     INTEGER NOT NULL,               -- counts the messages of the key
    fence       INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('pending', 'parked')),
    attempts    INTEGER NOT NULL DEFAULT 0,     -- how often it was refused
    enqueued_ms INTEGER NOT NULL,
    tried_ms    INTEGER,                        -- when it was refused
    error       TEXT NOT NULL DEFAULT '',
    payload     BLOB                            -- NULL: what the key stands for is gone
) STRICT;
CREATE INDEX journal_outbox_pending ON journal_outbox (topic) WHERE state = 'pending';
CREATE INDEX journal_outbox_parked ON journal_outbox (id) WHERE state <> 'pending';

-- A key that messages were ever sent for.
CREATE TABLE journal_outbox_key (
    topic   TEXT NOT NULL,
    key     TEXT NOT NULL,
    version INTEGER NOT NULL,                   -- of its newest message
    floor   INTEGER NOT NULL DEFAULT 0,         -- of its newest removal: messages below are not published any more
    PRIMARY KEY (topic, key)
) STRICT, WITHOUT ROWID;

-- A topic that messages were ever published of, for people.
CREATE TABLE journal_outbox_topic (
    topic        TEXT PRIMARY KEY,
    published    INTEGER NOT NULL DEFAULT 0,    -- messages, ever
    published_ms INTEGER,                       -- when the newest of them was
    paused_ms    INTEGER,                       -- since when its sink cannot be reached, or refuses too much
    session      BLOB,                          -- whose drainer found that
    reason       TEXT NOT NULL DEFAULT '',      -- what the sink says
    retried      INTEGER NOT NULL DEFAULT 0     -- messages that people had tried again, ever
) STRICT, WITHOUT ROWID;

-- Who applies messages to rows of this database, and how far it is.
CREATE TABLE journal_applied (
    consumer TEXT NOT NULL,
    topic    TEXT NOT NULL,
    key      TEXT NOT NULL,
    version  INTEGER NOT NULL,                  -- of the newest message of the key that it has applied
    PRIMARY KEY (consumer, topic, key)
) STRICT, WITHOUT ROWID;

-- Who follows the changes under a name, and how far it is.
CREATE TABLE journal_follower (
    name     TEXT PRIMARY KEY,
    position INTEGER NOT NULL,                  -- the newest transaction that it is done with
    at_ms    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What blobs say: each content once, however many blobs say so.
CREATE TABLE journal_blob_content (
    id        INTEGER PRIMARY KEY,
    hash      BLOB NOT NULL UNIQUE,             -- BLAKE3
    size      INTEGER NOT NULL,
    direct    INTEGER NOT NULL,                 -- how often it was sealed as a blob called by its content, and not removed
    named     INTEGER NOT NULL,                 -- how many blobs with a name say this
    state     TEXT NOT NULL CHECK (state IN ('inline', 'staged', 'placed', 'unwanted')),   -- staged: its file may still be
    name      TEXT,                             -- in stage/; unwanted: it is to go. NULL: no file, it stands here
    sealed_ms INTEGER NOT NULL,
    content   BLOB
) STRICT;
CREATE INDEX journal_blob_content_todo ON journal_blob_content (state) WHERE state = 'staged' OR state = 'unwanted';

-- A blob that its writer has named. No name is used twice, so the rows of those that are gone stay.
CREATE TABLE journal_blob (
    id         TEXT PRIMARY KEY,
    state      TEXT NOT NULL CHECK (state IN ('writing', 'sealed', 'aborted', 'incomplete', 'removed')),
    content    INTEGER,                         -- when it is sealed
    session    BLOB,                            -- while it is being written: whose, and the name in stage/
    name       TEXT,
    written    INTEGER,                         -- how far it came, when its writer died
    created_ms INTEGER NOT NULL,
    ended_ms   INTEGER                          -- when it was sealed, given up or removed
) STRICT, WITHOUT ROWID;
CREATE INDEX journal_blob_writing ON journal_blob (state) WHERE state = 'writing';

-- What happened that somebody may want to know: warnings, recoveries, what was moved aside.
CREATE TABLE journal_event (
    id      INTEGER PRIMARY KEY,
    at_ms   INTEGER NOT NULL,
    level   TEXT NOT NULL CHECK (level IN ('info', 'warn', 'error')),
    kind    TEXT NOT NULL,
    txn     INTEGER,
    path    BLOB,
    details BLOB NOT NULL                       -- codec: EventDetails
) STRICT;
CREATE INDEX journal_event_txn ON journal_event (txn) WHERE txn IS NOT NULL;
