//! Families of scripts: every pair of transactions that meet on a path, with whatever may come in between.

use std::collections::BTreeSet;

use super::faults::Fault;
use super::guard::{End, Work};
use super::scripts::{Event, Script};
use super::staged::Do;
use super::world::{A, B, C, CX, CY, E, EX, Path};

/// Everything there is. The order is that of what is told apart first.
pub(super) fn all() -> Vec<Script> {
    let mut scripts = Vec::new();
    let mut add = |events: Vec<Event>, after_crash: Option<Work>| scripts.push(Script { events, after_crash });
    for first in staged(5) {
        for after_crash in edits_after_a_crash() {
            add(vec![first.clone()], after_crash);
        }
        for between in between() {
            add([vec![first.clone()], between.clone()].concat(), None);
            for second in staged(8) {
                let events = [vec![first.clone()], between.clone(), vec![second]].concat();
                if can_be(&events) {
                    add(events, None);
                }
            }
        }
    }
    for guard in guards() {
        add(vec![guard.clone()], None);
        add(vec![guard.clone()], Some(Work::Replace(B, 20)));
        for other in [write(A, 5), write(CX, 5), Event::Staged(vec![Do::Remove(CY)])] {
            add(vec![other.clone(), guard.clone()], None);
            add(vec![guard.clone(), other], None);
        }
    }
    scripts.extend(told());
    let mut add = |events: Vec<Event>, after_crash: Option<Work>| scripts.push(Script { events, after_crash });
    for (first, second) in trees().iter().flat_map(|first| trees().into_iter().map(move |second| (first, second))) {
        let edit = Event::Hand(Work::Replace(CY, 21));
        add(vec![first.clone(), second.clone()], None);
        add(vec![first.clone(), edit, second], None);
    }
    scripts
}

/// A few of each family, the same every time.
pub(super) fn sample() -> Vec<Script> {
    let all = all();
    let step = all.len() / 40;
    let told: Vec<Script> = told().into_iter().step_by(9).collect();
    all.into_iter().step_by(step).chain(told).collect()
}

/// A script in which a fault shows.
pub(super) fn telling(fault: Fault) -> Script {
    let edit = || Event::Hand(Work::Replace(A, 16));
    let guarded = |links: bool, work: Vec<Work>, end: End| Event::Guarded { paths: vec![A, B], links, work, end };
    let in_place = || vec![Work::WriteInPlace(A, 18), Work::Replace(B, 19)];
    let tree = |work: Vec<Work>, end: End| Event::Tree { links: true, work, end };
    let events = match fault {
        Fault::StagedFileUnsynced | Fault::StageUnsyncedBeforeCommit => vec![Event::Staged(vec![Do::WriteLarge(A, 6)])],
        Fault::LiveDirectoriesUnsynced | Fault::QuarantineNamesRecur => {
            vec![Event::Staged(vec![Do::MakeDir(E), Do::Write(EX, 6)])]
        }
        Fault::SettlingIsNotRewritten => vec![write(A, 5), Event::Settle],
        Fault::SettledUnsynced => vec![write(A, 5), Event::Settle, edit(), Event::Sync, Event::Note],
        Fault::OlderOverNewer => vec![write(A, 5), write(A, 6)],
        Fault::StageIsNotBelieved => vec![write(A, 5), edit(), Event::Note],
        Fault::OldVersionsShareAName => vec![write(A, 5), edit(), write(A, 6)],
        Fault::GuardBeforeSettle => vec![write(A, 5), guarded(true, vec![Work::Replace(A, 18)], End::Commit)],
        Fault::SweptByAnUnsyncedLog
        | Fault::KeptUnsynced
        | Fault::StageUnsyncedByGuard
        | Fault::GuardUnsynced
        | Fault::TouchedFilesUnsynced
        | Fault::TouchedDirectoriesUnsynced
        | Fault::TimesAreBelieved
        | Fault::PutBackUnsynced => vec![guarded(false, in_place(), End::Commit)],
        Fault::PutBackTwiceUnsynced => vec![guarded(false, vec![Work::Remove(A)], End::Rollback)],
        Fault::KeptOfTreeUnsynced | Fault::FoundUnsynced | Fault::FoundRecordedUnsynced | Fault::BaselineUnsynced => {
            vec![tree(vec![Work::Replace(CX, 22)], End::Commit)]
        }
        Fault::ChangingNotNoted => {
            let edit = Event::Hand(Work::Replace(CX, 21));
            let guarded = || Event::Tree { links: false, work: vec![], end: End::Commit };
            vec![guarded(), edit, guarded()]
        }
        Fault::PutBeforeGuard => vec![Event::Absorbed(vec![(A, Some(12))])],
        Fault::ToldBeforeSync | Fault::ToldByAnUnsyncedLog | Fault::DroppedBeforeTold => vec![write(A, 5), Event::Tell],
        _ => vec![write(A, 5)],
    };
    let after_crash = (fault == Fault::NumbersAreProof).then_some(Work::WriteInPlace(A, 17));
    Script { events, after_crash }
}

/// Transactions of which others are told, one by one and together.
fn told() -> Vec<Script> {
    let mut told = Vec::new();
    let firsts = staged(5).into_iter().chain(guards().into_iter().filter(Event::commits));
    for first in firsts {
        for second in [write(A, 8), Event::Staged(vec![Do::WriteLarge(B, 8)])] {
            for between in [vec![], vec![Event::Tell], vec![Event::Note], vec![Event::Settle]] {
                let events = [vec![first.clone()], between, vec![second.clone(), Event::Tell]].concat();
                if can_be(&events) {
                    told.push(Script { events, after_crash: None });
                }
            }
        }
    }
    told
}

