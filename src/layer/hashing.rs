//! The digests of a layer that is being scanned, made beside the scan.
//!
//! Hashing, and compressing the windows, takes more than half as long as inflating. So where the pieces are worth it that is
//! done on a thread of its own, in order, while the scan goes on; only a checkpoint waits for it, as it is kept together
//! with the state of the digests.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;

use crate::digest::Hasher;
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
    pub span: blake3::Hasher,
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
        let span = blake3::Hasher::new();
        Hashes { blob, stream, span }
    }

    /// The digest of the open span; the next begins.
    pub(super) fn close_span(&mut self) -> [u8; 32] {
        let digest = self.span.finalize();
        self.span.reset();
        digest.into()
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

/// Who does the hashing.
pub(super) struct Hashing {
    /// What there was when the thread began, if there is one.
    hashes: Hashes,
    beside: Option<Beside>,
}

struct Beside {
    /// None if the thread is to end when it has done what it was given.
    jobs: Option<SyncSender<Job>>,
    thread: JoinHandle<Hashes>,
}

impl Hashing {
    pub(super) fn new(hashes: Hashes) -> Hashing {
        Hashing { hashes, beside: None }
    }

    /// Before the jobs of a piece of `len` compressed bytes are given.
    pub(super) fn begin(&mut self, len: usize) {
        let ready = self.beside.as_ref().is_some_and(|beside| beside.jobs.is_some());
        if ready || len < WORTH_A_THREAD {
            return;
        }
        let mut own = self.all_done().clone();
        let (jobs, todo) = sync_channel(QUEUE);
        let work = move || {
            for job in todo {
                own.work(job);
            }
            own
        };
        // Where no thread is to be had it takes longer.
        if let Ok(thread) = std::thread::Builder::new().name("hashing".into()).spawn(work) {
            let jobs = Some(jobs);
            self.beside = Some(Beside { jobs, thread });
        }
    }

    /// Has `job` done, now or soon.
    pub(super) fn give(&mut self, job: Job) {
        match &self.beside {
            // Its thread ends early only by a panic, which `all_done` passes on.
            Some(Beside { jobs: Some(jobs), .. }) => drop(jobs.send(job)),
            _ => self.all_done().work(job),
        }
    }

    /// Ends the open span at `next`; what is given tells its digest when all before it is hashed.
    pub(super) fn close(&mut self, next: Checkpoint, shared: Option<u8>) -> Receiver<Closed> {
        let (closed, told) = channel();
        let next = Box::new(next);
        self.give(Job::Close { next, shared, closed });
        told
    }

    /// Keeps no thread for what may not come soon. Does not wait.
    pub(super) fn rest(&mut self) {
        if let Some(beside) = &mut self.beside {
            beside.jobs = None;
        }
    }

    /// Waits for everything to be done.
    pub(super) fn all_done(&mut self) -> &mut Hashes {
        if let Some(Beside { jobs, thread }) = self.beside.take() {
            drop(jobs);
            self.hashes = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        &mut self.hashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn beside_a_thread_all_digests_are_what_they_are_here() {
        let text: Vec<u8> = (0..300_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let text = Bytes::from(text);
        let told = [[0, 0], [WORTH_A_THREAD, 0], [0, WORTH_A_THREAD]].map(|lens| {
            let new = || Digest::Sha256([0; 32]).hasher();
            let mut hashing = Hashing::new(Hashes::new(new(), new()));
            let mut closed = Vec::new();
            for (number, piece) in text.chunks(30_000).enumerate() {
                hashing.begin(lens[number % 2]);
                if number == 1 {
                    assert_eq!(hashing.beside.is_some(), lens != [0, 0]);
                }
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
                if number == 2 {
                    hashing.rest();
                }
            }
            let hashes = hashing.all_done().clone();
            (closed, hashes.blob.finish(), hashes.stream.finish())
        });
        assert_eq!(told[0], told[1]);
        assert_eq!(told[0], told[2]);
        assert_eq!(told[0].2, Digest::sha256(&text));
        assert_eq!(blake3::hash(&text[..30_000]), told[0].0[0].0);
        assert_eq!(blake3::hash(&text[29_999..60_000]), told[0].0[1].0);
    }
}
