//! What a blob is called.

use std::fmt;

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef};

use crate::error::{BlobError, Error, Result};

/// What is in front of a hash.
const BY_CONTENT: &str = "blake3:";
/// In bytes.
const LONGEST: usize = 255;

/// What a blob is called: by its content, as `blake3:` and 64 hexadecimal digits, or as its writer has named it.
///
/// It goes into rows of the application as text, and comes back out of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(Box<str>);

impl BlobId {
    /// The blob of this name. [`BlobError::BadId`] for what can be none: an empty one, one of more than 255 bytes, one with control
    /// characters, or one that begins as those do that tell of content and does not go on like them.
    pub fn new(id: &str) -> Result<Self> {
        let refuse = |reason| Err(BlobError::BadId { id: id.to_owned(), reason }.into());
        if id.is_empty() {
            return refuse("it is empty");
        }
        if id.len() > LONGEST {
            return refuse("it has more than 255 bytes");
        }
        if id.chars().any(char::is_control) {
            return refuse("it has control characters");
        }
        let id = Self(id.into());
        if id.0.starts_with(BY_CONTENT) && id.hash().is_none() {
            return refuse("behind blake3: go 64 hexadecimal digits, in lower case");
        }
        Ok(id)
    }

    /// A blob that its writer calls this: not by its content.
    pub(crate) fn named(id: &str) -> Result<Self> {
        let named = Self::new(id)?;
        if named.is_by_content() {
            let reason = "so are blobs called by their content: write it without a name";
            return Err(BlobError::BadId { id: id.to_owned(), reason }.into());
        }
        Ok(named)
    }

    /// The blob with this content.
    pub(crate) fn of(hash: &[u8; 32]) -> Self {
        let hex = blake3::Hash::from_bytes(*hash).to_hex();
        Self(format!("{BY_CONTENT}{hex}").into())
    }

    /// What its content hashes to, where it is called by that.
    pub(crate) fn hash(&self) -> Option<[u8; 32]> {
        let digits = self.0.strip_prefix(BY_CONTENT)?;
        let hash = blake3::Hash::from_hex(digits).ok()?;
        (hash.to_hex().as_str() == digits).then(|| *hash.as_bytes())
    }

    /// True when it is called by its content.
    pub fn is_by_content(&self) -> bool {
        self.0.starts_with(BY_CONTENT)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for BlobId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for BlobId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self> {
        Self::new(id)
    }
}

impl ToSql for BlobId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0.as_bytes())))
    }
}

impl FromSql for BlobId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::new(value.as_str()?).map_err(|error| rusqlite::types::FromSqlError::Other(Box::new(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_it_says_or_none() {
        let of = BlobId::of(blake3::hash(b"a").as_bytes());
        assert_eq!(BlobId::new(of.as_str()).unwrap().hash(), Some(*blake3::hash(b"a").as_bytes()));
        assert!(of.is_by_content() && !BlobId::new("page 1.pdf").unwrap().is_by_content());
        let upper = format!("{BY_CONTENT}{}", "A".repeat(64));
        for bad in ["", "a\nb", "blake3:", "blake3:00", &upper, &"x".repeat(256)] {
            assert!(matches!(BlobId::new(bad), Err(Error::Blob(BlobError::BadId { .. }))), "{bad:?}");
        }
    }
}
