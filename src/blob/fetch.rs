//! One flight, from the inside: waits for a slot, asks, takes in what arrives, and asks again where it broke off.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::image::source::{FetchError, Fetched};
use crate::range::ByteRange;

use super::blob::{Blob, Remote};
use super::extent_file::MAX_LEN;
use super::flights::Whole;
use super::slots::Slot;
use super::store::random;
use super::{BlobError, Cause, lock};

/// The first pause before trying again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause, unless the host asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Attempts that fit into a deadline, if each of them stalls.
const ATTEMPTS: u32 = 3;
/// The part of a deadline that a host has to answer in which was silent for a whole one before.
const PROBES: u32 = 10;
/// What has to arrive in that part of a deadline in which an attempt may stall, if there is so much: less is no progress,
/// or a host that gives a byte now and then could hold a reader for ever.
const LEAST: u64 = 4 * 1024;
/// What has arrived of one flight and is not written yet: beyond this it reads no further.
const MAX_UNWRITTEN: u64 = 4 * 1024 * 1024;
/// How often bytes that were there before may come again, from a host that can only begin at the front.
const SKIPPING_ATTEMPTS: u32 = 3;

/// A flight.
pub(super) struct Fetch {
    blob: Arc<Blob>,
    id: u64,
    /// The next byte that is missing, and where it ends.
    rest: ByteRange,
    whole: bool,
    writer: Writer,
    /// When there was last progress, or when it began.
    progress: Instant,
    /// Failed attempts since then.
    failures: u32,
    /// Only one attempt is made, and a short one: the host was silent for a whole deadline, and nothing has come since.
    /// The kernel asks again for what could not be read, and so do programs; each would wait for a deadline of its own.
    probing: bool,
    last_error: Option<FetchError>,
    ended: bool,
}

/// Why a flight stops.
enum Stop {
    /// Nobody needs it: it was forgotten, or another one brings the whole blob.
    Unwanted,
    Failed(FetchError),
}

impl From<FetchError> for Stop {
    fn from(error: FetchError) -> Stop {
        Stop::Failed(error)
    }
}

impl Fetch {
    pub(super) fn new(blob: Arc<Blob>, id: u64, range: ByteRange, whole: bool, epoch: u64) -> Fetch {
        let writer = Writer::new(Arc::clone(&blob), id, epoch);
        Fetch {
            blob,
            id,
            rest: range,
            whole,
            writer,
            progress: Instant::now(),
            failures: 0,
            probing: false,
            last_error: None,
            ended: false,
        }
    }

    pub(super) async fn run(mut self, slot: oneshot::Receiver<Slot>) {
        let result = self.fetch(slot).await;
        // What has arrived is good, whatever came after it.
        self.writer.finish().await;
        if let Err(error) = &result {
            self.blob.counters.fail(error);
        }
        let mut flights = lock(&self.blob.flights);
        flights.end(self.id, result.clone());
        if let Err(error) = &result
            && let Cause::Deadline { .. } = error.cause()
        {
            // Those in the queue behind it would find the same silence, each for a deadline of its own.
            flights.end_unstarted(error);
            if let Some(Remote { slots, .. }) = self.blob.remote() {
                slots.gave_up();
            }
        }
        drop(flights);
        self.ended = true;
    }

    async fn fetch(&mut self, slot: oneshot::Receiver<Slot>) -> Result<(), BlobError> {
        let Some(_slot) = self.wait_for_slot(slot).await? else {
            return Ok(());
        };
        self.progress = Instant::now();
        self.probing = self.blob.remote().is_some_and(|remote| remote.slots.silent());
        while !self.rest.is_empty() {
            self.wait_for_leave().await?;
            match self.attempt().await {
                Ok(()) => {}
                Err(Stop::Unwanted) => return Ok(()),
                Err(Stop::Failed(cause @ FetchError::Permanent { .. })) => {
                    return Err(self.blob.error(self.rest, Cause::Refused(cause)));
                }
                Err(Stop::Failed(FetchError::Transient { reason, retry_after })) => {
                    self.blob.counters.note(reason.clone());
                    tracing::debug!(
                        "will ask again for bytes {} of {}: {reason}",
                        self.rest,
                        self.blob.digest()
                    );
                    self.last_error = Some(FetchError::Transient { reason, retry_after });
                    if self.probing {
                        return Err(self.too_late());
                    }
                    self.pause(retry_after).await?;
                }
            }
        }
        Ok(())
    }

