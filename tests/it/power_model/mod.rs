//! x

mod disk;
mod explore;
mod families;
mod faults;
mod guard;
mod judge;
mod losses;
mod recovery;
mod run;
mod scripts;
mod staged;
mod tree;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::disk::Profile;
use self::explore::{Explorer, Stats, Violation};
use self::faults::Fault;
use self::scripts::Script;

/// Explores scripts, on all processors, until one of them shows that something is wrong.
fn explore(scripts: &[Script], fault: Option<Fault>, most: u64) -> Result<Stats, Violation> {
    let cases: Vec<(&Script, Profile)> =
        scripts.iter().flat_map(|script| [(script, Profile::Ordered), (script, Profile::OnlySynced)]).collect();
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Ok(Stats::default())));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((script, profile)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = Explorer::new(script, *profile, fault, most).explore();
                    let mut sum = sum.lock().unwrap();
                    match (&mut *sum, found) {
                        (Ok(sum), Ok(found)) => sum.add(found),
                        (Ok(_), Err(violation)) => {
                            next.store(cases.len(), Ordering::Relaxed);
                            *sum = Err(violation);
                        }
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

#[test]
fn first() {
    let scripts = if std::env::var("JOURNAL_KB_MODEL").is_ok() { families::all() } else { families::sample() };
    let start = std::time::Instant::now();
    println!("{} scripts", scripts.len());
    let mut sum = Stats::default();
    let mut bad = 0;
    let mut kinds = std::collections::BTreeSet::new();
    for script in &scripts {
        let begin = std::time::Instant::now();
        match explore(
            std::slice::from_ref(script),
            None,
            std::env::var("MOST").map_or(100_000, |most| most.parse().unwrap()),
        ) {
            Ok(stats) => {
                sum.add(stats);
                if begin.elapsed().as_secs_f64() > 2.0 {
                    println!("slow {:?} {stats:?} {script:?}", begin.elapsed());
                }
            }
            Err(violation) => {
                bad += 1;
                if kinds.insert(violation.what.clone()) {
                    println!("{}\n    {}", violation.what, violation.how);
                }
            }
        }
    }
    println!("{bad} bad; {sum:?} {:?}", start.elapsed());
}
