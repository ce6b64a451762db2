//! Who is measured against whom.

mod contender;
#[path = "../../shared/mod.rs"]
pub mod shared;

pub use contender::{Contender, Kind};

/// The environment variable that asks for few samples, to show that everything works.
pub const QUICK: &str = "JOURNAL_KB_BENCH_QUICK";

/// What went wrong, for whoever runs this.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
