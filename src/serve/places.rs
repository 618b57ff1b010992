//! How many questions are worked on at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;

/// The places for those that are worked on.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    answering: Arc<AtomicUsize>,
}

/// An answer that is under way. It has a place only while there is work for it, and none while its client is waited for:
/// so slow clients keep nobody out.
#[derive(Debug)]
pub(super) struct Answering {
    free: Arc<Semaphore>,
    answering: Arc<AtomicUsize>,
    place: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(super) fn new(most: usize) -> Places {
        Places {
            free: Arc::new(Semaphore::new(most)),
            answering: Arc::default(),
        }
    }

    /// Begins an answer, unless as many as may be are worked on.
    pub(super) fn admit(&self) -> Result<Answering, Problem> {
        let place = self.free.clone().try_acquire_owned().map_err(|_| Problem::busy())?;
        self.answering.fetch_add(1, Ordering::Relaxed);
        Ok(Answering {
            free: self.free.clone(),
            answering: self.answering.clone(),
            place: Some(place),
        })
    }

    /// How many answers are under way.
    pub(super) fn answering(&self) -> usize {
        self.answering.load(Ordering::Relaxed)
    }
}

impl Answering {
    /// Does some of the work, as soon as there is a place for it.
    pub(super) async fn work<T>(&mut self, work: impl Future<Output = T>) -> T {
        if self.place.is_none() {
            // It is never closed.
            self.place = self.free.clone().acquire_owned().await.ok();
        }
        let done = work.await;
        self.place = None;
        done
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_place_is_taken_only_while_there_is_work() {
        let places = Places::new(1);
        let mut first = places.admit().unwrap();
        assert_eq!(places.admit().unwrap_err().status, 503);
        first.work(async {}).await;
        let mut second = places.admit().unwrap();
        assert_eq!(places.answering(), 2);
        assert!(first.work(async {}).now_or_never().is_none());
        second.work(async {}).await;
        first.work(async {}).await;
        drop((first, second));
        assert_eq!(places.answering(), 0);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_leaves_its_place() {
        let places = Places::new(1);
        let mut gone = places.admit().unwrap();
        assert!(gone.work(std::future::pending::<()>()).now_or_never().is_none());
        drop(gone);
        assert!(places.admit().is_ok());
    }
}
