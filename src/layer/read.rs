//! Reading a file's bytes out of a layer.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;

use super::question::Want;
use super::spans::SpanAt;
use super::{DecodedSpan, GrowingView, Layer, LayerError, LayerEvent, View};
use crate::buffers::join;
use crate::index::EntryId;
use crate::range::ByteRange;

/// Files whose readers are remembered, to recognise the sequential ones.
const READERS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Files in a row after which somebody walks through the layer.
const WALK: u32 = 3;

/// What a walk may leave out, in bytes of the stream: what is no file, and files that somebody has read before.
const STRIDE: u64 = 1 << 20;

/// What is decoded ahead of a sequential reader at first, in bytes of the stream.
const FIRST_WINDOW: u64 = 2 << 20;

/// The largest such window. Compressed it is some 3 MB: over 20 ms that is 150 MB/s.
const LAST_WINDOW: u64 = 8 << 20;

/// A file's bytes, and the spans that they are from.
#[derive(Debug)]
pub struct Content {
    /// What was asked for; shorter only where the file ends.
    pub bytes: Bytes,
    /// The closed spans that have them.
    pub spans: Vec<DecodedSpan>,
}

/// Who reads sequentially, and how far ahead of him it was decoded.
#[derive(Debug)]
pub(super) struct Readahead {
    readers: LruCache<EntryId, Reader>,
    /// Whoever reads one file after the other, in the order of the tar: `tar c`, `cp -r`, `grep -r`.
    walker: Reader,
}

#[derive(Debug)]
struct Reader {
    /// Where in the stream the last read ended.
    end: u64,
    /// Reads in a row.
    run: u32,
    /// Up to where the stream was decoded ahead.
    ahead: u64,
    window: u64,
}

impl Default for Readahead {
    fn default() -> Self {
        Readahead {
            readers: LruCache::new(READERS),
            walker: Reader::at(0),
        }
    }
}

impl Readahead {
    /// Notes a read of `range` of the stream, which belongs to the file that is at `file` of it. Gives what should be
    /// decoded ahead now, of the file and of what follows it; empty if the reader is not sequential or enough is there.
    fn note(&mut self, id: EntryId, range: ByteRange, file: ByteRange) -> [ByteRange; 2] {
        let nothing = ByteRange::at(range.end(), 0);
        let of_file = match self.readers.get_mut(&id) {
            Some(reader) => reader.advance(range, 1, 0, file.end()),
            None => {
                self.readers.put(id, Reader::at(range.end()));
                nothing
            }
        };
        let of_walk = match range.start() == file.start() {
            true => self.walker.advance(range, WALK, STRIDE, u64::MAX),
            false => nothing,
        };
        if range.end() == file.end() {
            self.walker.skip_to_end_of(file, STRIDE);
        }
        [of_file, of_walk]
    }
}

impl Reader {
    fn at(end: u64) -> Reader {
        Reader {
            end,
            run: 0,
            ahead: end,
            window: 0,
        }
    }

    /// Goes on to a read of `range`, which is sequential if it leaves out no more than `stride`. After `run` of these, gives
    /// what should be decoded ahead, up to `limit`.
    fn advance(&mut self, range: ByteRange, run: u32, stride: u64, limit: u64) -> ByteRange {
        let nothing = ByteRange::at(range.end(), 0);
        if range.start() < self.end || range.start() > self.farthest(stride) {
            *self = Reader::at(range.end());
            return nothing;
        }
        self.end = range.end();
        self.run = self.run.saturating_add(1);
        if self.run < run {
            return nothing;
        }
        // A new round only when half of the last is used up, so that rounds are large.
        let start = self.ahead.max(range.end());
        if start - range.end() > self.window / 2 {
            return nothing;
        }
        let window = (self.window * 2).clamp(FIRST_WINDOW, LAST_WINDOW);
        let end = range.end().saturating_add(window).min(limit);
        if end <= start {
            return nothing;
        }
        self.window = window;
        self.ahead = end;
        ByteRange::new(start, end)
    }

    /// Where a read can begin that goes on from here, leaving out no more than `stride`. Pages that were handed to the
    /// kernel ahead are read without a word to us: a reader that goes on behind them is as sequential as one that goes on
    /// where it stopped.
    fn farthest(&self, stride: u64) -> u64 {
        self.ahead.max(self.end).saturating_add(stride)
    }

    /// Goes on to the end of `file`, which was read last, if that is a file of those that are read in a row: it may have
    /// been read in parts, which are no walk.
    fn skip_to_end_of(&mut self, file: ByteRange, stride: u64) {
        if self.end <= file.end() && file.start() <= self.farthest(stride) {
            self.end = file.end();
        }
    }
}

/// A read of so many bytes is worth a look at how many spans it takes.
const LARGE_READ: u64 = 128 << 10;

