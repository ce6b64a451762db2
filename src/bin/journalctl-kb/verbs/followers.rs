//! `followers`: who follows the changes under a name, and how far each is.

use clap::Subcommand;
use journal_kb::inspect::FollowerInfo;
use serde_json::json;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, cell, number};
use crate::place::Place;
use crate::time::ago;

pub(crate) const HELP: &str = "\
A follower is somebody who is told of every commit in order, and who notes in the database how far he is. BEHIND counts what was \
committed since. What a follower is told is kept for ever: retention drops old versions of files alone, of which he is not told, so \
nobody misses anything however far behind, and nobody takes room by it.

Examples:
  journalctl-kb followers
  journalctl-kb followers forget search-index     under this name somebody would begin anew

JSON: name, position (the newest transaction he is done with), behind, exact (false where there was too much to count: at least so \
many), at_ms; forget: name, position";

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Forget how far a follower is: under this name somebody would begin with the first transaction
    Forget {
        /// As in the list
        #[arg(value_name = "NAME")]
        name: String,
    },
}

pub(crate) fn run(out: &mut Out, place: &Place, action: Option<&Action>) -> Result<Outcome, Failure> {
    match action {
        None => list(out, place),
        Some(Action::Forget { name }) => forget(out, place, name),
    }
}

fn list(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    let followers = place.inspector()?.followers()?;
    if out.json() {
        followers.iter().try_for_each(|follower| out.object(follower))?;
    } else if followers.is_empty() {
        out.line("nobody follows the changes under a name")?;
    } else {
        let mut table = Table::new(&["NAME", "AT", "BEHIND", "WENT ON"]);
        for follower in &followers {
            table.row([
                cell(&follower.name),
                number(follower.position),
                number(behind(follower)),
                cell(ago(follower.at_ms)),
            ]);
        }
        out.table(table)?;
    }
    Ok(Outcome::Fine)
}

/// How many transactions a follower has still to be told of.
pub(crate) fn behind(follower: &FollowerInfo) -> String {
    format!("{}{}", if follower.exact { "" } else { "at least " }, follower.behind)
}

fn forget(out: &mut Out, place: &Place, name: &str) -> Result<Outcome, Failure> {
    let known = place.inspector()?.followers()?.into_iter().find(|follower| follower.name == name);
    let known = known.ok_or_else(|| Failure::NoFollower(name.to_owned()))?;
    let journal = place.journal(false)?;
    journal.follower(name)?.forget()?;
    journal.close()?;
    if out.json() {
        out.object(&json!({ "name": name, "position": known.position }))?;
    } else {
        out.line(format_args!("forgot {name:?}, which was at transaction {}", known.position))?;
    }
    Ok(Outcome::Fine)
}
