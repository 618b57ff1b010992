//! An image in a registry: what was seen before is taken from the disk, and a tag is asked for as cheaply as can be.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::manifest::{self, Unusable};
use super::platform::Platform;
use super::reference::RegistryReference;
use super::source::BlobOrigin;
use super::walk::{Shelf, walk};
use super::{Documents, Image, ImageError, Options};
use crate::digest::Digest;
use crate::registry::credentials::CredentialFiles;
use crate::registry::hosts::{self, Host};
use crate::registry::{Endpoint, Mirrored, RegistryError, Repository};

/// The longest that a mount waits to hear whether a tag has moved, when it could go on with what it knows.
const REVALIDATE: Duration = Duration::from_secs(10);

/// Which part of the timeout a mirror has before the next host is asked. It must be less than what a blob waits for an
/// answer, which is a third.
const MIRROR_PATIENCE: u32 = 8;

/// A repository, with the documents that are kept of it.
struct Remote<'a> {
    image: String,
    repository: Mirrored,
    documents: &'a Documents,
    options: &'a Options,
}

/// The hosts that are asked for an image: each with its own credentials, the mirrors without much patience.
fn repository(reference: &RegistryReference, options: &Options) -> Result<Mirrored, ImageError> {
    let (registry, api_host) = (reference.registry(), reference.api_host());
    let access = &options.access;
    let hosts = hosts::hosts_of(registry, api_host, &access.hosts_dirs).map_err(|source| ImageError::Hosts {
        image: reference.to_string(),
        source: Box::new(source),
    })?;
    let last = hosts.len().saturating_sub(1);
    let repository = |(number, host): (usize, Host)| {
        let itself = host.host == api_host;
        let mut route = host.route;
        route.ca.extend(access.tls_ca.iter().cloned());
        let timeout = match number == last {
            true => options.timeout,
            false => options.timeout / MIRROR_PATIENCE,
        };
        let endpoint = Endpoint {
            registry: if itself { registry } else { &host.host }.to_owned(),
            host: host.host,
            repository: reference.repository().to_owned(),
            insecure: options.insecure,
            offline: options.offline,
            allow_private: access.allow_private,
            public_only: access.public_only && itself,
            timeout,
            retries: number == last,
            route,
        };
        let credentials = match &access.credential {
            Some(credential) if itself => CredentialFiles::given(credential.clone()),
            _ if access.no_logins => CredentialFiles::default(),
            _ => CredentialFiles::from_environment(),
        };
        (Repository::new(endpoint, credentials), host.pull, host.resolve)
    };
    Ok(Mirrored::new(hosts.into_iter().enumerate().map(repository).collect()))
}

pub(super) async fn resolve(
    reference: &RegistryReference,
    options: &Options,
    documents: &Documents,
) -> Result<Image, ImageError> {
    let remote = Remote {
        image: reference.to_string(),
        repository: repository(reference, options)?,
        documents,
        options,
    };
    let platform = options.platform.as_ref();
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => {
            let bytes = remote.manifest(digest).await?;
            walk(&remote.image, *digest, bytes, platform, &remote).await
        }
        (None, tag) => {
            let wanted = platform.cloned().unwrap_or_else(Platform::host);
            let Tagged { digest, bytes, asked } = remote.tagged(tag.unwrap_or("latest"), &wanted).await?;
            let image = walk(&remote.image, digest, bytes, platform, &remote).await?;
            // Only now, when everything that it leads to is kept.
            if asked {
                documents.remember(&remote.image, &wanted, &digest);
            }
            Ok(image)
        }
    }
}

/// The document that a tag stands for.
struct Tagged {
    digest: Digest,
    bytes: Bytes,
    /// Whether the registry was asked, and not memory.
    asked: bool,
}

