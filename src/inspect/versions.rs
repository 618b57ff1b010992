//! What the merged view hides, and which layer saw to that.
//!
//! The image is looked at as each layer left it. A name that is the same entry from one layer to the next is one
//! version; where it changes, the layer above did something. So no rule of whiteouts, opaque directories or links is
//! known here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::view::{join, names};
use super::{Entry, Follow, Hidden, InspectError, Inspector, Node, View};
use crate::index::{Entries, EntryId, Kind, LayerIndex};
use crate::tree::Ino;

/// A directory, or where one was, as each layer left it.
#[derive(Debug)]
pub(super) struct Place {
    path: Vec<u8>,
    /// In the order of the layers; those are left out that do nothing at or below the path.
    pub(super) steps: Vec<Step>,
    names: BTreeMap<Box<[u8]>, Vec<Run>>,
}

/// The place as one layer left it.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) layer: usize,
    pub(super) view: View,
    pub(super) state: State,
}

/// What is at a place.
#[derive(Debug, Clone)]
pub(super) enum State {
    Directory(Arc<Node>),
    /// Something else, or there is something else in the place of a directory that it was in.
    Replaced,
    Nothing,
}

/// A name that is the same entry from one step to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) from: usize,
    /// The last step.
    pub(super) to: usize,
    ino: Ino,
    pub(super) kind: Kind,
}

impl Inspector {
    /// Waits until all layers are known.
    ///
    /// # Errors
    /// [`InspectError::Tree`].
    pub async fn complete(&self) -> Result<Vec<Arc<LayerIndex>>, InspectError> {
        let scans = self.layers().iter().map(|layer| layer.complete());
        let indexes = futures_util::future::join_all(scans).await;
        let indexes: Result<_, _> = indexes.into_iter().collect();
        Ok(indexes.map_err(crate::tree::TreeError::from)?)
    }

