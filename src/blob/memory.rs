//! The order in which extents kept in memory are dropped: where the disk cannot be used, the mount goes on with these.

use std::sync::{Mutex, Weak};

use lru::LruCache;

use super::extents::Extents;
use super::lock;

/// The most that can be kept in memory, for all blobs of a store together. What a reader has pinned may exceed it for as
/// long as he reads.
pub(super) const MOST: u64 = 32 * 1024 * 1024;

/// The least: what a scan asks for ahead has to find room.
const LEAST: u64 = 4 * 1024 * 1024;

/// One extent in memory: the number of its [`Extents`], its start and length.
pub(super) type Key = (u64, u64, u64);

/// Which extents are in memory, least recently used first. The bytes themselves are with their [`Extents`], so that a
/// look at what there is needs one lock only.
pub(super) struct Memory {
    limit: u64,
    kept: Mutex<Kept>,
}

struct Kept {
    bytes: u64,
    order: LruCache<Key, Weak<Extents>>,
}

impl Memory {
    /// For `limit` bytes, within what makes sense.
    pub(super) fn new(limit: u64) -> Memory {
        let kept = Kept {
            bytes: 0,
            order: LruCache::unbounded(),
        };
        Memory {
            limit: limit.clamp(LEAST, MOST),
            kept: Mutex::new(kept),
        }
    }

    /// Takes in an extent; the caller has to drop those that this pushes out (and may put them back, if pinned).
    pub(super) fn insert(&self, key: Key, owner: Weak<Extents>) -> Vec<(Key, Weak<Extents>)> {
        let mut kept = lock(&self.kept);
        if kept.order.put(key, owner).is_none() {
            kept.bytes += key.2;
        }
        let mut pushed_out = Vec::new();
        // The one just taken in stays, whatever its size: somebody waits for it.
        while kept.bytes > self.limit && kept.order.len() > 1 {
            let Some((key, owner)) = kept.order.pop_lru() else {
                break;
            };
            kept.bytes -= key.2;
            pushed_out.push((key, owner));
        }
        pushed_out
    }

    /// Puts back one that must stay for now.
    pub(super) fn put_back(&self, key: Key, owner: Weak<Extents>) {
        let mut kept = lock(&self.kept);
        if kept.order.put(key, owner).is_none() {
            kept.bytes += key.2;
        }
    }

    pub(super) fn touch(&self, key: &Key) {
        lock(&self.kept).order.promote(key);
    }

    pub(super) fn remove(&self, key: &Key) {
        let mut kept = lock(&self.kept);
        if kept.order.pop(key).is_some() {
            kept.bytes -= key.2;
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        lock(&self.kept).bytes
    }
}
