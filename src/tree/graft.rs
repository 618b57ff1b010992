//! Entries below symlinked parents.
//!
//! With `lib -> usr/lib` in a lower layer, an entry `lib/x` of a layer that has no entry for `lib` lands in
//! `usr/lib/x`. Such a layer shows `lib` as a directory that only its children imply; in the merged view this directory
//! is *grafted* to where the symlink points. Layers declare the parents of their entries as a rule, so that hardly any
//! has a graft; but whether it has none is known only when it is complete.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::contribution::{Child, Contribution, Dir, hides};
use super::lookup::{Found, Moment};
use super::{Ino, Tree, TreeError};
use crate::index::{Entries, Entry, EntryId, Kind, LayerIndex, never_shown};

/// The grafts of one layer.
#[derive(Default)]
pub(super) struct Grafts {
    grafts: Vec<Graft>,
    /// The layer's directories that are not where the tar has them: those of the grafts, and any that a loop of
    /// symlinks leads nowhere.
    moved: HashSet<EntryId>,
    index: Option<Arc<LayerIndex>>,
}

struct Graft {
    /// Where in the merged view it lands.
    path: Vec<u8>,
    /// The layer's own directory.
    entry: EntryId,
    /// Whether it makes the place exist, having more than whiteouts.
    solid: bool,
}

impl fmt::Debug for Grafts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} grafts", self.grafts.len())
    }
}

impl Grafts {
    /// The layer's directories that land, as a whole, at `path`.
    pub(super) fn at(&self, path: &[u8]) -> Vec<EntryId> {
        self.found(path)
            .filter(|entry| entry.kind == Kind::Directory)
            .map(|entry| entry.id)
            .collect()
    }

    /// Names in the directory at `path` that lead to a graft further below, and whether it makes them exist.
    pub(super) fn names_in(&self, path: &[u8]) -> impl Iterator<Item = (&[u8], bool)> {
        self.grafts.iter().filter_map(|graft| {
            let mut names = below(&graft.path, path)?.split(|byte| *byte == b'/');
            Some((names.next()?, graft.solid))
        })
    }

    /// All of the layer's entries that land at `path`.
    fn found<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = Entry<'a>> + 'a {
        self.grafts.iter().filter_map(move |graft| {
            let index = self.index.as_ref()?;
            if graft.path == path {
                return index.entry(graft.entry);
            }
            let mut names = below(path, &graft.path)?.split(|byte| *byte == b'/');
            let found = names.try_fold(graft.entry, |entry, name| {
                index.child(entry, name).filter(|child| !self.moved.contains(child))
            });
            index.entry(found?)
        })
    }
}

