//! How the store stays within its limit: the least recently used extents go first.
//!
//! The time of last use is the file's time of modification, which reading brings up to date (at most once a minute).
//! Nothing else is written down: whoever evicts lists all extents, of all processes, and needs no index of them. That
//! costs a walk over the directories, and as it then makes room for a tenth of the limit, it is rarely done.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::cache_dir;
use crate::digest::Digest;
use crate::regular_file;

use super::ExtentKind;
use super::extent_file::ExtentName;
use super::store::{Disk, Inner, Kept};

/// What is known of the sizes of all extents together: as of the last look, and what this process changed since.
#[derive(Debug, Default)]
pub(super) struct Usage {
    total: AtomicU64,
    /// All that this process ever wrote.
    written: AtomicU64,
    /// What `written` was at the last look.
    written_at_scan: AtomicU64,
    known: AtomicBool,
}

impl Usage {
    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    pub(super) fn grown(&self, len: u64) {
        self.written.fetch_add(len, Ordering::Relaxed);
        self.total.fetch_add(len, Ordering::Relaxed);
    }

    pub(super) fn shrunk(&self, len: u64) {
        let less = |total: u64| Some(total.saturating_sub(len));
        let _ = self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// To be taken before a look, for [`Usage::scanned`].
    pub(super) fn mark(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Takes in the result of a look. What was written meanwhile is counted on top, as the look may have missed it.
    pub(super) fn scanned(&self, total: u64, mark: u64) {
        let meanwhile = self.mark().saturating_sub(mark);
        self.total.store(total.saturating_add(meanwhile), Ordering::Relaxed);
        self.written_at_scan.store(mark, Ordering::Relaxed);
        self.known.store(true, Ordering::Relaxed);
    }

    /// Whether other processes may have changed too much since the last look, given that they write as we do.
    fn is_outdated(&self, limit: u64) -> bool {
        let since = self.mark().saturating_sub(self.written_at_scan.load(Ordering::Relaxed));
        !self.known.load(Ordering::Relaxed) || since > limit / 16
    }
}

/// All extents under a directory.
#[derive(Default)]
pub(super) struct Scan {
    /// The sizes of all files together.
    pub(super) bytes: u64,
    dirs: Vec<(Digest, PathBuf)>,
    files: Vec<Found>,
}

impl Scan {
    /// Bytes of each kind that are kept of each digest.
    pub(super) fn kept(&self) -> BTreeMap<Digest, Kept> {
        let mut all: BTreeMap<Digest, Kept> = BTreeMap::new();
        for file in &self.files {
            let Some((digest, _)) = self.dirs.get(file.dir) else {
                continue;
            };
            let kept = all.entry(*digest).or_default();
            match file.name.kind {
                ExtentKind::Compressed => kept.compressed += file.name.len,
                ExtentKind::Decoded => kept.decoded += file.name.len,
            }
            kept.used = kept.used.max(Some(file.used));
        }
        all
    }

    /// The digest, the directory and the name of each extent.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Digest, &Path, ExtentName)> {
        self.files.iter().filter_map(|file| {
            let (digest, dir) = self.dirs.get(file.dir)?;
            Some((digest, dir.as_path(), file.name))
        })
    }
}

struct Found {
    used: SystemTime,
    /// Which of `dirs` it is in.
    dir: usize,
    name: ExtentName,
    bytes: u64,
}

/// Makes room for `len` bytes; false if there is none because everything is in use.
pub(super) fn make_room(store: &Inner, disk: &Disk, len: u64) -> bool {
    if len > disk.limit {
        return false;
    }
    let fits = || disk.usage.total().saturating_add(len) <= disk.limit;
    if fits() && !disk.usage.is_outdated(disk.limit) {
        return true;
    }
    // Every open of the file is a lock of its own, so this also keeps two threads of this process apart.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let lock = regular_file::open(&disk.lock, &mut options)
        .map_err(Errno::try_from)
        .map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock));
    match lock {
        // Somebody else is making room this very moment; he is quicker than we would be.
        Ok(Err((_, Errno::EWOULDBLOCK))) => true,
        // Without a lock (there are file systems without) two may evict at once, and then too much.
        _unlocked_or_held => {
            evict(store, disk, len);
            fits()
        }
    }
}

/// Makes the store no larger than `most` bytes, and tells how many bytes that freed. Blocks the thread.
pub(super) fn prune(store: &Inner, disk: &Disk, most: u64) -> u64 {
    let mark = disk.usage.mark();
    let scan = scan(&disk.extents);
    let before = scan.bytes;
    let total = remove_oldest(store, scan, most);
    disk.usage.scanned(total, mark);
    before - total
}

fn evict(store: &Inner, disk: &Disk, len: u64) {
    let mark = disk.usage.mark();
    let scan = scan(&disk.extents);
    let mut total = scan.bytes;
    if total.saturating_add(len) > disk.limit {
        total = remove_oldest(store, scan, (disk.limit / 10 * 9).saturating_sub(len));
    }
    disk.usage.scanned(total, mark);
}

/// Removes the least recently used of what was found, until `enough` bytes are left or all is in use; gives how many are.
fn remove_oldest(store: &Inner, mut scan: Scan, enough: u64) -> u64 {
    let mut total = scan.bytes;
    scan.files.sort_unstable_by_key(|file| (file.used, file.dir, file.name));
    let mut emptied = BTreeSet::new();
    for file in &scan.files {
        if total <= enough {
            break;
        }
        let Some((digest, dir)) = scan.dirs.get(file.dir) else {
            continue;
        };
        let extents = store.known(file.name.kind, digest);
        if extents.as_ref().is_some_and(|extents| extents.is_pinned(&file.name)) {
            continue;
        }
        if fs::remove_file(dir.join(file.name.to_string())).is_ok() {
            total -= file.bytes;
            emptied.insert(file.dir);
        }
        if let Some(extents) = extents {
            extents.lost(&file.name);
        }
    }
    for (_, dir) in emptied.iter().filter_map(|dir| scan.dirs.get(*dir)) {
        // Fails unless it is empty, as it should.
        let _ = fs::remove_dir(dir);
    }
    tracing::debug!("evicted {} bytes from the store", scan.bytes - total);
    total
}

/// Lists all extents under `root`, and removes temporary files that were left behind.
pub(super) fn scan(root: &Path) -> Scan {
    let mut scan = Scan::default();
    let now = SystemTime::now();
    for algorithm in entries(root) {
        for prefix in entries(&algorithm) {
            for dir in entries(&prefix) {
                let digest = digest_of(&algorithm, &dir);
                let Some(digest) = digest else { continue };
                scan_dir(&mut scan, digest, dir, now);
            }
        }
    }
    scan
}

fn scan_dir(scan: &mut Scan, digest: Digest, dir: PathBuf, now: SystemTime) {
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let Ok(used) = metadata.modified() else { continue };
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(name) = ExtentName::parse(name) {
            scan.bytes = scan.bytes.saturating_add(metadata.len());
            scan.files.push(Found {
                used,
                dir: scan.dirs.len(),
                name,
                bytes: metadata.len(),
            });
        } else if name.ends_with(".tmp") && cache_dir::is_stale(used, now) {
            let _ = fs::remove_file(entry.path());
        }
    }
    scan.dirs.push((digest, dir));
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

fn digest_of(algorithm: &Path, dir: &Path) -> Option<Digest> {
    let (algorithm, hex) = (algorithm.file_name()?.to_str()?, dir.file_name()?.to_str()?);
    format!("{algorithm}:{hex}").parse().ok()
}