    /// The slot; `None` if the flight is not wanted any more.
    async fn wait_for_slot(&self, mut slot: oneshot::Receiver<Slot>) -> Result<Option<Slot>, BlobError> {
        let Some(Remote { slots, .. }) = self.blob.remote() else {
            return Ok(None);
        };
        let mut patience = self.progress + self.blob.deadline;
        loop {
            match timeout_at(patience, &mut slot).await {
                Ok(granted) => {
                    let wanted = lock(&self.blob.flights).start(self.id);
                    return Ok(granted.ok().filter(|_| wanted));
                }
                // As long as anything arrives anywhere, its turn will come.
                Err(_) => {
                    if lock(&self.blob.flights).get_mut(self.id).is_none() {
                        return Ok(None);
                    }
                    let next = slots.last_progress() + self.blob.deadline;
                    if next <= Instant::now() {
                        return Err(self.too_late());
                    }
                    patience = next;
                }
            }
        }
    }

    fn gives_up_at(&self) -> Instant {
        self.progress + self.blob.deadline
    }

    fn too_late(&self) -> BlobError {
        let waited = self.progress.elapsed();
        let last = self.last_error.clone();
        self.blob.error(self.rest, Cause::Deadline { waited, last })
    }

    /// Waits before the next attempt: longer each time, and as long as the host wishes.
    async fn pause(&mut self, retry_after: Option<Duration>) -> Result<(), BlobError> {
        let longest = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST_PAUSE);
        self.failures += 1;
        // Between half and all of it, so that those who failed together do not come again together.
        let jittered = longest / 2 + (longest / 2).mul_f64((random() % 1024) as f64 / 1024.0);
        // Cut behind the deadline: what a host asks for may be more than a clock can add up.
        let asked = retry_after.unwrap_or_default().min(self.blob.deadline);
        let now = Instant::now();
        if let Some(Remote { slots, .. }) = self.blob.remote() {
            slots.close_until(now + asked);
        }
        let next = now + asked.max(jittered);
        // A pause that leads past the deadline is waited for until then: failing at once would only make the next
        // reader ask a host that has just asked for peace.
        sleep_until(next.min(self.gives_up_at())).await;
        if next >= self.gives_up_at() {
            return Err(self.too_late());
        }
        self.blob.counters.add(|counts| &counts.retries, 1);
        Ok(())
    }

    /// Waits while the host wants to be left alone, as it may have told another fetch meanwhile.
    async fn wait_for_leave(&self) -> Result<(), BlobError> {
        let Some(Remote { slots, .. }) = self.blob.remote() else {
            return Ok(());
        };
        loop {
            let (now, until) = (Instant::now(), slots.closed_until());
            if until <= now {
                return Ok(());
            }
            sleep_until(until.min(self.gives_up_at())).await;
            if until >= self.gives_up_at() {
                return Err(self.too_late());
            }
        }
    }

    /// One request, and everything that it brings.
    async fn attempt(&mut self) -> Result<(), Stop> {
        let blob = Arc::clone(&self.blob);
        let Some(Remote { source, slots, .. }) = blob.remote() else {
            return Err(Stop::Unwanted);
        };
        if lock(&blob.flights).get_mut(self.id).is_none() {
            return Err(Stop::Unwanted);
        }
        let attempts = if self.probing { PROBES } else { ATTEMPTS };
        let stall = (blob.deadline / attempts).max(Duration::from_millis(1));
        let mut stalls_at = (Instant::now() + stall).min(self.gives_up_at());
        blob.counters.add(|counts| &counts.requests, 1);
        let answer = timeout_at(stalls_at, source.fetch(self.rest)).await;
        let Fetched { range, mut body } = answer.map_err(|_| self.stalled(stall))??;
        let mut at = self.accept(range)?;
        let mut end = self.rest.end().min(range.end());
        // What is still to arrive before it counts as progress.
        let mut least = LEAST.min(end - at);
        while at < end {
            let next = timeout_at(stalls_at, body.next())
                .await
                .map_err(|_| self.stalled(stall))?;
            let Some(chunk) = next else {
                return Err(transient(format!("the answer ended at byte {at} instead of {end}")));
            };
            let mut chunk = chunk?;
            let received = chunk.len() as u64;
            if received == 0 {
                // Nothing is no progress, however often it comes.
                if Instant::now() >= stalls_at {
                    return Err(self.stalled(stall));
                }
                tokio::task::yield_now().await;
                continue;
            }
            blob.counters.add(|counts| &counts.bytes_fetched, received);
            if received > range.end() - at {
                return Err(permanent(format!(
                    "the answer has more bytes than it promised ({range})"
                )));
            }
            let now = Instant::now();
            least = least.saturating_sub(received);
            let progress = least == 0;
            if progress {
                slots.progressed();
                self.probing = false;
            }
            if at < self.rest.start() {
                let skipped = chunk.split_to(received.min(self.rest.start() - at) as usize);
                at += skipped.len() as u64;
                if progress && self.failures <= SKIPPING_ATTEMPTS {
                    self.progress = now;
                }
            }
            if !chunk.is_empty() {
                at += chunk.len() as u64;
                if progress {
                    (self.progress, self.failures) = (now, 0);
                }
                self.take_in(chunk).await?;
                end = self.rest.end().min(range.end());
            }
            // Writing may have taken its time, which is not the host's fault.
            let written = now.elapsed();
            if self.failures == 0 {
                self.progress += written;
            }
            stalls_at += written;
            if progress {
                stalls_at = (Instant::now() + stall).min(self.gives_up_at());
                least = LEAST.min(end.saturating_sub(at));
            } else if Instant::now() >= stalls_at {
                // A byte that is always there in time would otherwise win against the clock.
                return Err(self.stalled(stall));
            }
        }
        // A look behind the last byte lets the connection see that it is free for the next request.
        if let Some(Some(Ok(more))) = body.next().now_or_never()
            && !more.is_empty()
        {
            blob.counters.add(|counts| &counts.bytes_fetched, more.len() as u64);
            blob.counters
                .note(format!("the answer has more bytes than it promised ({range})"));
            tracing::warn!(
                "ignored what came behind bytes {range} of blob {}",
                blob.digest().short()
            );
        }
        Ok(())
    }

    /// Where the body begins, if it can be used at all.
    fn accept(&mut self, answered: ByteRange) -> Result<u64, Stop> {
        let all = ByteRange::new(0, self.blob.size());
        let asked = self.rest;
        if asked.contains(&answered) && answered.start() == asked.start() && !answered.is_empty() {
            return Ok(asked.start());
        }
        if answered != all {
            return Err(permanent(format!(
                "bytes {asked} were asked for, the answer says it has {answered}"
            )));
        }
        if !self.whole {
            match lock(&self.blob.flights).answered_with_all(self.id, all.end()) {
                Whole::GiveWay => return Err(Stop::Unwanted),
                Whole::Continue => {}
            }
            tracing::debug!("the host of blob {} has no ranges", self.blob.digest());
            self.whole = true;
            self.rest = all;
        }
        Ok(0)
    }

    fn stalled(&self, after: Duration) -> Stop {
        transient(format!(
            "nothing, or hardly anything, arrived for {} s",
            after.as_secs_f32()
        ))
    }

    /// Gives readers the next bytes, and the store.
    async fn take_in(&mut self, mut chunk: Bytes) -> Result<(), Stop> {
        while !chunk.is_empty() {
            let part = chunk.split_to(chunk.len().min(self.writer.room()));
            let at = self.rest.start();
            let to = at + part.len() as u64;
            let wanted = self.wanted(ByteRange::new(at, to));
            let pieces: Vec<(u64, Bytes)> = wanted
                .iter()
                .map(|range| {
                    let (from, to) = (range.start() - at, range.end() - at);
                    (range.start(), part.slice(from as usize..to as usize))
                })
                .collect();
            {
                let mut flights = lock(&self.blob.flights);
                let flight = flights.get_mut(self.id).ok_or(Stop::Unwanted)?;
                for (at, piece) in &pieces {
                    flight.hold(*at, piece.clone());
                }
                flight.advance(to);
            }
            self.rest = ByteRange::new(to, self.rest.end());
            for (at, piece) in pieces {
                self.writer.push(at, piece).await;
            }
        }
        Ok(())
    }

    /// The parts of what arrives that are worth keeping: all, unless the whole blob comes along and some is there.
    fn wanted(&self, range: ByteRange) -> Vec<ByteRange> {
        if self.whole {
            self.blob.not_kept(range)
        } else {
            vec![range]
        }
    }
}

