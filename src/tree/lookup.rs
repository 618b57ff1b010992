//! Finding a name in a directory, merged or of one layer.

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::contribution::{Child, Dir};
use super::extraction::join;
use super::{Attr, Ino, Tree, TreeError};
use crate::index::{Entries, EntryId, Kind, never_shown};
use crate::layer::{View, Want};

/// Compressed bytes of a layer in which an answer is looked for before the layer below is scanned as well. Small
/// layers on top, which most images have, are so looked through for nothing but themselves.
const SCOUT: u64 = 1 << 20;

/// The most symlinks that are followed in one path, as in Linux.
pub(super) const MOST_SYMLINKS: usize = 40;

/// What a name in a merged directory stands for.
#[derive(Debug, Clone)]
pub(super) enum Found {
    Directory(Arc<Dir>),
    /// Anything else: an entry of a layer, hard links followed.
    Leaf(usize, EntryId),
}

impl Tree {
    /// [`Tree::resolve`], while the layers that are likely to be asked next are scanned as well.
    pub(super) async fn resolve_scouting(&self, dir: &Arc<Dir>, name: &[u8]) -> Result<Option<Found>, TreeError> {
        tokio::select! {
            biased;
            found = self.resolve(dir, name) => found,
            never = self.scout(dir.top) => match never {},
        }
    }

    /// Scans each layer below `top` while the one above it is being scanned for long. Never ends.
    async fn scout(&self, top: usize) -> Infallible {
        let what = || "what may be asked for next".to_owned();
        let mut scans = FuturesUnordered::new();
        let pairs = self.layers.get(..top).unwrap_or_default().windows(2).rev();
        for (below, above) in pairs.filter_map(|pair| Some((pair.first()?, pair.last()?))) {
            let far = |view: View<'_>| (view.complete() || view.compressed() >= SCOUT).then(|| view.complete());
            let mut far = pin!(above.ask(Want::ToWatch, what, far));
            let complete = loop {
                tokio::select! {
                    far = &mut far => break far,
                    Some(()) = scans.next() => {}
                }
            };
            match complete {
                // Once the layer above is complete, the question knows by itself how much of this one it needs.
                Ok(true) => {}
                Ok(false) => scans.push(async move {
                    tokio::select! {
                        _ = above.ask(Want::ToWatch, what, |view| view.complete().then_some(())) => {}
                        _ = below.ask(Want::Little, what, |view| view.complete().then_some(())) => {}
                    }
                }),
                // An error is met again, and told, by the question itself if it gets there.
                Err(_) => break,
            }
        }
        while scans.next().await.is_some() {}
        pending().await
    }

