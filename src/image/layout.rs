//! An OCI image layout: a directory with `index.json` and `blobs/ALGORITHM/HEX` (image-spec, "Image Layout").

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::manifest::{self, Document, Entry, MAX_CONFIG, MAX_MANIFEST};
use super::platform::Platform;
use super::reference::RegistryReference;
use super::source::BlobOrigin;
use super::walk::{Shelf, unusable, walk};
use super::{Image, ImageError};
use crate::digest::Digest;
use crate::range::ByteRange;

/// The annotation with an image's name in `index.json`.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// containerd's, with the registry.
const FULL_NAME: &str = "io.containerd.image.name";

struct Layout {
    image: String,
    dir: PathBuf,
}

pub(super) async fn resolve(
    image: String,
    dir: &Path,
    tag: Option<&str>,
    platform: Option<&Platform>,
) -> Result<Image, ImageError> {
    let layout = Layout {
        image,
        dir: dir.to_owned(),
    };
    let index = layout.read(&dir.join("index.json"), MAX_MANIFEST)?;
    let Document::Index(entries) =
        manifest::parse(&index).map_err(|error| unusable(&layout.image, "index.json", error))?
    else {
        return Err(layout.malformed("index.json", "it is not an index"));
    };
    let entry = layout.choose(&entries, tag, platform)?;
    let digest = entry
        .digest()
        .map_err(|error| unusable(&layout.image, "index.json", error))?;
    let bytes = layout.manifest(&digest).await?;
    walk(&layout.image, digest, bytes, platform, &layout).await
}

impl Layout {
    /// The image of this name. Where several have it, or there are several and none has a name, they are one image for
    /// several platforms.
    fn choose<'a>(
        &self,
        entries: &'a [Entry],
        tag: Option<&str>,
        platform: Option<&Platform>,
    ) -> Result<&'a Entry, ImageError> {
        let mut names: Vec<&str> = entries.iter().filter_map(|entry| entry.annotation(REF_NAME)).collect();
        names.sort_unstable();
        names.dedup();
        let found: Vec<Entry> = match tag {
            Some(tag) => entries.iter().filter(|entry| is_named(entry, tag)).cloned().collect(),
            None if names.len() > 1 => Vec::new(),
            None => entries.iter().filter(|entry| entry.is_image()).cloned().collect(),
        };
        let same = |chosen: &Entry| entries.iter().find(|entry| entry.digest().ok() == chosen.digest().ok());
        let chosen = match &found[..] {
            [] => None,
            [one] => same(one),
            several => {
                let wanted = platform.cloned().unwrap_or_else(Platform::host);
                let chosen = manifest::choose(several, &wanted).map_err(|available| ImageError::NoPlatform {
                    image: self.image.clone(),
                    wanted: wanted.to_string(),
                    available,
                })?;
                same(chosen)
            }
        };
        chosen.ok_or_else(|| {
            names.truncate(50);
            let names = manifest::printable(&names.join(", "));
            let reason = match tag {
                _ if names.is_empty() => "there is no image in it that has this name, nor one with any".to_owned(),
                Some(_) => format!("there is no image of this name in it, but: {names}"),
                None => format!("there are several images in it, add :TAG for one of: {names}"),
            };
            ImageError::Choose {
                image: self.image.clone(),
                reason,
            }
        })
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    fn read(&self, path: &Path, limit: usize) -> Result<Bytes, ImageError> {
        let read = || {
            let (file, length) = open(path)?;
            if length > limit as u64 {
                return Err(io::Error::other(format!(
                    "it has {length} bytes; {limit} are the limit"
                )));
            }
            let mut bytes = Vec::with_capacity(length as usize);
            file.take(limit as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map(Bytes::from).map_err(|source| self.io(path, source))
    }

    fn verified(&self, digest: &Digest, limit: usize, what: &str) -> Result<Bytes, ImageError> {
        let bytes = self.read(&self.blob(digest), limit)?;
        if digest.matches(&bytes) {
            return Ok(bytes);
        }
        Err(ImageError::WrongDigest {
            image: self.image.clone(),
            what: what.to_owned(),
            digest: *digest,
        })
    }

    fn io(&self, path: &Path, source: io::Error) -> ImageError {
        ImageError::Io {
            image: self.image.clone(),
            what: path.display().to_string(),
            source,
        }
    }

    fn malformed(&self, what: &str, reason: &str) -> ImageError {
        ImageError::Malformed {
            image: self.image.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

impl Shelf for Layout {
    fn manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, ImageError>> {
        Box::pin(async move { self.verified(digest, MAX_MANIFEST, "manifest") })
    }

    fn config<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, ImageError>> {
        Box::pin(async move { self.verified(digest, MAX_CONFIG, "config") })
    }

    fn layer(&self, digest: &Digest, size: u64) -> Result<BlobOrigin, ImageError> {
        let path = self.blob(digest);
        let (file, length) = open(&path).map_err(|source| self.io(&path, source))?;
        if length != size {
            let reason = format!("{} has {length} bytes instead of {size}", path.display());
            return Err(self.malformed("layer", &reason));
        }
        Ok(BlobOrigin::File {
            file: Arc::new(file),
            range: ByteRange::new(0, size),
        })
    }
}

/// A regular file and its length. Looked at before it is opened: opening a pipe would wait for somebody to write.
fn open(path: &Path) -> io::Result<(File, u64)> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

fn is_named(entry: &Entry, tag: &str) -> bool {
    let full: Option<RegistryReference> = tag.parse().ok();
    [REF_NAME, FULL_NAME]
        .into_iter()
        .filter_map(|name| entry.annotation(name))
        .any(|name| {
            // A tag alone reads like the name of a repository: full names only are compared in full.
            name == tag || (name.contains([':', '/']) && full.is_some() && name.parse().ok() == full)
        })
}

#[cfg(test)]
mod tests;
