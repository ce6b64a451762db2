//! `quarantine`: what waits for a person, and what a person says about it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Subcommand;
use journal_kb::inspect::{QuarantineDetail, QuarantineEntry, QuarantinePath};
use journal_kb::{Journal, QuarantineId, Resolved, Result, Standing};
use serde_json::{Value, json};

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bold, bytes, cell, many, number, path, plain, tinted};
use crate::place::Place;
use crate::time::{ago, local};

pub(crate) const HELP: &str = "\
What recovery could not decide or finish waits here, with everything kept: committed transactions (42), and what a \
transaction that died had guarded (g3). Only work on the same paths is refused meanwhile. Kind `files` is what was kept of \
something that is over, and 0 what belongs to nobody: they wait to be looked at and discarded.

Examples:
  journalctl-kb quarantine                     what waits, since when and why
  journalctl-kb quarantine show g3             path by path: what is there, what a restore would put there
  journalctl-kb quarantine retry 42            recover once more, once what was in the way is mended
  journalctl-kb quarantine restore g3          put in place as much as can be had
  journalctl-kb quarantine keep-live 42        the tree is right as it is; keep the rest below .journal/quarantine/42/
  journalctl-kb quarantine discard 42 --yes    remove what is kept of it, for good

Exit codes: 76 when something waits (list), or still does after the verb; 1 when nothing is called so, or a path is pending \
after a retry; else 0.

JSON: list: id, kind (transaction, guard, files), label, lock, since_ms, attempts, reason, paths (path), more_paths, kept, \
kept_bytes; show: these, and items (path, now, now_bytes, would, available, bytes, kept_at, why_not), files (file, kind, \
bytes), events (as `show`); the others: id, standing (ended, pending, quarantined), restored (path), left (path, why), kept. \
A path that is not UTF-8 has its exact bytes in path_hex (kept_at_hex, file_hex).";

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// List what is there (reads only)
    List,
    /// Show one entry path by path: what is there, what a restore would put there, whether it can be had; a guarded tree is
    /// one row, because what differs in it is found by the restore (reads only)
    Show {
        /// As in the list
        #[arg(value_name = "ID")]
        id: QuarantineId,
    },
    /// Recover once more: the attempts count from zero again
    Retry {
        /// As in the list
        #[arg(value_name = "ID")]
        id: QuarantineId,
    },
    /// End it with the tree as it is; nothing there is touched, and everything that was kept stays below quarantine/
    KeepLive {
        /// As in the list
        #[arg(value_name = "ID")]
        id: QuarantineId,
    },
    /// Put in place as much as can be had: of a transaction what it committed, of a guard what was there before
    ///
    /// What is displaced is kept. It is over when everything is in place; otherwise it stays in quarantine, and what could not
    /// be put is told.
    Restore {
        /// As in the list
        #[arg(value_name = "ID")]
        id: QuarantineId,
    },
    /// Remove what is kept, for good; what is not over is ended with the tree as it is
    Discard {
        /// As in the list
        #[arg(value_name = "ID")]
        id: QuarantineId,
        /// Yes, for good
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) fn run(out: &mut Out, place: &Place, action: Option<&Action>) -> Result<Outcome, Failure> {
    match action {
        None | Some(Action::List) => list(out, place),
        Some(Action::Show { id }) => show(out, place, *id),
        Some(Action::Retry { id }) => decide(out, place, |journal| journal.quarantine().retry(*id)),
        Some(Action::KeepLive { id }) => decide(out, place, |journal| journal.quarantine().keep_live(*id)),
        Some(Action::Restore { id }) => decide(out, place, |journal| journal.quarantine().restore(*id)),
        Some(Action::Discard { yes: false, .. }) => {
            Err(Failure::Usage("discard removes what is kept for good: look at it with `show`, then say --yes"))
        }
        Some(Action::Discard { id, yes: true }) => decide(out, place, |journal| journal.quarantine().discard(*id)),
    }
}

fn list(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    let entries = place.inspector()?.quarantine()?;
    if out.json() {
        for entry in &entries {
            out.object(entry)?;
        }
    } else if entries.is_empty() {
        out.line("nothing is in quarantine")?;
    } else {
        let mut table = Table::new(&["ID", "KIND", "SINCE", "LOCK", "LABEL", "TRIED", "KEPT", "PATHS", "WHY"]);
        for entry in &entries {
            table.row([
                tinted(entry.id.to_string(), tint(entry)),
                cell(entry.kind),
                cell(entry.since_ms.map_or_else(String::new, ago)),
                cell(&entry.lock),
                cell(&entry.label),
                number(entry.attempts),
                cell(kept(entry)),
                cell(paths(entry)),
                cell(entry.reason.as_deref().unwrap_or_default()),
            ]);
        }
        out.table(table)?;
    }
    let waits = entries.iter().any(|entry| entry.kind != "files");
    Ok(if waits { Outcome::Quarantined } else { Outcome::Fine })
}

fn tint(entry: &QuarantineEntry) -> Tint {
    if entry.kind == "files" { Tint::None } else { Tint::Bad }
}

fn kept(entry: &QuarantineEntry) -> String {
    if entry.kept == 0 { String::new() } else { format!("{} ({})", entry.kept, bytes(entry.kept_bytes)) }
}

/// The first path, and how many more.
fn paths(entry: &QuarantineEntry) -> String {
    let Some(first) = entry.paths.first() else { return String::new() };
    match entry.paths.len() as u64 - 1 + entry.more_paths {
        0 => path(&first.path),
        more => format!("{} and {}", path(&first.path), many(more, "more path")),
    }
}

