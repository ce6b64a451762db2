//! What has to be true after every recovery that came to its end.

use super::disk::{Dir, EMPTY, FILES, Slot, dir_of, in_history, slots};
use super::guard::Work;
use super::messages;
use super::scripts::{BEFORE, Event, IS_DIRECTORY, Script, THEIRS};
use super::staged::Do;
use super::world::{A, B, C, CX, CY, E, EX, EY, Path, Rows, State, Txn, What, World};

const PATHS: [Path; 8] = [A, B, C, CX, CY, E, EX, EY];

/// Sets of contents, a bit for each.
type Contents = u32;

/// What may lie at each path.
type Tree = [Contents; PATHS.len()];

fn at(path: Path) -> usize {
    PATHS.iter().position(|known| *known == path).expect("a script names known paths")
}

/// Which of the script's transactions the rows tell of.
pub(super) fn committed(rows: &Rows) -> Vec<u8> {
    rows.txns.iter().filter_map(|txn| txn.of).collect()
}

/// Everything there is to be said against a world in which nothing is left to recover.
pub(super) fn judge(script: &Script, found: &World, world: &World, rows: &Rows) -> Result<(), String> {
    if let Some(txn) = rows.txns.iter().find(|txn| txn.state != State::Settled) {
        // Somebody took away the one copy of what is to be put in place: a person has to look.
        if may_need_a_person(script, txn) {
            return Ok(());
        }
        return Err(format!("a transaction is left {}", txn.state.word()));
    }
    if rows.guard.is_some() {
        return Err("a guard is left".into());
    }
    let committed = committed(rows);
    let wanted: Vec<u8> = (0..script.events.len() as u8).filter(|of| script.events[*of as usize].commits()).collect();
    if !wanted.starts_with(&committed) {
        return Err(format!("the transactions are {committed:?}, which is no beginning of {wanted:?}"));
    }
    if committed.len() < world.ghost.acknowledged as usize {
        return Err(format!("{} were answered with Ok, and {} are there", world.ghost.acknowledged, committed.len()));
    }
    if script.tells() {
        messages::judge(world.ghost.told, &committed)?;
    }
    let expected = expected(script, found, &committed);
    for (n, path) in PATHS.into_iter().enumerate() {
        let content = content(world, path);
        if expected[n] & (1 << content) == 0 {
            return Err(format!("{path:?} holds {content}, not {:?}; committed: {committed:?}", members(expected[n])));
        }
    }
    let kept = reachable(world, |dir| dir != Dir::Stage);
    let theirs = reachable(found, |_| true) | found.ghost.theirs;
    let lost = theirs & !kept & (Contents::MAX << THEIRS) & !(1 << IS_DIRECTORY);
    if lost != 0 {
        return Err(format!("somebody's work is lost: {:?}", members(lost)));
    }
    for change in rows.txns.iter().filter(|txn| txn.of.is_some()).flat_map(|txn| &txn.changes) {
        // Somebody may have got at it before recovery did.
        if script.after_crash.is_some_and(|work| target(work) == change.path) {
            continue;
        }
        let there = content_at(world, in_history(change.preimage));
        if change.was > EMPTY && there != change.was {
            return Err(format!("an old version is lost: history has {there} in place of {}", change.was));
        }
    }
    baseline(world, rows)?;
    if let Some(name) = slots(Dir::Stage).find(|name| world.disk.at(*name) != 0) {
        return Err(format!("name {name} is left in the stage"));
    }
    Ok(())
}

/// A baseline that is true holds what the tree had when it was recorded: of what is still as recorded, the same bytes.
fn baseline(world: &World, rows: &Rows) -> Result<(), String> {
    for entry in rows.entries.iter().filter(|_| rows.is_true) {
        let live = Path(C.0, entry.child).slot(&world.disk);
        let Some(live) = live.filter(|live| world.disk.meta(*live).is_some_and(|meta| entry.id.is(meta, false))) else {
            continue;
        };
        let mirrored = slots(Dir::Mirror).start + entry.child - 1;
        let (is, was) = (world.disk.data(mirrored), world.disk.data(live));
        if is != was {
            return Err(format!("the baseline is said to be true, and of file {} holds {is}, not {was}", entry.child));
        }
    }
    Ok(())
}

/// Large content is in the tree alone once it was applied, and so is what is to be moved: somebody may take it away.
pub(super) fn may_need_a_person(script: &Script, txn: &Txn) -> bool {
    let edits = script.events.iter().filter_map(|event| match event {
        Event::Hand(work) => Some(*work),
        _ => None,
    });
    let edited: Vec<Path> = edits.chain(script.after_crash).map(target).collect();
    txn.state == State::Pending
        && txn.redo.iter().any(|redo| match redo.what {
            What::Content { inline: false, .. } => edited.contains(&redo.path),
            What::Move { from } => edited.contains(&from) || edited.contains(&redo.path),
            _ => false,
        })
}

fn members(contents: Contents) -> Vec<u8> {
    (0..32).filter(|content| contents & (1 << content) != 0).collect()
}

