//! The page docs/guards-performance.md, with its pictures.

use std::fs;
use std::path::Path;

use journal_kb_peers::Result;

use super::claims::{self, spread, told};
use super::curves;
use super::results::{Found, Measured, Tree};
use super::rounds::{End, Round, Way};
use crate::markdown::{paragraph, table};
use crate::page::Page;
use crate::quantity::{Measure, Quantity, Span, Unit, grouped};

/// What is said about the figures by hand.
const NOTES: &str = include_str!("../../guards.md");

const SIDES: &str = "A *guard* lets code that knows of no journal change a tree, and puts everything back unless the \
    transaction commits. Each transaction here begins, guards, lets so many files be changed in as many directories as \
    possible, which is not counted, and is rolled back or committed. *Replacing*: the files are replaced by a temporary \
    name and a rename; *any writer*: they are opened for writing. The *naive way* is what people write by hand, as fast as \
    it can be had: every file is linked into a shadow tree; afterwards the listings of both trees are compared by their \
    inode numbers, what differs is put back, and the shadow tree is removed. It syncs nothing, so it protects from no power \
    cut; the journal is compared with it syncs included. Files have between 2 and 4 KiB.";

const FIGURES: &str = "Figures are medians, with the least and the greatest in brackets; of a ratio or a difference the two \
    sides furthest apart. A claim is met when the figure before the brackets is at most the bound.";

/// Writes the page, and the pictures beside it.
pub fn write(measured: &Measured, path: &Path) -> Result<()> {
    let mut page = Page::new("Performance of guards", "bash benches/run", measured.scale.quick, &measured.machine);
    page.say(SIDES);
    page.say(FIGURES);
    for found in &measured.places {
        page.claims(&found.place, &found.filesystem, &claims::of(measured, found)?);
        for drawn in curves::of(&measured.scale, found)? {
            page.put(&format!("![{}]({})\n\n", drawn.told, drawn.name));
            let path = path.with_file_name(&drawn.name);
            fs::write(&path, drawn.svg).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    page.put(NOTES.trim_start());
    page.part("Step by step", &paragraph(&steps_told(measured)));
    for found in &measured.places {
        page.put(&format!("### Of {}\n\n{}\n", found.place, steps(measured, found)?));
    }
    page.write(path)
}

fn steps_told(measured: &Measured) -> String {
    format!(
        "`first` is the first guard of a tree, which makes its baseline; `begin` and `rollback` are of those after it, with \
         {} files touched; `commit` is their end when they are committed; `recovery` is opening the journal after \
         such a transaction was killed.",
        grouped(measured.scale.touched)
    )
}

fn steps(measured: &Measured, found: &Found) -> Result<String> {
    let time =
        |span: Result<Span>| span.map_or_else(|_| "–".to_owned(), |span| Measure(span, Unit::Nanoseconds).to_string());
    let touched = measured.scale.touched;
    let mut rows = Vec::new();
    let row = |tree: &Tree, way: Way, name: &str| {
        [
            format!("{}, {name}", spread(tree.shape)),
            time(tree.first(way, touched)),
            time(tree.took(way, touched, End::RollBack, |round| round.begin)),
            time(tree.took(way, touched, End::RollBack, |round| round.end)),
            time(tree.took(way, touched, End::Commit, |round| round.end)),
            time(tree.recovered(way)),
        ]
    };
    for tree in &found.trees {
        for (way, name) in [(Way::Paths, "paths"), (Way::Replacing, "replacing"), (Way::Any, "any writer")] {
            if tree.took(way, touched, End::RollBack, Round::total).is_ok() {
                rows.push(row(tree, way, name));
            }
        }
        let naive = tree.naive.iter().find(|(of, _)| *of == touched).map(|(_, rounds)| rounds.as_slice());
        let naive = naive.unwrap_or_default();
        let of = |step: fn(&super::naive::Naive) -> f64| {
            Span::median(naive.iter().map(step))
                .map_or_else(String::new, |span| Quantity(span.value, Unit::Nanoseconds).to_string())
        };
        rows.push([
            format!("{}, by hand", spread(tree.shape)),
            format!("`cp -al`: {}", time(tree.copied())),
            of(|naive| naive.begin),
            of(|naive| naive.compare + naive.put_back + naive.remove),
            of(|naive| naive.compare + naive.remove),
            String::new(),
        ]);
    }
    Ok(table(["tree", "first", "begin", told(End::RollBack), told(End::Commit), "recovery"], rows))
}
