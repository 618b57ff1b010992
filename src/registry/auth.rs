//! The token of a repository: asked for when the registry demands one, shared by all requests, renewed in time.
//!
//! Docker's token specification: a request is refused with a challenge that names a realm; the realm sells a token, to
//! anybody for what is public; the request is made again with it. Requests of one repository need one token only
//! ("pull"), so there is one place for it, and whoever finds it missing holds the lock while asking: a hundred requests
//! that are refused at once cause one request for a token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};
use tokio::sync::Mutex;

use super::challenge::Challenge;
use super::credentials::{Credential, CredentialFiles};
use super::error::RegistryError;
use super::repository::{Endpoint, by_chance};
use super::transport::{Proof, Request, Transport, host_of, is_transient};

/// The longest a credential helper may take.
const HELPER: Duration = Duration::from_secs(10);

/// The lifetime of a token that does not say; Docker's token specification.
const LIFETIME: u64 = 60;

/// How long before its end a token is renewed, at least, or in the last tenth of its life if that is shorter. By chance it
/// is up to twice as long: many who got theirs at once do not all come back at once.
const MARGIN: Duration = Duration::from_secs(30);

/// A token answer is some kilobytes.
const MAX_ANSWER: usize = 1 << 20;

/// What all requests to one repository know of their right to make them.
pub(super) struct Authenticator {
    credentials: CredentialFiles,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counts the proofs that there were: tells a request that was refused whether somebody has renewed since.
    generation: u64,
    held: Option<Held>,
    /// How the proof was got, to renew it without being refused again.
    source: Option<TokenSource>,
    /// Why there is none, for those who waited while it was asked for.
    failed: Option<(Instant, RegistryError)>,
    /// Looked up once, when first needed.
    credential: Option<Option<Credential>>,
}

struct Held {
    proof: Proof,
    renew: Option<Instant>,
    expires: Option<Instant>,
}

#[derive(Clone)]
struct TokenSource {
    realm: Url,
    service: Option<String>,
    scope: String,
}

/// What a request is sent with.
pub(super) struct Authorization {
    pub(super) proof: Proof,
    /// Whether it is a token that was bought for the very request that was refused before.
    pub(super) bought: bool,
    generation: u64,
}

impl Authenticator {
    pub(super) fn new(credentials: CredentialFiles) -> Authenticator {
        Authenticator {
            credentials,
            state: Mutex::default(),
        }
    }

