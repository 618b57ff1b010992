//! One way to look at an image, and what is at a path in it.

use std::sync::Arc;

use super::InspectError;
use crate::digest::Digest;
use crate::index::{EntryId, Kind};
use crate::tree::{Attr, Ino, Listing, Tree, TreeError};

/// The most symlinks that are followed in one path, as in Linux.
pub(super) const MOST_SYMLINKS: usize = 40;

/// How often a path is looked up anew when a scan has replaced a directory on the way.
const ATTEMPTS: usize = 8;

/// Whether a symlink at the end of a path is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// It is, as by `stat`.
    Last,
    /// It is what is meant, as by `lstat`.
    Parents,
}

/// The merged view, or that of one layer.
#[derive(Debug, Clone)]
pub struct View {
    tree: Arc<Tree>,
    root: Ino,
}

/// Something at a path. A merged directory stays known to the tree for as long as this lives.
#[derive(Debug)]
pub struct Node {
    /// Its path from the root, without a leading slash and without symlinks; empty for the root.
    pub path: Vec<u8>,
    /// What it is.
    pub attr: Attr,
    tree: Arc<Tree>,
    /// The one that holds the merged directory, if it is not this one.
    holder: Option<Arc<Node>>,
}

impl Node {
    pub(super) fn new(tree: &Arc<Tree>, path: Vec<u8>, attr: Attr) -> Node {
        tree.hold(&attr);
        Node {
            path,
            attr,
            tree: tree.clone(),
            holder: None,
        }
    }

    /// Whether it has children.
    pub fn is_directory(&self) -> bool {
        self.attr.kind == Kind::Directory
    }

    /// What its bytes can be told by for ever: the digest of a layer, and the number of an entry of it. None for what is
    /// no entry of one layer.
    pub fn identity(&self) -> Option<(Digest, u32)> {
        let (layer, entry) = self.attr.ino.as_own()?;
        let layer = self.tree.layers().get(layer)?;
        Some((layer.descriptor().digest, entry.0))
    }

    /// The layer that it is from: for a directory the one that says its attributes.
    pub fn layer(&self) -> Option<usize> {
        let told = match self.is_directory() {
            true => self.tree.xattr(self.attr.ino, b"user.peelfs.layer").ok().flatten(),
            false => None,
        };
        let told = told.and_then(|number| std::str::from_utf8(&number).ok()?.parse().ok());
        told.or_else(|| self.attr.ino.layer())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.holder.is_none() {
            self.tree.release(self.attr.ino, 1);
        }
    }
}

impl View {
    pub(super) fn merged(tree: Arc<Tree>) -> View {
        View { tree, root: Ino::ROOT }
    }

    pub(super) fn of_layer(tree: Arc<Tree>, number: usize) -> View {
        View {
            tree,
            root: Ino::own(number, EntryId::ROOT),
        }
    }

    /// The tree that it is a view of.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// The layer that it shows, if it is one.
    pub fn layer(&self) -> Option<usize> {
        self.root.as_own().map(|(layer, _)| layer)
    }

    /// Its root.
    ///
    /// # Errors
    /// [`InspectError::Tree`].
    pub fn root(&self) -> Result<Node, InspectError> {
        Ok(Node::new(&self.tree, Vec::new(), self.tree.getattr(self.root)?))
    }

    /// What is at `path`. `..` in it means what it means in the kernel: the directory above the one that was reached.
    ///
    /// # Errors
    /// [`InspectError::NotFound`] if it is certain that there is nothing; [`InspectError::NotADirectory`],
    /// [`InspectError::Loop`], [`InspectError::Tree`].
    pub async fn resolve(&self, path: &[u8], follow: Follow) -> Result<Node, InspectError> {
        let mut attempt = 1;
        loop {
            match self.walk(path, follow).await {
                Err(InspectError::Tree(TreeError::Stale(_))) if attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    async fn walk(&self, path: &[u8], follow: Follow) -> Result<Node, InspectError> {
        let wanted = || path.strip_prefix(b"/").unwrap_or(path).to_vec();
        let (follow, must_be_directory) = match path.ends_with(b"/") {
            true => (Follow::Last, true),
            false => (follow, false),
        };
        let mut above: Vec<Node> = Vec::new();
        let mut here = self.root()?;
        let mut todo: Vec<Vec<u8>> = names(path).rev().map(<[u8]>::to_vec).collect();
        let mut hops = 0;
        while let Some(name) = todo.pop() {
            if !here.is_directory() {
                return Err(InspectError::NotADirectory {
                    path: here.path.clone(),
                });
            }
            if name == b".." {
                here = above.pop().unwrap_or(here);
                continue;
            }
            let Some(attr) = self.tree.lookup(here.attr.ino, &name).await? else {
                return Err(InspectError::NotFound { path: wanted() });
            };
            if attr.kind == Kind::Symlink && (follow == Follow::Last || !todo.is_empty()) {
                hops += 1;
                if hops > MOST_SYMLINKS {
                    return Err(InspectError::Loop { path: wanted() });
                }
                let target = self.tree.readlink(attr.ino)?;
                if target.starts_with(b"/") {
                    above.clear();
                    here = self.root()?;
                }
                todo.extend(names(&target).rev().map(<[u8]>::to_vec));
                continue;
            }
            let child = Node::new(&self.tree, join(&here.path, &name), attr);
            above.push(std::mem::replace(&mut here, child));
        }
        if must_be_directory && !here.is_directory() {
            return Err(InspectError::NotADirectory {
                path: here.path.clone(),
            });
        }
        Ok(here)
    }

    /// All that is in the directory `node`, by name.
    ///
    /// # Errors
    /// [`InspectError::NotADirectory`], [`InspectError::Tree`].
    pub async fn list(&self, node: &Node) -> Result<Arc<Listing>, InspectError> {
        match self.tree.list(node.attr.ino).await {
            Err(TreeError::NotADirectory(_)) => Err(InspectError::NotADirectory {
                path: node.path.clone(),
            }),
            listing => Ok(listing?),
        }
    }

    /// `node`, of a directory with the attributes that it has when all is known that can change them.
    ///
    /// # Errors
    /// [`InspectError::Tree`].
    pub async fn settled(&self, node: Arc<Node>) -> Result<Arc<Node>, InspectError> {
        if !node.is_directory() || node.attr.settled {
            return Ok(node);
        }
        // Whoever can list it has seen all layers that may declare it.
        self.list(&node).await?;
        Ok(Arc::new(Node {
            path: node.path.clone(),
            attr: self.tree.getattr(node.attr.ino)?,
            tree: self.tree.clone(),
            holder: Some(node),
        }))
    }

    /// What the name number `i` of `listing`, the listing of `parent`, is; none for `.` and `..`, and what has gone.
    ///
    /// # Errors
    /// [`InspectError::Tree`].
    pub async fn child(&self, parent: &Node, listing: &Listing, i: usize) -> Result<Option<Node>, InspectError> {
        let Some(listed) = listing.get(i).filter(|listed| !matches!(listed.name, b"." | b"..")) else {
            return Ok(None);
        };
        let attr = match self.tree.listed_attr(parent.attr.ino, &listed).await? {
            Some(attr) => Some(attr),
            None => self.tree.lookup(parent.attr.ino, listed.name).await?,
        };
        Ok(attr.map(|attr| Node::new(&self.tree, join(&parent.path, listed.name), attr)))
    }
}

/// The names in a path, without empty ones and `.`.
pub(super) fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

/// The path of `name` in the directory at `path`.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path.is_empty() {
        true => name.to_vec(),
        false => [path, name].join(&b'/'),
    }
}
