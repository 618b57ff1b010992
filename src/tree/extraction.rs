//! Layers whose entries reach below symlinks of the layers below.
//!
//! With `lib -> usr/lib` in a lower layer, an entry `lib/x` of a layer that has no entry for `lib` lands in
//! `usr/lib/x`, and may meet there what the layer has put at that path itself. Who has the path is then a question of
//! order, so the members of such a layer are laid out one by one over what the layers below give, as extraction would
//! do it; and so are those of a layer with names that lead through its own symlinks. Layers declare the parents of
//! their entries as a rule, so that hardly any is such a layer; but whether one is is known only when it is complete.
//!
//! Here is which layers are such ones, and what is asked of them; how they are laid out is in `replay`.

mod replay;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::contribution::{Child, Contribution, Dir, hidden_by};
use super::lookup::Found;
use super::{Ino, Tree, TreeError};
use crate::index::{Entries, Entry, EntryId, Kind, LayerIndex, WHITEOUT, never_shown};

/// The most names in the layers that are laid out this way, in all layers of an image together. They are in memory.
const MOST_NAMES: usize = 2 << 20;

/// Entries after which other tasks get a turn.
const TURN: u32 = 1024;

/// Where everything of one layer is in the merged view.
pub(super) struct Extraction {
    layer: usize,
    /// The root first.
    directories: Vec<Directory>,
    /// What the layer's hard links to lower layers are.
    links: HashMap<EntryId, Option<(usize, EntryId)>>,
}

/// How a layer lies over those below.
enum Extracted {
    /// As its index has it.
    Flat,
    /// So as far as they are known, which they are not to their ends.
    FlatSoFar,
    Over(Extraction),
}

/// What the layer has in a directory.
#[derive(Default)]
struct Directory {
    items: BTreeMap<Box<[u8]>, Item>,
    /// Names that it hides from lower layers.
    hides: BTreeSet<Box<[u8]>>,
    /// Whether it hides all of them.
    opaque: bool,
    /// The layer's own directory that has this path in its tar.
    entry: Option<EntryId>,
    /// The last entry that declared it.
    declared: Option<EntryId>,
    /// Whether it exists because of this layer.
    solid: bool,
    /// Whether lower layers have no part in it.
    cut: bool,
    /// Whether that is because the layer had something else there before.
    replaced: bool,
}

#[derive(Clone, Copy)]
enum Item {
    /// The number of a directory.
    Directory(usize),
    /// The entry of a layer that it is, hard links followed.
    Leaf(usize, EntryId),
}

impl fmt::Debug for Extraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}, {} directories", self.layer, self.directories.len())
    }
}

impl Extraction {
    fn directory(&self, path: &[u8]) -> Option<(usize, &Directory)> {
        let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        let number = names.try_fold(0, |at, name| match self.directories.get(at)?.items.get(name)? {
            Item::Directory(number) => Some(*number),
            Item::Leaf(..) => None,
        })?;
        Some((number, self.directories.get(number)?))
    }

    /// Whether the layer has a directory at `path`.
    pub(super) fn has_directory(&self, path: &[u8]) -> bool {
        self.directory(path).is_some()
    }

    /// What the layer has under `name` in the directory at `path`.
    pub(super) fn child(&self, path: &[u8], name: &[u8]) -> Child {
        match self
            .directory(path)
            .and_then(|(_, directory)| directory.items.get(name))
        {
            Some(Item::Directory(number)) if !never_shown(name, Kind::Directory) => {
                let Some(directory) = self.directories.get(*number) else {
                    return Child::Nothing;
                };
                Child::Directory {
                    contribution: Contribution {
                        layer: self.layer,
                        entry: directory.entry,
                        attrs: directory.declared,
                        visible: true,
                    },
                    solid: directory.solid,
                }
            }
            Some(Item::Leaf(layer, entry)) if !never_shown(name, Kind::File) => Child::Leaf(*layer, *entry),
            _ => Child::Nothing,
        }
    }

    /// Whether the layer hides what lower layers have under `name` in the directory at `path`.
    pub(super) fn hides(&self, path: &[u8], name: &[u8]) -> bool {
        let Some((_, directory)) = self.directory(path) else {
            return false;
        };
        let cut = |number: &usize| self.directories.get(*number).is_some_and(|directory| directory.cut);
        directory.hides.contains(name)
            || matches!(directory.items.get(name), Some(Item::Directory(number)) if cut(number))
    }

    /// Whether the layer hides all that lower layers have in the directory at `path`.
    pub(super) fn opaque(&self, path: &[u8]) -> bool {
        self.directory(path).is_some_and(|(_, directory)| directory.opaque)
    }

