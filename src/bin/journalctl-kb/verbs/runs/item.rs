//! What names an item, as people see it and type it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::builder::{OsStringValueParser, TypedValueParser};

/// Before the digits of a name that is shown by its bytes.
const HEX: &str = "hex:";

/// An item as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ItemArgument(pub(crate) Vec<u8>);

impl ItemArgument {
    /// What clap reads one with: any bytes, or `hex:` and digits.
    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(Self::read)
    }

    fn read(text: OsString) -> Result<Self, String> {
        let bytes = text.into_vec();
        let Some(digits) = bytes.strip_prefix(HEX.as_bytes()) else { return Ok(Self(bytes)) };
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2 && !pair.starts_with('+'))?;
            u8::from_str_radix(pair, 16).ok()
        };
        let decoded: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        decoded.map(Self).ok_or_else(|| "after hex: come two digits for each byte, as `runs show` has them".into())
    }
}

/// An item as people see it, and can type it: its text, or its bytes where that is not text or would be taken for something else.
pub(crate) fn item(name: &[u8]) -> String {
    let survives = |text: &&str| {
        let says_more = text.is_empty() || text.starts_with(HEX) || text.starts_with('-') || text.trim() != *text;
        !says_more && !text.chars().any(char::is_control)
    };
    match std::str::from_utf8(name).ok().filter(survives) {
        Some(text) => text.to_owned(),
        None => name.iter().fold(HEX.to_owned(), |text, byte| format!("{text}{byte:02x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_typed() {
        for name in [&b"a b"[..], b"", b" a", b"caf\xe9", "é".as_bytes(), b"hex:00", b"a\nb", b"\x1b[2J", b"-a", b"hex"]
        {
            let shown = item(name);
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
            assert_eq!(ItemArgument::read(OsString::from(&shown)), Ok(ItemArgument(name.to_vec())), "{shown}");
        }
        assert_eq!((item(b"caf\xe9"), item(b"a b")), ("hex:636166e9".into(), "a b".into()));
        for bad in ["hex:0", "hex:0g", "hex:+1", "hex:é"] {
            assert!(ItemArgument::read(bad.into()).is_err(), "{bad}");
        }
        assert_eq!(ItemArgument::read(OsString::from_vec(vec![0xff])), Ok(ItemArgument(vec![0xff])));
    }
}
