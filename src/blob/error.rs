//! Why bytes of a blob could not be had.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Digest;
use crate::image::source::FetchError;
use crate::range::ByteRange;

/// Why a read of a blob failed. Cheap to clone: everybody who waited for the same bytes gets the same one. Its text
/// names blob, bytes and cause.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot read bytes {} of blob {}: {}", .0.range, .0.digest.short(), .0.cause)]
pub struct BlobError(Arc<Failure>);

#[derive(Debug)]
struct Failure {
    digest: Digest,
    range: ByteRange,
    cause: Cause,
}

/// What kept a blob from being read.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// It does not have so many bytes.
    #[error("it has only {size}")]
    OutOfRange {
        /// The blob's size.
        size: u64,
    },
    /// The other side said something that trying again does not change.
    #[error("{0}")]
    Refused(FetchError),
    /// No further byte arrived until the deadline, whatever was tried.
    #[error("nothing arrived for {:.1} s{}", .waited.as_secs_f32(), last_attempt(.last))]
    Deadline {
        /// How long it has been since the last byte.
        waited: Duration,
        /// How the last attempt ended, if one did.
        last: Option<FetchError>,
    },
    /// The fetch was dropped: the process ends (or it panicked, by a bug).
    #[error("the fetch was given up")]
    Abandoned,
    /// The local file that holds the blob could not be read.
    #[error("{0}")]
    File(io::Error),
}

impl BlobError {
    pub(super) fn new(digest: Digest, range: ByteRange, cause: Cause) -> BlobError {
        BlobError(Arc::new(Failure { digest, range, cause }))
    }

    /// What kept it from being read.
    pub fn cause(&self) -> &Cause {
        &self.0.cause
    }

    /// The bytes that could not be had: those asked for, or those that were missing when it was given up.
    pub fn range(&self) -> ByteRange {
        self.0.range
    }
}

fn last_attempt(last: &Option<FetchError>) -> String {
    let text = |error: &FetchError| format!("; the last attempt: {error}");
    last.as_ref().map(text).unwrap_or_default()
}