impl Drop for Fetch {
    /// A flight that disappears (the runtime is shut down, the source panicked) must not leave anyone waiting.
    fn drop(&mut self) {
        if !self.ended {
            let error = self.blob.error(self.rest, Cause::Abandoned);
            lock(&self.blob.flights).end(self.id, Err(error));
        }
    }
}

fn transient(reason: String) -> Stop {
    Stop::Failed(FetchError::Transient {
        reason,
        retry_after: None,
    })
}

fn permanent(reason: String) -> Stop {
    Stop::Failed(FetchError::Permanent { reason })
}

/// Gathers what arrives into extents.
struct Writer {
    blob: Arc<Blob>,
    id: u64,
    epoch: u64,
    gathered: Vec<Bytes>,
    range: ByteRange,
    /// Bytes that are being written.
    writing: u64,
    writes: JoinSet<u64>,
}

impl Writer {
    fn new(blob: Arc<Blob>, id: u64, epoch: u64) -> Writer {
        Writer {
            blob,
            id,
            epoch,
            gathered: Vec::new(),
            range: ByteRange::new(0, 0),
            writing: 0,
            writes: JoinSet::new(),
        }
    }

    /// Bytes until the extent in the making is full; never 0.
    fn room(&self) -> usize {
        (MAX_LEN - self.range.len()) as usize
    }

