//! The digests of a layer that is being scanned, made beside the scan.
//!
//! Hashing, and compressing the windows, takes more than half as long as inflating. So a piece that is worth it has that
//! done on a thread of its own, in order, while the scan goes on; only a checkpoint waits for it, as it is kept together
//! with the state of the digests.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;

use crate::digest::{Digest, Hasher};
use crate::index::Mark;
use crate::stream::Checkpoint;

/// Pieces of output that may wait to be hashed: they are memory.
const QUEUE: usize = 8;

/// From so many compressed bytes on a piece is worth a thread.
const WORTH_A_THREAD: usize = 128 << 10;

/// The digests of a layer, as far as it was scanned.
#[derive(Debug, Clone)]
pub(super) struct Hashes {
    /// Of the blob.
    pub blob: Hasher,
    /// Of the decompressed stream.
    pub stream: Hasher,
    /// Of the compressed bytes of the span that is open.
    pub span: Hasher,
}

/// What there is to hash, in order.
pub(super) enum Job {
    /// Compressed bytes, of which the blob's digest has the first `known` already, and what became of them.
    Decoded {
        compressed: Bytes,
        known: usize,
        decompressed: Bytes,
    },
    /// The open span ends at `next`. The next begins with `shared`, the last byte of this one, if they share it.
    Close {
        next: Box<Checkpoint>,
        shared: Option<u8>,
        closed: Sender<Closed>,
    },
}

/// The digests where a span ends.
pub(super) struct Closed {
    /// Where that is.
    pub next: Mark,
    /// Of the span.
    pub span: [u8; 32],
    /// [`Hasher::save`] of the blob's.
    pub blob: Vec<u8>,
    /// [`Hasher::save`] of the stream's.
    pub stream: Vec<u8>,
}

impl Hashes {
    pub(super) fn new(blob: Hasher, stream: Hasher) -> Hashes {
        let span = span_hasher();
        Hashes { blob, stream, span }
    }

    /// The digest of the open span; the next begins.
    pub(super) fn close_span(&mut self) -> [u8; 32] {
        match std::mem::replace(&mut self.span, span_hasher()).finish() {
            Digest::Sha256(digest) => digest,
            // A span hasher is one of SHA-256.
            Digest::Sha512(_) => [0; 32],
        }
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Decoded {
                compressed,
                known,
                decompressed,
            } => {
                self.span.update(&compressed);
                self.blob.update(compressed.get(known..).unwrap_or_default());
                self.stream.update(&decompressed);
            }
            Job::Close { next, shared, closed } => {
                let next = Mark::new(&next);
                let span = self.close_span();
                if let Some(byte) = shared {
                    self.span.update(&[byte]);
                }
                let (blob, stream) = (self.blob.save(), self.stream.save());
                // Whoever no longer wants it has met an error.
                let _ = closed.send(Closed {
                    next,
                    span,
                    blob,
                    stream,
                });
            }
        }
    }
}

/// Who does the hashing of one piece.
pub(super) enum Hashing {
    Here(Box<Hashes>),
    Beside {
        jobs: SyncSender<Job>,
        thread: JoinHandle<Hashes>,
    },
}

impl Hashing {
    /// For a piece of `len` compressed bytes.
    pub(super) fn begin(hashes: Hashes, len: usize) -> Hashing {
        if len < WORTH_A_THREAD {
            return Hashing::Here(Box::new(hashes));
        }
        let (jobs, todo) = sync_channel(QUEUE);
        let mut own = hashes.clone();
        let work = move || {
            for job in todo {
                own.work(job);
            }
            own
        };
        // Where no thread is to be had it takes longer.
        match std::thread::Builder::new().name("hashing".into()).spawn(work) {
            Ok(thread) => Hashing::Beside { jobs, thread },
            Err(_) => Hashing::Here(Box::new(hashes)),
        }
    }

    /// Has `job` done, now or soon.
    pub(super) fn give(&mut self, job: Job) {
        match self {
            Hashing::Here(hashes) => hashes.work(job),
            // Its thread ends early only by a panic, which `end` passes on.
            Hashing::Beside { jobs, .. } => drop(jobs.send(job)),
        }
    }

    /// Ends the open span at `next`; what is given tells its digest when all before it is hashed.
    pub(super) fn close(&mut self, next: Checkpoint, shared: Option<u8>) -> Receiver<Closed> {
        let (closed, told) = channel();
        let next = Box::new(next);
        self.give(Job::Close { next, shared, closed });
        told
    }

    /// Waits for everything to be done.
    pub(super) fn end(self) -> Hashes {
        match self {
            Hashing::Here(hashes) => *hashes,
            Hashing::Beside { jobs, thread } => {
                drop(jobs);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
        }
    }
}

fn span_hasher() -> Hasher {
    Digest::Sha256([0; 32]).hasher()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_a_thread_all_digests_are_what_they_are_here() {
        let text: Vec<u8> = (0..300_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let text = Bytes::from(text);
        let told = [0, WORTH_A_THREAD].map(|len| {
            let new = || Digest::Sha256([0; 32]).hasher();
            let mut hashing = Hashing::begin(Hashes::new(new(), new()), len);
            assert_eq!(matches!(hashing, Hashing::Here(_)), len == 0);
            let mut closed = Vec::new();
            for piece in text.chunks(30_000) {
                hashing.give(Job::Decoded {
                    compressed: text.slice_ref(piece),
                    known: 7,
                    decompressed: text.slice_ref(piece),
                });
                let next = Checkpoint {
                    window: piece.into(),
                    ..Checkpoint::start()
                };
                let at = hashing.close(next, piece.last().copied()).recv().unwrap();
                closed.push((at.span, at.next, at.blob, at.stream));
            }
            let hashes = hashing.end();
            (closed, hashes.blob.finish(), hashes.stream.finish())
        });
        assert_eq!(told[0], told[1]);
        assert_eq!(told[0].2, Digest::sha256(&text));
        assert_eq!(told[0].0[0].0[..], *Digest::sha256(&text[..30_000]).as_bytes());
        assert_eq!(told[0].0[1].0[..], *Digest::sha256(&text[29_999..60_000]).as_bytes());
    }
}
