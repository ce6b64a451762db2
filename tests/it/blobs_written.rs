//! Writing a blob: in whatever pieces, and from whatever readers.

use std::io::{Read, Write};

use journal_kb::{BlobError, Error, Journal, NewBlob};

use crate::blobs::{LARGE, all, bytes};
use crate::support::Tree;

#[test]
fn in_whatever_pieces_it_is_written_it_says_the_same() {
    let tree = Tree::new();
    let (unit, limit) = (256 << 10, 1 << 20);
    for inline in [0, 64 << 10, limit] {
        let journal = Journal::options().inline_blob(inline as u64).open(tree.root()).unwrap();
        for (seed, piece) in [8191, unit - 1, unit, unit + 1, 3 * unit, limit - 1, 40 * unit].into_iter().enumerate() {
            let content = bytes(seed as u8, 36 * unit + 77 + inline);
            let mut blob = journal.blobs().create().unwrap();
            content.chunks(piece).for_each(|piece| blob.write_all(piece).unwrap());
            let id = blob.seal().unwrap();
            assert_eq!(id.as_str(), format!("blake3:{}", blake3::hash(&content).to_hex()), "{inline} {piece}");
            assert_eq!(all(journal.blobs().open(&id).unwrap()), content, "{inline} {piece}");
            // From readers that give so much at once, and between writes.
            let mut blob = journal.blobs().create().unwrap();
            let (start, rest) = content.split_at(piece.min(content.len()) / 2);
            blob.write_all(start).unwrap();
            for part in rest.chunks(3 * piece) {
                assert_eq!(blob.write_from(Sipping(part, piece)).unwrap(), part.len() as u64);
            }
            assert_eq!(blob.seal().unwrap(), id, "{inline} {piece}");
        }
        journal.close().unwrap();
    }
}

/// Gives no more than so many bytes at once.
struct Sipping<'b>(&'b [u8], usize);

impl Read for Sipping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = self.1.min(buffer.len());
        self.0.read(&mut buffer[..most])
    }
}

/// Gives some, and then an error.
struct Breaking<'b>(&'b [u8]);

impl Read for Breaking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::Error::other("the line is down")),
            read => Ok(read),
        }
    }
}

#[test]
fn a_reader_that_fails_takes_nothing_with_it_and_one_that_gives_too_much_all() {
    let tree = Tree::new();
    let journal = tree.journal();
    for size in [1000, LARGE] {
        let content = bytes(1, size);
        let mut blob = journal.blobs().create().unwrap();
        let error = blob.write_from(Breaking(&content)).unwrap_err();
        assert!(error.to_string().contains("the line is down"), "{error}");
        assert_eq!(blob.written(), size as u64);
        assert_eq!(blob.write_from(&b"the rest"[..]).unwrap(), 8);
        let id = blob.seal().unwrap();
        assert_eq!(all(journal.blobs().open(&id).unwrap()), [&content[..], b"the rest"].concat());

        let mut blob = journal.blobs().create_with(NewBlob::new().size(size as u64 - 1)).unwrap();
        let refused = blob.write_from(&content[..]).unwrap_err();
        assert!(matches!(refused, Error::Blob(BlobError::WrongSize { .. })), "{refused}");
        let refused = blob.write_from(&b""[..]).unwrap_err();
        assert!(matches!(refused, Error::Blob(BlobError::WriteFailed { .. })), "{refused}");
        assert!(matches!(blob.seal(), Err(Error::Blob(BlobError::WriteFailed { .. }))));
    }
}
