//! HTTP towards registries, realms and object stores: clients, hosts, and how a failure is classed.

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Method, Response, StatusCode, Url};

use super::address::{ALLOW, NOT_ASKED, PublicOnly, is_proxied, is_public, names_private_address, names_proxy};
use super::error::RegistryError;
use super::hosts::Route;
use super::repository::Endpoint;

/// What is read of an answer that nobody wants, so that its connection can be used again.
const DISCARDED: usize = 64 << 10;

/// How long nothing is said again of a registry that still finds itself asked too often.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// How long a server may keep us waiting for a connection; less than a whole timeout, since another try may reach
/// another of its addresses.
const CONNECT: Duration = Duration::from_secs(10);

/// The connections of one repository.
///
/// A client for each way out, made when first needed. HTTP/1.1 only: HTTP/2 with default windows is slower over distance.
pub(super) struct Transport {
    /// To this machine without TLS: no proxy is asked, and no certificates are needed.
    local: Way,
    /// To the host itself.
    home: Way,
    /// To the host itself, if it has a public address.
    home_guarded: Way,
    /// To where it sends us, without our certificate, to anywhere ...
    away: Way,
    /// ... or to public addresses only.
    away_guarded: Way,
    route: Route,
    insecure: bool,
    /// Whether a public host may send us to private addresses.
    allow_private: bool,
    /// Whether nothing but public addresses may be asked at all.
    public_only: bool,
    /// Whether the host has a public address; known when it has answered.
    public: AtomicBool,
    /// Longest wait for the head of an answer, and for each piece of its body.
    pub(super) timeout: Duration,
    /// As a user names it.
    registry: String,
    throttling_said: Rarely,
}

/// Something that is said once in a while, however often there is reason to.
#[derive(Default)]
struct Rarely(Mutex<Option<Instant>>);

impl Rarely {
    /// Whether it is to be said at `now`; if so, it counts as said.
    fn due(&self, now: Instant) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= SAY_AGAIN);
        if due {
            *last = Some(now);
        }
        due
    }
}

type Way = OnceLock<Result<Client, RegistryError>>;

/// Who a request says it is from.
#[derive(Clone)]
pub(super) enum Proof {
    /// Anybody.
    None,
    /// The bearer of a token.
    Bearer(Arc<str>),
    /// User and password.
    Basic(Arc<(String, String)>),
}

/// One HTTP request.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Whether it goes to another host than the registry's, which the registry has named.
    pub(super) away: bool,
    pub(super) headers: HeaderMap,
    pub(super) proof: Proof,
    /// A form to be posted.
    pub(super) form: Option<String>,
    /// What is asked for, in words for an error.
    pub(super) what: &'a str,
}

/// A request that got no answer.
pub(super) struct SendError {
    pub(super) error: RegistryError,
    /// Whether not even a connection came about.
    pub(super) no_connection: bool,
}

impl From<SendError> for RegistryError {
    fn from(failed: SendError) -> Self {
        failed.error
    }
}

impl Transport {
    pub(super) fn new(endpoint: &Endpoint) -> Transport {
        Transport {
            local: Way::new(),
            home: Way::new(),
            home_guarded: Way::new(),
            away: Way::new(),
            away_guarded: Way::new(),
            route: endpoint.route.clone(),
            insecure: endpoint.insecure || endpoint.route.skip_verify,
            allow_private: endpoint.allow_private,
            public_only: endpoint.public_only,
            public: AtomicBool::new(false),
            timeout: endpoint.timeout,
            registry: endpoint.registry.clone(),
            throttling_said: Rarely::default(),
        }
    }