    /// The names that the layer has in the directory at `path`, and those that it hides there.
    pub(super) fn names_in(&self, path: &[u8]) -> (Vec<&[u8]>, Vec<&[u8]>) {
        let Some((_, directory)) = self.directory(path) else {
            return Default::default();
        };
        let names = directory.items.keys().map(|name| &**name).collect();
        (names, directory.hides.iter().map(|name| &**name).collect())
    }

    /// What a hard link of the layer is: None if it is nothing, and at the outside if it was not laid out.
    pub(super) fn link(&self, entry: EntryId) -> Option<Option<(usize, EntryId)>> {
        self.links.get(&entry).copied()
    }
}

/// The path of `name` in the directory at `path`.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path.is_empty() {
        true => name.to_vec(),
        false => [path, name].join(&b'/'),
    }
}

impl Tree {
    /// How layer `number` lies over those below, if its index alone does not tell; waits for it to be complete.
    pub(super) async fn extraction(&self, number: usize) -> Result<Option<Arc<Extraction>>, TreeError> {
        let cell = &self.extractions[number];
        if self.too_large[number].load(Ordering::Relaxed) {
            return Err(TreeError::TooManyNames { layer: number });
        }
        if !cell.initialized() && self.still_lies_flat(number)? {
            return Ok(None);
        }
        let found = cell
            .get_or_try_init(|| async move {
                if self.is_plain(number) {
                    return Ok(None);
                }
                // Whoever had the turn before may have found it.
                if self.still_lies_flat(number).map_err(Some)? {
                    return Err(None);
                }
                let work = |tree: Arc<Tree>| async move { tree.extract(number).await };
                match self.apart(work).await.map_err(Some)? {
                    Extracted::Flat => Ok(None),
                    // Asked again by the next question.
                    Extracted::FlatSoFar => Err(None),
                    Extracted::Over(extraction) => {
                        // What was found about merged directories before may be otherwise now.
                        self.epoch.fetch_add(1, Ordering::Release);
                        Ok(Some(Arc::new(extraction)))
                    }
                }
            })
            .await;
        match found {
            Ok(found) => Ok(found.clone()),
            Err(failure) => failure.map_or(Ok(None), Err),
        }
    }

    /// Whether layer `number` was found to lie flat over those below, and none of these has replaced anything since.
    fn still_lies_flat(&self, number: usize) -> Result<bool, TreeError> {
        let Some(replaced) = *self.flat[number].lock() else {
            return Ok(false);
        };
        let settled = self.is_complete_below(number);
        let still = replaced == self.replaced_below(number)?;
        if settled && still {
            // If another task is just finding it out, it will find the same.
            self.extractions[number].set(None).ok();
        }
        Ok(still)
    }

    /// Whether all layers below layer `number` are completely known.
    pub(super) fn is_complete_below(&self, number: usize) -> bool {
        self.layers.iter().take(number).all(|layer| layer.index().is_some())
    }

    /// How many entries the layers below layer `number` have replaced by now.
    fn replaced_below(&self, number: usize) -> Result<u64, TreeError> {
        let mut replaced = 0;
        for layer in self.layers.iter().take(number) {
            replaced += layer.glance(|view| u64::from(view.entries().replaced()))?;
        }
        Ok(replaced)
    }

    /// A number for the directory at `path` that layer `number` has a part in, but no entry of that path.
    pub(super) fn bare_ino(&self, number: usize, path: &[u8]) -> Ino {
        let directory = self.known_extraction(number).and_then(|known| known.directory(path));
        // There are at most MOST_NAMES.
        Ino::bare(number, directory.map_or(0, |(directory, _)| directory as u32))
    }

    /// [`Tree::extraction`] of a layer that is complete; None of others, which are not waited for.
    pub(super) async fn extraction_of_complete(&self, number: usize) -> Result<Option<Arc<Extraction>>, TreeError> {
        match self.layers[number].index() {
            Some(_) => self.extraction(number).await,
            None => Ok(None),
        }
    }

    /// [`Tree::extraction`], if that is known.
    pub(super) fn known_extraction(&self, number: usize) -> Option<&Arc<Extraction>> {
        self.extractions.get(number)?.get()?.as_ref()
    }

    /// Whether it is known if layer `number` has an extraction, or can be told without looking at other layers.
    pub(super) fn lies_still(&self, number: usize) -> bool {
        self.extractions[number].initialized() || self.is_plain(number)
    }

