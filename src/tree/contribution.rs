//! What a merged directory is made of.
//!
//! A merged directory is a stack of *contributions*, top layer first: the directories of that path in the single layers.
//! The stack is found one by one, as far as a question needs it, because to pass below a contribution it must be
//! proven that its layer hides nothing: neither the directory by a whiteout nor its lower children by an opaque
//! marker. So the layer must have been scanned to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};

use super::extraction::{Extraction, join};
use super::{Ino, Tree, TreeError};
use crate::index::{Entries, Entry, EntryId, Kind, WHITEOUT, never_shown};
use crate::layer::{View, Want};

/// What a whiteout's name hides; none if it is no whiteout, or one that has no effect on other names.
pub(super) fn hidden_by<'a>(whiteout: &Entry<'a>) -> Option<&'a [u8]> {
    let name = whiteout.name.strip_prefix(WHITEOUT)?;
    // A directory in the place of a whiteout was a whiteout before.
    (!name.starts_with(WHITEOUT) && (whiteout.kind == Kind::File || whiteout.replacing)).then_some(name)
}

/// A merged directory.
#[derive(Debug)]
pub(super) struct Dir {
    pub ino: Ino,
    /// Only layers below this one are looked at: all of them for what the mount shows, fewer to find out what a
    /// layer was extracted over.
    pub top: usize,
    /// The directory that it is in and its name there; none for the root.
    pub parent: Option<(Arc<Dir>, Box<[u8]>)>,
    found: Mutex<Found>,
    /// Counts when what was found before may be otherwise.
    epoch: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Found {
    contributions: Vec<Contribution>,
    /// How many of the parent's contributions were looked at.
    looked_at: usize,
    /// Whether one of the contributions found is opaque.
    opaque: bool,
    /// Whether there are no more.
    closed: bool,
    /// The epoch that it was found in.
    epoch: u64,
}

/// What was found by looking at one more layer.
#[derive(Debug, Clone, Copy)]
struct Step {
    contribution: Option<Contribution>,
    /// Whether what was found before is opaque.
    opaque: bool,
}

/// The directory that one layer adds to a merged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contribution {
    pub layer: usize,
    /// The layer's directory. None if it has none there, and only something that a symlink leads there, or further below.
    pub entry: Option<EntryId>,
    /// Which directory of the layer has its attributes, if the layer declares them, or may do so yet.
    pub attrs: Option<EntryId>,
    /// Whether its children are seen. Below an opaque marker they are not; but if no layer above has declared the
    /// directory itself, its attributes still come from here.
    pub visible: bool,
}

impl Contribution {
    /// What layer `layer` adds to the root. Whether it declares it may be known only later.
    pub(super) fn root(layer: usize) -> Contribution {
        Contribution {
            layer,
            entry: Some(EntryId::ROOT),
            attrs: Some(EntryId::ROOT),
            visible: true,
        }
    }
}

/// What one layer has under a name in a merged directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Child {
    Nothing,
    Directory {
        contribution: Contribution,
        /// Whether it exists because of this layer. If not, it is only on the way to whiteouts, which do something to
        /// what lower layers have and make nothing appear.
        solid: bool,
    },
    /// Anything else: the entry of a layer that it is, hard links followed. One that leads nowhere is nothing.
    Leaf(usize, EntryId),
}

/// What a layer's own tar has under a name in one of its directories.
enum Own {
    Nothing,
    Directory(Contribution, bool),
    Leaf(EntryId, Kind),
}

impl Dir {
    pub(super) fn root(top: usize, epoch: &Arc<AtomicU64>) -> Arc<Dir> {
        Arc::new(Dir {
            ino: Ino::ROOT,
            top,
            parent: None,
            found: Mutex::default(),
            epoch: epoch.clone(),
        })
    }

    /// The directory `name` in `parent`, with the number `ino`.
    pub(super) fn new(parent: &Arc<Dir>, name: &[u8], ino: Ino) -> Arc<Dir> {
        Arc::new(Dir {
            ino,
            top: parent.top,
            parent: Some((parent.clone(), name.into())),
            found: Mutex::default(),
            epoch: parent.epoch.clone(),
        })
    }

    /// Its path from the root, with slashes between names. It is not kept: there may be millions of directories, and a path
    /// can have four kibibytes.
    pub(super) fn path(&self) -> Vec<u8> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = self;
        while let Some((parent, name)) = &at.parent {
            names.push(name);
            at = parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// What was found and still holds.
    fn found(&self) -> MutexGuard<'_, Found> {
        let mut found = self.found.lock();
        let epoch = self.epoch.load(Ordering::Acquire);
        if found.epoch != epoch {
            *found = Found {
                epoch,
                ..Found::default()
            };
        }
        found
    }

    /// Whether `entry` of `layer` is known to be part of it.
    pub(super) fn has(&self, layer: usize, entry: EntryId) -> bool {
        self.found()
            .contributions
            .iter()
            .any(|found| found.layer == layer && found.entry == Some(entry))
    }

