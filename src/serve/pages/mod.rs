//! The pages for people: plain HTML, made here, that needs no script.
//!
//! | page | what it shows |
//! |---|---|
//! | `/` | a form for the image |
//! | `/browse` | a directory, with the layer of each entry and what upper layers hide |
//! | `/view` | a file as text, and its versions |
//! | `/compare` | two versions of a file side by side |

mod browse;
mod compare;
mod html;
mod view;

use std::sync::Arc;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

use super::Server;
use super::carve::put;
use super::problem::{Kind, Problem};
use super::query::Query;
use super::routes::typed;
use html::{Escaped, Page};

/// What a page may load: our style and script, and nothing of anybody else's.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none'; \
     frame-ancestors 'none'";

/// The most of a file that a page shows.
const SHOWN: u64 = 256 << 10;

/// The pages, and what they are made of.
pub(super) fn routes() -> Vec<(&'static str, MethodRouter<Arc<Server>>)> {
    vec![
        ("/", get(async |request| shown(start(request)))),
        (
            "/browse",
            get(async |server, request| shown(browse::page(server, request).await)),
        ),
        (
            "/view",
            get(async |server, request| shown(view::page(server, request).await)),
        ),
        (
            "/compare",
            get(async |server, request| shown(compare::page(server, request).await)),
        ),
        (
            "/style.css",
            get(async || typed("text/css; charset=utf-8", include_str!("style.css"))),
        ),
        (
            "/script.js",
            get(async || typed("text/javascript; charset=utf-8", include_str!("script.js"))),
        ),
    ]
}

/// A page, or one that says why there is none.
fn shown(page: Result<Page, Problem>) -> Response {
    let (page, problem) = match page {
        Ok(page) => (page, None),
        Err(problem) => {
            let mut page = Page::new(match problem.status {
                StatusCode::NOT_FOUND => "Not found",
                _ => "That did not work",
            });
            page.put(format_args!("<p class=\"problem\">{}.</p>", Escaped(&problem.sentence)));
            (page, Some(problem))
        }
    };
    let mut response = typed("text/html; charset=utf-8", page.finish()).into_response();
    put(response.headers_mut(), CONTENT_SECURITY_POLICY, POLICY);
    if let Some(problem) = problem {
        *response.status_mut() = problem.status;
        response.extensions_mut().insert(Kind(problem.kind));
    }
    response
}

/// A page that takes long enough to make that others should not wait for it.
async fn made(make: impl FnOnce() -> Page + Send + 'static) -> Result<Page, Problem> {
    let page = tokio::task::spawn_blocking(make).await;
    page.map_err(|_| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the page could not be made",
        )
    })
}

fn start(request: Request) -> Result<Page, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let mut page = Page::new("Look into an image");
    page.put(
        "<p>Files of a container image, as a container sees them or layer by layer. What is needed is carved out of the \
         layers in its registry; the image is not pulled.</p>",
    );
    Ok(page)
}
