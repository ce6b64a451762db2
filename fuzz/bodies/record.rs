//! Any bytes as a stored record: an error, or a record that is written again as the same.

pub(crate) fn run(bytes: &[u8]) {
    journal_kb::__fuzz::record(bytes);
    // Hardly any input has a true checksum, so the same bytes are also tried as the payload of a record that has one.
    journal_kb::__fuzz::record(&journal_kb::__fuzz::frame(bytes));
}
