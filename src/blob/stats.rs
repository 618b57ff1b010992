//! What a blob has cost so far.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::BlobError;
use super::lock;

/// What a blob has cost and saved so far.
#[derive(Debug, Clone, Default)]
pub struct BlobStats {
    /// Requests sent, retries included.
    pub requests: u64,
    /// Bytes that came over the network.
    pub bytes_fetched: u64,
    /// Bytes answered from the store, among them such as were fetched and written a moment before.
    pub bytes_from_store: u64,
    /// Reads that needed no byte from the network.
    pub hits: u64,
    /// Reads that needed some.
    pub misses: u64,
    /// Requests that were sent because an earlier one had failed or stalled.
    pub retries: u64,
    /// Requests that were answered with 429, too many requests.
    pub throttled: u64,
    /// What went wrong last, retried or not.
    pub last_error: Option<LastError>,
}

/// Something that went wrong, and when.
#[derive(Debug, Clone)]
pub struct LastError {
    /// What happened, in words for a user.
    pub message: String,
    /// When it happened.
    pub at: SystemTime,
}

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: AtomicU64,
    pub(super) bytes_fetched: AtomicU64,
    pub(super) bytes_from_store: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) retries: AtomicU64,
}

/// The counting side of [`BlobStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    own: Counts,
    /// The same of all blobs, those that are no more among them.
    all: Arc<Counts>,
    last_error: Mutex<Option<LastError>>,
    logged: Mutex<Option<SystemTime>>,
}

/// A blob whose host is down fails every read: one line a minute tells it as well as a thousand do.
const LOG_PAUSE: Duration = Duration::from_secs(60);

impl Counts {
    pub(super) fn snapshot(&self) -> BlobStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BlobStats {
            requests: get(&self.requests),
            bytes_fetched: get(&self.bytes_fetched),
            bytes_from_store: get(&self.bytes_from_store),
            hits: get(&self.hits),
            misses: get(&self.misses),
            retries: get(&self.retries),
            throttled: 0,
            last_error: None,
        }
    }
}

impl Counters {
    /// Those of one blob, which count into `all` too.
    pub(super) fn within(all: Arc<Counts>) -> Counters {
        Counters {
            all,
            ..Counters::default()
        }
    }

    pub(super) fn add(&self, counter: fn(&Counts) -> &AtomicU64, amount: u64) {
        for counts in [&self.own, &*self.all] {
            counter(counts).fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// Remembers something that will be tried again.
    pub(super) fn note(&self, message: String) {
        let at = SystemTime::now();
        *lock(&self.last_error) = Some(LastError { message, at });
    }

    /// Remembers and logs something that readers get as an error.
    pub(super) fn fail(&self, error: &BlobError) {
        self.note(error.to_string());
        let now = SystemTime::now();
        let mut logged = lock(&self.logged);
        let quiet = logged.is_some_and(|last| now.duration_since(last).is_ok_and(|since| since < LOG_PAUSE));
        if !quiet {
            *logged = Some(now);
            drop(logged);
            tracing::warn!("{error}");
        }
    }

    pub(super) fn snapshot(&self, throttled: u64) -> BlobStats {
        BlobStats {
            throttled,
            last_error: lock(&self.last_error).clone(),
            ..self.own.snapshot()
        }
    }
}
