//! A transaction is what the same calls of `std::fs` would have made: random sequences of staged operations on a small
//! name space, against the same sequence by hand in a second directory.
//!
//! After each step the transaction sees what the second directory has; after COMMIT the two trees are equal in kind,
//! mode, bytes and link target, nothing was warned of, set aside or left over. What the rules refuse (a rename onto a
//! directory among it) the engine refuses at once and stays as it was; a write onto a directory it may also refuse at
//! COMMIT, with nothing done.
//!
//! `JOURNAL_KB_MODEL=n` runs n sequences. One that fails is shrunk and printed in words that [`holds`] takes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use journal_kb::{Journal, Transaction, rusqlite};
use tempfile::TempDir;

use crate::support::{Entry, manifest_of};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// One call, on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    /// Path and content.
    Write(String, String),
    Remove(String),
    RemoveDirAll(String),
    Rename(String, String),
    CreateDirAll(String),
    /// Target and path.
    Symlink(String, String),
    /// By hand, before the transaction begins.
    Chmod(u32, String),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Write(path, content) => write!(f, "write {path} {content}"),
            Op::Remove(path) => write!(f, "remove {path}"),
            Op::RemoveDirAll(path) => write!(f, "remove_dir_all {path}"),
            Op::Rename(from, to) => write!(f, "rename {from} {to}"),
            Op::CreateDirAll(path) => write!(f, "create_dir_all {path}"),
            Op::Symlink(target, path) => write!(f, "symlink {target} {path}"),
            Op::Chmod(mode, path) => write!(f, "chmod {mode:o} {path}"),
        }
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let own = |word: &str| word.to_owned();
        Ok(match *text.split_whitespace().collect::<Vec<_>>() {
            ["write", path, content] => Op::Write(own(path), own(content)),
            ["remove", path] => Op::Remove(own(path)),
            ["remove_dir_all", path] => Op::RemoveDirAll(own(path)),
            ["rename", from, to] => Op::Rename(own(from), own(to)),
            ["create_dir_all", path] => Op::CreateDirAll(own(path)),
            ["symlink", target, path] => Op::Symlink(own(target), own(path)),
            ["chmod", mode, path] => Op::Chmod(u32::from_str_radix(mode, 8).unwrap(), own(path)),
            _ => return Err(format!("{text:?} is no operation")),
        })
    }
}

/// A tree made by hand, and what is done to it in one transaction.
#[derive(Clone, Debug)]
struct Case {
    before: Vec<Op>,
    ops: Vec<Op>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |ops: &[Op]| ops.iter().map(Op::to_string).collect::<Vec<_>>().join("; ");
        write!(f, "holds({:?}, {:?})", words(&self.before), words(&self.ops))
    }
}

/// Where a promise was broken: which one, to shrink by, and how.
type Broken = (&'static str, String);

/// Asserts that a transaction with these operations on such a tree does what `std::fs` would.
#[track_caller]
pub(crate) fn holds(before: &str, ops: &str) {
    let parse = |text: &str| text.split(';').filter(|op| !op.trim().is_empty()).map(|op| op.parse().unwrap()).collect();
    let case = Case { before: parse(before), ops: parse(ops) };
    if let Err((promise, how)) = run(&case) {
        panic!("{promise}: {case}\n{how}");
    }
}

#[test]
fn a_transaction_is_what_std_fs_would_have_made() {
    let count = std::env::var("JOURNAL_KB_MODEL").map_or(500, |n| n.parse().unwrap());
    let (mut broken, mut shown) = (BTreeMap::<_, u32>::new(), Vec::new());
    for seed in 0..count {
        let case = random(seed);
        let Err((promise, _)) = run(&case) else { continue };
        let times = broken.entry(promise).or_default();
        *times += 1;
        if *times <= 3 {
            let case = shrink(case, promise);
            let how = run(&case).unwrap_err().1;
            shown.push(format!("seed {seed}, {promise}: {case}\n{how}"));
        }
    }
    assert!(shown.is_empty(), "{broken:?} of {count}\n{}", shown.join("\n"));
}

/// Xorshift: the same sequences on every machine. Paths come back, because trouble is where two steps meet.
struct Random {
    state: u64,
    recent: Vec<String>,
}

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, recent: Vec::new() };
        (0..8).for_each(|_| assert!(random.below(2) < 2));
        random
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % limit
    }

    fn path(&mut self) -> String {
        if !self.recent.is_empty() && self.below(3) == 0 {
            let at = self.below(self.recent.len() as u64) as usize;
            return self.recent[at].clone();
        }
        let depth = 1 + self.below(3);
        let path = (0..depth).map(|_| NAMES[self.below(3) as usize]).collect::<Vec<_>>().join("/");
        self.recent.push(path.clone());
        path
    }

    fn op(&mut self, n: usize) -> Op {
        match self.below(12) {
            0 | 1 => Op::Write(self.path(), format!("w{n}")),
            2 => Op::Remove(self.path()),
            3 | 4 => Op::RemoveDirAll(self.path()),
            5..=9 => Op::Rename(self.path(), self.path()),
            10 => Op::CreateDirAll(self.path()),
            _ => Op::Symlink(format!("t{n}"), self.path()),
        }
    }
}