fn show(out: &mut Out, place: &Place, id: QuarantineId) -> Result<Outcome, Failure> {
    let detail = place.inspector()?.quarantined(id)?.ok_or(Failure::NothingInQuarantine(id))?;
    if out.json() {
        out.object(&detail)?;
        return Ok(Outcome::Fine);
    }
    let entry = &detail.entry;
    out.line(format_args!("{} {} · {}", bold(entry.kind), bold(id), tint(entry).paint(standing_of(entry))))?;
    let mut table = Table::indented();
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            table.row([cell(name), cell(value)]);
        }
    };
    fact("label", entry.label.clone());
    fact("lock", entry.lock.clone());
    fact("since", entry.since_ms.map_or_else(String::new, |at| format!("{} ({})", local(at), ago(at))));
    fact("why", entry.reason.clone().unwrap_or_default());
    fact("tried", if entry.attempts == 0 { String::new() } else { many(entry.attempts, "time") });
    fact("kept", kept(entry));
    out.table(table)?;
    tell_items(out, &detail)?;
    if !detail.files.is_empty() {
        out.line("")?;
        let mut table = Table::new(&["KEPT", "SIZE", "AT"]);
        for file in &detail.files {
            table.row([cell(file.kind), number(bytes(file.bytes)), cell(path(&file.file))]);
        }
        out.table(table)?;
    }
    out.line("")?;
    advise(out, entry)?;
    Ok(Outcome::Fine)
}

fn standing_of(entry: &QuarantineEntry) -> &'static str {
    match entry.kind {
        "transaction" => "committed, and not in the tree",
        "guard" => "died, and what it guarded could not be put back",
        _ => "over; this is what was kept",
    }
}

fn tell_items(out: &mut Out, detail: &QuarantineDetail) -> Result<(), Failure> {
    if detail.items.is_empty() {
        return Ok(());
    }
    out.line("")?;
    let mut table = Table::new(&["PATH", "THERE NOW", "A RESTORE WOULD", "SIZE", "KEPT AT"]);
    for item in &detail.items {
        let would = match &item.why_not {
            None => cell(&item.would),
            Some(why) => tinted(format!("{}: {why}", item.would), Tint::Bad),
        };
        table.row([
            cell(path(&item.path)),
            cell(now(item)),
            would,
            number(item.bytes.map_or_else(|| "-".into(), bytes)),
            cell(item.kept_at.as_deref().map_or_else(|| "-".into(), path)),
        ]);
    }
    out.table(table)
}

fn now(item: &QuarantinePath) -> String {
    match (item.now, item.now_bytes) {
        (None, _) => "?".into(),
        (Some(now), None) => now.into(),
        (Some(now), Some(size)) => format!("{now} ({})", bytes(size)),
    }
}

fn advise(out: &mut Out, entry: &QuarantineEntry) -> Result<(), Failure> {
    let id = entry.id;
    let mut advice = vec![
        ("retry", "recover once more, once what was in the way is mended"),
        ("restore", "put in place what can be had"),
        ("keep-live", "the tree is right as it is; keep the rest below quarantine/"),
    ];
    if entry.kind == "files" {
        advice = vec![("discard", "remove what is kept, for good")];
    }
    out.line(bold("What to do"))?;
    let mut table = Table::indented();
    for (verb, why) in advice {
        let yes = if verb == "discard" { " --yes" } else { "" };
        table.row([tinted(format!("journalctl-kb quarantine {verb} {id}{yes}"), Tint::Busy), cell(why)]);
    }
    out.table(table)
}

fn decide(out: &mut Out, place: &Place, verb: impl Fn(&Journal) -> Result<Resolved>) -> Result<Outcome, Failure> {
    let journal = place.journal(false)?;
    let resolved = verb(&journal)?;
    journal.close()?;
    if out.json() {
        out.object(&object(&resolved))?;
    } else {
        tell(out, &resolved)?;
    }
    Ok(match resolved.standing {
        Standing::Ended => Outcome::Fine,
        Standing::Pending => Outcome::Found,
        _ => Outcome::Quarantined,
    })
}

fn tell(out: &mut Out, resolved: &Resolved) -> Result<(), Failure> {
    let id = resolved.id;
    for restored in &resolved.restored {
        out.line(format_args!("  {} {}", Tint::Good.paint("put in place"), path(restored)))?;
    }
    for (left, why) in &resolved.left {
        out.line(format_args!("  {} {}: {}", Tint::Bad.paint("left"), path(left), plain(why)))?;
    }
    match resolved.standing {
        Standing::Ended => out.line(format_args!("{id} is over: its paths are free"))?,
        Standing::Pending => {
            out.line(format_args!(
                "{id} is pending: `journalctl-kb status` says why; mend it, then `journalctl-kb recover`"
            ))?;
        }
        _ => out.line(format_args!("{id} is still in quarantine: `journalctl-kb quarantine show {id}` says more"))?,
    }
    for kept in &resolved.kept {
        out.line(format_args!("what is kept lies in {}", path(kept)))?;
    }
    Ok(())
}

fn object(resolved: &Resolved) -> Value {
    let standing = match resolved.standing {
        Standing::Ended => "ended",
        Standing::Pending => "pending",
        _ => "quarantined",
    };
    let left = resolved.left.iter().map(|(path, why)| {
        let mut object = path_object(path);
        object["why"] = why.as_str().into();
        object
    });
    json!({
        "id": resolved.id,
        "standing": standing,
        "restored": resolved.restored.iter().map(|path| path_object(path)).collect::<Vec<_>>(),
        "left": left.collect::<Vec<_>>(),
        "kept": resolved.kept.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
    })
}

fn path_object(path: &Path) -> Value {
    let mut object = json!({ "path": path.to_string_lossy() });
    if path.to_str().is_none() {
        let bytes = path.as_os_str().as_bytes();
        object["path_hex"] = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    }
    object
}
