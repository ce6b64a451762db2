//! What tests have happen inside the engine: an end at any step (feature `testing`), and faults that are planted in it, to
//! see that the proof finds them (feature `planted-faults`). Without these features nothing of it is compiled in.

/// A fault. The name of the variant, in the variable `JOURNAL_KB_PLANTED`, has it happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Staged content that does not ride in the log is not synced before the COMMIT.
    StagedContentUnsynced,
    /// The COMMIT of a transaction is not synced.
    CommitNotDurable,
    /// Settling syncs nothing before redo content goes.
    LiveFilesUnsynced,
    /// "Settled" is not synced, so that a power cut brings redo content back.
    SettledNotDurable,
    /// Redo content goes before the tree is synced.
    SettledBeforeSync,
    /// A failed sync of the tree is tried again.
    FailedSyncTriedAgain,
    /// A failed sync of the log is forgotten by the next process.
    FailedLogSyncForgotten,
    /// Effects are applied before the COMMIT.
    AppliedBeforeCommit,
    /// Old versions of guarded paths are not synced before the guard is recorded.
    OldVersionsUnsynced,
    /// They are synced afterwards.
    GuardRecordedBeforeSync,
    /// The record of a guard is not synced before anybody may write.
    GuardNotDurable,
    /// What was written under a guard is not synced before the COMMIT.
    GuardedWorkUnsynced,
    /// What was put back is not synced before the guard ends.
    PutBackUnsynced,
    /// A baseline is not synced before it is said to be true.
    BaselineUnsynced,
    /// A baseline changes without being marked as changing.
    BaselineNotMarkedChanging,
    /// A baseline is believed without a look at the tree.
    StaleBaselineTrusted,
    /// After a power cut a file's times are believed.
    TimesBelieved,
    /// A note "applied" counts in another boot or on another mount.
    StaleMarkTrusted,
    /// Recovery replays the oldest effect on a path, not the newest.
    OldestEffectWins,
    /// What was displaced and is somebody's is dropped.
    DisplacedDropped,
    /// An attempt to recover is not counted.
    AttemptNotCounted,
    /// An attempt to put a guard back is not counted.
    GuardAttemptNotCounted,
    /// An attempt that failed for want of room is not given back.
    AttemptNotGivenBack,
    /// A path in the database is believed as it stands there.
    StoredPathsBelieved,
    /// What living sessions have staged is swept.
    LivingSessionsSwept,
    /// Inside COMMIT nobody looks whether the lock was acquired by somebody else.
    FenceNotChecked,
    /// Nobody looks whether a lock file is still the one that was locked.
    LockFileNotChecked,
    /// Who takes a lock recovers nothing.
    AcquiredWithoutRecovery,
    /// A forked child keeps its parent's lock files.
    ChildKeepsLocks,
    /// What a member of a group did that failed stays in the group's COMMIT.
    FailedPartKept,
    /// Members of a group may change the same paths.
    OverlappingPartsShare,
    /// That an item is tried is not written before it is.
    TryNotCounted,
    /// What a flush could not write is forgotten.
    FailedFlushForgotten,
    /// The last flush of a run comes after its lock was released.
    FlushedAfterRelease,
    /// An item that a transaction records is written before its COMMIT, by itself.
    ItemBesideCommit,
    /// A message goes from the outbox before a sink has it.
    DroppedBeforeTold,
    /// Others are told of a commit before it is synced.
    ToldBeforeSync,
    /// Others are told of a commit before its files are in place.
    ToldBeforeFiles,
    /// The versions of a key are counted by the messages that wait.
    VersionsOfWaiting,
    /// What is newer goes out before a message of its key that was refused.
    RefusedOvertaken,
    /// What waits is published, though its key was retired.
    RetiredNotSuperseded,
    /// A drainer has a lock of its own, not that of the topic.
    TopicNotLocked,
    /// What could not be written down of deliveries is forgotten.
    ToldNotNoted,
    /// The next one of a key goes before it is on record that a message is parked.
    ParkedNotNoted,
    /// A blob's file is not synced before the COMMIT.
    BlobUnsynced,
    /// That a blob's file was moved is not synced before it is noted.
    BlobPlaceUnsynced,
    /// The file of a blob that is removed goes before the COMMIT.
    BlobRemovedBeforeCommit,
    /// The file of a blob goes without a look whether another one has come to say the same.
    BlobRemovedUnchecked,
    /// The sweep of the stage knows nothing of blobs.
    CommittedBlobsSwept,
    /// Who finds a blob's writer dead does not look whether it was sealed meanwhile.
    DeadWriterNotReadAgain,
}

/// True when a test has planted this fault in this process.
#[cfg(feature = "planted-faults")]
pub(crate) fn planted(fault: Fault) -> bool {
    static PLANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let planted = PLANTED.get_or_init(|| std::env::var("JOURNAL_KB_PLANTED").ok());
    planted.as_ref().is_some_and(|name| *name == format!("{fault:?}"))
}

/// Never, in what is built for use.
#[cfg(not(feature = "planted-faults"))]
#[inline(always)]
pub(crate) const fn planted(_: Fault) -> bool {
    false
}

/// A step of the engine: just before a system call that changes a file, or a COMMIT. Where a test has said so, the process ends
/// here as if it was killed.
#[cfg(feature = "testing")]
pub(crate) fn step(call: &'static str) {
    steps::take(call);
}

/// A step of the engine.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub(crate) const fn step(_: &'static str) {}

/// Counting steps, and ending at one.
#[cfg(feature = "testing")]
pub(crate) mod steps {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The steps that are still to be taken, the last of which is the end; 0: there is no end.
    static LEFT: AtomicU64 = AtomicU64::new(0);
    static TELL: OnceLock<fn(&'static str)> = OnceLock::new();

    /// Has this process end at the `nth` step from now, from 1, having told which call it does not make.
    pub(crate) fn end_at(nth: u64, tell: fn(&'static str)) {
        let _ = TELL.set(tell);
        LEFT.store(nth, Ordering::SeqCst);
    }

    /// Has it go on, whatever comes.
    pub(crate) fn go_on() {
        LEFT.store(0, Ordering::SeqCst);
    }

    pub(super) fn take(call: &'static str) {
        if LEFT.load(Ordering::Relaxed) == 0 {
            return;
        }
        let fewer = |left: u64| left.checked_sub(1);
        if LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer) == Ok(1) {
            if let Some(tell) = TELL.get() {
                tell(call);
            }
            // Nothing is flushed, dropped or unlocked.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            loop {
                std::thread::park();
            }
        }
    }
}
