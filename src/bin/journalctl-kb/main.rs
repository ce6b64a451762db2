//! `journalctl-kb`: looks inside a journal, and sets it right.
//!
//! `status`, `log`, `show`, `locks`, `followers`, `list` and `show` of `runs`, `outbox`, `blobs` and `quarantine`, and `blobs verify` only
//! read: they take no lock and keep no writer waiting; so does whatever says `--dry-run`. `init`, `recover`, `settle`, `locks break`,
//! `followers forget` and the rest of `runs`, `outbox`, `blobs` and `quarantine` open the journal as any program does, and change what
//! their help says.

mod exit;
mod isolate;
mod output;
mod place;
mod time;
mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use exit::{Failure, Outcome};
use output::Out;
use place::Place;

const AFTER_HELP: &str = "\
Examples:
  journalctl-kb init kb                 make a journal for the directory kb
  journalctl-kb status                  is all well, and what to do if not
  journalctl-kb log -n 5                the newest five transactions
  journalctl-kb log -f                  what is committed, as it is committed
  journalctl-kb --root kb show 42       what transaction 42 did to which path
  journalctl-kb log --json | jq .label  every listing as JSON, one object a line

Without --root the journal is that of the nearest directory, from here upwards, that holds .journal/.

Exit codes:
  0   fine
  1   something was found (a crash left work, a dry run has steps) or failed
  2   wrong usage
  74  the system or the disk failed, or a lock was lost
  75  somebody else is in the way; try again
  76  something is in quarantine and needs a person";

/// Look inside a journal-kb journal, and set it right.
#[derive(Debug, Parser)]
#[command(name = "journalctl-kb", version, after_help = AFTER_HELP, arg_required_else_help = true)]
#[command(subcommand_required = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Common {
    /// The root of the journal (default: the nearest directory from here upwards with .journal/)
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The state directory, when the journal was opened with one of its own
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The database, when the journal was opened with the application's own
    #[arg(long, global = true, value_name = "FILE")]
    database: Option<PathBuf>,
    /// Write JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a journal for a directory; where there is one already, leave it as it is
    #[command(after_help = verbs::init::HELP)]
    Init {
        /// The directory whose tree to protect; made when it is missing [default: --root, else here]
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Show whether all is well, who is at work, and what to do next (reads only)
    #[command(after_help = verbs::status::HELP)]
    Status,
    /// List transactions, newest first (reads only)
    #[command(after_help = verbs::log::HELP)]
    Log {
        /// At most so many; 0 for all [default: 25, or all with --since]
        #[arg(short = 'n', long = "lines", value_name = "N")]
        lines: Option<u64>,
        /// Only what was committed since then: 2h, 3d, 2026-11-20, yesterday, or RFC 3339
        #[arg(long, value_name = "T", value_parser = time::since)]
        since: Option<i64>,
        /// Go on with what is committed from now on, by whatever program; oldest first, and until Ctrl-C
        #[arg(short = 'f', long)]
        follow: bool,
    },
    /// Show what one transaction did, path by path (reads only)
    #[command(after_help = verbs::show::HELP)]
    Show {
        /// Its number, as in `log`
        #[arg(value_name = "TXN", value_parser = clap::value_parser!(i64).range(1..))]
        txn: i64,
    },
    /// List the locks: who holds them, since when, for what, who waits (reads only); end who holds one
    #[command(after_help = verbs::locks::HELP)]
    Locks {
        #[command(subcommand)]
        action: Option<verbs::locks::Action>,
    },
    /// List the runs of jobs: how far each is, who is at work, what was set aside (reads only); set right what they left
    #[command(after_help = verbs::runs::HELP)]
    Runs {
        /// At most so many; 0 for all [default: 25]
        #[arg(short = 'n', long = "lines", value_name = "N")]
        lines: Option<u64>,
        #[command(subcommand)]
        action: Option<verbs::runs::Action>,
    },
    /// Show what waits to be told to others, what is parked and why (reads only); have it tried again, or give it up
    #[command(after_help = verbs::outbox::HELP)]
    Outbox {
        #[command(flatten)]
        list: verbs::outbox::ListArguments,
        #[command(subcommand)]
        action: Option<verbs::outbox::Action>,
    },
    /// List the blobs, compare them with what was sealed (reads only); remove files that nothing refers to
    #[command(after_help = verbs::blobs::HELP)]
    Blobs {
        #[command(flatten)]
        list: verbs::blobs::ListArguments,
        #[command(subcommand)]
        action: Option<verbs::blobs::Action>,
    },
    /// List who follows the changes under a name, and how far each is (reads only); forget one
    #[command(after_help = verbs::followers::HELP)]
    Followers {
        #[command(subcommand)]
        action: Option<verbs::followers::Action>,
    },
    /// Finish what a crash left: apply what was committed, drop or put back what was not
    #[command(after_help = verbs::recover::HELP)]
    Recover {
        /// Only show what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what recovery could not decide or finish, and say how it ends
    #[command(after_help = verbs::quarantine::HELP)]
    Quarantine {
        #[command(subcommand)]
        action: Option<verbs::quarantine::Action>,
    },
    /// Run a command as one transaction: what it does is kept when it exits with 0, and put back otherwise
    #[command(after_help = verbs::exec::HELP)]
    Exec(verbs::exec::Arguments),
    /// Make the live tree itself durable: do this before a snapshot or a copy by other tools
    #[command(after_help = verbs::settle::HELP)]
    Settle,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    let mut out = Out::new(cli.common.json);
    let outcome = run(cli, &mut out).and_then(|outcome| out.flush().map(|()| outcome));
    exit::finish(outcome)
}

fn run(cli: Cli, out: &mut Out) -> Result<Outcome, Failure> {
    let Common { root, state_dir, database, json: _ } = cli.common;
    if let Verb::Init { dir } = cli.verb {
        return verbs::init::run(out, dir, root, state_dir, database);
    }
    let is_exec = matches!(cli.verb, Verb::Exec(_));
    // Of `exec` 1 and 74 are the command's.
    let place = Place::find(root, state_dir, database)
        .map_err(|failure| if is_exec { Failure::Exec(Box::new(failure)) } else { failure })?;
    match cli.verb {
        Verb::Init { .. } | Verb::Status => verbs::status::run(out, &place),
        Verb::Log { lines, since, follow } => verbs::log::run(out, &place, lines, since, follow),
        Verb::Show { txn } => verbs::show::run(out, &place, txn),
        Verb::Locks { action } => verbs::locks::run(out, &place, action.as_ref()),
        Verb::Runs { lines, action } => verbs::runs::run(out, &place, lines, action.as_ref()),
        Verb::Outbox { list, action } => verbs::outbox::run(out, &place, &list, action.as_ref()),
        Verb::Blobs { list, action } => verbs::blobs::run(out, &place, &list, action.as_ref()),
        Verb::Followers { action } => verbs::followers::run(out, &place, action.as_ref()),
        Verb::Recover { dry_run: true } => verbs::recover::dry_run(out, &place),
        Verb::Recover { dry_run: false } => verbs::recover::run(out, &place),
        Verb::Quarantine { action } => verbs::quarantine::run(out, &place, action.as_ref()),
        Verb::Exec(arguments) => verbs::exec::run(&place, &arguments),
        Verb::Settle => verbs::settle::run(out, &place),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_arguments_are_consistent() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
