//! Questions about images over HTTP: files, listings, comparisons, and pages for people.
//!
//! > server > guard (who may ask, and for which images) > images (opened, a few kept) > answers
//!
//! Everything is answered by [`inspect`], so that nothing is fetched twice between HTTP, the command line and a mount
//! with the same cache. An answer is streamed as it comes about, and no faster than the client takes it: a client that
//! goes away stops the work for it, one that stalls is cut off, and none keeps another waiting.
//!
//! What is in images is a stranger's: it is sent so that no browser runs or renders it, and all names are escaped.
//!
//! | file | what it does |
//! |---|---|
//! | `connections` | accepts, limits and ends connections |
//! | `seats` | which connection makes place for a newcomer |
//! | `line` | clients that take too little, or have hung up |
//! | `guard` | which hosts a request may be for, and which images may be asked about |
//! | `query` | the query of a URL, whose values are bytes |
//! | `images` | opened images, the least recently used closed |
//! | `routes` | from a path to its answer; what all answers have |
//! | `carve` | a file's bytes: ranges, tags, costs |
//! | `conditions` | `Range`, `If-Range`, `If-Match` and `If-None-Match` |
//! | `names` | file names and media types in headers |
//! | `listings` | listings, versions and comparisons, as JSON and as text |
//! | `pages` | the pages for people |
//! | `metrics` | counters for Prometheus |
//! | `places` | how many questions are worked on at a time |
//! | `problem` | what went wrong, as a status and a sentence in JSON |
//!
//! [`inspect`]: crate::inspect

mod carve;
mod conditions;
mod connections;
mod guard;
mod images;
mod line;
mod listings;
mod metrics;
mod names;
mod pages;
mod places;
mod problem;
mod query;
mod routes;
mod seats;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::tree::Settings;

use connections::Limits;
pub use guard::Allowed;
use guard::Guard;
use images::Images;
use metrics::Metrics;
use places::Places;

/// How images are served.
#[derive(Debug, Clone)]
pub struct Options {
    /// How images are opened.
    pub settings: Settings,
    /// Names that it is asked by, besides addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Which registries may be asked.
    pub allowed: Allowed,
    /// Layouts and archives on this machine may be asked about too.
    pub local: bool,
    /// The most questions worked on at a time.
    pub most_carves: usize,
    /// The most images kept open.
    pub most_images: usize,
    /// How long a client may take nothing, or next to nothing, of its answer.
    pub patience: Duration,
}

/// What all requests share.
#[derive(Debug)]
struct Server {
    guard: Guard,
    images: Images,
    metrics: Metrics,
    places: Places,
}

/// Serves on `listener` until `end` comes about, and then lets answers under way come to their end for a moment.
///
/// # Errors
/// If it cannot be told where `listener` listens.
pub async fn serve(listener: TcpListener, options: Options, end: impl Future<Output = ()>) -> std::io::Result<()> {
    let server = Arc::new(Server {
        guard: Guard::new(listener.local_addr()?, options.hosts, options.allowed, options.local),
        images: Images::new(options.settings, options.most_images),
        metrics: Metrics::default(),
        places: Places::new(options.most_carves),
    });
    connections::run(listener, routes::all(server), Limits::new(options.patience), end).await;
    Ok(())
}
