//! Answers from OCI layout directories, as the distribution specification wants them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream;
use hyper::body::Incoming;
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use hyper::http::response::Builder;
use hyper::{Method, Request, Response, StatusCode};
use peelfs::digest::Digest;
use serde_json::Value;

use super::log::Target;
use super::server::{Pieces, whole};

const PIECE: u64 = 64 << 10;

/// Answers a request for what lies in the layouts, which are named by repository.
pub(super) fn answer(layouts: &BTreeMap<String, PathBuf>, request: &Request<Incoming>) -> Response<Pieces> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
    }
    let found = match Target::of(request.uri().path()) {
        Target::Manifest { repository, reference } => layouts
            .get(&repository)
            .and_then(|dir| manifest(dir, &reference, request)),
        Target::Blob { repository, digest } => layouts.get(&repository).and_then(|dir| blob(dir, &digest, request)),
        Target::Other if request.uri().path() == "/v2/" => Some(finish(
            Response::builder().header(CONTENT_TYPE, "application/json"),
            request,
            2,
            || whole(&b"{}"[..]),
        )),
        Target::Token | Target::Other => None,
    };
    found.unwrap_or_else(|| error(StatusCode::NOT_FOUND, "NOT_FOUND"))
}

/// An error as registries word it.
pub(super) fn error(status: StatusCode, code: &str) -> Response<Pieces> {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{status}"}}]}}"#);
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json")
        .body(whole(body))
        .expect("a response of constant parts")
}

fn finish(
    builder: Builder,
    request: &Request<Incoming>,
    length: u64,
    body: impl FnOnce() -> Pieces,
) -> Response<Pieces> {
    let pieces = if request.method() == Method::HEAD {
        whole(Bytes::new())
    } else {
        body()
    };
    builder
        .header(CONTENT_LENGTH, length)
        .body(pieces)
        .expect("a response of well-formed headers")
}

fn blob_path(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs").join(digest.algorithm()).join(digest.hex())
}

fn manifest(layout: &Path, reference: &str, request: &Request<Incoming>) -> Option<Response<Pieces>> {
    let digest: Digest = match reference.parse() {
        Ok(digest) => digest,
        Err(_) => {
            let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).ok()?).ok()?;
            let tagged = |descriptor: &&Value| {
                descriptor["annotations"]["org.opencontainers.image.ref.name"].as_str() == Some(reference)
            };
            index["manifests"].as_array()?.iter().find(tagged)?["digest"]
                .as_str()?
                .parse()
                .ok()?
        }
    };
    let bytes = fs::read(blob_path(layout, &digest)).ok()?;
    let document: Value = serde_json::from_slice(&bytes).ok()?;
    // The specification lets an image of OCI's leave its media type out.
    let implied = match document.get("manifests") {
        Some(_) => "application/vnd.oci.image.index.v1+json",
        None => "application/vnd.oci.image.manifest.v1+json",
    };
    let builder = Response::builder()
        .header(CONTENT_TYPE, document["mediaType"].as_str().unwrap_or(implied))
        .header("Docker-Content-Digest", digest.to_string());
    let length = bytes.len() as u64;
    Some(finish(builder, request, length, || whole(bytes)))
}

fn blob(layout: &Path, digest: &str, request: &Request<Incoming>) -> Option<Response<Pieces>> {
    let digest: Digest = digest.parse().ok()?;
    let file = File::open(blob_path(layout, &digest)).ok()?;
    let size = file.metadata().ok()?.len();
    let builder = Response::builder()
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(ACCEPT_RANGES, "bytes")
        .header("Docker-Content-Digest", digest.to_string());
    let asked = request
        .headers()
        .get(RANGE)
        .map(|range| parse_range(range.to_str().unwrap_or_default(), size));
    Some(match asked {
        None => finish(builder, request, size, || pieces(file, 0, size)),
        Some(Asked::Part(start, end)) => {
            let builder = builder
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
            finish(builder, request, end - start, || pieces(file, start, end))
        }
        Some(Asked::Outside) => {
            let builder = builder
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(CONTENT_RANGE, format!("bytes */{size}"));
            finish(builder, request, 0, || whole(Bytes::new()))
        }
        Some(Asked::Nonsense) => error(StatusCode::BAD_REQUEST, "RANGE_INVALID"),
    })
}

/// What a `Range` header asks for.
enum Asked {
    /// From the first byte to before the second.
    Part(u64, u64),
    /// Nothing that the blob has.
    Outside,
    /// Several ranges, or none at all: many registries refuse that, and so do we.
    Nonsense,
}

fn parse_range(range: &str, size: u64) -> Asked {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Asked::Nonsense;
    };
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(start), Ok(last)) => (start, last.saturating_add(1).min(size)),
        (Ok(start), Err(_)) if last.is_empty() => (start, size),
        (Err(_), Ok(length)) if first.is_empty() => (size.saturating_sub(length), size),
        _ => return Asked::Nonsense,
    };
    if start < end {
        Asked::Part(start, end)
    } else {
        Asked::Outside
    }
}

/// The bytes of a file from `start` to before `end`. Reads block for as long as the page cache takes.
fn pieces(file: File, start: u64, end: u64) -> Pieces {
    Box::pin(stream::try_unfold((file, start), move |(file, at)| async move {
        if at == end {
            return io::Result::Ok(None);
        }
        let mut piece = vec![0; PIECE.min(end - at) as usize];
        file.read_exact_at(&mut piece, at)?;
        let next = at + piece.len() as u64;
        Ok(Some((Bytes::from(piece), (file, next))))
    }))
}