    /// Takes in a chunk that fits; waits if too much is not written yet.
    async fn push(&mut self, at: u64, chunk: Bytes) {
        if at != self.range.end() {
            self.write();
            self.range = ByteRange::new(at, at);
        }
        self.range = ByteRange::new(self.range.start(), at + chunk.len() as u64);
        self.gathered.push(chunk);
        if self.room() == 0 {
            self.write();
        }
        while self.writing + self.range.len() > MAX_UNWRITTEN {
            self.written().await;
        }
    }

    /// Writes what is left, and waits until all is written.
    async fn finish(&mut self) {
        self.write();
        while !self.writes.is_empty() {
            self.written().await;
        }
    }

    fn write(&mut self) {
        let (range, parts) = (self.range, std::mem::take(&mut self.gathered));
        self.range = ByteRange::new(range.end(), range.end());
        let Some(Remote { extents, .. }) = self.blob.remote() else {
            return;
        };
        if range.is_empty() {
            return;
        }
        self.writing += range.len();
        let (extents, blob, id, epoch) = (Arc::clone(extents), Arc::clone(&self.blob), self.id, self.epoch);
        self.writes.spawn(async move {
            extents.write_parts(epoch, range.start(), parts).await;
            if let Some(flight) = lock(&blob.flights).get_mut(id) {
                flight.written(range);
            }
            range.len()
        });
    }

    async fn written(&mut self) {
        match self.writes.join_next().await {
            Some(Ok(len)) => self.writing -= len,
            // Panicked or cancelled: the flight keeps the bytes until it ends, and then they are missing.
            Some(Err(_)) | None => self.writing = 0,
        }
    }
}
