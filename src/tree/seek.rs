//! Where the data and the holes of a file are: lseek(2) with SEEK_DATA and SEEK_HOLE.

use super::ino::Node;
use super::{Ino, Tree, TreeError};
use crate::index::Kind;

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// A byte that the layer stores.
    Data,
    /// A byte that it does not store, or the end of the file.
    Hole,
}

impl Tree {
    /// The first such place in the file `ino`, at `offset` or behind it, without waiting for anything. None if there is
    /// none, which is ENXIO: `offset` is not in the file, or only a hole follows.
    ///
    /// # Errors
    /// [`TreeError::NotAFile`], [`TreeError::Stale`], or [`TreeError::Layer`] if its layer is corrupt.
    pub fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<Option<u64>, TreeError> {
        let Node::Own(layer, entry) = ino.node() else {
            let attr = self.getattr(ino)?;
            return match attr.kind {
                Kind::File => Ok(seek([(0, attr.size)], attr.size, offset, what)),
                _ => Err(TreeError::NotAFile(ino)),
            };
        };
        self.layer(layer, ino)?.glance(|view| {
            let entry = view.entries().entry(entry).ok_or(TreeError::Stale(ino))?;
            match entry.kind {
                Kind::File if entry.sparse => Ok(seek(entry.pieces(), entry.size, offset, what)),
                Kind::File => Ok(seek([(0, entry.size)], entry.size, offset, what)),
                _ => Err(TreeError::NotAFile(ino)),
            }
        })?
    }
}

/// [`Tree::seek`] in a file of `size` bytes that has `pieces` (offset and length of each, disjoint and in order).
fn seek(pieces: impl IntoIterator<Item = (u64, u64)>, size: u64, offset: u64, what: Seek) -> Option<u64> {
    if offset >= size {
        return None;
    }
    // Where what was seen so far is data without a gap.
    let mut end = offset;
    for (start, len) in pieces.into_iter().filter(|(_, len)| *len > 0) {
        let piece_end = start.saturating_add(len);
        if piece_end <= offset {
            continue;
        }
        if what == Seek::Data {
            return Some(start.max(offset));
        }
        if start > end {
            break;
        }
        end = piece_end;
    }
    (what == Seek::Hole).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dense_file_is_data_up_to_its_end() {
        let (data, hole) = (
            |at| seek([(0, 10)], 10, at, Seek::Data),
            |at| seek([(0, 10)], 10, at, Seek::Hole),
        );
        assert_eq!((data(0), data(9), data(10), data(11)), (Some(0), Some(9), None, None));
        assert_eq!((hole(0), hole(9), hole(10), hole(11)), (Some(10), Some(10), None, None));
        assert_eq!(seek([(0, 0)], 0, 0, Seek::Data), None);
        assert_eq!(seek([(0, 0)], 0, 0, Seek::Hole), None);
    }

    /// Bytes 2 to 4 and 4 to 6 and 8 to 9 of 12; the empty piece at the end is what GNU tar writes.
    #[test]
    fn holes_are_between_the_pieces_of_a_sparse_file_and_at_its_end() {
        let pieces = [(2, 2), (4, 2), (8, 1), (12, 0)];
        let found = |what| (0..=12).map(|at| seek(pieces, 12, at, what)).collect::<Vec<_>>();
        let expected = |text: &str| text.split(' ').map(|at| at.parse().ok()).collect::<Vec<_>>();
        assert_eq!(found(Seek::Data), expected("2 2 2 3 4 5 8 8 8 - - - -"));
        assert_eq!(found(Seek::Hole), expected("0 1 6 6 6 6 6 7 9 9 10 11 -"));
    }

    #[test]
    fn a_file_that_is_one_hole_has_no_data() {
        assert_eq!(seek([], 5, 0, Seek::Data), None);
        assert_eq!(seek([], 5, 3, Seek::Hole), Some(3));
        assert_eq!(seek([(5, 0)], 5, 3, Seek::Hole), Some(3));
    }
}
