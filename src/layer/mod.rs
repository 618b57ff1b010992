//! One layer: an index that may still be growing, and any range of any of its files.
//!
//! > layer > index (growing while a scan runs, then complete) > entries
//! > layer > spans (decoded on demand, a few kept in memory) > bytes
//!
//! A layer answers *questions*. A question is a closure over what is known of the layer; it gives an answer as soon as
//! that is certain. If what is known does not suffice, the layer is scanned until it does, and no further: the scan
//! itself puts every open question after each piece, and stops when none is left. So a lookup costs the bytes up to
//! its answer, exactly, however the threads are scheduled.

mod hashing;
mod question;
mod read;
#[cfg(test)]
pub(crate) mod sample;
mod scan;
mod spans;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};

use crate::blob::{Blob, BlobError, BlobStats, Extents};
use crate::digest::Digest;
use crate::image::LayerDescriptor;
use crate::index::{Change, Entries, EntryId, GrowingIndex, IndexError, LayerIndex};
use crate::range::ByteRange;
use crate::stream::{Checkpoint, Compression, StreamError};

pub use question::Want;
pub use read::Content;
pub use spans::{DecodedSpan, SpanCache};

/// Why a layer cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its bytes could not be had. A later attempt may succeed.
    #[error("layer {layer} ({digest}): {cause}", digest = .digest.short())]
    Blob {
        /// The layer's number.
        layer: usize,
        /// The layer's digest.
        digest: Digest,
        /// What went wrong.
        #[source]
        cause: BlobError,
    },
    /// Its bytes are not what the manifest promises, or no layer at all. Nothing of them is served or kept.
    #[error("layer {layer} ({digest}) is corrupt or not supported: {reason}; nothing of it is kept, and mounting again fetches it anew", digest = .digest.short())]
    Corrupt {
        /// The layer's number.
        layer: usize,
        /// The layer's digest.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// Its index is damaged. It is being made anew.
    #[error("layer {layer} ({digest}): its index is damaged and is being rebuilt; try again", digest = .digest.short())]
    Index {
        /// The layer's number.
        layer: usize,
        /// The layer's digest.
        digest: Digest,
    },
    /// The layer has no such entry, or none that can be read as asked. A fault of the caller.
    #[error("layer {layer} has no file with number {entry}")]
    NoFile {
        /// The layer's number.
        layer: usize,
        /// The entry asked for.
        entry: u32,
    },
    /// A worker ended before it gave an answer: the mount is being taken down.
    #[error("layer {layer}: the work was given up, because the mount is ending")]
    Stopped {
        /// The layer's number.
        layer: usize,
    },
}

/// Inflaters at work at once, whatever the number of cores.
const MOST_INFLATERS: usize = 8;

/// Where the indexes of layers are kept.
#[derive(Debug, Clone)]
pub enum IndexDir {
    /// In this directory, and so is what is known of layers that were not read to their end.
    Kept(PathBuf),
    /// Complete ones may be in this directory. Nothing is written there.
    ReadOnly(PathBuf),
    /// Nowhere but in memory.
    Memory,
}

/// What all layers of a mount share.
#[derive(Debug)]
pub struct Workshop {
    /// Decoded spans kept in memory.
    pub spans: Arc<SpanCache>,
    /// As many inflaters at once as there are cores.
    cpu: Arc<Semaphore>,
    /// Answers are given only from layers that were verified as a whole.
    verify_first: bool,
    /// Compressed bytes that scans have read, in this process.
    scanned: Arc<AtomicU64>,
    /// Told what happens in any layer.
    listener: Mutex<Option<Listener>>,
}

/// Something that happened in a layer without anybody asking.
#[derive(Debug)]
pub enum LayerEvent<'a> {
    /// Entries of the layer with this number, which may have been handed out, were changed by later ones.
    Changed(usize, &'a [Change]),
    /// This was decoded ahead of a sequential reader.
    Ahead(DecodedSpan),
    /// The layer with this number is completely known.
    Complete(usize),
    /// The layer with this number turned out to be corrupt; what was handed out of it is worthless.
    Failed(usize),
}

