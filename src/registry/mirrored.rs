//! A repository wherever it can be had: its mirrors first, in their order, then the registry itself.
//!
//! A host that fails in a way that may pass is left alone for a while, longer each time, then tried again. Any failure
//! sends the request on to the next host: a mirror that lacks something, or denies it, is no reason to do without. What
//! the last host says is the answer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::blob::RemoteBlob;
use super::error::RegistryError;
use super::repository::{FetchedManifest, Repository};
use crate::digest::Digest;
use crate::image::source::{BlobSource, FetchError, Fetched};
use crate::range::ByteRange;

/// How long a host that failed is left alone at first; it doubles up to `LONGEST_REST`.
const REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(120);

/// The hosts of a repository.
#[derive(Debug)]
pub struct Mirrored {
    hosts: Vec<Arc<Mirror>>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Mirror {
    repository: Arc<Repository>,
    /// It may be asked for what has a digest.
    pull: bool,
    /// It may be asked what a tag stands for.
    resolve: bool,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    /// It is not asked before this.
    back: Option<Instant>,
    failures: u32,
}

impl Mirror {
    fn rests(&self) -> bool {
        self.health.lock().back.is_some_and(|back| Instant::now() < back)
    }

    fn works(&self) {
        *self.health.lock() = Health::default();
    }

    fn failed(&self, why: &dyn fmt::Display) {
        let mut health = self.health.lock();
        // Those who had asked before it was found to be away tell nothing new.
        if health.back.is_some_and(|back| Instant::now() < back) {
            return;
        }
        let rest = REST.saturating_mul(1 << health.failures.min(10)).min(LONGEST_REST);
        health.failures += 1;
        health.back = Some(Instant::now() + rest);
        drop(health);
        let host = &self.repository.endpoint().host;
        tracing::warn!("the mirror {host} is left alone for {} s: {why}", rest.as_secs());
    }
}

impl Mirrored {
    /// `hosts` in order, with what each may be asked: for what has a digest, and what a tag stands for. The last is the
    /// registry itself.
    pub fn new(hosts: Vec<(Arc<Repository>, bool, bool)>) -> Mirrored {
        let mirror = |(repository, pull, resolve)| {
            Arc::new(Mirror {
                repository,
                pull,
                resolve,
                health: Mutex::default(),
            })
        };
        Mirrored {
            hosts: hosts.into_iter().map(mirror).collect(),
        }
    }

    /// What [`Repository::manifest_of_tag`] gives.
    pub async fn manifest_of_tag(&self, tag: &str) -> Result<FetchedManifest, RegistryError> {
        self.first(
            |mirror| mirror.resolve,
            |repository| Box::pin(repository.manifest_of_tag(tag)),
        )
        .await
    }

    /// What [`Repository::digest_of_tag`] gives.
    pub async fn digest_of_tag(&self, tag: &str, limit: Duration) -> Result<Option<Digest>, RegistryError> {
        self.first(
            |mirror| mirror.resolve,
            |repository| Box::pin(repository.digest_of_tag(tag, limit)),
        )
        .await
    }

    /// What [`Repository::manifest`] gives.
    pub async fn manifest(&self, digest: &Digest) -> Result<Bytes, RegistryError> {
        self.first(|mirror| mirror.pull, |repository| Box::pin(repository.manifest(digest)))
            .await
    }

    /// What [`Repository::document`] gives.
    pub async fn document(&self, digest: &Digest, limit: usize) -> Result<Bytes, RegistryError> {
        self.first(
            |mirror| mirror.pull,
            |repository| Box::pin(repository.document(digest, limit)),
        )
        .await
    }

