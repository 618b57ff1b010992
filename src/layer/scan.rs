//! Reading a layer from front to back: decompress, parse the tar, index, hash.
//!
//! A scan runs as a task while there are questions and rests on the desk otherwise. It can be taken up again by
//! another process: every checkpoint is logged together with what has been indexed and hashed up to there.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::hashing::{Closed, Hashes, Hashing, Job};
use super::question::Want;
use super::spans::{LONG_SPAN, PIECE, is_long};
use super::{Growing, Layer, LayerEvent, State, UnreadableStream, index_path, open_index, partial_path};
use crate::blob::Sequential;
use crate::buffers;
use crate::digest::{Digest, Hasher};
use crate::index::{Entries as _, LayerFacts, LayerIndex, PartialLog, ScanState, Start, TarScanner};
use crate::stream::{Compression, Decoder, Status};

/// Distance of checkpoints in the decompressed stream. 1 MiB costs 3 to 7 % over plain inflate and an index of 3 % of
/// the compressed size; whoever reads anything then inflates 1 MiB, 1.2 ms.
const SPAN: u64 = 1 << 20;

/// How much is decompressed before it is parsed and the questions are put again.
const ROOM: usize = 128 << 10;

/// Room for the bytes of a span: it ends with the first block that does behind its distance.
const TAIL: usize = SPAN as usize + ROOM;

/// Bytes that tell the compression.
const MAGIC: usize = 8;

/// Everything a scan needs to go on.
pub(super) struct Scan {
    input: Sequential,
    /// What of it has been read ahead.
    ahead: Option<Bytes>,
    work: Box<Work>,
}

/// The part of it that works on what was read.
struct Work {
    /// Fetched, not yet decompressed.
    piece: Bytes,
    /// Offset in the blob of the first byte of `piece`.
    position: u64,
    /// None until the first bytes have told the compression.
    decoder: Option<(Compression, Decoder)>,
    scanner: TarScanner,
    /// Of the blob up to `hashed`, and of what became of it.
    hashing: Hashing,
    hashed: u64,
    last_byte: u8,
    last_checkpoint: u64,
    log: PartialLog,
}

/// A span that has ended, while its digest is being made.
struct Closing {
    compression: Compression,
    /// Where, in the blob and in the stream.
    at: (u64, u64),
    digests: Receiver<Closed>,
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a scan at {}", self.work.position)
    }
}

impl Scan {
    /// Lets go of what it only needs while it runs.
    pub(super) fn rest(&mut self) {
        self.work.hashing.rest();
    }
}

impl Layer {
    /// Takes up what an earlier process left of a scan, if it left anything, without scanning on.
    pub async fn take_up(self: &Arc<Self>) {
        let left = self
            .index_dir
            .as_deref()
            .is_some_and(|dir| partial_path(dir, &self.descriptor.digest).exists());
        if left && self.index().is_none() && self.begin_running() {
            self.clone().run_scan(None).await;
        }
    }

