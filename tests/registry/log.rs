//! What a registry was asked, and what it sent.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peelfs::digest::Digest;

/// What a request's path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A manifest or an index, by tag or digest.
    Manifest {
        /// The repository's name.
        repository: String,
        /// Tag or digest.
        reference: String,
    },
    /// A blob: a layer or a config.
    Blob {
        /// The repository's name.
        repository: String,
        /// The blob's digest.
        digest: String,
    },
    /// The version check, tokens, uploads, anything else.
    Other,
}

impl Target {
    /// What the path of a URL names.
    pub fn of(path: &str) -> Target {
        let parts = path.strip_prefix("/v2/").and_then(|rest| {
            let (rest, last) = rest.rsplit_once('/')?;
            let (repository, kind) = rest.rsplit_once('/')?;
            Some((repository.to_string(), kind, last.to_string()))
        });
        match parts {
            Some((repository, "manifests", reference)) => Target::Manifest { repository, reference },
            Some((repository, "blobs", digest)) => Target::Blob { repository, digest },
            _ => Target::Other,
        }
    }
}

/// One request and its answer.
#[derive(Debug)]
pub struct Request {
    /// The method, such as `GET`.
    pub method: String,
    /// The path and query.
    pub path: String,
    /// What the path names.
    pub target: Target,
    /// The `Range` header as it came.
    pub range: Option<String>,
    status: AtomicU64,
    start: AtomicU64,
    sent: AtomicU64,
}

impl Request {
    /// The status of the answer; 0 while there is none.
    pub fn status(&self) -> u16 {
        self.status.load(Ordering::SeqCst) as u16
    }

    /// Where in the blob the body begins.
    pub fn start(&self) -> u64 {
        self.start.load(Ordering::SeqCst)
    }

    /// Bytes of the body that have gone out so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    fn is_of(&self, wanted: &str) -> bool {
        matches!(&self.target, Target::Blob { digest, .. } if digest == wanted)
    }

    pub(super) fn answered(&self, status: u16, start: u64) {
        self.status.store(status.into(), Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
    }

    pub(super) fn add(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::SeqCst);
    }
}

/// All requests of one registry, oldest first. Clones share them; printed, it is a table to show with a failed test.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<Arc<Request>>>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Request>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, method: &str, path: &str, range: Option<&str>) -> Arc<Request> {
        let request = Arc::new(Request {
            method: method.to_string(),
            path: path.to_string(),
            target: Target::of(path.split('?').next().unwrap_or_default()),
            range: range.map(str::to_string),
            status: AtomicU64::new(0),
            start: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        });
        self.lock().push(request.clone());
        request
    }

    /// Forgets what was.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Every request since the last [`Log::clear`].
    pub fn requests(&self) -> Vec<Arc<Request>> {
        self.lock().clone()
    }

    /// How many requests there were.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing was asked.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The requests for the blob `digest`.
    pub fn requests_of(&self, digest: &Digest) -> Vec<Arc<Request>> {
        let digest = digest.to_string();
        self.lock()
            .iter()
            .filter(|request| request.is_of(&digest))
            .cloned()
            .collect()
    }

    /// The bytes of the blob `digest` that went out, each as often as it did.
    pub fn bytes_of(&self, digest: &Digest) -> u64 {
        self.requests_of(digest).iter().map(|request| request.sent()).sum()
    }

    /// The bytes of the blob `digest` that went out more than once, each counted as often as it was in excess.
    pub fn repeated_of(&self, digest: &Digest) -> u64 {
        let mut runs: Vec<(u64, u64)> = self
            .requests_of(digest)
            .iter()
            .map(|request| (request.start(), request.start() + request.sent()))
            .collect();
        runs.sort_unstable();
        let mut seen_to = 0;
        let mut repeated = 0;
        for (start, end) in runs {
            repeated += end.min(seen_to).saturating_sub(start);
            seen_to = seen_to.max(end);
        }
        repeated
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>6} {:>10}  request", "status", "sent")?;
        for request in self.requests() {
            write!(
                f,
                "{:>6} {:>10}  {} {}",
                request.status(),
                request.sent(),
                request.method,
                request.path
            )?;
            writeln!(
                f,
                "{}",
                request
                    .range
                    .as_deref()
                    .map(|range| format!("  {range}"))
                    .unwrap_or_default()
            )?;
        }
        Ok(())
    }
}
