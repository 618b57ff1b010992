//! All extents that the store keeps of one digest.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use crate::buffers::join;
use crate::digest::Digest;
use crate::range::ByteRange;

use super::directory::Written;
use super::extent_file::{ExtentHeader, ExtentName, MAX_LEN};
use super::lock;
use super::memory::Key;
use super::store::Inner;

/// Which bytes extents hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExtentKind {
    /// Bytes of the blob as it is in the registry.
    Compressed,
    /// Bytes of the stream that the blob decompresses to.
    Decoded,
}

impl ExtentKind {
    pub(super) const ALL: [ExtentKind; 2] = [ExtentKind::Compressed, ExtentKind::Decoded];

    pub(super) fn letter(self) -> char {
        match self {
            ExtentKind::Compressed => 'c',
            ExtentKind::Decoded => 'd',
        }
    }
}

/// The extents of one digest and kind. They may overlap: another process may have cut its own.
pub struct Extents {
    pub(super) id: u64,
    pub(super) kind: ExtentKind,
    pub(super) digest: Digest,
    pub(super) store: Arc<Inner>,
    /// Where their files are; `None` if nothing is kept on disk.
    pub(super) dir: Option<PathBuf>,
    pub(super) state: Mutex<State>,
    /// Held by blocking threads from a file's renaming until it is noted in `state`, so that [`Extents::forget`] can
    /// tell the files of before from those of after. Nothing that a future polls ever takes it.
    pub(super) commit: Mutex<()>,
}

#[derive(Default)]
pub(super) struct State {
    /// By start and length.
    pub(super) map: BTreeMap<(u64, u64), Place>,
    pub(super) listed: Listed,
    /// How often everything was forgotten.
    pub(super) epoch: u64,
    /// Forgettings whose files are not yet removed.
    pub(super) forgetting: u32,
    /// Files that cannot be read, or are no good and cannot be removed.
    pub(super) unusable: HashSet<(u64, u64)>,
    pins: Vec<(u64, ByteRange)>,
    last_pin: u64,
}

pub(super) enum Place {
    Disk,
    Memory(Bytes),
}

/// What is known of the directory.
#[derive(Default, Clone, Copy, PartialEq)]
pub(super) enum Listed {
    #[default]
    Never,
    /// It was listed, but was changed so shortly before that its time may not tell of the next change.
    Uncertain,
    /// It was listed when it had this time; without one it did not exist.
    At(Option<SystemTime>),
}

/// The most bytes that one task reads from disk.
const MAX_READ: u64 = 4 * MAX_LEN;

/// What there is of a range, from its start on.
pub(super) enum Look {
    /// On disk up to this offset.
    Disk(u64),
    /// In memory.
    Memory(Bytes),
    /// Nothing up to this offset.
    Missing(u64),
}

impl Extents {
    pub(super) fn new(kind: ExtentKind, digest: Digest, store: Arc<Inner>) -> Arc<Extents> {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let dir = store.disk().map(|disk| disk.dir_of(&digest));
        Arc::new(Extents {
            id: LAST_ID.fetch_add(1, Ordering::Relaxed),
            kind,
            digest,
            store,
            dir,
            state: Mutex::default(),
            commit: Mutex::new(()),
        })
    }

    /// All bytes of `range`, if all are kept; otherwise it is a miss. Nothing damaged is ever returned.
    pub async fn read(self: &Arc<Self>, range: ByteRange) -> Option<Bytes> {
        let _pin = self.pin(range);
        self.ensure_listed().await;
        let (mut at, mut refreshed, mut parts) = (range.start(), false, Vec::new());
        while at < range.end() {
            match self.look(ByteRange::new(at, range.end())) {
                Look::Memory(bytes) => {
                    at += bytes.len() as u64;
                    parts.push(bytes);
                }
                Look::Disk(_) => {
                    let some = self.read_some(ByteRange::new(at, range.end())).await;
                    at += some.iter().map(|part| part.len() as u64).sum::<u64>();
                    parts.extend(some);
                }
                Look::Missing(_) if refreshed => return None,
                Look::Missing(_) => {
                    self.refresh().await;
                    refreshed = true;
                }
            }
        }
        Some(join(parts))
    }