    /// Goes on with `scan`, or begins one, until no question is left or the layer is complete.
    pub(super) async fn run_scan(self: Arc<Self>, scan: Option<Scan>) {
        let mut scan = match scan {
            Some(scan) => scan,
            None => match self.begin().await {
                Some(scan) => scan,
                None => return,
            },
        };
        loop {
            let (next, want) = match scan.input.position() >= self.descriptor.size {
                // All of it is here: to complete it costs nothing more.
                true => (scan, Want::Little),
                false => match self.demand(scan) {
                    Some(wanted) => wanted,
                    None => return,
                },
            };
            let Scan {
                mut input,
                ahead,
                mut work,
            } = next;
            let economical = want == Want::Little;
            let piece = match ahead {
                Some(piece) => Some(piece),
                None => match input.next(economical).await {
                    Ok(piece) => piece,
                    Err(cause) => {
                        let ahead = None;
                        return self.give_up(Some(Scan { input, ahead, work }), &self.blob_error(cause));
                    }
                },
            };
            // Only this permit bounds how many cores inflate at once.
            let permit = match self.workshop.cpu.clone().try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => {
                    work.hashing.rest();
                    // The semaphore is never closed.
                    let Ok(permit) = self.workshop.cpu.clone().acquire_owned().await else {
                        return;
                    };
                    permit
                }
            };
            let layer = self.clone();
            let mut step = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let done = match piece {
                    Some(piece) => work.take_in(&layer, piece).map(|()| false),
                    None => work.complete(&layer).map(|()| true),
                };
                (work, done)
            });
            let mut ahead = None;
            let done = tokio::select! {
                biased;
                done = &mut step => done,
                // An error is met again when the piece is needed.
                piece = input.next(false), if !economical => {
                    ahead = piece.ok().flatten();
                    step.await
                }
            };
            match done {
                Ok((mut work, Ok(false))) => {
                    if ahead.is_none() {
                        work.hashing.rest();
                    }
                    scan = Scan { input, ahead, work };
                }
                Ok((_, Ok(true))) => {
                    self.finish();
                    return self.workshop.tell(LayerEvent::Complete(self.number));
                }
                Ok((failed, Err(UnreadableStream(reason)))) => match self.begin_again(failed, &reason).await {
                    Some(fresh) => scan = fresh,
                    None => return,
                },
                Err(_) => return self.give_up(None, &self.stopped()),
            }
        }
    }

    /// Takes up what an earlier process left, or starts at the front. None if there turns out to be nothing to do.
    async fn begin(self: &Arc<Self>) -> Option<Scan> {
        let layer = self.clone();
        match tokio::task::spawn_blocking(move || layer.begin_blocking()).await {
            Ok(Some(scan)) => {
                self.answer();
                Some(scan)
            }
            Ok(None) => {
                self.finish();
                None
            }
            Err(_) => {
                self.give_up(None, &self.stopped());
                None
            }
        }
    }

    fn begin_blocking(self: &Arc<Self>) -> Option<Scan> {
        let digest = self.descriptor.digest;
        // Another daemon may have finished it since this one looked.
        if let Some(index) = self.index_dir.as_deref().and_then(|dir| open_index(dir, &digest)) {
            *self.state.write() = State::Complete(Arc::new(index));
            self.workshop.tell(LayerEvent::Complete(self.number));
            return None;
        }
        let (log, start) = match &self.index_dir {
            Some(dir) => PartialLog::create_or_resume(&partial_path(dir, &digest), &digest),
            None => (PartialLog::none(), Start::fresh()),
        };
        let at = start.checkpoint.clone();
        let (taken_up, start) = match TakenUp::from(&start) {
            Some(taken_up) => (Some(taken_up), start),
            // At the beginning, or there is something in the log that cannot be used: begin at the front.
            None if start.state.is_some() => (None, Start::fresh()),
            None => (None, start),
        };
        let mut input = self.blob.sequential(0);
        let mut work = Box::new(Work {
            piece: Bytes::new(),
            position: 0,
            decoder: None,
            scanner: start.scanner,
            hashing: Hashing::new(Hashes::new(
                digest.hasher(),
                self.descriptor.diff_id.unwrap_or(digest).hasher(),
            )),
            hashed: 0,
            last_byte: 0,
            last_checkpoint: 0,
            log,
        });
        let mut growing = Growing {
            index: start.index,
            ..Growing::default()
        };
        if let Some(taken_up) = taken_up {
            let megabytes = at.compressed as f64 / 1e6;
            tracing::info!(
                "layer {}: going on with an earlier scan at {megabytes:.1} MB",
                self.number
            );
            input = self.blob.sequential(at.read_from());
            work.position = at.read_from();
            work.hashing = Hashing::new(taken_up.hashes);
            work.hashed = at.compressed;
            work.last_checkpoint = at.decompressed;
            growing.compression = Some(taken_up.compression);
            growing.compressed = at.read_from();
            growing.tail_start = at.decompressed;
            work.decoder = Some((taken_up.compression, taken_up.decoder));
        }
        *self.state.write() = State::Growing(Box::new(growing));
        let ahead = None;
        Some(Scan { input, ahead, work })
    }

    /// After a scan met bytes that are not the layer's: one that has them from another host, if there is one and nothing
    /// of the layer has been shown to anybody. What was shown cannot be taken back, and then the layer has failed.
    async fn begin_again(self: &Arc<Self>, work: Box<Work>, reason: &str) -> Option<Scan> {
        let shown = match &*self.state.read() {
            // An implied root is all there is at first.
            State::Growing(growing) => !self.workshop.verify_first && growing.index.len() > 1,
            State::Complete(_) | State::Failed(_) => true,
        };
        if !self.blob.distrust() || shown {
            self.fail(work, reason).await;
            return None;
        }
        tracing::warn!("layer {}: {reason}; it is fetched anew from another host", self.number);
        self.drop_all(work).await;
        self.begin().await
    }

    /// Drops everything that came of the layer's bytes.
    async fn drop_all(&self, work: Box<Work>) {
        self.workshop.spans.forget(self.key);
        let _ = tokio::task::spawn_blocking(move || work.log.remove()).await;
        self.blob.forget();
        self.decoded.forget();
    }

    /// Marks the layer as corrupt and drops everything that came of its bytes.
    async fn fail(self: &Arc<Self>, work: Box<Work>, reason: &str) {
        let error = self.corrupt(reason);
        tracing::error!("{error}");
        *self.state.write() = State::Failed(error.clone());
        self.drop_all(work).await;
        self.give_up(None, &error);
        self.workshop.tell(LayerEvent::Failed(self.number));
    }
}