/// Where some bytes of the stream are to be had.
enum Place {
    /// Here they are.
    Bytes(Bytes),
    /// In a span that is closed.
    Span(Box<SpanAt>),
    /// In a long span that is still open; its pieces are in the store.
    OpenPieces(ByteRange),
    /// The index that should tell is damaged.
    Unknown,
}

impl Layer {
    /// `len` bytes of the file `id` from `offset` on; fewer only at its end.
    ///
    /// # Errors
    /// [`LayerError::Blob`] if the bytes that it takes cannot be had, [`LayerError::Corrupt`] if they are not what
    /// they should be, [`LayerError::NoFile`] if there is no such entry.
    pub async fn read(self: &Arc<Self>, id: EntryId, offset: u64, len: usize) -> Result<Content, Arc<LayerError>> {
        let what = || "a file that was known before".to_owned();
        let plan = move |view: View<'_>| {
            let entry = view.entries().entry(id)?;
            let wanted = ByteRange::at(offset, len as u64).intersection(&ByteRange::new(0, entry.size));
            if !entry.sparse {
                let stream = ByteRange::at(entry.data.start() + wanted.start(), wanted.len());
                return Some((vec![(wanted.start(), stream)], wanted, entry.data));
            }
            let mut stored = entry.data.start();
            let mut pieces = Vec::new();
            for (start, len) in entry.pieces() {
                let piece = ByteRange::at(start, len);
                let part = piece.intersection(&wanted);
                if !part.is_empty() {
                    let from = stored + (part.start() - start);
                    pieces.push((part.start(), ByteRange::at(from, part.len())));
                }
                stored = stored.saturating_add(len);
            }
            Some((pieces, wanted, entry.data))
        };
        // It is known as a rule; unless the index was found damaged and is being made anew.
        let known = move |view: View<'_>| plan(view).map(Some).or_else(|| view.complete().then_some(None));
        let plan = self.ask(Want::Little, what, known).await?;
        let Some((pieces, wanted, file)) = plan else {
            return Err(Arc::new(LayerError::NoFile {
                layer: self.number(),
                entry: id.0,
            }));
        };
        let mut parts = Vec::new();
        let mut spans = Vec::new();
        let mut at = wanted.start();
        for (start, stream) in pieces {
            if start > at {
                parts.push(zeros(start - at));
            }
            self.read_ahead(id, stream, file);
            self.read_stream(stream, &mut parts, &mut spans).await?;
            at = start + stream.len();
        }
        if at < wanted.end() {
            parts.push(zeros(wanted.end() - at));
        }
        Ok(Content {
            bytes: join(parts),
            spans,
        })
    }

    /// Appends the bytes at `range` of the decompressed stream to `parts`.
    async fn read_stream(
        self: &Arc<Self>,
        range: ByteRange,
        parts: &mut Vec<Bytes>,
        spans: &mut Vec<DecodedSpan>,
    ) -> Result<(), Arc<LayerError>> {
        let mut position = range.start();
        let (mut pieces_lost, mut index_lost) = (false, false);
        while position < range.end() {
            let rest = ByteRange::new(position, range.end());
            let what = move || format!("bytes {rest} of its stream");
            let place = self
                .ask(Want::Little, what, move |view| find(view, rest, pieces_lost))
                .await?;
            let found = match place {
                Place::Bytes(bytes) => bytes,
                Place::Span(at) => {
                    let span = match self.decoded_at(*at, position).await {
                        Err(error) if matches!(*error, LayerError::Index { .. }) && !index_lost => {
                            index_lost = true;
                            continue;
                        }
                        decoded => decoded?,
                    };
                    let from = usize::try_from(position - span.start).unwrap_or(usize::MAX);
                    let to = usize::try_from(range.end() - span.start)
                        .unwrap_or(usize::MAX)
                        .min(span.bytes.len());
                    if from >= to {
                        return Err(self.damaged("a span is shorter than its index says"));
                    }
                    let bytes = span.bytes.slice(from..to);
                    // The pieces of a sparse file may all come from the same one.
                    if spans.last().is_none_or(|last| last.start != span.start) {
                        spans.push(span);
                    }
                    bytes
                }
                Place::Unknown if index_lost => return Err(self.index_error()),
                Place::Unknown => {
                    index_lost = true;
                    if let Some(index) = self.index() {
                        self.drop_index(&index);
                    }
                    continue;
                }
                Place::OpenPieces(pieces) => match self.decoded.read(pieces).await {
                    Some(bytes) => bytes,
                    None => {
                        // Not kept after all: they can be decoded again once the span is closed.
                        pieces_lost = true;
                        continue;
                    }
                },
            };
            position += found.len() as u64;
            parts.push(found);
        }
        Ok(())
    }

    /// Begins to fetch and to decode what a reader of `range` will want next: the spans of it behind its first, which he
    /// decodes himself, and, if he is sequential, what follows in his file, or the files that follow. So a line is used
    /// while it is waited for.
    fn read_ahead(self: &Arc<Self>, id: EntryId, range: ByteRange, file: ByteRange) {
        let [in_file, behind] = self.readahead.lock().note(id, range, file);
        if in_file.is_empty() && behind.is_empty() && range.len() < LARGE_READ {
            return;
        }
        let planned = self.glance(|view| {
            let mut spans: Vec<SpanAt> = Vec::new();
            let first = closed_span(view, range.start()).map_or(range.end(), |at| at.span.decompressed.end());
            for part in [ByteRange::new(first.min(range.end()), range.end()), in_file, behind] {
                let mut position = part.start();
                while position < part.end() {
                    let Some(at) = closed_span(view, position) else { break };
                    let stream = at.span.decompressed;
                    position = stream.end().max(position + 1);
                    let known = spans.last().is_some_and(|last| last.number >= at.number)
                        || self.workshop.spans.get(self.key, stream.start()).is_some();
                    // A long span is decoded in order anyway, piece by piece, by whoever reads it.
                    if !known && !at.is_long() {
                        spans.push(at);
                    }
                }
            }
            spans
        });
        let spans = planned.unwrap_or_default();
        if let (Some(first), Some(last)) = (spans.first(), spans.last()) {
            self.blob.prefetch(ByteRange::new(
                first.span.compressed.start(),
                last.span.compressed.end(),
            ));
        }
        for at in spans {
            let layer = self.clone();
            tokio::spawn(async move {
                let start = at.span.decompressed.start();
                // An error here is met again, and told, by the reader itself.
                if let Ok(span) = layer.decoded_at(at, start).await
                    && span.fresh
                {
                    layer.workshop.tell(LayerEvent::Ahead(span));
                }
            });
        }
    }
}

