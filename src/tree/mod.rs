//! The mount's namespace: the merged view at its root, every layer by itself below `layers/N/`.
//!
//! > tree > merged directories > contributions of layers > entries
//! > tree > `layers` > one directory a layer > entries
//!
//! This is a plain async library that knows nothing of the kernel. Every method answers only what is proven, waiting
//! for layers to be scanned as far as that takes; what the rest of a layer can still change is marked as not
//! [`settled`](Attr::settled).
#![doc = include_str!("semantics.md")]

mod attr;
mod contribution;
mod extraction;
mod ino;
mod link;
mod listing;
mod lookup;
#[cfg(test)]
mod model;
mod open;
mod seek;
#[cfg(test)]
mod tests;
mod xattr;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::image::Image;
use crate::index::EntryId;
use crate::layer::{Content, DecodedSpan, Layer, LayerError};

pub use attr::Attr;
pub use ino::Ino;
pub use listing::{Listed, Listing};
pub use open::{Costs, Opened, Premises, Settings, open, resolve_with};
pub use seek::Seek;

use contribution::Dir;
use extraction::Extraction;
use ino::Node;

/// Why the tree cannot answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TreeError {
    /// A layer that the answer depends on cannot tell.
    #[error(transparent)]
    Layer(#[from] Arc<LayerError>),
    /// The inode is not, or no longer, known.
    #[error("no such inode: {0}")]
    Stale(Ino),
    /// Only directories have children.
    #[error("inode {0} is not a directory")]
    NotADirectory(Ino),
    /// Only files have contents.
    #[error("inode {0} is not a regular file")]
    NotAFile(Ino),
    /// Only symlinks have targets.
    #[error("inode {0} is not a symlink")]
    NotASymlink(Ino),
    /// A layer whose entries lie below symlinks of lower ones is larger than is supported.
    #[error("layer {layer}: too many names in layers whose entries lie below symlinks of lower layers")]
    TooManyNames {
        /// The layer's number.
        layer: usize,
    },
}

/// Some bytes of a file.
#[derive(Debug, Clone)]
pub struct Part {
    /// The file.
    pub ino: Ino,
    /// Where in the file they begin.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
    /// The length of the whole file.
    pub file_size: u64,
}

impl Part {
    /// Whether it is all of its file.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() as u64 == self.file_size
    }
}

/// How the namespace is laid out.
#[derive(Debug, Clone)]
pub struct TreeOptions {
    /// The name in the root under which the layers are shown; none for a pure root file system.
    pub layers_dir: Option<Vec<u8>>,
}

impl Default for TreeOptions {
    fn default() -> Self {
        TreeOptions {
            layers_dir: Some(b"layers".to_vec()),
        }
    }
}

/// An image as a tree of inodes.
#[derive(Debug)]
pub struct Tree {
    myself: Weak<Tree>,
    layers: Vec<Arc<Layer>>,
    options: TreeOptions,
    manifest: Bytes,
    config: Bytes,
    root: Arc<Dir>,
    /// The merged directories that somebody holds, by inode number, and how often they were handed out.
    held: Mutex<HashMap<Ino, (Arc<Dir>, u64)>>,
    /// For each layer how it lies over those below, if its entries reach below symlinks of theirs.
    extractions: Vec<OnceCell<Option<Arc<Extraction>>>>,
    /// For each layer that lies flat over those below as far as they were known: how many entries these had replaced by
    /// then. What they replace later may be a directory that has become a symlink.
    flat: Vec<Mutex<Option<u64>>>,
    /// Whether each complete layer declares all its directories.
    plain: Vec<OnceLock<bool>>,
    /// For each layer whether it has too many names to be laid out.
    too_large: Vec<AtomicBool>,
    /// The names in all extractions.
    names: AtomicUsize,
    /// Counts the extractions: what was found in merged directories before may be otherwise after.
    epoch: Arc<AtomicU64>,
    /// What hard links to lower layers are, as far as that was found out over complete ones: each may lead to another.
    followed: Mutex<link::Followed>,
    /// Names that layers give to files of lower layers; known once all layers are.
    links: OnceCell<HashMap<(usize, EntryId), u32>>,
    listings: Mutex<listing::Recent>,
    /// Whether it was said that names below `layers` clash.
    clash_told: AtomicBool,
}