impl Work {
    /// Decompresses, parses and hashes `piece`, the next of the blob.
    fn take_in(&mut self, layer: &Layer, piece: Bytes) -> Result<(), UnreadableStream> {
        self.piece = match self.piece.is_empty() {
            true => piece,
            // Only the first few bytes of a blob are ever left over, too few to tell the compression.
            false => [&self.piece[..], &piece[..]].concat().into(),
        };
        if self.decoder.is_none() {
            if self.piece.len() < MAGIC && self.position + (self.piece.len() as u64) < layer.descriptor.size {
                return Ok(());
            }
            self.open_stream(layer)?;
        }
        self.drain(layer)
    }

    /// Finds out what the blob is compressed with: its bytes tell, whatever the media type says.
    fn open_stream(&mut self, layer: &Layer) -> Result<(), UnreadableStream> {
        let compression = Compression::detect(&self.piece);
        let media_type = &layer.descriptor.media_type;
        let promised = match media_type {
            media_type if media_type.ends_with("gzip") => Compression::Gzip,
            media_type if media_type.ends_with("zstd") => Compression::Zstd,
            _ => Compression::None,
        };
        if media_type.ends_with("+encrypted") {
            return Err(UnreadableStream("it is encrypted, which peelfs cannot read".into()));
        }
        if compression != promised {
            tracing::info!("layer {} is called {media_type}, but is {compression}", layer.number);
        }
        let decoder = Decoder::new(compression).map_err(|error| UnreadableStream::from(&error))?;
        if let State::Growing(growing) = &mut *layer.state.write() {
            growing.compression = Some(compression);
        }
        self.decoder = Some((compression, decoder));
        Ok(())
    }

    /// Decompresses all of `piece`.
    fn drain(&mut self, layer: &Layer) -> Result<(), UnreadableStream> {
        self.hashing.begin(self.piece.len());
        let mut closing: Option<Closing> = None;
        while let Some((compression, decoder)) = &mut self.decoder {
            // Up to where a checkpoint is due inflate runs freely; only then is it asked to stop at block boundaries.
            let last_checkpoint = closing.as_ref().map_or(self.last_checkpoint, |closing| closing.at.1);
            let left = (last_checkpoint + SPAN).saturating_sub(decoder.decompressed());
            let room = if left == 0 {
                ROOM
            } else {
                ROOM.min(usize::try_from(left).unwrap_or(ROOM))
            };
            let mut out = buffers::empty(ROOM).unwrap_or_default();
            let decoded = decoder
                .decode(&self.piece, &mut out, room, left == 0)
                .map_err(|error| UnreadableStream::from(&error))?;
            let checkpoint = match decoded.status {
                Status::Boundary => decoder.checkpoint().map(|at| (*compression, at)),
                _ => None,
            };
            let idle = decoded.consumed == 0 && out.is_empty() && checkpoint.is_none();
            // By now the digest of the span that ended is there, too.
            if let Some(closing) = closing.take() {
                self.close_span(layer, closing)?;
            }
            let (compressed, known) = self.consume(decoded.consumed);
            let scanned = &layer.workshop.scanned;
            scanned.fetch_add(decoded.consumed as u64, Ordering::Relaxed);
            let out = buffers::freeze(out);
            self.hashing.give(Job::Decoded {
                compressed,
                known,
                decompressed: out.clone(),
            });
            self.index_output(layer, &out)?;
            if let Some((compression, at)) = checkpoint {
                let shared = (at.bits != 0).then_some(self.last_byte);
                closing = Some(Closing {
                    compression,
                    at: (at.compressed, at.decompressed),
                    digests: self.hashing.close(at, shared),
                });
            }
            layer.answer();
            match decoded.status {
                Status::NeedsInput if self.piece.is_empty() || idle => break,
                _ => {}
            }
        }
        match closing {
            Some(closing) => self.close_span(layer, closing),
            None => Ok(()),
        }
    }

