//! `--redis`: every document that is added is told to Redis, whenever that is there, and each at its version.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Ended, Random, WATCHDOG, check, corpus, database, start_add, start_add_with};
use crate::redis::Server;

fn add(docs: &Path, kb: &Path, server: &Server) -> Ended {
    start_add_with(docs, kb, &["--redis", &server.url()]).end()
}

/// The versions that Redis knows, by the source of the document.
fn versions(server: &Server) -> BTreeMap<String, u64> {
    let mut connection = server.connection();
    let keys: Vec<String> = redis::cmd("KEYS").arg("documents:*").query(&mut connection).unwrap();
    let version = |key: &String| redis::cmd("GET").arg(key).query::<u64>(&mut connection).unwrap();
    let versions: Vec<u64> = keys.iter().map(version).collect();
    let sources = keys.iter().map(|key| key.strip_prefix("documents:").unwrap().to_owned());
    sources.zip(versions).collect()
}

/// The versions there should be: how often a document was added from each source. None before there is such a table.
fn added(kb: &Path) -> BTreeMap<String, u64> {
    if !kb.join(".journal/journal.db").exists() {
        return BTreeMap::new();
    }
    let db = database(kb);
    let sql = "SELECT source, count(*) FROM document GROUP BY source";
    let Ok(mut rows) = db.prepare(sql) else { return BTreeMap::new() };
    let rows = rows.query_map((), |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn total(kb: &Path) -> u64 {
    added(kb).values().sum()
}

fn waiting(kb: &Path) -> i64 {
    database(kb).query_row("SELECT count(*) FROM journal_outbox", (), |row| row.get(0)).unwrap()
}

/// Changes the first so many documents.
fn change(docs: &Path, sources: &BTreeMap<String, u64>, n: usize) {
    for source in sources.keys().take(n) {
        let path = docs.join(source);
        let text = [&fs::read(&path).unwrap()[..], b"\none more line\n"].concat();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn what_is_added_is_told_and_what_redis_misses_is_told_by_the_next_run() {
    let Some(mut server) = Server::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (docs, kb) = (dir.path().join("docs"), dir.path().join("kb"));
    corpus::documents(40, &docs);

    // It is up: all is told by the end.
    let said = add(&docs, &kb, &server).exit(0);
    let all = added(&kb);
    assert!(said.ends_with(&format!("0 failed\n{} published to Redis, 0 wait\n", all.len())), "{said}");
    assert_eq!(versions(&server), all);

    // It is down, which is no failure, and is said.
    server.down();
    change(&docs, &all, 5);
    let said = add(&docs, &kb, &server).exit(0);
    assert!(said.contains("5 added") && said.contains("\n0 published to Redis, 5 wait\n"), "{said}");
    assert!(said.contains("\nRedis: the sink cannot be reached: "), "{said}");
    assert_eq!(waiting(&kb), 5);

    // Nobody asks this run to tell anything; the messages stay.
    let said = start_add(&docs, &kb).end().exit(0);
    assert_eq!(said, "0 added, 40 skipped, 0 failed\n");

    // Back, and empty: what waits is told though nothing is added. Told once, a document is not told again.
    server.up();
    let said = add(&docs, &kb, &server).exit(0);
    assert!(said.starts_with("0 added") && said.ends_with("\n5 published to Redis, 0 wait\n"), "{said}");
    let mut changed = added(&kb);
    changed.retain(|_, version| *version == 2);
    assert_eq!(changed.len(), 5);
    assert_eq!(versions(&server), changed);
    check(&kb).exit(0);
}

#[test]
fn killed_while_it_tells_it_ends_with_every_document_at_its_version() {
    let Some(server) = Server::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (docs, kb) = (dir.path().join("docs"), dir.path().join("kb"));
    corpus::documents(40, &docs);
    let start = || start_add_with(&docs, &kb, &["--tries", "1000000", "--redis", &server.url()]);
    let mut random = Random(7);
    let (mut kills, mut told, mut changed) = (0, 0, 0);
    loop {
        let mut running = start();
        let (is_early, more) = (random.below(4) == 0, 1 + random.below(6));
        let (before, watchdog) = (total(&kb), Instant::now() + WATCHDOG);
        // Sometimes while it starts, else at work.
        while running.wait(Instant::now() + random.up_to(Duration::from_millis(20))).is_none() {
            if is_early || total(&kb) >= before + more {
                break;
            }
            assert!(Instant::now() < watchdog, "it hangs");
        }
        match running.kill_after(Duration::ZERO) {
            Ok(()) => kills += 1,
            Err(ended) => {
                ended.exit(0);
                break;
            }
        }
        assert!(kills < 1000, "it never ends");
        let (known, there) = (versions(&server), added(&kb));
        told += usize::from(!known.is_empty());
        for (source, version) in &known {
            assert!(Some(version) <= there.get(source), "{source} is told at {version} before it is there");
        }
        if changed == 0 && there.len() > 15 {
            changed = 10;
            change(&docs, &there, changed);
        }
    }
    println!("killed {kills} times");
    assert!(told > 0 && changed > 0, "it is killed in the middle");
    start().end().exit(0);
    let there = added(&kb);
    assert_eq!(there.values().filter(|version| **version == 2).count(), changed);
    assert_eq!(versions(&server), there);
    assert_eq!(waiting(&kb), 0);
    check(&kb).exit(0);
}

#[test]
fn what_names_no_server_is_refused_and_shows_no_password() {
    let dir = tempfile::tempdir().unwrap();
    for url in ["nonsense", "http://user:secret@localhost", "rediss://user:secret@localhost"] {
        let said = start_add_with(dir.path(), &dir.path().join("kb"), &["--redis", url]).end().exit(2);
        assert!(said.starts_with("ingest: a Redis server is named as redis://"), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
    assert!(!dir.path().join("kb").exists());
}
