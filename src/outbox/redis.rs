//! Messages as version numbers in Redis, which other processes and machines look at.

use std::time::Duration;

use redis::{Client, Connection, ErrorKind, RedisError, Script, ServerErrorKind};

use super::message::{Message, PublishError, Publisher};
use crate::error::{Error, Result};

/// Sets the key to at least the version, and says so only where that is news: sent again, a message changes nothing.
const SCRIPT: &str = r"
local known = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
if tonumber(ARGV[1]) <= known then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
";

/// Publishes messages to a Redis server: `<topic>:<key>` is set to the message's version, unless it is that or larger already, and
/// the channel `<topic>` is told so, as JSON with `id`, `key`, `version` and `removal`. Both happen on the server, at once or not at all.
///
/// A server that is down, slow, loading, full or refuses this client is [unreachable](PublishError::Unavailable): messages wait.
/// What it has taken is not told again, should it lose that: a reader that finds no version knows nothing, and has to look itself.
#[derive(Debug)]
pub struct RedisPublisher {
    client: Client,
    connection: Option<Held>,
    prefix: String,
    timeout: Duration,
}

/// A connection, which has nothing to show.
struct Held(Connection);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl RedisPublisher {
    /// To the server at `url`: `redis://host:port/database`. Connects with the first message, and anew whenever that is needed.
    pub fn new(url: &str) -> Result<Self> {
        let client = Client::open(url).map_err(|error| {
            Error::caller(format!("a Redis server is named as redis://host:port/database: {error}"))
        })?;
        Ok(Self { client, connection: None, prefix: String::new(), timeout: Duration::from_secs(1) })
    }

    /// Puts this before the names of keys and channels. Default: nothing.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long to wait for the server, each time. Default: 1 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn connection(&mut self) -> std::result::Result<&mut Connection, RedisError> {
        let held = match self.connection.take() {
            Some(held) => held,
            None => {
                let connection = self.client.get_connection_with_timeout(self.timeout)?;
                connection.set_read_timeout(Some(self.timeout))?;
                connection.set_write_timeout(Some(self.timeout))?;
                Held(connection)
            }
        };
        Ok(&mut self.connection.insert(held).0)
    }

    fn set(&mut self, message: &Message) -> std::result::Result<(), RedisError> {
        let channel = format!("{}{}", self.prefix, message.topic);
        let news = serde_json::json!({
            "id": message.id, "key": message.key, "version": message.version, "removal": message.is_removal,
        });
        let key = format!("{channel}:{}", message.key);
        let script = Script::new(SCRIPT);
        let connection = self.connection()?;
        script.key(key).arg(message.version).arg(channel).arg(news.to_string()).invoke(connection)
    }
}

impl Publisher for RedisPublisher {
    fn publish(&mut self, message: &Message) -> std::result::Result<(), PublishError> {
        self.set(message).map_err(|error| {
            // What was on its way is unknown: the next connection begins anew.
            self.connection = None;
            match is_of_the_key(&error) && !is_of_the_server(&error) {
                true => PublishError::Refused(error.to_string()),
                false => PublishError::Unavailable(error.to_string()),
            }
        })
    }
}

/// True when the server answered that this cannot be done: where the key is something else than a number, say.
fn is_of_the_key(error: &RedisError) -> bool {
    let answered = [ErrorKind::Server(ServerErrorKind::ResponseError), ErrorKind::UnexpectedReturnType];
    answered.contains(&error.kind()) || error.code() == Some("WRONGTYPE")
}

/// True when the server says something of itself, be it out of the script.
fn is_of_the_server(error: &RedisError) -> bool {
    const ITS_OWN: [&str; 9] =
        ["LOADING", "READONLY", "OOM", "BUSY", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM", "CLUSTERDOWN"];
    let text = error.to_string();
    ITS_OWN.iter().any(|word| text.contains(word))
}
