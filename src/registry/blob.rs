//! A blob behind a registry, a range at a time.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::error::RegistryError;
use super::repository::{Ask, Repository};
use super::transport::{host_of, next_chunk, redirect};
use crate::digest::Digest;
use crate::image::source::{BlobSource, FetchError, Fetched};
use crate::range::ByteRange;

/// A blob of a repository.
pub(super) struct RemoteBlob {
    repository: Arc<Repository>,
    digest: Digest,
    size: u64,
    /// Where the registry's redirects led: a signed URL that is good for some minutes, and a secret for as long.
    place: Mutex<Option<Url>>,
    /// Counts the answers that say that we ask too often.
    throttled: AtomicU64,
}

impl fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBlob")
            .field("repository", &self.repository)
            .field("digest", &self.digest)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl BlobSource for RemoteBlob {
    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let fetched = self.request(range).await;
            if fetched.as_ref().is_err_and(RegistryError::is_throttled) {
                self.throttled.fetch_add(1, Ordering::Relaxed);
            }
            Ok(fetched?)
        })
    }

    fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }
}

impl RemoteBlob {
    pub(super) fn new(repository: Arc<Repository>, digest: Digest, size: u64) -> RemoteBlob {
        RemoteBlob {
            repository,
            digest,
            size,
            place: Mutex::new(None),
            throttled: AtomicU64::new(0),
        }
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Option<Url>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets `url`, unless somebody has found a better place since.
    fn leave(&self, url: &Url) {
        let mut place = self.place();
        if place.as_ref() == Some(url) {
            *place = None;
        }
    }

    async fn request(&self, range: ByteRange) -> Result<Fetched, RegistryError> {
        let what = format!(
            "blob {} of {}",
            self.digest.short(),
            self.repository.endpoint().repository
        );
        if range.is_empty() || range.end() > self.size {
            let reason = format!("there are no bytes {range} in its {} bytes", self.size);
            return Err(self
                .repository
                .protocol(&self.repository.endpoint().host, &what, &reason));
        }
        let mut headers = HeaderMap::new();
        let bytes = format!("bytes={}-{}", range.start(), range.end() - 1);
        if let Ok(value) = HeaderValue::try_from(bytes) {
            headers.insert(RANGE, value);
        }
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let ask = Ask {
            method: Method::GET,
            path: &format!("blobs/{}", self.digest),
            headers,
            what: &what,
        };

        let place = self.place().clone();
        if let Some(url) = place {
            match self.repository.send_to_place(&ask, url.clone()).await {
                // Stores answer one of these when a signature is too old; 400 is Google's.
                Ok(response)
                    if matches!(response.status().as_u16(), 400 | 401 | 403 | 404 | 410)
                        || redirect(&response).is_some() =>
                {
                    self.leave(&url);
                    self.repository.transport.discard(response).await;
                }
                Ok(response) => return self.answer(response, range, &what).await,
                Err(error) => {
                    self.leave(&url);
                    return Err(error);
                }
            }
        }
        let (response, place) = self.repository.send(ask).await?;
        if let Some(url) = place
            && response.status().is_success()
        {
            *self.place() = Some(url);
        }
        self.answer(response, range, &what).await
    }

    async fn answer(&self, response: Response, asked: ByteRange, what: &str) -> Result<Fetched, RegistryError> {
        let unusable = |reason: String| self.repository.protocol(&host_of(response.url()), what, &reason);
        let headers = response.headers();
        let encoded = headers.get(CONTENT_ENCODING).is_some_and(|value| value != "identity");
        let range = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let (range, total) = range
                    .and_then(content_range)
                    .ok_or_else(|| unusable("it is a part that does not say which".to_owned()))?;
                if range != asked {
                    return Err(unusable(format!("bytes {asked} were asked for, and {range} came")));
                }
                if total.is_some_and(|total| total != self.size) {
                    return Err(unusable(format!(
                        "it is not {} bytes long, as the manifest says",
                        self.size
                    )));
                }
                range
            }
            StatusCode::OK => ByteRange::new(0, self.size),
            _ => return Err(self.repository.transport.status_error(response, what).await),
        };
        if encoded {
            return Err(unusable("it is encoded, although that was ruled out".to_owned()));
        }
        if let Some(length) = response.content_length()
            && length != range.len()
        {
            return Err(unusable(format!(
                "{length} bytes are announced instead of {}",
                range.len()
            )));
        }
        let timeout = self.repository.endpoint().timeout;
        Ok(Fetched {
            range,
            body: body(response, range.len(), timeout),
        })
    }
}

/// Exactly `length` bytes of a body, or an error where they ended.
fn body(response: Response, length: u64, timeout: Duration) -> BoxStream<'static, Result<Bytes, FetchError>> {
    stream::try_unfold((response, length), move |(mut response, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        match next_chunk(&mut response, timeout).await? {
            Some(mut chunk) => {
                if chunk.len() as u64 > left {
                    chunk.truncate(left as usize);
                }
                let left = left - chunk.len() as u64;
                Ok(Some((chunk, (response, left))))
            }
            None => Err(FetchError::Transient {
                reason: format!("{} closed the connection {left} bytes early", host_of(response.url())),
                retry_after: None,
            }),
        }
    })
    .boxed()
}

/// `bytes FIRST-LAST/SIZE` as the range and the size, which may be `*`; RFC 9110, 14.4.
fn content_range(text: &str) -> Option<(ByteRange, Option<u64>)> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, size) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (number(first)?, number(last)?);
    let size = if size == "*" { None } else { Some(number(size)?) };
    let end = last.checked_add(1)?;
    (unit.eq_ignore_ascii_case("bytes") && first <= last).then(|| (ByteRange::new(first, end), size))
}

/// For the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(text: &str) {
    if let Some((range, _)) = content_range(text) {
        assert!(!range.is_empty());
    }
}

/// Digits only: `parse` alone would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let table = [
            ("bytes 0-0/1", Some((ByteRange::new(0, 1), Some(1)))),
            ("Bytes 5-9/*", Some((ByteRange::new(5, 10), None))),
            ("bytes 9-5/20", None),
            ("bytes */20", None),
            ("bytes +1-2/20", None),
            ("items 1-2/20", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes 1-2", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(content_range(text), expected, "{text}");
        }
    }
}
