//! The tar that `docker save`, `podman save` and `skopeo copy` make.
//!
//! `manifest.json` names a config and layers for each image; the layers lie in the archive as `ID/layer.tar` (links to
//! one another where they are the same), `DIGEST.tar`, or `blobs/sha256/HEX`. They are read where they lie, so the
//! headers of the archive are walked once, seeking over the content.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::manifest::{
    DOCKER_CONFIG, DOCKER_MANIFEST, Document, MAX_CONFIG, MAX_MANIFEST, parse, parse_config, printable,
};
use super::platform::Platform;
use super::reference::RegistryReference;
use super::source::BlobOrigin;
use super::walk::{assemble, check_platform, unusable};
use super::{Image, ImageError};
use crate::digest::Digest;
use crate::range::ByteRange;

/// The most members of an archive; one of a thousand layers has some four thousand.
const MAX_MEMBERS: usize = 100_000;

/// The most bytes that headers and long names may have together: only these are read in the walk.
const MAX_HEADERS: u64 = 256 << 20;

/// The most links that lead to a layer.
const MAX_LINKS: usize = 16;

struct Archive {
    image: String,
    file: Arc<File>,
    length: u64,
    members: BTreeMap<String, Member>,
}

enum Member {
    File(ByteRange),
    /// The path that it stands for.
    Link(String),
}

/// What `manifest.json` says of one image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

pub(super) async fn resolve(
    image: String,
    file: &Path,
    tag: Option<&str>,
    platform: Option<&Platform>,
) -> Result<Image, ImageError> {
    let (path, tag) = (file.to_owned(), tag.map(str::to_owned));
    let name = image.clone();
    // A layer whose digest nothing tells is hashed: that may take seconds.
    let read = tokio::task::spawn_blocking(move || read(image, &path, tag.as_deref()));
    let image = read.await.unwrap_or_else(|error| {
        Err(ImageError::Io {
            image: name,
            what: "the archive".to_owned(),
            source: io::Error::other(error),
        })
    })?;
    check_platform(&image, platform)?;
    Ok(image)
}

