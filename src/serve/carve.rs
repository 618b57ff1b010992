//! `/carve`: a file's bytes.
//!
//! What a carve cost is known when its last byte was read. A file of one piece is read before the head of the answer is
//! sent, so that its costs stand there. Of a longer one they come as trailers to a client that says `TE: trailers`, and
//! then, as HTTP/1.1 has it, in chunks without a `Content-Length`. Another client gets the length and no costs.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, TE, TRAILER,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;

use super::conditions::{Wanted, wanted};
use super::places::Answering;
use super::problem::Problem;
use super::query::Query;
use super::{Server, names};
use crate::inspect::{Content, Follow, InspectError, Inspector, Meter, Node, View};

/// What a client is sent at a time. It is a copy, so that who is slow does not keep a whole decoded span in memory.
const PIECE: u64 = 128 << 10;

/// How long the costs are waited for while fetches come to their end. They may be those of another carve.
const REST: Duration = Duration::from_millis(500);

const DOWNLOADED: HeaderName = HeaderName::from_static("x-carve-bytes-downloaded");
const EFFICIENCY: HeaderName = HeaderName::from_static("x-carve-efficiency");
const LAYER_INDEX: HeaderName = HeaderName::from_static("x-carve-layer-index");
const LAYER_DIGEST: HeaderName = HeaderName::from_static("x-carve-layer-digest");
const LAYER_SIZE: HeaderName = HeaderName::from_static("x-carve-layer-size");

/// A file that was found, on its way out.
struct Carve {
    inspector: Arc<Inspector>,
    view: View,
    node: Arc<Node>,
    path: Vec<u8>,
    layer: Option<usize>,
    meter: Meter,
    answering: Answering,
}

/// `GET` and `HEAD` of `/carve`.
pub(super) async fn answer(State(server): State<Arc<Server>>, request: Request) -> Result<Response, Problem> {
    let (request, _) = request.into_parts();
    let query = Query::parse(request.uri.query(), &["image", "path", "layer", "as_text"])?;
    let (layer, as_text) = (query.layer("layer")?, query.flag("as_text", false)?);
    let path = query.needed("path")?.to_vec();
    let answering = server.places.admit()?;
    let inspector = server.image(&query, "image").await?;
    let meter = Meter::start(&inspector);
    let (view, node) = inspector.find(layer, &path, Follow::Last).await?;
    let carve = Carve {
        inspector,
        view,
        node: Arc::new(node),
        path,
        layer,
        meter,
        answering,
    };
    // Whether it is a file.
    carve.content(0..0)?;
    if as_text {
        carve.check_text().await?;
    }
    carve.respond(&request, as_text).await
}

impl Carve {
    fn content(&self, range: std::ops::Range<u64>) -> Result<Content, InspectError> {
        Ok(Content::of(&self.view, self.node.clone(), range)?.in_pieces_of(PIECE))
    }

    /// Fails if the file is no text, as far as its beginning tells.
    async fn check_text(&self) -> Result<(), Problem> {
        let beginning = self.content(0..PIECE)?.next().await?.unwrap_or_default();
        if is_text(&beginning) {
            return Ok(());
        }
        let path = crate::inspect::escaped(&self.node.path);
        let sentence = format!("/{path} is not text in UTF-8; leave out as_text to get its bytes");
        Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not_text", sentence))
    }

    async fn respond(mut self, request: &Parts, as_text: bool) -> Result<Response, Problem> {
        let (method, headers) = (&request.method, &request.headers);
        let size = self.node.attr.size;
        let etag = self.etag();
        let wanted = wanted(headers, &etag, size);
        // Ranges are for GET alone; RFC 9110, 14.2.
        let is_part = method == Method::GET && matches!(wanted, Wanted::Part(_));
        let range = match wanted {
            Wanted::Other => return Err(Problem::other_version(&etag)),
            Wanted::Nothing => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                put(response.headers_mut(), ETAG, etag);
                put(response.headers_mut(), CACHE_CONTROL, "private, no-cache");
                return Ok(response);
            }
            _ if method == Method::HEAD => 0..size,
            Wanted::Outside => return Err(Problem::range(size)),
            Wanted::Part(range) => range,
            Wanted::All => 0..size,
        };
        let mut response = Response::new(Body::empty());
        let head = response.headers_mut();
        self.describe(head, as_text);
        put(head, ETAG, etag);
        if is_part {
            put(
                head,
                CONTENT_RANGE,
                format!("bytes {}-{}/{size}", range.start, range.end - 1),
            );
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        let length = range.end - range.start;
        if method == Method::HEAD {
            self.costs(response.headers_mut()).await;
            put(response.headers_mut(), CONTENT_LENGTH, length.to_string());
            return Ok(response);
        }
        // Read before the head is sent, so that it can be said if it cannot be had.
        let mut content = self.content(range)?;
        let first = self.answering.work(content.next()).await?;
        let head = response.headers_mut();
        if content.remaining() == 0 {
            self.costs(head).await;
            put(head, CONTENT_LENGTH, length.to_string());
            *response.body_mut() = Body::from(first.unwrap_or_default());
            return Ok(response);
        }
        // Without chunks there are no trailers, and only a length tells whether something is missing.
        let trailers = request.version >= Version::HTTP_11 && takes_trailers(headers);
        match trailers {
            true => put(head, TRAILER, format!("{DOWNLOADED}, {EFFICIENCY}")),
            false => put(head, CONTENT_LENGTH, length.to_string()),
        }
        *response.body_mut() = self.body(first, content, trailers);
        Ok(response)
    }

