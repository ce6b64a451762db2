//! Blobs: sealed alone and in a transaction, with a name and without, as files and within the database, the same twice; removed,
//! written again before their files have gone, given up.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use journal_kb::{BlobWriter, Error, Journal, NewBlob, Result};

use super::strace::End;
use super::sweep::Workload;
use crate::blobs::bytes;
use crate::blobs_killed::judge::{self, Sealed, by_content};

/// What a blob says: files, of which one takes several writes, and two that stand in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Long = 300_000,
    Old = 100_000,
    Other = 90_000,
    New = 80_000,
    Small = 1_000,
    Tiny = 10,
}

impl Content {
    fn bytes(self) -> Vec<u8> {
        bytes(self as usize as u8, self as usize)
    }

    fn id(self) -> String {
        by_content(&self.bytes()).to_string()
    }
}

/// What is done with a blob, called by this name or by its content.
#[derive(Clone, Copy, Debug)]
enum Effect {
    Seals(Option<&'static str>, Content),
    Removes(Option<&'static str>, Content),
}

use Content::{Long, New, Old, Other, Small, Tiny};
use Effect::{Removes, Seals};

/// What is there before.
const PAST: &[Effect] = &[Seals(None, Old), Seals(Some("other"), Other), Seals(None, Tiny), Seals(None, Tiny)];

/// What is done, each in a commit of its own. The third writes what the first has, the fifth what the fourth has removed.
const STEPS: &[(&str, &[Effect])] = &[
    ("long", &[Seals(Some("long"), Long)]),
    ("small", &[Seals(None, Small)]),
    ("long again", &[Seals(None, Long)]),
    ("old gone", &[Removes(None, Old)]),
    ("old again", &[Seals(Some("old"), Old)]),
    (
        "together",
        &[
            Seals(None, New),
            Seals(Some("small"), Small),
            Seals(Some("new"), New),
            Removes(Some("other"), Other),
            Removes(None, Tiny),
        ],
    ),
    ("long gone", &[Removes(None, Long), Removes(Some("long"), Long)]),
];

pub(crate) fn registered() -> Vec<Workload> {
    vec![Workload { also: wrong, ..Workload::new("blobs", prepare, work) }]
}

fn prepare(root: &Path) {
    super::prepare(root).unwrap();
    let journal = super::open(root);
    PAST.iter().try_for_each(|effect| alone(&journal, *effect)).unwrap();
    journal.settle().unwrap();
    journal.close().unwrap();
}

fn write(journal: &Journal, name: Option<&str>, content: Content) -> Result<BlobWriter> {
    let new = name.map_or(NewBlob::new(), |name| NewBlob::new().id(name));
    let mut blob = journal.blobs().create_with(new)?;
    blob.write_all(&content.bytes()).map_err(Error::caller)?;
    Ok(blob)
}

fn alone(journal: &Journal, effect: Effect) -> Result<()> {
    match effect {
        Seals(name, content) => write(journal, name, content)?.seal().map(drop),
        Removes(name, content) => journal.blobs().remove(name.map_or_else(|| content.id(), str::to_owned)),
    }
}

fn together(journal: &Journal, effects: &[Effect], tells: bool) -> Result<()> {
    let mut txn = journal.begin("together")?;
    for effect in effects {
        match *effect {
            Seals(name, content) => drop(txn.seal(write(journal, name, content)?)?),
            Removes(name, content) => txn.remove_blob(name.map_or_else(|| content.id(), str::to_owned))?,
        }
    }
    if tells {
        txn.write("pages/new.md", "new\n")?;
        txn.remove("pages/gone.md")?;
        txn.sql(|rows| rows.execute("INSERT INTO doc VALUES ('pages/new.md', 'New')", ()).map(drop))?;
    }
    txn.commit().map(drop)
}

fn work(journal: &Journal, say: &dyn Fn(&str)) {
    for (step, effects) in STEPS {
        say(&format!("{step} begins"));
        let done = match effects {
            [effect] => alone(journal, *effect),
            _ => together(journal, effects, *step == "together"),
        };
        match done {
            Ok(()) => {
                say(&format!("{step} is done"));
                if *step == "together" {
                    say("committed");
                }
            }
            Err(error) if error.is_outcome_unknown() => say(&format!("{step} may be done: {error}")),
            Err(error) => {
                say(&format!("{step} is not done"));
                say(&format!("for {error}"));
            }
        }
        match *step {
            "together" => drop(journal.settle()),
            "long" => drop(write(journal, Some("given up"), Long)),
            _ => {}
        }
    }
    let _ = journal.settle();
}

/// What is known of a blob: how often it is sealed, at least and at most.
#[derive(Default)]
struct Known {
    least: u64,
    most: u64,
}

/// Blobs that are not as they must be.
fn wrong(root: &Path, end: &End) -> Vec<String> {
    let mut known: BTreeMap<(String, Vec<u8>), Known> = BTreeMap::new();
    let mut comes = |effect: &Effect, done: bool| {
        let (Seals(name, content) | Removes(name, content)) = *effect;
        let id = name.map_or_else(|| content.id(), str::to_owned);
        let Known { least, most } = known.entry((id, blake3::hash(&content.bytes()).as_bytes().to_vec())).or_default();
        match (effect, done) {
            (Seals(..), true) => (*least, *most) = (*least + 1, *most + 1),
            (Seals(..), false) => *most += 1,
            (Removes(..), true) => (*least, *most) = (least.saturating_sub(1), most.saturating_sub(1)),
            (Removes(..), false) => *least = least.saturating_sub(1),
        }
    };
    PAST.iter().for_each(|effect| comes(effect, true));
    for (step, effects) in STEPS {
        let said = |what: &str| end.said(&format!("{step} {what}"));
        // Where the call that fails is the very one that says things, nothing is known of it.
        if (said("begins") || !end.killed) && !said("is not done") {
            effects.iter().for_each(|effect| comes(effect, said("is done")));
        }
    }
    let mut wrong = judge::wrong(root);
    let sealed = judge::sealed(root);
    for ((id, hash), Known { least, most }) in &known {
        let times = sealed.iter().find(|blob| (&blob.id, &blob.hash) == (id, hash)).map_or(0, |blob| blob.times);
        if !(*least..=*most).contains(&times) {
            wrong.push(format!("{id} is there {times} times, not {least} to {most}"));
        }
    }
    let strange = sealed.iter().filter(|Sealed { id, hash, .. }| !known.contains_key(&(id.clone(), hash.clone())));
    wrong.extend(strange.map(|blob| format!("nobody has sealed {blob:?}")));
    wrong
}
