//! `status`: whether all is well.

use journal_kb::inspect::{
    AreaUsage, FollowerInfo, GuardInfo, Health, LockInfo, OutboxInfo, RunInfo, StateCounts, Status, Waiting,
};

use super::{blobs, followers, locks, outbox, runs};
use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bold, bytes, cell, many, path, plain, tinted};
use crate::place::Place;
use crate::time::{ago, local};

pub(crate) const HELP: &str = "\
Exits 0 when there is nothing to do, 1 when a crash left work or a path could not be written, 76 when something \
is in quarantine. That a run stopped or died is told, and is no reason to exit with anything but 0: it goes on when its \
job is started again. The same goes for messages that are parked: nothing is held up by them.

Examples:
  journalctl-kb status
  journalctl-kb status --json | jq .health

JSON: root, state_dir, database, health (ok, needs_recovery, pending, quarantined), advice (command, why), \
schema, app_schema, created_ms, database_bytes, wal_bytes, free_bytes, stage, history and quarantine (entries, \
bytes, at_least), sessions (id, pid, program, since_ms, alive), locks (as `locks`), turnstile (held, pids, waiting), guards (id, label, lock, session, pid, \
program, since_ms, paths, links, reflinks, copies, trees (path, writers, ready), attempts, alive, held, worker, quarantined, reason), runs (as `runs`: those that are open, and the last of a job that left items set aside), outbox (waiting, oldest_ms, parked, topics: \
as `outbox`, those of which something waits or is parked), blobs (as the summary of `blobs`, but for what is beyond 200,000 rows), followers (as `followers`), transactions (how \
many: total, committed, pending, applied, settling, settled, rolled_back, quarantined, unknown), unsettled \
(transactions, bytes), \
pending and quarantined (id, label, attempts, paths, more_paths, reason), last_commit (as `log`), events (id, \
at_ms, level, kind, txn, path, message), sync_failed";

pub(crate) fn run(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    let status = place.inspector()?.status()?;
    if out.json() {
        out.object(&status)?;
    } else {
        tell(out, &status)?;
    }
    Ok(match status.health {
        Health::Ok => Outcome::Fine,
        Health::Quarantined => Outcome::Quarantined,
        _ => Outcome::Found,
    })
}

fn tell(out: &mut Out, status: &Status) -> Result<(), Failure> {
    let (word, tint) = match status.health {
        Health::Ok => ("all is well", Tint::Good),
        Health::NeedsRecovery => ("needs recovery", Tint::Warning),
        Health::Pending => ("some paths are pending", Tint::Warning),
        _ => ("in quarantine: a person is needed", Tint::Bad),
    };
    out.line(format_args!("{} {} · {}", tint.paint("●"), bold(path(&status.root)), tint.paint(word)))?;
    let mut table = Table::indented();
    for (name, value) in facts(status) {
        table.row([cell(name), cell(value)]);
    }
    out.table(table)?;
    held_up(out, "Pending", Tint::Warning, &status.pending, status.transactions.pending)?;
    held_up(out, "In quarantine", Tint::Bad, &status.quarantined, status.transactions.quarantined)?;
    if !status.events.is_empty() {
        out.line(format_args!("\n{}", bold("Recent warnings")))?;
        let mut table = Table::indented();
        for event in &status.events {
            let about = event.txn.map_or_else(String::new, |txn| format!("txn {txn}"));
            table.row([
                cell(local(event.at_ms)),
                tinted(&event.level, Tint::of_level(&event.level)),
                cell(about),
                cell(event.path.as_deref().map_or_else(String::new, path)),
                cell(&event.message),
            ]);
        }
        out.table(table)?;
    }
    if !status.advice.is_empty() {
        out.line(format_args!("\n{}", bold("What to do")))?;
        let mut table = Table::indented();
        for advice in &status.advice {
            table.row([tinted(&advice.command, Tint::Busy), cell(&advice.why)]);
        }
        out.table(table)?;
    }
    Ok(())
}