    /// Tells one file from all others, for ever: an entry of a layer.
    fn etag(&self) -> String {
        match self.node.identity() {
            Some((layer, entry)) => format!("\"{}-{entry}\"", layer.hex()),
            None => format!("\"{}-{}\"", self.inspector.image().resolved.hex(), self.node.attr.ino),
        }
    }

    /// What is known of it before it is read.
    fn describe(&self, head: &mut HeaderMap, as_text: bool) {
        // As it was asked for: what a symlink leads to may be called otherwise.
        let name = self.path.rsplit(|byte| *byte == b'/').find(|name| !name.is_empty());
        let name = name.unwrap_or_default();
        let (kind, media_type) = match as_text {
            true => ("inline", "text/plain; charset=utf-8"),
            false => ("attachment", names::media_type(name)),
        };
        put(head, CONTENT_TYPE, media_type);
        put(head, CONTENT_DISPOSITION, names::disposition(kind, name));
        put(head, ACCEPT_RANGES, "bytes");
        // A tag may come to stand for another image, and the path for another file.
        put(head, CACHE_CONTROL, "private, no-cache");
        let layer = self.node.layer().and_then(|number| self.inspector.layers().get(number));
        if let Some(layer) = layer {
            put(head, LAYER_INDEX, layer.number().to_string());
            put(head, LAYER_DIGEST, layer.descriptor().digest.to_string());
            put(head, LAYER_SIZE, layer.descriptor().size.to_string());
        }
    }

    /// Adds what was downloaded of the image since the request came.
    async fn costs(&self, head: &mut HeaderMap) {
        let _ = tokio::time::timeout(REST, self.inspector.rest_of(self.layer, self.node.layer())).await;
        let result = Ok((self.node.layer(), self.node.attr.size));
        let report = self.meter.report(&self.inspector, &self.path, self.layer, result);
        put(head, DOWNLOADED, report.bytes_downloaded.to_string());
        if let Some(efficiency) = report.efficiency_pct {
            put(head, EFFICIENCY, efficiency.to_string());
        }
    }

    /// The pieces as the client takes them. When the client goes away this is dropped, and with it what it waits for.
    fn body(self, first: Option<Bytes>, content: Content, trailers: bool) -> Body {
        let first = stream::iter(first.map(|bytes| Ok(Frame::data(bytes))));
        let rest = stream::try_unfold(Some((self, content)), move |state| async move {
            let Some((mut carve, mut content)) = state else {
                return Ok(None);
            };
            match carve.answering.work(content.next()).await {
                Ok(Some(bytes)) => Ok(Some((Frame::data(bytes), Some((carve, content))))),
                Ok(None) if trailers => {
                    let mut costs = HeaderMap::new();
                    carve.costs(&mut costs).await;
                    Ok(Some((Frame::trailers(costs), None)))
                }
                Ok(None) => Ok(None),
                // The connection is closed without the rest: the client sees that it has not got all of it.
                Err(error) => {
                    tracing::warn!("{error}");
                    Err(error)
                }
            }
        });
        Body::new(StreamBody::new(first.chain(rest).boxed()))
    }
}

/// Puts a header whose value is made of what cannot be a fault in one.
pub(super) fn put(head: &mut HeaderMap, name: HeaderName, value: impl AsRef<str>) {
    if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
        head.insert(name, value);
    }
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    let mut words = values.flat_map(|value| value.split(','));
    words.any(|word| word.trim().eq_ignore_ascii_case("trailers"))
}

/// Whether bytes, the last character of which may have been cut, are text.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    let is_utf8 = match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    is_utf8 && !bytes.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::is_text;

    #[test]
    fn text_may_be_cut_but_not_broken() {
        assert!(is_text(b"") && is_text("é\n".as_bytes()) && is_text(&"é".as_bytes()[..1]));
        assert!(!is_text(b"a\0b") && !is_text(b"caf\xe9\n"));
    }
}