    /// Keeps `bytes` as those from `start` on: on disk, or in memory if that is not possible. Others see them when
    /// this returns.
    pub async fn write(self: &Arc<Self>, start: u64, mut bytes: Bytes) {
        let (epoch, mut start) = (self.epoch(), start);
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(MAX_LEN as usize));
            let len = part.len() as u64;
            self.write_parts(epoch, start, vec![part]).await;
            let Some(next) = start.checked_add(len) else { return };
            start = next;
        }
    }

    /// Keeps what there is of `range`, now or later, from being evicted by this process until the [`Pin`] is dropped.
    pub fn pin(self: &Arc<Self>, range: ByteRange) -> Pin {
        let mut state = lock(&self.state);
        state.last_pin += 1;
        let number = state.last_pin;
        state.pins.push((number, range));
        drop(state);
        Pin {
            extents: Arc::clone(self),
            number,
        }
    }

    /// Drops all that is kept, also what is just being written. The files are removed in the background.
    pub fn forget(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        let dropped = std::mem::take(&mut state.map);
        state.listed = Listed::Never;
        state.epoch += 1;
        state.forgetting += 1;
        drop(state);
        for (key, place) in dropped {
            if let Place::Memory(_) = place {
                self.store.memory().remove(&self.memory_key(key));
            }
        }
        let this = Arc::clone(self);
        if tokio::runtime::Handle::try_current().is_ok() {
            spawn_blocking(move || this.remove_forgotten());
        } else {
            this.remove_forgotten();
        }
    }

    /// Bytes known to be on disk.
    pub fn stored(&self) -> u64 {
        let state = lock(&self.state);
        let (mut total, mut counted_to) = (0, 0);
        for ((start, len), place) in &state.map {
            if let Place::Disk = place {
                let end = start + len;
                total += end.saturating_sub(counted_to.max(*start));
                counted_to = counted_to.max(end);
            }
        }
        total
    }

    /// Changes whenever everything is forgotten.
    pub(super) fn epoch(&self) -> u64 {
        lock(&self.state).epoch
    }

    /// Whether there is a disk behind it to write to; if not, only little is kept.
    pub(super) fn on_disk(&self) -> bool {
        self.store.is_writable()
    }

    /// What is kept of `range` from its start on, as far as is known without asking the disk.
    pub(super) fn look(&self, range: ByteRange) -> Look {
        let (at, end) = (range.start(), range.end());
        let state = lock(&self.state);
        let reaching = state
            .map
            .range((at.saturating_sub(MAX_LEN), 0)..=(at, u64::MAX))
            .filter(|((start, len), _)| start + len > at)
            .max_by_key(|((start, len), _)| start + len);
        let Some((&(start, len), place)) = reaching else {
            let next = state.map.range((at, u64::MAX)..).next();
            return Look::Missing(next.map_or(end, |((start, _), _)| end.min(*start)));
        };
        let end = end.min(start + len);
        match place {
            Place::Disk => Look::Disk(end),
            Place::Memory(bytes) => {
                let bytes = bytes.slice((at - start) as usize..(end - start) as usize);
                drop(state);
                self.store.memory().touch(&self.memory_key((start, len)));
                Look::Memory(bytes)
            }
        }
    }

    /// What is on disk of `range` from its start on: all, some or nothing. An extent that turns out to be missing or
    /// damaged is no longer known afterwards, so that whoever looks again gets ahead.
    pub(super) async fn read_some(self: &Arc<Self>, range: ByteRange) -> Vec<Bytes> {
        let this = Arc::clone(self);
        let read = spawn_blocking(move || {
            let range = ByteRange::new(range.start(), range.end().min(range.start().saturating_add(MAX_READ)));
            let (mut at, mut parts) = (range.start(), Vec::new());
            while at < range.end() {
                let Some(name) = this.on_disk_at(at) else { break };
                let wanted = ByteRange::new(at, range.end()).intersection(&name.range());
                let Some(bytes) = this.read_file(name, wanted) else {
                    continue;
                };
                at = wanted.end();
                parts.push(bytes);
            }
            parts
        });
        read.await.unwrap_or_default()
    }

    /// Learns what other processes have added since the last time.
    pub(super) async fn refresh(self: &Arc<Self>) {
        if self.dir.is_some() {
            let this = Arc::clone(self);
            let _ = spawn_blocking(move || this.list()).await;
        }
    }

    /// Lists the directory if that was never done.
    pub(super) async fn ensure_listed(self: &Arc<Self>) {
        if !self.is_listed() {
            self.refresh().await;
        }
    }

    /// Whether [`Extents::ensure_listed`] has nothing to do.
    pub(super) fn is_listed(&self) -> bool {
        self.dir.is_none() || lock(&self.state).listed != Listed::Never
    }

    /// As [`Extents::write`], for at most [`MAX_LEN`] bytes, and only if nothing was forgotten since `epoch`.
    pub(super) async fn write_parts(self: &Arc<Self>, epoch: u64, start: u64, parts: Vec<Bytes>) {
        let Some(header) = ExtentHeader::describe(self.kind, self.digest, start, &parts) else {
            return;
        };
        let parts = Arc::new(parts);
        if let Some(dir) = self.dir.as_ref().filter(|_| self.store.is_writable()) {
            let (this, parts, into) = (Arc::clone(self), Arc::clone(&parts), dir.clone());
            let written = spawn_blocking(move || this.write_file(&into, epoch, &header, &parts));
            match written.await {
                Ok(Written::Done) => return,
                Ok(Written::NoRoom) | Err(_) => {}
                Ok(Written::Failed(error)) => self.store.warn_of_write(dir, &error),
            }
        }
        self.keep_in_memory(epoch, start, join(parts.to_vec()));
    }

    /// Whether somebody reads what the file holds.
    pub(super) fn is_pinned(&self, name: &ExtentName) -> bool {
        let state = lock(&self.state);
        state.pins.iter().any(|(_, pinned)| pinned.overlaps(&name.range()))
    }

    /// Takes note that a file is gone.
    pub(super) fn lost(&self, name: &ExtentName) {
        let mut state = lock(&self.state);
        if let Some(Place::Disk) = state.map.get(&(name.start, name.len)) {
            state.map.remove(&(name.start, name.len));
        }
    }

    pub(super) fn memory_key(&self, (start, len): (u64, u64)) -> Key {
        (self.id, start, len)
    }

    fn keep_in_memory(self: &Arc<Self>, epoch: u64, start: u64, bytes: Bytes) {
        let key = (start, bytes.len() as u64);
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            return;
        }
        state.map.entry(key).or_insert(Place::Memory(bytes));
        drop(state);
        let memory = self.store.memory();
        for (key, owner) in memory.insert(self.memory_key(key), Arc::downgrade(self)) {
            if let Some(extents) = owner.upgrade()
                && !extents.drop_from_memory((key.1, key.2))
            {
                memory.put_back(key, owner);
            }
        }
    }

    /// Drops an extent from memory; false if it has to stay because somebody reads it.
    fn drop_from_memory(&self, key: (u64, u64)) -> bool {
        let mut state = lock(&self.state);
        let range = ByteRange::at(key.0, key.1);
        if state.pins.iter().any(|(_, pinned)| pinned.overlaps(&range)) {
            return false;
        }
        if let Some(Place::Memory(_)) = state.map.get(&key) {
            state.map.remove(&key);
        }
        true
    }
}

impl Drop for Extents {
    fn drop(&mut self) {
        for (key, place) in std::mem::take(&mut lock(&self.state).map) {
            if let Place::Memory(_) = place {
                self.store.memory().remove(&self.memory_key(key));
            }
        }
    }
}

impl fmt::Debug for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extents({:?} {})", self.kind, self.digest)
    }
}

/// Keeps extents from being evicted for as long as it lives.
#[derive(Debug)]
pub struct Pin {
    extents: Arc<Extents>,
    number: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = lock(&self.extents.state);
        state.pins.retain(|(number, _)| *number != self.number);
    }
}

/// Whom to tell when an extent is gone.
pub(super) type WeakExtents = Weak<Extents>;
