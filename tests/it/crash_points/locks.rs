//! A lock that is held over more than a transaction: taken, recorded, worked under, released.

use std::path::Path;

use journal_kb::Journal;

use super::sweep::Workload;

pub(crate) fn registered() -> Vec<Workload> {
    let flight = Workload::new("flight", prepare, |journal, say| {
        let flown = journal.single_flight("sync", |lock| {
            lock.fence()?;
            let mut txn = lock.begin("import")?;
            txn.write("pages/new.md", b"new\n")?;
            txn.remove("pages/gone.md")?;
            txn.sql(|rows| rows.execute("INSERT INTO doc VALUES ('pages/new.md', 'New')", ()).map(drop))?;
            txn.commit()?;
            say("committed");
            Ok(())
        });
        match flown {
            Ok(_) => say("flown"),
            Err(error) => say(&format!("not flown: {error}")),
        }
    });
    vec![flight]
}

fn prepare(root: &Path) {
    super::prepare(root).unwrap();
}

/// Locks of a recovered journal that are not free, or whose fence does not grow.
pub(crate) fn stuck(root: &Path) -> Vec<String> {
    let database = rusqlite::Connection::open(root.join(".journal/journal.db")).unwrap();
    let rows: Vec<(String, i64)> = {
        let mut locks = database.prepare("SELECT name, fence FROM journal_lock ORDER BY name").unwrap();
        let rows = locks.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    };
    drop(database);
    let newest = rows.iter().map(|(_, fence)| *fence).max().unwrap_or(0);
    let journal = Journal::open(root).unwrap();
    let wrong = |name: String| match journal.try_lock(&name).and_then(|lock| lock.map(|lock| lock.fence()).transpose())
    {
        Ok(Some(fence)) if fence.fence().get() > newest => None,
        other => Some(format!("lock {name:?} after fence {newest}: {other:?}")),
    };
    rows.into_iter().filter_map(|(name, _)| wrong(name)).collect()
}