    fn client(&self, url: &Url, away: bool) -> Result<&Client, RegistryError> {
        let local = is_loopback(url.host_str().unwrap_or_default());
        let sent = away && self.public.load(Ordering::Relaxed) && !self.allow_private;
        let guarded = self.public_only || sent;
        let why = if self.public_only { NOT_ASKED } else { ALLOW };
        if guarded && (names_private_address(url) || names_proxy(url)) {
            return Err(RegistryError::Private {
                host: host_of(url),
                why,
            });
        }
        let public = || PublicOnly::but_for_proxies(why);
        let client = match (away, guarded) {
            (_, false) if local && url.scheme() == "http" => self
                .local
                .get_or_init(|| self.build(|client| Ok(client.no_proxy().tls_certs_only([])))),
            (true, true) => self
                .away_guarded
                .get_or_init(|| self.build(|client| Ok(self.trusting(client)?.dns_resolver(public())))),
            (true, false) => self.away.get_or_init(|| self.build(|client| self.trusting(client))),
            (false, true) => self.home_guarded.get_or_init(|| {
                self.build(|client| Ok(self.identified(self.trusting(client)?)?.dns_resolver(public())))
            }),
            (false, false) => self.home.get_or_init(|| {
                self.build(|client| {
                    let client = self.identified(self.trusting(client)?)?;
                    Ok(if local { client.no_proxy() } else { client })
                })
            }),
        };
        client.as_ref().map_err(Clone::clone)
    }

    /// Adds the authorities that are trusted besides those of the system.
    fn trusting(&self, client: ClientBuilder) -> Result<ClientBuilder, RegistryError> {
        let mut authorities = Vec::new();
        for file in &self.route.ca {
            let found = Certificate::from_pem_bundle(&pem(file)?).map_err(|error| not_pem(file, &error))?;
            if found.is_empty() {
                return Err(setup(format!("there is no certificate in {}", file.display())));
            }
            authorities.extend(found);
        }
        let client = client.tls_danger_accept_invalid_certs(self.insecure);
        Ok(match authorities.is_empty() {
            true => client,
            false => client.tls_certs_merge(authorities),
        })
    }

    /// Adds our own certificate, if there is one; if there are several, the first: the client takes no more.
    fn identified(&self, client: ClientBuilder) -> Result<ClientBuilder, RegistryError> {
        let Some((certificate, key)) = self.route.client.first() else {
            return Ok(client);
        };
        let others: Vec<String> = self.route.client[1..]
            .iter()
            .map(|(file, _)| file.display().to_string())
            .collect();
        if !others.is_empty() {
            tracing::warn!(
                "of several client certificates for {}, only {} is used, and not {}",
                self.registry,
                certificate.display(),
                others.join(", ")
            );
        }
        let mut both = pem(certificate)?;
        if let Some(key) = key {
            both.push(b'\n');
            both.extend(pem(key)?);
        }
        let identity = Identity::from_pem(&both).map_err(|error| not_pem(certificate, &error))?;
        Ok(client.identity(identity))
    }

