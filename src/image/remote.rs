//! An image in a registry: what was seen before is taken from the disk, and a tag is asked for as cheaply as can be.

use std::sync::Arc;
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
use crate::registry::{Endpoint, RegistryError, Repository};

/// The longest that a mount waits to hear whether a tag has moved, when it could go on with what it knows.
const REVALIDATE: Duration = Duration::from_secs(10);

/// A repository, with the documents that are kept of it.
struct Remote<'a> {
    image: String,
    repository: Arc<Repository>,
    documents: &'a Documents,
}

pub(super) async fn resolve(
    reference: &RegistryReference,
    options: &Options,
    documents: &Documents,
) -> Result<Image, ImageError> {
    let endpoint = Endpoint {
        registry: reference.registry().to_owned(),
        host: reference.api_host().to_owned(),
        repository: reference.repository().to_owned(),
        insecure: options.insecure,
        offline: options.offline,
        timeout: options.timeout,
    };
    let remote = Remote {
        image: reference.to_string(),
        repository: Repository::new(endpoint, CredentialFiles::from_environment()),
        documents,
    };
    let platform = options.platform.as_ref();
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => {
            let bytes = remote.manifest(digest).await?;
            walk(&remote.image, *digest, bytes, platform, &remote).await
        }
        (None, tag) => {
            let wanted = platform.cloned().unwrap_or_else(Platform::host);
            let (digest, bytes) = remote.tagged(tag.unwrap_or("latest"), &wanted).await?;
            let image = walk(&remote.image, digest, bytes, platform, &remote).await?;
            // Only now, when everything that it leads to is kept.
            documents.remember(&remote.image, &wanted, &digest);
            Ok(image)
        }
    }
}

impl Remote<'_> {
    /// The document that a tag stands for.
    async fn tagged(&self, tag: &str, wanted: &Platform) -> Result<(Digest, Bytes), ImageError> {
        let known = self.documents.last_digest(&self.image, wanted);
        let known = known.and_then(|digest| Some((digest, self.documents.get(&digest)?)));
        if self.repository.endpoint().offline {
            return known.ok_or_else(|| ImageError::NeverSeen {
                image: self.image.clone(),
            });
        }
        if let Some((digest, bytes)) = known {
            let limit = REVALIDATE.min(self.repository.endpoint().timeout);
            match self.repository.digest_of_tag(tag, limit).await {
                Ok(Some(now)) if now == digest => return Ok((digest, bytes)),
                // By digest: the tag may move again before the next request.
                Ok(Some(now)) => return Ok((now, self.manifest(&now).await?)),
                Err(error) if error.is_transient() => {
                    tracing::warn!("{error}; going on with {} as it was last seen ({digest})", self.image);
                    return Ok((digest, bytes));
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
        Ok((fetched.digest, fetched.bytes))
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
