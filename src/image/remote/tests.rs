//! Resolving against a small registry: how many requests, and what is refused.

use std::sync::{Arc, Mutex};

use axum::response::Response;
use serde_json::json;

use super::*;
use crate::registry::fake::{Asked, Holdings, Server, answer};

type Instead = Arc<Mutex<Option<fn(&Asked) -> Option<Response>>>>;

/// A registry that answers from what it holds, unless `instead` says otherwise.
struct Registry {
    server: Server,
    holdings: Holdings,
    instead: Instead,
    dir: tempfile::TempDir,
}

impl Registry {
    async fn start() -> Registry {
        let holdings = Holdings::default();
        let instead: Instead = Arc::default();
        let (held, other) = (holdings.clone(), Arc::clone(&instead));
        let server = Server::start(move |_, asked| {
            let other = other.lock().unwrap().and_then(|other| other(asked));
            other.unwrap_or_else(|| held.answer(asked))
        })
        .await;
        Registry {
            server,
            holdings,
            instead,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn instead(&self, answer: fn(&Asked) -> Option<Response>) {
        *self.instead.lock().unwrap() = Some(answer);
    }

    /// Images for amd64 and arm64, and the tag `1` for their index.
    fn two_platforms(&self, seed: &str) -> Digest {
        let images = ["amd64", "arm64"].map(|arch| (arch, self.holdings.image(&format!("{seed}-{arch}"), arch)));
        let index = self.holdings.index(&images);
        self.holdings.tag("1", &index);
        index
    }

    async fn resolve_with(&self, image: &str, options: &Options) -> Result<Image, ImageError> {
        let reference = format!("{}/o/r{image}", self.server.address).parse().unwrap();
        resolve(&reference, options, &Documents::open(self.dir.path())).await
    }

    async fn resolve(&self, image: &str) -> Result<Image, ImageError> {
        self.resolve_with(image, &options("linux/arm64")).await
    }
}

fn options(platform: &str) -> Options {
    Options {
        platform: Some(platform.parse().unwrap()),
        ..Options::default()
    }
}

fn offline() -> Options {
    Options {
        offline: true,
        ..options("linux/arm64")
    }
}

fn layer(seed: &str) -> Digest {
    Digest::sha256(seed.as_bytes())
}

#[tokio::test]
async fn an_index_is_three_requests_and_a_manifest_two() {
    let registry = Registry::start().await;
    registry.two_platforms("a");
    let image = registry.resolve(":1").await.unwrap();
    let asked = registry.server.asked();
    assert_eq!(asked.len(), 3);
    let accept = asked[0].header("accept").unwrap();
    assert!(accept.contains("image.index.v1+json") && accept.contains("manifest.list.v2+json"));
    assert_eq!(image.platform.to_string(), "linux/arm64");
    assert_eq!(image.layers.len(), 1);
    assert_eq!(
        (image.layers[0].digest, image.layers[0].diff_id),
        (layer("a-arm64"), Some(layer("a-arm64")))
    );
    assert_eq!(image.resolved, Digest::sha256(&image.manifest));
    assert!(matches!(image.layers[0].origin, BlobOrigin::Remote(_)));

    let plain = registry.holdings.image("plain", "arm64");
    registry.holdings.tag("plain", &plain);
    assert_eq!(registry.resolve(":plain").await.unwrap().resolved, plain);
    assert_eq!(registry.server.lines().len(), 2);
}

#[tokio::test]
async fn a_digest_that_was_seen_is_no_request_and_a_tag_one() {
    let registry = Registry::start().await;
    let index = registry.two_platforms("a");
    registry.resolve(":1").await.unwrap();
    registry.server.asked();

    registry.resolve(&format!("@{index}")).await.unwrap();
    registry.resolve(&format!(":gone@{index}")).await.unwrap();
    assert!(registry.server.asked().is_empty());

    registry.resolve(":1").await.unwrap();
    assert_eq!(registry.server.lines(), ["HEAD /v2/o/r/manifests/1"]);

    registry.two_platforms("b");
    assert_eq!(registry.resolve(":1").await.unwrap().layers[0].digest, layer("b-arm64"));
    assert_eq!(registry.server.lines().len(), 4, "HEAD, index, manifest, config");
    registry.resolve(":1").await.unwrap();
    assert_eq!(registry.server.lines().len(), 1);
}

#[tokio::test]
async fn head_without_a_digest_is_followed_by_get() {
    let registry = Registry::start().await;
    registry.two_platforms("a");
    registry.resolve(":1").await.unwrap();
    registry.server.asked();
    registry.instead(|asked| (asked.method == "HEAD").then(|| answer(200, &[], "")));
    registry.resolve(":1").await.unwrap();
    assert_eq!(
        registry.server.lines(),
        ["HEAD /v2/o/r/manifests/1", "GET /v2/o/r/manifests/1"]
    );
}

#[tokio::test]
async fn without_the_registry_what_was_last_seen_is_used() {
    let registry = Registry::start().await;
    registry.two_platforms("a");
    registry.resolve(":1").await.unwrap();
    registry.server.asked();

    registry.instead(|_| Some(answer(503, &[], "")));
    assert_eq!(registry.resolve(":1").await.unwrap().layers[0].digest, layer("a-arm64"));
    assert_eq!(registry.server.lines().len(), 1);

    let image = registry.resolve_with(":1", &offline()).await.unwrap();
    assert_eq!(image.layers[0].digest, layer("a-arm64"));
    assert!(registry.server.asked().is_empty());

    let Registry { server, dir, .. } = registry;
    let address = server.stop().await;
    let reference = format!("{address}/o/r:1").parse().unwrap();
    let documents = Documents::open(dir.path());
    resolve(&reference, &options("linux/arm64"), &documents).await.unwrap();
    let short = Options {
        timeout: Duration::from_millis(100),
        ..options("linux/arm64")
    };
    let error = resolve(&reference, &short, &Documents::none())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot reach"), "{error}");
}

#[tokio::test]
async fn offline_knows_only_what_was_seen() {
    let registry = Registry::start().await;
    let index = registry.two_platforms("a");
    let unseen = registry.resolve_with(":1", &offline()).await;
    assert!(matches!(unseen, Err(ImageError::NeverSeen { .. })));
    let error = registry
        .resolve_with(&format!("@{index}"), &offline())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("offline"), "{error}");
    assert!(registry.server.asked().is_empty());
}

#[tokio::test]
async fn a_damaged_document_is_fetched_again() {
    let registry = Registry::start().await;
    let index = registry.two_platforms("a");
    let image = registry.resolve(":1").await.unwrap();
    registry.server.asked();
    for digest in [index, image.resolved] {
        let file = registry.dir.path().join("sha256").join(digest.hex());
        std::fs::write(file, "{}").unwrap();
        registry.resolve(&format!("@{index}")).await.unwrap();
        assert_eq!(registry.server.lines(), [format!("GET /v2/o/r/manifests/{digest}")]);
    }
}

#[tokio::test]
async fn documents_with_another_digest_are_refused() {
    for what in ["manifest", "config"] {
        let registry = Registry::start().await;
        registry.two_platforms("a");
        let image = registry.resolve_with(":1", &options("linux/arm64")).await.unwrap();
        let config: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        let name = match what {
            "manifest" => image.resolved.to_string(),
            _ => config["config"]["digest"].as_str().unwrap().to_owned(),
        };
        let mut bytes = registry.holdings.get(&name).unwrap();
        bytes.push(b' ');
        registry.holdings.name(&name, bytes);
        let fresh = tempfile::tempdir().unwrap();
        let reference = image.reference.parse().unwrap();
        let error = resolve(&reference, &options("linux/arm64"), &Documents::open(fresh.path()))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("another digest"), "{what}: {error}");
        let again = resolve(&reference, &offline(), &Documents::open(fresh.path())).await;
        assert!(again.is_err(), "{what} must not be remembered");
    }
}

