//! The store: a directory of extents, shared by processes and bounded.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crate::cache_dir;
use crate::digest::Digest;

use super::eviction::{self, Usage};
use super::extent_file;
use super::extents::{ExtentKind, Extents, WeakExtents};
use super::lock;
use super::memory::{self, Memory};
use super::slots::Slots;
use super::stats::{BlobStats, Counts};

/// Where extents are kept: `DIR/extents/<algorithm>/<2 hex digits>/<hex>/<c|d>-<start>-<length>`.
///
/// The limit is for the extents alone; what else lies beside them (indexes, documents) is small and its owner's
/// business. It may be exceeded for a moment, by what is written while room is being made. Cloning is cheap and gives
/// the same store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

/// What a store has of one digest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Bytes of the blob.
    pub compressed: u64,
    /// Bytes decoded from it.
    pub decoded: u64,
    /// When one of them was last used, to the minute.
    pub used: Option<SystemTime>,
}

impl Store {
    /// The store in `dir`, which is created if need be, of at most `limit` bytes. With a limit of 0, or if the
    /// directory cannot be used (of which one warning tells), a little is kept in memory instead, 32 MiB; so it is beside
    /// a directory that can only be read, and for a while when all of `limit` is in use by readers.
    pub fn open(dir: &Path, limit: u64) -> Store {
        Store::open_with_memory(dir, limit, memory::MOST)
    }

    /// The same, with at most `memory` bytes in memory, or 4 MiB if that is less.
    pub fn open_with_memory(dir: &Path, limit: u64, memory: u64) -> Store {
        let disk = if limit == 0 {
            None
        } else {
            match Disk::open(dir, limit) {
                Ok(disk) => Some(disk),
                Err(error) => {
                    tracing::warn!(
                        "cannot keep anything in {}, so what is read again may be fetched again: {error}",
                        dir.display()
                    );
                    None
                }
            }
        };
        let on_disk = disk.as_ref().is_some_and(|disk| disk.writable);
        let store = Store(Arc::new(Inner {
            disk,
            memory: Memory::new(memory),
            known: Mutex::default(),
            slots: Arc::new(Slots::new()),
            counts: Arc::default(),
            nonce: random(),
            temporaries: AtomicU64::new(0),
            warned: AtomicBool::new(false),
        }));
        // The first size: it takes a moment where there is much. Without a runtime the first write does it.
        if on_disk && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let inner = Arc::clone(&store.0);
            runtime.spawn_blocking(move || inner.make_room(0));
        }
        store
    }

    /// The extents of `digest`; the same object for as long as somebody holds it.
    pub fn extents(&self, kind: ExtentKind, digest: &Digest) -> Arc<Extents> {
        let mut known = lock(&self.0.known);
        if let Some(extents) = known.get(&(kind, *digest)).and_then(WeakExtents::upgrade) {
            return extents;
        }
        known.retain(|_, extents| extents.strong_count() > 0);
        let extents = Extents::new(kind, *digest, Arc::clone(&self.0));
        known.insert((kind, *digest), Arc::downgrade(&extents));
        extents
    }

    /// What is kept on disk, by digest. Blocks the thread, as do those that follow.
    pub fn kept(&self) -> BTreeMap<Digest, Kept> {
        self.0
            .disk()
            .map_or_else(BTreeMap::new, |disk| eviction::scan(&disk.extents).kept())
    }

    /// Removes the least recently used, until at most `most` bytes are left; gives how many bytes that freed.
    pub fn prune(&self, most: u64) -> u64 {
        self.0.disk().map_or(0, |disk| eviction::prune(&self.0, disk, most))
    }

    /// Reads all extents and removes those that are damaged. Gives how many were read, and the damaged files.
    pub fn verify(&self) -> (u64, Vec<PathBuf>) {
        let Some(disk) = self.0.disk() else {
            return (0, Vec::new());
        };
        let (mut read, mut removed) = (0, Vec::new());
        for (digest, dir, name) in eviction::scan(&disk.extents).files() {
            let path = dir.join(name.to_string());
            match extent_file::is_sound(&path, name, digest) {
                // Another process may have evicted it meanwhile.
                None => continue,
                Some(true) => read += 1,
                Some(false) => {
                    read += 1;
                    let _ = fs::remove_file(&path);
                    removed.push(path);
                }
            }
        }
        (read, removed)
    }

    /// Bytes of all extents on disk, of all processes, as far as is known without looking.
    pub fn usage(&self) -> u64 {
        self.0.disk().map_or(0, |disk| disk.usage.total())
    }

    /// The most bytes that are kept on disk; 0 if none are.
    pub fn limit(&self) -> u64 {
        self.0.disk().map_or(0, |disk| disk.limit)
    }

    /// What all blobs that keep their bytes here have cost since it was opened by this process, those that are no more
    /// among them. Of hosts' refusals and errors it tells nothing.
    pub fn stats(&self) -> BlobStats {
        self.0.counts.snapshot()
    }

    pub(super) fn counts(&self) -> &Arc<Counts> {
        &self.0.counts
    }

    pub(super) fn slots(&self) -> &Arc<Slots> {
        &self.0.slots
    }

    #[cfg(test)]
    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.0.disk().map(|disk| &disk.extents);
        f.debug_struct("Store").field("dir", &dir).finish_non_exhaustive()
    }
}

