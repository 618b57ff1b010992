//! Answers from another registry, passed on piece by piece.

use std::net::SocketAddr;

use futures_util::stream;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::layouts;
use super::server::Pieces;

/// Asks `upstream` the same, on a connection of its own, and gives its answer.
pub(super) async fn answer(upstream: SocketAddr, request: Request<Incoming>) -> Response<Pieces> {
    match ask(upstream, request).await {
        Ok(response) => response.map(|body| -> Pieces {
            Box::pin(stream::unfold(body, |mut body| async move {
                loop {
                    match body.frame().await? {
                        // Trailers say nothing here.
                        Ok(frame) => match frame.into_data() {
                            Ok(data) => return Some((Ok(data), body)),
                            Err(_) => continue,
                        },
                        Err(error) => return Some((Err(std::io::Error::other(error)), body)),
                    }
                }
            }))
        }),
        Err(error) => {
            eprintln!("registry: {upstream}: {error}");
            layouts::error(StatusCode::BAD_GATEWAY, "UNAVAILABLE")
        }
    }
}

async fn ask(
    upstream: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(upstream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer's body; an error there shows in the body.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}
