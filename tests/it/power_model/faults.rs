//! What the model can be told to do wrong.

impl Fault {
    pub(super) const ALL: [Self; 40] = [
        Self::StagedFileUnsynced,
        Self::StageUnsyncedBeforeCommit,
        Self::CommitUnsynced,
        Self::ApplyBeforeCommit,
        Self::ReplacedIsUnlinked,
        Self::LiveFilesUnsynced,
        Self::LiveDirectoriesUnsynced,
        Self::StageUnsyncedBySettle,
        Self::HistoryUnsynced,
        Self::SettledUnsynced,
        Self::SettledBeforeSync,
        Self::SettlingIsNotRewritten,
        Self::AttemptNotCounted,
        Self::AttemptUnsynced,
        Self::OlderOverNewer,
        Self::NoteOfAnotherBoot,
        Self::StageOfAnotherBoot,
        Self::StageIsNotBelieved,
        Self::RewriteNotRecorded,
        Self::SweptThoughReferredTo,
        Self::SweptByAnUnsyncedLog,
        Self::QuarantineNamesRecur,
        Self::BothNamesStay,
        Self::NumbersAreProof,
        Self::OldVersionsShareAName,
        Self::KeptOfTreeUnsynced,
        Self::GuardBeforeSettle,
        Self::KeptUnsynced,
        Self::StageUnsyncedByGuard,
        Self::GuardUnsynced,
        Self::TouchedFilesUnsynced,
        Self::TouchedDirectoriesUnsynced,
        Self::FoundUnsynced,
        Self::FoundRecordedUnsynced,
        Self::PutBackUnsynced,
        Self::PutBackTwiceUnsynced,
        Self::TimesAreBelieved,
        Self::ChangingNotNoted,
        Self::BaselineUnsynced,
        Self::PutBeforeGuard,
    ];
}

impl Fault {
    /// True for what is never found, because a rename never loses both names, and syncing the directory that a name has left
    /// carries the new one over with it. The engine syncs history all the same.
    pub(super) fn is_harmless(self) -> bool {
        self == Self::HistoryUnsynced
    }
}

/// A step that is left out, weakened, or in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    StagedFileUnsynced,
    StageUnsyncedBeforeCommit,
    CommitUnsynced,
    ApplyBeforeCommit,
    ReplacedIsUnlinked,
    LiveFilesUnsynced,
    LiveDirectoriesUnsynced,
    StageUnsyncedBySettle,
    HistoryUnsynced,
    SettledUnsynced,
    SettledBeforeSync,
    SettlingIsNotRewritten,
    AttemptNotCounted,
    AttemptUnsynced,
    OlderOverNewer,
    NoteOfAnotherBoot,
    StageOfAnotherBoot,
    StageIsNotBelieved,
    RewriteNotRecorded,
    SweptThoughReferredTo,
    SweptByAnUnsyncedLog,
    QuarantineNamesRecur,
    BothNamesStay,
    NumbersAreProof,
    OldVersionsShareAName,
    KeptOfTreeUnsynced,
    GuardBeforeSettle,
    KeptUnsynced,
    StageUnsyncedByGuard,
    GuardUnsynced,
    TouchedFilesUnsynced,
    TouchedDirectoriesUnsynced,
    FoundUnsynced,
    FoundRecordedUnsynced,
    PutBackUnsynced,
    PutBackTwiceUnsynced,
    TimesAreBelieved,
    ChangingNotNoted,
    BaselineUnsynced,
    PutBeforeGuard,
}
