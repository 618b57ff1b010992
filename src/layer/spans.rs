//! Decoded spans: made once however many readers want them, a few kept in memory.
//!
//! A span is 1 MiB or little more, so it is decoded as a whole, and only if the digest of its compressed bytes is
//! the one in the index. A zstd frame, or a gzip stream of very compressible data, can be far longer. Such a *long span* is
//! decoded in pieces, and since any piece costs the decoding of all before it, the pieces are kept in the store.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;
use parking_lot::Mutex;

use super::{Layer, LayerError};
use crate::buffers;
use crate::index::Span;
use crate::range::ByteRange;
use crate::stream::{self, Compression, Decoder, Status, StreamError};

/// A span with more bytes than this, compressed or decompressed, is a long one.
pub(super) const LONG_SPAN: u64 = 4 << 20;

/// Decompressed bytes of a long span that are decoded, kept and evicted together.
pub(super) const PIECE: usize = 1 << 20;

/// Compressed bytes of a long span that are read at once.
const CHUNK: u64 = 1 << 20;

/// Some decompressed bytes of a layer.
#[derive(Debug, Clone)]
pub struct DecodedSpan {
    /// The layer's number.
    pub layer: usize,
    /// Offset of the first byte in the layer's decompressed stream.
    pub start: u64,
    /// The bytes.
    pub bytes: Bytes,
    /// Whether they were decoded just now, and nobody has had them yet.
    pub fresh: bool,
}

/// Which layer, by [`Layer::key`], and where in its stream.
type Key = (u64, u64);
type Decoding = Shared<BoxFuture<'static, Result<Bytes, Arc<LayerError>>>>;

/// The most recently used decoded spans of all layers that share it, up to a number of bytes.
#[derive(Debug)]
pub struct SpanCache {
    limit: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    spans: LruCache<Key, Bytes>,
    bytes: usize,
    decoding: HashMap<Key, Decoding>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("spans", &self.spans.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl SpanCache {
    /// A cache of at most `limit` bytes.
    pub fn new(limit: usize) -> SpanCache {
        let inner = Inner {
            spans: LruCache::unbounded(),
            bytes: 0,
            decoding: HashMap::new(),
        };
        SpanCache {
            limit,
            inner: Mutex::new(inner),
        }
    }

    /// The decoded bytes that begin at `start` of the stream of the layer with the key `layer`, if they are in memory.
    pub fn get(&self, layer: u64, start: u64) -> Option<Bytes> {
        self.inner.lock().spans.get(&(layer, start)).cloned()
    }

    /// Keeps decoded bytes, and lets go of the least recently used beyond the limit.
    pub fn insert(&self, layer: u64, start: u64, bytes: Bytes) {
        self.inner.lock().insert((layer, start), bytes, self.limit);
    }

    /// Drops all that is kept of a layer.
    pub fn forget(&self, layer: u64) {
        let mut inner = self.inner.lock();
        let keys: Vec<Key> = inner
            .spans
            .iter()
            .map(|(key, _)| *key)
            .filter(|key| key.0 == layer)
            .collect();
        for key in keys {
            if let Some(bytes) = inner.spans.pop(&key) {
                inner.bytes -= bytes.len();
            }
        }
    }

    /// The span at `key`, by `decode` if it is not in memory and nobody is decoding it already. The second value
    /// tells whether this call is the one that had it decoded. Once begun, decoding ends with
    /// [`SpanCache::decoded`], whether this future lives so long or not.
    async fn get_or_decode(
        &self,
        key: Key,
        decode: impl FnOnce() -> Decoding,
    ) -> (Result<Bytes, Arc<LayerError>>, bool) {
        let (decoding, fresh) = {
            let mut inner = self.inner.lock();
            if let Some(bytes) = inner.spans.get(&key) {
                return (Ok(bytes.clone()), false);
            }
            match inner.decoding.get(&key) {
                Some(decoding) => (decoding.clone(), false),
                None => {
                    let decoding = decode();
                    inner.decoding.insert(key, decoding.clone());
                    (decoding, true)
                }
            }
        };
        (decoding.await, fresh)
    }

    /// Ends the decoding of `key`, and keeps what came of it.
    fn decoded(&self, key: Key, bytes: Option<&Bytes>) {
        let mut inner = self.inner.lock();
        inner.decoding.remove(&key);
        if let Some(bytes) = bytes {
            inner.insert(key, bytes.clone(), self.limit);
        }
    }
}

#[cfg(test)]
impl SpanCache {
    /// Whether nothing is being decoded.
    pub(super) fn is_idle(&self) -> bool {
        self.inner.lock().decoding.is_empty()
    }

    /// How much is kept.
    pub(super) fn bytes(&self) -> usize {
        self.inner.lock().bytes
    }
}

impl Inner {
    fn insert(&mut self, key: Key, bytes: Bytes, limit: usize) {
        self.bytes += bytes.len();
        if let Some(old) = self.spans.put(key, bytes) {
            self.bytes -= old.len();
        }
        while self.bytes > limit {
            let Some((_, old)) = self.spans.pop_lru() else { break };
            self.bytes -= old.len();
        }
    }
}

/// A span, and which of the layer's it is.
#[derive(Debug, Clone)]
pub(super) struct SpanAt {
    pub number: usize,
    pub span: Span,
    pub compression: Compression,
}

impl SpanAt {
    /// Whether it is too long, packed or unpacked, to be handled as a whole.
    pub(super) fn is_long(&self) -> bool {
        is_long(self.span.compressed.len(), self.span.decompressed.len())
    }
}

/// Whether a span of so many bytes is a long one.
pub(super) fn is_long(compressed: u64, decompressed: u64) -> bool {
    compressed > LONG_SPAN || decompressed > LONG_SPAN
}

/// A decoder left in the middle of a long span, for a reader that goes on from there.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    latest: Option<Cursor>,
}

#[derive(Debug)]
struct Cursor {
    /// Compressed.
    span: ByteRange,
    decoder: Decoder,
    /// The next compressed byte that is to be read.
    position: u64,
    /// Read and checked, not yet decoded.
    input: Bytes,
    /// The decoder has given all that its input gives.
    hungry: bool,
    /// The piece that is being decoded, and what there is of it.
    piece: ByteRange,
    out: Vec<u8>,
    /// Where the span ends in the stream.
    end: u64,
    /// Digests of the span's chunks, from the pass in which the whole span was checked.
    chunks: Arc<[blake3::Hash]>,
}

impl Layer {
    /// The decoded bytes around `offset`: the whole span, or the piece of a long one. Begins at or before `offset`.
    pub(super) async fn decoded_at(self: &Arc<Self>, at: SpanAt, offset: u64) -> Result<DecodedSpan, Arc<LayerError>> {
        let long = at.is_long();
        let start = match long {
            true => {
                let into = offset - at.span.decompressed.start();
                at.span.decompressed.start() + into / PIECE as u64 * PIECE as u64
            }
            false => at.span.decompressed.start(),
        };
        let key = (self.key, start);
        let decode = || {
            let layer = self.clone();
            // On a task of its own: it ends, and is kept, even if the reader goes away.
            let decoding = tokio::spawn(async move {
                // A panic counts as an end, too.
                let work = AssertUnwindSafe(async {
                    match long {
                        true => layer.decode_piece(&at, start).await,
                        false => layer.decode_span(&at).await,
                    }
                });
                let result = work.catch_unwind().await.unwrap_or_else(|_| Err(layer.stopped()));
                layer.workshop.spans.decoded(key, result.as_ref().ok());
                result
            });
            let layer = self.clone();
            async move { decoding.await.unwrap_or_else(|_| Err(layer.stopped())) }
                .boxed()
                .shared()
        };
        let (result, fresh) = self.workshop.spans.get_or_decode(key, decode).await;
        result.map(|bytes| DecodedSpan {
            layer: self.number,
            start,
            bytes,
            fresh,
        })
    }