#[tokio::test]
async fn a_claimed_digest_must_be_true() {
    let registry = Registry::start().await;
    registry.two_platforms("a");
    registry.instead(|asked| {
        let claim = Digest::sha256(b"other").to_string();
        asked
            .path
            .ends_with("/1")
            .then(|| answer(200, &[("docker-content-digest", &claim)], "{}"))
    });
    let error = registry.resolve(":1").await.unwrap_err().to_string();
    assert!(error.contains("another digest"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_mounted_is_told_clearly() {
    let registry = Registry::start().await;
    registry.two_platforms("a");
    let told = async |tag: &str, platform: &str| {
        let error = registry.resolve_with(tag, &options(platform)).await.unwrap_err();
        error.to_string()
    };
    let error = told(":1", "linux/s390x").await;
    assert!(
        error.contains("linux/s390x; choose with --platform from: linux/amd64, linux/arm64"),
        "{error}"
    );

    let plain = registry.holdings.image("plain", "arm64");
    registry.holdings.tag("plain", &plain);
    let error = told(":plain", "linux/amd64").await;
    assert!(error.contains("from: linux/arm64"), "{error}");

    // Signed ones do not have the digest that they are named by.
    registry.instead(|asked| {
        let claim = Digest::sha256(b"payload").to_string();
        let body = json!({"schemaVersion": 1, "fsLayers": [], "signatures": []}).to_string();
        asked
            .path
            .ends_with("/old")
            .then(|| answer(200, &[("docker-content-digest", &claim)], body))
    });
    let error = told(":old", "linux/amd64").await;
    assert!(error.contains("schema version 1"), "{error}");

    let error = told(":none", "linux/amd64").await;
    assert!(error.contains("there is no such manifest none of o/r"), "{error}");

    registry.instead(|asked| asked.path.ends_with("/denied").then(|| answer(403, &[], "")));
    let error = told(":denied", "linux/amd64").await;
    assert!(error.contains("`podman login 127.0.0.1"), "{error}");
}

#[test]
fn resolving_can_be_spawned() {
    fn is_send<T: Send>(_: &T) {}
    let (reference, options, documents) = ("x".parse().unwrap(), Options::default(), Documents::none());
    is_send(&super::super::resolve(&reference, &options, &documents));
}