    /// The blob with this digest and size as a source of ranges. Nothing is asked yet.
    pub fn blob(&self, digest: Digest, size: u64) -> Arc<dyn BlobSource> {
        let blob = |mirror: &Arc<Mirror>| Holder {
            mirror: Arc::clone(mirror),
            blob: RemoteBlob::new(Arc::clone(&mirror.repository), digest, size),
            gave: AtomicBool::new(false),
            distrusted: AtomicBool::new(false),
        };
        let mut hosts: Vec<_> = self.hosts.iter().filter(|mirror| mirror.pull).map(blob).collect();
        match hosts.pop() {
            Some(only) if hosts.is_empty() => Arc::new(only.blob),
            last => Arc::new(MirroredBlob {
                mirrors: hosts,
                registry: last.map(|holder| holder.blob),
            }),
        }
    }

    /// Asks one host after the other until one gives an answer. The last is asked even if it has failed before.
    async fn first<'a, T>(
        &'a self,
        may: impl Fn(&Mirror) -> bool,
        ask: impl Fn(&'a Repository) -> BoxFuture<'a, Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let Some((last, mirrors)) = self.hosts.split_last() else {
            return Err(RegistryError::Setup {
                reason: "no host is named for the registry".to_owned(),
            });
        };
        for mirror in mirrors.iter().filter(|mirror| may(mirror) && !mirror.rests()) {
            match ask(&mirror.repository).await {
                Ok(answer) => {
                    mirror.works();
                    return Ok(answer);
                }
                Err(error @ RegistryError::Offline { .. }) => return Err(error),
                // Who gives wrong bytes once is not asked at once for more.
                Err(error @ RegistryError::WrongDigest { .. }) => mirror.failed(&error),
                Err(error) if error.is_transient() => mirror.failed(&error),
                Err(error) => tracing::info!("going on to the next host: {error}"),
            }
        }
        ask(&last.repository).await
    }
}

/// A blob that several hosts may have.
struct MirroredBlob {
    mirrors: Vec<Holder>,
    registry: Option<RemoteBlob>,
}

/// A mirror that may have a certain blob.
struct Holder {
    mirror: Arc<Mirror>,
    blob: RemoteBlob,
    /// Whether it has answered with bytes.
    gave: AtomicBool,
    /// Whether wrong bytes may have been among them: it is not asked for this blob again.
    distrusted: AtomicBool,
}

impl fmt::Debug for MirroredBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.hosts()).finish()
    }
}

impl MirroredBlob {
    fn hosts(&self) -> impl Iterator<Item = &RemoteBlob> {
        self.mirrors.iter().map(|holder| &holder.blob).chain(&self.registry)
    }
}

impl BlobSource for MirroredBlob {
    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            for holder in &self.mirrors {
                let Holder { mirror, blob, .. } = holder;
                if mirror.rests() || holder.distrusted.load(Ordering::Relaxed) {
                    continue;
                }
                match blob.fetch(range).await {
                    Ok(fetched) => {
                        mirror.works();
                        holder.gave.store(true, Ordering::Relaxed);
                        return Ok(watched(mirror, fetched));
                    }
                    Err(error @ FetchError::Transient { .. }) => mirror.failed(&error),
                    Err(error) => tracing::debug!("going on to the next host: {error}"),
                }
            }
            match &self.registry {
                Some(registry) => registry.fetch(range).await,
                None => Err(FetchError::Permanent {
                    reason: "no host is named for the registry".to_owned(),
                }),
            }
        })
    }

    fn distrust(&self) -> bool {
        let mut left = false;
        for holder in &self.mirrors {
            if holder.gave.load(Ordering::Relaxed) && !holder.distrusted.swap(true, Ordering::Relaxed) {
                holder
                    .mirror
                    .failed(&"bytes that it may have given are not those of the blob");
                left = true;
            }
        }
        left
    }

    fn throttled(&self) -> u64 {
        self.hosts().map(RemoteBlob::throttled).sum()
    }
}