    fn build(
        &self,
        set: impl FnOnce(ClientBuilder) -> Result<ClientBuilder, RegistryError>,
    ) -> Result<Client, RegistryError> {
        // Only the first call in a process has an effect; whoever was first chose the same provider or had reasons.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("peelfs/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.route.dial_timeout.unwrap_or(CONNECT))
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30))
            .pool_idle_timeout(Duration::from_secs(90))
            .pool_max_idle_per_host(32)
            .referer(false)
            .http1_only();
        let client = set(client)?;
        client.build().map_err(|error| setup(causes(&error.without_url())))
    }

    /// Notes where the registry itself has answered from.
    pub(super) fn answered(&self, response: &Response) {
        if is_proxied(response.url()) {
            // The address is the proxy's, and what a proxy is needed for is out on the public network.
            let public = !names_private_address(response.url());
            self.public.store(public, Ordering::Relaxed);
        } else if let Some(address) = response.remote_addr() {
            self.is_at(address.ip());
        }
    }

    pub(super) fn is_at(&self, address: IpAddr) {
        self.public.store(is_public(address), Ordering::Relaxed);
    }

    /// The head of the answer, whatever its status. Redirects are not followed.
    pub(super) async fn send(&self, request: Request<'_>) -> Result<Response, SendError> {
        let host = host_of(&request.url);
        let client = self.client(&request.url, request.away).map_err(|error| SendError {
            error,
            no_connection: false,
        })?;
        let mut builder = client.request(request.method, request.url).headers(request.headers);
        builder = match &request.proof {
            Proof::None => builder,
            Proof::Bearer(token) => builder.bearer_auth(token),
            Proof::Basic(pair) => builder.basic_auth(&pair.0, Some(&pair.1)),
        };
        if let Some(form) = request.form {
            let kind = "application/x-www-form-urlencoded";
            builder = builder.header(reqwest::header::CONTENT_TYPE, kind).body(form);
        }
        match tokio::time::timeout(self.timeout, builder.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(SendError {
                no_connection: error.is_connect(),
                error: unreachable(host, error),
            }),
            Err(_) => Err(SendError {
                error: timed_out(host, &format!("no answer for {} in {:?}", request.what, self.timeout)),
                no_connection: false,
            }),
        }
    }

    /// The next piece of a body; `None` at its end.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, RegistryError> {
        next_chunk(response, self.timeout).await
    }

    /// A whole body of at most `limit` bytes.
    pub(super) async fn body(&self, mut response: Response, limit: usize, what: &str) -> Result<Bytes, RegistryError> {
        let too_large = |host: String| RegistryError::Protocol {
            host,
            what: what.to_owned(),
            reason: format!("it is larger than {limit} bytes"),
        };
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large(host_of(response.url())));
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if chunk.len() > limit - body.len() {
                return Err(too_large(host_of(response.url())));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// Reads what is left of a small answer, so that its connection goes back to the pool.
    pub(super) async fn discard(&self, mut response: Response) {
        let mut left = DISCARDED;
        while let Ok(Some(chunk)) = self.chunk(&mut response).await {
            match left.checked_sub(chunk.len()) {
                Some(less) => left = less,
                None => return,
            }
        }
    }

    fn say_throttled(&self, host: &str, what: &str, detail: &str, retry_after: Option<Duration>) {
        if !self.throttling_said.due(Instant::now()) {
            return;
        }
        let wish = match retry_after {
            Some(wait) => format!("wants to be left alone for {} s", wait.as_secs()),
            None => "does not say for how long it wants to be left alone".to_owned(),
        };
        tracing::warn!(
            "{} is asked too often: {host} answered 429 for {what}{detail}, and {wish}",
            self.registry
        );
    }

    /// The error that an answer with a status other than success means.
    pub(super) async fn status_error(&self, response: Response, what: &str) -> RegistryError {
        let host = host_of(response.url());
        let status = response.status();
        let retry_after = retry_after(response.headers(), SystemTime::now());
        let detail = match self.body(response, DISCARDED, what).await {
            Ok(body) => detail(&body),
            Err(_) => String::new(),
        };
        if status == StatusCode::TOO_MANY_REQUESTS {
            self.say_throttled(&host, what, &detail, retry_after);
        }
        let what = what.to_owned();
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => RegistryError::NotFound { host, what, detail },
            _ if is_transient(status) => RegistryError::Busy {
                host,
                status: status.as_u16(),
                what,
                detail,
                retry_after,
            },
            _ => RegistryError::Refused {
                host,
                status: status.as_u16(),
                what,
                detail,
            },
        }
    }
}

/// [`Transport::chunk`] for a body that outlives its transport.
pub(super) async fn next_chunk(response: &mut Response, timeout: Duration) -> Result<Option<Bytes>, RegistryError> {
    match tokio::time::timeout(timeout, response.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) => Err(unreachable(host_of(response.url()), error)),
        Err(_) => Err(timed_out(
            host_of(response.url()),
            &format!("no byte came for {timeout:?}"),
        )),
    }
}

fn setup(reason: String) -> RegistryError {
    RegistryError::Setup { reason }
}

fn pem(file: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(file).map_err(|error| setup(format!("cannot read {}: {error}", file.display())))
}

