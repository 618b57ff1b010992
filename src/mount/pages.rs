//! Handing decoded bytes to the kernel's page cache before it asks for them.
//!
//! Whoever reads 4 KiB makes us decode a whole span. The rest of that span belongs to the same file and its
//! neighbours, which are likely to be read next, so it goes to the kernel with FUSE_NOTIFY_STORE: the memory is the
//! kernel's to reclaim, and most reads never reach us. The kernel takes it only for files that it knows, and whoever walks
//! a tree comes to know some in one directory, reads them, and goes on to the next: so a span is looked at again when
//! a file of it is read that was not there when it was decoded. Two rules: reply first, store after; and store only from a
//! thread that no reply waits for, because a store blocks on pages whose read is still unanswered. For the same reason
//! pages that are known to be waited for are left out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use fuser::{INodeNo, Notifier};
use parking_lot::{Mutex, RwLock};

use super::unanswered::Unanswered;
use crate::index::{Change, EntryId};
use crate::layer::DecodedSpan;
use crate::range::ByteRange;
use crate::tree::{Ino, Part, Tree};

/// Spans waiting to be stored. Each is some 1 MiB; more are dropped, as they are only a help.
const QUEUE: usize = 8;

/// Pages are stored whole.
const PAGE: u64 = 4096;

/// Bytes that are stored at once: few enough that a read is unlikely to begin meanwhile.
const PIECE: usize = 32 * PAGE as usize;

/// What a read was answered with: these bytes of this file.
type Answered = (Ino, ByteRange);

/// What the kernel is to be told, in order.
enum Job {
    /// What it does not have of a span, a part of which may just have been read.
    Store(DecodedSpan, Option<Answered>),
    /// The attributes of this directory of this layer have changed.
    Declared { layer: usize, entry: EntryId },
    /// Nothing that the kernel has of this layer may be used any more.
    Failed(usize),
    /// All that there is to know of the image is known.
    AllKnown,
}

/// Takes spans and tells the kernel.
#[derive(Clone)]
pub(super) struct Pages {
    tree: Arc<Tree>,
    known: Arc<Known>,
    unanswered: Arc<Unanswered>,
    queue: Sender<Job>,
    /// Spans in the queue.
    spans: Arc<AtomicUsize>,
    /// Whether one of them is not fresh. There is one at most.
    again: Arc<AtomicBool>,
    waiting: Arc<Mutex<Option<Receiver<Job>>>>,
}

/// The files that the kernel has inodes of. It takes a store only for those, and drops others without an error, so
/// this need not be exact.
#[derive(Debug, Default)]
pub(super) struct Known {
    all: Files,
    /// Those of them that it was given whole, or has read from their start. It may have let go of their pages since; then
    /// it reads them.
    stored: Files,
}

impl Known {
    pub(super) fn insert(&self, ino: Ino) {
        if self.all.insert(ino) {
            // It may have been given while it was forgotten.
            self.stored.remove(ino);
        }
    }

    pub(super) fn remove(&self, ino: Ino) {
        self.all.remove(ino);
        self.stored.remove(ino);
    }
}

/// A set of files of layers.
#[derive(Debug, Default)]
struct Files {
    /// A bit for each entry of each layer.
    layers: RwLock<Vec<Vec<u64>>>,
}

impl Files {
    /// Whether it is new.
    fn insert(&self, ino: Ino) -> bool {
        let Some((layer, entry)) = ino.as_own() else {
            return false;
        };
        let mut layers = self.layers.write();
        if layers.len() <= layer {
            layers.resize(layer + 1, Vec::new());
        }
        let words = &mut layers[layer];
        let word = entry.0 as usize / 64;
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        let bit = 1 << (entry.0 % 64);
        let is_new = words[word] & bit == 0;
        words[word] |= bit;
        is_new
    }

    fn remove(&self, ino: Ino) {
        let Some((layer, entry)) = ino.as_own() else { return };
        let mut layers = self.layers.write();
        let words = layers.get_mut(layer);
        if let Some(word) = words.and_then(|words| words.get_mut(entry.0 as usize / 64)) {
            *word &= !(1 << (entry.0 % 64));
        }
    }

