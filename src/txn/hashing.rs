//! The hash of what is written: beside the writing, once that is large, so that the one does not wait for the other.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// What is smaller is not worth a thread.
const LARGE: u64 = 4 << 20;
/// So many pieces may wait to be hashed: memory stays bounded.
const PIECES: usize = 4;

/// A hash that comes together piece by piece.
pub(super) enum Hashing {
    Here(Box<blake3::Hasher>),
    Beside(Beside),
}

/// A thread that hashes what it is sent, and sends the emptied buffers back.
pub(super) struct Beside {
    pieces: SyncSender<Vec<u8>>,
    emptied: Receiver<Vec<u8>>,
    thread: JoinHandle<blake3::Hasher>,
}

impl Hashing {
    pub(super) fn new() -> Self {
        Self::Here(Box::default())
    }

    /// Hashes a piece, of `written` bytes before it, and answers an empty buffer to go on with.
    pub(super) fn take(&mut self, mut piece: Vec<u8>, written: u64) -> Vec<u8> {
        if let Self::Here(hasher) = self {
            if written < LARGE {
                hasher.update(&piece);
                piece.clear();
                return piece;
            }
            match Beside::start(hasher) {
                Some(beside) => *self = Self::Beside(beside),
                // As good, only slower.
                None => {
                    hasher.update(&piece);
                    piece.clear();
                    return piece;
                }
            }
        }
        let Self::Beside(beside) = self else { return piece };
        // It ends only when it is told to: it takes all that is sent.
        let _ = beside.pieces.send(piece);
        beside.emptied.try_recv().unwrap_or_default()
    }

    /// The hash of all of it; none when the thread has panicked.
    pub(super) fn end(self) -> Option<[u8; 32]> {
        let hasher = match self {
            Self::Here(hasher) => *hasher,
            Self::Beside(Beside { pieces, thread, .. }) => {
                drop(pieces);
                thread.join().ok()?
            }
        };
        Some(*hasher.finalize().as_bytes())
    }
}

impl Beside {
    /// Goes on with what was hashed so far.
    fn start(hasher: &blake3::Hasher) -> Option<Self> {
        let mut hasher = hasher.clone();
        let (pieces, comes) = sync_channel::<Vec<u8>>(PIECES);
        let (back, emptied) = channel();
        let hash = move || {
            for mut piece in comes {
                hasher.update(&piece);
                piece.clear();
                // Whoever writes may have gone.
                let _ = back.send(piece);
            }
            hasher
        };
        let thread = std::thread::Builder::new().name("journal-hash".into()).spawn(hash).ok()?;
        Some(Self { pieces, emptied, thread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_hash_wherever_it_is_made() {
        let mut hashing = Hashing::new();
        let (mut whole, mut written) = (blake3::Hasher::new(), 0_u64);
        for n in 0..40_u8 {
            let piece = vec![n; 256 << 10];
            whole.update(&piece);
            let size = piece.len() as u64;
            let emptied = hashing.take(piece, written);
            assert!(emptied.is_empty());
            written += size;
        }
        assert!(matches!(hashing, Hashing::Beside(_)));
        assert_eq!(hashing.end(), Some(*whole.finalize().as_bytes()));
    }
}