/// Where the first bytes of `rest` are; None while the scan has not come far enough.
fn find(view: View<'_>, rest: ByteRange, pieces_lost: bool) -> Option<Place> {
    let position = rest.start();
    if let Some(at) = closed_span(view, position) {
        return Some(Place::Span(Box::new(at)));
    }
    let View::Growing(GrowingView(growing)) = view else {
        return Some(Place::Unknown);
    };
    if position < growing.tail_start {
        let pieces = ByteRange::new(position, rest.end().min(growing.tail_start));
        return (!pieces_lost).then_some(Place::OpenPieces(pieces));
    }
    if growing.scanned() < rest.end() {
        return None;
    }
    let from = usize::try_from(position - growing.tail_start).ok()?;
    let to = usize::try_from(rest.end() - growing.tail_start).ok()?;
    Some(Place::Bytes(Bytes::copy_from_slice(growing.tail.get(from..to)?)))
}

/// The span with the byte at `position`; None if it is not closed yet, or if the index cannot tell.
fn closed_span(view: View<'_>, position: u64) -> Option<SpanAt> {
    let (number, span, compression) = match view {
        View::Complete(index) => {
            let number = index.span_at(position)?;
            (number, index.span(number)?, index.facts().compression)
        }
        View::Growing(GrowingView(growing)) => {
            let number = growing.index.span_at(position)?;
            (number, growing.index.span(number)?, growing.compression?)
        }
    };
    Some(SpanAt {
        number,
        span,
        compression,
    })
}