    /// Whether a complete layer declares all its directories, so that it needs no look at the layers below, and has no
    /// entry that may be none.
    fn is_plain(&self, number: usize) -> bool {
        let Some(index) = self.layers[number].index() else {
            return false;
        };
        let is_implied = |entry: Entry<'_>| number > 0 && entry.kind == Kind::Directory && entry.implied;
        let is_plain = |id| {
            !index
                .entry(id)
                .is_some_and(|entry| is_implied(entry.clone()) || is_doubtful(&entry))
        };
        let leads_elsewhere = || number > 0 && index.written_otherwise();
        *self.plain[number].get_or_init(|| !leads_elsewhere() && (1..index.len()).map(EntryId).all(is_plain))
    }

    async fn extract(&self, number: usize) -> Result<Extracted, TreeError> {
        let index = self.layers[number].complete().await?;
        let settled = self.is_complete_below(number);
        let replaced = self.replaced_below(number)?;
        if !self.needs_layers_below(number, &index).await? {
            if !settled {
                *self.flat[number].lock() = Some(replaced);
                return Ok(Extracted::FlatSoFar);
            }
            return Ok(Extracted::Flat);
        }
        if !settled {
            // What is laid out once stays, so it must be over what those layers are in the end.
            for layer in self.layers.iter().take(number) {
                layer.complete().await?;
            }
            if !self.needs_layers_below(number, &index).await? {
                return Ok(Extracted::Flat);
            }
        }
        Ok(Extracted::Over(replay::replay(self, number, &index).await?))
    }

    /// Whether an entry of the layer has a parent that no entry declares and that is a symlink in the layers below. One
    /// that was a hard link before may be one of such a symlink. Whether a hard link to a lower layer has taken the place
    /// of another entry, or is none, is also told by those.
    async fn needs_layers_below(&self, number: usize, index: &LayerIndex) -> Result<bool, TreeError> {
        if number > 0 && index.written_otherwise() {
            return Ok(true);
        }
        let mut entries = (1..index.len()).filter_map(|id| index.entry(EntryId(id)));
        if entries.any(|entry| is_doubtful(&entry)) {
            return Ok(true);
        }
        // Where the lower layers have what the layer's own directory would be merged with; none if nowhere.
        let mut lower: HashMap<EntryId, Option<Arc<Dir>>> = HashMap::new();
        for (id, turn) in implied_and_above(index).into_iter().zip(0u32..) {
            if turn.is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
            let Some(entry) = index.entry(id) else { continue };
            if entry.implied && entry.replacing {
                return Ok(true);
            }
            let place = match id {
                EntryId::ROOT => Some(Dir::root(number, &self.epoch)),
                _ => match lower.get(&entry.parent) {
                    Some(Some(parent)) if !hides_lower(index, &entry) => {
                        match self.resolve(parent, entry.name).await? {
                            Some(Found::Directory(dir)) => Some(dir),
                            Some(Found::Leaf(layer, leaf))
                                if entry.implied && self.symlink_target(layer, leaf)?.is_some() =>
                            {
                                return Ok(true);
                            }
                            _ => None,
                        }
                    }
                    _ => None,
                },
            };
            lower.insert(id, place);
        }
        Ok(false)
    }
}

/// Whether an entry is a link to a lower layer that has taken the place of another entry, or had its own taken, unless it
/// leads nowhere.
fn is_doubtful(entry: &Entry<'_>) -> bool {
    entry.kind == Kind::Hardlink && entry.target.is_none() && (entry.replacing || entry.nlink == 0)
}

/// The directories of a layer that only their children imply.
fn implied(index: &LayerIndex) -> impl Iterator<Item = EntryId> + '_ {
    let is_one = |id: &EntryId| {
        let entry = index.entry(*id);
        entry.is_some_and(|entry| entry.kind == Kind::Directory && entry.implied)
    };
    (1..index.len()).map(EntryId).filter(is_one)
}

/// The directories of a layer that only their children imply, and all that they are in; parents first, as they have the
/// smaller numbers. What was replaced later is among them.
fn implied_and_above(index: &LayerIndex) -> BTreeSet<EntryId> {
    let mut chosen = BTreeSet::new();
    for mut at in implied(index) {
        while chosen.insert(at) && at != EntryId::ROOT {
            let Some(entry) = index.entry(at) else { break };
            at = entry.parent;
        }
    }
    chosen
}

/// Whether a whiteout or a mark of the layer hides what lower layers have at the place of `entry`, in a directory that it
/// does not hide.
fn hides_lower(index: &LayerIndex, entry: &Entry<'_>) -> bool {
    let whiteout = index.child(entry.parent, &[WHITEOUT, entry.name].concat());
    let hides = |whiteout: Entry<'_>| hidden_by(&whiteout).is_some();
    index.entry(entry.parent).is_some_and(|parent| parent.opaque)
        || whiteout.and_then(|id| index.entry(id)).is_some_and(hides)
}
