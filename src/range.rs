//! Half-open ranges of byte offsets, in a blob or in a decompressed stream.

use std::fmt;

/// Bytes `start..end` of something; never inverted, possibly empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The range from `start` up to, not including, `end`; empty at `start` if `end` lies before it.
    pub const fn new(start: u64, end: u64) -> Self {
        let end = if end < start { start } else { end };
        ByteRange { start, end }
    }

    /// `len` bytes from `start` on; cut at the largest offset there is.
    pub const fn at(start: u64, len: u64) -> Self {
        ByteRange {
            start,
            end: start.saturating_add(len),
        }
    }

    /// Offset of the first byte.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Offset behind the last byte.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Number of bytes.
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether every byte of `other` is in this range.
    pub const fn contains(&self, other: &ByteRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The bytes that both have; empty if there are none.
    pub fn intersection(&self, other: &ByteRange) -> ByteRange {
        ByteRange::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether there is a byte that both have.
    pub fn overlaps(&self, other: &ByteRange) -> bool {
        !self.intersection(other).is_empty()
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_never_inverted() {
        assert_eq!(ByteRange::new(7, 3), ByteRange::new(7, 7));
        assert_eq!(ByteRange::at(u64::MAX - 1, 5).len(), 1);
    }

    #[test]
    fn intersection_of_disjoint_ranges_is_empty() {
        let (a, b) = (ByteRange::new(0, 4), ByteRange::new(6, 9));
        assert!(a.intersection(&b).is_empty());
        assert!(!a.overlaps(&b));
        assert!(ByteRange::new(0, 9).contains(&b));
    }
}
