//! Who brings which byte of a blob, and who waits for it.
//!
//! A flight *claims* the bytes that it has not received yet, and holds those that it has until they are written to the
//! store. No two flights claim the same byte, but for the one flight that a host without ranges makes necessary: it
//! brings the whole blob.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::range::ByteRange;

use super::BlobError;
use super::slots::Ticket;

/// What a waiting reader is told: look again, or that it failed.
pub(super) type Arrival = Result<(), BlobError>;

/// All flights of one blob.
#[derive(Default)]
pub(super) struct Flights {
    flying: Vec<Flight>,
    last_id: u64,
    /// The host answers a request for a range with the whole blob.
    pub(super) no_ranges: bool,
}

/// One fetch under way, seen by readers.
pub(super) struct Flight {
    pub(super) id: u64,
    /// What it was to bring at first, or the whole blob.
    pub(super) range: ByteRange,
    /// Up to here it has brought everything.
    arrived: u64,
    /// It brings the whole blob, because the host has no ranges.
    whole: bool,
    /// It has got a slot.
    started: bool,
    pub(super) ticket: Option<Ticket>,
    /// What has arrived and is not in the store yet, by offset.
    chunks: BTreeMap<u64, Bytes>,
    waiting: Vec<(u64, oneshot::Sender<Arrival>)>,
}

/// Where a byte is, seen from the flights.
pub(super) enum Located {
    /// Here it is, and those behind it.
    Here(Bytes),
    /// That flight brings it and those up to the offset.
    Claimed(u64, u64),
    /// No flight has or brings it, nor those up to the offset.
    Nowhere(u64),
}

/// What becomes of a flight that is answered with the whole blob.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// It brings the whole blob from now on.
    Continue,
    /// Another already does.
    GiveWay,
}

impl Flights {
    /// Where the first byte of `range` (not empty) is, and how far that goes.
    pub(super) fn locate(&self, range: ByteRange) -> Located {
        let (at, mut end) = (range.start(), range.end());
        for flight in &self.flying {
            if let Some((start, chunk)) = flight.chunks.range(..=at).next_back()
                && at - start < chunk.len() as u64
            {
                let from = (at - start) as usize;
                let to = chunk.len().min(from.saturating_add(range.len() as usize));
                return Located::Here(chunk.slice(from..to));
            }
            if let Some((next, _)) = flight.chunks.range(at..).next() {
                end = end.min(*next);
            }
        }
        let mut claimed = None;
        for flight in &self.flying {
            if flight.arrived <= at && at < flight.range.end() {
                // The narrow flight before the one that brings everything: it will be there sooner.
                if claimed.is_none() || !flight.whole {
                    claimed = Some((flight.id, end.min(flight.range.end())));
                }
            } else if at < flight.arrived && flight.arrived < flight.range.end() {
                end = end.min(flight.arrived);
            }
        }
        match claimed {
            Some((id, end)) => Located::Claimed(id, end),
            None => Located::Nowhere(end),
        }
    }

    /// Adds a flight and returns its number.
    pub(super) fn take_off(&mut self, range: ByteRange, whole: bool) -> u64 {
        self.last_id += 1;
        self.flying.push(Flight {
            id: self.last_id,
            range,
            arrived: range.start(),
            whole,
            started: false,
            ticket: None,
            chunks: BTreeMap::new(),
            waiting: Vec::new(),
        });
        self.last_id
    }

    /// The flight with number `id`, if it has not ended and was not dropped.
    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Flight> {
        self.flying.iter_mut().find(|flight| flight.id == id)
    }

    /// Notes that the flight begins; false if it is not wanted any more.
    pub(super) fn start(&mut self, id: u64) -> bool {
        self.get_mut(id).map(|flight| flight.started = true).is_some()
    }

    /// The flight that brings the whole blob, if the host has no ranges and it is under way.
    pub(super) fn bringing_all(&mut self) -> Option<&mut Flight> {
        self.flying.iter_mut().find(|flight| flight.whole)
    }

    /// Tells when one that is under way has ended; none if there is none.
    pub(super) fn one_ends(&mut self) -> Option<oneshot::Receiver<Arrival>> {
        self.flying.first_mut().map(|flight| flight.wait(u64::MAX))
    }

    /// Flights that have not ended.
    pub(super) fn len(&self) -> usize {
        self.flying.len()
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.flying.iter().map(|flight| flight.waiting.len()).sum()
    }

    /// Flights that still have to bring something of `range`.
    pub(super) fn bringing(&self, range: ByteRange) -> usize {
        let missing = |flight: &&Flight| range.overlaps(&ByteRange::new(flight.arrived, flight.range.end()));
        self.flying.iter().filter(missing).count()
    }

    /// The host has answered flight `id` with the whole blob of `size` bytes: from now on one flight brings it all,
    /// and those that have not begun are not needed.
    pub(super) fn answered_with_all(&mut self, id: u64, size: u64) -> Whole {
        self.no_ranges = true;
        let other = self.flying.iter().any(|flight| flight.whole && flight.id != id);
        if other {
            return Whole::GiveWay;
        }
        self.end_where(|flight| !flight.started && flight.id != id, || Ok(()));
        match self.get_mut(id) {
            None => Whole::GiveWay,
            Some(flight) => {
                if !flight.whole {
                    flight.whole = true;
                    flight.range = ByteRange::new(0, size);
                    flight.arrived = 0;
                }
                Whole::Continue
            }
        }
    }