    /// What is known to be accepted, renewed if its time has come; nothing before the registry has asked for something.
    pub(super) async fn current(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
    ) -> Result<Authorization, RegistryError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        let now = Instant::now();
        let (due, over) = match &state.held {
            None => (false, false),
            Some(held) => (
                held.renew.is_some_and(|at| at <= now),
                held.expires.is_some_and(|at| at <= now),
            ),
        };
        if due && let Some(source) = state.source.clone() {
            // One that still lives is good enough while the realm is away.
            if let Err(error) = self.renew_from(&mut state, source, transport, endpoint, asked).await
                && over
            {
                return Err(error);
            }
        }
        Ok(state.authorization())
    }

    /// After a request with `used` was refused with `challenges`: something else to try.
    pub(super) async fn renew(
        &self,
        used: &Authorization,
        challenges: Vec<Challenge>,
        plain: bool,
        transport: &Transport,
        endpoint: &Endpoint,
    ) -> Result<Authorization, RegistryError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if state.generation != used.generation {
            return Ok(state.authorization());
        }
        let mut refused = None;
        for challenge in &challenges {
            let Challenge::Bearer {
                realm, service, scope, ..
            } = challenge
            else {
                continue;
            };
            match trusted_realm(realm, plain || endpoint.insecure, endpoint) {
                Ok(realm) => {
                    let source = TokenSource {
                        realm,
                        service: service.clone(),
                        scope: match scope {
                            Some(scope) => scope.clone(),
                            None => format!("repository:{}:pull", endpoint.repository),
                        },
                    };
                    self.renew_from(&mut state, source, transport, endpoint, asked).await?;
                    return Ok(Authorization {
                        bought: true,
                        ..state.authorization()
                    });
                }
                Err(error) => refused = Some(error),
            }
        }
        if challenges.contains(&Challenge::Basic)
            && let Some(Credential::Password(user, password)) = self.credential(&mut state, transport, endpoint).await
            // What was refused once will be refused again.
            && !matches!(state.held, Some(Held { proof: Proof::Basic(_), .. }))
        {
            state.hold(Proof::Basic(Arc::new((user, password))), None);
            return Ok(state.authorization());
        }
        Err(match refused {
            Some(error) => error,
            None => self.denied(&state, endpoint, String::new()),
        })
    }

    /// The error for a request that was refused although it carried the best there is.
    pub(super) async fn still_denied(&self, endpoint: &Endpoint, detail: String) -> RegistryError {
        self.denied(&*self.state.lock().await, endpoint, detail)
    }

    fn denied(&self, state: &State, endpoint: &Endpoint, detail: String) -> RegistryError {
        RegistryError::Denied {
            registry: endpoint.registry.clone(),
            repository: endpoint.repository.clone(),
            detail,
            with_credentials: matches!(state.credential, Some(Some(_))),
        }
    }

    async fn credential(&self, state: &mut State, transport: &Transport, endpoint: &Endpoint) -> Option<Credential> {
        if state.credential.is_none() {
            let limit = HELPER.min(transport.timeout);
            let found = self.credentials.find(&endpoint.registry, &endpoint.repository, limit);
            state.credential = Some(found.await);
        }
        state.credential.clone().flatten()
    }

    async fn renew_from(
        &self,
        state: &mut State,
        source: TokenSource,
        transport: &Transport,
        endpoint: &Endpoint,
        asked: Instant,
    ) -> Result<(), RegistryError> {
        // Whoever waited for the lock while somebody else failed has his answer.
        if let Some((at, error)) = &state.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        let credential = self.credential(state, transport, endpoint).await;
        let started = Instant::now();
        match token(&source, credential, transport, endpoint).await {
            Ok((token, lifetime)) => {
                state.hold(
                    Proof::Bearer(token),
                    started.checked_add(lifetime).map(|end| (end, lifetime)),
                );
                state.source = Some(source);
                state.failed = None;
                Ok(())
            }
            Err(TokenError::Refused) => {
                let error = self.denied(state, endpoint, String::new());
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
            Err(TokenError::Failed(error)) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

impl State {
    fn authorization(&self) -> Authorization {
        Authorization {
            proof: self.held.as_ref().map_or(Proof::None, |held| held.proof.clone()),
            bought: false,
            generation: self.generation,
        }
    }

    fn hold(&mut self, proof: Proof, life: Option<(Instant, Duration)>) {
        self.generation += 1;
        self.held = Some(Held {
            proof,
            renew: life.and_then(|(end, lifetime)| end.checked_sub(by_chance(2 * MARGIN.min(lifetime / 10)))),
            expires: life.map(|(end, _)| end),
        });
    }
}

/// A realm gets credentials, and gives tokens that are as good: only over https, unless the registry itself is plain.
fn trusted_realm(realm: &str, plain: bool, endpoint: &Endpoint) -> Result<Url, RegistryError> {
    let unusable = |reason: &str| RegistryError::Protocol {
        host: endpoint.host.clone(),
        what: format!("repository {}", endpoint.repository),
        reason: reason.to_owned(),
    };
    let url = Url::parse(realm).map_err(|_| unusable("it names a token realm that is no URL"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if plain => Ok(url),
        _ => Err(unusable(
            "it sends us for a token to a place without https, which is not trusted",
        )),
    }
}

enum TokenError {
    Refused,
    Failed(RegistryError),
}

#[derive(serde::Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

async fn token(
    source: &TokenSource,
    credential: Option<Credential>,
    transport: &Transport,
    endpoint: &Endpoint,
) -> Result<(Arc<str>, Duration), TokenError> {
    let what = "a token";
    let mut url = source.realm.clone();
    let mut request = Request {
        method: Method::GET,
        url: url.clone(),
        away: host_of(&url) != endpoint.host,
        headers: HeaderMap::new(),
        proof: Proof::None,
        form: None,
        what,
    };
    if let Some(Credential::IdentityToken(refresh)) = &credential {
        // The query of a URL is encoded like a form.
        let mut form = source.realm.clone();
        form.set_query(None);
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", source.service.as_deref().unwrap_or_default())
            .append_pair("client_id", "peelfs")
            .append_pair("scope", &source.scope)
            .append_pair("refresh_token", refresh);
        request.method = Method::POST;
        request.form = Some(form.query().unwrap_or_default().to_owned());
    } else {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &source.service {
            query.append_pair("service", service);
        }
        for scope in source.scope.split_ascii_whitespace() {
            query.append_pair("scope", scope);
        }
        drop(query);
        request.url = url;
        if let Some(Credential::Password(user, password)) = credential {
            request.proof = Proof::Basic(Arc::new((user, password)));
        }
    }
    let failed = |error: RegistryError| TokenError::Failed(error);
    let response = transport.send(request).await.map_err(|error| failed(error.into()))?;
    let status = response.status();
    if status != StatusCode::OK {
        let refused = status.is_client_error() && !is_transient(status) && status != StatusCode::NOT_FOUND;
        let error = transport.status_error(response, what).await;
        return Err(if refused { TokenError::Refused } else { failed(error) });
    }
    let host = host_of(response.url());
    let body = transport.body(response, MAX_ANSWER, what).await.map_err(failed)?;
    let unusable = |reason: &str| {
        failed(RegistryError::Protocol {
            host: host.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        })
    };
    // serde's message would quote the token.
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| unusable("it is not the JSON it should be"))?;
    let token = [answer.token, answer.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty());
    let token = token.ok_or_else(|| unusable("there is no token in it"))?;
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(unusable("the token cannot stand in a header"));
    }
    let lifetime = answer.expires_in.filter(|&seconds| seconds > 0).unwrap_or(LIFETIME);
    Ok((token.into(), Duration::from_secs(lifetime)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::fake::{Server, answer};
    use super::super::hosts::Route;
    use super::*;

    fn bearer(authorization: &Authorization) -> Option<&str> {
        match &authorization.proof {
            Proof::Bearer(token) => Some(token),
            _ => None,
        }
    }

    /// An authenticator with the token `t1`, of a realm that gives one more and fails from then on.
    async fn one_token() -> (Server, Transport, Authenticator) {
        let issued = AtomicUsize::new(0);
        let server = Server::start(move |_, _| match issued.fetch_add(1, Ordering::SeqCst) {
            number @ 0..2 => answer(200, &[], format!(r#"{{"token":"t{}","expires_in":600}}"#, number + 1)),
            _ => answer(503, &[], ""),
        })
        .await;
        let endpoint = server.endpoint();
        let transport = Transport::new(&endpoint);
        let authenticator = Authenticator::new(CredentialFiles::default());
        let first = authenticator.current(&transport, &endpoint).await.unwrap();
        assert!(bearer(&first).is_none());
        let challenge = Challenge::Bearer {
            realm: format!("http://{}/token", server.address),
            service: None,
            scope: None,
            insufficient: false,
        };
        let got = authenticator
            .renew(&first, vec![challenge], true, &transport, &endpoint)
            .await
            .unwrap();
        assert_eq!(bearer(&got), Some("t1"));
        assert_eq!(server.asked().pop().unwrap().query, "scope=repository%3Ao%2Fr%3Apull");
        (server, transport, authenticator)
    }

    #[tokio::test]
    async fn a_token_is_renewed_before_its_end() {
        let (server, transport, authenticator) = one_token().await;
        let current = async || authenticator.current(&transport, &server.endpoint()).await.unwrap();
        {
            let state = authenticator.state.lock().await;
            let held = state.held.as_ref().unwrap();
            let margin = held.expires.unwrap() - held.renew.unwrap();
            assert!((MARGIN..=2 * MARGIN).contains(&margin), "{margin:?}");
        }
        assert_eq!(bearer(&current().await), Some("t1"));
        authenticator.state.lock().await.held.as_mut().unwrap().renew = Some(Instant::now());
        assert_eq!(bearer(&current().await), Some("t2"));
        assert_eq!(server.asked().len(), 1);
    }

    #[tokio::test]
    async fn a_token_that_lives_is_used_while_the_realm_is_away() {
        let (server, transport, authenticator) = one_token().await;
        let current = async || authenticator.current(&transport, &server.endpoint()).await;
        authenticator.state.lock().await.held.as_mut().unwrap().renew = Some(Instant::now());
        current().await.unwrap();
        authenticator.state.lock().await.held.as_mut().unwrap().renew = Some(Instant::now());
        assert_eq!(bearer(&current().await.unwrap()), Some("t2"));
        authenticator.state.lock().await.held.as_mut().unwrap().expires = Some(Instant::now());
        assert!(matches!(current().await, Err(RegistryError::Busy { status: 503, .. })));
    }

    #[test]
    fn a_realm_needs_https_unless_the_registry_is_plain() {
        let endpoint = Endpoint {
            registry: "r.example".to_owned(),
            host: "r.example".to_owned(),
            repository: "o/r".to_owned(),
            insecure: false,
            offline: false,
            allow_private: false,
            public_only: false,
            timeout: Duration::from_secs(1),
            retries: true,
            route: Route::default(),
        };
        for (realm, plain, trusted) in [
            ("https://a.example/token", false, true),
            ("http://a.example/token", false, false),
            ("http://a.example/token", true, true),
            ("file:///etc/passwd", true, false),
            ("token", true, false),
        ] {
            assert_eq!(trusted_realm(realm, plain, &endpoint).is_ok(), trusted, "{realm}");
        }
    }
}