impl Tree {
    /// The tree of `image`, whose layers are `layers`, base first.
    pub fn new(image: &Image, layers: Vec<Arc<Layer>>, options: TreeOptions) -> Arc<Tree> {
        let epoch = Arc::default();
        Arc::new_cyclic(|myself| Tree {
            myself: myself.clone(),
            root: Dir::root(layers.len(), &epoch),
            extractions: layers.iter().map(|_| OnceCell::new()).collect(),
            flat: layers.iter().map(|_| Mutex::default()).collect(),
            plain: layers.iter().map(|_| OnceLock::new()).collect(),
            too_large: layers.iter().map(|_| AtomicBool::new(false)).collect(),
            names: AtomicUsize::new(0),
            epoch,
            layers,
            options,
            manifest: image.manifest.clone(),
            config: image.config.clone(),
            held: Mutex::default(),
            followed: Mutex::default(),
            links: OnceCell::new(),
            listings: Mutex::default(),
            clash_told: AtomicBool::new(false),
        })
    }

    /// The layers, base first.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// The entry `name` of the directory `parent`; None if it is proven that there is none.
    ///
    /// # Errors
    /// [`TreeError::Layer`] if that cannot be told, [`TreeError::NotADirectory`].
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>, TreeError> {
        let Some(mut attr) = self.find(parent, name).await? else {
            // Of a directory that a later entry has replaced nothing can be told; the kernel then looks for it anew.
            return match self.is_replaced(parent).await? {
                true => Err(TreeError::Stale(parent)),
                false => Ok(None),
            };
        };
        attr.lasting = match (parent.node(), attr.ino.node()) {
            (Node::Own(layer, _), _) => self.layer(layer, parent)?.index().is_some(),
            // The numbers of the layers are theirs for ever.
            (Node::Layers, Node::Own(_, EntryId::ROOT)) => true,
            _ => self.known_from(attr.ino),
        };
        Ok(Some(attr))
    }