fn read(image: String, path: &Path, tag: Option<&str>) -> Result<Image, ImageError> {
    let opened = (|| {
        // Opening a pipe would wait for somebody to write.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    })();
    let (file, length) = opened.map_err(|source| ImageError::Io {
        image: image.clone(),
        what: path.display().to_string(),
        source,
    })?;
    let mut archive = Archive {
        image,
        file: Arc::new(file),
        length,
        members: BTreeMap::new(),
    };
    archive.walk()?;
    let saved = archive.choose(tag)?;
    archive.image(&saved)
}

impl Archive {
    /// Learns where every member lies.
    fn walk(&mut self) -> Result<(), ImageError> {
        if let Some(kind) = compression(&self.start(ByteRange::new(0, self.length))?) {
            return Err(self.malformed(&format!(
                "it is compressed ({kind}); decompress it first, since layers are read where they lie in it"
            )));
        }
        let reader = Headers {
            file: Arc::clone(&self.file),
            at: 0,
            left: MAX_HEADERS,
        };
        let mut tar = tar::Archive::new(reader);
        let entries = tar.entries_with_seek().map_err(|error| self.unreadable(error))?;
        for entry in entries {
            let entry = entry.map_err(|error| self.unreadable(error))?;
            if self.members.len() >= MAX_MEMBERS {
                return Err(self.malformed(&format!("it has more than {MAX_MEMBERS} members")));
            }
            let path = entry.path_bytes();
            let Some(path) = std::str::from_utf8(&path).ok().and_then(|path| resolve_path("", path)) else {
                continue;
            };
            let link = || {
                let target = entry.link_name_bytes()?;
                std::str::from_utf8(&target).ok().map(str::to_owned)
            };
            let kind = entry.header().entry_type();
            let member = if kind.is_file() || kind.is_contiguous() {
                Some(Member::File(ByteRange::at(entry.raw_file_position(), entry.size())))
            } else if kind.is_symlink() {
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                link()
                    .and_then(|target| resolve_path(parent, &target))
                    .map(Member::Link)
            } else if kind.is_hard_link() {
                link().and_then(|target| resolve_path("", &target)).map(Member::Link)
            } else {
                None
            };
            if let Some(member) = member {
                self.members.insert(path, member);
            }
        }
        Ok(())
    }

    /// The path and place of a member, through links.
    fn find(&self, path: &str) -> Result<(String, ByteRange), ImageError> {
        let named = printable(path);
        let missing = || self.malformed(&format!("{named} is not in it"));
        let mut path = resolve_path("", path).ok_or_else(missing)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&path) {
                Some(Member::File(range)) if range.end() <= self.length => return Ok((path, *range)),
                Some(Member::File(_)) => return Err(self.malformed(&format!("it ends within {named}"))),
                Some(Member::Link(target)) => path = target.clone(),
                None => return Err(missing()),
            }
        }
        Err(self.malformed(&format!("{named} is a link to a link to a link")))
    }

    fn content(&self, path: &str, limit: usize) -> Result<Bytes, ImageError> {
        let (_, range) = self.find(path)?;
        if range.len() > limit as u64 {
            return Err(self.malformed(&format!("{} is larger than {limit} bytes", printable(path))));
        }
        let mut bytes = vec![0; range.len() as usize];
        self.file
            .read_exact_at(&mut bytes, range.start())
            .map_err(|source| self.io(source))?;
        Ok(bytes.into())
    }

    fn choose(&self, tag: Option<&str>) -> Result<Saved, ImageError> {
        if !self.members.contains_key("manifest.json") {
            return Err(self.malformed(if self.members.contains_key("index.json") {
                "it is an OCI archive; unpack it to a directory and use oci:DIR"
            } else {
                "it has no manifest.json, so `docker save` did not make it"
            }));
        }
        let bytes = self.content("manifest.json", MAX_MANIFEST)?;
        let images: Vec<Saved> =
            serde_json::from_slice(&bytes).map_err(|error| self.malformed(&printable(&error.to_string())))?;
        let names: Vec<&str> = images
            .iter()
            .flat_map(|image| image.repo_tags.iter().flatten())
            .map(String::as_str)
            .collect();
        let names = printable(&names.join(", "));
        let at = match tag {
            None if images.len() > 1 => Err(format!("there are several images in it, add :NAME for one of: {names}")),
            None => Ok(0),
            Some(tag) => {
                by_name(&images, tag).ok_or_else(|| format!("there is no image of this name in it, but: {names}"))
            }
        };
        let at = at.map_err(|reason| ImageError::Choose {
            image: self.image.clone(),
            reason,
        })?;
        images
            .into_iter()
            .nth(at)
            .ok_or_else(|| self.malformed("there is no image in it"))
    }

    /// The image, with a manifest made up as skopeo would: the archive has none.
    fn image(&self, saved: &Saved) -> Result<Image, ImageError> {
        let config = self.content(&saved.config, MAX_CONFIG)?;
        let config_digest = Digest::sha256(&config);
        let name = saved.config.rsplit('/').next().unwrap_or_default();
        let name = name.strip_suffix(".json").unwrap_or(name);
        if let Ok(named) = format!("sha256:{name}").parse::<Digest>()
            && named != config_digest
        {
            return Err(ImageError::WrongDigest {
                image: self.image.clone(),
                what: "config".to_owned(),
                digest: named,
            });
        }
        let paths = saved.layers.as_deref().unwrap_or_default();
        let diff_ids = parse_config(&config, paths.len())
            .map_err(|error| unusable(&self.image, "config", error))?
            .diff_ids;
        let (mut layers, mut origins) = (Vec::new(), Vec::new());
        for (path, diff_id) in paths.iter().zip(&diff_ids) {
            let (path, range) = self.find(path)?;
            let compression = compression(&self.start(range)?);
            let digest = match (digest_of_path(&path), compression) {
                (Some(digest), _) => digest,
                (None, None) => *diff_id,
                (None, Some(_)) => self.hash(range)?,
            };
            layers.push(json!({
                "mediaType": match compression {
                    None => "application/vnd.docker.image.rootfs.diff.tar",
                    Some("gzip") => "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    Some("zstd") => "application/vnd.docker.image.rootfs.diff.tar.zstd",
                    Some(other) => return Err(self.malformed(&format!("a layer is compressed with {other}"))),
                },
                "digest": digest.to_string(),
                "size": range.len(),
            }));
            origins.push(BlobOrigin::File {
                file: Arc::clone(&self.file),
                range,
            });
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "digest": config_digest.to_string(), "size": config.len()},
            "layers": layers,
        });
        let bytes = Bytes::from(manifest.to_string());
        match parse(&bytes).map_err(|error| unusable(&self.image, "manifest", error))? {
            Document::Manifest(manifest) => {
                assemble(&self.image, Digest::sha256(&bytes), bytes, manifest, config, origins)
            }
            Document::Index(_) => Err(self.malformed("it has no image")),
        }
    }

    /// The first bytes of a range: enough to tell a compression.
    fn start(&self, range: ByteRange) -> Result<Vec<u8>, ImageError> {
        let mut bytes = vec![0; range.len().min(6) as usize];
        self.file
            .read_exact_at(&mut bytes, range.start())
            .map_err(|source| self.io(source))?;
        Ok(bytes)
    }

    fn hash(&self, range: ByteRange) -> Result<Digest, ImageError> {
        let mut hasher = Digest::Sha256([0; 32]).hasher();
        let mut buffer = vec![0; 1 << 20];
        let mut at = range.start();
        while at < range.end() {
            let part = (range.end() - at).min(buffer.len() as u64) as usize;
            let part = buffer.get_mut(..part).unwrap_or_default();
            self.file.read_exact_at(part, at).map_err(|source| self.io(source))?;
            hasher.update(part);
            at += part.len() as u64;
        }
        Ok(hasher.finish())
    }

    fn malformed(&self, reason: &str) -> ImageError {
        ImageError::Malformed {
            image: self.image.clone(),
            what: "archive".to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// For what the reader of the tar says. Its words have bytes of the file in them, which may be any file that somebody
    /// named who may not read it.
    fn unreadable(&self, error: io::Error) -> ImageError {
        match error.raw_os_error() {
            Some(_) => self.io(error),
            None => self.malformed("it is not a tar, or a damaged one"),
        }
    }

    fn io(&self, source: io::Error) -> ImageError {
        ImageError::Io {
            image: self.image.clone(),
            what: "the archive".to_owned(),
            source,
        }
    }
}

/// By a name as it stands there; else by its full form; else by the tag alone if only one image has it.
fn by_name(images: &[Saved], wanted: &str) -> Option<usize> {
    let names = || {
        images
            .iter()
            .enumerate()
            .flat_map(|(at, image)| image.repo_tags.iter().flatten().map(move |name| (at, name)))
    };
    let full = |name: &str| name.parse::<RegistryReference>().ok();
    let exact = names().find(|(_, name)| *name == wanted);
    let same = || names().find(|(_, name)| full(name).is_some() && full(name) == full(wanted));
    if let Some((at, _)) = exact.or_else(same) {
        return Some(at);
    }
    let mut tagged = names().filter(|(_, name)| full(name).is_some_and(|name| name.tag() == Some(wanted)));
    let (at, _) = tagged.next()?;
    tagged.all(|(other, _)| other == at).then_some(at)
}

/// The digest in `blobs/ALGORITHM/HEX`. A name elsewhere, such as an old layer's ID, is no digest of what it holds.
fn digest_of_path(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// `path` as seen from the directory `base`, without `.` and `..`; `None` if it leads out of the archive.
fn resolve_path(base: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { base };
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn compression(start: &[u8]) -> Option<&'static str> {
    let magics: [(&[u8], &str); 4] = [
        (&[0x1f, 0x8b], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (b"BZh", "bzip2"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    ];
    magics
        .into_iter()
        .find(|(magic, _)| start.starts_with(magic))
        .map(|(_, name)| name)
}

/// A file that gives up after so many bytes: a long name may claim to be as long as the file.
struct Headers {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Headers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("its headers are too long"))?;
        self.at = self.at.saturating_add(read as u64);
        Ok(read)
    }
}

impl Seek for Headers {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(delta) => self.at.checked_add_signed(delta),
            SeekFrom::End(_) => None,
        };
        self.at = at
            .filter(|at| i64::try_from(*at).is_ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests;