    /// The next `len` bytes of `piece`, of which it lets go, and how many of them the blob's digest has already.
    fn consume(&mut self, len: usize) -> (Bytes, usize) {
        let bytes = self.piece.split_to(len.min(self.piece.len()));
        self.last_byte = bytes.last().copied().unwrap_or(self.last_byte);
        // A resumed scan reads the byte that its checkpoint lies in once more.
        let known = usize::try_from(self.hashed.saturating_sub(self.position)).unwrap_or(usize::MAX);
        self.position += bytes.len() as u64;
        self.hashed = self.hashed.max(self.position);
        (bytes, known)
    }

    /// Parses what has just been decompressed.
    fn index_output(&mut self, layer: &Layer, out: &[u8]) -> Result<(), UnreadableStream> {
        let mut state = layer.state.write();
        let State::Growing(growing) = &mut *state else {
            return Ok(());
        };
        growing.compressed = self.position;
        self.scanner
            .feed(out, &mut growing.index)
            .map_err(|error| UnreadableStream::from(&error))?;
        if growing.tail.capacity() == 0 {
            growing.tail = buffers::empty(TAIL.max(out.len())).unwrap_or_default();
        }
        growing.tail.extend_from_slice(out);
        let long = growing.tail_start > self.last_checkpoint || growing.tail.len() as u64 > LONG_SPAN;
        let pieces = if long { whole_pieces(growing) } else { Vec::new() };
        let warnings = growing.index.drain_warnings();
        let changes = growing.index.drain_changes();
        drop(state);
        for (offset, bytes) in pieces {
            // They are in the store before they leave the tail, so that a reader always finds them.
            let len = bytes.len();
            keep_decoded(layer, offset, bytes);
            if let State::Growing(growing) = &mut *layer.state.write() {
                growing.tail.drain(..len);
                growing.tail_start += len as u64;
            }
        }
        for warning in warnings {
            tracing::warn!("layer {}: {warning}", layer.number);
        }
        if !changes.is_empty() {
            layer.workshop.tell(LayerEvent::Changed(layer.number, &changes));
        }
        Ok(())
    }

    /// Keeps the span that has ended in memory as the latest decoded, and logs how far the scan is.
    fn close_span(&mut self, layer: &Layer, closing: Closing) -> Result<(), UnreadableStream> {
        let Closing {
            compression,
            at,
            digests,
        } = closing;
        let closed = digests.recv();
        let closed = closed.map_err(|_| UnreadableStream("its digests could not be made".to_owned()))?;
        let state = ScanState {
            blob: closed.blob,
            diff_id: closed.stream,
            other: vec![compression as u8],
        };
        let (log, next_group) = (&mut self.log, self.scanner.next_group());
        let (compressed, decompressed) = at;
        shelve(layer, compressed, decompressed, |growing| {
            growing
                .index
                .add_mark(closed.span, closed.next)
                .map_err(|error| UnreadableStream::from(&error))?;
            log.append(&mut growing.index, next_group, &state);
            Ok(())
        })?;
        self.last_checkpoint = decompressed;
        Ok(())
    }

    /// Checks the whole layer against its digests and makes its index permanent.
    fn complete(&mut self, layer: &Layer) -> Result<(), UnreadableStream> {
        if self.decoder.is_none() {
            self.open_stream(layer)?;
            self.drain(layer)?;
        }
        let Some((compression, decoder)) = &self.decoder else {
            return Ok(());
        };
        decoder.finish().map_err(|error| UnreadableStream::from(&error))?;
        self.scanner.finish().map_err(|error| UnreadableStream::from(&error))?;
        let (compression, end) = (*compression, decoder.decompressed());

        let hashes = self.hashing.all_done();
        let digest = hashes.blob.clone().finish();
        if digest != layer.descriptor.digest {
            return Err(UnreadableStream(format!("its bytes have the digest {digest}")));
        }
        let diff_id = hashes.stream.clone().finish();
        if let Some(reason) = super::wrong_diff_id(&layer.descriptor, &diff_id) {
            return Err(UnreadableStream(reason));
        }
        let last_span = hashes.close_span();
        let size = layer.descriptor.size;
        shelve(layer, size, end, |_| Ok(()))?;
        let facts = LayerFacts {
            digest,
            diff_id,
            compression,
            compressed_size: size,
            decompressed_size: end,
        };
        let bytes = match &*layer.state.read() {
            State::Growing(growing) => growing.index.finish(&facts, last_span),
            _ => return Ok(()),
        };
        let kept = layer
            .index_dir
            .as_deref()
            .and_then(|dir| keep_index(dir, &digest, &bytes));
        let index = match kept {
            Some(index) => index,
            None => LayerIndex::from_bytes(bytes).map_err(|error| UnreadableStream::from(&error))?,
        };
        *layer.state.write() = State::Complete(Arc::new(index));
        std::mem::replace(&mut self.log, PartialLog::none()).remove();
        tracing::debug!("layer {}: complete, {} bytes of tar", layer.number, end);
        Ok(())
    }
}

