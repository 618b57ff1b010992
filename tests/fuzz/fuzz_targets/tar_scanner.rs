//! Any stream at all, in pieces: it is indexed or refused, within bounds, and the index answers alike when complete.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peelfs::digest::Digest;
use peelfs::index::{Entries, EntryId, GrowingIndex, LayerFacts, LayerIndex, TarScanner};
use peelfs::range::ByteRange;
use peelfs::stream::Compression;

const BLOCK: usize = 512;

/// Headers rarely have a right checksum by chance: each block that looks like one gets it. The first byte of the input
/// tells whether.
fn with_checksums(stream: &mut [u8]) {
    for block in stream
        .chunks_exact_mut(BLOCK)
        .filter(|block| block[257..262] == *b"ustar")
    {
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fuzz_target!(|input: &[u8]| {
    let [how, piece, stream @ ..] = input else { return };
    let mut stream = stream.to_vec();
    if how % 2 == 1 {
        with_checksums(&mut stream);
    }
    let (mut scanner, mut index) = (TarScanner::new(), GrowingIndex::new());
    for piece in stream.chunks(usize::from(*piece) * 7 + 1) {
        if scanner.feed(piece, &mut index).is_err() {
            break;
        }
    }
    let _ = scanner.finish();
    let facts = LayerFacts {
        digest: Digest::sha256(b""),
        diff_id: Digest::sha256(b""),
        compression: Compression::None,
        compressed_size: stream.len() as u64,
        decompressed_size: stream.len() as u64,
    };
    let complete = LayerIndex::from_bytes(index.finish(&facts, [0; 32])).expect("it was written just now");
    assert_eq!(index.len(), complete.len());
    for id in (0..index.len()).map(EntryId) {
        let (growing, entry) = (
            index.entry(id).expect("it is there"),
            complete.entry(id).expect("it is there"),
        );
        assert_eq!(
            (growing.name, growing.nlink, growing.data),
            (entry.name, entry.nlink, entry.data)
        );
        assert!(entry.parent < id || id == EntryId::ROOT);
        assert!(growing.xattrs().eq(entry.xattrs()) && growing.pieces().eq(entry.pieces()));
        assert_eq!(index.children(id), complete.children(id));
    }
    let all = ByteRange::new(0, u64::MAX);
    assert_eq!(index.entries_at(all), complete.entries_at(all));
    assert!(index.drain_warnings().len() < 1000);
});