fn facts(status: &Status) -> Vec<(&'static str, String)> {
    let mut facts = vec![(
        "last commit",
        match &status.last_commit {
            None => "none yet".into(),
            Some(last) => {
                let label = if last.label.is_empty() { String::new() } else { format!(" {:?}", last.label) };
                format!("{}{label}, {} ({})", last.id, local(last.committed_ms), ago(last.committed_ms))
            }
        },
    )];
    facts.push(("transactions", counted(&status.transactions)));
    if status.unsettled.transactions > 0 {
        let unsettled = &status.unsettled;
        facts.push((
            "to settle",
            format!(
                "{} with {}, safe in the journal until the tree is synced",
                many(unsettled.transactions, "transaction"),
                bytes(unsettled.bytes)
            ),
        ));
    }
    for session in &status.sessions {
        let how = match session.alive {
            Some(true) => "",
            Some(false) => ", died",
            None => ", alive or not is not known",
        };
        let who = format!("{}[{}]", session.program, session.pid);
        facts.push(("open in", format!("{who} since {} ({}){how}", local(session.since_ms), ago(session.since_ms))));
    }
    facts.extend(status.locks.iter().filter_map(taken).map(|lock| ("lock", lock)));
    facts.extend(status.locks.iter().filter_map(trouble).map(|lock| ("lock", lock)));
    if !status.turnstile.waiting.is_empty() {
        facts.push(("writing", locks::turn(&status.turnstile)));
    }
    facts.extend(status.guards.iter().map(|guard| ("guard", guarding(guard))));
    facts.extend(status.runs.iter().take(FEW_RUNS).map(|run| ("run", running(run))));
    if status.runs.len() > FEW_RUNS {
        facts.push((
            "runs",
            format!("{}: see `journalctl-kb runs`", many((status.runs.len() - FEW_RUNS) as u64, "more run")),
        ));
    }
    facts.extend(telling(&status.outbox).map(|topic| ("outbox", topic)));
    let blobs = blobs::sums(&status.blobs);
    if !blobs.is_empty() {
        facts.push(("blobs", format!("{}; `journalctl-kb blobs verify` finds what is damaged", blobs.join("; "))));
    }
    let followers = status.followers.iter().take(FEW_FOLLOWERS);
    facts.extend(followers.map(|follower| ("follower", following(follower))));
    if status.followers.len() > FEW_FOLLOWERS {
        let more = (status.followers.len() - FEW_FOLLOWERS) as u64;
        facts.push(("followers", format!("{}: see `journalctl-kb followers`", many(more, "more follower"))));
    }
    facts.push((
        "database",
        format!("{}, log {}, schema {}", bytes(status.database_bytes), bytes(status.wal_bytes), status.schema),
    ));
    for (name, area) in [("stage", &status.stage), ("history", &status.history), ("quarantine", &status.quarantine)] {
        if area.entries > 0 {
            facts.push((name, used(area)));
        }
    }
    if let Some(free) = status.free_bytes {
        facts.push(("free space", bytes(free)));
    }
    if status.sync_failed {
        facts.push(("sync", "a sync of the journal failed and was not mended yet".into()));
    }
    facts
}

fn counted(counts: &StateCounts) -> String {
    let named = [
        (counts.settled, "settled"),
        (counts.rolled_back, "rolled back"),
        (counts.committed, "committed"),
        (counts.applied, "applied"),
        (counts.settling, "settling"),
        (counts.pending, "pending"),
        (counts.quarantined, "quarantined"),
        (counts.unknown, "in an unknown state"),
    ];
    let named: Vec<_> =
        named.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    if named.is_empty() { "0".into() } else { named.join(", ") }
}

fn used(area: &AreaUsage) -> String {
    let least = if area.at_least { "at least " } else { "" };
    format!(
        "{least}{} in {}",
        bytes(area.bytes),
        if area.entries == 1 { "1 entry".into() } else { format!("{} entries", area.entries) }
    )
}

/// A lock worth a line: one that somebody holds, or died with.
fn taken(lock: &LockInfo) -> Option<String> {
    let (word, _) = locks::state(lock);
    if lock.holder.is_none() && lock.held != Some(true) {
        return None;
    }
    let purpose = lock.holder.as_ref().map(|holder| holder.purpose.as_str()).unwrap_or_default();
    let purpose = if purpose.is_empty() { String::new() } else { format!(" for {purpose:?}") };
    let (how, died) = if word == "died" { ("left behind by", ", which died") } else { ("held by", "") };
    let when = locks::seen(lock, lock.acquired_ms);
    Some(format!("{} {how} {}{died}; taken {when}{purpose}", lock.name, locks::holder(lock)))
}

/// What was amiss with a lock: who lost it, and who waited long.
fn trouble(lock: &LockInfo) -> Option<String> {
    let mut what = Vec::new();
    if lock.crashes > 0 {
        what.push(format!("left behind {} by a holder that died", many(lock.crashes, "time")));
    }
    if lock.losses > 0 {
        what.push(format!("lost {}", many(lock.losses, "time")));
    }
    if lock.waits > 0 {
        what.push(format!("waited for longer than a second: {}", locks::long_waits(lock)));
    }
    let waiting = locks::waiting(lock);
    if !waiting.is_empty() {
        what.push(format!("waiting now: {waiting}"));
    }
    (!what.is_empty()).then(|| format!("{} {}", lock.name, what.join("; ")))
}