/// Takes events. It is called from scans and must not wait.
pub struct Listener(pub Box<dyn Fn(LayerEvent<'_>) + Send>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl Workshop {
    /// `memory` bounds the decoded spans kept, in bytes. With `verify_first` nothing of a layer is answered before
    /// the digests of the whole layer were checked.
    pub fn new(memory: usize, verify_first: bool) -> Workshop {
        // An inflater may wait for a write, which needs one of the runtime's threads for what blocks; there are more of
        // those, so that not all of them can be waiting.
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_INFLATERS));
        Workshop {
            spans: Arc::new(SpanCache::new(memory)),
            cpu: Arc::new(Semaphore::new(cores)),
            verify_first,
            scanned: Arc::default(),
            listener: Mutex::default(),
        }
    }

    /// One for the layers of another image, which shares the memory and the cores.
    pub fn for_another_image(&self) -> Workshop {
        Workshop {
            spans: self.spans.clone(),
            cpu: self.cpu.clone(),
            verify_first: self.verify_first,
            scanned: self.scanned.clone(),
            listener: Mutex::default(),
        }
    }

    /// Compressed bytes that scans have read in this process, for whatever image; those of layers that are no more open
    /// count too.
    pub fn scanned(&self) -> u64 {
        self.scanned.load(Ordering::Relaxed)
    }

    /// Sends what happens in any layer to `listener` from now on.
    pub fn listen(&self, listener: Listener) {
        *self.listener.lock() = Some(listener);
    }

    fn tell(&self, event: LayerEvent<'_>) {
        if let Some(listener) = &*self.listener.lock() {
            listener.0(event);
        }
    }
}

/// A layer of the image.
pub struct Layer {
    number: usize,
    /// Tells its spans from those of all other layers.
    key: u64,
    descriptor: LayerDescriptor,
    blob: Arc<Blob>,
    /// Decoded pieces of spans that are too long to decode twice.
    decoded: Arc<Extents>,
    /// Where complete and partial indexes are kept; none if nothing can be kept.
    index_dir: Option<PathBuf>,
    workshop: Arc<Workshop>,
    state: RwLock<State>,
    desk: Mutex<question::Desk>,
    /// Told when a scan ends or lies down.
    rested: Notify,
    readahead: Mutex<read::Readahead>,
    long_spans: tokio::sync::Mutex<spans::Cursors>,
    /// What was last found wrong with bytes that were read after the layer had been indexed.
    damage: Mutex<Option<(String, SystemTime)>>,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {} ({})", self.number, self.descriptor.digest.short())
    }
}

/// What is known of a layer.
enum State {
    Growing(Box<Growing>),
    Complete(Arc<LayerIndex>),
    Failed(Arc<LayerError>),
}

/// A layer in the middle of its scan.
#[derive(Default)]
struct Growing {
    index: GrowingIndex,
    /// None until the first bytes have told.
    compression: Option<Compression>,
    /// Compressed bytes that the scan has taken in.
    compressed: u64,
    /// Where [`Growing::tail`] begins in the stream.
    tail_start: u64,
    /// The stream's bytes since the last checkpoint, as far as they are kept; it ends where the scan stands.
    tail: Vec<u8>,
}

impl Growing {
    /// How far the stream was decompressed and parsed.
    fn scanned(&self) -> u64 {
        self.tail_start + self.tail.len() as u64
    }
}

/// What is known of a layer at this moment, for a question to look at.
#[derive(Clone, Copy)]
pub enum View<'a> {
    /// The scan has come to some place; more may follow.
    #[doc(hidden)]
    Growing(GrowingView<'a>),
    /// All there is, verified.
    Complete(&'a LayerIndex),
}

/// The growing side of a [`View`].
#[derive(Clone, Copy)]
pub struct GrowingView<'a>(&'a Growing);

impl<'a> View<'a> {
    /// The entries known.
    pub fn entries(&self) -> &'a dyn Entries {
        match self {
            View::Growing(growing) => &growing.0.index,
            View::Complete(index) => *index,
        }
    }

    /// Whether nothing more can come: what is not there now does not exist.
    pub fn complete(&self) -> bool {
        matches!(self, View::Complete(_))
    }

    /// Compressed bytes taken in so far; all if complete.
    pub fn compressed(&self) -> u64 {
        match self {
            View::Growing(growing) => growing.0.compressed,
            View::Complete(index) => index.facts().compressed_size,
        }
    }
}

/// How far a layer is indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexState {
    /// No byte was looked at.
    None,
    /// A scan stopped or runs somewhere in the layer.
    Partial,
    /// All entries are known and verified.
    Complete,
    /// The layer is corrupt.
    Failed,
}

/// A layer's part of `peelfs status`.
#[derive(Debug, Clone)]
pub struct LayerStatus {
    /// Compressed bytes that were scanned.
    pub indexed_bytes: u64,
    /// How far it is indexed.
    pub index: IndexState,
    /// Entries known.
    pub entries: u32,
    /// Requests, bytes and hits.
    pub blob: BlobStats,
    /// Compressed bytes of it in the store.
    pub stored: u64,
    /// The last thing that went wrong, and when.
    pub last_error: Option<(String, SystemTime)>,
}

