//! The layer's stream cut into spans: checkpoints, the digest of what lies between them, and their windows.
//!
//! Windows are kept zstd-compressed, in memory and on disk: a third of their size.

use parking_lot::Mutex;
use zstd::bulk::Compressor;

use crate::range::ByteRange;
use crate::stream::Checkpoint;

use super::IndexError;

/// Largest window there can be: what deflate can refer back to.
const MAX_WINDOW: usize = 32 << 10;
const ZSTD_LEVEL: i32 = 2;

/// A piece of the stream that can be decompressed by itself: from one checkpoint to the next, or to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The bytes of the blob that it takes to decompress it.
    pub compressed: ByteRange,
    /// How many of the upper bits of the last of them belong to the next span: 0 to 7, as it is read together with the first
    /// ones of that.
    pub following: u8,
    /// The bytes of the stream that come out.
    pub decompressed: ByteRange,
    /// BLAKE3 of the compressed bytes: nobody else has to know it, and every read makes it, so it is a fast one.
    pub digest: [u8; 32],
}

/// A checkpoint as it is kept, with the digest of the span that it begins once that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub(super) compressed: u64,
    pub(super) bits: u8,
    pub(super) decompressed: u64,
    /// The window as [`pack`] made it.
    pub(super) window: Box<[u8]>,
    /// BLAKE3 of the compressed bytes up to the next checkpoint.
    pub(super) digest: Option<[u8; 32]>,
}

impl Mark {
    /// Compresses the window of `at`, which takes a while.
    pub fn new(at: &Checkpoint) -> Mark {
        Mark {
            compressed: at.compressed,
            bits: at.bits,
            decompressed: at.decompressed,
            window: pack(&at.window),
            digest: None,
        }
    }

    pub(super) fn checkpoint(&self) -> Option<Checkpoint> {
        Some(Checkpoint {
            compressed: self.compressed,
            bits: self.bits,
            decompressed: self.decompressed,
            window: unpack(&self.window)?,
        })
    }

    pub(super) fn read_from(&self) -> u64 {
        self.compressed.saturating_sub(u64::from(self.bits != 0))
    }
}

/// A window as it is kept: nothing for none, else a byte that says how, and the bytes.
fn pack(window: &[u8]) -> Box<[u8]> {
    if window.is_empty() {
        return Box::default();
    }
    // Its tables are some 500 KiB, which to get and to clear takes as long as to use them.
    static IDLE: Mutex<Option<Compressor<'static>>> = Mutex::new(None);
    let idle = IDLE.lock().take();
    let compressor = idle.map_or_else(|| Compressor::new(ZSTD_LEVEL), Ok);
    let packed = compressor.and_then(|mut compressor| {
        let packed = compressor.compress(window);
        *IDLE.lock() = Some(compressor);
        packed
    });
    let packed = match packed {
        Ok(packed) if packed.len() < window.len() => [&[1], packed.as_slice()].concat(),
        _ => [&[0], window].concat(),
    };
    packed.into_boxed_slice()
}

/// The window that [`pack`] was given; `None` if it was not.
pub(super) fn unpack(packed: &[u8]) -> Option<Box<[u8]>> {
    match packed.split_first() {
        None => Some(Box::default()),
        Some((0, window)) if window.len() <= MAX_WINDOW => Some(window.into()),
        Some((1, packed)) => zstd::bulk::decompress(packed, MAX_WINDOW)
            .ok()
            .map(Vec::into_boxed_slice),
        Some(_) => None,
    }
}

/// The checkpoints of a layer that is being scanned; the first is the beginning of the stream.
pub(super) struct Marks(Vec<Mark>);

impl Marks {
    pub fn new() -> Marks {
        Marks(vec![Mark::new(&Checkpoint {
            compressed: 0,
            bits: 0,
            decompressed: 0,
            window: Box::default(),
        })])
    }

    /// Ends the last span, whose compressed bytes have `digest`, and begins the next.
    pub fn push(&mut self, digest: [u8; 32], next: Mark) -> Result<(), IndexError> {
        let in_order = |last: &Mark| last.compressed < next.compressed && last.decompressed <= next.decompressed;
        let decompressed = next.decompressed;
        match self.0.last_mut() {
            Some(last) if in_order(last) => last.digest = Some(digest),
            _ => return Err(IndexError::Checkpoint { decompressed }),
        }
        self.0.push(next);
        Ok(())
    }

    /// Drops the marks behind the first `len`, which are at least one.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len.max(1));
        if let Some(last) = self.0.last_mut() {
            last.digest = None;
        }
    }

    pub fn all(&self) -> &[Mark] {
        &self.0
    }

    pub fn span(&self, i: usize) -> Option<Span> {
        let (this, next) = (self.0.get(i)?, self.0.get(i.checked_add(1)?)?);
        Some(Span {
            compressed: ByteRange::new(this.read_from(), next.compressed),
            following: next.bits,
            decompressed: ByteRange::new(this.decompressed, next.decompressed),
            digest: this.digest?,
        })
    }

    /// The closed span that has the byte at `offset` of the stream.
    pub fn span_at(&self, offset: u64) -> Option<usize> {
        let i = self
            .0
            .partition_point(|mark| mark.decompressed <= offset)
            .checked_sub(1)?;
        (i + 1 < self.0.len()).then_some(i)
    }
}