/// A hole of a sparse file. A reader asks for 1 MiB at most, so this is never large.
fn zeros(len: u64) -> Bytes {
    Bytes::from(vec![0; usize::try_from(len).unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: EntryId = EntryId(7);

    /// What is to be decoded ahead of a reader of one file.
    fn ahead(readahead: &mut Readahead, range: ByteRange, file_end: u64) -> ByteRange {
        readahead.note(FILE, range, ByteRange::new(0, file_end))[0]
    }

    #[test]
    fn only_the_second_read_in_a_row_is_read_ahead_of() {
        let mut readahead = Readahead::default();
        assert!(ahead(&mut readahead, ByteRange::at(1000, 100), u64::MAX).is_empty());
        assert_eq!(
            ahead(&mut readahead, ByteRange::at(1100, 100), u64::MAX),
            ByteRange::at(1200, FIRST_WINDOW)
        );
    }

    #[test]
    fn nothing_behind_the_end_of_the_file_is_read_ahead() {
        let mut readahead = Readahead::default();
        ahead(&mut readahead, ByteRange::at(0, 100), 250);
        assert_eq!(
            ahead(&mut readahead, ByteRange::at(100, 100), 250),
            ByteRange::new(200, 250)
        );
        assert!(ahead(&mut readahead, ByteRange::at(200, 50), 250).is_empty());
    }

    #[test]
    fn the_window_grows_to_its_limit_and_rounds_do_not_overlap() {
        let mut readahead = Readahead::default();
        let (mut position, mut end) = (0, 0);
        for _ in 0..1000 {
            let plan = ahead(&mut readahead, ByteRange::at(position, 128 << 10), u64::MAX);
            position += 128 << 10;
            if !plan.is_empty() {
                assert!(plan.start() >= end.max(position));
                end = plan.end();
                assert!(end - position <= LAST_WINDOW);
            }
        }
        assert!(end - position >= LAST_WINDOW / 2);
    }

    #[test]
    fn a_jump_begins_anew() {
        let mut readahead = Readahead::default();
        ahead(&mut readahead, ByteRange::at(0, 100), u64::MAX);
        ahead(&mut readahead, ByteRange::at(100, 100), u64::MAX);
        assert!(ahead(&mut readahead, ByteRange::at(1 << 40, 100), u64::MAX).is_empty());
        assert!(ahead(&mut readahead, ByteRange::at(50, 100), u64::MAX).is_empty());
    }

    /// What is to be decoded ahead after each of some files was read to its end.
    fn walk(readahead: &mut Readahead, files: &[ByteRange]) -> Vec<ByteRange> {
        let files = files.iter().zip(1000..);
        files
            .map(|(file, id)| readahead.note(EntryId(id), *file, *file)[1])
            .collect()
    }

    #[test]
    fn some_files_in_the_order_of_the_stream_are_a_walk_through_it() {
        let mut readahead = Readahead::default();
        let at = |start| ByteRange::at(start, 1000);
        let nothing = |file: ByteRange| ByteRange::at(file.end(), 0);
        let files = [at(5_000_000), at(5_001_512), at(5_900_000), at(5_901_512)];
        let mut expected: Vec<_> = files.into_iter().map(nothing).collect();
        expected[3] = ByteRange::at(5_902_512, FIRST_WINDOW);
        assert_eq!(walk(&mut readahead, &files), expected);
        // The kernel has the next files by now, and reads on behind what it was given.
        let next = at(expected[3].end() + 512);
        assert_eq!(
            walk(&mut readahead, &[next]),
            [ByteRange::at(next.end(), 2 * FIRST_WINDOW)]
        );
        // Elsewhere it begins anew, and backwards is none.
        for file in [at(1 << 40), at(5_000_000), at(4_000_000), at(3_000_000), at(2_000_000)] {
            assert_eq!(walk(&mut readahead, &[file]), [nothing(file)]);
        }
    }

    #[test]
    fn the_end_of_a_file_elsewhere_is_no_part_of_a_walk() {
        let at = |start| ByteRange::at(start, 1000);
        let walked = |starts: &[u64]| starts.iter().map(|start| at(*start)).collect::<Vec<_>>();
        for elsewhere in [1 << 20, 1 << 40] {
            let mut readahead = Readahead::default();
            walk(&mut readahead, &walked(&[90_000_000, 90_001_512, 90_003_024]));
            let file = ByteRange::at(elsewhere, 8192);
            readahead.note(FILE, ByteRange::new(file.end() - 4096, file.end()), file);
            // Who walks is not disturbed by it,
            let next = at(90_004_536);
            assert_eq!(walk(&mut readahead, &[next]), [ByteRange::at(next.end(), FIRST_WINDOW)]);
            // and nobody walks there.
            readahead.note(FILE, ByteRange::new(file.end() - 4096, file.end()), file);
            let behind = at(file.end() + 512);
            assert_eq!(walk(&mut readahead, &[behind]), [ByteRange::at(behind.end(), 0)]);
        }
    }

    #[test]
    fn a_walk_through_a_few_small_files_is_one_round() {
        let mut readahead = Readahead::default();
        let files: Vec<_> = (0..100).map(|number| ByteRange::at(number * 1512, 1000)).collect();
        let rounds = walk(&mut readahead, &files);
        assert_eq!(rounds.iter().filter(|round| !round.is_empty()).count(), 1);
    }

    #[test]
    fn a_walk_goes_on_behind_a_large_file() {
        let mut readahead = Readahead::default();
        let (small, large) = (ByteRange::at(0, 1000), ByteRange::at(1512, 1 << 30));
        walk(&mut readahead, &[small]);
        for start in [0, 1 << 29, (1 << 30) - 4096] {
            readahead.note(FILE, ByteRange::at(large.start() + start, 4096), large);
        }
        let behind = ByteRange::at(large.end() + 512, 1000);
        assert_eq!(
            walk(&mut readahead, &[behind]),
            [ByteRange::at(behind.end(), FIRST_WINDOW)]
        );
    }
}
