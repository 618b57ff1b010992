//! Redirects of blobs: to signed URLs here or at another host, in chains and in circles.
//!
//! A signed URL is `/hop/N/SIGNATURE` and the path that it stands for; N counts the redirects before. The signature is
//! all the permission that is needed elsewhere. There a request that carries an `Authorization` header too is refused,
//! as object stores do it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::header::LOCATION;
use hyper::{Response, StatusCode};

use super::layouts;
use super::log::Listener;
use super::server::{Pieces, whole};

#[derive(Debug, Default)]
struct State {
    /// Where each redirect leads, one after another.
    hops: Vec<Listener>,
    /// Whether they begin again after the last.
    endless: bool,
    /// How often a signature is good.
    uses: Option<u64>,
    /// How often each signature was used.
    used: BTreeMap<u64, u64>,
    /// The last signature that was given, and the last one that is good no more.
    last: u64,
    expired: u64,
}

/// The redirects of one registry. Clones share them.
#[derive(Clone, Debug)]
pub struct Redirects {
    state: Arc<Mutex<State>>,
    registry: SocketAddr,
    elsewhere: SocketAddr,
}

/// What a path below `/hop/` is.
struct Hop<'a> {
    number: usize,
    signature: u64,
    path: &'a str,
}

fn parse(path: &str) -> Option<Hop<'_>> {
    let rest = path.strip_prefix("/hop/")?;
    let (number, rest) = rest.split_once('/')?;
    let end = rest.find('/')?;
    Some(Hop {
        number: number.parse().ok()?,
        signature: rest[..end].parse().ok()?,
        path: &rest[end..],
    })
}

/// The path that a signed one stands for; any other is its own.
pub(super) fn path_behind(path: &str) -> &str {
    parse(path).map_or(path, |hop| hop.path)
}

impl Redirects {
    pub(super) fn new(registry: SocketAddr, elsewhere: SocketAddr) -> Redirects {
        Redirects {
            state: Arc::default(),
            registry,
            elsewhere,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Redirects every request for a blob to these places, one after another; the last one has it.
    pub fn lead(&self, hops: &[Listener]) {
        let mut state = self.state();
        state.hops = hops.to_vec();
        state.endless = false;
    }

    /// Redirects every request for a blob to these places again and again.
    pub fn circle(&self, hops: &[Listener]) {
        self.lead(hops);
        self.state().endless = true;
    }

    /// Lets each signature be used so often.
    pub fn uses(&self, uses: Option<u64>) {
        self.state().uses = uses;
    }

    /// Makes every signature that was given so far invalid.
    pub fn expire(&self) {
        let mut state = self.state();
        state.expired = state.last;
    }

    /// No redirects any more; signatures that were given stay good.
    pub fn clear(&self) {
        self.lead(&[]);
        self.uses(None);
    }

    /// The answer to a request for a blob that is redirected, or that a redirect led to; `None` if it is to be had here.
    pub(super) fn answer(&self, listener: Listener, path: &str, authorized: bool) -> Option<Response<Pieces>> {
        let mut state = self.state();
        let refuse = |status| Some(layouts::error(status, "DENIED"));
        if listener == Listener::Elsewhere && authorized {
            return refuse(StatusCode::BAD_REQUEST);
        }
        let (number, signature, path) = match parse(path) {
            Some(hop) => (hop.number, hop.signature, hop.path),
            None if listener == Listener::Elsewhere => return refuse(StatusCode::FORBIDDEN),
            None => {
                let first = *state.hops.first()?;
                state.last += 1;
                return Some(self.redirect(first, 0, state.last, path));
            }
        };
        let next = match number + 1 {
            next if state.endless => next.checked_rem(state.hops.len()).and_then(|at| state.hops.get(at)),
            next => state.hops.get(next),
        };
        if let Some(next) = next {
            return Some(self.redirect(*next, number + 1, signature, path));
        }
        let uses = state.uses;
        let used = state.used.entry(signature).or_default();
        *used += 1;
        if uses.is_some_and(|uses| *used > uses) || signature <= state.expired {
            return refuse(StatusCode::FORBIDDEN);
        }
        None
    }

    fn redirect(&self, to: Listener, number: usize, signature: u64, path: &str) -> Response<Pieces> {
        let host = match to {
            Listener::Registry => self.registry,
            Listener::Elsewhere => self.elsewhere,
        };
        Response::builder()
            .status(StatusCode::FOUND)
            .header(LOCATION, format!("http://{host}/hop/{number}/{signature}{path}"))
            .body(whole("elsewhere"))
            .expect("a response of well-formed headers")
    }
}
