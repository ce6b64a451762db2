//! What is drawn: how the time of a transaction grows with what is stored, and with what is touched.

use journal_kb_peers::Result;

use super::chart::{Axis, Chart, Line, Look};
use super::results::{Found, Tree};
use super::rounds::{End, Round, Way};
use super::scale::Scale;
use crate::quantity::{Quantity, Unit, grouped};

/// The ways to guard, as they are drawn.
const WAYS: [(Way, &str, &str); 3] = [
    (Way::Replacing, "guard, replacing", "#2f81f7"),
    (Way::Any, "guard, any writer", "#a371f7"),
    (Way::Paths, "guard_paths", "#2da44e"),
];
const NAIVE: &str = "#d4702a";

/// One picture, under the end of its file name.
pub struct Drawn {
    pub name: String,
    pub told: String,
    pub svg: String,
}

/// All pictures of one place.
pub fn of(scale: &Scale, found: &Found) -> Result<[Drawn; 2]> {
    let on = if found.place == "disk" { "on a disk" } else { "in memory" };
    let drawn = |name: &str, title: String, by: &str, lines| {
        let y = Axis { label: "time".to_owned(), tick: |time| Quantity(time, Unit::Nanoseconds).to_string() };
        let x = Axis { label: by.to_owned(), tick: |files| grouped(files.round() as usize) };
        let chart = Chart { title: title.clone(), x, y, lines };
        Drawn { name: format!("guards-{name}-{}.svg", found.place), told: title, svg: chart.svg() }
    };
    let stored = format!("Guard + rollback, {} files touched, {on}", scale.touched);
    let touched = format!("Guard + rollback, {} files stored, {on}", grouped(scale.middle.files));
    Ok([
        drawn("stored", stored, "files stored", by_stored(scale, found)?),
        drawn("touched", touched, "files touched", by_touched(scale, found)?),
    ])
}

fn by_stored(scale: &Scale, found: &Found) -> Result<Vec<Line>> {
    let mut trees = Vec::new();
    for shape in scale.stored.iter().chain([&scale.middle]) {
        trees.push(found.tree(*shape)?);
    }
    trees.sort_by_key(|tree| tree.shape.files);
    let touched = scale.touched;
    let stored = |tree: &Tree| tree.shape.files as f64;
    let mut lines = Vec::new();
    for (way, name, color) in WAYS {
        let took =
            |tree: &&Tree| Some((stored(tree), tree.took(way, touched, End::RollBack, Round::total).ok()?.value));
        let points = trees.iter().filter_map(took).collect();
        lines.push(Line { name: name.to_owned(), points, color, look: Look::Solid });
    }
    let points: Result<Vec<_>> =
        trees.iter().map(|tree| Ok((stored(tree), tree.naive(touched, End::RollBack)?.value))).collect();
    lines.push(Line { name: "naive way, no syncs".to_owned(), points: points?, color: NAIVE, look: Look::Dashed });
    for (shape, name, color) in
        [(scale.flat, "one directory", "#2f81f7"), (scale.narrow, "a directory each", "#db61a2")]
    {
        let tree = found.tree(shape)?;
        let took = tree.took(Way::Replacing, touched, End::RollBack, Round::total)?.value;
        let points = vec![(stored(tree), took)];
        lines.push(Line { name: format!("replacing, {name}"), points, color, look: Look::Points });
    }
    Ok(lines)
}

fn by_touched(scale: &Scale, found: &Found) -> Result<Vec<Line>> {
    let tree = found.tree(scale.middle)?;
    let line = |of: &dyn Fn(usize) -> Result<f64>| {
        let points: Result<Vec<_>> = scale.touches.iter().map(|&touched| Ok((touched as f64, of(touched)?))).collect();
        points
    };
    let mut lines = Vec::new();
    for (way, name, color) in WAYS {
        let points = line(&|touched| Ok(tree.took(way, touched, End::RollBack, Round::total)?.value))?;
        lines.push(Line { name: name.to_owned(), points, color, look: Look::Solid });
    }
    let points = line(&|touched| Ok(tree.naive(touched, End::RollBack)?.value))?;
    lines.push(Line { name: "naive way, no syncs".to_owned(), points, color: NAIVE, look: Look::Dashed });
    Ok(lines)
}
