//! The manifests and configs that this machine has seen, on disk: a remount asks for none of them again.
//!
//! `sha256/HEX` is a document with that digest, `tags/HEX` the digest that a reference last stood for on a platform.
//! Several processes share the directory: files appear by rename, and whatever is read is verified again, so that a
//! damaged file is the same as none.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;

use super::platform::Platform;
use crate::cache_dir;
use crate::digest::Digest;
use crate::regular_file;

/// No document is larger; see the limits of manifests and configs.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Tells apart the temporary files of one process.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// The verified manifests and configs by digest, and the last digest known for each tag and platform.
#[derive(Debug)]
pub struct Documents {
    dir: Option<PathBuf>,
    warned: AtomicBool,
}

impl Documents {
    /// The documents in `dir`, which is made if need be. Without a writable directory nothing is kept; a warning says so.
    pub fn open(dir: &Path) -> Documents {
        let documents = Documents {
            dir: Some(dir.to_owned()),
            warned: AtomicBool::new(false),
        };
        for part in ["sha256", "sha512", "tags"] {
            // With what is above it: this is the first that is made of a cache, which is nobody else's business.
            if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(dir.join(part)) {
                documents.warn(&error);
                break;
            }
            cache_dir::remove_stale(&dir.join(part));
        }
        documents
    }

    /// Documents that are kept nowhere.
    pub fn none() -> Documents {
        Documents {
            dir: None,
            warned: AtomicBool::new(false),
        }
    }

    /// The document with this digest, if it is there and undamaged.
    pub fn get(&self, digest: &Digest) -> Option<Bytes> {
        let bytes = read(&self.path(digest)?, MAX_DOCUMENT)?;
        if !digest.matches(&bytes) {
            tracing::debug!(
                "the kept document {} is damaged and will be fetched again",
                digest.short()
            );
            return None;
        }
        Some(Bytes::from(bytes))
    }

    /// Keeps a document that was verified.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) {
        if let Some(path) = self.path(digest) {
            self.write(&path, bytes);
        }
    }

    /// The digest that `reference` last stood for on `platform`, and when the registry said so.
    pub fn last_digest(&self, reference: &str, platform: &Platform) -> Option<(Digest, SystemTime)> {
        let path = self.tag_path(reference, platform)?;
        let tag = Tag::read(&path)?;
        // The name of the file is only a hash of these.
        (tag.reference == reference && tag.platform == platform.to_string()).then_some((tag.digest, tag.seen))
    }

    /// Remembers what `reference` stands for on `platform`. Called when all its documents are kept.
    pub fn remember(&self, reference: &str, platform: &Platform, digest: &Digest) {
        if let Some(path) = self.tag_path(reference, platform) {
            self.write(&path, format!("{digest}\n{reference}\n{platform}\n").as_bytes());
        }
    }

    /// The references that were seen, each with its platform, digest and when the registry said so; by name.
    pub fn tags(&self) -> Vec<Tag> {
        let mut tags: Vec<Tag> = self.files("tags").iter().filter_map(|path| Tag::read(path)).collect();
        tags.sort_unstable_by(|a, b| (&a.reference, &a.platform).cmp(&(&b.reference, &b.platform)));
        tags
    }

    /// Reads all documents and removes those that are damaged. Gives how many were read, and the files removed.
    pub fn verify(&self) -> (u64, Vec<PathBuf>) {
        let (mut count, mut removed) = (0, Vec::new());
        for algorithm in ["sha256", "sha512"] {
            for path in self.files(algorithm) {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let Ok(digest) = format!("{algorithm}:{name}").parse::<Digest>() else {
                    continue;
                };
                count += 1;
                if !read(&path, MAX_DOCUMENT).is_some_and(|bytes| digest.matches(&bytes)) {
                    let _ = fs::remove_file(&path);
                    removed.push(path);
                }
            }
        }
        (count, removed)
    }

    fn files(&self, part: &str) -> Vec<PathBuf> {
        let entries = self.dir.as_ref().and_then(|dir| fs::read_dir(dir.join(part)).ok());
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    fn path(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.dir.as_ref()?.join(digest.algorithm()).join(digest.hex()))
    }

    fn tag_path(&self, reference: &str, platform: &Platform) -> Option<PathBuf> {
        let name = Digest::sha256(format!("{reference}\n{platform}").as_bytes()).hex();
        Some(self.dir.as_ref()?.join("tags").join(name))
    }

    fn write(&self, path: &Path, bytes: &[u8]) {
        if let Err(error) = write_whole(path, bytes) {
            self.warn(&error);
        }
    }

    fn warn(&self, error: &io::Error) {
        if let Some(dir) = &self.dir
            // Of the whole cache, of which the store tells.
            && !cache_dir::is_read_only(dir, error)
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("manifests cannot be kept in {}: {error}", dir.display());
        }
    }
}

