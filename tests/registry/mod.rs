//! A registry of our own, on loopback, for tests and for the demo.
//!
//! It serves OCI layout directories, or stands as a proxy in front of another registry. Both ways every answer goes
//! through the same [`Faults`], which a test sets while it runs, and into the same [`Log`], which says what was asked
//! and how many bytes went out.
//!
//! [`layouts`] answers from directories, [`upstream`] from another registry; [`server`] does the connections and passes
//! each answer's bytes through faults and log. [`auth`] decides who may read, [`redirects`] sends requests for blobs to
//! other places, one of them a second listener, and [`heads`] makes the heads of answers wrong.

mod auth;
mod faults;
mod heads;
mod layouts;
mod log;
mod redirects;
mod server;
mod upstream;

pub use auth::{Guard, basic};
pub use faults::{Faults, Line, Part, RetryAfter};
pub use heads::Head;
pub use log::{Listener, Log, Target};
pub use redirects::Redirects;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// A running registry; it stops when dropped.
pub struct Registry {
    address: SocketAddr,
    server: Arc<server::Server>,
    runtime: Option<Runtime>,
}

/// Where answers come from.
enum Source {
    Layouts(BTreeMap<String, PathBuf>),
    Upstream(SocketAddr),
}

impl Registry {
    /// Serves OCI layout directories: repository name and directory of each.
    pub fn of<N: Into<String>, D: Into<PathBuf>>(repositories: impl IntoIterator<Item = (N, D)>) -> Registry {
        let repositories = repositories
            .into_iter()
            .map(|(name, dir)| (name.into(), dir.into()))
            .collect();
        Registry::start(Source::Layouts(repositories), 0)
    }

    /// The same on a port of the caller's choice.
    #[allow(dead_code, reason = "for the demo")]
    pub fn on_port(port: u16, repositories: BTreeMap<String, PathBuf>) -> Registry {
        Registry::start(Source::Layouts(repositories), port)
    }

    /// Stands in front of the registry at `upstream` and passes everything on.
    pub fn in_front_of(upstream: SocketAddr) -> Registry {
        Registry::start(Source::Upstream(upstream), 0)
    }

    fn start(source: Source, port: u16) -> Registry {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("registry")
            .enable_all()
            .build()
            .expect("a runtime for the registry");
        let listen = |port| {
            let listener = runtime
                .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, port)))
                .expect("a port on loopback");
            let address = listener.local_addr().expect("the address that was bound");
            (listener, address)
        };
        let (own, address) = listen(port);
        let (other, elsewhere) = listen(0);
        let server = Arc::new(server::Server {
            source,
            faults: Faults::default(),
            log: Log::default(),
            guard: Guard::new(address),
            redirects: Redirects::new(address, elsewhere),
        });
        runtime.spawn(server::run(own, Listener::Registry, server.clone()));
        runtime.spawn(server::run(other, Listener::Elsewhere, server.clone()));
        Registry {
            address,
            server,
            runtime: Some(runtime),
        }
    }

    /// Host and port, as they stand in an image reference.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is wrong with this registry, to be changed at any time.
    pub fn faults(&self) -> &Faults {
        &self.server.faults
    }

    /// What it was asked, and what it sent.
    pub fn log(&self) -> &Log {
        &self.server.log
    }

    /// Who may read.
    pub fn guard(&self) -> &Guard {
        &self.server.guard
    }

    /// Where requests for blobs are sent.
    pub fn redirects(&self) -> &Redirects {
        &self.server.redirects
    }

    /// No faults, no redirects, and anybody may read.
    pub fn heal(&self) {
        self.faults().clear();
        self.redirects().clear();
        self.guard().open();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