    /// The path, without symlinks, that `path` leads to in the image as the topmost layer left it that has something
    /// there, and whether that is a directory.
    ///
    /// # Errors
    /// [`InspectError::NotFound`] if no layer has it, [`InspectError::Tree`].
    pub async fn newest(&self, path: &[u8]) -> Result<(Vec<u8>, bool), InspectError> {
        let mut first = None;
        for number in (0..self.layers().len()).rev() {
            match self.stage(number)?.resolve(path, Follow::Parents).await {
                Ok(node) => return Ok((node.path.clone(), node.is_directory())),
                Err(error) if error.is_not_found() => drop(first.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        let path = path.strip_prefix(b"/").unwrap_or(path).to_vec();
        Err(first.unwrap_or(InspectError::NotFound { path }))
    }

    /// All versions of what is at `path` itself, the newest first. Contents are not looked at.
    ///
    /// # Errors
    /// [`InspectError::NotFound`] if no layer has anything there, [`InspectError::Tree`].
    pub async fn versions(&self, path: &[u8]) -> Result<Vec<Entry>, InspectError> {
        self.complete().await?;
        let (path, _) = self.newest(path).await?;
        let (parent, name) = split(&path);
        Place::at(self, parent).await?.versions(self, name).await
    }

    /// Whether all layers are known, so that [`Inspector::versions`] needs to fetch nothing.
    pub fn is_complete(&self) -> bool {
        self.layers().iter().all(|layer| layer.index().is_some())
    }

    /// Whether the paths of a layer's entries are those in the image: it declares the directories of all of them, so
    /// that none of them can be below a symlink of a lower layer.
    fn is_plain(&self, layer: usize) -> bool {
        let Some(cell) = self.plain.get(layer) else {
            return false;
        };
        *cell.get_or_init(|| {
            let Some(index) = self.layers().get(layer).and_then(|layer| layer.index()) else {
                return false;
            };
            let implied = |id| {
                let entry = index.entry(EntryId(id));
                entry.is_none_or(|entry| entry.kind == Kind::Directory && entry.implied)
            };
            !(1..index.len()).any(implied)
        })
    }

    /// Whether a layer may do something at `path` or below it that cannot be seen at the path itself.
    fn may_touch(&self, layer: usize, path: &[u8]) -> bool {
        !self.is_plain(layer) || self.entry_at(layer, path).is_some()
    }

    /// The entry that a layer's tar has at `path`, if the layer is known.
    pub(super) fn entry_at(&self, layer: usize, path: &[u8]) -> Option<EntryId> {
        let index = self.layers().get(layer)?.index()?;
        names(path).try_fold(EntryId::ROOT, |directory, name| index.child(directory, name))
    }
}

impl Place {
    /// The place at `path`, which must be without symlinks where it is a directory.
    pub(super) async fn at(inspector: &Inspector, path: &[u8]) -> Result<Place, InspectError> {
        inspector.complete().await?;
        let mut steps = Vec::new();
        for layer in 0..inspector.layers().len() {
            let view = inspector.stage(layer)?;
            let state = State::Directory(Arc::new(view.root()?));
            steps.push(Step { layer, view, state });
        }
        let mut place = Place::of(Vec::new(), steps).await?;
        for name in names(path) {
            place = place.child(inspector, name).await?;
        }
        Ok(place)
    }

    async fn of(path: Vec<u8>, steps: Vec<Step>) -> Result<Place, InspectError> {
        let mut names: BTreeMap<Box<[u8]>, Vec<Run>> = BTreeMap::new();
        for (number, step) in steps.iter().enumerate() {
            let State::Directory(node) = &step.state else { continue };
            let listing = step.view.list(node).await?;
            for listed in listing.iter().filter(|listed| !matches!(listed.name, b"." | b"..")) {
                let runs = match names.get_mut(listed.name) {
                    Some(runs) => runs,
                    None => names.entry(listed.name.into()).or_default(),
                };
                match runs.last_mut() {
                    Some(run) if run.to + 1 == number && run.ino == listed.ino => run.to = number,
                    _ => runs.push(Run {
                        from: number,
                        to: number,
                        ino: listed.ino,
                        kind: listed.kind,
                    }),
                }
            }
        }
        Ok(Place { path, steps, names })
    }

    /// What `name` in it was, from one layer to another.
    pub(super) fn runs(&self, name: &[u8]) -> &[Run] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    /// What `name` is in it after step `number`.
    fn state_of(&self, name: &[u8], number: usize) -> (State, Option<Ino>) {
        let step = self.steps.get(number).map(|step| &step.state);
        let Some(State::Directory(_)) = step else {
            return (step.cloned().unwrap_or(State::Nothing), None);
        };
        let run = self.runs(name).iter().find(|run| (run.from..=run.to).contains(&number));
        match run {
            None => (State::Nothing, None),
            Some(run) if run.kind == Kind::Directory => (State::Nothing, Some(run.ino)),
            Some(_) => (State::Replaced, None),
        }
    }

    /// The place `name` in it.
    async fn child(&self, inspector: &Inspector, name: &[u8]) -> Result<Place, InspectError> {
        let path = join(&self.path, name);
        let mut steps = Vec::new();
        let mut before = None;
        for (number, step) in self.steps.iter().enumerate() {
            let (state, directory) = self.state_of(name, number);
            let now = (directory, matches!(state, State::Replaced));
            if before == Some(now) && !inspector.may_touch(step.layer, &path) {
                continue;
            }
            before = Some(now);
            let state = match directory {
                Some(_) => self.node(name, number).await?.map_or(State::Nothing, State::Directory),
                None => state,
            };
            steps.push(Step {
                layer: step.layer,
                view: step.view.clone(),
                state,
            });
        }
        Place::of(path, steps).await
    }

    /// What `name` is in it after step `number`.
    pub(super) async fn node(&self, name: &[u8], number: usize) -> Result<Option<Arc<Node>>, InspectError> {
        let Some(step) = self.steps.get(number) else {
            return Ok(None);
        };
        let State::Directory(parent) = &step.state else {
            return Ok(None);
        };
        let tree = step.view.tree();
        let attr = tree.lookup(parent.attr.ino, name).await?;
        Ok(attr.map(|attr| Arc::new(Node::new(tree, join(&self.path, name), attr))))
    }

    /// What happened to a name that is not there any more after step `number`.
    pub(super) fn fate(&self, name: &[u8], number: usize) -> Option<Hidden> {
        let step = self.steps.get(number)?;
        let replaced = matches!(step.state, State::Replaced) || self.runs(name).iter().any(|run| run.from == number);
        Some(match replaced {
            true => Hidden::Overridden(step.layer),
            false => Hidden::Deleted(step.layer),
        })
    }

    /// All versions of `name`, the newest first; a directory only once, however many layers add to it.
    async fn versions(&self, inspector: &Inspector, name: &[u8]) -> Result<Vec<Entry>, InspectError> {
        let mut versions = Vec::new();
        let mut had_directory = false;
        for run in self.runs(name).iter().rev() {
            if run.kind == Kind::Directory && std::mem::replace(&mut had_directory, true) {
                continue;
            }
            let Some(node) = self.node(name, run.to).await? else {
                continue;
            };
            let Some(step) = self.steps.get(run.to) else { continue };
            let mut entry = Entry::of(&step.view, &node)?;
            entry.hidden = self.fate(name, run.to + 1);
            let first = match run.kind {
                Kind::Directory => entry.layer,
                _ => self.steps.get(run.from).map(|step| step.layer),
            };
            // Where it is below a symlink of a lower layer, the layer by itself has it elsewhere.
            entry.found_in = first.filter(|layer| inspector.entry_at(*layer, &entry.path).is_some());
            versions.push(entry);
        }
        Ok(versions)
    }
}

/// Goes through all that is, or ever was, in a directory: each name with all its versions, the one to be seen first.
#[derive(Debug)]
pub struct Versions {
    inspector: Arc<Inspector>,
    recursive: bool,
    frames: Vec<(Place, VecDeque<Box<[u8]>>)>,
    /// Found, not given yet.
    ready: VecDeque<Entry>,
    /// A directory in the last frame, to be entered when nothing is ready any more.
    entered: Option<Box<[u8]>>,
}

impl Versions {
    /// Of what is at `path`; if that is a directory, of all in it, and with `recursive` below it. A symlink at the end of
    /// the path is not followed.
    ///
    /// # Errors
    /// [`InspectError::NotFound`] if no layer has anything there, [`InspectError::Tree`].
    pub async fn at(inspector: &Arc<Inspector>, path: &[u8], recursive: bool) -> Result<Versions, InspectError> {
        inspector.complete().await?;
        let (path, is_directory) = inspector.newest(path).await?;
        let frame = match is_directory {
            true => {
                let place = Place::at(inspector, &path).await?;
                let names = place.names.keys().cloned().collect();
                (place, names)
            }
            false => {
                let (parent, name) = split(&path);
                (Place::at(inspector, parent).await?, VecDeque::from([name.into()]))
            }
        };
        Ok(Versions {
            inspector: inspector.clone(),
            recursive: recursive && is_directory,
            frames: vec![frame],
            ready: VecDeque::new(),
            entered: None,
        })
    }

    /// The next version; none at the end.
    ///
    /// # Errors
    /// [`InspectError::Tree`].
    pub async fn next(&mut self) -> Result<Option<Entry>, InspectError> {
        loop {
            // Once all is known nothing here waits, and others are to have their turn.
            tokio::task::consume_budget().await;
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            if let (Some(name), Some((place, _))) = (self.entered.take(), self.frames.last()) {
                let place = place.child(&self.inspector, &name).await?;
                let names = place.names.keys().cloned().collect();
                self.frames.push((place, names));
            }
            let Some((place, names)) = self.frames.last_mut() else {
                return Ok(None);
            };
            let Some(name) = names.pop_front() else {
                self.frames.pop();
                continue;
            };
            self.ready.extend(place.versions(&self.inspector, &name).await?);
            let was_directory = place.runs(&name).iter().any(|run| run.kind == Kind::Directory);
            self.entered = (self.recursive && was_directory).then_some(name);
        }
    }
}

/// A path's directory and its last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
