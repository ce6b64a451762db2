//! Redis as a sink: a real server, which goes down, comes back empty, is slow, or hangs up in the middle of a call.
//!
//! Whatever it does, each key ends at the version of its newest message: never below, and never above.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use journal_kb::{Drainer, Journal, Message, Publisher, RedisPublisher};

use crate::runs::count;
use crate::skip;
use crate::support::Tree;

const LONG: Duration = Duration::from_secs(60);

/// A server on loopback, without anything on disk: started again it is empty.
pub(crate) struct Server {
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// None, and it is said, where there is none to start.
    pub(crate) fn start() -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            skip::skip("to publish to Redis needs redis-server");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        println!("redis-server on 127.0.0.1:{port}");
        let mut server = Self { port, child: None };
        server.up();
        Some(server)
    }

    pub(crate) fn up(&mut self) {
        let port = self.port.to_string();
        let child = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        until("the server answers", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    pub(crate) fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    fn version(&self, key: &str) -> Option<u64> {
        redis::cmd("GET").arg(key).query(&mut self.connection()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
    }
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let so = (0..6_000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        is_so()
    });
    assert!(so, "{what}");
}

fn drain(journal: &Journal, port: u16) -> Drainer {
    let publisher = RedisPublisher::new(&format!("redis://127.0.0.1:{port}")).unwrap();
    let publisher = publisher.timeout(Duration::from_millis(300));
    journal.drainer("t", publisher).probe(Duration::from_millis(100)).start().unwrap()
}

fn send(journal: &Journal, key: &str) {
    journal.transact(|txn| txn.send("t", key, "x")).unwrap();
}

#[test]
fn versions_follow_through_every_outage() {
    let Some(mut server) = Server::start() else { return };
    let tree = Tree::new();
    let journal = tree.journal();
    let drainer = drain(&journal, server.port);
    send(&journal, "a");
    until("the first is there", || server.version("t:a") == Some(1));
    // Down at the commit, which is no business of the commit's.
    server.down();
    send(&journal, "a");
    send(&journal, "b");
    std::thread::sleep(Duration::from_millis(300));
    // And back, empty: nobody writes anything, and it heals.
    server.up();
    until("it heals by itself", || server.version("t:a") == Some(2) && server.version("t:b") == Some(1));
    server.down();
    server.up();
    send(&journal, "a");
    until("an empty server gets the newest version", || server.version("t:a") == Some(3));
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}

/// As long as a minute is with pauses of 10 s, where the longest is 20 ms.
#[test]
fn down_for_long_it_is_asked_again_and_again_at_no_messages_cost() {
    let Some(mut server) = Server::start() else { return };
    server.down();
    let tree = Tree::new();
    let journal = tree.journal();
    let asked = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&asked);
    let mut redis = RedisPublisher::new(&server.url()).unwrap();
    let publisher = move |message: &Message| {
        counts.fetch_add(1, Ordering::SeqCst);
        redis.publish(message)
    };
    let drainer = journal.drainer("t", publisher).probe(Duration::from_millis(20)).refusals(1).start().unwrap();
    (0..3).for_each(|_| ["a", "b"].iter().for_each(|key| send(&journal, key)));
    until("it is asked for long", || asked.load(Ordering::SeqCst) > 30);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_outbox WHERE state = 'pending' AND attempts = 0"), 6);
    server.up();
    until("it heals", || server.version("t:a") == Some(3) && server.version("t:b") == Some(3));
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}

#[test]
fn a_key_that_is_something_else_there_holds_up_nobody_else() {
    let Some(server) = Server::start() else { return };
    let mut connection = server.connection();
    let _: i64 = redis::cmd("RPUSH").arg("t:a").arg("x").query(&mut connection).unwrap();
    let tree = Tree::new();
    let journal = tree.journal();
    ["a", "b"].iter().for_each(|key| send(&journal, key));
    let publisher = RedisPublisher::new(&server.url()).unwrap();
    let drainer = journal.drainer("t", publisher).refusals(2).probe(Duration::from_millis(20)).start().unwrap();
    until("the others go on", || server.version("t:b") == Some(1));
    until("it is parked", || count(&tree, "SELECT count(*) FROM journal_outbox WHERE state = 'parked'") == 1);
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}

#[test]
fn a_message_that_comes_twice_changes_nothing() {
    let Some(server) = Server::start() else { return };
    let mut connection = server.connection();
    let mut hears = connection.as_pubsub();
    hears.subscribe("t").unwrap();
    hears.set_read_timeout(Some(LONG)).unwrap();
    let tree = Tree::new();
    let journal = tree.journal();
    let mut publisher = RedisPublisher::new(&server.url()).unwrap();
    let twice = move |message: &Message| {
        publisher.publish(message)?;
        publisher.publish(message)
    };
    let drainer = journal.drainer("t", twice).start().unwrap();
    for version in 1..=3 {
        send(&journal, "a");
        let news: String = hears.get_message().unwrap().get_payload().unwrap();
        let news: serde_json::Value = serde_json::from_str(&news).unwrap();
        assert_eq!((news["key"].as_str(), news["version"].as_u64()), (Some("a"), Some(version)), "told once each");
    }
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    assert_eq!(server.version("t:a"), Some(3));
    hears.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(hears.get_message().is_err(), "nothing is told twice");
}

/// Stands before a server: slow, or it hangs up once the server has had what was asked and before anybody hears the answer.
fn proxy(server: u16, hang_ups: Arc<AtomicUsize>, delay_ms: Arc<AtomicU64>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(mut client), Ok(mut server)) = (client, TcpStream::connect(("127.0.0.1", server))) else {
                continue;
            };
            let (hang_ups, delay_ms) = (Arc::clone(&hang_ups), Arc::clone(&delay_ms));
            std::thread::spawn(move || {
                let mut buffer = [0; 1 << 16];
                loop {
                    let Ok(n @ 1..) = client.read(&mut buffer) else { return };
                    server.write_all(&buffer[..n]).unwrap();
                    let is_call = buffer[..n].windows(4).any(|word| word == b"EVAL");
                    let Ok(n @ 1..) = server.read(&mut buffer) else { return };
                    let fewer = |left: usize| left.checked_sub(1);
                    if is_call && hang_ups.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(delay_ms.load(Ordering::SeqCst)));
                    if client.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

#[test]
fn who_hangs_up_or_is_slow_gets_no_version_twice() {
    let Some(server) = Server::start() else { return };
    let (hang_ups, delay_ms) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let port = proxy(server.port, Arc::clone(&hang_ups), Arc::clone(&delay_ms));
    let tree = Tree::new();
    let journal = tree.journal();
    let drainer = drain(&journal, port);
    for version in 1..=20 {
        // Both the call that loads the script and the one that runs it.
        hang_ups.store(version % 3, Ordering::SeqCst);
        delay_ms.store(if version % 5 == 0 { 700 } else { 0 }, Ordering::SeqCst);
        send(&journal, "a");
        delay_ms.store(0, Ordering::SeqCst);
        until("it is told", || server.version("t:a") == Some(version as u64));
    }
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    assert_eq!(server.version("t:a"), Some(20));
}