    async fn find(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>, TreeError> {
        match parent.node() {
            Node::Root if self.options.layers_dir.as_deref() == Some(name) => Ok(Some(self.layers_attr())),
            Node::Layers => self.lookup_layers(name).await,
            Node::Root | Node::Merged => {
                let dir = self.dir(parent)?;
                loop {
                    let epoch = self.epoch.load(Ordering::Acquire);
                    let found = self.resolve_scouting(&dir, name).await?;
                    let attr = self.attr_of(found).await?;
                    // The way that layers lie over each other has become known meanwhile: there are as many times as layers.
                    if epoch == self.epoch.load(Ordering::Acquire) {
                        return Ok(attr);
                    }
                }
            }
            Node::Own(layer, entry) => match self.own_child(layer, entry, name).await? {
                Some((layer, entry)) => self.settled_attr(layer, entry).await.map(Some),
                None => Ok(None),
            },
            Node::Manifest | Node::Config => Err(TreeError::NotADirectory(parent)),
        }
    }

    /// Whether a later entry has taken the place of a directory, or of a part of it, since it was handed out.
    async fn is_replaced(&self, directory: Ino) -> Result<bool, TreeError> {
        let parts = match directory.node() {
            Node::Own(layer, entry) => vec![(layer, entry)],
            Node::Merged => {
                let dir = self.dir(directory)?;
                // What was known of it is looked for anew once more has become known of its layers.
                self.contribution(&dir, 0).await?;
                let (contributions, _) = dir.known();
                if contributions.is_empty() {
                    // It was replaced before anything could be found out about it.
                    return Ok(true);
                }
                contributions
                    .iter()
                    .filter_map(|part| Some((part.layer, part.entry?)))
                    .collect()
            }
            _ => Vec::new(),
        };
        for (layer, entry) in parts {
            let reachable = match self.known_extraction(layer) {
                // Where it has an entry of that path in its tar is told by what it was put together with.
                Some(extraction) if directory.node() == Node::Merged => {
                    extraction.has_directory(&self.dir(directory)?.path())
                }
                _ => self
                    .layer(layer, directory)?
                    .glance(|view| link::reachable(view.entries(), entry))?,
            };
            if !reachable {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the layer that `ino` is from, and all above it, are completely known: those that decide who has a name in
    /// the merged view.
    fn known_from(&self, ino: Ino) -> bool {
        let known = |number: usize| self.layers[number].index().is_some() && self.lies_still(number);
        ino.layer().is_none_or(|layer| (layer..self.layers.len()).all(known))
    }

    /// The attributes of an inode: the best known, without waiting for more.
    ///
    /// # Errors
    /// [`TreeError::Layer`] if its layer is corrupt, [`TreeError::Stale`].
    pub fn getattr(&self, ino: Ino) -> Result<Attr, TreeError> {
        match ino.node() {
            Node::Root | Node::Merged => self.known_dir_attr(&*self.dir(ino)?),
            Node::Layers => Ok(self.layers_attr()),
            Node::Manifest => Ok(Attr::document(ino, self.manifest.len())),
            Node::Config => Ok(Attr::document(ino, self.config.len())),
            Node::Own(layer, entry) => self.own_attr(layer, entry),
        }
    }

    /// Everything in the directory `ino`, complete.
    ///
    /// # Errors
    /// [`TreeError::Layer`] if that cannot be told, [`TreeError::NotADirectory`].
    pub async fn list(&self, ino: Ino) -> Result<Arc<Listing>, TreeError> {
        if let Some(listing) = self.listings.lock().get(ino) {
            return Ok(listing);
        }
        let listing = match ino.node() {
            Node::Root | Node::Merged => loop {
                let epoch = self.epoch.load(Ordering::Acquire);
                let listing = self.list_merged(&self.dir(ino)?, ino == Ino::ROOT).await?;
                if epoch == self.epoch.load(Ordering::Acquire) {
                    break listing;
                }
            },
            // Not kept: it may still grow by the image's own children.
            Node::Layers => return Ok(Arc::new(self.list_layers().await?)),
            Node::Own(layer, entry) => self.list_own(layer, entry).await?,
            Node::Manifest | Node::Config => return Err(TreeError::NotADirectory(ino)),
        };
        if self.is_replaced(ino).await? {
            return Err(TreeError::Stale(ino));
        }
        let listing = Arc::new(listing);
        self.listings.lock().put(ino, listing.clone());
        Ok(listing)
    }

    /// Whether [`Tree::list`] of `ino` needs no work, as it was listed a moment ago.
    pub fn has_listed(&self, ino: Ino) -> bool {
        self.listings.lock().get(ino).is_some()
    }

    /// The attributes of what a listing of the directory `parent` shows, to be handed out like those of a lookup.
    /// None if they are better looked up one by one.
    pub async fn listed_attr(&self, parent: Ino, listed: &Listed<'_>) -> Result<Option<Attr>, TreeError> {
        match listed.ino.node() {
            Node::Merged => {
                if parent == Ino::LAYERS {
                    return self.lookup_layers(listed.name).await;
                }
                let dir = self.dir(parent)?;
                let found = self.resolve(&dir, listed.name).await?;
                self.attr_of(found).await
            }
            Node::Own(layer, entry) => self.settled_attr(layer, entry).await.map(Some),
            _ => self.getattr(listed.ino).map(Some),
        }
    }

    /// Bytes of the file `ino`; fewer than `len` only at its end.
    ///
    /// # Errors
    /// [`TreeError::Layer`] if they cannot be had, [`TreeError::NotAFile`].
    pub async fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Content, TreeError> {
        let document = match ino.node() {
            Node::Manifest => &self.manifest,
            Node::Config => &self.config,
            Node::Own(layer, entry) => return Ok(self.layer(layer, ino)?.read(entry, offset, len).await?),
            _ => return Err(TreeError::NotAFile(ino)),
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(document.len());
        let end = start.saturating_add(len).min(document.len());
        Ok(Content {
            bytes: document.slice(start..end),
            spans: Vec::new(),
        })
    }

    /// Where a symlink points, verbatim.
    ///
    /// # Errors
    /// [`TreeError::NotASymlink`], or [`TreeError::Layer`] if its layer is corrupt.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, TreeError> {
        let Node::Own(layer, entry) = ino.node() else {
            return Err(TreeError::NotASymlink(ino));
        };
        self.layer(layer, ino)?
            .glance(|view| {
                let entry = view.entries().entry(entry)?;
                (entry.kind == crate::index::Kind::Symlink).then(|| entry.link.to_vec())
            })?
            .ok_or(TreeError::NotASymlink(ino))
    }

    /// Notes that an inode was handed out once, as by a lookup.
    pub fn hold(&self, attr: &Attr) {
        if let Some(dir) = &attr.dir {
            let mut held = self.held.lock();
            let slot = held.entry(attr.ino).or_insert_with(|| (dir.clone(), 0));
            slot.0 = dir.clone();
            slot.1 += 1;
        }
    }

    /// Notes that an inode was let go of `times` times.
    pub fn release(&self, ino: Ino, times: u64) {
        if ino.node() != Node::Merged {
            return;
        }
        let mut held = self.held.lock();
        if let Some((_, count)) = held.get_mut(&ino) {
            *count = count.saturating_sub(times);
            if *count == 0 {
                held.remove(&ino);
            }
        }
    }

    /// The files that have bytes in a decoded span.
    pub fn files_in(&self, span: &DecodedSpan) -> Vec<Part> {
        let range = crate::range::ByteRange::at(span.start, span.bytes.len() as u64);
        let Some(layer) = self.layers.get(span.layer) else {
            return Vec::new();
        };
        let ids = layer.entries_at(range);
        let files = layer.glance(|view| {
            let file = |id| {
                let entry = view.entries().entry(id)?;
                let part = entry.data.intersection(&range);
                if entry.sparse || part.is_empty() {
                    return None;
                }
                let from = usize::try_from(part.start() - span.start).ok()?;
                let to = usize::try_from(part.end() - span.start).ok()?;
                Some(Part {
                    ino: Ino::own(span.layer, id),
                    offset: part.start() - entry.data.start(),
                    bytes: span.bytes.slice(from..to),
                    file_size: entry.size,
                })
            };
            ids.into_iter().filter_map(file).collect()
        });
        files.unwrap_or_default()
    }

    /// The directories, as inode numbers, that the directory `entry` of layer `layer` is, or is a part of.
    pub fn made_of(&self, layer: usize, entry: EntryId) -> Vec<Ino> {
        let mut parents = vec![Ino::own(layer, entry)];
        if entry == EntryId::ROOT {
            parents.push(Ino::ROOT);
        }
        let held = self.held.lock();
        parents.extend(
            held.iter()
                .filter(|(_, (dir, _))| dir.has(layer, entry))
                .map(|(ino, _)| *ino),
        );
        parents
    }

    /// Does a part of the work as a task of its own, which ends when nobody waits for it any more. What looks at the
    /// layers below a layer may have to do the same for each of them; the thread's stack does not grow by it this way.
    async fn apart<R, F>(&self, work: impl FnOnce(Arc<Tree>) -> F) -> Result<R, TreeError>
    where
        R: Send + 'static,
        F: Future<Output = Result<R, TreeError>> + Send + 'static,
    {
        let stopped = || TreeError::from(Arc::new(LayerError::Stopped { layer: 0 }));
        let mut task = JoinSet::new();
        task.spawn(work(self.myself.upgrade().ok_or_else(stopped)?));
        match task.join_next().await {
            Some(Ok(result)) => result,
            _ => Err(stopped()),
        }
    }

    fn dir(&self, ino: Ino) -> Result<Arc<Dir>, TreeError> {
        if ino == Ino::ROOT {
            return Ok(self.root.clone());
        }
        self.held
            .lock()
            .get(&ino)
            .map(|(dir, _)| dir.clone())
            .ok_or(TreeError::Stale(ino))
    }

    fn layer(&self, number: usize, ino: Ino) -> Result<&Arc<Layer>, TreeError> {
        self.layers.get(number).ok_or(TreeError::Stale(ino))
    }
}