fn random(seed: u64) -> Case {
    let mut random = Random::new(seed);
    let tree = scratch();
    let (mut before, mut ops) = (Vec::new(), Vec::new());
    for n in 0..10 {
        let op = match random.below(9) {
            0 => Op::CreateDirAll(random.path()),
            1 => Op::Symlink(format!("s{n}"), random.path()),
            2..=4 => Op::Chmod([0o600, 0o640, 0o755, 0o700][random.below(4) as usize], random.path()),
            _ => Op::Write(random.path(), format!("i{n}")),
        };
        if by_hand(tree.path(), &op) {
            before.push(op);
        }
    }
    let wanted = 1 + random.below(8);
    let mut done = 0;
    for n in 0..80 {
        let op = random.op(n);
        let valid = by_hand(tree.path(), &op);
        done += u64::from(valid);
        if valid || random.below(6) == 0 {
            ops.push(op);
        }
        if done == wanted {
            break;
        }
    }
    Case { before, ops }
}

/// Leaves out whatever the same promise is broken without.
fn shrink(mut case: Case, promise: &str) -> Case {
    let breaks = |case: &Case| run(case).is_err_and(|(other, _)| other == promise);
    'again: loop {
        for at in 0..case.ops.len() + case.before.len() {
            let mut less = case.clone();
            match at.checked_sub(case.ops.len()) {
                None => drop(less.ops.remove(at)),
                Some(at) => drop(less.before.remove(at)),
            }
            if breaks(&less) {
                case = less;
                continue 'again;
            }
        }
        return case;
    }
}

/// A tree in memory where there is such a place, unless one was named: nothing here is about durability.
fn scratch() -> TempDir {
    match std::env::var_os("TMPDIR") {
        Some(_) => tempfile::tempdir(),
        None => tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()),
    }
    .unwrap()
}

fn run(case: &Case) -> Result<(), Broken> {
    let (tree, hand) = (scratch(), scratch());
    for op in &case.before {
        by_hand(tree.path(), op);
        by_hand(hand.path(), op);
    }
    let before = shape(&tree);
    let journal = Journal::open(tree.path()).unwrap();
    let mut txn = journal.begin("model").unwrap();
    for (n, op) in case.ops.iter().enumerate() {
        let judged_at_commit = matches!(op, Op::Write(..) | Op::Symlink(..));
        if by_hand(hand.path(), op) {
            stage(&mut txn, op).map_err(|error| ("what std::fs does is accepted", format!("{op}: {error}")))?;
        } else if judged_at_commit && n + 1 == case.ops.len() {
            if stage(&mut txn, op).is_ok() && txn.commit().is_ok() {
                return Err(("what std::fs refuses is refused by COMMIT", op.to_string()));
            }
            return same("a refused transaction leaves the tree", &shape(&tree), &before);
        } else if judged_at_commit {
            continue;
        } else if stage(&mut txn, op).is_ok() {
            return Err(("what std::fs refuses is refused at once", op.to_string()));
        }
        sees(&txn, hand.path()).map_err(|how| ("a transaction sees its own work", format!("after {op}: {how}")))?;
    }
    let receipt = match txn.commit() {
        Ok(receipt) => receipt,
        Err(error) => {
            same("a refused transaction leaves the tree", &shape(&tree), &before)?;
            return Err(("what std::fs does is committed", error.to_string()));
        }
    };
    let wanted = shape(&hand);
    same("the tree is what std::fs made", &shape(&tree), &wanted)?;
    if !receipt.warnings().is_empty() {
        return Err(("nothing was warned of", format!("{:?}", receipt.warnings())));
    }
    journal.close().unwrap();
    let states = rusqlite::Connection::open(tree.path().join(".journal/journal.db")).unwrap();
    let unfinished = "SELECT count(*) FROM journal_txn WHERE state NOT IN ('applied', 'settled')";
    let unfinished: i64 = states.query_row(unfinished, (), |row| row.get(0)).unwrap();
    if unfinished > 0 {
        return Err(("the transaction is finished", format!("{unfinished} are not")));
    }
    for place in ["quarantine", "stage"] {
        let Ok(left) = fs::read_dir(tree.path().join(".journal").join(place)) else { continue };
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        if !left.is_empty() {
            return Err(("nothing is set aside or left over", format!("{place}: {left:?}")));
        }
    }
    same("settling changes nothing", &shape(&tree), &wanted)
}

/// Mode and bytes of every path.
type Shape = BTreeMap<PathBuf, (u32, String)>;

/// The bits of a mode that say what kind of file it is.
const S_IFMT: u32 = 0o170_000;

fn shape(tree: &TempDir) -> Shape {
    let shown = |entry: Entry| (entry.mode, String::from_utf8_lossy(&entry.bytes).into_owned());
    manifest_of(tree.path()).into_iter().map(|(path, entry)| (path, shown(entry))).collect()
}