impl Layer {
    /// The layer with `number` (0 is the base), whose bytes come from `blob`. `decoded` keeps decoded pieces of long
    /// spans; `indexes` is where indexes are kept. A complete index that is there is used.
    pub fn open(
        number: usize,
        descriptor: LayerDescriptor,
        blob: Arc<Blob>,
        decoded: Arc<Extents>,
        indexes: IndexDir,
        workshop: Arc<Workshop>,
    ) -> Arc<Layer> {
        let found = match &indexes {
            IndexDir::Kept(dir) | IndexDir::ReadOnly(dir) => open_index(dir, &descriptor.digest),
            IndexDir::Memory => None,
        };
        // One that is only read is not looked into again: it may have been found to be damaged.
        let index_dir = match indexes {
            IndexDir::Kept(dir) => Some(dir),
            IndexDir::ReadOnly(_) | IndexDir::Memory => None,
        };
        let state = match found {
            // The same blob may be the layer of an image that says something else of it.
            Some(index) => match wrong_diff_id(&descriptor, &index.facts().diff_id) {
                Some(reason) => State::Failed(corrupt(number, &descriptor, reason)),
                None => State::Complete(Arc::new(index)),
            },
            None => State::Growing(Box::default()),
        };
        if let State::Failed(error) = &state {
            tracing::error!("{error}");
        }
        static KEYS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Layer {
            number,
            key: KEYS.fetch_add(1, Ordering::Relaxed),
            descriptor,
            blob,
            decoded,
            index_dir,
            workshop,
            state: RwLock::new(state),
            desk: Mutex::default(),
            rested: Notify::new(),
            readahead: Mutex::default(),
            long_spans: tokio::sync::Mutex::default(),
            damage: Mutex::default(),
        })
    }

    /// The layer's number; 0 is the base.
    pub fn number(&self) -> usize {
        self.number
    }

    /// What the manifest says of the layer.
    pub fn descriptor(&self) -> &LayerDescriptor {
        &self.descriptor
    }

    /// The complete index, if there is one yet.
    pub fn index(&self) -> Option<Arc<LayerIndex>> {
        match &*self.state.read() {
            State::Complete(index) => Some(index.clone()),
            _ => None,
        }
    }

    /// Shows `look` what is known right now, without waiting for more: nothing yet of a layer that is to be verified first.
    ///
    /// # Errors
    /// [`LayerError::Corrupt`] if the layer was found to be.
    pub fn glance<R>(&self, look: impl FnOnce(View<'_>) -> R) -> Result<R, Arc<LayerError>> {
        match &*self.state.read() {
            State::Growing(_) if self.workshop.verify_first => {
                Ok(look(View::Growing(GrowingView(&Growing::default()))))
            }
            State::Growing(growing) => Ok(look(View::Growing(GrowingView(growing)))),
            State::Complete(index) => Ok(look(View::Complete(index))),
            State::Failed(error) => Err(error.clone()),
        }
    }

    /// Waits until every entry of the layer is known and verified.
    ///
    /// # Errors
    /// [`LayerError::Blob`] if its bytes cannot be had, [`LayerError::Corrupt`] if they are not what they should be.
    pub async fn complete(self: &Arc<Self>) -> Result<Arc<LayerIndex>, Arc<LayerError>> {
        self.ask(
            Want::Whole,
            || "all of its entries".into(),
            |view| view.complete().then_some(()),
        )
        .await?;
        self.index()
            .ok_or_else(|| Arc::new(LayerError::Stopped { layer: self.number }))
    }

    /// Waits until nobody works on the layer any more: no scan runs, and what was fetched is in the store. A process
    /// that ends before loses what it has fetched.
    pub async fn rest(&self) {
        loop {
            let rested = self.rested.notified();
            if !self.is_running() {
                break;
            }
            rested.await;
        }
        self.blob.rest().await;
    }

    /// How far it is, and what it cost.
    pub fn status(&self) -> LayerStatus {
        let blob = self.blob.stats();
        let mut status = LayerStatus {
            indexed_bytes: 0,
            index: IndexState::None,
            entries: 0,
            stored: self.blob.stored(),
            last_error: None,
            blob,
        };
        let fetching = status.blob.last_error.as_ref();
        let fetching = fetching.map(|error| (error.message.clone(), error.at));
        status.last_error = [self.damage.lock().clone(), fetching]
            .into_iter()
            .flatten()
            .max_by_key(|(_, at)| *at);
        match &*self.state.read() {
            State::Growing(growing) => {
                status.indexed_bytes = growing.compressed;
                status.entries = growing.index.len();
                if growing.compressed > 0 {
                    status.index = IndexState::Partial;
                }
            }
            State::Complete(index) => {
                status.indexed_bytes = self.descriptor.size;
                status.entries = index.len();
                status.index = IndexState::Complete;
            }
            State::Failed(error) => {
                status.index = IndexState::Failed;
                status.last_error = Some((error.to_string(), SystemTime::now()));
            }
        }
        status
    }

    /// The files whose bytes lie in `stream`, a range of the decompressed stream.
    pub fn entries_at(&self, stream: ByteRange) -> Vec<EntryId> {
        self.glance(|view| view.entries().entries_at(stream))
            .unwrap_or_default()
    }

    /// The checkpoint at which span `number` begins. If it is damaged, the index is dropped.
    fn checkpoint(&self, number: usize) -> Result<Checkpoint, Arc<LayerError>> {
        let found = match &*self.state.read() {
            State::Growing(growing) => growing.index.checkpoint(number).ok_or(None),
            State::Complete(index) => index.checkpoint(number).ok_or_else(|| Some(index.clone())),
            State::Failed(error) => return Err(error.clone()),
        };
        found.map_err(|damaged| {
            if let Some(index) = damaged {
                self.drop_index(&index);
            }
            self.index_error()
        })
    }

    /// Forgets an index in which damage was found, so that the next question has it made anew.
    fn drop_index(&self, damaged: &Arc<LayerIndex>) {
        let mut state = self.state.write();
        // Another reader may have met the same damage, and a new index be there already.
        if matches!(&*state, State::Complete(index) if Arc::ptr_eq(index, damaged)) {
            tracing::warn!("layer {}: its index is damaged and will be rebuilt", self.number);
            *state = State::Growing(Box::default());
            drop(state);
            if let Some(dir) = &self.index_dir {
                let _ = std::fs::remove_file(index_path(dir, &self.descriptor.digest));
            }
        }
    }

    fn index_error(&self) -> Arc<LayerError> {
        Arc::new(LayerError::Index {
            layer: self.number,
            digest: self.descriptor.digest,
        })
    }

    fn blob_error(&self, cause: BlobError) -> Arc<LayerError> {
        Arc::new(LayerError::Blob {
            layer: self.number,
            digest: self.descriptor.digest,
            cause,
        })
    }

    fn corrupt(&self, reason: impl ToString) -> Arc<LayerError> {
        corrupt(self.number, &self.descriptor, reason)
    }

    /// The error for bytes that are not what they were when the layer was indexed. Told in the log and in `status`.
    fn damaged(&self, reason: impl ToString) -> Arc<LayerError> {
        let error = self.corrupt(reason);
        let text = error.to_string();
        let mut last = self.damage.lock();
        if last.as_ref().is_none_or(|(said, _)| *said != text) {
            tracing::error!("{text}");
        }
        *last = Some((text, SystemTime::now()));
        error
    }

    fn stopped(&self) -> Arc<LayerError> {
        Arc::new(LayerError::Stopped { layer: self.number })
    }
}