    /// The contributions found so far, and whether there can be no more.
    pub(super) fn known(&self) -> (Vec<Contribution>, bool) {
        let found = self.found();
        (found.contributions.clone(), found.closed)
    }

    /// The `k`th contribution, or that there is none; `None` if that is not known yet.
    fn nth(&self, k: usize) -> Option<Option<Contribution>> {
        let found = self.found();
        match found.contributions.get(k) {
            Some(contribution) => Some(Some(*contribution)),
            None => found.closed.then_some(None),
        }
    }

    /// How many of the parent's contributions were looked at, and the last contribution found.
    fn progress(&self) -> (usize, Option<Contribution>) {
        let found = self.found();
        (found.looked_at, found.contributions.last().copied())
    }

    /// Notes what was found when `looked_at` of the parent's contributions had been looked at. Another task may have
    /// come here first: then both have found the same.
    fn note(&self, looked_at: usize, step: Option<Step>) {
        let mut found = self.found();
        if found.looked_at != looked_at || found.closed {
            return;
        }
        let Some(step) = step else {
            found.closed = true;
            return;
        };
        found.looked_at += 1;
        found.opaque |= step.opaque;
        let visible = !found.opaque;
        let contribution = step.contribution.map(|found| Contribution { visible, ..found });
        found.contributions.extend(contribution);
    }
}

