//! The decision table of recovery, as a pure function. Its test goes through every input.

use std::fmt;

/// What lies at the path now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// What the effect wants there: equal bytes, the recorded inode, an equal symlink, a directory, or nothing.
    New,
    /// What was there before this or an earlier commit that is not settled.
    PreImage,
    /// Nothing, where something is wanted; or a file without bytes, where a power cut took them.
    Empty,
    /// Somebody's later work.
    Other,
}

/// What recovery knows of one path's newest effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// It was in the tree in this boot and on these mounts: the stage shows that its new version left it.
    pub applied: bool,
    /// What the live tree has.
    pub live: Live,
    /// The new version can be had: from the row, or under its recorded inode in the stage.
    pub available: bool,
}

/// What recovery does about one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it is as it should be, or it is a later edit of something that was applied.
    Keep,
    /// Put the new version in place; what comes out is the old one.
    Apply,
    /// Put the new version in place; what comes out is somebody's, and goes to quarantine.
    ApplyAside,
    /// The new version is gone and somebody's stands there: it was in place once, so theirs is the later one.
    KeepTheirs,
    /// The new version is gone and nothing stands there: a person has to look.
    Lost,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::Apply => "apply",
            Self::ApplyAside => "apply, and set aside what is there",
            Self::KeepTheirs => "keep what is there",
            Self::Lost => "nothing to apply from",
        })
    }
}

/// The table.
pub fn decide(evidence: Evidence) -> Decision {
    let Evidence { applied, live, available } = evidence;
    match (applied, live, available) {
        (true, _, _) => Decision::Keep,
        (false, Live::New, _) => Decision::Keep,
        (false, Live::PreImage | Live::Empty, true) => Decision::Apply,
        (false, Live::Other, true) => Decision::ApplyAside,
        (false, Live::Other, false) => Decision::KeepTheirs,
        (false, Live::PreImage | Live::Empty, false) => Decision::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_has_the_decision_the_design_names() {
        for applied in [true, false] {
            for live in [Live::New, Live::PreImage, Live::Empty, Live::Other] {
                for available in [true, false] {
                    let decision = decide(Evidence { applied, live, available });
                    // A noted commit is never carried out again over what somebody did since.
                    assert_eq!(applied || live == Live::New, decision == Decision::Keep);
                    // Somebody's work is replaced only with a copy kept.
                    assert!(live != Live::Other || decision != Decision::Apply);
                    // Nothing is put in place that is not there to be put.
                    let places = matches!(decision, Decision::Apply | Decision::ApplyAside);
                    assert!(!places || available);
                    // An unapplied commit is never passed over while it can be carried out.
                    assert!(applied || live == Live::New || !available || places);
                }
            }
        }
    }
}
