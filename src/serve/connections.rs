//! Accepts, limits and ends connections.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{HttpService, Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use super::line::{Line, Watch};
use super::seats::{Busy, Seat, Seats};

/// The most bytes of the head of a request, and about what is written ahead of a client.
const HEAD_SIZE: usize = 32 << 10;

/// How long answers under way may take when the server ends.
const GRACE: Duration = Duration::from_secs(5);

/// How long nothing is accepted when there are no file descriptors left.
const BREATHER: Duration = Duration::from_millis(100);

/// What connections are allowed.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// The most of them at a time; a further one takes the place of one that is idle, or waits.
    pub(super) connections: usize,
    /// How long the head of a request may take, and a connection be without one.
    pub(super) head: Duration,
    /// How long a client may take nothing, or next to nothing, of its answer.
    pub(super) patience: Duration,
}

impl Limits {
    pub(super) fn new(patience: Duration) -> Limits {
        Limits {
            connections: 512,
            head: Duration::from_secs(15),
            patience,
        }
    }
}

/// Serves `routes` until `end`.
pub(super) async fn run(listener: TcpListener, routes: Router, limits: Limits, end: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let seats = Seats::new(limits.connections);
    let mut end = std::pin::pin!(end);
    loop {
        let accepted = async {
            let (stream, _) = listener.accept().await?;
            Ok::<_, std::io::Error>((stream, seats.take().await))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = &mut end => break,
        };
        let (stream, seat) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (line, watch) = Line::new(stream, limits.patience);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(HEAD_SIZE)
            .serve_connection(TokioIo::new(line), service(routes.clone(), seat.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // The connection is looked at first: what it can read and write, it has when the others are.
            tokio::select! {
                biased;
                ended = connection => match ended {
                    Ok(()) => {}
                    Err(error) => tracing::debug!("a connection ended: {error}"),
                },
                () = gone(&watch, &seat) => tracing::debug!("a client went away before its answer ended"),
                () = left(&watch, &seat) => tracing::debug!("an idle connection made place for another"),
            }
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
}

/// Answers by `routes`, and notes on `seat` when it does.
fn service(
    routes: Router,
    seat: Arc<Seat>,
) -> impl HttpService<Incoming, ResBody = Sent, Error = Infallible, Future: Send> {
    let routes = TowerToHyperService::new(routes);
    service_fn(move |request| {
        let (busy, answer) = (seat.begin(), routes.call(request));
        async move {
            match busy {
                Some(busy) => Ok(answer.await?.map(|body| Sent { body, _busy: busy })),
                // The request came while the connection was being ended.
                None => std::future::pending().await,
            }
        }
    })
}

/// Waits until the client hangs up while it is being answered. Whoever reads requests sees that only when there are no
/// bytes of a further one before.
async fn gone(watch: &Watch, seat: &Seat) {
    watch.hung_up().await;
    // Looked at whenever the connection has done something.
    until(|| seat.is_busy()).await;
}

/// Waits until the connection has to make place and all that was to be sent on it is.
async fn left(watch: &Watch, seat: &Seat) {
    seat.leaving().await;
    until(|| !watch.is_waiting()).await;
}

/// Waits for something that only the task itself brings about.
async fn until(is_so: impl Fn() -> bool) {
    let look = |_: &mut Context<'_>| if is_so() { Poll::Ready(()) } else { Poll::Pending };
    std::future::poll_fn(look).await;
}

/// A body that is sent; until then its connection is not idle.
struct Sent {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::net::TcpStream;
    use tokio::sync::Notify;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// Asks on a connection, which is kept.
    async fn ask(stream: &TcpStream, path: &str) {
        stream.writable().await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(stream.try_write(request.as_bytes()).unwrap(), request.len());
    }

    /// Reads an answer whose body is `ok`; false if the connection was closed instead.
    async fn is_answered(stream: &TcpStream) -> bool {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nok") {
            let readable = tokio::time::timeout(Duration::from_secs(60), stream.readable());
            readable.await.expect("an answer").unwrap();
            let mut buffer = [0; 1000];
            match stream.try_read(&mut buffer) {
                Ok(0) => return false,
                Ok(len) => answer.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
        true
    }

    #[tokio::test]
    async fn a_newcomer_takes_the_place_of_who_was_idle_longest_and_of_nobody_else() {
        let (begun, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, awaited) = (begun.clone(), release.clone());
        let held = get(async move || {
            told.notify_one();
            awaited.notified().await;
            "ok"
        });
        let routes = Router::new().route("/", get("ok")).route("/held", held);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits {
            connections: 3,
            head: LONG,
            patience: LONG,
        };
        let server = tokio::spawn(run(listener, routes, limits, std::future::pending()));
        let connect = async || TcpStream::connect(address).await.unwrap();
        let busy = connect().await;
        ask(&busy, "/held").await;
        begun.notified().await;
        // One has asked something, one has sent nothing.
        let (first, second) = (connect().await, connect().await);
        ask(&first, "/").await;
        assert!(is_answered(&first).await);
        let newcomer = connect().await;
        ask(&newcomer, "/").await;
        assert!(is_answered(&newcomer).await);
        assert!(!is_answered(&second).await);
        ask(&first, "/").await;
        assert!(is_answered(&first).await);
        ask(&newcomer, "/held").await;
        begun.notified().await;
        ask(&first, "/held").await;
        begun.notified().await;
        // Now nobody is idle, until one is answered.
        let last = connect().await;
        ask(&last, "/").await;
        release.notify_one();
        assert!(is_answered(&last).await);
        release.notify_one();
        release.notify_one();
        let answered = [
            is_answered(&busy).await,
            is_answered(&newcomer).await,
            is_answered(&first).await,
        ];
        assert_eq!(answered, [true; 3]);
        server.abort();
    }
}
