//! Listing a directory, merged or of one layer. A listing is given only when it is complete.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::{join_all, select};
use lru::LruCache;

use super::contribution::{Contribution, Dir, hidden_by};
use super::lookup::Found;
use super::{Ino, Tree, TreeError};
use crate::index::{Entries, EntryId, Kind, never_shown};
use crate::layer::LayerError;

/// Bytes of listings that are kept for readers who come back for the next part of a directory.
const RECENT: usize = 8 << 20;

/// All names in a directory, `.` and `..` first.
#[derive(Debug, Default)]
pub struct Listing {
    names: Vec<u8>,
    items: Vec<Item>,
}

#[derive(Debug)]
struct Item {
    ino: Ino,
    kind: Kind,
    start: usize,
    len: usize,
}

/// One name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Its inode number.
    pub ino: Ino,
    /// What it is; never [`Kind::Hardlink`].
    pub kind: Kind,
}

impl Listing {
    fn of(ino: Ino, parent: Ino) -> Listing {
        let mut listing = Listing::default();
        listing.push(b".", ino, Kind::Directory);
        listing.push(b"..", parent, Kind::Directory);
        listing
    }

    fn push(&mut self, name: &[u8], ino: Ino, kind: Kind) {
        self.items.push(Item {
            ino,
            kind,
            start: self.names.len(),
            len: name.len(),
        });
        self.names.extend_from_slice(name);
    }

    /// How many names there are.
    #[allow(clippy::len_without_is_empty)] // It never is: `.` is there.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// The `i`th name.
    pub fn get(&self, i: usize) -> Option<Listed<'_>> {
        let item = self.items.get(i)?;
        Some(Listed {
            name: self.names.get(item.start..item.start + item.len)?,
            ino: item.ino,
            kind: item.kind,
        })
    }

    /// All names, in order.
    pub fn iter(&self) -> impl Iterator<Item = Listed<'_>> {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    fn size(&self) -> usize {
        self.names.len() + self.items.len() * size_of::<Item>()
    }
}

/// The listings given out last.
#[derive(Debug)]
pub(super) struct Recent {
    listings: LruCache<Ino, Arc<Listing>>,
    bytes: usize,
}

impl Default for Recent {
    fn default() -> Self {
        Recent {
            listings: LruCache::unbounded(),
            bytes: 0,
        }
    }
}

impl Recent {
    pub(super) fn get(&mut self, ino: Ino) -> Option<Arc<Listing>> {
        self.listings.get(&ino).cloned()
    }

    pub(super) fn put(&mut self, ino: Ino, listing: Arc<Listing>) {
        self.bytes += listing.size();
        if let Some(old) = self.listings.put(ino, listing) {
            self.bytes -= old.size();
        }
        // The one just made stays, however large: its reader will ask for the rest of it.
        while self.bytes > RECENT && self.listings.len() > 1 {
            let Some((_, old)) = self.listings.pop_lru() else { break };
            self.bytes -= old.size();
        }
    }
}

impl Tree {
    /// The directory `directory` of layer `number`, as the tar has it.
    pub(super) async fn list_own(&self, number: usize, directory: EntryId) -> Result<Listing, TreeError> {
        let ino = Ino::own(number, directory);
        let index = self.layer(number, ino)?.complete().await?;
        let Some(entry) = index.entry(directory) else {
            return Err(TreeError::Stale(ino));
        };
        if entry.kind != Kind::Directory {
            return Err(TreeError::NotADirectory(ino));
        }
        let parent = match directory {
            EntryId::ROOT => Ino::LAYERS,
            _ => Ino::own(number, entry.parent),
        };
        let mut listing = Listing::of(ino, parent);
        for child in index.children(directory) {
            let Some(child) = index.entry(child) else { continue };
            if let Some((layer, entry)) = self.follow(number, child.id, child.kind).await? {
                listing.push(child.name, Ino::own(layer, entry), self.kind_of(layer, entry)?);
            }
        }
        Ok(listing)
    }

    /// The merged directory `dir`. All layers that may add to it are scanned at once.
    pub(super) async fn list_merged(&self, dir: &Arc<Dir>, root: bool) -> Result<Listing, TreeError> {
        let unknown = self.layers.iter().take(dir.top).filter(|layer| layer.index().is_none());
        let scans = join_all(unknown.map(|layer| layer.complete()));
        let listing = Box::pin(self.merge_listing(dir, root));
        // The scans serve the listing, which ends as soon as it has what it needs, or meets the same error.
        let forever = Box::pin(async {
            scans.await;
            std::future::pending::<()>().await
        });
        match select(listing, forever).await {
            futures_util::future::Either::Left((listing, _)) => listing,
            futures_util::future::Either::Right(_) => Err(Arc::new(LayerError::Stopped { layer: 0 }).into()),
        }
    }

