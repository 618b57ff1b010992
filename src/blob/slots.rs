//! Who may fetch now, and who has to wait: few requests at once, those that somebody waits for first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::lock;

/// Fetches at once, for all blobs of a store together.
const IN_ALL: usize = 16;
/// Fetches at once for one blob.
const PER_BLOB: usize = 4;
/// Slots that only urgent fetches get, in all and of one blob: what reads ahead never holds up a reader.
const KEPT_IN_ALL: usize = 2;
const KEPT_PER_BLOB: usize = 1;

/// The slots of a store.
pub(super) struct Slots {
    queue: Mutex<Queue>,
}

struct Queue {
    taken: usize,
    by_blob: HashMap<u64, usize>,
    urgent: VecDeque<Waiting>,
    ahead: VecDeque<Waiting>,
    last_ticket: u64,
    /// When a byte last arrived anywhere.
    progress: Instant,
    /// Whether a fetch has given up since.
    silent: bool,
    /// Until when the host wants to be left alone.
    closed_until: Instant,
}

struct Waiting {
    ticket: Ticket,
    blob: u64,
    grant: oneshot::Sender<Slot>,
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// The right to fetch; dropping it gives it to the next.
pub(super) struct Slot {
    slots: Arc<Slots>,
    blob: u64,
}

impl Slots {
    pub(super) fn new() -> Slots {
        let queue = Queue {
            taken: 0,
            by_blob: HashMap::new(),
            urgent: VecDeque::new(),
            ahead: VecDeque::new(),
            last_ticket: 0,
            progress: Instant::now(),
            silent: false,
            closed_until: Instant::now(),
        };
        Slots {
            queue: Mutex::new(queue),
        }
    }

    /// Queues for a slot of the blob with number `blob`.
    pub(super) fn enter(self: &Arc<Self>, blob: u64, urgent: bool) -> (Ticket, oneshot::Receiver<Slot>) {
        let (grant, granted) = oneshot::channel();
        let mut queue = lock(&self.queue);
        queue.last_ticket += 1;
        let ticket = Ticket(queue.last_ticket);
        let waiting = Waiting { ticket, blob, grant };
        if urgent {
            queue.urgent.push_back(waiting);
        } else {
            queue.ahead.push_back(waiting);
        }
        self.hand_out(queue);
        (ticket, granted)
    }

    /// Somebody waits for this one now.
    pub(super) fn promote(self: &Arc<Self>, ticket: Ticket) {
        let mut queue = lock(&self.queue);
        let found = queue.ahead.iter().position(|waiting| waiting.ticket == ticket);
        if let Some(waiting) = found.and_then(|at| queue.ahead.remove(at)) {
            queue.urgent.push_back(waiting);
            self.hand_out(queue);
        }
    }

    /// A byte has arrived.
    pub(super) fn progressed(&self) {
        let mut queue = lock(&self.queue);
        queue.progress = Instant::now();
        queue.silent = false;
    }

    /// A fetch has waited for its whole deadline in vain.
    pub(super) fn gave_up(&self) {
        lock(&self.queue).silent = true;
    }

    /// Whether nothing has arrived, for any blob, since a fetch gave up.
    pub(super) fn silent(&self) -> bool {
        lock(&self.queue).silent
    }

    /// The host has asked one fetch to be left alone until then, which concerns the others as well.
    pub(super) fn close_until(&self, then: Instant) {
        let mut queue = lock(&self.queue);
        queue.closed_until = queue.closed_until.max(then);
    }

    /// Until when nobody is to ask the host for anything.
    pub(super) fn closed_until(&self) -> Instant {
        lock(&self.queue).closed_until
    }

    /// When a byte last arrived, for any blob.
    pub(super) fn last_progress(&self) -> Instant {
        lock(&self.queue).progress
    }

    fn hand_out(self: &Arc<Self>, mut queue: std::sync::MutexGuard<'_, Queue>) {
        let mut granted = Vec::new();
        while let Some(waiting) = queue.next() {
            queue.taken += 1;
            *queue.by_blob.entry(waiting.blob).or_default() += 1;
            let slot = Slot {
                slots: Arc::clone(self),
                blob: waiting.blob,
            };
            granted.push((waiting.grant, slot));
        }
        drop(queue);
        for (grant, slot) in granted {
            // Who does not want it any more drops it here, and with that hands it on.
            let _ = grant.send(slot);
        }
    }
}

impl Queue {
    fn next(&mut self) -> Option<Waiting> {
        let (taken, by_blob) = (self.taken, &self.by_blob);
        let first = |waiting: &VecDeque<Waiting>, in_all: usize, per_blob: usize| {
            let of_blob = |blob: u64| by_blob.get(&blob).copied().unwrap_or_default();
            let free = |waiting: &Waiting| taken < in_all && of_blob(waiting.blob) < per_blob;
            waiting.iter().position(free)
        };
        if let Some(at) = first(&self.urgent, IN_ALL, PER_BLOB) {
            return self.urgent.remove(at);
        }
        let at = first(&self.ahead, IN_ALL - KEPT_IN_ALL, PER_BLOB - KEPT_PER_BLOB)?;
        self.ahead.remove(at)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut queue = lock(&self.slots.queue);
        queue.taken = queue.taken.saturating_sub(1);
        if let Some(of_blob) = queue.by_blob.get_mut(&self.blob) {
            *of_blob -= 1;
            if *of_blob == 0 {
                queue.by_blob.remove(&self.blob);
            }
        }
        self.slots.hand_out(queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(receiver: &mut oneshot::Receiver<Slot>) -> Option<Slot> {
        receiver.try_recv().ok()
    }

    #[test]
    fn readers_come_before_what_reads_ahead_and_a_blob_has_four() {
        let slots = Arc::new(Slots::new());
        let mut ahead: Vec<_> = (0..5).map(|_| slots.enter(1, false)).collect();
        let mut held: Vec<_> = ahead.iter_mut().filter_map(|(_, r)| granted(r)).collect();
        assert_eq!(held.len(), 3, "one is kept for a reader");
        let mut reads: Vec<_> = (0..2).map(|_| slots.enter(1, true)).collect();
        held.extend(granted(&mut reads[0].1));
        assert_eq!(held.len(), 4);
        assert!(granted(&mut reads[1].1).is_none());
        assert!(
            granted(&mut slots.enter(2, true).1).is_some(),
            "another blob has its own"
        );
        slots.promote(ahead[4].0);
        held.pop();
        let second = granted(&mut reads[1].1);
        assert!(second.is_some());
        drop(second);
        assert!(granted(&mut ahead[4].1).is_some(), "promoted");
        assert!(granted(&mut ahead[3].1).is_none());
    }

    #[test]
    fn who_has_left_the_queue_is_passed_over() {
        let slots = Arc::new(Slots::new());
        let mut held: Vec<_> = (0..4).filter_map(|_| granted(&mut slots.enter(1, true).1)).collect();
        let gone = slots.enter(1, true);
        let mut next = slots.enter(1, true);
        drop(gone);
        held.pop();
        assert!(granted(&mut next.1).is_some());
    }
}
