//! Any records in the log of a scan, with right checksums: the scan begins somewhere, and can go on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peelfs::digest::Digest;
use peelfs::index::{Entries, EntryId, PartialLog};

fuzz_target!(|input: &[u8]| {
    let digest = Digest::sha256(b"");
    let dir = tempfile::tempdir().expect("a directory for the log");
    let path = dir.path().join("log");
    // The header of a fresh log, then the input cut into records: two bytes of length, then as many of payload.
    let (log, _) = PartialLog::create_or_resume(&path, &digest);
    drop(log);
    let mut bytes = std::fs::read(&path).expect("the log was made just now");
    let mut rest = input;
    while let [low, high, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (payload, tail) = tail.split_at(len);
        bytes.extend_from_slice(&(len as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
        bytes.extend_from_slice(payload);
        rest = tail;
    }
    std::fs::write(&path, bytes).expect("the log can be written");
    let (log, mut start) = PartialLog::create_or_resume(&path, &digest);
    assert_eq!(start.scanner.position(), start.checkpoint.decompressed);
    for id in (0..start.index.len()).map(EntryId) {
        let _ = start
            .index
            .entry(id)
            .map(|entry| (entry.xattrs().count(), entry.pieces().count()));
        let _ = start.index.children(id);
    }
    let _ = start.scanner.feed(&[0; 2048], &mut start.index);
    drop(log);
});
