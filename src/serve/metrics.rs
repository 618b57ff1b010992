//! Counters, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;

use super::Server;
use super::images::Images;
use super::problem::Problem;
use crate::inspect::InspectError;
use crate::tree::Costs;

/// What was asked of the server, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    errors: Mutex<BTreeMap<&'static str, u64>>,
    served: AtomicU64,
}

impl Metrics {
    /// Counts an answer, by what was asked and its status, and if it is an error by its kind.
    pub(super) fn answered(&self, route: &'static str, status: u16, kind: Option<&'static str>) {
        *self.requests.lock().entry((route, status)).or_default() += 1;
        if let Some(kind) = kind {
            self.broke(kind);
        }
    }

    /// Counts an answer that broke off after its head was sent.
    pub(super) fn broke(&self, kind: &'static str) {
        *self.errors.lock().entry(kind).or_default() += 1;
    }

    /// Counts bytes of bodies.
    pub(super) fn served(&self, bytes: usize) {
        self.served.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// All counters as text; `carves` is how many questions are being answered.
    pub(super) fn text(&self, images: &Images, carves: usize) -> String {
        let mut text = String::new();
        head(
            &mut text,
            "peelfs_http_requests_total",
            "counter",
            "Answers, by what was asked and status.",
        );
        for ((route, status), count) in &*self.requests.lock() {
            let _ = writeln!(
                text,
                "peelfs_http_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}"
            );
        }
        head(
            &mut text,
            "peelfs_errors_total",
            "counter",
            "Answers that are errors, or broke off by one, by kind.",
        );
        for (kind, count) in &*self.errors.lock() {
            let _ = writeln!(text, "peelfs_errors_total{{kind=\"{kind}\"}} {count}");
        }
        let Costs { blobs, scanned } = images.costs();
        for (name, help, value) in [
            (
                "served_bytes",
                "Bytes of answers sent.",
                self.served.load(Ordering::Relaxed),
            ),
            (
                "fetched_bytes",
                "Bytes of layers that came from registries.",
                blobs.bytes_fetched,
            ),
            (
                "store_bytes",
                "Bytes of layers that came from the store.",
                blobs.bytes_from_store,
            ),
            ("registry_requests", "Requests for bytes of layers.", blobs.requests),
            ("registry_retries", "Requests that were sent again.", blobs.retries),
            ("cache_hits", "Reads of layers that needed no registry.", blobs.hits),
            ("cache_misses", "Reads of layers that needed one.", blobs.misses),
            (
                "indexed_bytes",
                "Compressed bytes of layers that were read to index them; how fast it grows is the rate of scanning.",
                scanned,
            ),
        ] {
            let name = format!("peelfs_{name}_total");
            head(&mut text, &name, "counter", help);
            let _ = writeln!(text, "{name} {value}");
        }
        for (name, help, value) in [
            ("peelfs_open_images", "Images that are kept open.", images.open_count()),
            ("peelfs_carves", "Questions that are being answered.", carves),
        ] {
            head(&mut text, name, "gauge", help);
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }
}

/// The body of an answer, counted on its way. What is known of its length stays known.
pub(super) struct Counted {
    pub(super) body: Body,
    pub(super) server: Arc<Server>,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let metrics = &self.server.metrics;
        match &frame {
            Some(Ok(frame)) => metrics.served(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(error)) => metrics.broke(kind(error)),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The kind of problem that an error in a body would have been if it had come before the head.
fn kind(error: &(dyn Error + 'static)) -> &'static str {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    let cause = causes.find_map(|error| error.downcast_ref::<InspectError>());
    cause.map_or("internal", |error| Problem::from(error.clone()).kind)
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
