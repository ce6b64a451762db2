//! `settle`: a barrier.

use serde_json::json;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, many};
use crate::place::Place;

pub(crate) const HELP: &str = "\
A commit is durable in the journal at once and in the tree a little later. After this the tree itself is, for \
readers that know nothing of journals: rsync, snapshots, `cp -a`.

Example:
  journalctl-kb settle && rsync -a kb/ backup/

JSON: transactions, paths";

pub(crate) fn run(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    let journal = place.journal(false)?;
    let done = journal.settle()?;
    journal.close()?;
    if out.json() {
        out.object(&json!({ "transactions": done.transactions, "paths": done.paths }))?;
    } else if done.transactions == 0 {
        out.line("nothing to settle: the tree is durable")?;
    } else {
        out.line(format_args!(
            "settled {} with {}: the tree is durable",
            many(done.transactions, "transaction"),
            many(done.paths, "path")
        ))?;
    }
    Ok(Outcome::Fine)
}