    async fn merge_listing(&self, dir: &Arc<Dir>, root: bool) -> Result<Listing, TreeError> {
        // For each name what the topmost layer that has it makes of it; None if a layer hides it from those below.
        let mut names: BTreeMap<Box<[u8]>, Option<(Ino, Kind)>> = BTreeMap::new();
        for k in 0.. {
            let Some(at) = self.contribution(dir, k).await?.filter(|at| at.visible) else {
                break;
            };
            let mut hidden: Vec<Box<[u8]>> = Vec::new();
            for name in self.names_in(dir, at, &mut hidden).await? {
                if names.contains_key(&name.0) {
                    continue;
                }
                let found = match name.1 {
                    Plain::Known(ino, kind) => Some((ino, kind)),
                    Plain::AskTree => match self.resolve(dir, &name.0).await? {
                        Some(Found::Directory(found)) => Some((found.ino, Kind::Directory)),
                        Some(Found::Leaf(layer, entry)) => Some((Ino::own(layer, entry), self.kind_of(layer, entry)?)),
                        None => None,
                    },
                };
                names.insert(name.0, found);
            }
            for name in hidden {
                names.entry(name).or_insert(None);
            }
        }
        let parent = dir.parent.as_ref().map_or(Ino::ROOT, |(parent, _)| parent.ino);
        let mut listing = Listing::of(dir.ino, parent);
        if let Some(layers_dir) = self.options.layers_dir.as_deref().filter(|_| root) {
            names.remove(layers_dir);
            listing.push(layers_dir, Ino::LAYERS, Kind::Directory);
        }
        for (name, found) in &names {
            if let Some((ino, kind)) = found {
                listing.push(name, *ino, *kind);
            }
        }
        Ok(listing)
    }

    /// The names that one layer has in `dir`, and those that it hides.
    async fn names_in(
        &self,
        dir: &Arc<Dir>,
        at: Contribution,
        hidden: &mut Vec<Box<[u8]>>,
    ) -> Result<Vec<(Box<[u8]>, Plain)>, TreeError> {
        let index = self.layers[at.layer].complete().await?;
        if let Some(extraction) = self.extraction(at.layer).await? {
            let (names, hides) = extraction.names_in(&dir.path());
            hidden.extend(hides.into_iter().map(Box::from));
            return Ok(names.into_iter().map(|name| (name.into(), Plain::AskTree)).collect());
        }
        let mut names = Vec::new();
        let children = at.entry.map(|directory| index.children(directory)).unwrap_or_default();
        for child in children.into_iter().filter_map(|id| index.entry(id)) {
            hidden.extend(hidden_by(&child).map(Box::from));
            if never_shown(child.name, child.kind) {
                continue;
            }
            let plain = match child.kind {
                Kind::Hardlink => Plain::AskTree,
                Kind::Directory if child.implied => Plain::AskTree,
                Kind::Directory => Plain::Known(Ino::merged(at.layer, child.id), child.kind),
                _ => Plain::Known(Ino::own(at.layer, child.id), child.kind),
            };
            names.push((child.name.into(), plain));
        }
        Ok(names)
    }

    /// The directory of the layers: their numbers, the documents, and the children of the image's own directory of
    /// that name as far as it is known. Whoever lists the layers does not want to have them all scanned.
    pub(super) async fn list_layers(&self) -> Result<Listing, TreeError> {
        let mut listing = Listing::of(Ino::LAYERS, Ino::ROOT);
        for number in 0..self.layers.len() {
            listing.push(
                number.to_string().as_bytes(),
                Ino::own(number, EntryId::ROOT),
                Kind::Directory,
            );
        }
        listing.push(b"manifest.json", Ino::MANIFEST, Kind::File);
        listing.push(b"config.json", Ino::CONFIG, Kind::File);
        let known = self.layers.iter().all(|layer| layer.index().is_some());
        if let Some(layers_dir) = self.options.layers_dir.as_deref().filter(|_| known)
            && let Some(Found::Directory(own)) = self.resolve(&self.root, layers_dir).await?
        {
            let own = self.list_merged(&own, false).await?;
            let taken: HashSet<Vec<u8>> = listing.iter().map(|listed| listed.name.to_vec()).collect();
            for listed in own.iter().skip(2) {
                if !taken.contains(listed.name) {
                    listing.push(listed.name, listed.ino, listed.kind);
                } else if !self.clash_told.swap(true, Ordering::Relaxed) {
                    let (dir, name) = (layers_dir.escape_ascii(), listed.name.escape_ascii());
                    tracing::warn!(
                        "the image's own {dir}/{name} is not shown, as the mount has that name; see --layers-dir"
                    );
                }
            }
        }
        Ok(listing)
    }

    fn kind_of(&self, layer: usize, entry: EntryId) -> Result<Kind, TreeError> {
        let kind = self.layers[layer].glance(|view| view.entries().entry(entry).map(|entry| entry.kind))?;
        kind.ok_or(TreeError::Stale(Ino::own(layer, entry)))
    }

    /// Scans every layer to its end.
    ///
    /// # Errors
    /// The first [`TreeError::Layer`] met.
    pub async fn index_all(&self) -> Result<(), TreeError> {
        for done in join_all(self.layers.iter().map(|layer| layer.complete())).await {
            done?;
        }
        self.count_links().await
    }
}

/// What one layer's entry makes of a name, if that needs no look at other entries.
enum Plain {
    Known(Ino, Kind),
    AskTree,
}
