//! An outbox beside one by hand: a table of plain SQLite that is written in the transaction, and gone through afterwards. `src/` reads
//! these results by their names, and puts them into docs/outbox-performance.md.
//!
//! - `outbox/<place>/commit`: a row of the application, with a message and without;
//! - `outbox/<place>/drain`: messages that go out to a closure.

mod common;

use std::time::{Duration, Instant};

use common::{in_sqlite, plain_sqlite, settings};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use journal_kb::{Journal, Message};
use journal_kb_peers::shared::{Homes, Place, places};
use rusqlite::{Connection, TransactionBehavior};

const SCHEMA: &str = "CREATE TABLE doc (id INTEGER PRIMARY KEY, path TEXT NOT NULL) STRICT";
const INSERT: &str = "INSERT INTO doc (path) VALUES (?1)";
const OUTBOX: &str =
    "CREATE TABLE outbox (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, key TEXT NOT NULL, payload BLOB) STRICT";
const SEND: &str = "INSERT INTO outbox (topic, key, payload) VALUES ('documents', ?1, ?2)";
/// So many messages go out at a time.
const MESSAGES: usize = 2_000;
/// So many are looked at, and forgotten, together by hand.
const BATCH: usize = 256;
const LONG: Duration = Duration::from_secs(60);

fn key(number: usize) -> String {
    format!("documents/{number:07}.md")
}

fn payload(number: usize) -> Vec<u8> {
    format!("{number:0>100}").into_bytes()
}

fn commit(criterion: &mut Criterion, place: &Place, homes: &mut Homes) {
    let mut group = criterion.benchmark_group(format!("outbox/{}/commit", place.name));
    for sends in [false, true] {
        let of = |who: &str| format!("{who}{}", if sends { "+message" } else { "" });
        let journal = Journal::open(homes.make(place).expect("a directory to measure in")).expect("a journal");
        journal.migrate(&[SCHEMA]).expect("a table");
        let mut number = 0;
        group.bench_function(of("journal"), |bencher| {
            bencher.iter(|| {
                number += 1;
                let done = journal.transact(|txn| {
                    txn.sql(move |rows| rows.execute(INSERT, [key(number)]).map(drop))?;
                    if sends { txn.send_bytes("documents", &key(number), payload(number)) } else { Ok(()) }
                });
                done.expect("a commit")
            });
        });
        journal.close().expect("closed");

        let mut plain = by_hand(place, homes);
        let mut number = 0;
        group.bench_function(of("sqlite"), |bencher| {
            bencher.iter(|| {
                number += 1;
                let tx = plain.transaction_with_behavior(TransactionBehavior::Immediate).expect("begun");
                let mut row = tx.prepare_cached(INSERT).expect("prepared");
                row.execute([key(number)]).expect("a row");
                if sends {
                    let mut row = tx.prepare_cached(SEND).expect("prepared");
                    row.execute((key(number), payload(number))).expect("a row");
                }
                drop(row);
                tx.commit().expect("a commit");
            });
        });
    }
    group.finish();
}

fn by_hand(place: &Place, homes: &mut Homes) -> Connection {
    let plain = plain_sqlite(&homes.make(place).expect("a directory to measure in")).expect("a database");
    plain.execute_batch(SCHEMA).and_then(|()| plain.execute_batch(OUTBOX)).expect("tables");
    plain
}

fn drain(criterion: &mut Criterion, place: &Place, homes: &mut Homes) {
    let mut group = criterion.benchmark_group(format!("outbox/{}/drain", place.name));
    group.sampling_mode(SamplingMode::Flat).sample_size(10).throughput(Throughput::Elements(MESSAGES as u64));
    let journal = Journal::open(homes.make(place).expect("a directory to measure in")).expect("a journal");
    let send = |number: usize| {
        let all = |txn: &mut journal_kb::Transaction| {
            (0..MESSAGES).try_for_each(|n| txn.send_bytes("documents", &key(number + n), payload(number + n)))
        };
        journal.transact(all).expect("a commit");
    };
    let mut number = 0;
    let mut drained = || {
        number += MESSAGES;
        send(number);
        let start = Instant::now();
        let drainer = journal.drainer("documents", |_: &Message| Ok(())).start().expect("a drainer");
        assert_eq!(drainer.close(LONG).expect("closed"), 0);
        start.elapsed()
    };
    group.bench_function("journal", |bencher| bencher.iter_custom(|times| (0..times).map(|_| drained()).sum()));
    journal.close().expect("closed");

    let mut plain = by_hand(place, homes);
    let rows: Vec<_> = (0..MESSAGES).map(|n| (key(n), payload(n))).collect();
    let rows: Vec<_> = rows.iter().map(|(key, payload)| (key, payload)).collect();
    let mut drained = || {
        in_sqlite(&mut plain, SEND, &rows).expect("a commit");
        let start = Instant::now();
        while go_through(&mut plain).expect("gone through") > 0 {}
        start.elapsed()
    };
    group.bench_function("sqlite", |bencher| bencher.iter_custom(|times| (0..times).map(|_| drained()).sum()));
    group.finish();
}

/// One transaction: some messages are looked at and forgotten, and that is synced, as the application's connection does it.
fn go_through(plain: &mut Connection) -> rusqlite::Result<usize> {
    let tx = plain.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut select = tx.prepare_cached("SELECT id, topic, key, payload FROM outbox ORDER BY id LIMIT ?1")?;
    let row = |row: &rusqlite::Row<'_>| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, Vec<u8>>(3)?))
    };
    let messages = select.query_map([BATCH], row)?.collect::<rusqlite::Result<Vec<_>>>()?;
    drop(select);
    let mut delete = tx.prepare_cached("DELETE FROM outbox WHERE id = ?1")?;
    for message in &messages {
        std::hint::black_box(message);
        delete.execute([message.0])?;
    }
    drop(delete);
    tx.commit().map(|()| messages.len())
}

fn outbox(criterion: &mut Criterion) {
    let mut homes = Homes::default();
    for place in places(env!("CARGO_TARGET_TMPDIR")) {
        commit(criterion, &place, &mut homes);
        drain(criterion, &place, &mut homes);
    }
}

criterion_group! {
    name = benches;
    config = settings();
    targets = outbox
}
criterion_main!(benches);