/// What follows `base` in `path`, if it lies below it.
fn below<'a>(path: &'a [u8], base: &[u8]) -> Option<&'a [u8]> {
    match base.is_empty() {
        true => (!path.is_empty()).then_some(path),
        false => path.strip_prefix(base)?.strip_prefix(b"/"),
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
    /// The grafts of layer `number`; waits for it to be complete.
    pub(super) async fn grafts(&self, number: usize) -> Result<Arc<Grafts>, TreeError> {
        let cell = &self.grafts[number];
        cell.get_or_try_init(|| async move {
            match number {
                0 => Ok(Arc::default()),
                _ => {
                    let find = |tree: Arc<Tree>| async move { tree.find_grafts(number).await };
                    self.apart(find).await.map(Arc::new)
                }
            }
        })
        .await
        .cloned()
    }

    /// What layer `at.layer` has under `name` in `dir`, when `own` is the implied directory, solid or not, that its tar
    /// has there. Waits for the layer to be complete.
    pub(super) async fn with_grafted(
        &self,
        dir: &Arc<Dir>,
        at: Contribution,
        name: &[u8],
        own: Option<(Contribution, bool)>,
    ) -> Result<Child, TreeError> {
        let grafts = self.grafts(at.layer).await?;
        let moved = |entry| grafts.moved.contains(&entry);
        let own = own.filter(|(own, _)| !own.entry.is_some_and(moved));
        let mut leaf: Option<(EntryId, (usize, EntryId))> = None;
        // Directories go together; their attributes are those of the last that is declared.
        let mut directory = own;
        let bare = Contribution {
            layer: at.layer,
            entry: None,
            attrs: None,
            visible: true,
        };
        for entry in grafts.found(&join(&dir.path, name)) {
            if never_shown(entry.name, entry.kind) {
                continue;
            }
            if entry.kind != Kind::Directory {
                let target = self.follow(at.layer, entry.id, entry.kind).await?;
                if let Some(target) = target.filter(|_| leaf.is_none_or(|(other, _)| entry.id > other)) {
                    leaf = Some((entry.id, target));
                }
                continue;
            }
            let (contribution, exists) = directory.get_or_insert((bare, false));
            contribution.entry = contribution.entry.or(Some(entry.id));
            contribution.attrs = contribution.attrs.max((!entry.implied).then_some(entry.id));
            *exists |= entry.solid;
        }
        if let Some((entry, (layer, target))) = leaf
            && directory.is_none_or(|(directory, _)| Some(entry) > directory.entry)
        {
            return Ok(Child::Leaf(layer, target));
        }
        for (_, exists) in grafts.names_in(&dir.path).filter(|(on_the_way, _)| *on_the_way == name) {
            directory.get_or_insert((bare, false)).1 |= exists;
        }
        Ok(match directory {
            Some((contribution, solid)) => Child::Directory { contribution, solid },
            None => Child::Nothing,
        })
    }

    /// A number for the directory `name` in `dir`, which exists only because layer `number` has a graft below it.
    pub(super) async fn bare_ino(&self, dir: &Arc<Dir>, number: usize, name: &[u8]) -> Result<Ino, TreeError> {
        let grafts = self.grafts(number).await?;
        let path = join(&dir.path, name);
        let depth = path.iter().filter(|byte| **byte == b'/').count();
        let first = grafts
            .grafts
            .iter()
            .position(|graft| below(&graft.path, &path).is_some())
            .unwrap_or(0);
        // A path is at most 4096 bytes, so it has fewer than 4096 names.
        Ok(Ino::bare(
            number,
            (first as u32).wrapping_mul(4096).wrapping_add(depth as u32),
        ))
    }

    /// Where the directories of layer `number` land that no entry declares.
    fn find_grafts(&self, number: usize) -> BoxFuture<'_, Result<Grafts, TreeError>> {
        async move {
            let index = self.layers[number].complete().await?;
            let mut found = Grafts::default();
            // Where the lower layers have what the layer's own directory would be merged with; none if nowhere.
            let mut lower: HashMap<EntryId, Option<Arc<Dir>>> = HashMap::new();
            for id in implied_and_above(&index) {
                let Some(entry) = index.entry(id) else { continue };
                let place = match id {
                    EntryId::ROOT => Some(Dir::root(number)),
                    _ => match lower.get(&entry.parent) {
                        Some(Some(parent)) if !hides_lower(&index, &entry) => {
                            let parent = parent.clone();
                            match self.resolve(&parent, entry.name).await? {
                                Some(Found::Directory(dir)) => Some(dir),
                                Some(Found::Leaf(layer, leaf))
                                    if entry.implied && self.symlink_target(layer, leaf)?.is_some() =>
                                {
                                    found.moved.insert(id);
                                    self.graft(number, &parent, &entry, &mut found).await?
                                }
                                _ => None,
                            }
                        }
                        _ => None,
                    },
                };
                lower.insert(id, place);
            }
            found.index = Some(index.clone());
            Ok(found)
        }
        .boxed()
    }

    /// Grafts `entry`, in whose place in `parent` there is a symlink, to where that points. Gives what lower layers have
    /// there.
    async fn graft(
        &self,
        number: usize,
        parent: &Dir,
        entry: &Entry<'_>,
        found: &mut Grafts,
    ) -> Result<Option<Arc<Dir>>, TreeError> {
        let moment = Moment {
            layer: number,
            entry: entry.id,
        };
        let target = self.walk(moment, &join(&parent.path, entry.name), true).await?;
        if target.looped {
            let name = entry.name.escape_ascii();
            tracing::warn!("layer {number}: what is in '{name}' is left out: it is a loop of symlinks");
            return Ok(None);
        }
        let mut names = target.path.split(|byte| *byte == b'/');
        let hidden = names.any(|name| never_shown(name, Kind::Directory));
        found.grafts.push(Graft {
            path: target.path,
            entry: entry.id,
            solid: entry.solid && !hidden,
        });
        match target.found {
            Some(Found::Directory(dir)) => Ok(Some(dir)),
            _ => Ok(None),
        }
    }
}

/// The directories of a layer that only their children imply, and all that they are in; parents first, as they have the
/// smaller numbers. What was replaced later is not among them.
fn implied_and_above(index: &LayerIndex) -> BTreeSet<EntryId> {
    let mut chosen = BTreeSet::new();
    let implied = |id: &EntryId| {
        let entry = index.entry(*id);
        entry.is_some_and(|entry| entry.kind == Kind::Directory && entry.implied)
    };
    for id in (1..index.len()).map(EntryId).filter(implied) {
        let mut above = Vec::new();
        let mut at = id;
        // Those that are chosen already are known to be reachable.
        let reachable = loop {
            if at == EntryId::ROOT || chosen.contains(&at) {
                break true;
            }
            match index.entry(at) {
                Some(entry) if index.child(entry.parent, entry.name) == Some(at) => {
                    above.push(at);
                    at = entry.parent;
                }
                _ => break false,
            }
        };
        if reachable {
            chosen.insert(EntryId::ROOT);
            chosen.extend(above);
        }
    }
    chosen
}

/// Whether names lead to an entry of a layer: it, and no directory that it is in, was replaced by a later one.
pub(super) fn reachable(entries: &dyn Entries, id: EntryId) -> bool {
    let mut at = id;
    while at != EntryId::ROOT {
        match entries.entry(at) {
            Some(entry) if entries.child(entry.parent, entry.name) == Some(at) => at = entry.parent,
            _ => return false,
        }
    }
    true
}

/// Whether the layer itself hides what lower layers have at the place of `entry`, in a directory that it does not hide.
fn hides_lower(index: &LayerIndex, entry: &Entry<'_>) -> bool {
    let opaque = index.entry(entry.parent).is_some_and(|parent| parent.opaque);
    opaque || hides(index, entry.parent, entry.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_needs_a_whole_name() {
        assert_eq!(below(b"usr/lib/x", b"usr/lib"), Some(&b"x"[..]));
        assert_eq!(below(b"usr/lib", b"usr/lib"), None);
        assert_eq!(below(b"usr/lib64", b"usr/lib"), None);
        assert_eq!(below(b"usr", b""), Some(&b"usr"[..]));
        assert_eq!(below(b"", b""), None);
    }
}
