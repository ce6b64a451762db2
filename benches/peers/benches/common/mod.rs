//! What the benchmarks here have in common.

use std::path::Path;
use std::time::Duration;

use criterion::Criterion;
use journal_kb_peers::QUICK;
use rusqlite::{Connection, TransactionBehavior};

/// A database as those have it who want what is committed to be durable.
pub fn plain_sqlite(root: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(root.join("rows.db"))?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    assert_eq!(mode, "wal");
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

pub fn in_sqlite<P: rusqlite::Params + Copy>(
    connection: &mut Connection,
    statement: &str,
    rows: &[P],
) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut insert = tx.prepare_cached(statement)?;
    rows.iter().try_for_each(|row| insert.execute(*row).map(drop))?;
    drop(insert);
    tx.commit()
}

/// Few samples where the working alone is to be shown.
pub fn settings() -> Criterion {
    let criterion = Criterion::default().without_plots();
    if std::env::var_os(QUICK).is_some() {
        let (warm_up, measure) = (Duration::from_millis(20), Duration::from_millis(100));
        return criterion.sample_size(10).nresamples(1001).warm_up_time(warm_up).measurement_time(measure);
    }
    criterion.sample_size(30).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3))
}
