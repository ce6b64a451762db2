#![no_main]

#[path = "../bodies/mod.rs"]
mod bodies;
mod limit;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::record::run(bytes));