/// What an old version holds; of a directory its first name.
fn content_at(world: &World, slot: Slot) -> u8 {
    match world.disk.at(slot).checked_sub(FILES) {
        Some(tree) => world.disk.data(slots(Dir::Tree(tree)).start),
        None => world.disk.data(slot),
    }
}

/// What lies at a path: zero for nothing.
fn content(world: &World, path: Path) -> u8 {
    match path.slot(&world.disk) {
        Some(slot) if world.disk.is_directory(slot) => IS_DIRECTORY,
        Some(slot) => world.disk.data(slot),
        None => 0,
    }
}

/// All contents that lie under a name in directories that count, or in a directory that does.
pub(super) fn reachable(world: &World, counts: impl Fn(Dir) -> bool) -> Contents {
    let disk = &world.disk;
    let mut found = 0;
    let outside = |slot: Slot| matches!(dir_of(slot), Dir::Tree(_) | Dir::Mirror | Dir::Upper);
    for slot in (0..super::disk::SLOTS as Slot).filter(|slot| !outside(*slot) && counts(dir_of(*slot))) {
        match disk.at(slot).checked_sub(FILES) {
            Some(tree) => slots(Dir::Tree(tree)).for_each(|slot| found |= 1 << disk.data(slot)),
            None => found |= 1 << disk.data(slot),
        }
    }
    found
}

/// What each path may hold, by the transactions that are committed and what somebody did.
fn expected(script: &Script, found: &World, committed: &[u8]) -> Tree {
    let mut tree: Tree = [1; PATHS.len()];
    tree[at(C)] = 1 << IS_DIRECTORY;
    for (path, content) in BEFORE {
        tree[at(path)] = 1 << content;
    }
    let ghost = &found.ghost;
    let begun = ghost.begun as usize;
    for (of, event) in script.events.iter().enumerate().take(begun) {
        if event.commits() && !committed.contains(&(of as u8)) {
            continue;
        }
        match event {
            Event::Staged(work) => work.iter().for_each(|work| carry_out(&mut tree, *work)),
            Event::Guarded { work, .. } | Event::Tree { work, .. } if event.commits() => {
                work.iter().for_each(|work| tree[at(target(*work))] = 1 << outcome(*work));
            }
            Event::Absorbed(written) => {
                written.iter().for_each(|(path, content)| tree[at(*path)] = 1 << content.unwrap_or(0));
            }
            Event::Hand(work) => {
                let path = target(*work);
                let later = script.events[of + 1..begun].iter();
                // In this boot nothing of it can have been lost; and once it is synced, and what was committed before is settled,
                // nobody has a reason to touch it.
                let settled = script.events[..of].contains(&Event::Settle)
                    && later.clone().take(begun - of - 2.min(begun - of)).any(|event| *event == Event::Sync);
                let stays = begun > of + 1 && (!ghost.cut || settled);
                may_be(&mut tree, path, outcome(*work), stays);
            }
            _ => {}
        }
    }
    if let Some(work) = script.after_crash {
        may_be(&mut tree, target(work), outcome(work), false);
        let moves = script.events.iter().filter_map(|event| match event {
            Event::Staged(work) => Some(work),
            _ => None,
        });
        for moved in moves.flatten() {
            // What was written in place goes where its file goes.
            if let Do::Move(from, to) = moved
                && *from == target(work)
            {
                may_be(&mut tree, *to, outcome(work), false);
            }
        }
    }
    tree
}

fn may_be(tree: &mut Tree, path: Path, content: u8, stays: bool) {
    if path.1 != 0 && tree[at(Path(path.0, 0))] & (1 << IS_DIRECTORY) == 0 {
        return;
    }
    let before = if stays { 0 } else { tree[at(path)] | 1 << EMPTY };
    tree[at(path)] = before | 1 << content;
}

fn target(work: Work) -> Path {
    match work {
        Work::Replace(path, _) | Work::WriteInPlace(path, _) | Work::Remove(path) => path,
    }
}

fn outcome(work: Work) -> u8 {
    match work {
        Work::Replace(_, content) | Work::WriteInPlace(_, content) => content,
        Work::Remove(_) => 0,
    }
}

fn carry_out(tree: &mut Tree, work: Do) {
    let below = |top: Path| PATHS.into_iter().filter(move |path| path.1 != 0 && path.0 == top.0 && top.1 == 0);
    match work {
        Do::Write(path, content) | Do::WriteLarge(path, content) | Do::Symlink(path, content) => {
            tree[at(path)] = 1 << content;
        }
        Do::Remove(path) => {
            tree[at(path)] = 1;
            below(path).for_each(|path| tree[at(path)] = 1);
        }
        Do::MakeDir(path) => tree[at(path)] = 1 << IS_DIRECTORY,
        Do::Move(from, to) => {
            let moved = std::mem::replace(&mut tree[at(from)], 1);
            tree[at(to)] = moved;
            for child in below(from) {
                let moved = std::mem::replace(&mut tree[at(child)], 1);
                tree[at(Path(to.0, child.1))] = moved;
            }
        }
    }
}
