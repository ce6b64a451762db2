//! Records as bytes: a version, bincode, a checksum. The one place that names bincode.
//!
//! `version (1) · payload · BLAKE3 of both, cut to 8 bytes`. A record is read only when the three agree and it is
//! shorter than [`MAX_RECORD`]; whatever else stands there is an error, never a panic or a large allocation.

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};

/// The version that is written; all up to it are read.
const VERSION: u8 = 1;
/// The longest record, in bytes. Xattrs are the largest part of one: 64 KiB a file on the usual filesystems.
const MAX_RECORD: usize = 1 << 20;
const CHECKSUM: usize = 8;
/// Most records are shorter.
const USUAL_RECORD: usize = 256;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_RECORD>()
}

/// Encodes a record. Errors when it is too long.
pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL_RECORD);
    bytes.push(VERSION);
    bincode::serde::encode_into_std_write(record, &mut bytes, config())
        .map_err(|error| Error::corrupt("a record to be written", error))?;
    if bytes.len() + CHECKSUM > MAX_RECORD {
        return Err(Error::TooLarge { what: "a record", limit: MAX_RECORD as u64 });
    }
    seal(&mut bytes);
    Ok(bytes)
}

/// Puts the version before a payload and the checksum behind it.
#[cfg(feature = "testing")]
pub(crate) fn frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + payload.len() + CHECKSUM);
    bytes.push(VERSION);
    bytes.extend_from_slice(payload);
    seal(&mut bytes);
    bytes
}

fn seal(bytes: &mut Vec<u8>) {
    let sum = blake3::hash(bytes);
    bytes.extend_from_slice(&sum.as_bytes()[..CHECKSUM]);
}

/// Decodes a record that may come from anybody.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let corrupt = |detail: &dyn std::fmt::Display| Error::corrupt("a stored record", detail);
    if bytes.len() > MAX_RECORD {
        return Err(corrupt(&format_args!("{} bytes are more than any record has", bytes.len())));
    }
    let Some((body, sum)) = bytes.split_last_chunk::<CHECKSUM>() else {
        return Err(corrupt(&"it is cut short"));
    };
    if blake3::hash(body).as_bytes()[..CHECKSUM] != sum[..] {
        return Err(corrupt(&"its checksum does not match"));
    }
    match body.split_first() {
        Some((&VERSION, payload)) => match bincode::serde::decode_from_slice::<T, _>(payload, config()) {
            Ok((record, read)) if read == payload.len() => Ok(record),
            Ok(_) => Err(corrupt(&"bytes are left over")),
            Err(error) => Err(corrupt(&error)),
        },
        Some((version, _)) => Err(corrupt(&format_args!("version {version} is not known"))),
        None => Err(corrupt(&"it is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_no_changed_byte_does() {
        let record = (7_u64, Some(b"bytes".to_vec()), "text".to_owned());
        let bytes = encode(&record).unwrap();
        assert_eq!(decode::<(u64, Option<Vec<u8>>, String)>(&bytes).unwrap(), record);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            decode::<(u64, Option<Vec<u8>>, String)>(&changed).unwrap_err();
            decode::<(u64, Option<Vec<u8>>, String)>(&bytes[..at]).unwrap_err();
        }
    }

    #[test]
    fn a_record_that_promises_more_than_it_holds_is_refused() {
        let mut bytes = vec![VERSION, 253, 255, 255, 255, 255, 255, 255, 255, 255];
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(&sum.as_bytes()[..CHECKSUM]);
        decode::<Vec<u8>>(&bytes).unwrap_err();
    }
}
