//! A registry for tests: answers as a test wants, and remembers what it was asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::json;

use super::credentials::CredentialFiles;
use super::hosts::Route;
use super::{Endpoint, Repository};
use crate::digest::Digest;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    /// Which of the client's connections it came by.
    pub(crate) connection: u16,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        Some(self.headers.get(name)?.to_str().unwrap())
    }

    /// First and last byte of the range that is asked for.
    pub(crate) fn range(&self) -> (usize, usize) {
        let range = self.header("range").unwrap().strip_prefix("bytes=").unwrap();
        let (first, last) = range.split_once('-').unwrap();
        (first.parse().unwrap(), last.parse().unwrap())
    }
}

/// A server on a free port of 127.0.0.1, which ends with the test's runtime.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Answers with what `answer` makes of the server's own address and a request.
    pub(crate) async fn start(answer: impl Fn(&str, &Asked) -> Response + Send + Sync + 'static) -> Server {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        let own = address.to_string();
        let router = axum::Router::new().fallback(move |request: Request| {
            let (log, answer, own) = (Arc::clone(&log), Arc::clone(&answer), own.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                let ConnectInfo(peer) = head.extensions.get::<ConnectInfo<SocketAddr>>().unwrap();
                let asked = Asked {
                    connection: peer.port(),
                    method: head.method.to_string(),
                    path: head.uri.path().to_owned(),
                    query: head.uri.query().unwrap_or_default().to_owned(),
                    headers: head.headers,
                    body: String::from_utf8(body.to_vec()).unwrap(),
                };
                log.lock().unwrap().push(asked.clone());
                answer(&own, &asked)
            }
        });
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let task = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        Server { address, asked, task }
    }

    /// The requests since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// `METHOD path` of the requests since the last call.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked()
            .iter()
            .map(|asked| format!("{} {}", asked.method, asked.path))
            .collect()
    }

    /// The repository `o/r` of this server.
    pub(crate) fn repository(&self, credentials: CredentialFiles) -> Arc<Repository> {
        Repository::new(self.endpoint(), credentials)
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint {
            registry: self.address.to_string(),
            host: self.address.to_string(),
            repository: "o/r".to_owned(),
            insecure: false,
            offline: false,
            allow_private: false,
            public_only: false,
            timeout: Duration::from_secs(20),
            retries: true,
            route: Route::default(),
        }
    }

    /// A credential file with this entry for the server.
    pub(crate) fn credentials(&self, dir: &tempfile::TempDir, entry: serde_json::Value) -> CredentialFiles {
        let file: PathBuf = dir.path().join("auth.json");
        let auths = HashMap::from([(self.address.to_string(), entry)]);
        std::fs::write(&file, json!({"auths": auths}).to_string()).unwrap();
        CredentialFiles::new(vec![file])
    }

    /// No connection is accepted any more.
    pub(crate) async fn stop(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

/// An answer with a status and headers.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

/// The part of `blob` that is asked for.
pub(crate) fn part(blob: &[u8], asked: &Asked) -> Response {
    let (first, last) = asked.range();
    let range = format!("bytes {first}-{last}/{}", blob.len());
    answer(206, &[("content-range", &range)], blob[first..=last].to_vec())
}

/// What a registry holds: documents by the last part of their path.
#[derive(Clone, Default)]
pub(crate) struct Holdings {
    documents: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl Holdings {
    /// Holds a document under its digest.
    pub(crate) fn add(&self, value: &serde_json::Value) -> Digest {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::sha256(&bytes);
        self.name(&digest.to_string(), bytes);
        digest
    }

    /// Holds something under a name, true or not.
    pub(crate) fn name(&self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.documents.lock().unwrap().insert(name.to_owned(), bytes.into());
    }

    pub(crate) fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.documents.lock().unwrap().get(name).cloned()
    }

    /// Config and manifest of an image with one layer, whose digest is that of `seed`.
    pub(crate) fn image(&self, seed: &str, architecture: &str) -> Digest {
        let layer = Digest::sha256(seed.as_bytes()).to_string();
        let config =
            json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": [layer]}});
        let size = config.to_string().len();
        let config = self.add(&config).to_string();
        self.add(&json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": seed.len()}],
        }))
    }

    /// An index of these images.
    pub(crate) fn index(&self, images: &[(&str, Digest)]) -> Digest {
        let entry = |(architecture, digest): &(&str, Digest)| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": 1,
                   "platform": {"os": "linux", "architecture": architecture}})
        };
        self.add(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": images.iter().map(entry).collect::<Vec<_>>(),
        }))
    }

    /// Lets `tag` stand for a document.
    pub(crate) fn tag(&self, tag: &str, digest: &Digest) {
        let bytes = self.get(&digest.to_string()).unwrap();
        self.name(tag, bytes);
    }

    /// The answer of a registry that holds this.
    pub(crate) fn answer(&self, asked: &Asked) -> Response {
        let name = asked.path.rsplit('/').next().unwrap();
        match self.get(name) {
            Some(bytes) => {
                let digest = match name.parse::<Digest>() {
                    Ok(digest) => digest,
                    Err(_) => Digest::sha256(&bytes),
                };
                answer(200, &[("docker-content-digest", &digest.to_string())], bytes)
            }
            None => answer(
                404,
                &[],
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            ),
        }
    }
}
