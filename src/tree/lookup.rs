//! Finding a name in a directory, merged or of one layer.

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::contribution::{Child, Dir, never_shown};
use super::{Attr, Ino, Tree, TreeError};
use crate::index::{EntryId, Kind};
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
        let nothing = String::new;
        let mut scans = FuturesUnordered::new();
        let pairs = self.layers.get(..top).unwrap_or_default().windows(2).rev();
        for (below, above) in pairs.filter_map(|pair| Some((pair.first()?, pair.last()?))) {
            let far = |view: View<'_>| (view.complete() || view.compressed() >= SCOUT).then(|| view.complete());
            let mut far = pin!(above.ask(Want::ToWatch, nothing, far));
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
                        _ = above.ask(Want::ToWatch, nothing, |view| view.complete().then_some(())) => {}
                        _ = below.ask(Want::Little, nothing, |view| view.complete().then_some(())) => {}
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
                            None => self.bare_ino(dir, contribution.layer, name).await?,
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

    /// What `path` in the image of the layers below `top` is, symlinks in its parent part followed inside the root.
    pub(super) async fn walk(&self, top: usize, path: &[u8], follow_last: bool) -> Result<Walked, TreeError> {
        let root = Dir::root(top);
        let mut dirs = vec![root];
        let mut todo: Vec<Vec<u8>> = split(path);
        todo.reverse();
        let mut missing: Vec<Vec<u8>> = Vec::new();
        let mut leaf = None;
        let mut hops = 0;
        let mut looped = false;
        while let Some(name) = todo.pop() {
            if name == b".." {
                // As a name that does not exist, one that is no directory is left by `..` as if it were one.
                if missing.pop().is_none() && dirs.len() > 1 {
                    dirs.pop();
                } else if missing.is_empty() {
                    leaf = None;
                }
                continue;
            }
            if !missing.is_empty() || leaf.is_some() {
                missing.push(name);
                continue;
            }
            let Some(dir) = dirs.last().cloned() else { break };
            match self.resolve(&dir, &name).await? {
                None => missing.push(name),
                Some(Found::Directory(dir)) => dirs.push(dir),
                Some(Found::Leaf(layer, entry)) => {
                    let target = match todo.is_empty() && !follow_last {
                        true => None,
                        false => self.symlink_target(layer, entry)?,
                    };
                    match target {
                        Some(target) if hops < MOST_SYMLINKS => {
                            hops += 1;
                            if target.starts_with(b"/") {
                                dirs.truncate(1);
                            }
                            todo.extend(split(&target).into_iter().rev());
                        }
                        target => {
                            looped |= target.is_some();
                            leaf = Some((layer, entry));
                            missing.push(name);
                        }
                    }
                }
            }
        }
        let mut whole: Vec<u8> = dirs.last().map(|dir| dir.path.to_vec()).unwrap_or_default();
        for name in &missing {
            if !whole.is_empty() {
                whole.push(b'/');
            }
            whole.extend_from_slice(name);
        }
        let found = match (leaf, missing.len()) {
            (Some((layer, entry)), 1) => Some(Found::Leaf(layer, entry)),
            (None, 0) => dirs.pop().map(Found::Directory),
            _ => None,
        };
        let path = whole;
        Ok(Walked { path, found, looped })
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

/// Where a path leads.
#[derive(Debug)]
pub(super) struct Walked {
    /// Without symlinks, from the root.
    pub path: Vec<u8>,
    /// What is there; None if nothing is, or if something on the way is no directory.
    pub found: Option<Found>,
    /// Whether there were more symlinks on the way than are followed.
    pub looped: bool,
}

/// The names in a path, without empty ones and `.`.
fn split(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}
