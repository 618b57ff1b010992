//! Connections in, answers out, each through the faults and into the log.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_RANGE, HeaderValue, RANGE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::faults::Faults;
use super::log::{self, Log, Target};
use super::{Source, layouts, upstream};

/// The bytes of a body, in pieces.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;
type Body = StreamBody<Pin<Box<dyn Stream<Item = io::Result<Frame<Bytes>>> + Send>>>;

/// All of a short body in one piece.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Pieces {
    let bytes = bytes.into();
    Box::pin(stream::iter((!bytes.is_empty()).then_some(Ok(bytes))))
}

/// Serves every connection that comes until the runtime ends.
pub(super) async fn run(listener: TcpListener, source: Source, faults: Faults, log: Log) {
    let server = Arc::new(Server { source, faults, log });
    loop {
        match listener.accept().await {
            Ok((stream, _)) if !server.faults.is_unplugged() => {
                tokio::spawn(connection(server.clone(), stream));
            }
            Ok(_) => {}
            // Out of file descriptors, or the peer left before we looked: the next may work.
            Err(error) => {
                eprintln!("registry: {error}");
                tokio::task::yield_now().await;
            }
        }
    }
}

struct Server {
    source: Source,
    faults: Faults,
    log: Log,
}

async fn connection(server: Arc<Server>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // An error is a client that hung up, or a body that a fault cut short: both are a test's business.
        _ = serving => {}
        _ = server.faults.unplugged() => {}
    }
}

impl Server {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_string();
        let range = request.headers().get(RANGE).and_then(|range| range.to_str().ok());
        let entry = self.log.begin(request.method().as_str(), &path, range);
        self.faults.moving().await;
        if self.faults.ignores_ranges() {
            request.headers_mut().remove(RANGE);
        }
        let answer = match self
            .faults
            .forced_status()
            .and_then(|status| StatusCode::from_u16(status).ok())
        {
            Some(status) => layouts::error(status, "UNAVAILABLE"),
            None => match &self.source {
                Source::Layouts(layouts) => layouts::answer(layouts, &request),
                Source::Upstream(address) => upstream::answer(*address, request).await,
            },
        };
        let (parts, pieces) = answer.into_parts();
        let start = parts.headers.get(CONTENT_RANGE).and_then(first_byte).unwrap_or(0);
        entry.answered(parts.status.as_u16(), start);
        let pieces = passing(pieces, start, entry, self.faults.clone());
        Response::from_parts(parts, StreamBody::new(Box::pin(pieces.map_ok(Frame::data))))
    }
}

/// The `a` of `bytes a-b/c`.
fn first_byte(range: &HeaderValue) -> Option<u64> {
    range
        .to_str()
        .ok()?
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

/// The pieces of a body as the faults let them pass, counted.
fn passing(
    pieces: Pieces,
    start: u64,
    entry: Arc<log::Request>,
    faults: Faults,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let digest = match &entry.target {
        Target::Blob { digest, .. } => Some(digest.clone()),
        _ => None,
    };
    struct State {
        pieces: Pieces,
        rest: Bytes,
        at: u64,
    }
    let state = State {
        pieces,
        rest: Bytes::new(),
        at: start,
    };
    stream::try_unfold(state, move |mut state| {
        let (entry, faults, digest) = (entry.clone(), faults.clone(), digest.clone());
        async move {
            if state.rest.is_empty() {
                match state.pieces.next().await {
                    Some(piece) => state.rest = piece?,
                    None => return Ok(None),
                }
            }
            let Some(digest) = digest else {
                faults.moving().await;
                entry.add(state.rest.len() as u64);
                let piece = std::mem::take(&mut state.rest);
                return Ok(Some((piece, state)));
            };
            let left = faults.body_limit().saturating_sub(state.at - start);
            if left == 0 {
                // Lets what went before get out: an error drops what is not yet written.
                tokio::task::yield_now().await;
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionReset,
                    "truncated, as the test wants it",
                ));
            }
            let wanted = state.rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let admitted = faults.admit(wanted).await;
            let mut piece = BytesMut::from(state.rest.split_to(admitted).as_ref());
            faults.spoil(&digest, state.at, &mut piece);
            state.at += admitted as u64;
            entry.add(admitted as u64);
            Ok(Some((piece.freeze(), state)))
        }
    })
}
