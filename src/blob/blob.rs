//! A blob: any range of it, wherever its bytes are.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use crate::buffers::{self, join};
use crate::digest::Digest;
use crate::image::source::{BlobOrigin, BlobSource};
use crate::range::ByteRange;

use super::extents::{ExtentKind, Extents, Look};
use super::fetch::Fetch;
use super::flights::{Arrival, Flights, Located};
use super::lock;
use super::slots::Slots;
use super::stats::Counters;
use super::{BlobError, BlobStats, Cause, Pin, Sequential, Store};

const MIB: u64 = 1024 * 1024;

/// A deadline longer than this is none, and would be too much for a clock to add up.
const LONGEST_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// The most that one request asks for when a reader waits for it.
pub(super) const MAX_FETCH: u64 = 8 * MIB;
/// The most that one request asks for when nobody does.
const MAX_PREFETCH: u64 = 16 * MIB;
/// The most that one call of `prefetch` starts.
const PREFETCH_WINDOW: u64 = 64 * MIB;
/// How far ahead of what it has a reader of a huge range starts fetches.
const READ_WINDOW: u64 = 32 * MIB;
/// The same where only memory keeps what has arrived and is not taken yet.
const READ_WINDOW_IN_MEMORY: u64 = 4 * MIB;
/// With so many flights, nothing more is read ahead.
const MANY_FLIGHTS: usize = 64;
/// What is asked for at once where only memory can keep it.
const MAX_FETCH_IN_MEMORY: u64 = 2 * MIB;
/// The most that a reader waits for before it takes what has arrived: well before that is written and dropped, so that
/// it need not be read from disk.
const PIECE: u64 = MIB / 4;

/// One blob. There should be one object for one digest: each byte is fetched once by each of them (and the store).
pub struct Blob {
    digest: Digest,
    size: u64,
    pub(super) deadline: Duration,
    origin: Origin,
    /// Tells blobs apart where slots are handed out.
    number: u64,
    pub(super) flights: Mutex<Flights>,
    pub(super) counters: Counters,
}

enum Origin {
    Remote(Remote),
    File { file: Arc<File>, range: ByteRange },
}

/// Where a remote blob's bytes come from, and where they are kept.
pub(super) struct Remote {
    pub(super) source: Arc<dyn BlobSource>,
    pub(super) extents: Arc<Extents>,
    pub(super) slots: Arc<Slots>,
}

/// What can be done about the first byte of a range.
pub(super) enum Step {
    /// Here it is, with some of those behind it.
    Here(Bytes),
    /// It is under way.
    Wait(oneshot::Receiver<Arrival>),
    /// It is on disk, as are those up to the offset.
    OnDisk(u64),
    /// It has to be fetched.
    Missing,
}

