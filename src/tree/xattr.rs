//! Extended attributes: the image's, and by name only, ours.

use super::ino::Node;
use super::{Ino, Tree, TreeError};
use crate::index::{ASKED_FOR, EntryId};

/// What the names of our own attributes begin with. They can be read but are never listed, so that tools that copy or
/// compare attributes see only the image's.
const OURS: &[u8] = b"user.peelfs.";

impl Tree {
    /// The names of the attributes that the image records for `ino`.
    ///
    /// # Errors
    /// [`TreeError::Layer`] if its layer is corrupt, [`TreeError::Stale`].
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>, TreeError> {
        let Some((layer, entry)) = self.described_by(ino)? else {
            return Ok(Vec::new());
        };
        Ok(self.layers[layer].glance(|view| {
            let entry = view.entries().entry(entry);
            entry
                .map(|entry| {
                    entry
                        .xattrs()
                        .map(|(name, _)| name.to_vec())
                        .filter(|name| !name.starts_with(OURS))
                        .collect()
                })
                .unwrap_or_default()
        })?)
    }

    /// The value of one attribute; None if there is none of that name.
    ///
    /// Ours are `user.peelfs.layer` (the number of the layer that the entry is from), `user.peelfs.digest` (that
    /// layer's digest) and `user.peelfs.offset` (where a file's bytes begin in the layer's decompressed stream).
    ///
    /// # Errors
    /// [`TreeError::Layer`] if its layer is corrupt, [`TreeError::Stale`].
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>, TreeError> {
        let Some((number, entry)) = self.described_by(ino)? else {
            return Ok(None);
        };
        let layer = &self.layers[number];
        match name.strip_prefix(OURS) {
            Some(b"layer") => Ok(Some(number.to_string().into_bytes())),
            Some(b"digest") => Ok(Some(layer.descriptor().digest.to_string().into_bytes())),
            Some(b"offset") => {
                let offset = layer.glance(|view| Some(view.entries().entry(entry)?.data.start()))?;
                Ok(offset.map(|offset| offset.to_string().into_bytes()))
            }
            Some(_) => Ok(None),
            None => Ok(layer.glance(|view| {
                let entry = view.entries().entry(entry)?;
                entry
                    .xattrs()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.to_vec())
            })?),
        }
    }

    /// Of the attributes that tools ask every file for, those that certainly none has: all layers are known, and no entry of
    /// any of them has it.
    pub fn xattrs_of_none(&self) -> Vec<&'static [u8]> {
        let may_have = |name| {
            let mut layers = self.layers.iter();
            layers.any(|layer| layer.index().is_none_or(|index| index.may_have_xattr(name)))
        };
        ASKED_FOR.into_iter().filter(|name| !may_have(name)).collect()
    }

    /// The entry whose attributes `ino` has; None if no entry declares it.
    fn described_by(&self, ino: Ino) -> Result<Option<(usize, EntryId)>, TreeError> {
        match ino.node() {
            Node::Own(layer, entry) => self.layer(layer, ino).map(|_| Some((layer, entry))),
            Node::Root | Node::Merged => self.declared_by(&*self.dir(ino)?),
            Node::Layers | Node::Manifest | Node::Config => Ok(None),
        }
    }
}
