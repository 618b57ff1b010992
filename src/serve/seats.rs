//! The places for connections. Where all are taken, a newcomer gets that of the connection that was idle longest; one
//! that is being answered keeps its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// All places.
#[derive(Debug)]
pub(super) struct Seats {
    free: Arc<Semaphore>,
    taken: Mutex<Taken>,
    /// Told when a connection becomes idle.
    idle: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    last: u64,
    states: HashMap<u64, State>,
}

/// What a connection is about.
#[derive(Debug)]
enum State {
    /// Nothing is asked on it, since then; it goes when it is told so.
    Idle(Instant, Arc<Notify>),
    /// A request of it is being answered.
    Busy,
    /// It was told to go, and answers nothing more.
    Leaving,
}

/// The place of a connection, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    number: u64,
    leave: Arc<Notify>,
    _place: Option<OwnedSemaphorePermit>,
}

/// Held while a request is being answered.
#[derive(Debug)]
pub(super) struct Busy(Arc<Seat>);

impl Seats {
    pub(super) fn new(most: usize) -> Arc<Seats> {
        Arc::new(Seats {
            free: Arc::new(Semaphore::new(most)),
            taken: Mutex::default(),
            idle: Notify::new(),
        })
    }

    /// A place for a newcomer, which is idle at first. It is waited for only while all others are being answered.
    pub(super) async fn take(self: &Arc<Self>) -> Arc<Seat> {
        let place = loop {
            if let Ok(place) = self.free.clone().try_acquire_owned() {
                break Some(place);
            }
            let is_leaving = self.send_one_away();
            tokio::select! {
                // It is never closed.
                place = self.free.clone().acquire_owned() => break place.ok(),
                () = self.idle.notified(), if !is_leaving => {}
            }
        };
        let leave = Arc::<Notify>::default();
        let mut taken = self.taken.lock();
        taken.last += 1;
        let number = taken.last;
        taken.states.insert(number, State::Idle(Instant::now(), leave.clone()));
        Arc::new(Seat {
            seats: self.clone(),
            number,
            leave,
            _place: place,
        })
    }

    /// Tells the connection that was idle longest to go; false if none is idle.
    fn send_one_away(&self) -> bool {
        let mut taken = self.taken.lock();
        let idle = taken.states.values_mut().filter_map(|state| match state {
            State::Idle(since, _) => Some((*since, state)),
            _ => None,
        });
        let Some((_, state)) = idle.min_by_key(|(since, _)| *since) else {
            return false;
        };
        if let State::Idle(_, leave) = std::mem::replace(state, State::Leaving) {
            leave.notify_one();
        }
        true
    }
}

impl Seat {
    /// Begins to answer a request; none if the connection has to go.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Busy> {
        let mut taken = self.seats.taken.lock();
        let state = taken.states.get_mut(&self.number)?;
        if let State::Leaving = state {
            return None;
        }
        *state = State::Busy;
        Some(Busy(self.clone()))
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        let taken = self.seats.taken.lock();
        matches!(taken.states.get(&self.number), Some(State::Busy))
    }

    /// Waits until the connection has to go.
    pub(super) async fn leaving(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Seat {
            seats, number, leave, ..
        } = &*self.0;
        seats
            .taken
            .lock()
            .states
            .insert(*number, State::Idle(Instant::now(), leave.clone()));
        seats.idle.notify_one();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.lock().states.remove(&self.number);
    }
}