    /// The parts of `range` that no flight holds; with `id`'s own claim and those of others left aside.
    pub(super) fn not_held(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut held: Vec<ByteRange> = self
            .flying
            .iter()
            .flat_map(|flight| &flight.chunks)
            .map(|(start, chunk)| ByteRange::at(*start, chunk.len() as u64).intersection(&range))
            .filter(|held| !held.is_empty())
            .collect();
        held.sort_unstable();
        let (mut at, mut parts) = (range.start(), Vec::new());
        for held in held {
            parts.push(ByteRange::new(at, held.start()));
            at = at.max(held.end());
        }
        parts.push(ByteRange::new(at, range.end()));
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// Ends flight `id`: waiting readers look again, or get the error.
    pub(super) fn end(&mut self, id: u64, result: Arrival) {
        self.end_where(|flight| flight.id == id, || result.clone());
    }

    /// Ends with an error those that have not begun: their host does not answer.
    pub(super) fn end_unstarted(&mut self, error: &BlobError) {
        self.end_where(|flight| !flight.started, || Err(error.clone()));
    }

    /// Drops all flights and what they hold; waiting readers look again.
    pub(super) fn drop_all(&mut self) {
        self.end_where(|_| true, || Ok(()));
    }

    fn end_where(&mut self, ends: impl Fn(&Flight) -> bool, result: impl Fn() -> Arrival) {
        for flight in self.flying.extract_if(.., |flight| ends(flight)) {
            for (_, waiter) in flight.waiting {
                let _ = waiter.send(result());
            }
        }
    }
}

impl Flight {
    /// Tells when all up to `until` has arrived, or when that is not going to happen.
    pub(super) fn wait(&mut self, until: u64) -> oneshot::Receiver<Arrival> {
        let (waiter, arrival) = oneshot::channel();
        // Readers that went away are cleared up here, lest a stalled flight gathers them.
        self.waiting.retain(|(_, waiter)| !waiter.is_closed());
        self.waiting.push((until, waiter));
        arrival
    }

    /// The ticket of a flight that has not begun.
    pub(super) fn queued(&self) -> Option<Ticket> {
        if self.started { None } else { self.ticket }
    }

    /// Takes in `chunk` as the bytes from `at` on.
    pub(super) fn hold(&mut self, at: u64, chunk: Bytes) {
        self.chunks.insert(at, chunk);
    }

    /// Everything up to `to` has arrived, held or not needed: wakes who waited for that.
    pub(super) fn advance(&mut self, to: u64) {
        self.arrived = self.arrived.max(to);
        let arrived = self.arrived;
        for (_, waiter) in self.waiting.extract_if(.., |(until, _)| *until <= arrived) {
            let _ = waiter.send(Ok(()));
        }
    }

    /// What is in `range` has been written to the store.
    pub(super) fn written(&mut self, range: ByteRange) {
        self.chunks
            .retain(|start, _| *start < range.start() || *start >= range.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end)
    }

    #[test]
    fn a_byte_is_here_then_claimed_then_nowhere() {
        let mut flights = Flights::default();
        let id = flights.take_off(range(10, 20), false);
        let flight = flights.get_mut(id).unwrap();
        flight.hold(10, Bytes::from_static(b"abc"));
        flight.advance(13);
        assert!(matches!(flights.locate(range(0, 30)), Located::Nowhere(10)));
        assert!(matches!(flights.locate(range(11, 30)), Located::Here(bytes) if bytes == "bc"));
        assert!(matches!(flights.locate(range(11, 12)), Located::Here(bytes) if bytes == "b"));
        assert!(matches!(flights.locate(range(13, 30)), Located::Claimed(1, 20)));
        assert!(matches!(flights.locate(range(20, 30)), Located::Nowhere(30)));
        flights.get_mut(id).unwrap().written(range(10, 13));
        assert!(matches!(flights.locate(range(11, 30)), Located::Nowhere(13)));
        assert_eq!(flights.not_held(range(5, 15)), [range(5, 15)]);
    }

    #[test]
    fn a_reader_is_told_as_soon_as_his_bytes_are_there() {
        let mut flights = Flights::default();
        let id = flights.take_off(range(0, 100), false);
        let (mut early, mut late) = {
            let flight = flights.get_mut(id).unwrap();
            (flight.wait(10), flight.wait(50))
        };
        flights.get_mut(id).unwrap().advance(10);
        assert!(matches!(early.try_recv(), Ok(Ok(()))));
        assert!(late.try_recv().is_err());
        flights.drop_all();
        assert!(matches!(late.try_recv(), Ok(Ok(()))));
    }

    #[test]
    fn one_flight_brings_all_and_the_others_give_way() {
        let mut flights = Flights::default();
        let (a, b, c) = (
            flights.take_off(range(0, 10), false),
            flights.take_off(range(10, 20), false),
            flights.take_off(range(20, 30), false),
        );
        flights.start(a);
        flights.start(b);
        let mut waiting = flights.get_mut(c).unwrap().wait(30);
        assert_eq!(flights.answered_with_all(b, 100), Whole::Continue);
        assert_eq!(flights.answered_with_all(a, 100), Whole::GiveWay);
        assert!(matches!(waiting.try_recv(), Ok(Ok(()))), "looks again");
        assert!(matches!(flights.locate(range(25, 30)), Located::Claimed(id, 30) if id == b));
        assert!(matches!(flights.locate(range(5, 30)), Located::Claimed(id, 10) if id == a));
    }
}