    async fn decode_span(self: &Arc<Self>, at: &SpanAt) -> Result<Bytes, Arc<LayerError>> {
        let checkpoint = Arc::new(self.checkpoint(at.number)?);
        for attempt in 0.. {
            let compressed = self
                .blob
                .read(at.span.compressed)
                .await
                .map_err(|cause| self.blob_error(cause))?;
            let Ok(_permit) = self.workshop.cpu.acquire().await else {
                break;
            };
            let (at, checkpoint) = (at.clone(), checkpoint.clone());
            let decoded = tokio::task::spawn_blocking(move || {
                if blake3::hash(&compressed) != at.span.digest {
                    return Ok(None);
                }
                let len = usize::try_from(at.span.decompressed.len()).unwrap_or(usize::MAX);
                stream::decode_span(at.compression, &checkpoint, &compressed, at.span.following, len).map(Some)
            });
            match decoded.await {
                Ok(Ok(Some(bytes))) => return Ok(bytes),
                Ok(Ok(None)) if attempt == 0 || self.blob.distrust() => self.mend(),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(self.damaged(super::unreadable(&error))),
                Err(_) => return Err(self.stopped()),
            }
        }
        Err(self.damaged("what the registry sends now is not what it sent when the layer was indexed"))
    }

    /// Drops what is kept of the blob, after bytes of it turned out not to be what was indexed.
    fn mend(&self) {
        tracing::warn!("layer {}: kept bytes are damaged, fetching them anew", self.number);
        self.blob.forget();
    }

    /// The piece of a long span that begins at `start`.
    async fn decode_piece(self: &Arc<Self>, at: &SpanAt, start: u64) -> Result<Bytes, Arc<LayerError>> {
        let end = (start + PIECE as u64).min(at.span.decompressed.end());
        let range = ByteRange::new(start, end);
        if let Some(bytes) = self.decoded.read(range).await {
            return Ok(bytes);
        }
        let mut cursors = self.long_spans.lock().await;
        // Whoever had the cursor may have come by here.
        if let Some(bytes) = self.decoded.read(range).await {
            return Ok(bytes);
        }
        let cursor = match cursors.latest.take() {
            Some(cursor) if cursor.span == at.span.compressed && cursor.piece.start() <= start => cursor,
            _ => self.new_cursor(at).await?,
        };
        let (cursor, piece) = self.decode_to(cursor, range).await?;
        cursors.latest = Some(cursor);
        Ok(piece)
    }

