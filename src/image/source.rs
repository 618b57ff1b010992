//! Where the bytes of a blob come from.

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::range::ByteRange;

/// Something that a blob's bytes can be asked from over a network, a range at a time.
///
/// An implementation makes one attempt; whoever calls it decides whether to try again, because only the caller
/// knows how much has arrived and how long its own reader may wait.
pub trait BlobSource: fmt::Debug + Send + Sync {
    /// Asks for `range` (not empty, within the blob) with one request, redirects and a token aside.
    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<Fetched, FetchError>>;

    /// Told that bytes that it gave are not those of the blob. Whether, from now on, somebody else gives them.
    fn distrust(&self) -> bool {
        false
    }

    /// How many requests were answered with 429, too many requests.
    fn throttled(&self) -> u64 {
        0
    }
}

/// An answer whose header has arrived and whose body is still to be read.
pub struct Fetched {
    /// What the body holds. Normally what was asked for; from a host without ranges the whole blob.
    pub range: ByteRange,
    /// The bytes in order. It ends with an error if fewer arrive than `range` promises, and never gives more.
    pub body: BoxStream<'static, Result<Bytes, FetchError>>,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// Why a request for a blob's bytes gave no, or not all, bytes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// Trying again may help: no connection, a reset, a short body, a stall, 429 or 5xx.
    #[error("{reason}")]
    Transient {
        /// What happened, in words for a user, with the host's name.
        reason: String,
        /// What the server asked for with `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Trying again will not help: not found, not permitted, or an answer that breaks the protocol.
    #[error("{reason}")]
    Permanent {
        /// What happened, in words for a user, with the host's name.
        reason: String,
    },
}

/// Where the bytes of one blob are.
#[derive(Debug, Clone)]
pub enum BlobOrigin {
    /// Behind a network: what is fetched is worth keeping.
    Remote(Arc<dyn BlobSource>),
    /// In a file on this machine, at `range` of it: nothing is kept.
    File {
        /// Open for reading.
        file: Arc<File>,
        /// Where in the file the blob lies.
        range: ByteRange,
    },
}