fn not_pem(file: &Path, error: &reqwest::Error) -> RegistryError {
    setup(format!("{} cannot be used: {}", file.display(), causes(error)))
}

fn unreachable(host: String, error: reqwest::Error) -> RegistryError {
    let error = error.without_url();
    RegistryError::Unreachable {
        host,
        reason: causes(&error),
        source: Some(Arc::new(error)),
    }
}

/// A wait that went on for too long.
pub(super) fn timed_out(host: String, reason: &str) -> RegistryError {
    RegistryError::Unreachable {
        host,
        reason: reason.to_owned(),
        source: None,
    }
}

/// The innermost cause tells what happened ("connection refused"); those around it, only that something did.
fn causes(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Host and port as they stand in a URL: what may be said of it aloud.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether a host name or address, `[..]` around IPv6, is this machine itself.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare.unwrap_or(host).parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Whether a status is worth another try.
pub(super) fn is_transient(status: StatusCode) -> bool {
    match status.as_u16() {
        408 | 425 | 429 => true,
        501 | 505 => false,
        status => status >= 500,
    }
}

/// Where a redirect leads, unless the answer is none.
pub(super) fn redirect(response: &Response) -> Option<&str> {
    match response.status().as_u16() {
        301 | 302 | 303 | 307 | 308 => response.headers().get(LOCATION)?.to_str().ok(),
        _ => None,
    }
}

/// `Retry-After` as a duration; RFC 9110, 10.2.3.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse::<u32>() {
        Ok(seconds) => Some(Duration::from_secs(seconds.into())),
        Err(_) => {
            let then = httpdate::parse_http_date(text).ok()?;
            Some(then.duration_since(now).unwrap_or_default())
        }
    }
}

/// What the body of an error says (distribution-spec, "Error Codes"), after `: `, short and printable; else nothing.
fn detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        message: Option<String>,
    }
    let Ok(errors) = serde_json::from_slice::<Errors>(body) else {
        return String::new();
    };
    let Some(first) = errors.errors.into_iter().next() else {
        return String::new();
    };
    let text = first.message.filter(|text| !text.is_empty()).unwrap_or(first.code);
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    // A message may quote the URL that was asked for.
    if text.is_empty() || text.contains("://") {
        return String::new();
    }
    format!(": {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "128.0.0.1", "[::2]", "127.0.0.1.example", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(parse("7"), Some(Duration::from_secs(7)));
        let date = httpdate::fmt_http_date(now + Duration::from_secs(90));
        assert_eq!(parse(&date), Some(Duration::from_secs(90)));
        assert_eq!(parse("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("-3"), None);
        assert_eq!(parse("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn what_is_said_rarely_is_said_at_once_and_after_a_minute() {
        let (rarely, start) = (Rarely::default(), Instant::now());
        let said = |seconds| rarely.due(start + Duration::from_secs(seconds));
        assert_eq!(
            [0, 0, 59, 60, 61, 119, 120].map(said),
            [true, false, false, true, false, false, true]
        );
    }

    #[test]
    fn statuses_worth_another_try() {
        for (status, transient) in [
            (200, false),
            (404, false),
            (408, true),
            (416, false),
            (429, true),
            (500, true),
            (501, false),
            (503, true),
        ] {
            assert_eq!(
                is_transient(StatusCode::from_u16(status).unwrap()),
                transient,
                "{status}"
            );
        }
    }

    #[test]
    fn the_detail_of_an_error_is_short_and_printable() {
        assert_eq!(
            detail(br#"{"errors":[{"code":"X","message":"too\u001b[1m many"}]}"#),
            ": too[1m many"
        );
        assert_eq!(detail(br#"{"errors":[{"code":"X"}]}"#), ": X");
        assert_eq!(detail(br#"{"errors":[{"message":"GET https://x/?sig=1"}]}"#), "");
        assert_eq!(detail(b"<html>"), "");
        assert_eq!(detail(br#"{"errors":[]}"#), "");
    }
}