/// Who guards what.
fn guarding(guard: &GuardInfo) -> String {
    let label = if guard.label.is_empty() { String::new() } else { format!(" for {:?}", guard.label) };
    let kept = [(guard.links, "link"), (guard.reflinks, "reflink"), (guard.copies, "copy")];
    let kept =
        kept.iter().filter(|(n, _)| *n > 0).map(|(n, way)| format!("{n} by {way}")).collect::<Vec<_>>().join(", ");
    let kept = if kept.is_empty() { kept } else { format!(" (files kept: {kept})") };
    let mut what: Vec<String> = (guard.paths > 0).then(|| many(guard.paths, "path") + &kept).into_iter().collect();
    what.extend(guard.trees.iter().map(|tree| {
        let how = match (tree.writers.as_str(), tree.ready) {
            ("layer", _) => "by way of a layer".to_owned(),
            (writers, true) => format!("{} writers", plain(writers)),
            (writers, false) => format!("{} writers, not ready yet", plain(writers)),
        };
        format!("the tree {} ({how})", path(&tree.path))
    }));
    let what = if what.is_empty() { "nothing yet".into() } else { what.join(", ") };
    let over = match (guard.quarantined, guard.alive, guard.held) {
        (true, ..) => {
            let reason = guard.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!(", in quarantine{reason}")
        }
        (_, Some(false), _) if guard.worker.is_some() => {
            format!(", which died; process {} is still at work under it", guard.worker.unwrap_or_default())
        }
        (_, Some(false), _) => ", which died: to be put back".into(),
        (_, _, Some(false)) => ", which is over: to be put back".into(),
        (_, Some(true), _) => String::new(),
        (_, None, _) => ", alive or not is not known".into(),
    };
    let tried = match guard.attempts {
        0 => String::new(),
        attempts => format!("; {} to put it back did not end", many(attempts, "attempt")),
    };
    let who = if guard.pid == 0 { "?".into() } else { format!("{}[{}]", guard.program, guard.pid) };
    format!("{what} by {who} under {}{label}, {}{over}{tried}", guard.lock, ago(guard.since_ms))
}

/// How many runs are shown to people.
const FEW_RUNS: usize = 10;

/// How far a run is, or what it left.
fn running(run: &RunInfo) -> String {
    let mut what = format!("{} {}, {} done", run.job, runs::state(run).0, runs::done(run));
    for (n, words) in [(run.set_aside, "set aside"), (run.failed, "failed")] {
        if n > 0 {
            what.push_str(&format!(", {n} {words}"));
        }
    }
    let why = runs::why(run);
    if !why.is_empty() {
        what.push_str(&format!("; {why}"));
    }
    if run.state != "running" || run.set_aside > 0 {
        what.push_str(&format!("; see `{}`", runs::command("show", run)));
    }
    what
}

/// How many topics and followers are shown to people.
const FEW_TOPICS: usize = 10;
const FEW_FOLLOWERS: usize = 10;

/// What waits to be told to others, and what is parked.
fn telling(outbox: &OutboxInfo) -> impl Iterator<Item = String> {
    let few = outbox.topics.iter().take(FEW_TOPICS).map(|topic| {
        let oldest = topic.oldest_ms.map_or_else(String::new, |ms| format!(", the oldest from {}", ago(ms)));
        let counts = [(topic.waiting, "waiting", &oldest), (topic.parked, "parked", &String::new())];
        let counts = counts.iter().filter(|(n, ..)| *n > 0).map(|(n, word, more)| format!("{n} {word}{more}"));
        let mut what = format!("{}: {}", topic.topic, counts.collect::<Vec<_>>().join("; "));
        let why = outbox::why(topic);
        if !why.is_empty() {
            what.push_str(&format!("; {why}"));
        }
        what.push_str(&format!("; see `{}`", outbox::command("", &topic.topic)));
        what
    });
    let more = outbox.topics.len().saturating_sub(FEW_TOPICS) as u64;
    let rest = (more > 0).then(|| format!("{} more: see `journalctl-kb outbox`", many(more, "topic")));
    few.chain(rest)
}

/// How far a follower is.
fn following(follower: &FollowerInfo) -> String {
    let behind = followers::behind(follower);
    format!("{} at {}, {behind} behind; went on {}", follower.name, follower.position, ago(follower.at_ms))
}

/// How many transactions that are held up are shown to people, and how many paths of each.
const FEW: usize = 5;

fn held_up(out: &mut Out, title: &str, tint: Tint, waiting: &[Waiting], total: u64) -> Result<(), Failure> {
    if waiting.is_empty() {
        return Ok(());
    }
    out.line(format_args!("\n{}", bold(title)))?;
    for transaction in waiting.iter().take(FEW) {
        let label = if transaction.label.is_empty() { String::new() } else { format!(" {:?}", transaction.label) };
        let reason = transaction.reason.as_deref().map(|reason| format!(": {}", plain(reason))).unwrap_or_default();
        out.line(format_args!("  {}{label}{reason}", tint.paint(format_args!("transaction {}", transaction.id))))?;
        for info in transaction.paths.iter().take(FEW) {
            out.line(format_args!("    {}", path(&info.path)))?;
        }
        let more = transaction.paths.len().saturating_sub(FEW) as u64 + transaction.more_paths;
        if more > 0 {
            out.line(format_args!("    … and {}", many(more, "more path")))?;
        }
    }
    let more = total.saturating_sub(FEW as u64);
    if more > 0 {
        out.line(format_args!("  … and {}", many(more, "more transaction")))?;
    }
    Ok(())
}
