//! Requests to one repository of one registry.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::time::Instant;

use super::auth::{Authenticator, Authorization};
use super::blob::RemoteBlob;
use super::challenge::{self, Challenge};
use super::credentials::CredentialFiles;
use super::error::RegistryError;
use super::hosts::Route;
use super::transport::{self, Proof, Request, SendError, Transport, host_of, is_loopback};
use super::{MANIFEST_TYPES, MAX_MANIFEST};
use crate::digest::Digest;
use crate::image::source::BlobSource;

/// The most redirects that one request follows.
const MAX_REDIRECTS: usize = 10;

/// The first pause between two attempts at a document; it doubles, and is taken by chance from its upper half.
const PAUSE: Duration = Duration::from_millis(250);

/// The most tokens that are bought for one request. The first may have ended, or been used up by others, on its way.
const MAX_TOKENS: usize = 3;

/// The most refusals that one request bears, those of tokens that others have bought among them.
const MAX_REFUSALS: usize = 10;

/// The header with the digest of a manifest; a claim, not a proof.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// Which repository, and how to talk to its registry.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The registry as a user names it, `docker.io` for Docker Hub; credentials are looked up by it.
    pub registry: String,
    /// The host that speaks the protocol, with a port if it is not the scheme's own.
    pub host: String,
    /// The repository's name, such as `library/debian`.
    pub repository: String,
    /// Certificates are not checked, and plain http is used if there is no https.
    pub insecure: bool,
    /// No request is made; each one that would be needed is an error.
    pub offline: bool,
    /// Whether a registry at a public address may send us to private ones.
    pub allow_private: bool,
    /// Whether the registry itself, and all that it leads to, must be at public addresses.
    pub public_only: bool,
    /// Longest wait for the head of an answer and for each piece of a body; also for a document with all its retries.
    pub timeout: Duration,
    /// Whether a document is asked for again if that may help. Not of a mirror: there is another host to ask.
    pub retries: bool,
    /// What is known of the way to the host.
    pub route: Route,
}

/// A repository of a registry: its connections, its token, the scheme that works.
pub struct Repository {
    endpoint: Endpoint,
    pub(super) transport: Transport,
    authenticator: Authenticator,
    /// `https` or `http`, once an answer has come.
    scheme: OnceLock<&'static str>,
}

/// A manifest as it was got for a tag.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// The document, byte for byte.
    pub bytes: Bytes,
}

/// What is asked for, below `/v2/NAME/`.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// `manifests/..` or `blobs/..`.
    pub(super) path: &'a str,
    pub(super) headers: HeaderMap,
    /// In words, for an error.
    pub(super) what: &'a str,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Repository").field(&self.endpoint).finish()
    }
}

impl Repository {
    /// A repository; nothing is asked yet, nor is any file read.
    pub fn new(endpoint: Endpoint, credentials: CredentialFiles) -> Arc<Repository> {
        Arc::new(Repository {
            transport: Transport::new(&endpoint),
            authenticator: Authenticator::new(credentials),
            scheme: OnceLock::new(),
            endpoint,
        })
    }

    /// How the registry is talked to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The manifest that `tag` stands for now, and its digest.
    pub async fn manifest_of_tag(&self, tag: &str) -> Result<FetchedManifest, RegistryError> {
        let what = self.manifest_name(tag);
        self.retried(&what, || {
            async {
                let (response, _) = self.ask(self.manifest_request(Method::GET, tag), &what).await?;
                let claimed = claimed_digest(&response);
                let bytes = self.transport.body(response, MAX_MANIFEST, &what).await?;
                let digest = match claimed {
                    Some(claimed) => {
                        self.verify(&claimed, &bytes, &what)?;
                        claimed
                    }
                    None => Digest::sha256(&bytes),
                };
                Ok(FetchedManifest { digest, bytes })
            }
            .boxed()
        })
        .await
    }

    /// The manifest with this digest, verified.
    pub async fn manifest(&self, digest: &Digest) -> Result<Bytes, RegistryError> {
        let name = digest.to_string();
        let what = self.manifest_name(&digest.short());
        self.retried(&what, || {
            async {
                let (response, _) = self.ask(self.manifest_request(Method::GET, &name), &what).await?;
                let bytes = self.transport.body(response, MAX_MANIFEST, &what).await?;
                self.verify(digest, &bytes, &what)?;
                Ok(bytes)
            }
            .boxed()
        })
        .await
    }