    /// Checks a long span's compressed bytes as a whole and starts to decode it.
    async fn new_cursor(self: &Arc<Self>, at: &SpanAt) -> Result<Cursor, Arc<LayerError>> {
        let span = at.span.compressed;
        let checkpoint = self.checkpoint(at.number)?;
        for attempt in 0.. {
            let mut whole = blake3::Hasher::new();
            let mut chunks = Vec::new();
            let mut position = span.start();
            while position < span.end() {
                let chunk = self.chunk(span, position).await?;
                whole.update(&chunk);
                chunks.push(blake3::hash(&chunk));
                position += chunk.len() as u64;
            }
            if whole.finalize() == at.span.digest {
                let decoder = Decoder::resume(at.compression, &checkpoint)
                    .map_err(|error| self.damaged(super::unreadable(&error)))?;
                let stream = at.span.decompressed;
                return Ok(Cursor {
                    span,
                    decoder,
                    position: span.start(),
                    input: Bytes::new(),
                    hungry: true,
                    piece: ByteRange::at(stream.start(), PIECE as u64).intersection(&stream),
                    out: Vec::new(),
                    end: stream.end(),
                    chunks: chunks.into(),
                });
            }
            if attempt > 0 && !self.blob.distrust() {
                break;
            }
            self.mend();
        }
        Err(self.damaged("what the registry sends now is not what it sent when the layer was indexed"))
    }

    /// The chunk of `span` that begins at `position`; the next ones are asked for ahead.
    async fn chunk(self: &Arc<Self>, span: ByteRange, position: u64) -> Result<Bytes, Arc<LayerError>> {
        let chunk = ByteRange::at(position, CHUNK).intersection(&span);
        self.blob
            .prefetch(ByteRange::at(chunk.end(), 8 * CHUNK).intersection(&span));
        self.blob.read(chunk).await.map_err(|cause| self.blob_error(cause))
    }

    /// Decodes up to the end of `wanted`, a piece, and keeps every piece on the way.
    async fn decode_to(
        self: &Arc<Self>,
        mut cursor: Cursor,
        wanted: ByteRange,
    ) -> Result<(Cursor, Bytes), Arc<LayerError>> {
        loop {
            if let Some((start, piece)) = cursor.take_piece() {
                self.decoded.write(start, piece.clone()).await;
                if start == wanted.start() {
                    return Ok((cursor, piece));
                }
                continue;
            }
            if cursor.hungry {
                if cursor.position >= cursor.span.end() {
                    return Err(self.damaged("a span ends before its indexed length"));
                }
                let chunk = self.chunk(cursor.span, cursor.position).await?;
                cursor.next_chunk(chunk).map_err(|reason| self.damaged(reason))?;
            }
            let Ok(permit) = self.workshop.cpu.clone().acquire_owned().await else {
                return Err(self.stopped());
            };
            let step = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let result = cursor.decode();
                (cursor, result)
            });
            let (next, result) = step.await.map_err(|_| self.stopped())?;
            cursor = next;
            result.map_err(|error| self.damaged(super::unreadable(&error)))?;
        }
    }
}

impl Cursor {
    /// Takes the next chunk of the span, if it is the one that was there when the span was checked.
    fn next_chunk(&mut self, chunk: Bytes) -> Result<(), &'static str> {
        let index = usize::try_from((self.position - self.span.start()) / CHUNK).unwrap_or(usize::MAX);
        if self.chunks.get(index) != Some(&blake3::hash(&chunk)) {
            return Err("its bytes changed while they were read");
        }
        self.position += chunk.len() as u64;
        self.input = chunk;
        self.hungry = false;
        Ok(())
    }

    /// Decodes until the piece is whole or all input is used up.
    fn decode(&mut self) -> Result<(), StreamError> {
        while !self.hungry && self.missing() > 0 {
            let room = self.missing();
            let decoded = self.decoder.decode(&self.input, &mut self.out, room, false)?;
            self.input.advance(decoded.consumed.min(self.input.len()));
            self.hungry = decoded.status == Status::NeedsInput;
        }
        Ok(())
    }

    /// Bytes that the piece lacks.
    fn missing(&self) -> usize {
        usize::try_from(self.piece.len())
            .unwrap_or(0)
            .saturating_sub(self.out.len())
    }

    /// The piece and its place in the stream, if it is whole; the next one is begun.
    fn take_piece(&mut self) -> Option<(u64, Bytes)> {
        if self.missing() > 0 || self.piece.is_empty() {
            return None;
        }
        let next = ByteRange::new(self.piece.end(), self.end);
        let piece = std::mem::replace(
            &mut self.piece,
            ByteRange::at(next.start(), PIECE as u64).intersection(&next),
        );
        Some((piece.start(), buffers::freeze(std::mem::take(&mut self.out))))
    }
}