    fn of_layer(&self, layer: usize) -> Vec<Ino> {
        let layers = self.layers.read();
        let words = layers.get(layer).map(Vec::as_slice).unwrap_or_default();
        let entries = (0..words.len() as u32 * 64)
            .map(EntryId)
            .filter(|entry| has(words, *entry));
        entries.map(|entry| Ino::own(layer, entry)).collect()
    }

    fn contains(&self, ino: Ino) -> bool {
        let Some((layer, entry)) = ino.as_own() else {
            return false;
        };
        let layers = self.layers.read();
        layers.get(layer).is_some_and(|words| has(words, entry))
    }
}

fn has(words: &[u64], entry: EntryId) -> bool {
    words
        .get(entry.0 as usize / 64)
        .is_some_and(|word| word & 1 << (entry.0 % 64) != 0)
}

impl Pages {
    pub(super) fn new(tree: Arc<Tree>, known: Arc<Known>, unanswered: Arc<Unanswered>) -> Pages {
        let (queue, jobs) = channel();
        Pages {
            tree,
            known,
            unanswered,
            queue,
            spans: Arc::default(),
            again: Arc::default(),
            waiting: Arc::new(Mutex::new(Some(jobs))),
        }
    }

    /// Starts the thread that tells the kernel. It ends with the last clone of this.
    pub(super) fn start(&self, notifier: Notifier) -> io::Result<()> {
        let Some(jobs) = self.waiting.lock().take() else {
            return Ok(());
        };
        let (tree, spans, again) = (Arc::downgrade(&self.tree), self.spans.clone(), self.again.clone());
        let (known, unanswered) = (self.known.clone(), self.unanswered.clone());
        std::thread::Builder::new().name("pages".into()).spawn(move || {
            for job in jobs {
                let Some(tree) = tree.upgrade() else { return };
                if let Job::Store(span, _) = &job {
                    spans.fetch_sub(1, Ordering::Relaxed);
                    if !span.fresh {
                        again.store(false, Ordering::Relaxed);
                    }
                }
                // The kernel refuses only what it no longer has a use for.
                let _ = tell(&notifier, &tree, (&known, &unanswered), job);
            }
        })?;
        Ok(())
    }

    /// Offers a span that was decoded ahead.
    pub(super) fn offer(&self, span: DecodedSpan) {
        self.store(span, None);
    }

    /// Offers the spans that a read of `bytes` of the file `ino` was answered from.
    pub(super) fn answered(&self, ino: Ino, bytes: ByteRange, spans: Vec<DecodedSpan>) {
        for span in spans {
            // A read that begins elsewhere is of a file that the kernel has begun to read before.
            let begins = || bytes.start() == 0 && !self.known.stored.contains(ino);
            if span.fresh || begins() && !self.again.swap(true, Ordering::Relaxed) {
                self.store(span, Some((ino, bytes)));
            }
        }
    }

    /// Queues a span; it is dropped if the kernel is behind with earlier ones.
    fn store(&self, span: DecodedSpan, answered: Option<Answered>) {
        if self.spans.fetch_add(1, Ordering::Relaxed) < QUEUE {
            return self.insist(Job::Store(span, answered));
        }
        self.spans.fetch_sub(1, Ordering::Relaxed);
        if !span.fresh {
            self.again.store(false, Ordering::Relaxed);
        }
    }

    /// Tells what changed in a layer that is being scanned.
    pub(super) fn changed(&self, layer: usize, changes: &[Change]) {
        for change in changes {
            // A name that has become another entry's is not told: to take it out of its directory the kernel waits for
            // whoever uses that, who may be waiting for us. Such a name is given for a moment only.
            if let Change::Declared(entry) = change {
                self.insist(Job::Declared { layer, entry: *entry });
            }
        }
    }

    /// Tells that a layer is corrupt.
    pub(super) fn failed(&self, layer: usize) {
        self.insist(Job::Failed(layer));
    }

    /// Tells that nothing more will change.
    pub(super) fn all_known(&self) {
        self.insist(Job::AllKnown);
    }

    /// Queues what must not be dropped. All but spans is small, and bounded by what a layer holds.
    fn insist(&self, job: Job) {
        // The thread ends before the queue does only when the mount is ending.
        let _ = self.queue.send(job);
    }
}

