//! Connections in, answers out, each through the faults and into the log.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_RANGE, HeaderValue, RANGE, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::auth::Guard;
use super::faults::Faults;
use super::log::{self, Listener, Log, Target};
use super::redirects::{self, Redirects};
use super::{Source, heads, layouts, upstream};

/// The bytes of a body, in pieces.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;
type Body = StreamBody<Pin<Box<dyn Stream<Item = io::Result<Frame<Bytes>>> + Send>>>;

/// All of a short body in one piece.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Pieces {
    let bytes = bytes.into();
    Box::pin(stream::iter((!bytes.is_empty()).then_some(Ok(bytes))))
}

pub(super) struct Server {
    pub(super) source: Source,
    pub(super) faults: Faults,
    pub(super) log: Log,
    pub(super) guard: Guard,
    pub(super) redirects: Redirects,
}

/// Serves every connection that comes to one listener until the runtime ends.
pub(super) async fn run(own: TcpListener, listener: Listener, server: Arc<Server>) {
    loop {
        match own.accept().await {
            Ok((stream, _)) if !server.faults.is_unplugged() => {
                tokio::spawn(connection(server.clone(), listener, stream));
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

async fn connection(server: Arc<Server>, listener: Listener, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let reset = Arc::new(Notify::new());
    let service = service_fn(|request| {
        let (server, reset) = (server.clone(), reset.clone());
        async move { Ok::<_, Infallible>(server.answer(listener, request, reset).await) }
    });
    let mut serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let resets = tokio::select! {
        // An error is a client that hung up, or a body that a fault cut short: both are a test's business.
        _ = &mut serving => false,
        _ = server.faults.unplugged() => false,
        _ = reset.notified() => true,
    };
    if resets {
        let _ = serving.into_parts().io.inner().set_zero_linger();
    }
}

impl Server {
    async fn answer(&self, listener: Listener, request: Request<Incoming>, reset: Arc<Notify>) -> Response<Body> {
        let entry = self.log.begin(listener, &request);
        self.faults.moving().await;
        self.faults.due(&entry.target).await;
        let (mut parts, pieces) = self.respond(&entry, request).await.into_parts();
        let range = parts.headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let start = range.and_then(heads::parse).map_or(0, |(first, ..)| first);
        entry.answered(parts.status.as_u16(), start);
        if let Some(head) = self.faults.head_fault() {
            heads::change(head, &mut parts, &entry.target);
        }
        let pieces = passing(pieces, start, entry, self.faults.clone(), reset);
        Response::from_parts(parts, StreamBody::new(Box::pin(pieces.map_ok(Frame::data))))
    }

    /// The answer with everything wrong but its head and the way its body comes.
    async fn respond(&self, entry: &log::Request, mut request: Request<Incoming>) -> Response<Pieces> {
        if let Some((status, retry_after)) = self.faults.refusal_of(&entry.target) {
            let status = StatusCode::from_u16(status).expect("a status that a test wants");
            let mut refused = layouts::error(status, "UNAVAILABLE");
            if let Some(Ok(when)) = retry_after.map(HeaderValue::try_from) {
                refused.headers_mut().insert(RETRY_AFTER, when);
            }
            return refused;
        }
        if entry.target == Target::Token {
            return self.guard.token(request).await;
        }
        if entry.listener == Listener::Registry
            && let Some(refused) = self.guard.refusal(request.headers())
        {
            return refused;
        }
        if entry.listener == Listener::Elsewhere || matches!(entry.target, Target::Blob { .. }) {
            let (path, authorized) = (request.uri().path(), entry.authorization.is_some());
            if let Some(answer) = self.redirects.answer(entry.listener, path, authorized) {
                return answer;
            }
            if let Ok(path) = redirects::path_behind(path).parse() {
                *request.uri_mut() = path;
            }
        }
        if self.faults.ignores_ranges() {
            request.headers_mut().remove(RANGE);
        }
        match &self.source {
            Source::Layouts(layouts) => layouts::answer(layouts, &request),
            Source::Upstream(address) => upstream::answer(*address, request).await,
        }
    }
}

/// The pieces of a body as the faults let them pass, counted.
fn passing(
    pieces: Pieces,
    start: u64,
    entry: Arc<log::Request>,
    faults: Faults,
    reset: Arc<Notify>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let digest = match &entry.target {
        // A refusal or a redirect has nothing of the blob.
        Target::Blob { digest, .. } if entry.brings_bytes() => Some(digest.clone()),
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
        let reset = reset.clone();
        async move {
            if state.rest.is_empty() {
                match state.pieces.next().await {
                    Some(piece) => state.rest = piece?,
                    None => {
                        // As below: the head may have promised more, which is an error.
                        tokio::task::yield_now().await;
                        return Ok(None);
                    }
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
                if faults.resets() {
                    reset.notify_one();
                    return std::future::pending().await;
                }
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
