//! Any bytes as an index file, and a real one with any changes, with right checksums: it is refused, or every answer comes.
#![no_main]

mod changed;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use peelfs::digest::Digest;
use peelfs::index::{Entries, EntryId, GrowingIndex, Kind, LayerFacts, LayerIndex, Member};
use peelfs::range::ByteRange;
use peelfs::stream::{Checkpoint, Compression};

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

/// An index with something of everything.
static REAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut index = GrowingIndex::new();
    let member = |kind, name: &str, link: &str| Member {
        kind,
        name: name.into(),
        link: link.into(),
        ..Member::default()
    };
    let file = |name: &str, start, len| Member {
        size: len,
        data: ByteRange::at(start, len),
        ..member(Kind::File, name, "")
    };
    for member in [
        member(Kind::Directory, "d", ""),
        file("d/file", 512, 2000),
        file("d/.wh.gone", 4096, 0),
        Member {
            sparse: Some(vec![(10, 100), (500, 7)]),
            xattrs: vec![(b"user.a".to_vec(), b"value".to_vec())],
            data: ByteRange::at(5120, 107),
            ..file("d/sparse", 5120, 1000)
        },
        member(Kind::Symlink, "d/link", "../x"),
        member(Kind::Hardlink, "e/name", "d/file"),
        member(Kind::Hardlink, "e/lower", "elsewhere"),
        member(Kind::Hardlink, "e/again", "e/lower"),
        member(Kind::Symlink, "s", "d"),
        file("s/other", 6000, 7),
        member(Kind::Directory, "s/more", ""),
        member(Kind::Directory, "d/more", ""),
        member(Kind::Hardlink, "none", "d"),
        member(Kind::CharDevice, "e/null", ""),
        member(Kind::Fifo, "e/pipe", ""),
    ] {
        index.add(&member).expect("few members");
    }
    for i in 1..4 {
        let checkpoint = Checkpoint {
            compressed: 1000 * i,
            bits: 3,
            decompressed: 2000 * i,
            window: vec![i as u8; 300].into(),
        };
        index
            .add_checkpoint([i as u8; 32], &checkpoint)
            .expect("they are in order");
    }
    let facts = LayerFacts {
        digest: Digest::sha256(b""),
        diff_id: Digest::sha256(b""),
        compression: Compression::Gzip,
        compressed_size: 4000,
        decompressed_size: 8000,
    };
    index.finish(&facts, [0; 32])
});

fuzz_target!(|input: &[u8]| {
    let mut bytes = match input {
        [0, changes @ ..] => changed::changed(&REAL, changes),
        bytes => bytes.to_vec(),
    };
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
    let _ = index.written_otherwise();
    for member in index.members().take(1000) {
        let _ = (member.entry.id, index.written_name(member.entry.id));
    }
    let _ = index.entries_at(ByteRange::new(0, u64::MAX));
    let _ = index.entries_at(ByteRange::at(4096, 100));
    for i in 0..index.spans_len().min(50) {
        let _ = (index.span(i), index.checkpoint(i));
    }
    let _ = index.span_at(1 << 20);
});