    /// What `name` in the merged directory `dir` is; None if it is proven that there is nothing.
    pub(super) fn resolve<'a>(
        &'a self,
        dir: &'a Arc<Dir>,
        name: &'a [u8],
    ) -> BoxFuture<'a, Result<Option<Found>, TreeError>> {
        async move {
            if never_shown(name, Kind::Directory) {
                return Ok(None);
            }
            // The topmost directory of that name, as long as only its children say that it is one.
            let mut implied = None;
            for k in 0.. {
                let Some(at) = self.contribution(dir, k).await?.filter(|at| at.visible) else {
                    break;
                };
                match self.child(dir, at, name).await? {
                    Child::Directory {
                        contribution,
                        solid: true,
                    } => {
                        let ino = match contribution.entry {
                            Some(entry) => Ino::merged(contribution.layer, entry),
                            None => self.bare_ino(contribution.layer, &join(&dir.path(), name)),
                        };
                        implied.get_or_insert_with(|| Dir::new(dir, name, ino));
                        if contribution.attrs.is_some() {
                            break;
                        }
                    }
                    Child::Nothing | Child::Directory { .. } => {}
                    Child::Leaf(layer, entry) => match implied {
                        Some(_) => break,
                        None => return Ok(Some(Found::Leaf(layer, entry))),
                    },
                }
                if self.hides(dir, at, name).await? {
                    break;
                }
            }
            Ok(implied.map(Found::Directory))
        }
        .boxed()
    }

    /// What `path` is at the moment at which a layer's entry is extracted, symlinks in its parent part followed inside the
    /// root. The last name is not followed: it is what the layers below have there, if the layer declares no directory.
    pub(super) async fn walk(&self, moment: Moment, path: &[u8]) -> Result<Walked, TreeError> {
        let root = Dir::root(moment.layer, &self.epoch);
        // Names, with what the layer's tar and the layers below have there.
        let mut way: Vec<(Vec<u8>, Option<EntryId>, Option<Found>)> = Vec::new();
        let mut todo: Vec<Vec<u8>> = split(path);
        todo.reverse();
        let mut hops = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                // What is no directory, or does not exist, is left by `..` as if it were one.
                way.pop();
                continue;
            }
            let lower = match way.last() {
                None => self.resolve(&root, &name).await?,
                Some((_, _, Some(Found::Directory(dir)))) => self.resolve(dir, &name).await?,
                Some(_) => None,
            };
            let parent = way.last().map_or(Some(EntryId::ROOT), |(_, own, _)| *own);
            let (here, own) = self.layers[moment.layer].glance(|view| {
                let here = parent.and_then(|parent| view.entries().child(parent, &name));
                let own = here.and_then(|here| Earlier::at(view.entries(), here, moment.entry));
                (here, own)
            })?;
            let own = own.filter(|own| !todo.is_empty() || matches!(own, Earlier::Directory));
            let target = match (&own, &lower) {
                _ if todo.is_empty() => None,
                (Some(Earlier::Symlink(target)), _) => Some(target.clone()),
                (None, Some(Found::Leaf(layer, entry))) => self.symlink_target(*layer, *entry)?,
                _ => None,
            };
            if let Some(target) = target.filter(|_| hops < MOST_SYMLINKS) {
                hops += 1;
                if target.starts_with(b"/") {
                    way.clear();
                }
                todo.extend(split(&target).into_iter().rev());
                continue;
            }
            let found = match (own, lower) {
                (None, lower) => lower,
                (Some(Earlier::Directory), Some(Found::Directory(dir))) => Some(Found::Directory(dir)),
                (Some(_), _) => None,
            };
            way.push((name, here, found));
        }
        let path = path_of(way.iter().map(|(name, ..)| name));
        let found = match way.pop() {
            Some((.., found)) => found,
            None => Some(Found::Directory(root)),
        };
        Ok(Walked { path, found })
    }

    /// Where an entry points if it is a symlink.
    pub(super) fn symlink_target(&self, layer: usize, entry: EntryId) -> Result<Option<Vec<u8>>, TreeError> {
        Ok(self.layers[layer].glance(|view| {
            let entry = view.entries().entry(entry)?;
            (entry.kind == Kind::Symlink).then(|| entry.link.to_vec())
        })?)
    }

    /// What `name` in the directory `directory` of layer `number` is, hard links followed.
    pub(super) async fn own_child(
        &self,
        number: usize,
        directory: EntryId,
        name: &[u8],
    ) -> Result<Option<(usize, EntryId)>, TreeError> {
        let layer = self.layer(number, Ino::own(number, directory))?;
        let wanted: Box<[u8]> = name.into();
        let what = || String::from_utf8_lossy(name).into_owned();
        let found = layer
            .ask(Want::Little, what, move |view| {
                let entries = view.entries();
                match entries.child(directory, &wanted).and_then(|id| entries.entry(id)) {
                    Some(entry) => Some(Some((entry.id, entry.kind))),
                    None => view.complete().then_some(None),
                }
            })
            .await?;
        match found {
            Some((entry, kind)) => self.follow(number, entry, kind).await,
            None => Ok(None),
        }
    }

    /// What `name` in the directory of the layers is.
    pub(super) async fn lookup_layers(&self, name: &[u8]) -> Result<Option<Attr>, TreeError> {
        match name {
            b"manifest.json" => return self.getattr(Ino::MANIFEST).map(Some),
            b"config.json" => return self.getattr(Ino::CONFIG).map(Some),
            _ => {}
        }
        let number = std::str::from_utf8(name)
            .ok()
            .and_then(|text| text.parse::<usize>().ok());
        if let Some(number) = number.filter(|n| *n < self.layers.len() && n.to_string().as_bytes() == name) {
            return self.own_attr(number, EntryId::ROOT).map(Some);
        }
        // The image's own directory of that name stays visible beside the numbers.
        let Some(layers_dir) = &self.options.layers_dir else {
            return Ok(None);
        };
        match self.resolve_scouting(&self.root, layers_dir).await? {
            Some(Found::Directory(dir)) => {
                let found = self.resolve_scouting(&dir, name).await?;
                self.attr_of(found).await
            }
            _ => Ok(None),
        }
    }
}

/// The moment at which an entry of a layer is extracted: over the result of the layers below, and over what came before
/// the entry in its own layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub layer: usize,
    pub entry: EntryId,
}

/// What a layer itself has put somewhere by then.
enum Earlier {
    Symlink(Vec<u8>),
    Directory,
    Other,
}

impl Earlier {
    /// What `entry` of a layer's tar is, if it came before the entry `before`. A directory that none declares is nothing:
    /// whether there is one depends on what the layers below have.
    fn at(entries: &dyn Entries, entry: EntryId, before: EntryId) -> Option<Earlier> {
        let entry = entries.entry(Some(entry).filter(|entry| *entry < before)?)?;
        match entry.kind {
            Kind::Directory => (!entry.implied).then_some(Earlier::Directory),
            Kind::Symlink => Some(Earlier::Symlink(entry.link.to_vec())),
            _ => Some(Earlier::Other),
        }
    }
}

/// The entry that a layer's tar has at `path`.
pub(super) fn at_path(entries: &dyn Entries, path: &[u8]) -> Option<EntryId> {
    let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    names.try_fold(EntryId::ROOT, |entry, name| entries.child(entry, name))
}

/// Names with slashes between them.
fn path_of<'a>(names: impl Iterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    names.map(Vec::as_slice).collect::<Vec<_>>().join(&b'/')
}

/// Where a path leads.
#[derive(Debug)]
pub(super) struct Walked {
    /// Without symlinks, from the root.
    pub path: Vec<u8>,
    /// What is there; None if nothing is, or if something on the way is no directory.
    pub found: Option<Found>,
}

/// The names in a path, without empty ones and `.`.
pub(super) fn split(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}