impl Tree {
    /// The `k`th contribution to `dir` from the top; None if it has fewer.
    pub(super) fn contribution<'a>(
        &'a self,
        dir: &'a Arc<Dir>,
        k: usize,
    ) -> BoxFuture<'a, Result<Option<Contribution>, TreeError>> {
        async move {
            // A directory takes a step for each contribution of its parent. What has to be known first lies on top;
            // a stack of our own, because paths can be deeper than the thread's allows.
            let mut todo = vec![(dir.clone(), k)];
            while let Some((dir, k)) = todo.last().cloned() {
                if dir.nth(k).is_some() {
                    todo.pop();
                    continue;
                }
                let (looked_at, last) = dir.progress();
                let step = match &dir.parent {
                    None => self.root_step(&dir, last, looked_at).await?,
                    Some((parent, name)) => match parent.nth(looked_at) {
                        None => {
                            todo.push((parent.clone(), looked_at));
                            continue;
                        }
                        Some(next) => self.step(&dir, (parent, name), last, (looked_at, next)).await?,
                    },
                };
                dir.note(looked_at, step);
            }
            Ok(dir.nth(k).flatten())
        }
        .boxed()
    }

    /// Adds one more layer to the root; None if there is none.
    async fn root_step(
        &self,
        dir: &Arc<Dir>,
        last: Option<Contribution>,
        looked_at: usize,
    ) -> Result<Option<Step>, TreeError> {
        let Some(layer) = dir.top.checked_sub(looked_at + 1) else {
            return Ok(None);
        };
        let opaque = match last {
            Some(last) => self.opaque(dir, last).await?,
            None => false,
        };
        Ok(Some(Step {
            contribution: Some(Contribution::root(layer)),
            opaque,
        }))
    }

    /// Looks for `dir` in `next`, the contribution number `looked_at` of its parent; None if nothing from there on can
    /// add to it.
    async fn step(
        &self,
        dir: &Arc<Dir>,
        (parent, name): (&Arc<Dir>, &[u8]),
        last: Option<Contribution>,
        (looked_at, next): (usize, Option<Contribution>),
    ) -> Result<Option<Step>, TreeError> {
        let mut opaque = false;
        let above = looked_at.checked_sub(1).and_then(|above| parent.nth(above).flatten());
        let Some(next) = next.filter(|next| next.visible) else {
            return Ok(None);
        };
        if let Some(above) = above {
            if self.hides(parent, above, name).await? {
                return Ok(None);
            }
            if let Some(last) = last.filter(|last| last.layer == above.layer) {
                opaque = self.opaque(dir, last).await?;
            }
        }
        let contribution = match self.child(parent, next, name).await? {
            Child::Directory { contribution, .. } => Some(contribution),
            Child::Nothing => None,
            Child::Leaf(..) => return Ok(None),
        };
        Ok(Some(Step { contribution, opaque }))
    }

    /// What `at` has under `name` in `dir`. Answers as soon as an entry for it has been seen; that there is none, or,
    /// above the base, only a directory that its children imply, is said when the layer is complete.
    pub(super) async fn child(&self, dir: &Arc<Dir>, at: Contribution, name: &[u8]) -> Result<Child, TreeError> {
        let layer = at.layer;
        if let Some(extraction) = self.extraction_of_complete(layer).await? {
            return Ok(extraction.child(&dir.path(), name));
        }
        let own = match at.entry {
            None => Own::Nothing,
            Some(directory) => {
                let wanted: Box<[u8]> = name.into();
                let what = || String::from_utf8_lossy(&join(&dir.path(), name)).into_owned();
                self.layers[layer]
                    .ask(Want::Little, what, move |view| {
                        let entries = view.entries();
                        if is_undecided(view, layer) {
                            return None;
                        }
                        let Some(entry) = entries.child(directory, &wanted).and_then(|id| entries.entry(id)) else {
                            return view.complete().then_some(Own::Nothing);
                        };
                        if entry.kind != Kind::Directory {
                            // A later entry may put a directory in the place of a whiteout.
                            return match never_shown(entry.name, entry.kind) {
                                true => view.complete().then_some(Own::Nothing),
                                false => Some(Own::Leaf(entry.id, entry.kind)),
                            };
                        }
                        // Below the base there is no symlink that its children could have been meant to follow, and
                        // nothing that could declare it: that it exists is certain, its attributes can wait.
                        let growing = entry.implied && !view.complete();
                        if growing && !(layer == 0 && entry.solid) {
                            return None;
                        }
                        let contribution = Contribution {
                            layer,
                            entry: Some(entry.id),
                            attrs: (growing || !entry.implied).then_some(entry.id),
                            visible: true,
                        };
                        Some(Own::Directory(contribution, entry.solid))
                    })
                    .await?
            }
        };
        if let Some(extraction) = self.extraction_of_complete(layer).await? {
            return Ok(extraction.child(&dir.path(), name));
        }
        let own = match own {
            // Told at once. What the layer may have there by way of a symlink below is known only when it is complete.
            Own::Directory(contribution, solid) if contribution.attrs.is_some() => {
                return Ok(Child::Directory { contribution, solid });
            }
            Own::Leaf(entry, kind) => match self.follow(layer, entry, kind).await? {
                Some((layer, entry)) => return Ok(Child::Leaf(layer, entry)),
                // A hard link to nothing was never made.
                None => Child::Nothing,
            },
            Own::Directory(contribution, solid) => Child::Directory { contribution, solid },
            Own::Nothing => Child::Nothing,
        };
        Ok(match self.extraction(layer).await? {
            Some(extraction) => extraction.child(&dir.path(), name),
            None => own,
        })
    }

    /// Whether the layer of `at` hides `name` in `dir` from the layers below.
    pub(super) async fn hides(&self, dir: &Arc<Dir>, at: Contribution, name: &[u8]) -> Result<bool, TreeError> {
        let wanted: Box<[u8]> = name.into();
        let own = move |entries: &dyn Entries, directory| hides(entries, directory, &wanted);
        self.prove(dir, at, own, |extraction| extraction.hides(&dir.path(), name))
            .await
    }

    /// Whether `at` hides all children that lower layers have in `dir`.
    pub(super) async fn opaque(&self, dir: &Arc<Dir>, at: Contribution) -> Result<bool, TreeError> {
        let own = |entries: &dyn Entries, directory| entries.entry(directory).is_some_and(|entry| entry.opaque);
        self.prove(dir, at, own, |extraction| extraction.opaque(&dir.path()))
            .await
    }

    /// Whether `own` holds for the directory that the layer of `at` has at `dir`, or `laid_out` for how it lies over
    /// those below. True as soon as it does, false when the layer is complete.
    async fn prove(
        &self,
        dir: &Arc<Dir>,
        at: Contribution,
        own: impl Fn(&dyn Entries, EntryId) -> bool + Send + 'static,
        laid_out: impl Fn(&Extraction) -> bool,
    ) -> Result<bool, TreeError> {
        if let Some(extraction) = self.extraction_of_complete(at.layer).await? {
            return Ok(laid_out(&extraction));
        }
        let own = match at.entry {
            None => false,
            Some(directory) => {
                let what = || format!("whiteouts in {}", String::from_utf8_lossy(&dir.path()));
                let told = move |view: View<'_>| {
                    let found = !is_undecided(view, at.layer) && own(view.entries(), directory);
                    (found || view.complete()).then_some(found)
                };
                self.layers[at.layer].ask(Want::Little, what, told).await?
            }
        };
        if own && self.layers[at.layer].index().is_none() {
            return Ok(true);
        }
        let extraction = self.extraction(at.layer).await?;
        Ok(extraction.map_or(own, |extraction| laid_out(&extraction)))
    }
}

/// Whether it will be known only at the end where the entries of a layer are over those below.
fn is_undecided(view: View<'_>, layer: usize) -> bool {
    layer > 0 && !view.complete() && view.entries().written_otherwise()
}

/// Whether a layer hides what lower layers have under `name` in its directory `directory`: by a whiteout, or because
/// something else was there in the layer before the directory that it has there now.
pub(super) fn hides(entries: &dyn Entries, directory: EntryId, name: &[u8]) -> bool {
    let child = |name: &[u8]| entries.child(directory, name).and_then(|id| entries.entry(id));
    if child(name).is_some_and(|entry| entry.replacing && entry.kind == Kind::Directory) {
        return true;
    }
    child(&[WHITEOUT, name].concat()).is_some_and(|whiteout| hidden_by(&whiteout).is_some())
}
