//! Members whose place in their layer is told only by what else the layer has.
//!
//! An index has each entry where the layer by itself has it, symlinks of the layer followed. Over other layers the same
//! names may lead elsewhere, and order counts; so what was written is kept beside such entries, in the order of the tar.

use super::fields::Fields;

/// How many of them a layer may have. Any layer that is meant seriously has none.
pub(super) const MAX_WRITTEN: usize = 4 << 20;
/// Bytes of one on disk.
pub(super) const WRITTEN_LEN: usize = 16;

/// A member that is not simply where its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// The entry that it made, or the directory that it declared again.
    pub entry: u32,
    /// How many entries had been made before it. If that is the number of its own, it made that one.
    pub before: u32,
    /// Where in the pool the name is that it was written with; 0 if that is the path of its entry.
    pub name: u32,
    /// Where in the pool the hardlink's target is that was written; 0 if that is what the entry says.
    pub link: u32,
}

impl Written {
    /// Whether it is no member, but a directory that was made because a name led there through a symlink.
    pub fn is_implied(self) -> bool {
        self.entry == self.before && self.name == 0 && self.link == 0
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        for word in [self.entry, self.before, self.name, self.link] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Written> {
        let mut fields = Fields(bytes);
        Some(Written {
            entry: fields.u32()?,
            before: fields.u32()?,
            name: fields.u32()?,
            link: fields.u32()?,
        })
    }
}
