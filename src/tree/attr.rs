//! Attributes, and which of them can still change.

use std::sync::Arc;

use super::contribution::{Contribution, Dir};
use super::lookup::Found;
use super::{Ino, Tree, TreeError};
use crate::index::{Entry, EntryId, Kind};

/// What `stat` tells.
#[derive(Debug, Clone)]
pub struct Attr {
    /// The inode number.
    pub ino: Ino,
    /// What it is; never [`Kind::Hardlink`].
    pub kind: Kind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u16,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes: of a file its length, of a symlink that of its target.
    pub size: u64,
    /// Time of modification, in seconds from the epoch; may be negative.
    pub mtime: i64,
    /// And in nanoseconds of that second.
    pub mtime_nsec: u32,
    /// Of a device: its major number.
    pub major: u32,
    /// Of a device: its minor number.
    pub minor: u32,
    /// Whether no byte that is still to be scanned can change any of these.
    pub settled: bool,
    /// Whether the name that it was looked up by can be no other entry's. In a layer that is still scanned a later entry
    /// may take its place.
    pub lasting: bool,
    /// The merged directory behind the number.
    pub(super) dir: Option<Arc<Dir>>,
}

impl Attr {
    /// A directory that no entry declares.
    fn implied(ino: Ino) -> Attr {
        Attr {
            ino,
            kind: Kind::Directory,
            mode: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            mtime_nsec: 0,
            major: 0,
            minor: 0,
            settled: true,
            lasting: true,
            dir: None,
        }
    }

    /// A JSON document of the image.
    pub(super) fn document(ino: Ino, len: usize) -> Attr {
        Attr {
            kind: Kind::File,
            mode: 0o444,
            size: len as u64,
            ..Attr::implied(ino)
        }
    }

    fn of_entry(ino: Ino, entry: &Entry<'_>) -> Attr {
        Attr {
            ino,
            kind: entry.kind,
            mode: entry.mode & 0o7777,
            // 1 is what file systems say that do not count the subdirectories of a directory.
            nlink: if entry.kind == Kind::Directory {
                1
            } else {
                entry.nlink.max(1)
            },
            uid: entry.uid,
            gid: entry.gid,
            size: if entry.kind == Kind::Symlink {
                entry.link.len() as u64
            } else {
                entry.size
            },
            mtime: entry.mtime,
            mtime_nsec: entry.mtime_nsec,
            major: entry.major,
            minor: entry.minor,
            settled: true,
            lasting: true,
            dir: None,
        }
    }
}

impl Tree {
    /// The attributes of an entry of a layer, wherever it is shown.
    pub(super) fn own_attr(&self, number: usize, entry: EntryId) -> Result<Attr, TreeError> {
        let ino = Ino::own(number, entry);
        let found = self.layer(number, ino)?.glance(|view| {
            let found = view.entries().entry(entry)?;
            Some((Attr::of_entry(ino, &found), found.implied, found.nlink, view.complete()))
        })?;
        let Some((mut attr, implied, names, complete)) = found else {
            return Err(TreeError::Stale(ino));
        };
        if attr.kind == Kind::Directory {
            attr.settled = complete || !implied;
            return Ok(attr);
        }
        match self.links() {
            // One that its layer by itself has nowhere is shown because of the layers below.
            Some(links) => attr.nlink = (names + links.get(&(number, entry)).copied().unwrap_or(0)).max(1),
            // A layer above, or the rest of this one, may give it another name.
            None => attr.settled = false,
        }
        Ok(attr)
    }

    /// [`Tree::own_attr`], with the link count settled if all layers are known.
    pub(super) async fn settled_attr(&self, number: usize, entry: EntryId) -> Result<Attr, TreeError> {
        if let Err(error) = self.count_links().await {
            // The count stays provisional; what is asked for may be had all the same.
            tracing::debug!("cannot count links: {error}");
        }
        self.own_attr(number, entry)
    }

    /// The attributes of what was found by name, ready to be handed out.
    pub(super) async fn attr_of(&self, found: Option<Found>) -> Result<Option<Attr>, TreeError> {
        match found {
            None => Ok(None),
            Some(Found::Leaf(layer, entry)) => self.settled_attr(layer, entry).await.map(Some),
            Some(Found::Directory(dir)) => {
                // One that is held already knows more of itself; unless it is not what it was.
                let dir = match self.known_from(dir.ino) {
                    true => self.dir(dir.ino).unwrap_or(dir),
                    false => dir,
                };
                for k in 0.. {
                    match self.contribution(&dir, k).await? {
                        Some(contribution) if self.declared(&contribution)?.is_none() => {}
                        _ => break,
                    }
                }
                let attr = self.known_dir_attr(&dir)?;
                Ok(Some(Attr { dir: Some(dir), ..attr }))
            }
        }
    }

    /// The attributes of a merged directory: those of the topmost layer that has an entry for it, as far as is known.
    pub(super) fn known_dir_attr(&self, dir: &Dir) -> Result<Attr, TreeError> {
        let (contributions, closed) = self.known_contributions(dir);
        let mut settled = true;
        for contribution in contributions {
            if let Some(entry) = self.declared(&contribution)? {
                return Ok(Attr {
                    ino: dir.ino,
                    settled,
                    ..entry
                });
            }
            settled &= self.layers[contribution.layer].index().is_some();
        }
        Ok(Attr {
            settled: settled && closed,
            ..Attr::implied(dir.ino)
        })
    }

    /// Which layer and entry declare a merged directory, as far as is known.
    pub(super) fn declared_by(&self, dir: &Dir) -> Result<Option<(usize, EntryId)>, TreeError> {
        for contribution in self.known_contributions(dir).0 {
            if let (Some(_), Some(entry)) = (self.declared(&contribution)?, contribution.attrs) {
                return Ok(Some((contribution.layer, entry)));
            }
        }
        Ok(None)
    }

    /// What a directory is made of, as far as is known, and whether that is all. The root is made of every layer.
    fn known_contributions(&self, dir: &Dir) -> (Vec<Contribution>, bool) {
        if dir.parent.is_some() {
            return dir.known();
        }
        ((0..dir.top).rev().map(Contribution::root).collect(), true)
    }

    /// The attributes that a contribution's own entry declares.
    fn declared(&self, contribution: &Contribution) -> Result<Option<Attr>, TreeError> {
        let Some(id) = contribution.attrs else { return Ok(None) };
        let ino = Ino::own(contribution.layer, id);
        Ok(self.layers[contribution.layer].glance(|view| {
            let entry = view.entries().entry(id)?;
            (!entry.implied).then(|| Attr::of_entry(ino, &entry))
        })?)
    }

    /// The directory of the layers: nothing in the image says anything of it.
    pub(super) fn layers_attr(&self) -> Attr {
        Attr {
            mode: 0o555,
            ..Attr::implied(Ino::LAYERS)
        }
    }
}