/// What the store and all that belongs to it share.
pub(super) struct Inner {
    disk: Option<Disk>,
    memory: Memory,
    known: Mutex<HashMap<(ExtentKind, Digest), WeakExtents>>,
    slots: Arc<Slots>,
    counts: Arc<Counts>,
    nonce: u64,
    temporaries: AtomicU64,
    warned: AtomicBool,
}

/// The disk side of a store.
pub(super) struct Disk {
    pub(super) extents: PathBuf,
    pub(super) lock: PathBuf,
    pub(super) limit: u64,
    pub(super) usage: Usage,
    /// Or else what there is is read, and nothing added or removed.
    pub(super) writable: bool,
}

impl Disk {
    fn open(dir: &Path, limit: u64) -> io::Result<Disk> {
        let mut disk = Disk {
            extents: dir.join("extents"),
            lock: dir.join("lock"),
            limit,
            usage: Usage::default(),
            writable: true,
        };
        match try_to_write(&disk.extents) {
            Ok(()) => {}
            Err(error) if cache_dir::is_read_only(&disk.extents, &error) => {
                tracing::warn!(
                    "nothing can be added to {}, so what is not there and is read again may be fetched again: {error}",
                    dir.display()
                );
                disk.writable = false;
            }
            Err(error) => return Err(error),
        }
        Ok(disk)
    }

    /// The directory of the extents of `digest`.
    pub(super) fn dir_of(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.extents.join(digest.algorithm()).join(&hex[..2]).join(hex)
    }
}

/// Creates `dir`, and a file in it for a moment.
fn try_to_write(dir: &Path) -> io::Result<()> {
    create_private_dir(dir)?;
    let probe = dir.join(format!(".{:016x}.tmp", random()));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&probe)?;
    fs::remove_file(&probe)
}

impl Inner {
    /// Whether anything can be kept on disk.
    pub(super) fn is_writable(&self) -> bool {
        self.disk().is_some_and(|disk| disk.writable)
    }

    pub(super) fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The extents of `digest`, if somebody holds them.
    pub(super) fn known(&self, kind: ExtentKind, digest: &Digest) -> Option<Arc<Extents>> {
        lock(&self.known).get(&(kind, *digest)).and_then(WeakExtents::upgrade)
    }

    /// Makes room for `len` more bytes on disk, if need be by evicting; false if there is none. Blocks the thread.
    pub(super) fn make_room(&self, len: u64) -> bool {
        self.disk
            .as_ref()
            .is_some_and(|disk| eviction::make_room(self, disk, len))
    }

    pub(super) fn grown(&self, len: u64) {
        if let Some(disk) = &self.disk {
            disk.usage.grown(len);
        }
    }

    pub(super) fn shrunk(&self, len: u64) {
        if let Some(disk) = &self.disk {
            disk.usage.shrunk(len);
        }
    }

    /// A name that no other file has: process numbers repeat where containers share the directory.
    pub(super) fn temporary_name(&self) -> String {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        format!(".{:016x}-{number:x}.tmp", self.nonce)
    }

    /// Tells once that writing fails; a full disk would otherwise be told for each extent.
    pub(super) fn warn_of_write(&self, dir: &Path, error: &io::Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "cannot write to {}, so what is read again may be fetched again: {error}",
                dir.display()
            );
        }
    }
}

/// Creates a directory, and those above it, that only its owner may enter.
pub(super) fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// A number that differs each time, good enough for names and jitter.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
