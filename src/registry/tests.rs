//! The protocol, against a small server.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use serde_json::json;

use super::credentials::CredentialFiles;
use super::fake::{Asked, Server, answer, part};
use super::{RegistryError, Repository};
use crate::digest::Digest;
use crate::image::source::{BlobSource, FetchError};
use crate::range::ByteRange;

const BLOB: &[u8] = b"0123456789abcdef";

fn blob(repository: &Arc<Repository>) -> Arc<dyn BlobSource> {
    repository.blob(Digest::sha256(BLOB), BLOB.len() as u64)
}

async fn fetch(blob: &dyn BlobSource, start: u64, end: u64) -> Result<(ByteRange, Vec<u8>), FetchError> {
    let mut fetched = blob.fetch(ByteRange::new(start, end)).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = fetched.body.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok((fetched.range, bytes))
}

fn none() -> CredentialFiles {
    CredentialFiles::default()
}

fn challenge(own: &str) -> Response {
    let challenge = format!(r#"Bearer realm="http://{own}/token?x=1",service="s v",scope="repository:o/r:pull""#);
    answer(401, &[("www-authenticate", &challenge)], "{}")
}

/// Bytes 4 to 8 of a blob that is answered with `respond`.
async fn four(
    respond: impl Fn(&Asked) -> Response + Send + Sync + 'static,
) -> Result<(ByteRange, Vec<u8>), FetchError> {
    let server = Server::start(move |_, asked| respond(asked)).await;
    fetch(&*blob(&server.repository(none())), 4, 8).await
}

fn is_transient(result: Result<(ByteRange, Vec<u8>), FetchError>) -> bool {
    matches!(result.unwrap_err(), FetchError::Transient { .. })
}

#[tokio::test]
async fn a_range_is_one_request() {
    let server = Server::start(|_, asked| part(BLOB, asked)).await;
    let blob = blob(&server.repository(none()));
    assert_eq!(
        fetch(&*blob, 4, 8).await.unwrap(),
        (ByteRange::new(4, 8), b"4567".to_vec())
    );
    let asked = server.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, format!("/v2/o/r/blobs/{}", Digest::sha256(BLOB)));
    assert_eq!(asked[0].header("range"), Some("bytes=4-7"));
    assert_eq!(asked[0].header("accept-encoding"), Some("identity"));
    assert_eq!(asked[0].header("authorization"), None);
    assert!(fetch(&*blob, 4, 17).await.is_err());
    assert!(server.asked().is_empty(), "what is outside is not asked for");
}

#[tokio::test]
async fn many_refused_requests_cause_one_token() {
    let server = Server::start(
        |own, asked| match (asked.path.as_str(), asked.header("authorization")) {
            ("/token", None) => answer(200, &[], r#"{"access_token":"t","token":""}"#),
            (_, Some("Bearer t")) => part(BLOB, asked),
            _ => challenge(own),
        },
    )
    .await;
    let blob = blob(&server.repository(none()));
    let all = (0..16).map(|at| {
        let blob = Arc::clone(&blob);
        tokio::spawn(async move { fetch(&*blob, at, at + 1).await })
    });
    for (at, got) in futures_util::future::join_all(all).await.into_iter().enumerate() {
        assert_eq!(got.unwrap().unwrap().1, &BLOB[at..=at]);
    }
    let asked = server.asked();
    let tokens: Vec<&Asked> = asked.iter().filter(|asked| asked.path == "/token").collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].query, "x=1&service=s+v&scope=repository%3Ao%2Fr%3Apull");
}

