//! Hard links, within a layer and to a lower one.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::lookup::{Found, Moment, Walked, at_path};
use super::{Tree, TreeError};
use crate::index::{Entries, Entry, EntryId, Kind, LayerIndex, never_shown};

/// What hard links are, each by its layer and entry; None if that is nothing.
pub(super) type Followed = HashMap<(usize, EntryId), Option<(usize, EntryId)>>;

/// The most hard links to lower layers of which is kept what they are.
const MOST_FOLLOWED: usize = 256 << 10;

impl Tree {
    /// The entry that a name stands for: a hard link's target, anything else itself. None if the link leads nowhere,
    /// or to a directory; extraction would not have made it.
    pub(super) async fn follow(
        &self,
        layer: usize,
        entry: EntryId,
        kind: Kind,
    ) -> Result<Option<(usize, EntryId)>, TreeError> {
        if kind != Kind::Hardlink {
            return Ok(Some((layer, entry)));
        }
        let (target, undecided) = self.layers[layer].glance(|view| {
            let entries = view.entries();
            (
                entries.entry(entry).and_then(|entry| entry.target),
                entries.written_otherwise(),
            )
        })?;
        if let Some(target) = target {
            return Ok(Some((layer, target)));
        }
        if layer > 0 && undecided {
            self.extraction(layer).await?;
        }
        if let Some(target) = self.known_extraction(layer).and_then(|known| known.link(entry)) {
            return Ok(target);
        }
        // What is found as long as layers grow is no answer to keep.
        let settled = self.is_complete_below(layer + 1);
        let mut passed = Vec::new();
        let mut entry = entry;
        let found = loop {
            if let Some(known) = self.followed.lock().get(&(layer, entry)) {
                break *known;
            }
            let link = self.layers[layer].glance(|view| {
                let entry = view.entries().entry(entry)?;
                Some((entry.kind, entry.target, entry.link.to_vec()))
            })?;
            let path = match link {
                Some((Kind::Hardlink, None, path)) if path.is_empty() => break None,
                Some((Kind::Hardlink, None, path)) => path,
                Some((Kind::Hardlink, Some(target), _)) => break Some((layer, target)),
                Some((Kind::Directory, ..)) | None => break None,
                Some(_) => break Some((layer, entry)),
            };
            passed.push(entry);
            let walked = {
                let (path, moment) = (path.clone(), Moment { layer, entry });
                let walk = move |tree: Arc<Tree>| async move { tree.walk_boxed(moment, path).await };
                self.apart(walk).await?
            };
            // Where symlinks of lower layers lead, this layer may have put something before it made the link.
            let earlier = match walked.path == path {
                true => None,
                false => self.layers[layer].glance(|view| {
                    let entries = view.entries();
                    at_path(entries, &walked.path).filter(|earlier| exists_by(entries, *earlier, entry))
                })?,
            };
            match (earlier, walked.found) {
                (Some(earlier), _) => entry = earlier,
                (None, Some(Found::Leaf(layer, entry))) => break Some((layer, entry)),
                (None, _) => break None,
            }
        };
        if settled {
            let mut followed = self.followed.lock();
            for entry in passed {
                if followed.len() >= MOST_FOLLOWED {
                    followed.clear();
                }
                followed.insert((layer, entry), found);
            }
        }
        Ok(found)
    }

    /// [`Tree::walk`] to what a hard link names.
    fn walk_boxed(&self, moment: Moment, path: Vec<u8>) -> BoxFuture<'_, Result<Walked, TreeError>> {
        async move { self.walk(moment, &path).await }.boxed()
    }

    /// How many names layers above give to each file of a layer, if all layers are complete and that was counted.
    pub(super) fn links(&self) -> Option<&HashMap<(usize, EntryId), u32>> {
        self.links.get()
    }

    /// Counts the names that layers give to files of lower layers, once all layers are complete.
    ///
    /// # Errors
    /// [`TreeError::Layer`] if that cannot be told.
    pub async fn count_links(&self) -> Result<(), TreeError> {
        if self.links.initialized() || self.layers.iter().any(|layer| layer.index().is_none()) {
            return Ok(());
        }
        self.links
            .get_or_try_init(|| async {
                for number in 0..self.layers.len() {
                    self.extraction(number).await?;
                }
                let mut links = HashMap::new();
                for (number, layer) in self.layers.iter().enumerate() {
                    let index = layer.complete().await?;
                    for name in links_to_lower_layers(&index) {
                        if let Some(target) = self.follow(number, name, Kind::Hardlink).await? {
                            *links.entry(target).or_insert(0) += 1;
                        }
                    }
                }
                Ok::<_, TreeError>(links)
            })
            .await?;
        Ok(())
    }
}

/// The names in a layer that are hard links to files of lower layers.
fn links_to_lower_layers(index: &LayerIndex) -> Vec<EntryId> {
    let is_one = |id: &EntryId| {
        let entry = index.entry(*id);
        entry.is_some_and(|entry| {
            entry.kind == Kind::Hardlink && entry.target.is_none() && (is_refused(&entry) || reachable(index, *id))
        })
    };
    (0..index.len()).map(EntryId).filter(is_one).collect()
}

/// Whether an entry is there when the entry `moment` is extracted; a directory that none declares is if something is in it.
fn exists_by(entries: &dyn Entries, id: EntryId, moment: EntryId) -> bool {
    let mut todo = vec![id];
    while let Some(id) = todo.pop() {
        let Some(entry) = entries.entry(id).filter(|_| id < moment) else {
            continue;
        };
        match entry.kind {
            _ if never_shown(entry.name, entry.kind) => {}
            Kind::Directory if entry.implied => todo.extend(entries.children(id)),
            _ => return true,
        }
    }
    false
}

/// Whether a layer by itself has nowhere what would be a hard link; over others it may be one.
pub(super) fn is_refused(link: &Entry<'_>) -> bool {
    link.link.is_empty()
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