/// Moves the tail, with which the open span ends at `end` of the stream and `compressed` of the blob, to the decoded
/// spans, in one step with what `close` does.
fn shelve(
    layer: &Layer,
    compressed: u64,
    end: u64,
    close: impl FnOnce(&mut Growing) -> Result<(), UnreadableStream>,
) -> Result<(), UnreadableStream> {
    let (start, long_rest) = match &*layer.state.read() {
        State::Growing(growing) => {
            let (packed_start, start) = growing.index.open_span();
            let long = is_long(compressed.saturating_sub(packed_start), end.saturating_sub(start));
            let rest = long.then(|| (growing.tail_start, growing.tail.clone()));
            (start, rest)
        }
        _ => return Ok(()),
    };
    let long = long_rest.is_some();
    if let Some((offset, rest)) = long_rest {
        // In the store before the span is closed: whoever finds it closed decodes what is not there.
        keep_decoded(layer, offset, rest);
    }
    let mut state = layer.state.write();
    let State::Growing(growing) = &mut *state else {
        return Ok(());
    };
    let mut tail = std::mem::take(&mut growing.tail);
    if tail.len() < TAIL / 2 {
        // What is kept is counted by its length.
        tail.shrink_to_fit();
    }
    growing.tail_start = end;
    if !long {
        layer.workshop.spans.insert(layer.key, start, buffers::freeze(tail));
    }
    close(growing)
}

/// Keeps some of a long span's bytes in the store, for readers who come later. Called from a thread that may block.
fn keep_decoded(layer: &Layer, offset: u64, bytes: Vec<u8>) {
    if !bytes.is_empty() {
        tokio::runtime::Handle::current().block_on(layer.decoded.write(offset, bytes.into()));
    }
}

/// What an earlier process left of its scan, ready to be gone on with.
struct TakenUp {
    compression: Compression,
    decoder: Decoder,
    hashes: Hashes,
}

impl TakenUp {
    fn from(start: &Start) -> Option<TakenUp> {
        let state = start.state.as_ref()?;
        let compression = [Compression::None, Compression::Gzip, Compression::Zstd]
            .into_iter()
            .find(|compression| state.other == [*compression as u8])?;
        Some(TakenUp {
            compression,
            decoder: Decoder::resume(compression, &start.checkpoint).ok()?,
            hashes: Hashes::new(Hasher::restore(&state.blob)?, Hasher::restore(&state.diff_id)?),
        })
    }
}

/// The whole pieces in the tail of a long span, and where they begin, which tells the store's key.
fn whole_pieces(growing: &Growing) -> Vec<(u64, Vec<u8>)> {
    let pieces = growing
        .tail
        .chunks_exact(PIECE)
        .zip((growing.tail_start..).step_by(PIECE));
    pieces.map(|(piece, offset)| (offset, piece.to_vec())).collect()
}

/// Writes a complete index by rename and maps it. None, and a warning, if that fails: the index then stays in memory.
fn keep_index(dir: &Path, digest: &Digest, bytes: &[u8]) -> Option<LayerIndex> {
    let path = index_path(dir, digest);
    // Two layers of an image may be one and the same, and processes in different containers have the same number.
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let nonce = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let temporary = path.with_extension(format!("{}-{nonce}-{now:x}.tmp", std::process::id()));
    let written = write_new(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, &path));
    if let Err(error) = written {
        tracing::warn!("cannot keep the index {}: {error}; it stays in memory", path.display());
        let _ = std::fs::remove_file(&temporary);
        return None;
    }
    open_index(dir, digest)
}

/// Writes a file that was not there.
fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}
