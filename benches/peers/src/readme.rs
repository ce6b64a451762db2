//! The short table of the README, between its marks.

use std::fs;
use std::path::Path;

use journal_kb_peers::Result;

use crate::claims::{self, Claim};
use crate::markdown::{paragraph, table};
use crate::quantity::Quantity;
use crate::results::Results;

const BEGIN: &str = "<!-- performance:begin -->\n";
const END: &str = "<!-- performance:end -->\n";

/// Puts the table in its place.
pub fn write(results: &Results, readme: &Path) -> Result<()> {
    let text = fs::read_to_string(readme).map_err(|error| format!("{}: {error}", readme.display()))?;
    let text = between_marks(&text, &short(results)?).ok_or_else(|| format!("{}: no marks", readme.display()))?;
    Ok(fs::write(readme, text)?)
}

/// What stands in the README, of the disk alone.
fn short(results: &Results) -> Result<String> {
    let found = results.measured.places.first().ok_or("nothing was measured")?;
    let machine = &results.measured.machine;
    let claims: Vec<_> = claims::of(results, found)?.into_iter().filter(|claim| claim.is_brief).collect();
    let on = format!(
        "With 4 KiB files on a disk, {} with {} cores, Linux {}, {}:",
        machine.processor, machine.cores, machine.kernel, machine.date
    );
    Ok(paragraph(&on) + &table(["work", "journal-kb", "compared with", "ratio"], claims.iter().map(row)))
}

fn row(claim: &Claim) -> [String; 4] {
    let took = Quantity(claim.took.value, claim.unit).to_string();
    let (beside, ratio) = claim.beside.map_or_else(Default::default, |(what, that)| {
        let ratio = Quantity(claim.judged().value, claim.judged_unit());
        (format!("{what}: {}", Quantity(that.value, claim.unit)), ratio.to_string())
    });
    [claim.work.clone(), took, beside, ratio]
}

/// The text with something else between its marks; none if it has none.
fn between_marks(text: &str, new: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{new}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let text = |between: &str| format!("before\n{BEGIN}{between}{END}after\n");
        assert_eq!(between_marks(&text("\nold\n"), "new\n"), Some(text("\nnew\n\n")));
        assert_eq!(between_marks(&text(""), "new\n"), Some(text("\nnew\n\n")));
        assert_eq!(between_marks("before\nafter\n", "new\n"), None);
    }
}
