//! What went wrong, as a status and a sentence in JSON.

use std::io::ErrorKind;

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use crate::blob::Cause;
use crate::image::ImageError;
use crate::inspect::InspectError;
use crate::layer::LayerError;
use crate::registry::RegistryError;
use crate::tree::TreeError;

/// Why a request has no better answer.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// A word for programs.
    pub(super) kind: &'static str,
    /// A sentence for people.
    pub(super) sentence: String,
    /// More for programs.
    more: Map<String, Value>,
}

/// Put beside an answer, for whoever counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind(pub(super) &'static str);

impl Problem {
    pub(super) fn new(status: StatusCode, kind: &'static str, sentence: impl Into<String>) -> Problem {
        Problem {
            status,
            kind,
            sentence: sentence.into(),
            more: Map::new(),
        }
    }

    /// A query that cannot be understood.
    pub(super) fn query(sentence: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "bad_query", sentence)
    }

    /// More is asked at once than is answered at once.
    pub(super) fn busy() -> Problem {
        let sentence = "as many questions as may be are being answered; try again in a moment";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", sentence)
    }

    /// There is nothing at the URL's path.
    pub(super) fn no_route(path: &str) -> Problem {
        let sentence = format!("there is nothing at {path}; see /openapi.json for what there is");
        Problem::new(StatusCode::NOT_FOUND, "no_route", sentence)
    }

    /// Only questions are answered.
    pub(super) fn method() -> Problem {
        let sentence = "only GET and HEAD are answered";
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", sentence)
    }

    /// The range asked for is behind the end of a file of `size` bytes.
    pub(super) fn range(size: u64) -> Problem {
        let sentence = format!("the range is not within the file, which has {size} bytes");
        Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", sentence).with("size", size)
    }

    /// A version is asked for that is not there; what is has the tag `etag`.
    pub(super) fn other_version(etag: &str) -> Problem {
        let sentence = format!("the file is another than If-Match says; its tag is {etag}");
        Problem::new(StatusCode::PRECONDITION_FAILED, "other_version", sentence)
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Problem {
        self.more.insert(name.to_owned(), value.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let size = self.more.get("size").and_then(Value::as_u64);
        self.more.insert("error".to_owned(), self.sentence.into());
        self.more.insert("kind".to_owned(), self.kind.into());
        let mut response = Response::new(Body::from(Value::Object(self.more).to_string() + "\n"));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("1"))),
            StatusCode::METHOD_NOT_ALLOWED => drop(headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"))),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let range = HeaderValue::from_str(&format!("bytes */{}", size.unwrap_or_default()));
                range.ok().and_then(|range| headers.insert(CONTENT_RANGE, range));
            }
            _ => {}
        }
        response.extensions_mut().insert(Kind(self.kind));
        response
    }
}

impl From<InspectError> for Problem {
    fn from(error: InspectError) -> Problem {
        let (status, kind) = match &error {
            InspectError::NoLayer { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "no_such_layer"),
            InspectError::NotInLayer { .. } => (StatusCode::NOT_FOUND, "not_in_layer"),
            InspectError::NotFound { .. } | InspectError::Hidden { .. } => (StatusCode::NOT_FOUND, "not_found"),
            InspectError::NotADirectory { .. } => (StatusCode::NOT_FOUND, "not_a_directory"),
            InspectError::Loop { .. } => (StatusCode::NOT_FOUND, "too_many_symlinks"),
            InspectError::NoContent { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "no_content"),
            InspectError::Short { .. } => (StatusCode::BAD_GATEWAY, "corrupt"),
            InspectError::Tree(error) => of_tree(error),
        };
        let problem = Problem::new(status, kind, error.to_string());
        let numbers = |numbers: &[usize]| numbers.iter().copied().collect::<Value>();
        match &error {
            InspectError::NoLayer { count, .. } => {
                let all: Vec<usize> = (0..*count).collect();
                problem.with("valid_layers", numbers(&all))
            }
            InspectError::NotInLayer { others, .. } => problem.with("layers", numbers(others)),
            InspectError::Hidden { layers, .. } => problem.with("layers", numbers(layers)),
            InspectError::NotFound { .. } => problem.with("layers", numbers(&[])),
            _ => problem,
        }
    }
}

fn of_tree(error: &TreeError) -> (StatusCode, &'static str) {
    if error.is_corrupt() {
        return (StatusCode::BAD_GATEWAY, "corrupt");
    }
    let TreeError::Layer(error) = error else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "internal");
    };
    match &**error {
        LayerError::Blob { cause, .. } => match cause.cause() {
            Cause::Deadline { .. } => (StatusCode::GATEWAY_TIMEOUT, "registry_timeout"),
            _ => (StatusCode::BAD_GATEWAY, "registry"),
        },
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}

impl From<&ImageError> for Problem {
    fn from(error: &ImageError) -> Problem {
        let (status, kind) = match error {
            ImageError::NoSuchImage { .. } | ImageError::Choose { .. } | ImageError::NoPlatform { .. } => {
                (StatusCode::NOT_FOUND, "no_such_image")
            }
            ImageError::NeverSeen { .. } => (StatusCode::GATEWAY_TIMEOUT, "offline"),
            ImageError::WrongDigest { .. } => (StatusCode::BAD_GATEWAY, "corrupt"),
            ImageError::Schema1 { .. } | ImageError::Artifact { .. } | ImageError::Malformed { .. } => {
                (StatusCode::BAD_GATEWAY, "unusable_image")
            }
            ImageError::Hosts { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            ImageError::Io { source, .. }
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                (StatusCode::NOT_FOUND, "no_such_image")
            }
            ImageError::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            ImageError::Registry { source, .. } => match **source {
                RegistryError::Private { .. } => (StatusCode::FORBIDDEN, "registry_not_allowed"),
                RegistryError::Offline { .. } => (StatusCode::GATEWAY_TIMEOUT, "offline"),
                // Only a wait that was given up has no error of the client as its cause.
                RegistryError::Unreachable { source: None, .. } => (StatusCode::GATEWAY_TIMEOUT, "registry_timeout"),
                RegistryError::Setup { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
                _ => (StatusCode::BAD_GATEWAY, "registry"),
            },
        };
        Problem::new(status, kind, error.to_string())
    }
}
