//! What a registry was asked, and what it sent.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue, RANGE};
use peelfs::digest::Digest;

use super::{auth, redirects};

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
    /// A token.
    Token,
    /// The version check, uploads, anything else.
    Other,
}

impl Target {
    /// What the path of a URL names.
    pub fn of(path: &str) -> Target {
        if path == auth::REALM {
            return Target::Token;
        }
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

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// At the registry's own address.
    Registry,
    /// At the other one, which is another host for whoever has credentials: only redirects lead there.
    Elsewhere,
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
    /// Where it came in.
    pub listener: Listener,
    /// The scheme of the `Authorization` header, such as `Bearer`, if there was one.
    pub authorization: Option<String>,
    /// When it came.
    pub at: Instant,
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

    pub(super) fn brings_bytes(&self) -> bool {
        matches!(self.status(), 200 | 206)
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

    pub(super) fn begin(&self, listener: Listener, request: &hyper::Request<Incoming>) -> Arc<Request> {
        let header = |name| request.headers().get(name).map(text);
        let uri = request.uri();
        let request = Arc::new(Request {
            method: request.method().to_string(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_string(),
            target: Target::of(redirects::path_behind(uri.path())),
            range: header(RANGE),
            listener,
            authorization: header(AUTHORIZATION).map(|value| value.split(' ').next().unwrap_or_default().to_string()),
            at: Instant::now(),
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

    /// The requests for tokens.
    pub fn requests_of_tokens(&self) -> Vec<Arc<Request>> {
        self.lock()
            .iter()
            .filter(|request| request.target == Target::Token)
            .cloned()
            .collect()
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
        let requests = self.requests_of(digest);
        let with_bytes = requests.iter().filter(|request| request.brings_bytes());
        with_bytes.map(|request| request.sent()).sum()
    }

    /// The bytes of the blob `digest` that went out more than once, each counted as often as it was in excess.
    pub fn repeated_of(&self, digest: &Digest) -> u64 {
        let mut runs: Vec<(u64, u64)> = self
            .requests_of(digest)
            .iter()
            .filter(|request| request.brings_bytes())
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

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>6} {:>10}  request", "status", "sent")?;
        for request in self.requests() {
            let Request { method, path, .. } = &*request;
            write!(f, "{:>6} {:>10}  {method} {path}", request.status(), request.sent())?;
            for word in [&request.range, &request.authorization].into_iter().flatten() {
                write!(f, "  {word}")?;
            }
            let elsewhere = match request.listener {
                Listener::Registry => "",
                Listener::Elsewhere => "  elsewhere",
            };
            writeln!(f, "{elsewhere}")?;
        }
        Ok(())
    }
}
