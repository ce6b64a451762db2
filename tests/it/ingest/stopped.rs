//! The same job stopped by signals, started twice, and gone on with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Random, State, WATCHDOG, add, check, corpus, database, start_add, start_add_with};

/// The items that are durably done, as they are named; none before there is such a table.
fn banked(kb: &Path) -> Vec<String> {
    if !kb.join(".journal/journal.db").exists() {
        return Vec::new();
    }
    let db = database(kb);
    let Ok(mut items) = db.prepare("SELECT CAST(item AS TEXT) FROM journal_run_item") else { return Vec::new() };
    items.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn stopped_by_signals_it_banks_and_the_same_command_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (docs, undisturbed, kb) = (dir.path().join("docs"), dir.path().join("undisturbed"), dir.path().join("kb"));
    corpus::documents(100, &docs);
    add(&docs, &undisturbed).exit(0);
    let wanted = State::of(&undisturbed);
    let mut random = Random(1);
    let (mut stopped, mut done) = (0, 0);
    for _ in 0..100 {
        let signal = if random.below(2) == 0 { Signal::TERM } else { Signal::INT };
        let mut running = start_add(&docs, &kb);
        let before = banked(&kb).len();
        // Sometimes while it starts, else at work.
        let (delay, more) = (Duration::from_millis(random.below(30)), 1 + random.below(10) as usize);
        let is_early = random.below(4) == 0;
        let is_due = || is_early || banked(&kb).len() >= before + more;
        while running.wait(Instant::now() + delay).is_none() {
            if is_due() {
                kill_process(Pid::from_child(&running.child), signal).unwrap();
                break;
            }
        }
        let Some(status) = running.wait(Instant::now() + WATCHDOG) else { panic!("ingest does not stop") };
        let ended = running.report(status);
        match status.code() {
            Some(0) => break,
            // Before it could look for signals.
            None => assert!(banked(&kb).len() == before, "{status}: {}{}", ended.stdout, ended.stderr),
            Some(code) => {
                stopped += 1;
                let (wanted, name) = if signal == Signal::TERM { (143, "SIGTERM") } else { (130, "SIGINT") };
                assert_eq!(code, wanted, "{}{}", ended.stdout, ended.stderr);
                let banked = banked(&kb).len();
                let said = format!("stopped by {name}: {banked} of 100 documents are done, the same command goes on\n");
                assert!(ended.stderr.ends_with(&said), "{banked} are banked: {}{}", ended.stdout, ended.stderr);
                assert!(done <= banked);
                done = banked;
                check(&kb).exit(0);
            }
        }
    }
    println!("stopped {stopped} times");
    assert!(stopped > 0);
    add(&docs, &kb).exit(0);
    State::of(&kb).assert_is(&wanted);
}

#[test]
fn of_two_at_once_one_is_told_that_the_other_is_at_it() {
    let dir = tempfile::tempdir().unwrap();
    let (docs, others) = (dir.path().join("docs"), dir.path().join("others"));
    corpus::documents(100, &docs);
    fs::create_dir(&others).unwrap();
    fs::write(others.join("note.md"), "# A note\n").unwrap();
    let at_once = |n: i32| {
        // One of its own each time, so that there is something to do.
        let kb = dir.path().join(format!("kb-{n}"));
        let both = [(); 2].map(|()| start_add(&docs, &kb));
        let pids = both.each_ref().map(|running| running.child.id());
        let [one, two] = both.map(super::Running::end);
        match (one.status.code(), two.status.code()) {
            // One was done before the other had begun.
            (Some(0), Some(0)) => None,
            (Some(0), _) => Some((two, pids[0], kb)),
            _ => {
                two.exit(0);
                Some((one, pids[1], kb))
            }
        }
    };
    let (told, pid, kb) = (0..20).find_map(at_once).expect("they are there at once");
    let said = told.exit(75);
    assert!(said.starts_with("ingest: ") && said.contains(&format!("(pid {pid})")), "{said}");
    // Another directory is another job.
    let both = [start_add_with(&docs, &kb, &["--fresh"]), start_add(&others, &kb)].map(super::Running::end);
    both.into_iter().for_each(|ended| _ = ended.exit(0));
    check(&kb).exit(0);
}

#[test]
fn what_is_done_is_not_read_again_unless_it_has_changed_or_somebody_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (docs, undisturbed) = (dir.path().join("docs"), dir.path().join("undisturbed"));
    corpus::documents(50, &docs);
    add(&docs, &undisturbed).exit(0);
    let wanted = State::of(&undisturbed);
    let cut_short = |n: i32| {
        let kb = dir.path().join(format!("kb-{n}"));
        let mut running = start_add(&docs, &kb);
        while banked(&kb).len() < 20 {
            running.wait(Instant::now() + Duration::from_millis(1)).is_none().then_some(())?;
        }
        running.kill_after(Duration::ZERO).ok().map(|()| kb)
    };
    let kb = (0..20).find_map(cut_short).expect("it can be killed in the middle");
    // Nobody can tell, but who reads them.
    let done: Vec<PathBuf> = banked(&kb).iter().map(|item| docs.join(item.rsplit_once(" (").unwrap().0)).collect();
    for path in &done {
        let meta = fs::metadata(path).unwrap();
        fs::write(path, vec![b'x'; meta.len() as usize]).unwrap();
        File::options().append(true).open(path).unwrap().set_modified(meta.modified().unwrap()).unwrap();
    }
    let said = add(&docs, &kb).exit(0);
    assert!(said.ends_with(&format!("{} of 50 documents were done before\n", done.len())), "{said}");
    State::of(&kb).assert_is(&wanted);
    // The job is done: the next one looks at all of them.
    let said = start_add_with(&docs, &kb, &["--no-resume"]).end().exit(0);
    assert!(!said.starts_with("0 added"), "{said}");
    let kept = State::of(&kb);
    // So does one that begins afresh in the middle of it; what has changed is another item all the same.
    fs::write(docs.join("deep.html"), "<div>".repeat(1000)).unwrap();
    fs::write(&done[0], "changed").unwrap();
    for tries in 1..=3 {
        let said = add(&docs, &kb).exit(1);
        assert_eq!(said.contains("deep.html: failed, set aside: "), tries == 3, "{said}");
        assert!(said.starts_with(if tries == 1 { "1 added, 49" } else { "0 added, 50" }), "{said}");
    }
    assert!(add(&docs, &kb).exit(1).contains("\n1 set aside after 3 tries: --fresh tries again\n"));
    assert!(start_add_with(&docs, &kb, &["--fresh"]).end().exit(1).contains("deep.html: failed: "));
    assert_eq!(State::of(&kb).rows["document"].len(), kept.rows["document"].len() + 1);
    check(&kb).exit(0);
}