impl Blob {
    /// The blob `digest` of `size` bytes. A file operation waits at most `deadline` for the next byte to arrive.
    pub fn new(digest: Digest, size: u64, origin: BlobOrigin, store: &Store, deadline: Duration) -> Arc<Blob> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let origin = match origin {
            BlobOrigin::Remote(source) => Origin::Remote(Remote {
                source,
                extents: store.extents(ExtentKind::Compressed, &digest),
                slots: Arc::clone(store.slots()),
            }),
            BlobOrigin::File { file, range } => Origin::File { file, range },
        };
        Arc::new(Blob {
            digest,
            size,
            deadline: deadline.min(LONGEST_DEADLINE),
            origin,
            number: LAST.fetch_add(1, Ordering::Relaxed),
            flights: Mutex::default(),
            counters: Counters::within(Arc::clone(store.counts())),
        })
    }

    /// The digest it was made with.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its size in bytes, as the manifest says.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Exactly the bytes of `range`. What is neither in the store nor under way is fetched, at most 8 MiB with one
    /// request; dropping the future does not stop that. It is ready at once if all bytes are in memory, and never
    /// blocks the thread.
    pub async fn read(self: &Arc<Self>, range: ByteRange) -> Result<Bytes, BlobError> {
        if range.end() > self.size {
            return Err(self.out_of_range(range));
        }
        let Some(Remote { extents, .. }) = self.remote() else {
            self.counters.add(|counts| &counts.hits, 1);
            return self.read_file(range).await;
        };
        let window = if extents.on_disk() {
            READ_WINDOW
        } else {
            READ_WINDOW_IN_MEMORY
        };
        let (mut at, mut parts, mut missed) = (range.start(), Vec::new(), false);
        let (mut asked_to, mut _pin) = (at, None);
        while at < range.end() {
            if asked_to <= at || (asked_to < range.end() && asked_to - at < window / 2) {
                asked_to = range.end().min(at.saturating_add(window));
                _pin = Some(extents.pin(ByteRange::new(at, asked_to)));
                missed |= self.fetch_missing(ByteRange::new(at, asked_to), Urgency::Read).await;
            }
            match self.step(ByteRange::new(at, asked_to), PIECE) {
                Step::Here(bytes) => {
                    at += bytes.len() as u64;
                    parts.push(bytes);
                }
                Step::OnDisk(_) => {
                    for part in self.read_extents(ByteRange::new(at, asked_to)).await {
                        at += part.len() as u64;
                        parts.push(part);
                    }
                }
                Step::Wait(arrival) => {
                    missed = true;
                    self.arrival(arrival, ByteRange::new(at, asked_to)).await?;
                }
                // It was there a moment ago: evicted by another process, or damaged, or forgotten.
                Step::Missing => asked_to = at,
            }
        }
        match missed {
            true => self.counters.add(|counts| &counts.misses, 1),
            false => self.counters.add(|counts| &counts.hits, 1),
        }
        Ok(join(parts))
    }

    /// Starts fetching what is missing of `range` (64 MiB of it at most), behind everything that somebody waits for.
    pub fn prefetch(self: &Arc<Self>, range: ByteRange) {
        if !self.is_remote() || lock(&self.flights).len() >= MANY_FLIGHTS {
            return;
        }
        let end = self
            .size
            .min(range.end())
            .min(range.start().saturating_add(PREFETCH_WINDOW));
        let range = ByteRange::new(range.start(), end);
        if self.is_listed() && self.gaps(range).is_empty() {
            return;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move { this.fetch_missing(range, Urgency::Ahead).await });
    }

    /// The blob's bytes from `start` on, in order.
    pub fn sequential(self: &Arc<Self>, start: u64) -> Sequential {
        Sequential::new(Arc::clone(self), start)
    }

    /// Waits until no fetch is under way, and what was fetched is in the store.
    pub async fn rest(&self) {
        loop {
            let Some(ended) = lock(&self.flights).one_ends() else {
                return;
            };
            let _ = ended.await;
        }
    }

    /// Drops all that is kept of the blob, in memory and on disk. What is under way is not kept either; who waits for
    /// it has it fetched again. Counts stay.
    pub fn forget(&self) {
        if let Some(Remote { extents, .. }) = self.remote() {
            // Flights first, and both under the lock: a flight learns its epoch under it.
            let mut flights = lock(&self.flights);
            extents.forget();
            flights.drop_all();
        }
    }

    /// After what was fetched turned out not to be what the digest promises: whether it is now fetched from elsewhere.
    pub fn distrust(&self) -> bool {
        self.remote().is_some_and(|remote| remote.source.distrust())
    }

    #[cfg(test)]
    pub(super) fn readers_waiting(&self) -> usize {
        lock(&self.flights).waiting()
    }

    #[cfg(test)]
    pub(super) fn flights_under_way(&self) -> usize {
        lock(&self.flights).len()
    }

    /// What it has cost so far.
    pub fn stats(&self) -> BlobStats {
        let throttled = self.remote().map_or(0, |remote| remote.source.throttled());
        self.counters.snapshot(throttled)
    }

    /// How many of its bytes are known to be on this machine's disk. A store that was filled earlier is known after
    /// the first read.
    pub fn stored(&self) -> u64 {
        match &self.origin {
            Origin::Remote(remote) => remote.extents.stored(),
            Origin::File { .. } => self.size,
        }
    }

    pub(super) fn remote(&self) -> Option<&Remote> {
        match &self.origin {
            Origin::Remote(remote) => Some(remote),
            Origin::File { .. } => None,
        }
    }

    pub(super) fn is_remote(&self) -> bool {
        self.remote().is_some()
    }

    fn out_of_range(&self, range: ByteRange) -> BlobError {
        self.error(range, Cause::OutOfRange { size: self.size })
    }

    /// Reads from the local file that is the blob.
    pub(super) async fn read_file(&self, range: ByteRange) -> Result<Bytes, BlobError> {
        let Origin::File { file, range: within } = &self.origin else {
            return Err(self.out_of_range(range));
        };
        let in_file = ByteRange::at(within.start().saturating_add(range.start()), range.len());
        if !within.contains(&in_file) {
            return Err(self.out_of_range(range));
        }
        let file = Arc::clone(file);
        let read = spawn_blocking(move || {
            let mut bytes = buffers::of_len(in_file.len() as usize).map_err(io::Error::other)?;
            file.read_exact_at(&mut bytes, in_file.start())
                .map(|()| buffers::freeze(bytes))
        });
        match read.await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => Err(self.error(range, Cause::File(error))),
            Err(_) => Err(self.error(range, Cause::Abandoned)),
        }
    }

    /// What is on disk of `range`, from its start on; nothing if it turned out not to be there.
    pub(super) async fn read_extents(&self, range: ByteRange) -> Vec<Bytes> {
        let Some(Remote { extents, .. }) = self.remote() else {
            return Vec::new();
        };
        let parts = extents.read_some(range).await;
        let len = parts.iter().map(|part| part.len() as u64).sum();
        self.counters.add(|counts| &counts.bytes_from_store, len);
        parts
    }

    /// Waits for a flight. Success means to look again.
    pub(super) async fn arrival(&self, arrival: oneshot::Receiver<Arrival>, range: ByteRange) -> Result<(), BlobError> {
        // Flights are never dropped without a word, so the error is for a runtime that is being shut down.
        arrival
            .await
            .unwrap_or_else(|_| Err(self.error(range, Cause::Abandoned)))
    }

    pub(super) fn error(&self, range: ByteRange, cause: Cause) -> BlobError {
        BlobError::new(self.digest, range, cause)
    }

    /// What can be done about the first byte of `range` (not empty). If it is under way: waits for the range, but for
    /// at most `piece` of it.
    pub(super) fn step(&self, range: ByteRange, piece: u64) -> Step {
        let Some(Remote { extents, slots, .. }) = self.remote() else {
            return Step::Missing;
        };
        let mut flights = lock(&self.flights);
        // The store is asked with the flights locked: what a flight has written leaves it only after the store knows.
        let located = flights.locate(range);
        if let Located::Here(bytes) = located {
            return Step::Here(bytes);
        }
        match (extents.look(range), located) {
            (Look::Memory(bytes), _) => {
                self.counters.add(|counts| &counts.bytes_from_store, bytes.len() as u64);
                Step::Here(bytes)
            }
            (Look::Disk(end), _) => Step::OnDisk(end),
            (Look::Missing(missing_to), Located::Claimed(id, end)) => match flights.get_mut(id) {
                Some(flight) => {
                    if let Some(ticket) = flight.queued() {
                        slots.promote(ticket);
                    }
                    let until = end.min(missing_to).min(range.start().saturating_add(piece));
                    Step::Wait(flight.wait(until))
                }
                None => Step::Missing,
            },
            (Look::Missing(_), Located::Nowhere(_)) => match flights.bringing_all() {
                // It came by and is lost again: not before the host is done can it be asked once more.
                Some(flight) => Step::Wait(flight.wait(u64::MAX)),
                None => Step::Missing,
            },
            (_, Located::Here(bytes)) => Step::Here(bytes),
        }
    }

    /// The parts of `range` that are neither held nor under way.
    pub(super) fn gaps(&self, range: ByteRange) -> Vec<ByteRange> {
        self.gaps_in(&lock(&self.flights), range, u64::MAX)
    }

    /// As [`Blob::gaps`], from the front on and at most `most` bytes of them.
    fn gaps_in(&self, flights: &Flights, range: ByteRange, mut most: u64) -> Vec<ByteRange> {
        let Some(Remote { extents, .. }) = self.remote() else {
            return Vec::new();
        };
        let (mut at, mut gaps) = (range.start(), Vec::<ByteRange>::new());
        while at < range.end() && most > 0 {
            let rest = ByteRange::new(at, range.end());
            at = match (flights.locate(rest), extents.look(rest)) {
                (Located::Here(bytes), _) | (_, Look::Memory(bytes)) => at.saturating_add(bytes.len() as u64),
                (_, Look::Disk(end)) | (Located::Claimed(_, end), _) => end,
                (Located::Nowhere(a), Look::Missing(b)) => {
                    let end = a.min(b).min(at.saturating_add(most));
                    most -= end - at;
                    match gaps.last_mut() {
                        Some(last) if last.end() == at => *last = ByteRange::new(last.start(), end),
                        _ => gaps.push(ByteRange::new(at, end)),
                    }
                    end
                }
            };
        }
        gaps
    }

    /// Where the first byte of `range` is that is neither held nor under way.
    pub(super) fn first_gap(&self, range: ByteRange) -> Option<u64> {
        let gaps = self.gaps_in(&lock(&self.flights), range, 1);
        gaps.first().map(ByteRange::start)
    }

    /// The parts of `range` that are neither in the store nor in memory.
    pub(super) fn not_kept(&self, range: ByteRange) -> Vec<ByteRange> {
        let Some(Remote { extents, .. }) = self.remote() else {
            return Vec::new();
        };
        let mut parts = Vec::new();
        for part in lock(&self.flights).not_held(range) {
            let mut at = part.start();
            while at < part.end() {
                at = match extents.look(ByteRange::new(at, part.end())) {
                    Look::Disk(end) => end,
                    Look::Memory(bytes) => at.saturating_add(bytes.len() as u64),
                    Look::Missing(end) => {
                        parts.push(ByteRange::new(at, end));
                        end
                    }
                };
            }
        }
        parts
    }

    /// How many flights still have to bring something of `range`.
    pub(super) fn bringing(&self, range: ByteRange) -> usize {
        lock(&self.flights).bringing(range)
    }

    /// Keeps what there is of `range`, now or later, from being evicted.
    pub(super) fn pin(&self, range: ByteRange) -> Option<Pin> {
        self.remote().map(|remote| remote.extents.pin(range))
    }

    /// Whether what is fetched can be kept on disk.
    pub(super) fn keeps_on_disk(&self) -> bool {
        self.remote().is_some_and(|remote| remote.extents.on_disk())
    }

    pub(super) async fn ensure_listed(&self) {
        if let Some(Remote { extents, .. }) = self.remote() {
            extents.ensure_listed().await;
        }
    }

    fn is_listed(&self) -> bool {
        self.remote().is_none_or(|remote| remote.extents.is_listed())
    }

    /// Sees to it that all of `range` is held or under way; true if something was neither.
    pub(super) async fn fetch_missing(self: &Arc<Self>, range: ByteRange, urgency: Urgency) -> bool {
        !self.fetch_at_most(range, u64::MAX, urgency).await.is_empty()
    }

    /// As [`Blob::fetch_missing`], but starts at most `most` bytes, from the front on; returns what it has started.
    pub(super) async fn fetch_at_most(
        self: &Arc<Self>,
        range: ByteRange,
        most: u64,
        urgency: Urgency,
    ) -> Vec<ByteRange> {
        let Some(Remote { extents, .. }) = self.remote() else {
            return Vec::new();
        };
        extents.ensure_listed().await;
        if self.gaps(range).is_empty() {
            return Vec::new();
        }
        // Another process may have fetched it meanwhile.
        extents.refresh().await;
        let mut flights = lock(&self.flights);
        let gaps = self.gaps_in(&flights, range, most);
        if flights.no_ranges && !gaps.is_empty() {
            if flights.bringing_all().is_none() {
                self.take_off(&mut flights, ByteRange::new(0, self.size), true, true);
            }
            return gaps;
        }
        let max = match (extents.on_disk(), urgency) {
            (false, _) => MAX_FETCH_IN_MEMORY,
            (true, Urgency::Read) => MAX_FETCH,
            (true, Urgency::Ahead) => MAX_PREFETCH,
        };
        for gap in &gaps {
            let mut at = gap.start();
            while at < gap.end() {
                let part = ByteRange::new(at, gap.end().min(at.saturating_add(max)));
                self.take_off(&mut flights, part, false, urgency == Urgency::Read);
                at = part.end();
            }
        }
        gaps
    }

    fn take_off(self: &Arc<Self>, flights: &mut Flights, range: ByteRange, whole: bool, urgent: bool) {
        let Some(Remote { extents, slots, .. }) = self.remote() else {
            return;
        };
        let id = flights.take_off(range, whole);
        let (ticket, slot) = slots.enter(self.number, urgent);
        if let Some(flight) = flights.get_mut(id) {
            flight.ticket = Some(ticket);
        }
        tokio::spawn(Fetch::new(Arc::clone(self), id, range, whole, extents.epoch()).run(slot));
    }
}

/// Whether somebody waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    Read,
    Ahead,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob")
            .field("digest", &self.digest)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
