//! Maps of sparse files: which pieces of a file are stored, in the forms that GNU tar has had.

use super::header::number;
use super::pax::decimal;

/// Offset in the file and length of each piece that is stored.
pub(super) type Pieces = Vec<(u64, u64)>;

/// Pieces that a file may have.
pub(super) const MAX_PIECES: usize = 1 << 17;

/// Bytes of one piece in an old GNU header or the blocks behind it: two numbers.
const OLD_PIECE: usize = 24;

/// Takes the pieces from a block of the old GNU form; unused places are NUL.
pub(super) fn old_pieces(block: &[u8], into: &mut Pieces) -> Option<()> {
    for piece in block.chunks_exact(OLD_PIECE) {
        let (offset, len) = piece.split_at_checked(OLD_PIECE / 2)?;
        if offset.first() == Some(&0) || len.first() == Some(&0) {
            break;
        }
        into.push((u64::try_from(number(offset)?).ok()?, u64::try_from(number(len)?).ok()?));
    }
    Some(())
}

/// The map that stands before a file's data in the form 1.0: decimal numbers, one a line, the first their count.
pub(super) enum TextMap {
    /// More blocks are needed.
    Unfinished,
    /// All pieces.
    Complete(Pieces),
    /// No map at all.
    Malformed,
}

/// Collects the blocks of such a map.
#[derive(Default)]
pub(super) struct MapReader {
    text: Vec<u8>,
    lines: u64,
}

impl MapReader {
    /// Bytes of the blocks so far.
    pub fn len(&self) -> u64 {
        self.text.len() as u64
    }

    /// Takes in the next block.
    pub fn take(&mut self, block: &[u8]) -> TextMap {
        self.text.extend_from_slice(block);
        self.lines += block.iter().filter(|byte| **byte == b'\n').count() as u64;
        if self.lines == 0 {
            return TextMap::Unfinished;
        }
        self.read().map_or(TextMap::Malformed, |pieces| {
            pieces.map_or(TextMap::Unfinished, TextMap::Complete)
        })
    }

    /// The pieces, once there are as many lines as the first one asks for.
    fn read(&self) -> Option<Option<Pieces>> {
        let mut numbers = self.text.split(|byte| *byte == b'\n').map(decimal);
        let count = numbers.next()??;
        if count > MAX_PIECES as u64 {
            return None;
        }
        if self.lines < 1 + 2 * count {
            return Some(None);
        }
        (0..count)
            .map(|_| Some((numbers.next()??, numbers.next()??)))
            .collect::<Option<Pieces>>()
            .map(Some)
    }
}

/// The pieces of a file of `size` with `stored` bytes, empty ones left out; `None` if they contradict that.
pub(super) fn checked(pieces: Pieces, size: u64, stored: u64) -> Option<Pieces> {
    let (mut from, mut sum) = (0, 0u64);
    for (offset, len) in &pieces {
        let end = offset.checked_add(*len)?;
        if *offset < from || end > size {
            return None;
        }
        from = end;
        sum += len;
    }
    (sum <= stored).then(|| pieces.into_iter().filter(|(_, len)| *len > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_must_be_in_order_and_inside() {
        assert_eq!(checked(vec![(0, 2), (5, 0), (5, 3)], 8, 5), Some(vec![(0, 2), (5, 3)]));
        assert_eq!(checked(vec![(0, 2), (1, 3)], 8, 5), None);
        assert_eq!(checked(vec![(0, 2), (5, 4)], 8, 6), None);
        assert_eq!(checked(vec![(0, 2), (5, 3)], 8, 4), None);
        assert_eq!(checked(vec![(u64::MAX, 2)], 8, 4), None);
    }

    #[test]
    fn a_text_map_can_come_in_pieces() {
        let whole = b"2\n0\n10\n20\n5\n\0\0";
        for cut in 0..12 {
            let mut reader = MapReader::default();
            assert!(matches!(reader.take(&whole[..cut]), TextMap::Unfinished), "{cut}");
            assert!(matches!(reader.take(&whole[cut..]), TextMap::Complete(pieces) if pieces == [(0, 10), (20, 5)]));
        }
        assert!(matches!(MapReader::default().take(b"x\n"), TextMap::Malformed));
        assert!(matches!(MapReader::default().take(b"1\n0\n-1\n"), TextMap::Malformed));
        assert!(matches!(MapReader::default().take(b"9999999999\n"), TextMap::Malformed));
    }
}