/// What a reference stood for when it was last looked up.
#[derive(Debug, Clone)]
pub struct Tag {
    /// The reference in full.
    pub reference: String,
    /// The platform that was looked for.
    pub platform: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// When the registry said so.
    pub seen: SystemTime,
}

impl Tag {
    fn read(path: &Path) -> Option<Tag> {
        let text = String::from_utf8(read(path, 4096)?).ok()?;
        let seen = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
        let mut lines = text.lines();
        let digest = lines.next()?.parse().ok()?;
        Some(Tag {
            reference: lines.next()?.to_owned(),
            platform: lines.next()?.to_owned(),
            digest,
            seen,
        })
    }
}

/// The content of a regular file of at most `limit` bytes.
fn read(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let file = regular_file::open_to_read(path).ok()?;
    let length = file.metadata().ok()?.len();
    if length > limit {
        return None;
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Writes a file that appears whole or not at all. No sync: after a crash of the machine a damaged one is recognised.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{count}.tmp", std::process::id()));
    let written = (|| {
        // Only of a process that died and had our number is there one already; it is nobody's any more.
        let _ = fs::remove_file(&temporary);
        // A config can hold what only whoever may pull the image is to know.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_by_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::sha256(b"document");
        let platform: Platform = "linux/amd64".parse().unwrap();
        let documents = Documents::open(dir.path());
        assert_eq!(documents.get(&digest), None);
        documents.put(&digest, b"document");
        documents.put(&digest, b"document");
        documents.remember("x:1", &platform, &digest);

        let other = Documents::open(dir.path());
        assert_eq!(other.get(&digest).unwrap(), "document");
        assert_eq!(other.last_digest("x:1", &platform).unwrap().0, digest);
        assert_eq!(other.last_digest("x:2", &platform), None);
        assert_eq!(other.last_digest("x:1", &"linux/arm64".parse().unwrap()), None);
        assert_eq!(
            fs::read_dir(dir.path().join("sha256")).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn what_is_made_is_for_its_owner_alone() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("above/cache");
        let digest = Digest::sha256(b"document");
        let documents = Documents::open(&cache.join("documents"));
        documents.put(&digest, b"document");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&cache), 0o700);
        assert_eq!(mode(&documents.path(&digest).unwrap()), 0o600);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        Documents::open(dir.path());
        let left = dir.path().join("sha256/0123.77-0.tmp");
        let file = fs::File::create(&left).unwrap();
        Documents::open(dir.path());
        assert!(left.exists(), "it may still be written");
        let old = SystemTime::now() - std::time::Duration::from_secs(2 * 60 * 60);
        file.set_modified(old).unwrap();
        Documents::open(dir.path());
        assert!(!left.exists());
    }

    #[test]
    fn a_damaged_document_is_none_and_can_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::sha256(b"document");
        let documents = Documents::open(dir.path());
        documents.put(&digest, b"docum");
        assert_eq!(documents.get(&digest), None);
        documents.put(&digest, b"document");
        assert_eq!(documents.get(&digest).unwrap(), "document");
    }

    #[test]
    fn without_a_directory_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        for documents in [Documents::open(&file.join("below")), Documents::none()] {
            let digest = Digest::sha256(b"document");
            documents.put(&digest, b"document");
            assert_eq!(documents.get(&digest), None);
        }
    }
}