fn write(path: Path, content: u8) -> Event {
    Event::Staged(vec![Do::Write(path, content)])
}

/// What one transaction may do, with contents from `content` on.
fn staged(content: u8) -> Vec<Event> {
    [
        vec![Do::Write(A, content)],
        vec![Do::Write(B, content)],
        vec![Do::WriteLarge(A, content)],
        vec![Do::WriteLarge(B, content)],
        vec![Do::Symlink(A, content)],
        vec![Do::Remove(A)],
        vec![Do::MakeDir(E), Do::Write(EX, content)],
        vec![Do::Write(A, content), Do::Write(CX, content + 1), Do::Remove(CY)],
        vec![Do::Move(A, B)],
        vec![Do::Move(CX, A)],
        vec![Do::Move(C, E)],
        vec![Do::Remove(C)],
    ]
    .map(Event::Staged)
    .to_vec()
}

/// What may come between two transactions.
fn between() -> Vec<Vec<Event>> {
    vec![
        vec![],
        vec![Event::Note],
        vec![Event::Settle],
        vec![Event::Hand(Work::Replace(A, 16))],
        vec![Event::Hand(Work::WriteInPlace(A, 16))],
        vec![Event::Hand(Work::Remove(A))],
        vec![Event::Note, Event::Hand(Work::Replace(B, 16)), Event::Sync, Event::Note],
        vec![Event::Settle, Event::Hand(Work::Replace(A, 16)), Event::Sync, Event::Note],
    ]
}

fn edits_after_a_crash() -> [Option<Work>; 5] {
    [
        None,
        Some(Work::Replace(A, 17)),
        Some(Work::WriteInPlace(A, 17)),
        Some(Work::Remove(A)),
        Some(Work::Replace(B, 17)),
    ]
}

fn guards() -> Vec<Event> {
    let mut guards = Vec::new();
    let replacing: [Vec<Work>; 3] = [
        vec![Work::Replace(A, 18)],
        vec![Work::Replace(B, 18), Work::Remove(CX)],
        vec![Work::Replace(A, 18), Work::Remove(A), Work::Replace(CX, 19)],
    ];
    let in_place: [Vec<Work>; 2] =
        [vec![Work::WriteInPlace(A, 18), Work::WriteInPlace(CX, 19)], vec![Work::WriteInPlace(A, 18), Work::Remove(A)]];
    for end in [End::Commit, End::Rollback] {
        for (links, work) in
            replacing.iter().map(|work| (true, work)).chain(replacing.iter().chain(&in_place).map(|work| (false, work)))
        {
            guards.push(Event::Guarded { paths: vec![A, B, CX], links, work: work.clone(), end });
        }
    }
    guards.extend(trees());
    guards.push(Event::Absorbed(vec![(A, Some(12))]));
    guards.push(Event::Absorbed(vec![(B, Some(12)), (CX, None)]));
    guards
}

fn trees() -> Vec<Event> {
    let mut trees = Vec::new();
    for end in [End::Commit, End::Rollback] {
        for (links, work) in [
            (true, vec![Work::Replace(CX, 22)]),
            (true, vec![Work::Remove(CX), Work::Replace(CY, 22)]),
            (false, vec![Work::WriteInPlace(CX, 22)]),
            (false, vec![Work::Replace(CX, 22), Work::Remove(CY)]),
        ] {
            trees.push(Event::Tree { links, work, end });
        }
    }
    trees
}

/// True when each transaction finds what it works on.
fn can_be(events: &[Event]) -> bool {
    let mut there: BTreeSet<Path> = [A, C, CX, CY].into();
    for event in events {
        match event {
            Event::Hand(Work::Remove(path)) => drop(there.remove(path)),
            Event::Hand(Work::Replace(path, _) | Work::WriteInPlace(path, _)) => drop(there.insert(*path)),
            Event::Staged(work) => {
                for work in work {
                    if !find_and_do(&mut there, *work) {
                        return false;
                    }
                }
            }
            _ => {}
        }
    }
    true
}

fn find_and_do(there: &mut BTreeSet<Path>, work: Do) -> bool {
    let is_in = |path: Path, top: Path| path == top || (top.1 == 0 && path.0 == top.0);
    match work {
        Do::Write(path, _) | Do::WriteLarge(path, _) | Do::Symlink(path, _) => {
            let has_parent = path.parent().is_none_or(|parent| there.contains(&parent));
            there.insert(path);
            has_parent
        }
        Do::MakeDir(path) => there.insert(path),
        Do::Remove(path) => {
            let was_there = there.contains(&path);
            there.retain(|other| !is_in(*other, path));
            was_there
        }
        Do::Move(from, to) => {
            let moved: Vec<Path> = there.iter().copied().filter(|path| is_in(*path, from)).collect();
            // A directory does not go over anything, and nothing over a directory.
            let fits = !there.contains(&to) || (from != C && to != E);
            there.retain(|path| !is_in(*path, from));
            let new = |path: &Path| if *path == from { to } else { Path(to.0, path.1) };
            there.extend(moved.iter().map(new));
            fits && moved.contains(&from)
        }
    }
}
