//! Who may read: nobody is asked, or user and password are (`Basic`), or a token is, which the realm at `/token` gives.
//!
//! Docker's token specification and its OAuth2 variant for refresh tokens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};

use super::layouts;
use super::server::{Pieces, whole};

/// The path of the realm.
pub(super) const REALM: &str = "/token";

/// Who is let in.
#[derive(Debug, Default, PartialEq, Eq)]
enum Rule {
    #[default]
    Anybody,
    /// Who says this in the header.
    Header(String),
    /// Whoever has a token. The realm gives it to anybody, to who says this in the header, or for this refresh token.
    Token,
    TokenForHeader(String),
    TokenForRefresh(String),
}

#[derive(Debug, Default)]
struct State {
    rule: Rule,
    /// How many requests a token is good for.
    uses: Option<u64>,
    /// The tokens that are still good, and how often each was used.
    good: BTreeMap<String, u64>,
    issued: Vec<String>,
}

/// The door of one registry. Clones share it.
#[derive(Clone, Debug)]
pub struct Guard {
    state: Arc<Mutex<State>>,
    registry: SocketAddr,
}

/// User and password as they stand in a header and, without the `Basic`, in a file of credentials.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

impl Guard {
    pub(super) fn new(registry: SocketAddr) -> Guard {
        Guard {
            state: Arc::default(),
            registry,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets anybody in.
    pub fn open(&self) {
        self.state().rule = Rule::Anybody;
    }

    /// Lets in who names this user and this password with each request.
    pub fn basic(&self, user: &str, password: &str) {
        self.state().rule = Rule::Header(basic(user, password));
    }

    /// Lets in who has a token, and gives one to anybody.
    pub fn tokens(&self) {
        self.state().rule = Rule::Token;
    }

    /// Lets in who has a token, and gives one to who names this user and this password.
    pub fn tokens_for(&self, user: &str, password: &str) {
        self.state().rule = Rule::TokenForHeader(basic(user, password));
    }

    /// Lets in who has a token, and gives one for this refresh token.
    pub fn tokens_for_refresh(&self, refresh: &str) {
        self.state().rule = Rule::TokenForRefresh(refresh.to_string());
    }

    /// Lets each token be used for so many requests.
    pub fn uses(&self, uses: Option<u64>) {
        self.state().uses = uses;
    }

    /// Makes every token that was given so far invalid.
    pub fn expire(&self) {
        self.state().good.clear();
    }

    /// Every token that was given.
    pub fn issued(&self) -> Vec<String> {
        self.state().issued.clone()
    }

    /// The refusal of a request that may not pass.
    pub(super) fn refusal(&self, headers: &HeaderMap) -> Option<Response<Pieces>> {
        let mut state = self.state();
        let said = said(headers);
        let challenge = match &state.rule {
            Rule::Anybody => return None,
            Rule::Header(wanted) if said == wanted => return None,
            Rule::Header(_) => "Basic realm=\"tests\"".to_string(),
            _ => {
                let uses = state.uses;
                let used = said.strip_prefix("Bearer ").and_then(|token| state.good.get_mut(token));
                if let Some(used) = used
                    && uses.is_none_or(|uses| *used < uses)
                {
                    *used += 1;
                    return None;
                }
                let scope = "repository:made:pull";
                let realm = format!("http://{}{REALM}", self.registry);
                format!("Bearer realm=\"{realm}\",service=\"tests\",scope=\"{scope}\"")
            }
        };
        let mut refused = layouts::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        let challenge = challenge.parse().expect("a header of printable characters");
        refused.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        Some(refused)
    }

    /// The realm's answer.
    pub(super) async fn token(&self, request: Request<Incoming>) -> Response<Pieces> {
        let (parts, body) = request.into_parts();
        let form = match body.collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            Err(_) => String::new(),
        };
        let mut state = self.state();
        let entitled = match &state.rule {
            Rule::Anybody | Rule::Header(_) => false,
            Rule::Token => parts.method == Method::GET && asks(parts.uri.query().unwrap_or_default()),
            Rule::TokenForHeader(wanted) => {
                let query = parts.uri.query().unwrap_or_default();
                parts.method == Method::GET && asks(query) && said(&parts.headers) == wanted
            }
            Rule::TokenForRefresh(refresh) => {
                let refresh = format!("refresh_token={refresh}");
                let has = |wanted: &str| form.split('&').any(|field| field == wanted);
                parts.method == Method::POST && asks(&form) && has("grant_type=refresh_token") && has(&refresh)
            }
        };
        if !entitled {
            return layouts::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        }
        let token = format!("token-{}-of-port-{}", state.issued.len(), self.registry.port());
        state.issued.push(token.clone());
        state.good.insert(token.clone(), 0);
        Response::builder()
            .header(CONTENT_TYPE, "application/json")
            .body(whole(format!(r#"{{"token":"{token}","expires_in":3600}}"#)))
            .expect("a response of constant headers")
    }
}

/// Whether a query or form asks for what the challenge named.
fn asks(query: &str) -> bool {
    let has = |wanted: &str| query.split('&').any(|field| field.replace("%3A", ":") == wanted);
    has("service=tests") && has("scope=repository:made:pull")
}

fn said(headers: &HeaderMap) -> &str {
    headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}
