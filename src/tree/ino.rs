//! Inode numbers, in one place: what they are made of and why.
//!
//! | number | what |
//! |---|---|
//! | 1 | the root of the mount |
//! | 2, 3, 4 | `layers`, `layers/manifest.json`, `layers/config.json` |
//! | layer + 1, entry (32 bits) | an entry of a layer, wherever it is shown |
//! | bit 62, layer + 1, entry | a merged directory, by the topmost directory that it is made of |
//!
//! A file has one number in the merged view and below `layers/N/`, so that the kernel caches its pages once, and the
//! names of a hard link have one number because they are one entry. A merged directory has children that the layer's
//! own directory has not, so it needs a number of its own. Entry numbers follow the tar's order, so a number given
//! while a layer is being scanned stays right when it is complete, and in the next mount.

use std::fmt;

use crate::index::EntryId;

/// An inode number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// What an inode number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Root,
    Layers,
    Manifest,
    Config,
    /// An entry of a layer.
    Own(usize, EntryId),
    /// A merged directory other than the root.
    Merged,
}

const MERGED: u64 = 1 << 62;
/// Marks a merged directory that no entry stands for, only the target of a symlink that entries lie below.
const BARE: u64 = 1 << 61;

impl Ino {
    /// The root of the mount.
    pub const ROOT: Ino = Ino(1);
    /// The directory of the layers.
    pub const LAYERS: Ino = Ino(2);
    /// The image's manifest.
    pub const MANIFEST: Ino = Ino(3);
    /// The image's config.
    pub const CONFIG: Ino = Ino(4);

    /// The entry `entry` of layer `layer`.
    pub fn own(layer: usize, entry: EntryId) -> Ino {
        Ino((layer as u64 + 1) << 32 | u64::from(entry.0))
    }

    /// The layer and entry of a number made by [`Ino::own`].
    pub fn as_own(self) -> Option<(usize, EntryId)> {
        match self.node() {
            Node::Own(layer, entry) => Some((layer, entry)),
            _ => None,
        }
    }

    /// The merged directory whose topmost contribution is `entry` of layer `layer`.
    pub(super) fn merged(layer: usize, entry: EntryId) -> Ino {
        Ino(MERGED | Ino::own(layer, entry).0)
    }

    /// The merged directory that layer `layer` makes at a place `path` where it has no entry.
    pub(super) fn bare(layer: usize, path: u32) -> Ino {
        Ino(BARE | Ino::merged(layer, EntryId(path)).0)
    }

    /// The layer that it is from, for a merged directory the topmost; none for what no layer has.
    pub fn layer(self) -> Option<usize> {
        let number = (self.0 & !(MERGED | BARE)) >> 32;
        number.checked_sub(1).map(|layer| layer as usize)
    }

    pub(super) fn node(self) -> Node {
        match self.0 {
            1 => Node::Root,
            2 => Node::Layers,
            3 => Node::Manifest,
            4 => Node::Config,
            merged if merged & MERGED != 0 => Node::Merged,
            own => match (own >> 32).checked_sub(1) {
                Some(layer) => Node::Own(layer as usize, EntryId(own as u32)),
                // No inode has such a number: one that is certainly stale.
                None => Node::Merged,
            },
        }
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_different_things_differ() {
        let entry = EntryId(7);
        assert_eq!(Ino::own(0, entry).node(), Node::Own(0, entry));
        assert_eq!(
            Ino::own(999, EntryId(u32::MAX)).node(),
            Node::Own(999, EntryId(u32::MAX))
        );
        assert_eq!(Ino::merged(0, entry).node(), Node::Merged);
        assert_ne!(Ino::bare(0, 7), Ino::merged(0, entry));
        assert_eq!(Ino(5).node(), Node::Merged);
    }
}
