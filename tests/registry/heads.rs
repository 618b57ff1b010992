//! What can be wrong with, or merely unusual in, the head of an answer.

use hyper::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderName, HeaderValue};
use hyper::http::response::Parts;
use hyper::{StatusCode, Version};

use super::log::Target;

/// One such thing. The first five concern blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// `Content-Range` names bytes that stand one further than those that come.
    ShiftedRange,
    /// `Content-Range` says that the blob is longer by one.
    WrongTotal,
    /// `Content-Length` promises ten bytes more than come.
    LongerLength,
    /// `Content-Length` promises ten bytes fewer, and no more come.
    ShorterLength,
    /// `Content-Encoding: gzip`, and nothing is encoded.
    Gzip,
    /// `Docker-Content-Digest` is that of something else; of manifests too.
    WrongDigest,
    /// HTTP/1.0, with a length, and the connection ends with the answer.
    Http10,
    /// HTTP/1.0 without a length: the body ends with the connection.
    Http10WithoutLength,
    /// `Transfer-Encoding: chunked` and no length.
    Chunked,
}

/// Changes the head of an answer that succeeded.
pub(super) fn change(head: Head, parts: &mut Parts, target: &Target) {
    let is_blob = matches!(target, Target::Blob { .. });
    if !parts.status.is_success() {
        return;
    }
    match head {
        Head::ShiftedRange if is_blob => {
            change_range(parts, |first, last, total| (first + 1, last + 1, total));
        }
        Head::WrongTotal if is_blob => change_range(parts, |first, last, total| (first, last, total + 1)),
        Head::LongerLength if is_blob => change_length(parts, |length| length + 10),
        Head::ShorterLength if is_blob => change_length(parts, |length| length.saturating_sub(10)),
        Head::Gzip if is_blob => {
            parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Head::WrongDigest if parts.status == StatusCode::OK || is_blob => {
            let other = peelfs::digest::Digest::sha256(b"something else").to_string();
            parts
                .headers
                .insert(HeaderName::from_static("docker-content-digest"), value(other));
        }
        Head::Http10 | Head::Http10WithoutLength => {
            parts.version = Version::HTTP_10;
            parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
            if head == Head::Http10WithoutLength {
                parts.headers.remove(CONTENT_LENGTH);
            }
        }
        Head::Chunked => {
            parts.headers.remove(CONTENT_LENGTH);
        }
        _ => {}
    }
}

fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("a header of printable characters")
}

fn change_length(parts: &mut Parts, change: impl FnOnce(u64) -> u64) {
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if let Some(length) = length.and_then(|length| length.parse().ok()) {
        parts.headers.insert(CONTENT_LENGTH, value(change(length).to_string()));
    }
}

fn change_range(parts: &mut Parts, change: impl FnOnce(u64, u64, u64) -> (u64, u64, u64)) {
    let range = parts.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    if let Some((first, last, total)) = range.and_then(parse) {
        let (first, last, total) = change(first, last, total);
        parts
            .headers
            .insert(CONTENT_RANGE, value(format!("bytes {first}-{last}/{total}")));
    }
}

/// The three numbers of `bytes a-b/c`.
pub(super) fn parse(range: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, total.parse().ok()?))
}