    /// The digest that `tag` stands for now, if the registry tells without sending the manifest.
    ///
    /// One attempt that takes at most `limit`: whoever asks has an older answer to fall back on.
    pub async fn digest_of_tag(&self, tag: &str, limit: Duration) -> Result<Option<Digest>, RegistryError> {
        let what = self.manifest_name(tag);
        let asked = self.ask(self.manifest_request(Method::HEAD, tag), &what);
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok((response, _))) => Ok(claimed_digest(&response)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(transport::timed_out(
                self.endpoint.host.clone(),
                &format!("no answer for {what} in {limit:?}"),
            )),
        }
    }

    /// A whole small blob, such as a config: at most `limit` bytes, verified.
    pub async fn document(&self, digest: &Digest, limit: usize) -> Result<Bytes, RegistryError> {
        let path = format!("blobs/{digest}");
        let what = format!("blob {} of {}", digest.short(), self.endpoint.repository);
        self.retried(&what, || {
            async {
                let request = (Method::GET, path.clone(), HeaderMap::new());
                let (response, _) = self.ask(request, &what).await?;
                let bytes = self.transport.body(response, limit, &what).await?;
                self.verify(digest, &bytes, &what)?;
                Ok(bytes)
            }
            .boxed()
        })
        .await
    }

    /// The blob with this digest and size as a source of ranges. Nothing is asked yet.
    pub fn blob(self: &Arc<Self>, digest: Digest, size: u64) -> Arc<dyn BlobSource> {
        Arc::new(RemoteBlob::new(Arc::clone(self), digest, size))
    }

    fn manifest_name(&self, name: &str) -> String {
        format!("manifest {name} of {}", self.endpoint.repository)
    }

    fn manifest_request(&self, method: Method, name: &str) -> (Method, String, HeaderMap) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
        (method, format!("manifests/{name}"), headers)
    }

    /// Sends, and takes any status but success for an error.
    async fn ask(
        &self,
        (method, path, headers): (Method, String, HeaderMap),
        what: &str,
    ) -> Result<(Response, Option<Url>), RegistryError> {
        let (response, place) = self
            .send(Ask {
                method,
                path: &path,
                headers,
                what,
            })
            .await?;
        if response.status() != StatusCode::OK {
            return Err(self.transport.status_error(response, what).await);
        }
        Ok((response, place))
    }

    /// Sends with what authorisation is needed and follows redirects. The answer may have any status but 401 from the
    /// registry itself; the URL is where redirects led, if there were any.
    pub(super) async fn send(&self, ask: Ask<'_>) -> Result<(Response, Option<Url>), RegistryError> {
        if self.endpoint.offline {
            return Err(RegistryError::Offline {
                host: self.endpoint.host.clone(),
                what: ask.what.to_owned(),
            });
        }
        let mut authorization = self.authenticator.current(&self.transport, &self.endpoint).await?;
        let mut refusals = Refusals::default();
        'again: loop {
            let mut response = self.send_to_registry(&ask, &authorization.proof).await?;
            let home = origin(response.url());
            let mut place = None;
            for hop in 0..=MAX_REDIRECTS {
                let at_home = origin(response.url()) == home;
                match response.status() {
                    StatusCode::UNAUTHORIZED
                        if at_home && refusals.leave_hope(&authorization, &challenges_of(&response)) =>
                    {
                        let challenges = challenges_of(&response);
                        let plain = response.url().scheme() == "http";
                        self.transport.discard(response).await;
                        authorization = self
                            .authenticator
                            .renew(&authorization, challenges, plain, &self.transport, &self.endpoint)
                            .await?;
                        continue 'again;
                    }
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if at_home => {
                        let detail = match self.transport.status_error(response, ask.what).await {
                            RegistryError::Refused { detail, .. } => detail,
                            _ => String::new(),
                        };
                        return Err(self.authenticator.still_denied(&self.endpoint, detail).await);
                    }
                    _ => {}
                }
                let Some(location) = transport::redirect(&response) else {
                    return Ok((response, place));
                };
                if hop == MAX_REDIRECTS {
                    break;
                }
                let url = self.redirected(response.url(), location, ask.what)?;
                self.transport.discard(response).await;
                // Object stores refuse a signed URL that comes with a token, and it is none of their business.
                let to_home = origin(&url) == home;
                let proof = match to_home {
                    true => authorization.proof.clone(),
                    false => Proof::None,
                };
                response = self.send_to(&ask, url.clone(), to_home, &proof).await?;
                place = Some(url);
            }
            return Err(self.protocol(&host_of(response.url()), ask.what, "it redirects in circles"));
        }
    }

    /// A request to a place that an earlier redirect led to.
    pub(super) async fn send_to_place(&self, ask: &Ask<'_>, url: Url) -> Result<Response, RegistryError> {
        // The token may have been renewed since; the origin decides whether it goes along.
        let base = self.scheme.get().and_then(|scheme| self.url(scheme, ask.path).ok());
        let home = base.is_some_and(|base| origin(&base) == origin(&url));
        let proof = match home {
            true => self.authenticator.current(&self.transport, &self.endpoint).await?.proof,
            false => Proof::None,
        };
        Ok(self.send_to(ask, url, home, &proof).await?)
    }

    async fn send_to_registry(&self, ask: &Ask<'_>, proof: &Proof) -> Result<Response, RegistryError> {
        let route = &self.endpoint.route;
        let local = is_loopback(host_name(&self.endpoint.host));
        let schemes: &[&'static str] = match self.scheme.get().or(route.scheme.as_ref()) {
            Some(scheme) => &[scheme],
            None if self.endpoint.insecure || (local && !route.ca.is_empty()) => &["https", "http"],
            None if local => &["http"],
            None => &["https"],
        };
        let mut last = None;
        for (at, scheme) in schemes.iter().enumerate() {
            match self.send_to(ask, self.url(scheme, ask.path)?, true, proof).await {
                Ok(response) => {
                    self.transport.answered(&response);
                    let _ = self.scheme.set(scheme);
                    return Ok(response);
                }
                Err(failed) if failed.no_connection && at + 1 < schemes.len() => last = Some(failed.error),
                Err(failed) => return Err(failed.error),
            }
        }
        Err(last.unwrap_or_else(|| self.protocol(&self.endpoint.host, ask.what, "there is no way to ask")))
    }

    /// Sends to the registry itself (`home`), with the headers that are for it alone, or to where it has sent us.
    async fn send_to(&self, ask: &Ask<'_>, url: Url, home: bool, proof: &Proof) -> Result<Response, SendError> {
        // The path that was asked for, not that of the URL: some stores have signatures in theirs.
        tracing::debug!(method = %ask.method, host = %host_of(&url), path = ask.path, "request");
        let mut headers = ask.headers.clone();
        if home {
            headers.extend(self.endpoint.route.headers.clone());
        }
        self.transport
            .send(Request {
                method: ask.method.clone(),
                url,
                away: !home,
                headers,
                proof: proof.clone(),
                form: None,
                what: ask.what,
            })
            .await
    }

    fn url(&self, scheme: &str, path: &str) -> Result<Url, RegistryError> {
        let Endpoint {
            host,
            repository,
            route,
            ..
        } = &self.endpoint;
        let root = route.root.as_deref().unwrap_or("/v2");
        let mut url = Url::parse(&format!("{scheme}://{host}{root}/{repository}/{path}"))
            .map_err(|_| self.protocol(host, path, "its name makes no URL"))?;
        if let Some(namespace) = &route.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// The URL of a redirect. From https only to https: the bytes of a layer are not verified before its end is seen.
    fn redirected(&self, from: &Url, location: &str, what: &str) -> Result<Url, RegistryError> {
        let host = host_of(from);
        let url = from
            .join(location)
            .map_err(|_| self.protocol(&host, what, "it redirects to something that is no URL"))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if from.scheme() == "http" || self.endpoint.insecure => Ok(url),
            _ => Err(self.protocol(
                &host,
                what,
                "it redirects from https to a place without (try --insecure)",
            )),
        }
    }

    pub(super) fn protocol(&self, host: &str, what: &str, reason: &str) -> RegistryError {
        RegistryError::Protocol {
            host: host.to_owned(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn verify(&self, digest: &Digest, bytes: &Bytes, what: &str) -> Result<(), RegistryError> {
        if digest.matches(bytes) {
            return Ok(());
        }
        Err(RegistryError::WrongDigest {
            host: self.endpoint.host.clone(),
            what: what.to_owned(),
            bytes: bytes.clone(),
        })
    }

    /// Tries again what may pass, with growing pauses, until the timeout would be over.
    async fn retried<'a, T>(
        &'a self,
        what: &'a str,
        attempt: impl Fn() -> BoxFuture<'a, Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let deadline = Instant::now() + self.endpoint.timeout;
        let mut pause = PAUSE;
        let mut last = None;
        loop {
            let error = match tokio::time::timeout_at(deadline, attempt()).await {
                Ok(Err(error)) if error.is_transient() && self.endpoint.retries => error,
                Ok(done) => return done,
                Err(_) => {
                    let reason = format!("{what} did not come in {:?}", self.endpoint.timeout);
                    return Err(last.unwrap_or_else(|| transport::timed_out(self.endpoint.host.clone(), &reason)));
                }
            };
            let wait = error.retry_after().unwrap_or_default().max(by_chance(pause));
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            // Whoever waits is told why, once; that a host is asked too often is told where it says so.
            if last.is_none() && !error.is_throttled() {
                tracing::warn!("{error}; trying again for up to {:?}", self.endpoint.timeout);
            } else {
                tracing::debug!("{error}; trying again in {wait:?}");
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(Duration::from_secs(5));
            last = Some(error);
        }
    }
}

/// How often one request was refused.
#[derive(Default)]
struct Refusals {
    all: usize,
    /// With a token that was bought for this request.
    of_bought: usize,
}

impl Refusals {
    /// Counts one more, of `used`; whether something else may be accepted.
    fn leave_hope(&mut self, used: &Authorization, challenges: &[Challenge]) -> bool {
        self.all += 1;
        self.of_bought += usize::from(used.bought);
        let insufficient = |challenge: &Challenge| matches!(challenge, Challenge::Bearer { insufficient: true, .. });
        match used.proof {
            _ if self.all == 1 => true,
            Proof::Bearer(_) => {
                self.all < MAX_REFUSALS
                    && self.of_bought < MAX_TOKENS
                    && !(used.bought && challenges.iter().any(insufficient))
            }
            Proof::None | Proof::Basic(_) => false,
        }
    }
}

fn challenges_of(response: &Response) -> Vec<Challenge> {
    let headers = response.headers().get_all(WWW_AUTHENTICATE);
    challenge::parse(headers.iter().filter_map(|value| value.to_str().ok()))
}

/// Between half of `pause` and all of it, so that many who do a thing at once do not do the next at once.
pub(super) fn by_chance(pause: Duration) -> Duration {
    let chance = RandomState::new().build_hasher().finish() as u32;
    pause / 2 + (pause / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

fn claimed_digest(response: &Response) -> Option<Digest> {
    response
        .headers()
        .get(CONTENT_DIGEST)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Scheme, host and port: what a token is for.
fn origin(url: &Url) -> (String, String, Option<u16>) {
    let host = url.host_str().unwrap_or_default().to_owned();
    (url.scheme().to_owned(), host, url.port_or_known_default())
}

/// `HOST` of `HOST[:PORT]`.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_not_part_of_the_name() {
        for (host, name) in [
            ("localhost:5000", "localhost"),
            ("[::1]:5000", "[::1]"),
            ("[::1]", "[::1]"),
            ("ghcr.io", "ghcr.io"),
        ] {
            assert_eq!(host_name(host), name);
        }
    }

    #[test]
    fn pauses_keep_to_their_upper_half() {
        for _ in 0..100 {
            let pause = by_chance(PAUSE);
            assert!(pause >= PAUSE / 2 && pause <= PAUSE, "{pause:?}");
        }
    }
}
