//! Any bytes as an index file, with right checksums: it is refused, or every answer comes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peelfs::index::{Entries, EntryId, LayerIndex};
use peelfs::range::ByteRange;

/// As in src/index/file.rs: where the length of the windows and the checksum are in the header.
const WINDOWS_AT: usize = 168;
const CHECKSUM_AT: usize = 196;
const HEADER_LEN: usize = 200;

fn with_checksum(bytes: &mut [u8]) -> Option<()> {
    let windows = u64::from_le_bytes(bytes.get(WINDOWS_AT..WINDOWS_AT + 8)?.try_into().ok()?);
    let end = bytes.len().checked_sub(usize::try_from(windows).ok()?)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes.get(..CHECKSUM_AT)?);
    hasher.update(bytes.get(HEADER_LEN..end)?);
    bytes
        .get_mut(CHECKSUM_AT..HEADER_LEN)?
        .copy_from_slice(&hasher.finalize().to_le_bytes());
    Some(())
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = input.to_vec();
    let _ = with_checksum(&mut bytes);
    let Ok(index) = LayerIndex::from_bytes(bytes) else {
        return;
    };
    for id in (0..index.len().min(200)).map(EntryId) {
        if let Some(entry) = index.entry(id) {
            let stored: u64 = entry.pieces().map(|(_, len)| len).sum();
            assert!(stored <= entry.size);
            let _ = entry.xattrs().count();
        }
        for child in index.children(id).into_iter().take(200) {
            assert!(child > id);
            if let Some(entry) = index.entry(child) {
                let _ = index.child(id, entry.name);
            }
        }
        let _ = index.path(id);
    }
    let _ = index.entries_at(ByteRange::new(0, u64::MAX));
    let _ = index.entries_at(ByteRange::at(4096, 100));
    for i in 0..index.spans_len().min(50) {
        let _ = (index.span(i), index.checkpoint(i));
    }
    let _ = index.span_at(1 << 20);
});