#[tokio::test]
async fn a_token_that_ends_midway_is_renewed_once() {
    let issued = AtomicUsize::new(0);
    let valid = Arc::new(AtomicUsize::new(1));
    let accepted = Arc::clone(&valid);
    let server = Server::start(move |own, asked| {
        if asked.path == "/token" {
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return answer(200, &[], format!(r#"{{"token":"t{number}","expires_in":300}}"#));
        }
        let good = format!("Bearer t{}", accepted.load(Ordering::SeqCst));
        if asked.header("authorization") == Some(&good) {
            part(BLOB, asked)
        } else {
            challenge(own)
        }
    })
    .await;
    let blob = blob(&server.repository(none()));
    fetch(&*blob, 0, 4).await.unwrap();
    server.asked();
    valid.store(2, Ordering::SeqCst);
    assert_eq!(fetch(&*blob, 4, 8).await.unwrap().1, b"4567");
    assert_eq!(server.asked().len(), 3, "refused, token, answer");
    valid.store(9, Ordering::SeqCst);
    assert!(matches!(fetch(&*blob, 4, 8).await, Err(FetchError::Permanent { .. })));
    assert_eq!(
        server.asked().len(),
        7,
        "refused, and three tokens that are refused too"
    );
}

/// A registry that takes each token once, from number `first_good` on; what it says of others ends with `error`.
async fn tokens_for_one_request(error: &'static str, first_good: usize) -> Server {
    let (issued, used) = (AtomicUsize::new(0), Mutex::new(HashSet::new()));
    Server::start(move |own, asked| {
        if asked.path == "/token" {
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return answer(200, &[], format!(r#"{{"token":"{number}","expires_in":300}}"#));
        }
        let token = asked
            .header("authorization")
            .and_then(|text| text.strip_prefix("Bearer "));
        let number = token.map_or(0, |token| token.parse().unwrap());
        if number >= first_good && used.lock().unwrap().insert(number) {
            return part(BLOB, asked);
        }
        let challenge = format!(r#"Bearer realm="http://{own}/token"{error}"#);
        answer(401, &[("www-authenticate", &challenge)], "")
    })
    .await
}

#[tokio::test]
async fn a_token_that_others_used_up_is_not_the_last_word() {
    let server = tokens_for_one_request("", 1).await;
    let blob = blob(&server.repository(none()));
    let all = (0..3).map(|at| {
        let blob = Arc::clone(&blob);
        tokio::spawn(async move { fetch(&*blob, at, at + 1).await })
    });
    for (at, got) in futures_util::future::join_all(all).await.into_iter().enumerate() {
        assert_eq!(got.unwrap().unwrap().1, &BLOB[at..=at]);
    }
    assert_eq!(server.lines().iter().filter(|line| *line == "GET /token").count(), 3);
}

#[tokio::test]
async fn a_few_tokens_are_bought_for_one_request_and_none_where_that_is_no_use() {
    for (first_good, error, requests) in [
        (1, "", Some(3)),
        (3, "", Some(7)),
        (3, r#",error="invalid_token""#, Some(7)),
        (4, "", None),
        (3, r#",error="insufficient_scope""#, None),
    ] {
        let server = tokens_for_one_request(error, first_good).await;
        let got = fetch(&*blob(&server.repository(none())), 4, 8).await;
        assert_eq!(got.is_ok(), requests.is_some(), "{first_good}{error}");
        let most = if error.contains("scope") { 3 } else { 7 };
        assert_eq!(server.asked().len(), requests.unwrap_or(most), "{first_good}{error}");
    }
}

#[tokio::test]
async fn basic_credentials_go_to_the_registry() {
    let server = Server::start(|_, asked| match asked.header("authorization") {
        // "user:pw"
        Some("Basic dXNlcjpwdw==") => part(BLOB, asked),
        _ => answer(401, &[("www-authenticate", "Basic realm=\"r\"")], ""),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let files = server.credentials(&dir, json!({"auth": "dXNlcjpwdw=="}));
    let good = blob(&server.repository(files));
    assert_eq!(fetch(&*good, 0, 2).await.unwrap().1, b"01");
    assert_eq!(server.asked().len(), 2);
    fetch(&*good, 0, 2).await.unwrap();
    assert_eq!(server.asked().len(), 1);

    let error = fetch(&*blob(&server.repository(none())), 0, 2)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("docker login"), "{error}");
    let files = server.credentials(&dir, json!({"auth": "dXNlcjpubw=="}));
    let error = fetch(&*blob(&server.repository(files)), 0, 2)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("as somebody who may"), "{error}");
}

#[tokio::test]
async fn credentials_buy_a_token() {
    let server = Server::start(
        |own, asked| match (asked.path.as_str(), asked.header("authorization")) {
            ("/token", Some("Basic dXNlcjpwdw==")) if asked.method == "GET" => answer(200, &[], r#"{"token":"a"}"#),
            ("/token", None) if asked.method == "POST" => answer(200, &[], r#"{"access_token":"b"}"#),
            ("/token", _) => answer(401, &[], ""),
            (_, Some("Bearer a" | "Bearer b")) => part(BLOB, asked),
            _ => challenge(own),
        },
    )
    .await;
    let dir = tempfile::tempdir().unwrap();
    let files = server.credentials(&dir, json!({"auth": "dXNlcjpwdw=="}));
    fetch(&*blob(&server.repository(files)), 0, 2).await.unwrap();
    server.asked();

    let files = server.credentials(&dir, json!({"identitytoken": "i t"}));
    fetch(&*blob(&server.repository(files)), 0, 2).await.unwrap();
    let posted = server.asked().into_iter().find(|asked| asked.method == "POST").unwrap();
    assert_eq!(posted.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert!(
        posted.body.starts_with("grant_type=refresh_token&service=s+v&"),
        "{}",
        posted.body
    );
    assert!(posted.body.ends_with("&refresh_token=i+t"), "{}", posted.body);
    assert_eq!(posted.query, "x=1");

    let error = fetch(&*blob(&server.repository(none())), 0, 2)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("denies access to repository o/r"), "{error}");
}

#[tokio::test]
async fn a_token_realm_without_https_is_not_trusted_by_a_registry_with() {
    let realm = r#"Bearer realm="ftp://x.example/token""#;
    let server = Server::start(move |_, _| answer(401, &[("www-authenticate", realm)], "")).await;
    let error = fetch(&*blob(&server.repository(none())), 0, 2)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("not trusted"), "{error}");
}

#[tokio::test]
async fn authorization_stays_with_its_host_and_the_place_is_kept() {
    let expired = Arc::new(AtomicUsize::new(0));
    let refuse = Arc::clone(&expired);
    let store = Server::start(move |_, asked| {
        assert_eq!(asked.query, "sig=secret");
        if refuse.swap(0, Ordering::SeqCst) == 1 {
            answer(403, &[], "")
        } else {
            part(BLOB, asked)
        }
    })
    .await;
    let place = format!("http://localhost:{}/bucket/x?sig=secret", store.address.port());
    let server = Server::start(
        move |own, asked| match (asked.path.as_str(), asked.header("authorization")) {
            ("/token", _) => answer(200, &[], r#"{"token":"t"}"#),
            (_, Some("Bearer t")) => answer(307, &[("location", &place)], "moved"),
            _ => challenge(own),
        },
    )
    .await;
    let blob = blob(&server.repository(none()));
    assert_eq!(fetch(&*blob, 4, 8).await.unwrap().1, b"4567");
    assert_eq!(server.asked().len(), 3);
    let asked = store.asked();
    assert_eq!((asked.len(), asked[0].header("authorization")), (1, None));

    assert_eq!(fetch(&*blob, 8, 12).await.unwrap().1, b"89ab");
    assert_eq!(
        (server.asked().len(), store.asked().len()),
        (0, 1),
        "straight to the store"
    );

    expired.store(1, Ordering::SeqCst);
    assert_eq!(fetch(&*blob, 0, 4).await.unwrap().1, b"0123");
    assert_eq!(
        (server.asked().len(), store.asked().len()),
        (1, 2),
        "back to the registry once"
    );

    assert!(!format!("{blob:?}").contains("secret"));
    store.stop().await;
    let error = fetch(&*blob, 0, 4).await.unwrap_err();
    assert!(matches!(error, FetchError::Transient { .. }));
    assert!(!format!("{error:?} {error}").contains("secret"), "{error:?}");
}

#[tokio::test]
async fn one_connection_serves_what_comes_one_after_the_other() {
    let server = Server::start(
        |own, asked| match (asked.path.as_str(), asked.header("authorization")) {
            ("/token", _) => answer(200, &[], r#"{"token":"t"}"#),
            ("/blob", _) => part(BLOB, asked),
            (_, Some("Bearer t")) => answer(307, &[("location", "/blob")], "moved"),
            _ => challenge(own),
        },
    )
    .await;
    let blob = blob(&server.repository(none()));
    for at in 0..4 {
        let mut fetched = blob.fetch(ByteRange::at(at, 4)).await.unwrap();
        // A reader that has all it wants does not look for the end.
        assert_eq!(fetched.body.next().await.unwrap().unwrap().len(), 4);
    }
    let mut asked = server.asked();
    assert_eq!(asked.len(), 7, "refused, token, redirected, and the blob four times");
    asked.dedup_by_key(|asked| asked.connection);
    assert_eq!(asked.len(), 1);
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start(|own, _| answer(302, &[("location", &format!("http://{own}/round"))], "")).await;
    let error = fetch(&*blob(&server.repository(none())), 0, 4)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("in circles"), "{error}");
    assert_eq!(server.asked().len(), 11);
}

#[tokio::test]
async fn the_whole_instead_of_a_part_is_taken_as_that() {
    let (range, bytes) = four(|_| answer(200, &[], BLOB)).await.unwrap();
    assert_eq!((range, bytes.as_slice()), (ByteRange::new(0, 16), BLOB));
    assert!(!is_transient(four(|_| answer(200, &[], &BLOB[1..])).await));
}

#[tokio::test]
async fn a_part_must_be_the_one_that_was_asked_for() {
    for range in [
        "bytes 4-8/16",
        "bytes 3-6/16",
        "bytes 4-7/17",
        "bytes 4-6/16",
        "4-7/16",
        "",
    ] {
        let got = four(move |_| answer(206, &[("content-range", range)], "4567")).await;
        assert!(!is_transient(got), "{range}");
    }
    let range = [("content-range", "bytes 4-7/*")];
    assert!(four(move |_| answer(206, &range, "4567")).await.is_ok());
    assert!(
        !is_transient(four(move |_| answer(206, &range, "456")).await),
        "another length is announced"
    );
    let encoded = [("content-range", "bytes 4-7/16"), ("content-encoding", "gzip")];
    assert!(!is_transient(four(move |_| answer(206, &encoded, "4567")).await));
}

fn streamed(headers: &[(&str, &str)], chunks: Vec<&'static str>) -> Response {
    let chunks = chunks
        .into_iter()
        .map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk.as_bytes())));
    answer(206, headers, Body::from_stream(stream::iter(chunks)))
}

#[tokio::test]
async fn a_body_gives_what_was_promised_or_an_error() {
    let range = ("content-range", "bytes 4-7/16");
    assert!(is_transient(
        four(move |_| streamed(&[range, ("content-length", "4")], vec!["45"])).await
    ));
    assert!(is_transient(four(move |_| streamed(&[range], vec!["45"])).await));
    let (_, bytes) = four(move |_| streamed(&[range], vec!["45", "67", "89"])).await.unwrap();
    assert_eq!(bytes, b"4567", "never more");
}

#[tokio::test]
async fn a_server_that_stalls_is_given_up() {
    let server = Server::start(|_, _| {
        let nothing = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        answer(206, &[("content-range", "bytes 4-7/16")], nothing)
    })
    .await;
    let mut endpoint = server.endpoint();
    endpoint.timeout = Duration::from_millis(100);
    assert!(is_transient(
        fetch(&*blob(&Repository::new(endpoint, none())), 4, 8).await
    ));
}

#[tokio::test]
async fn statuses_tell_whether_to_try_again() {
    for (status, transient) in [
        (404, false),
        (416, false),
        (400, false),
        (501, false),
        (429, true),
        (500, true),
        (503, true),
    ] {
        assert_eq!(
            is_transient(four(move |_| answer(status, &[], "")).await),
            transient,
            "{status}"
        );
    }
    let error = four(|_| answer(429, &[("retry-after", "7")], "")).await.unwrap_err();
    let FetchError::Transient { retry_after, .. } = error else {
        panic!()
    };
    assert_eq!(retry_after, Some(Duration::from_secs(7)));

    for (status, throttled) in [(429, 1), (503, 0)] {
        let server = Server::start(move |_, _| answer(status, &[], "")).await;
        let blob = blob(&server.repository(none()));
        assert_eq!(blob.throttled(), 0);
        fetch(&*blob, 0, 4).await.unwrap_err();
        assert_eq!(blob.throttled(), throttled, "{status}");
    }

    let server = Server::start(|_, asked| part(BLOB, asked)).await;
    let blob = blob(&server.repository(none()));
    server.stop().await;
    assert!(is_transient(fetch(&*blob, 0, 4).await), "no connection");
}

#[tokio::test]
async fn insecure_takes_http_where_there_is_no_https() {
    let server = Server::start(|_, asked| part(BLOB, asked)).await;
    let mut endpoint = server.endpoint();
    endpoint.insecure = true;
    let blob = blob(&Repository::new(endpoint, none()));
    assert_eq!(fetch(&*blob, 4, 8).await.unwrap().1, b"4567");
    assert_eq!(fetch(&*blob, 4, 8).await.unwrap().1, b"4567");
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn a_document_is_tried_again_and_its_digest_checked() {
    let failures = AtomicUsize::new(2);
    let server = Server::start(move |_, asked| {
        if failures.load(Ordering::SeqCst) > 0 {
            failures.fetch_sub(1, Ordering::SeqCst);
            return answer(503, &[], "");
        }
        assert_eq!(asked.header("range"), None);
        answer(200, &[], BLOB)
    })
    .await;
    let repository = server.repository(none());
    assert_eq!(repository.document(&Digest::sha256(BLOB), 16).await.unwrap(), BLOB);
    assert_eq!(server.asked().len(), 3);
    let other = repository.document(&Digest::sha256(b""), 16).await;
    assert!(matches!(other, Err(RegistryError::WrongDigest { .. })));
    let large = repository.document(&Digest::sha256(BLOB), 15).await;
    assert!(matches!(large, Err(RegistryError::Protocol { .. })));
}

#[tokio::test]
async fn offline_nothing_is_asked() {
    let server = Server::start(|_, asked| part(BLOB, asked)).await;
    let mut endpoint = server.endpoint();
    endpoint.offline = true;
    assert!(!is_transient(
        fetch(&*blob(&Repository::new(endpoint, none())), 4, 8).await
    ));
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn a_public_registry_must_not_send_us_to_private_addresses() {
    use super::repository::Endpoint;
    use super::transport::{Proof, Request, Transport};
    let server = Server::start(|_, _| answer(200, &[], "secret")).await;
    let port = server.address.port();
    for (host, away, public, allowed, goes) in [
        ("127.0.0.1", true, true, false, false),
        ("localhost", true, true, false, false),
        ("127.0.0.1", true, false, false, true),
        ("localhost", true, true, true, true),
        // The registry itself may be where it wants: who names it knows why.
        ("127.0.0.1", false, true, false, true),
    ] {
        let transport = Transport::new(&Endpoint {
            allow_private: allowed,
            public_only: false,
            ..server.endpoint()
        });
        transport.is_at(if public { "192.0.2.1" } else { "10.0.0.1" }.parse().unwrap());
        let request = Request {
            method: reqwest::Method::GET,
            url: format!("http://{host}:{port}/").parse().unwrap(),
            away,
            headers: reqwest::header::HeaderMap::new(),
            proof: Proof::None,
            form: None,
            what: "a test",
        };
        let sent = transport.send(request).await.map_err(RegistryError::from);
        let case = format!("{host} away={away} public={public} allowed={allowed}");
        match sent {
            Ok(_) => assert!(goes, "{case}"),
            Err(error) => {
                assert!(!goes, "{case}: {error}");
                assert!(error.to_string().contains("--allow-private-redirects"), "{error}");
            }
        }
        assert_eq!(server.asked().len(), usize::from(goes), "{case}");
    }
}

#[tokio::test]
async fn headers_for_one_host_go_to_no_other() {
    let store = Server::start(|_, asked| part(BLOB, asked)).await;
    let place = format!("http://{}/store", store.address);
    let server = Server::start(move |_, _| answer(307, &[("location", &place)], "")).await;
    let mut endpoint = server.endpoint();
    endpoint.route.headers.insert("x-mirror-key", "secret".parse().unwrap());
    endpoint.route.root = Some("/deep".to_owned());
    let repository = Repository::new(endpoint, none());
    let blob = blob(&repository);
    for _ in 0..2 {
        fetch(&*blob, 4, 8).await.unwrap();
    }
    let asked = server.asked();
    assert_eq!(asked[0].header("x-mirror-key"), Some("secret"));
    assert!(asked[0].path.starts_with("/deep/o/r/blobs/"), "{}", asked[0].path);
    for asked in store.asked() {
        assert_eq!(asked.header("x-mirror-key"), None);
    }
}
