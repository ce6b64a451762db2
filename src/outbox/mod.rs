//! The outbox: messages that are committed with what they tell of, and go out afterwards, whatever happens. Knows no files, no
//! transactions and no sinks.
//!
//! - A message gets its number and its version inside the COMMIT that makes it true. The version counts the messages of its key,
//!   and only grows: whoever receives one can tell whether it is news.
//! - It goes when a sink has taken it. Until then it waits in the order of commits; refused too often it is parked.

mod by_hand;
mod door;
mod message;
#[cfg(feature = "redis")]
mod redis;
mod rows;

pub(crate) use by_hand::{Again, Meant, discard, meant, topic_of, wait_again};
pub(crate) use door::{Door, Doors, wait_at_no_door};
pub use message::{Coalesce, Message, PublishError, Publisher};
pub(crate) use message::{Draft, check_topic, lock_name};
#[cfg(feature = "redis")]
pub use redis::RedisPublisher;
pub(crate) use rows::*;