impl Remote<'_> {
    /// The document that a tag stands for.
    async fn tagged(&self, tag: &str, wanted: &Platform) -> Result<Tagged, ImageError> {
        let fresh = |digest, bytes| Tagged {
            digest,
            bytes,
            asked: true,
        };
        let known = self.documents.last_digest(&self.image, wanted);
        let age = known.as_ref().and_then(|(_, at)| at.elapsed().ok());
        let known = known.and_then(|(digest, _)| {
            Some(Tagged {
                digest,
                bytes: self.documents.get(&digest)?,
                asked: false,
            })
        });
        let image = &self.image;
        if self.options.offline {
            let known = known.ok_or_else(|| ImageError::NeverSeen { image: image.clone() })?;
            tracing::warn!(
                "{image} is taken as it was last seen, {} ago: {}",
                days(age),
                known.digest
            );
            return Ok(known);
        }
        if let Some(known) = known {
            if age.is_some_and(|age| age < self.options.access.tag_ttl) {
                return Ok(known);
            }
            let limit = REVALIDATE.min(self.options.timeout);
            match self.repository.digest_of_tag(tag, limit).await {
                Ok(Some(now)) if now == known.digest => return Ok(fresh(now, known.bytes)),
                // By digest: the tag may move again before the next request.
                Ok(Some(now)) => return Ok(fresh(now, self.manifest(&now).await?)),
                Err(error) if error.is_transient() => {
                    let age = days(age);
                    tracing::warn!(
                        "{error}; {image} is taken as it was last seen, {age} ago: {}",
                        known.digest
                    );
                    return Ok(known);
                }
                // The registry does not tell without sending it, or the answer to the next request says why.
                Ok(None) | Err(_) => {}
            }
        }
        let fetched = self
            .repository
            .manifest_of_tag(tag)
            .await
            .map_err(|error| self.error(error))?;
        self.documents.put(&fetched.digest, &fetched.bytes);
        Ok(fresh(fetched.digest, fetched.bytes))
    }

    fn error(&self, error: RegistryError) -> ImageError {
        let image = self.image.clone();
        match error {
            RegistryError::NotFound { ref what, ref host, .. } => ImageError::NoSuchImage {
                what: format!("{what} at {host}"),
                image,
                source: Box::new(error),
            },
            // A signed schema 1 manifest does not have the digest that it goes by.
            RegistryError::WrongDigest { ref bytes, .. }
                if matches!(manifest::parse(bytes), Err(Unusable::Schema1)) =>
            {
                ImageError::Schema1 { image }
            }
            source => ImageError::Registry {
                image,
                source: Box::new(source),
            },
        }
    }
}

/// How long ago something was, for a message.
fn days(age: Option<Duration>) -> String {
    match age.map(|age| age.as_secs()) {
        None => "an unknown time".to_owned(),
        Some(seconds @ 0..120) => format!("{seconds} seconds"),
        Some(seconds @ 120..7200) => format!("{} minutes", seconds / 60),
        Some(seconds @ 7200..172_800) => format!("{} hours", seconds / 3600),
        Some(seconds) => format!("{} days", seconds / 86_400),
    }
}

impl Shelf for Remote<'_> {
    fn manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, ImageError>> {
        Box::pin(async move {
            if let Some(bytes) = self.documents.get(digest) {
                return Ok(bytes);
            }
            let bytes = self
                .repository
                .manifest(digest)
                .await
                .map_err(|error| self.error(error))?;
            self.documents.put(digest, &bytes);
            Ok(bytes)
        })
    }

    fn config<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, ImageError>> {
        Box::pin(async move {
            if let Some(bytes) = self.documents.get(digest) {
                return Ok(bytes);
            }
            let fetched = self.repository.document(digest, manifest::MAX_CONFIG).await;
            let bytes = fetched.map_err(|error| self.error(error))?;
            self.documents.put(digest, &bytes);
            Ok(bytes)
        })
    }

    fn layer(&self, digest: &Digest, size: u64) -> Result<BlobOrigin, ImageError> {
        Ok(BlobOrigin::Remote(self.repository.blob(*digest, size)))
    }
}

#[cfg(test)]
mod tests;