/// An answer whose end, if it is no good one, is noted: the next request goes elsewhere.
fn watched(mirror: &Arc<Mirror>, fetched: Fetched) -> Fetched {
    let mirror = Arc::clone(mirror);
    let body = fetched.body.inspect(move |chunk| {
        if let Err(error) = chunk {
            mirror.failed(error);
        }
    });
    Fetched {
        range: fetched.range,
        body: body.boxed(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU16;

    use super::super::credentials::CredentialFiles;
    use super::super::fake::{Server, answer, part};
    use super::super::hosts::Route;
    use super::super::repository::Endpoint;
    use super::*;

    const BLOB: &[u8] = b"0123456789abcdef";

    /// A server that answers with the status that is set, or with what was asked for if that is 200.
    struct Host {
        server: Server,
        status: Arc<AtomicU16>,
    }

    impl Host {
        async fn start() -> Host {
            let status = Arc::new(AtomicU16::new(200));
            let seen = Arc::clone(&status);
            let server = Server::start(move |_, asked| match seen.load(Ordering::SeqCst) {
                200 if asked.path.contains("/manifests/") => answer(200, &[], BLOB),
                200 => part(BLOB, asked),
                status => answer(status, &[], ""),
            })
            .await;
            Host { server, status }
        }

        fn set(&self, status: u16) {
            self.status.store(status, Ordering::SeqCst);
        }

        fn asked(&self) -> usize {
            self.server.asked().len()
        }

        fn repository(&self, mirror: bool) -> Arc<Repository> {
            let endpoint = Endpoint {
                retries: !mirror,
                route: Route {
                    namespace: mirror.then(|| "r.example:5000".to_owned()),
                    ..Route::default()
                },
                ..self.server.endpoint()
            };
            Repository::new(endpoint, CredentialFiles::default())
        }
    }

    /// A mirror that is not trusted with tags, one that is, and the registry.
    async fn three() -> ([Host; 3], Mirrored) {
        let hosts = [Host::start().await, Host::start().await, Host::start().await];
        let mirrored = Mirrored::new(vec![
            (hosts[0].repository(true), true, false),
            (hosts[1].repository(true), true, true),
            (hosts[2].repository(false), true, true),
        ]);
        (hosts, mirrored)
    }

    async fn read(blob: &Arc<dyn BlobSource>) -> Vec<u8> {
        let mut fetched = blob.fetch(ByteRange::new(4, 8)).await.unwrap();
        let mut bytes = Vec::new();
        while let Some(chunk) = fetched.body.next().await {
            bytes.extend_from_slice(&chunk.unwrap());
        }
        bytes
    }

    fn asked(hosts: &[Host; 3]) -> [usize; 3] {
        hosts.each_ref().map(Host::asked)
    }

    #[tokio::test]
    async fn the_first_host_that_may_is_asked_and_told_for_which_registry() {
        let (hosts, mirrored) = three().await;
        let digest = Digest::sha256(BLOB);
        mirrored.manifest(&digest).await.unwrap();
        assert_eq!(hosts[0].server.asked()[0].query, "ns=r.example%3A5000");
        mirrored.manifest_of_tag("1").await.unwrap();
        assert_eq!(asked(&hosts), [0, 1, 0]);
        assert_eq!(read(&mirrored.blob(digest, BLOB.len() as u64)).await, b"4567");
        assert_eq!(asked(&hosts), [1, 0, 0]);
    }

    #[tokio::test]
    async fn whatever_a_mirror_says_the_next_is_asked_and_the_last_tells() {
        for status in [401, 403, 404, 416, 429, 500, 503] {
            let (hosts, mirrored) = three().await;
            hosts[..2].iter().for_each(|host| host.set(status));
            let digest = Digest::sha256(BLOB);
            assert_eq!(mirrored.manifest(&digest).await.unwrap(), BLOB);
            assert_eq!(
                read(&mirrored.blob(digest, BLOB.len() as u64)).await,
                b"4567",
                "{status}"
            );
            hosts[2].set(404);
            let error = mirrored.manifest(&digest).await.unwrap_err();
            assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_mirror_that_is_away_is_left_alone_and_comes_back() {
        let (hosts, mirrored) = three().await;
        let blob = mirrored.blob(Digest::sha256(BLOB), BLOB.len() as u64);
        hosts[0].set(503);
        read(&blob).await;
        assert_eq!(asked(&hosts), [1, 1, 0]);
        hosts[0].set(200);
        read(&blob).await;
        assert_eq!(asked(&hosts), [0, 1, 0], "it is not asked at once");
        let rest = |back| mirrored.hosts[0].health.lock().back = back;
        rest(Some(Instant::now()));
        read(&blob).await;
        read(&blob).await;
        assert_eq!(asked(&hosts), [2, 0, 0]);
        assert_eq!(mirrored.hosts[0].health.lock().failures, 0);
    }

    #[tokio::test]
    async fn each_failure_makes_the_rest_longer_up_to_a_limit() {
        let (_hosts, mirrored) = three().await;
        let mirror = &mirrored.hosts[0];
        let mut rests = Vec::new();
        for _ in 0..7 {
            mirror.failed(&"as the test wants");
            let back = mirror.health.lock().back.unwrap();
            // One who had asked before changes nothing.
            mirror.failed(&"again");
            assert_eq!(mirror.health.lock().back, Some(back));
            rests.push((back - Instant::now()).as_secs_f64().round() as u64);
            mirror.health.lock().back = Some(Instant::now());
        }
        assert_eq!(rests, [5, 10, 20, 40, 80, 120, 120]);
    }

    #[tokio::test]
    async fn who_gave_wrong_bytes_of_a_blob_is_not_asked_for_it_again() {
        let (hosts, mirrored) = three().await;
        let blob = mirrored.blob(Digest::sha256(BLOB), BLOB.len() as u64);
        assert!(!blob.distrust(), "nobody has given anything yet");
        for expected in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
            mirrored.hosts.iter().for_each(|mirror| mirror.works());
            read(&blob).await;
            assert_eq!(asked(&hosts), expected);
            assert_eq!(
                blob.distrust(),
                expected[2] == 0,
                "the registry itself is the last resort"
            );
        }
    }

    #[tokio::test]
    async fn a_mirror_with_a_wrong_manifest_is_passed_over_and_rests() {
        let (hosts, mirrored) = three().await;
        let wrong = Server::start(|_, _| answer(200, &[], "something else")).await;
        let wrong = Repository::new(wrong.endpoint(), CredentialFiles::default());
        let mirrored = Mirrored::new(vec![
            (wrong, true, true),
            (Arc::clone(&mirrored.hosts[2].repository), true, true),
        ]);
        assert_eq!(mirrored.manifest(&Digest::sha256(BLOB)).await.unwrap(), BLOB);
        assert!(mirrored.hosts[0].rests());
        assert_eq!(asked(&hosts), [0, 0, 1]);
    }

    #[tokio::test]
    async fn a_body_that_ends_early_sends_the_next_request_elsewhere() {
        let (_hosts, mirrored) = three().await;
        let short = Server::start(|_, _| {
            let body = futures_util::stream::iter([Ok(Bytes::from_static(b"4")), Err(std::io::Error::other("cut"))]);
            answer(
                206,
                &[("content-range", "bytes 4-7/16")],
                axum::body::Body::from_stream(body),
            )
        })
        .await;
        let endpoint = Endpoint {
            retries: false,
            ..short.endpoint()
        };
        let mirrored = Mirrored::new(vec![
            (Repository::new(endpoint, CredentialFiles::default()), true, true),
            (Arc::clone(&mirrored.hosts[2].repository), true, true),
        ]);
        let blob = mirrored.blob(Digest::sha256(BLOB), BLOB.len() as u64);
        let mut fetched = blob.fetch(ByteRange::new(4, 8)).await.unwrap();
        while let Some(Ok(_)) = fetched.body.next().await {}
        assert_eq!(read(&blob).await, b"4567");
        assert_eq!((short.asked().len(), mirrored.hosts[0].health.lock().failures), (1, 1));
    }
}