fn same(promise: &'static str, got: &Shape, wanted: &Shape) -> Result<(), Broken> {
    if got == wanted {
        return Ok(());
    }
    let kinds = |shape: &Shape| {
        shape.iter().map(|(path, (mode, bytes))| (path.clone(), mode & S_IFMT, bytes.clone())).collect::<Vec<_>>()
    };
    let promise = if kinds(got) == kinds(wanted) { "modes are as std::fs made them" } else { promise };
    let shown = |shape: &Shape| {
        let shown = shape.iter().map(|(path, (mode, bytes))| format!("{} {mode:o} {bytes}", path.display()));
        shown.collect::<Vec<_>>().join(", ")
    };
    Err((promise, format!("  got  {}\n  want {}", shown(got), shown(wanted))))
}

fn stage(txn: &mut Transaction, op: &Op) -> journal_kb::Result<()> {
    match op {
        Op::Write(path, content) => txn.write(path, content),
        Op::Remove(path) => txn.remove(path),
        Op::RemoveDirAll(path) => txn.remove_dir_all(path),
        Op::Rename(from, to) => txn.rename(from, to),
        Op::CreateDirAll(path) => txn.create_dir_all(path),
        Op::Symlink(target, path) => txn.symlink(target, path),
        Op::Chmod(..) => unreachable!("a mode is set by hand"),
    }
}

/// Compares what the transaction says of every path there can be.
fn sees(txn: &Transaction, hand: &Path) -> Result<(), String> {
    let below = |at: &[String]| at.iter().flat_map(|at| NAMES.map(|name| format!("{at}/{name}"))).collect::<Vec<_>>();
    let top = NAMES.map(String::from).to_vec();
    let second = below(&top);
    let third = below(&second);
    for path in [top, second, third].concat() {
        let kind = if on_directories(hand, &path) { kind(&hand.join(&path)) } else { None };
        // A path that leads through a file may be an error, too.
        match txn.exists(&path) {
            Ok(exists) if exists != kind.is_some() => return Err(format!("exists {path}: {exists}")),
            Err(error) if kind.is_some() => return Err(format!("exists {path}: {error}")),
            _ => {}
        }
        match (txn.read(&path), kind) {
            (Ok(bytes), Some(Kind::File)) if bytes == fs::read(hand.join(&path)).unwrap() => {}
            (Ok(bytes), _) => return Err(format!("read {path}: {:?}", String::from_utf8_lossy(&bytes))),
            (Err(error), Some(Kind::File)) => return Err(format!("read {path}: {error}")),
            (Err(_), _) => {}
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Symlink,
}

fn kind(path: &Path) -> Option<Kind> {
    let meta = path.symlink_metadata().ok()?;
    Some(match meta.file_type() {
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Symlink,
        _ => Kind::File,
    })
}

/// True when everything above the path is a directory, or missing from some point on.
fn on_directories(root: &Path, path: &str) -> bool {
    let above = Path::new(path).ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
    above.into_iter().all(|above| {
        // What lies below a missing directory or a file answers as missing; the file itself does not.
        matches!(kind(&root.join(above)), None | Some(Kind::Directory))
    })
}

/// Carries an operation out by `std::fs` if the rules allow it, and says whether they did.
fn by_hand(root: &Path, op: &Op) -> bool {
    let at = |path: &str| root.join(path);
    let make_room = |path: &str| {
        fs::create_dir_all(at(path).parent().unwrap()).unwrap();
    };
    let found = |path: &str| if on_directories(root, path) { kind(&at(path)) } else { None };
    let free = |path: &str| on_directories(root, path) && kind(&at(path)) != Some(Kind::Directory);
    match op {
        Op::Write(path, content) if free(path) => {
            make_room(path);
            if kind(&at(path)) == Some(Kind::Symlink) {
                fs::remove_file(at(path)).unwrap();
            }
            fs::write(at(path), content).unwrap();
        }
        Op::Symlink(target, path) if free(path) => {
            make_room(path);
            let _ = fs::remove_file(at(path));
            symlink(target, at(path)).unwrap();
        }
        Op::Remove(path) if matches!(found(path), Some(Kind::File | Kind::Symlink)) => {
            fs::remove_file(at(path)).unwrap();
        }
        Op::RemoveDirAll(path) if found(path) == Some(Kind::Directory) => fs::remove_dir_all(at(path)).unwrap(),
        Op::CreateDirAll(path)
            if on_directories(root, path) && matches!(kind(&at(path)), None | Some(Kind::Directory)) =>
        {
            fs::create_dir_all(at(path)).unwrap();
        }
        Op::Rename(from, to) => {
            let Some(what) = found(from) else { return false };
            if from == to {
                return true;
            }
            let into_itself = Path::new(to).starts_with(from);
            let onto = kind(&at(to));
            let refused = onto == Some(Kind::Directory) || what == Kind::Directory && onto.is_some();
            if into_itself || refused || !on_directories(root, to) {
                return false;
            }
            make_room(to);
            fs::rename(at(from), at(to)).unwrap();
        }
        Op::Chmod(mode, path) if matches!(found(path), Some(Kind::File | Kind::Directory)) => {
            // A directory stays one that can be searched and changed.
            let mode = if found(path) == Some(Kind::Directory) { mode | 0o700 } else { *mode };
            fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        _ => return false,
    }
    true
}