fn tell(notifier: &Notifier, tree: &Tree, (known, unanswered): (&Known, &Unanswered), job: Job) -> io::Result<()> {
    match job {
        Job::Store(span, answered) => {
            for part in missing_parts(tree, known, &span, answered) {
                let Some((mut offset, bytes)) = whole_pages(&part) else {
                    continue;
                };
                for piece in bytes.chunks(PIECE) {
                    let range = ByteRange::at(offset, piece.len() as u64);
                    let is_answer =
                        answered.is_some_and(|(ino, bytes)| ino == part.ino && bytes.intersection(&range) == range);
                    if !is_answer && !unanswered.wants(part.ino, range) {
                        notifier.store(INodeNo(part.ino.0), offset, piece)?;
                    }
                    offset += piece.len() as u64;
                }
                if part.is_whole() {
                    known.stored.insert(part.ino);
                }
            }
        }
        Job::Declared { layer, entry } => {
            for directory in tree.made_of(layer, entry) {
                let _ = notifier.inval_inode(INodeNo(directory.0), -1, 0);
            }
        }
        Job::Failed(layer) => {
            for ino in known.all.of_layer(layer) {
                let _ = notifier.inval_inode(INodeNo(ino.0), 0, 0);
            }
        }
        // The image's own directory of the layers' name, if it has one, is listed from now on.
        Job::AllKnown => notifier.inval_inode(INodeNo(Ino::LAYERS.0), 0, 0)?,
    }
    Ok(())
}

/// The parts of files in a span that the kernel may still want, the likeliest first: what comes behind the file that was
/// read. Of a span that was decoded before these are the files that it was not given then.
fn missing_parts(tree: &Tree, known: &Known, span: &DecodedSpan, answered: Option<Answered>) -> Vec<Part> {
    let mut parts = tree.files_in(span);
    let read = answered.and_then(|(ino, _)| parts.iter().position(|part| part.ino == ino));
    parts.rotate_left(read.map_or(0, |read| read + 1));
    let is_new = |part: &Part| span.fresh || part.is_whole() && !known.stored.contains(part.ino);
    parts.retain(|part| known.all.contains(part.ino) && is_new(part));
    parts
}

/// The pages that lie whole in a part of a file; its last page counts as whole at the file's end.
fn whole_pages(part: &Part) -> Option<(u64, &[u8])> {
    let end = part.offset + part.bytes.len() as u64;
    let first = part.offset.next_multiple_of(PAGE);
    let last = if end == part.file_size { end } else { end / PAGE * PAGE };
    if first >= last {
        return None;
    }
    let from = usize::try_from(first - part.offset).ok()?;
    let to = usize::try_from(last - part.offset).ok()?;
    Some((first, part.bytes.get(from..to)?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn part(offset: u64, len: usize, file_size: u64) -> Part {
        Part {
            ino: Ino::own(0, EntryId(1)),
            offset,
            bytes: Bytes::from(vec![0; len]),
            file_size,
        }
    }

    #[test]
    fn only_whole_pages_are_stored() {
        let pages = |part: Part| whole_pages(&part).map(|(offset, bytes)| (offset, bytes.len()));
        assert_eq!(pages(part(0, 10, 10)), Some((0, 10)));
        assert_eq!(pages(part(0, 10, 5000)), None);
        assert_eq!(pages(part(100, 9000, 20000)), Some((4096, 4096)));
        assert_eq!(pages(part(100, 9000, 9100)), Some((4096, 5004)));
        assert_eq!(pages(part(100, 3000, 20000)), None);
    }

    #[test]
    fn what_is_forgotten_is_not_known() {
        let known = Known::default();
        let ino = Ino::own(3, EntryId(1000));
        assert!(!known.all.contains(ino));
        known.insert(ino);
        known.stored.insert(ino);
        assert!(known.all.contains(ino) && known.stored.contains(ino));
        assert!(!known.all.contains(Ino::own(3, EntryId(1001))));
        assert_eq!(known.all.of_layer(3), [ino]);
        known.remove(ino);
        assert!(!known.all.contains(ino) && !known.stored.contains(ino));
        known.insert(Ino::ROOT);
    }
}
