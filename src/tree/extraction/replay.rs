//! Laying out the members of a layer one by one, as extraction would, over what the layers below give.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Directory, Extraction, Item, MOST_NAMES, TURN};
use crate::index::{Entries, Entry, EntryId, Kind, LayerIndex, OPAQUE, WHITEOUT, WrittenMember, never_shown};
use crate::tree::contribution::{Dir, hidden_by};
use crate::tree::link::is_refused;
use crate::tree::lookup::{Found, MOST_SYMLINKS, split};
use crate::tree::{Tree, TreeError};

/// The most directories of the layers below that are kept in memory while a layer is laid out.
const MOST_LOWER: usize = 64 << 10;

/// Lays out layer `number`, whose index is `index`. Those below must be complete.
pub(super) async fn replay(tree: &Tree, number: usize, index: &LayerIndex) -> Result<Extraction, TreeError> {
    let mut extracting = Extracting {
        tree,
        index,
        root: Dir::root(number, &tree.epoch),
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
    if tree.names.fetch_add(names, Ordering::Relaxed) + names > MOST_NAMES {
        tree.names.fetch_sub(names, Ordering::Relaxed);
        tree.too_large[number].store(true, Ordering::Relaxed);
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
    Ok(extracting.result)
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