/// The complete index of the layer with `digest` in `dir`, if there is a sound one. A damaged one is removed: it is
/// rebuilt, never trusted.
fn open_index(dir: &Path, digest: &Digest) -> Option<LayerIndex> {
    let path = index_path(dir, digest);
    if !path.exists() {
        return None;
    }
    match LayerIndex::open(&path, digest) {
        Ok(index) => Some(index),
        Err(error) => {
            tracing::warn!("the index {} is damaged and will be rebuilt: {error}", path.display());
            let _ = std::fs::remove_file(&path);
            None
        }
    }
}

fn corrupt(layer: usize, descriptor: &LayerDescriptor, reason: impl ToString) -> Arc<LayerError> {
    Arc::new(LayerError::Corrupt {
        layer,
        digest: descriptor.digest,
        reason: reason.to_string(),
    })
}

/// What is wrong with a layer whose decompressed stream has the digest `found`; nothing if the image's config has none of
/// that algorithm to compare it with.
fn wrong_diff_id(descriptor: &LayerDescriptor, found: &Digest) -> Option<String> {
    let expected = descriptor
        .diff_id
        .filter(|expected| expected.algorithm() == found.algorithm())?;
    (expected != *found)
        .then(|| format!("its decompressed stream has the DiffID {found}, which is not the one in the image's config"))
}

fn index_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(format!("{}-{}.index", digest.algorithm(), digest.hex()))
}

fn partial_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(format!("{}-{}.partial", digest.algorithm(), digest.hex()))
}

/// Says what is wrong with a layer whose stream cannot be read as one.
fn unreadable(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl From<&StreamError> for UnreadableStream {
    fn from(error: &StreamError) -> Self {
        UnreadableStream(unreadable(error))
    }
}

impl From<&IndexError> for UnreadableStream {
    fn from(error: &IndexError) -> Self {
        UnreadableStream(unreadable(error))
    }
}

/// What a scan found wrong with a layer's bytes.
#[derive(Debug)]
struct UnreadableStream(String);
