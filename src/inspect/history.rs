//! Every version of one path, and what each layer did to it.

use std::sync::Arc;

use serde::Serialize;

use super::diff::{Change, changes};
use super::versions::{Place, State, split};
use super::{Content, Entry, Hidden, InspectError, Inspector, Node, View};
use crate::digest::{Digest, Hasher};
use crate::index::{Entries, EntryId, Kind};

/// What a layer did to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// There was nothing before.
    Added,
    /// There was something of another kind before.
    Replaced,
    /// It has another content, or a symlink another target.
    ChangedContent,
    /// It has other permissions.
    ChangedMode,
    /// It has another owner or group.
    ChangedOwner,
    /// It has another time of modification.
    ChangedTime,
    /// It has other extended attributes.
    ChangedXattrs,
    /// It is there again as it was.
    Repeated,
    /// A whiteout or an opaque mark removed it.
    Deleted,
    /// A directory that it was in became something else.
    Overridden,
    /// A directory hides what lower layers have in it.
    MadeOpaque,
}

impl Action {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Action::Added => "added",
            Action::Replaced => "replaced",
            Action::ChangedContent => "changed content",
            Action::ChangedMode => "changed mode",
            Action::ChangedOwner => "changed owner",
            Action::ChangedTime => "changed time",
            Action::ChangedXattrs => "changed xattrs",
            Action::Repeated => "repeated",
            Action::Deleted => "deleted",
            Action::Overridden => "overridden",
            Action::MadeOpaque => "made opaque",
        }
    }
}

/// What one layer did to a path, and what is there afterwards.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// The layer's number.
    pub layer: usize,
    /// Its digest.
    pub layer_digest: String,
    /// What it did; never nothing.
    pub actions: Vec<Action>,
    /// What is there afterwards.
    pub entry: Option<Entry>,
    /// The SHA-256 digest of a file's content, if it was asked for.
    pub digest: Option<String>,
}

/// What is at a path after some layer.
type There = Option<(View, Arc<Node>)>;

impl Inspector {
    /// What each layer did to `path`, the base first; layers that did nothing are left out. With `digests` the contents
    /// of all versions of a file are read.
    ///
    /// # Errors
    /// [`InspectError::NotFound`] if no layer has anything there, [`InspectError::Tree`].
    pub async fn history(&self, path: &[u8], digests: bool) -> Result<Vec<Event>, InspectError> {
        self.complete().await?;
        let (path, _) = self.newest(path).await?;
        let mut events = Vec::new();
        let mut before: There = None;
        for (layer, now, gone) in self.states(&path).await? {
            let mut actions = match (&before, &now) {
                (None, None) => Vec::new(),
                (None, Some(_)) => vec![Action::Added],
                (Some(_), None) => match gone {
                    Some(Hidden::Overridden(_)) => vec![Action::Overridden],
                    _ => vec![Action::Deleted],
                },
                (Some(then), Some(now)) if self.is_same(&then.1, &now.1, layer, &path) => Vec::new(),
                (Some(then), Some(now)) => actions((&then.0, &then.1), (&now.0, &now.1)).await?,
            };
            // Where there is no directory in the end, the mark had no effect.
            let opaque = now.as_ref().is_some_and(|(_, node)| node.is_directory()) && self.has_opaque(layer, &path);
            actions.extend(opaque.then_some(Action::MadeOpaque));
            if !actions.is_empty() {
                events.push(self.event(layer, actions, &now, digests).await?);
            }
            before = now;
        }
        Ok(events)
    }

    /// What is at `path` after each layer that may have done something to it, and if nothing is, why.
    async fn states(&self, path: &[u8]) -> Result<Vec<(usize, There, Option<Hidden>)>, InspectError> {
        let mut states = Vec::new();
        if path.is_empty() {
            for (layer, step) in Place::at(self, path).await?.steps.into_iter().enumerate() {
                if let State::Directory(node) = step.state {
                    states.push((layer, Some((step.view, node)), None));
                }
            }
            return Ok(states);
        }
        let (parent, name) = split(path);
        let parent = Place::at(self, parent).await?;
        for (number, step) in parent.steps.iter().enumerate() {
            let there = parent.node(name, number).await?;
            let there = there.map(|node| (step.view.clone(), node));
            states.push((step.layer, there, parent.fate(name, number)));
        }
        Ok(states)
    }

    /// Whether layer `layer` left it as it was.
    fn is_same(&self, then: &Node, now: &Node, layer: usize, path: &[u8]) -> bool {
        if now.attr.kind != Kind::Directory {
            return then.attr.ino == now.attr.ino;
        }
        // The root has one number however many layers declare it.
        let declares = self.entry_at(layer, path).is_some_and(|id| self.declares(layer, id));
        then.is_directory() && !declares && then.attr.mode == now.attr.mode && then.attr.mtime == now.attr.mtime
    }

    fn declares(&self, layer: usize, id: EntryId) -> bool {
        let index = self.layers().get(layer).and_then(|layer| layer.index());
        index.is_some_and(|index| index.entry(id).is_some_and(|entry| !entry.implied))
    }

    fn has_opaque(&self, layer: usize, path: &[u8]) -> bool {
        let index = self.layers().get(layer).and_then(|layer| layer.index());
        let entry = self.entry_at(layer, path);
        index
            .zip(entry)
            .is_some_and(|(index, id)| index.entry(id).is_some_and(|entry| entry.opaque))
    }

    async fn event(
        &self,
        layer: usize,
        actions: Vec<Action>,
        now: &There,
        digests: bool,
    ) -> Result<Event, InspectError> {
        let entry = match now {
            Some((view, node)) => Some(Entry::of(view, node)?),
            None => None,
        };
        let digest = match now {
            Some((view, node)) if digests && node.attr.kind == Kind::File => {
                Some(digest(view, node).await?.to_string())
            }
            _ => None,
        };
        let descriptor = self
            .layers()
            .get(layer)
            .map(|layer| layer.descriptor().digest.to_string());
        Ok(Event {
            layer,
            layer_digest: descriptor.unwrap_or_default(),
            actions,
            entry,
            digest,
        })
    }
}

async fn actions(then: (&View, &Arc<Node>), now: (&View, &Arc<Node>)) -> Result<Vec<Action>, InspectError> {
    let changes = changes(then, now).await?;
    if changes.contains(&Change::Type) {
        return Ok(vec![Action::Replaced]);
    }
    let mut actions: Vec<Action> = changes
        .into_iter()
        .map(|change| match change {
            Change::Type => Action::Replaced,
            Change::Content | Change::Target | Change::Device => Action::ChangedContent,
            Change::Mode => Action::ChangedMode,
            Change::Owner => Action::ChangedOwner,
            Change::Time => Action::ChangedTime,
            Change::Xattrs => Action::ChangedXattrs,
        })
        .collect();
    if actions.is_empty() {
        actions.push(Action::Repeated);
    }
    Ok(actions)
}

/// The SHA-256 digest of a file's content.
async fn digest(view: &View, node: &Arc<Node>) -> Result<Digest, InspectError> {
    let mut content = Content::all(view, node.clone())?;
    let mut hasher: Hasher = Digest::Sha256([0; 32]).hasher();
    while let Some(bytes) = content.next().await? {
        hasher.update(&bytes);
    }
    Ok(hasher.finish())
}
