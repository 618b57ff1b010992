//! From a path to its answer, and what all answers have.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

use super::carve::put;
use super::guard::Guard;
use super::metrics::Counted;
use super::problem::{Kind, Problem};
use super::query::Query;
use super::{Server, carve, listings, pages};
use crate::inspect::Inspector;

/// What the API is.
const OPENAPI: &str = include_str!("openapi.json");

/// For whatever may hold bytes of images: nothing in it is loaded or run, and it is a stranger to our own pages.
const SANDBOX: &str = "default-src 'none'; frame-ancestors 'none'; sandbox";

/// For answers that no other site may show or use as its own.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// All that is answered.
pub(super) fn all(server: Arc<Server>) -> Router {
    let routes: Vec<(&str, MethodRouter<Arc<Server>>)> = vec![
        ("/carve", get(carve::answer)),
        ("/fslog", get(listings::fslog)),
        ("/ls", get(listings::ls)),
        ("/find", get(listings::find)),
        ("/layers", get(listings::layers)),
        ("/history", get(listings::history)),
        ("/diff", get(listings::diff)),
        ("/healthz", get(healthz)),
        ("/metrics", get(metrics)),
        ("/openapi.json", get(openapi)),
    ];
    let router = routes.into_iter().chain(pages::routes());
    let router = router.fold(Router::new(), |router, (path, route)| router.route(path, route));
    router
        .fallback(async |uri: Uri| Problem::no_route(uri.path()))
        .method_not_allowed_fallback(async || Problem::method())
        .layer(from_fn_with_state(server.clone(), around))
        .with_state(server)
}

impl Server {
    /// The image that the parameter `name` says, opened.
    pub(super) async fn image(&self, query: &Query, name: &str) -> Result<Arc<Inspector>, Problem> {
        query.needed(name)?;
        let reference = self.guard.image(query.text(name)?.unwrap_or_default())?;
        self.images.open(&reference).await
    }
}

/// Looks whether the request is for us, counts, and adds the headers that make an answer harmless.
async fn around(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let route = route(request.uri().path());
    let headers = request.headers();
    let checked = server.guard.check_host(request.uri(), headers);
    let mut response = match checked.and_then(|()| Guard::check_site(headers)) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let kind = response.extensions().get::<Kind>().map(|kind| kind.0);
    server.metrics.answered(route, response.status().as_u16(), kind);
    let head = response.headers_mut();
    if !head.contains_key(CONTENT_SECURITY_POLICY) {
        put(head, CONTENT_SECURITY_POLICY, SANDBOX);
    }
    put(head, X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(head, REFERRER_POLICY, "no-referrer");
    put(head, RESOURCE_POLICY, "same-origin");
    response.map(|body| Body::new(Counted { body, server }))
}

/// What a request is counted as.
fn route(path: &str) -> &'static str {
    const ROUTES: [&str; 14] = [
        "/",
        "/browse",
        "/carve",
        "/compare",
        "/diff",
        "/find",
        "/fslog",
        "/healthz",
        "/history",
        "/layers",
        "/ls",
        "/metrics",
        "/openapi.json",
        "/view",
    ];
    ROUTES.into_iter().find(|route| *route == path).unwrap_or("other")
}

async fn healthz(request: Request) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    Ok(typed("text/plain; charset=utf-8", "ok\n"))
}

async fn openapi(request: Request) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    Ok(typed("application/json", OPENAPI))
}

async fn metrics(State(server): State<Arc<Server>>, request: Request) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let text = server.metrics.text(&server.images, server.places.answering());
    Ok(typed("text/plain; version=0.0.4; charset=utf-8", text))
}

/// An answer of this media type.
pub(super) fn typed(media_type: &str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    put(response.headers_mut(), CONTENT_TYPE, media_type);
    response
}
