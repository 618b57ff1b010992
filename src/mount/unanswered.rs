//! The reads that the kernel waits for.
//!
//! Whoever hands bytes to the kernel unasked waits for the pages that they belong to, and those of an unanswered read
//! are locked. If the daemon is killed then, that thread cannot end, so the connection is not closed, so the read is
//! never answered: all of them hang until somebody aborts the connection. So nothing is handed over for the pages of a
//! read that was heard of. What is left is a read that the kernel sends in the moment in which its pages are filled.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::range::ByteRange;
use crate::tree::Ino;

/// The reads that were heard of and not answered. They are few: the kernel sends some dozens at once.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    reads: Mutex<Vec<(Ino, ByteRange)>>,
}

/// A read that is not answered for as long as this lives.
#[derive(Debug)]
pub(super) struct Waiting {
    all: Arc<Unanswered>,
    ino: Ino,
    range: ByteRange,
}

impl Unanswered {
    /// Notes a read of the bytes `range` of the file `ino`.
    pub(super) fn begin(self: &Arc<Self>, ino: Ino, range: ByteRange) -> Waiting {
        self.reads.lock().push((ino, range));
        Waiting {
            all: self.clone(),
            ino,
            range,
        }
    }

    /// Whether a read of any byte in `range` of the file `ino` waits.
    pub(super) fn wants(&self, ino: Ino, range: ByteRange) -> bool {
        let reads = self.reads.lock();
        reads.iter().any(|(other, read)| *other == ino && read.overlaps(&range))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut reads = self.all.reads.lock();
        if let Some(at) = reads.iter().position(|read| *read == (self.ino, self.range)) {
            reads.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::EntryId;

    #[test]
    fn a_read_counts_until_it_is_answered() {
        let all = Arc::new(Unanswered::default());
        let (one, other) = (Ino::own(0, EntryId(1)), Ino::own(0, EntryId(2)));
        let read = ByteRange::at(4096, 8192);
        let first = all.begin(one, read);
        let second = all.begin(one, read);
        assert!(all.wants(one, ByteRange::at(0, 4097)) && all.wants(one, ByteRange::at(12287, 1)));
        assert!(!all.wants(one, ByteRange::at(0, 4096)) && !all.wants(one, ByteRange::at(12288, 1)));
        assert!(!all.wants(other, read));
        drop(first);
        assert!(all.wants(one, read));
        drop(second);
        assert!(!all.wants(one, read));
    }
}
