//! From the first document to the image, wherever documents come from.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::manifest::{self, Document, Manifest, Unusable};
use super::platform::Platform;
use super::source::BlobOrigin;
use super::{Image, ImageError, LayerDescriptor};
use crate::digest::Digest;

/// How often an index may lead to another.
const MAX_DEPTH: usize = 4;

/// Where an image's documents and blobs are: a repository, or a directory.
pub(super) trait Shelf: Send + Sync {
    /// The index or manifest with this digest, verified, of at most [`manifest::MAX_MANIFEST`] bytes.
    fn manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, ImageError>>;

    /// The config with this digest, verified, of at most [`manifest::MAX_CONFIG`] bytes.
    fn config<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, ImageError>>;

    /// Where a layer's bytes are.
    fn layer(&self, digest: &Digest, size: u64) -> Result<BlobOrigin, ImageError>;
}

/// Follows the document `bytes`, which has `digest`, through indexes to a manifest for `platform` (this machine's if not
/// given), and makes the image of it and its config.
pub(super) async fn walk(
    image: &str,
    mut digest: Digest,
    mut bytes: Bytes,
    platform: Option<&Platform>,
    shelf: &dyn Shelf,
) -> Result<Image, ImageError> {
    let wanted = platform.cloned().unwrap_or_else(Platform::host);
    for depth in 0..MAX_DEPTH {
        match manifest::parse(&bytes).map_err(|error| unusable(image, "manifest", error))? {
            Document::Index(entries) => {
                let entry = manifest::choose(&entries, &wanted).map_err(|available| ImageError::NoPlatform {
                    image: image.to_owned(),
                    wanted: wanted.to_string(),
                    available,
                })?;
                digest = entry.digest().map_err(|error| unusable(image, "index", error))?;
                bytes = shelf.manifest(&digest).await?;
            }
            Document::Manifest(manifest) => {
                let config = shelf.config(&manifest.config.digest).await?;
                let origins = manifest
                    .layers
                    .iter()
                    .map(|layer| shelf.layer(&layer.digest, layer.size));
                let origins = origins.collect::<Result<_, _>>()?;
                let found = assemble(image, digest, bytes, manifest, config, origins)?;
                // Where an index chose, the config may be sloppy about it.
                if depth == 0 {
                    check_platform(&found, platform)?;
                }
                return Ok(found);
            }
        }
    }
    Err(unusable(
        image,
        "index",
        Unusable::Malformed("it leads from index to index".to_owned()),
    ))
}

/// The image of these documents, with the origins of the manifest's layers in their order.
pub(super) fn assemble(
    image: &str,
    resolved: Digest,
    bytes: Bytes,
    manifest: Manifest,
    config: Bytes,
    origins: Vec<BlobOrigin>,
) -> Result<Image, ImageError> {
    let parsed =
        manifest::parse_config(&config, manifest.layers.len()).map_err(|error| unusable(image, "config", error))?;
    let layers = manifest.layers.into_iter().zip(parsed.diff_ids).zip(origins);
    let layers = layers.map(|((layer, diff_id), origin)| LayerDescriptor {
        digest: layer.digest,
        size: layer.size,
        media_type: layer.media_type,
        diff_id: Some(diff_id),
        annotations: layer.annotations,
        origin,
    });
    Ok(Image {
        reference: image.to_owned(),
        resolved,
        manifest: bytes,
        config,
        platform: parsed.platform,
        layers: layers.collect(),
    })
}

/// Refuses an image without an index that is for another platform than was asked for; nothing was, nothing is refused.
pub(super) fn check_platform(image: &Image, platform: Option<&Platform>) -> Result<(), ImageError> {
    match platform {
        Some(wanted) if wanted.fit(&image.platform).is_none() => Err(ImageError::NoPlatform {
            image: image.reference.clone(),
            wanted: wanted.to_string(),
            available: image.platform.to_string(),
        }),
        _ => Ok(()),
    }
}

/// The error for a document that cannot be used.
pub(super) fn unusable(image: &str, what: &str, error: Unusable) -> ImageError {
    let image = image.to_owned();
    match error {
        Unusable::Schema1 => ImageError::Schema1 { image },
        Unusable::Artifact(kind) => ImageError::Artifact { image, kind },
        Unusable::Malformed(reason) => ImageError::Malformed {
            image,
            what: what.to_owned(),
            reason,
        },
    }
}
