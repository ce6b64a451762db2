//! What the state of a journal comes to, and what to type next. Pure: evidence in, words out.

use super::model::{Advice, GuardInfo, Health, SessionInfo, StateCounts, Waiting};
use crate::id::QuarantineId;

/// What a verdict rests on.
#[derive(Debug)]
pub(super) struct Evidence<'a> {
    pub(super) transactions: &'a StateCounts,
    pub(super) sessions: &'a [SessionInfo],
    pub(super) guards: &'a [GuardInfo],
    pub(super) pending: &'a [Waiting],
    pub(super) quarantined: &'a [Waiting],
    pub(super) sync_failed: bool,
}

/// So many transactions are named, each with a line of its own.
const FEW: usize = 5;

/// Judges. What is unsettled while some session lives is that session's everyday work; when none does, a crash left it.
pub(super) fn verdict(evidence: &Evidence<'_>) -> (Health, Vec<Advice>) {
    let mut health = Health::Ok;
    let mut advice = Vec::new();
    let counts = evidence.transactions;
    for waiting in evidence.quarantined.iter().take(FEW) {
        health = health.max(Health::Quarantined);
        advice.push(Advice {
            command: format!("journalctl-kb quarantine show {}", waiting.id),
            why: "see what recovery could not decide, and how to end it; nothing of it is lost, its paths are as they were found"
                .into(),
        });
    }
    for guard in evidence.guards.iter().filter(|guard| guard.quarantined).take(FEW) {
        health = health.max(Health::Quarantined);
        advice.push(Advice {
            command: format!("journalctl-kb quarantine show {}", QuarantineId::Guard(guard.id)),
            why: "see what a dead transaction guarded and recovery could not put back, and how to end it; the paths are as they \
                  were found, and others are refused there"
                .into(),
        });
    }
    if let Some(first) = evidence.pending.first() {
        health = health.max(Health::Pending);
        advice.push(Advice {
            command: format!("journalctl-kb show {}", first.id),
            why: "see which path could not be written, and why; mend that first".into(),
        });
        advice.push(recover("then try again"));
    }
    let at_work = evidence.sessions.iter().any(|session| session.alive != Some(false));
    let left = counts.committed + counts.applied + counts.settling;
    if evidence.sync_failed {
        health = health.max(Health::NeedsRecovery);
        advice.push(recover("a disk sync failed: look at the disk, then have everything unsettled written anew"));
    } else if evidence.guards.iter().any(GuardInfo::is_left_over) {
        health = health.max(Health::NeedsRecovery);
        advice.push(recover(
            "put back what a dead transaction guarded (the next program that opens the journal does it too)",
        ));
    } else if left > 0 && !at_work {
        health = health.max(Health::NeedsRecovery);
        advice.push(recover("finish what a crash left (the next program that opens the journal does it too)"));
    }
    advice.dedup_by(|next, before| next.command == before.command);
    (health, advice)
}

fn recover(why: &str) -> Advice {
    Advice { command: "journalctl-kb recover".into(), why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::TxnId;

    fn session(alive: Option<bool>) -> SessionInfo {
        SessionInfo { id: "00".into(), pid: 1, program: "p".into(), since_ms: 0, alive }
    }

    fn waiting(id: i64) -> Waiting {
        let (label, paths) = (String::new(), Vec::new());
        Waiting { id: TxnId::from(id), label, attempts: 0, paths, more_paths: 0, reason: None }
    }

    #[test]
    fn unsettled_work_is_a_crash_only_when_nobody_is_at_it() {
        let counts =
            |committed, applied, settling| StateCounts { committed, applied, settling, ..StateCounts::default() };
        for (transactions, sessions, sync_failed, health) in [
            (counts(0, 0, 0), vec![], false, Health::Ok),
            (counts(0, 0, 0), vec![session(Some(false))], false, Health::Ok),
            (counts(1, 2, 3), vec![session(Some(true))], false, Health::Ok),
            (counts(1, 2, 3), vec![session(Some(false)), session(Some(true))], false, Health::Ok),
            (counts(1, 2, 3), vec![session(None)], false, Health::Ok),
            (counts(1, 0, 0), vec![session(Some(false))], false, Health::NeedsRecovery),
            (counts(0, 1, 0), vec![], false, Health::NeedsRecovery),
            (counts(0, 0, 1), vec![], false, Health::NeedsRecovery),
            (counts(0, 0, 0), vec![session(Some(true))], true, Health::NeedsRecovery),
        ] {
            let evidence = Evidence {
                transactions: &transactions,
                sessions: &sessions,
                guards: &[],
                pending: &[],
                quarantined: &[],
                sync_failed,
            };
            let (found, advice) = verdict(&evidence);
            assert_eq!(found, health, "{evidence:?}");
            assert_eq!(advice.is_empty(), health == Health::Ok, "{evidence:?}");
        }
    }

    #[test]
    fn the_worst_decides_and_everything_is_named_once() {
        let (pending, quarantined) = ([waiting(7), waiting(8)], [waiting(5), waiting(6)]);
        let evidence = Evidence {
            transactions: &StateCounts { applied: 1, pending: 2, quarantined: 2, ..StateCounts::default() },
            sessions: &[],
            guards: &[guard(None, None, true)],
            pending: &pending,
            quarantined: &quarantined,
            sync_failed: true,
        };
        let (health, advice) = verdict(&evidence);
        assert_eq!(health, Health::Quarantined);
        let commands: Vec<_> = advice.iter().map(|advice| advice.command.as_str()).collect();
        assert_eq!(
            commands,
            [
                "journalctl-kb quarantine show 5",
                "journalctl-kb quarantine show 6",
                "journalctl-kb quarantine show g1",
                "journalctl-kb show 7",
                "journalctl-kb recover"
            ]
        );
    }

    fn guard(alive: Option<bool>, held: Option<bool>, quarantined: bool) -> GuardInfo {
        let (label, lock, session, program) = (String::new(), "main".into(), String::new(), String::new());
        let (trees, reason) = (Vec::new(), None);
        let (id, pid, since_ms, paths, attempts) = (1, 1, 0, 1, 0);
        GuardInfo {
            id,
            label,
            lock,
            session,
            pid,
            program,
            since_ms,
            paths,
            links: 0,
            reflinks: 0,
            copies: 0,
            trees,
            attempts,
            alive,
            held,
            worker: None,
            quarantined,
            reason,
        }
    }

    #[test]
    fn a_guard_is_left_over_when_nobody_can_be_at_work_under_it() {
        for (alive, held, quarantined, health) in [
            (Some(true), Some(true), false, Health::Ok),
            (None, None, false, Health::Ok),
            (Some(false), Some(false), false, Health::NeedsRecovery),
            // Somebody else has the lock by now, and does it before anything else.
            (Some(false), Some(true), false, Health::NeedsRecovery),
            // It lives, and could not put everything back.
            (Some(true), Some(false), false, Health::NeedsRecovery),
            (Some(false), Some(false), true, Health::Quarantined),
        ] {
            let guards = [guard(alive, held, quarantined)];
            let sessions = [session(alive)];
            let transactions = StateCounts::default();
            let (pending, quarantined) = (&[][..], &[][..]);
            let evidence = Evidence {
                transactions: &transactions,
                sessions: &sessions,
                guards: &guards,
                pending,
                quarantined,
                sync_failed: false,
            };
            let (found, advice) = verdict(&evidence);
            assert_eq!(found, health, "{evidence:?}");
            assert_eq!(advice.len(), usize::from(health != Health::Ok), "{evidence:?}");
        }
    }
}
