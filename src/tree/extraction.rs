//! Layers whose entries reach below symlinks of the layers below.
//!
//! With `lib -> usr/lib` in a lower layer, an entry `lib/x` of a layer that has no entry for `lib` lands in
//! `usr/lib/x`, and may meet there what the layer has put at that path itself. Who has the path is then a question of
//! order, so the members of such a layer are laid out one by one over what the layers below give, as extraction would
//! do it; and so are those of a layer with names that lead through its own symlinks. Layers declare the parents of their entries as a rule, so that hardly any is such a layer; but whether one
//! is is known only when it is complete.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::contribution::{Child, Contribution, Dir, hidden_by};
use super::link::is_refused;
use super::lookup::{Found, MOST_SYMLINKS, split};
use super::{Ino, Tree, TreeError};
use crate::index::{Entries, Entry, EntryId, Kind, LayerIndex, OPAQUE, WHITEOUT, WrittenMember, never_shown};

/// The most names in the layers that are laid out this way, in all layers of an image together. They are in memory.
const MOST_NAMES: usize = 2 << 20;

/// The most directories of the layers below that are kept in memory while a layer is laid out.
const MOST_LOWER: usize = 64 << 10;

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
        if self.too_large[number].get().is_some() {
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
        let mut extracting = Extracting {
            tree: self,
            index: &index,
            root: Dir::root(number, &self.epoch),
            lower: HashMap::new(),
            names: 0,
            opened: HashSet::new(),
            lost: 0,
            first_lost: None,
            result: Extraction {
                layer: number,
                directories: vec![Directory {
                    solid: true,
                    ..Directory::default()
                }],
                links: HashMap::new(),
            },
        };
        for (member, turn) in index.members().zip(0u32..) {
            if turn.is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
            if extracting.names > MOST_NAMES {
                break;
            }
            extracting.enter(&member).await?;
        }
        let names = extracting.names;
        if self.names.fetch_add(names, Ordering::Relaxed) + names > MOST_NAMES {
            self.names.fetch_sub(names, Ordering::Relaxed);
            self.too_large[number].set(()).ok();
            return Err(TreeError::TooManyNames { layer: number });
        }
        if let Some(first) = &extracting.first_lost {
            let others = match extracting.lost - 1 {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            let first = first.escape_ascii();
            tracing::warn!("layer {number}: '{first}'{others} left out: the way leads into a loop of symlinks");
        }
        extracting.set_entries();
        Ok(Extracted::Over(extracting.result))
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

/// A layer while its entries are being laid out.
struct Extracting<'a> {
    tree: &'a Tree,
    index: &'a LayerIndex,
    /// The root of the layers below.
    root: Arc<Dir>,
    /// Directories that were found there, by their parent's address and name. Each holds its parent, so that no address is
    /// that of another.
    lower: HashMap<(usize, Box<[u8]>), Arc<Dir>>,
    names: usize,
    /// Directories of the tar whose whiteouts are laid out.
    opened: HashSet<EntryId>,
    /// Members that a loop of symlinks leads nowhere, and the path of the first.
    lost: usize,
    first_lost: Option<Vec<u8>>,
    result: Extraction,
}

/// A name on a way from the root.
struct Step {
    name: Vec<u8>,
    at: At,
    /// Whether lower layers have no part in what is there.
    cut: bool,
    /// What the layers below have there, if that was looked for.
    lower: Option<Option<Found>>,
}

/// What is at a step.
#[derive(Clone, Copy, PartialEq)]
enum At {
    Nothing,
    /// A directory, with its number if the layer has a part in it.
    Directory(Option<usize>),
    /// Anything that is neither a directory nor a symlink.
    Other,
}

/// For whom a way is looked for.
#[derive(Clone, Copy, PartialEq)]
enum For {
    /// An entry, which goes where its own layer's whiteouts let it.
    Entry,
    /// The target of a hard link: what the layer removes can still be linked to.
    Target,
}

impl Extracting<'_> {
    async fn enter(&mut self, member: &WrittenMember<'_>) -> Result<(), TreeError> {
        let entry = &member.entry;
        // Whatever its place in the tar, a whiteout holds for all that its layer has in the same directory.
        for directory in self.way_to(entry.parent) {
            if self.opened.insert(directory) {
                self.hide_in(directory).await?;
            }
        }
        let path = member.name.map_or_else(|| self.index.path(entry.id), <[u8]>::to_vec);
        let mut names = split(&path);
        names.pop();
        if entry.name.starts_with(WHITEOUT) && entry.kind == Kind::File {
            return self.hide(names, entry.name == OPAQUE, hidden_by(entry)).await;
        }
        // Making its parents may take away what a link is to; by itself a layer shows one that lands nowhere.
        let target = match entry.kind {
            Kind::Hardlink => self.target(member).await?,
            _ => None,
        };
        let is_refused = entry.kind == Kind::Hardlink && is_refused(entry);
        if is_refused && target.is_none() {
            return Ok(());
        }
        if entry.kind == Kind::Hardlink && !is_refused {
            self.result.links.insert(entry.id, target);
        }
        let Some(mut way) = self.walk(names, For::Entry).await? else {
            self.lost += 1;
            self.first_lost.get_or_insert(path);
            return Ok(());
        };
        let shown = is_shown(&way) && !never_shown(entry.name, entry.kind);
        if !shown && way.iter().any(|step| step.at == At::Other) {
            // What nobody sees takes no one's place.
            return Ok(());
        }
        let parent = self.make(&way, shown);
        if is_refused {
            self.result.links.insert(entry.id, target);
        }
        match entry.kind {
            Kind::Directory => self.declare(&mut way, parent, entry).await?,
            Kind::Hardlink => {
                if let Some((layer, target)) = target {
                    self.put(parent, entry.name, Item::Leaf(layer, target));
                }
            }
            _ => self.put(parent, entry.name, Item::Leaf(self.result.layer, entry.id)),
        }
        Ok(())
    }

    /// Lays out the whiteouts in a directory of the tar.
    async fn hide_in(&mut self, directory: EntryId) -> Result<(), TreeError> {
        let index = self.index;
        let Some(entry) = index.entry(directory).filter(|entry| entry.whiteouts) else {
            return Ok(());
        };
        let children = index.children(directory).into_iter();
        let hidden = children.filter_map(|id| Some((index.written_name(id), hidden_by(&index.entry(id)?)?)));
        let (elsewhere, here): (Vec<_>, Vec<_>) = hidden.partition(|(written, _)| written.is_some());
        let mark = index.child(directory, OPAQUE).and_then(|mark| index.written_name(mark));
        let opaque = entry.opaque && mark.is_none();
        let here = here.into_iter().map(|(_, name)| name);
        self.hide(split(&index.path(directory)), opaque, here).await?;
        let elsewhere = elsewhere.into_iter().map(|(written, name)| (written, Some(name)));
        for (written, name) in elsewhere.chain(mark.map(|mark| (Some(mark), None))) {
            let mut names = split(written.unwrap_or_default());
            names.pop();
            self.hide(names, name.is_none(), name).await?;
        }
        Ok(())
    }

    /// Hides names, or all, of what lower layers have in a directory. Where nothing is there is nothing to hide.
    async fn hide<'n>(
        &mut self,
        directory: Vec<Vec<u8>>,
        opaque: bool,
        names: impl IntoIterator<Item = &'n [u8]>,
    ) -> Result<(), TreeError> {
        let Some(way) = self.walk(directory, For::Entry).await? else {
            return Ok(());
        };
        if way.iter().all(|step| matches!(step.at, At::Directory(_))) {
            let at = self.make(&way, false);
            let directory = &mut self.result.directories[at];
            directory.opaque |= opaque;
            directory.hides.extend(names.into_iter().map(Box::from));
        }
        Ok(())
    }

    /// The directories of the tar on the way to one of them, the root and that one among them.
    fn way_to(&self, directory: EntryId) -> Vec<EntryId> {
        let mut way = vec![directory];
        let mut at = directory;
        while at != EntryId::ROOT {
            // The chain ends: a parent's number is always the lower one.
            at = self.index.entry(at).map_or(EntryId::ROOT, |entry| entry.parent);
            way.push(at);
        }
        way.reverse();
        way
    }

    /// Notes which directories the layer by itself has at the same paths.
    fn set_entries(&mut self) {
        let mut todo = vec![(0, EntryId::ROOT)];
        while let Some((number, directory)) = todo.pop() {
            self.result.directories[number].entry = Some(directory);
            for (name, item) in &self.result.directories[number].items {
                let Item::Directory(number) = item else { continue };
                let own = self.index.child(directory, name);
                let is_directory = |id: &EntryId| self.index.entry(*id).is_some_and(|it| it.kind == Kind::Directory);
                todo.extend(own.filter(is_directory).map(|own| (*number, own)));
            }
        }
    }

    /// Goes a way from the root, through symlinks; None if there are too many of them.
    async fn walk(&mut self, names: Vec<Vec<u8>>, whom: For) -> Result<Option<Vec<Step>>, TreeError> {
        let mut way: Vec<Step> = Vec::new();
        let mut todo = names;
        todo.reverse();
        let mut hops = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                // What is no directory, or does not exist, is left by `..` as if it were one.
                way.pop();
                continue;
            }
            let (at, cut, symlink) = self.look(&mut way, &name, whom).await?;
            if let Some(target) = symlink {
                hops += 1;
                if hops > MOST_SYMLINKS {
                    return Ok(None);
                }
                if target.starts_with(b"/") {
                    way.clear();
                }
                todo.extend(split(&target).into_iter().rev());
                continue;
            }
            way.push(Step {
                name,
                at,
                cut,
                lower: None,
            });
        }
        Ok(Some(way))
    }

    /// What `name` is at the end of a way: where it points if it is a symlink.
    async fn look(
        &mut self,
        way: &mut [Step],
        name: &[u8],
        whom: For,
    ) -> Result<(At, bool, Option<Vec<u8>>), TreeError> {
        let (parent, mut cut) = match way.last() {
            None => (Some(0), false),
            Some(step) => match step.at {
                At::Directory(own) => (own, step.cut),
                At::Nothing | At::Other => return Ok((At::Nothing, true, None)),
            },
        };
        let directory = parent.and_then(|parent| self.result.directories.get(parent));
        match directory.and_then(|directory| directory.items.get(name)) {
            Some(Item::Directory(number)) => {
                let own = &self.result.directories[*number];
                let cut = if whom == For::Entry {
                    own.cut
                } else {
                    cut || own.replaced
                };
                return Ok((At::Directory(Some(*number)), cut, None));
            }
            Some(Item::Leaf(layer, entry)) => {
                return Ok((At::Other, true, self.tree.symlink_target(*layer, *entry)?));
            }
            None => {}
        }
        if whom == For::Entry {
            cut |= directory.is_some_and(|directory| directory.opaque || directory.hides.contains(name));
        }
        if cut {
            return Ok((At::Nothing, true, None));
        }
        Ok(match self.below(way, name).await? {
            None => (At::Nothing, false, None),
            Some(Found::Directory(_)) => (At::Directory(None), false, None),
            Some(Found::Leaf(layer, entry)) => (At::Other, false, self.tree.symlink_target(layer, entry)?),
        })
    }

    /// What the layers below have under `name` at the end of a way.
    async fn below(&mut self, way: &mut [Step], name: &[u8]) -> Result<Option<Found>, TreeError> {
        let known = way.iter().rposition(|step| step.lower.is_some());
        let mut found = match known.and_then(|known| way.get(known)) {
            Some(step) => step.lower.clone().flatten(),
            None => Some(Found::Directory(self.root.clone())),
        };
        for step in way.iter_mut().skip(known.map_or(0, |known| known + 1)) {
            found = self.below_one(found, &step.name).await?;
            step.lower = Some(found.clone());
        }
        self.below_one(found, name).await
    }

    /// What the layers below have under `name` in what was found there.
    async fn below_one(&mut self, found: Option<Found>, name: &[u8]) -> Result<Option<Found>, TreeError> {
        let Some(Found::Directory(dir)) = found else {
            return Ok(None);
        };
        let key = (Arc::as_ptr(&dir).addr(), Box::from(name));
        if let Some(known) = self.lower.get(&key) {
            return Ok(Some(Found::Directory(known.clone())));
        }
        let found = self.tree.resolve(&dir, name).await?;
        if let Some(Found::Directory(dir)) = &found {
            if self.lower.len() >= MOST_LOWER {
                self.lower.clear();
            }
            self.lower.insert(key, dir.clone());
        }
        Ok(found)
    }

    /// Makes the directories of a way as far as they are missing; with `solid` they exist from now on.
    fn make(&mut self, way: &[Step], solid: bool) -> usize {
        let mut at = 0;
        for step in way {
            at = match self.result.directories[at].items.get(&*step.name) {
                Some(Item::Directory(number)) => *number,
                other => {
                    let replaced = other.is_some();
                    self.make_one(at, &step.name, step.cut || replaced, replaced)
                }
            };
            let directory = &mut self.result.directories[at];
            directory.solid |= solid;
        }
        at
    }

    /// Makes a directory in the place of anything else that the layer had there.
    fn make_one(&mut self, parent: usize, name: &[u8], cut: bool, replaced: bool) -> usize {
        let number = self.result.directories.len();
        self.result.directories.push(Directory {
            cut,
            replaced,
            ..Directory::default()
        });
        self.put(parent, name, Item::Directory(number));
        number
    }

    fn put(&mut self, parent: usize, name: &[u8], item: Item) {
        self.names += 1;
        self.result.directories[parent].items.insert(name.into(), item);
    }

    /// Makes the directory that an entry declares.
    async fn declare(&mut self, way: &mut [Step], parent: usize, entry: &Entry<'_>) -> Result<(), TreeError> {
        let number = match self.result.directories[parent].items.get(entry.name) {
            Some(Item::Directory(number)) => *number,
            Some(Item::Leaf(..)) => self.make_one(parent, entry.name, true, true),
            None => {
                let (_, cut, symlink) = self.look(way, entry.name, For::Entry).await?;
                self.make_one(parent, entry.name, cut || symlink.is_some(), false)
            }
        };
        let directory = &mut self.result.directories[number];
        directory.declared = Some(entry.id);
        directory.solid |= is_shown(way) && !never_shown(entry.name, Kind::Directory);
        Ok(())
    }

    /// What a hard link is by now.
    async fn target(&mut self, link: &WrittenMember<'_>) -> Result<Option<(usize, EntryId)>, TreeError> {
        let mut names = split(link.link.unwrap_or(link.entry.link));
        let Some(last) = names.pop() else { return Ok(None) };
        let Some(mut way) = self.walk(names, For::Target).await? else {
            return Ok(None);
        };
        let (own, cut) = match way.last() {
            None => (Some(0), false),
            Some(Step {
                at: At::Directory(own),
                cut,
                ..
            }) => (*own, *cut),
            Some(_) => return Ok(None),
        };
        let item = own.and_then(|own| self.result.directories[own].items.get(&*last));
        match item {
            Some(Item::Leaf(layer, entry)) => return Ok(Some((*layer, *entry))),
            Some(Item::Directory(number)) if self.result.directories[*number].solid => {
                // It may be the one that the link is in, in the place of what the link is to.
                return Ok(link.entry.target.map(|target| (self.result.layer, target)));
            }
            _ if cut => return Ok(None),
            _ => {}
        }
        Ok(match self.below(&mut way, &last).await? {
            Some(Found::Leaf(layer, entry)) => Some((layer, entry)),
            _ => None,
        })
    }
}

/// Whether the merged view has what is at the end of a way: a symlink may lead to a name that it never shows.
fn is_shown(way: &[Step]) -> bool {
    !way.iter().any(|step| never_shown(&step.name, Kind::Directory))
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
