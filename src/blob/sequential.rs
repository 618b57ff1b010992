//! A blob read from front to back.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::range::ByteRange;

use super::blob::{Blob, Step, Urgency};
use super::{BlobError, Pin};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// The first request of a reader who may stop any moment.
const FIRST: u64 = 64 * KIB;
/// The requests of one who will not, one after another; the last is repeated.
const FIRST_OF_ALL: u64 = MIB;
const LARGEST: u64 = 8 * MIB;
/// Requests under way, and bytes asked for but not taken, for a reader who will not stop.
const IN_FLIGHT: usize = 4;
const AHEAD: u64 = 32 * MIB;
/// The same where only memory can keep them.
const AHEAD_IN_MEMORY: u64 = 4 * MIB;
/// The most that is given at once.
const PIECE: u64 = MIB;

/// An in-order reader of a blob, that asks for more than it was asked for: how much, that depends.
///
/// If its user may stop any moment (*economical*), at most 64 KiB or twice what he has taken is asked for, so that at
/// most half of it is for nothing. If the whole blob will be needed, several large requests are under way at once, so
/// that a path of 20 ms is never idle. What is in the store already is given and not counted.
pub struct Sequential {
    blob: Arc<Blob>,
    at: u64,
    /// What it has had fetched, in order, and not yet given.
    asked: VecDeque<ByteRange>,
    /// Bytes that it has had fetched ...
    requested: u64,
    /// ... and how many of those it has given.
    taken: u64,
    /// Size of the next request when not economical.
    next_request: u64,
    pin: Option<Pin>,
}

impl Sequential {
    pub(super) fn new(blob: Arc<Blob>, start: u64) -> Sequential {
        Sequential {
            blob,
            at: start,
            asked: VecDeque::new(),
            requested: 0,
            taken: 0,
            next_request: FIRST_OF_ALL,
            pin: None,
        }
    }

    /// Offset in the blob of what comes next.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next bytes, as many as are there but at most 1 MiB; `None` at the end of the blob. With `economical` little
    /// more is fetched than was taken; without it, all that follows is on its way. After an error it can be called
    /// again, and asks again.
    ///
    /// If the future is dropped before it is ready, nothing is lost.
    pub async fn next(&mut self, economical: bool) -> Result<Option<Bytes>, BlobError> {
        let size = self.blob.size();
        if self.at >= size {
            return Ok(None);
        }
        let piece = ByteRange::new(self.at, size.min(self.at.saturating_add(PIECE)));
        if !self.blob.is_remote() {
            let bytes = self.blob.read_file(piece).await?;
            self.at = piece.end();
            return Ok(Some(bytes));
        }
        self.blob.ensure_listed().await;
        loop {
            if economical {
                self.ask_little().await;
            } else {
                self.ask_much().await;
            }
            match self.blob.step(piece, 1) {
                Step::Here(bytes) => return Ok(Some(self.give(bytes))),
                Step::OnDisk(end) => {
                    let end = end.min(piece.end());
                    let first = self
                        .blob
                        .read_extents(ByteRange::new(self.at, end))
                        .await
                        .into_iter()
                        .next();
                    if let Some(bytes) = first {
                        return Ok(Some(self.give(bytes)));
                    }
                }
                Step::Wait(arrival) => {
                    let waited = self.blob.arrival(arrival, piece).await;
                    if waited.is_err() {
                        self.forget_asked();
                    }
                    waited?;
                }
                // What was asked for is gone again, or nothing was asked for yet.
                Step::Missing => self.forget_asked(),
            }
        }
    }

    /// Asks as a reader does who may stop any moment.
    async fn ask_little(&mut self) {
        let allowed = FIRST.max(self.taken.saturating_mul(2));
        let spare = allowed.saturating_sub(self.requested);
        // Half as much again is worth a request; less is not, as long as there is something to read.
        if spare == 0 || (!self.asked.is_empty() && spare < self.requested / 2) {
            return;
        }
        // Only what follows directly: behind a stretch that is stored, it may never be needed.
        let from = self.asked_to();
        let range = ByteRange::new(from, self.blob.size().min(from.saturating_add(spare.min(LARGEST))));
        if self.blob.first_gap(range) == Some(from) {
            self.ask(range, spare.min(LARGEST)).await;
        }
    }

    /// Asks as a reader does who will need everything.
    async fn ask_much(&mut self) {
        let ahead = if self.blob.keeps_on_disk() {
            AHEAD
        } else {
            AHEAD_IN_MEMORY
        };
        loop {
            let from = self.asked_to();
            let end = self.blob.size().min(self.at.saturating_add(ahead));
            let range = ByteRange::new(from, end);
            let Some(gap) = self.blob.first_gap(range) else { return };
            // Enough is under way, unless the very next byte is not.
            if gap != self.at && self.blob.bringing(ByteRange::new(self.at, end)) >= IN_FLIGHT {
                return;
            }
            // A request is not made smaller because the window ends: it is made when there is room for it.
            let wanted = self.next_request.min(ahead / 2).min(self.blob.size() - gap);
            let range = ByteRange::new(gap, end);
            if range.len() < wanted || !self.ask(range, wanted).await {
                return;
            }
            self.next_request = (self.next_request * 2).min(LARGEST);
        }
    }

    /// Asks for the first `most` missing bytes of `range`; false if there were none.
    async fn ask(&mut self, range: ByteRange, most: u64) -> bool {
        let started = self.blob.fetch_at_most(range, most, Urgency::Ahead).await;
        // From here on nothing waits, so that the accounts are right whenever the future is dropped.
        self.requested += started.iter().map(ByteRange::len).sum::<u64>();
        self.asked.extend(&started);
        self.pin = self.blob.pin(ByteRange::new(self.at, self.asked_to()));
        !started.is_empty()
    }

    /// Takes `bytes`, the next ones, into account.
    fn give(&mut self, bytes: Bytes) -> Bytes {
        let given = ByteRange::at(self.at, bytes.len() as u64);
        self.at = given.end();
        while let Some(asked) = self.asked.front_mut() {
            self.taken += asked.intersection(&given).len();
            if asked.end() > self.at {
                *asked = ByteRange::new(asked.start().max(self.at), asked.end());
                break;
            }
            self.asked.pop_front();
        }
        bytes
    }

    /// What was asked for and not given is lost: failed, forgotten or evicted. It may be asked for again.
    fn forget_asked(&mut self) {
        self.asked.clear();
        self.requested = self.taken;
        self.next_request = FIRST_OF_ALL;
    }

    /// Up to where everything is asked for, or was never missing.
    fn asked_to(&self) -> u64 {
        self.asked.back().map_or(self.at, ByteRange::end).max(self.at)
    }
}
