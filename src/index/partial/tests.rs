use std::fs;

use super::*;
use crate::digest::Hasher;
use crate::index::{Entries, EntryId, LayerFacts};
use crate::stream::Compression;

/// Bytes between checkpoints: so few that groups of headers lie across them.
const SPAN: usize = 1100;

/// A tar with files of some length, headers with much in them, and links.
fn stream() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for i in 0..9u64 {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_mtime(i);
        if i % 3 == 0 {
            let big = vec![b'v'; 1100];
            tar.append_pax_extensions([("SCHILY.xattr.user.big", big.as_slice()), ("mtime", b"7.5")])
                .unwrap();
        }
        if i % 4 == 3 {
            header.set_entry_type(tar::EntryType::Link);
            header.set_size(0);
            tar.append_link(&mut header, format!("link{i}"), format!("d/{}", i - 1))
                .unwrap();
        } else {
            let data = vec![i as u8; 500 * (i as usize % 5)];
            header.set_size(data.len() as u64);
            let name = if i % 5 == 4 { "d/0".to_owned() } else { format!("d/{i}") };
            tar.append_data(&mut header, name, data.as_slice()).unwrap();
        }
    }
    tar.into_inner().unwrap()
}

fn digest() -> Digest {
    Digest::sha256(b"layer")
}

/// Goes on with a scan of a plain stream up to `until`; gives the index file if that is the end.
fn scan(stream: &[u8], mut log: PartialLog, mut start: Start, until: usize) -> Option<Vec<u8>> {
    let mut position = start.checkpoint.decompressed as usize;
    let mut diff_id = match &start.state {
        Some(state) => Hasher::restore(&state.diff_id).unwrap(),
        None => digest().hasher(),
    };
    let mut span_start = position;
    assert_eq!(start.scanner.position(), position as u64);
    while position < until {
        let next = (position / SPAN + 1) * SPAN;
        let piece = &stream[position..next.min(until)];
        start.scanner.feed(piece, &mut start.index).unwrap();
        diff_id.update(piece);
        position += piece.len();
        if position == next {
            let closed = blake3::hash(&stream[span_start..position]);
            let at = position as u64;
            let next = Checkpoint {
                compressed: at,
                bits: 0,
                decompressed: at,
                // Most are left out, as compressing them takes most of the test's time.
                window: if at.is_multiple_of(5) {
                    stream[position - 64..position].into()
                } else {
                    Box::default()
                },
            };
            start.index.add_checkpoint(closed.into(), &next).unwrap();
            let state = ScanState {
                diff_id: diff_id.save(),
                other: vec![1],
                ..ScanState::default()
            };
            log.append(&mut start.index, start.scanner.next_group(), &state);
            span_start = position;
        }
    }
    if until < stream.len() {
        return None;
    }
    start.scanner.finish().unwrap();
    let facts = LayerFacts {
        digest: digest(),
        diff_id: diff_id.finish(),
        compression: Compression::None,
        compressed_size: stream.len() as u64,
        decompressed_size: stream.len() as u64,
    };
    log.remove();
    let last = blake3::hash(&stream[span_start..]);
    Some(start.index.finish(&facts, last.into()))
}

/// The index file of a scan that nothing interrupts, and the log of one that was killed at its very end.
fn whole(stream: &[u8], path: &Path) -> (Vec<u8>, Vec<u8>) {
    let complete = scan(stream, PartialLog::none(), Start::fresh(), stream.len()).unwrap();
    let (log, start) = PartialLog::create_or_resume(path, &digest());
    assert!(start.state.is_none() && log.is_recording());
    scan(stream, log, start, stream.len() - 1);
    (complete, fs::read(path).unwrap())
}

#[test]
fn a_scan_cut_anywhere_ends_like_one_that_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let stream = stream();
    let (complete, log) = whole(&stream, &path);
    let mut furthest = 0;
    for cut in (0..log.len()).rev() {
        fs::write(&path, &log[..cut]).unwrap();
        let (log, start) = PartialLog::create_or_resume(&path, &digest());
        furthest = furthest.max(start.checkpoint.decompressed);
        assert!(
            scan(&stream, log, start, stream.len()).unwrap() == complete,
            "cut at {cut}"
        );
        assert!(!path.exists());
    }
    assert!(furthest as usize > stream.len() - 2 * SPAN, "nearly all of it was kept");
}

#[test]
fn a_scan_killed_time_and_again_comes_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let stream = stream();
    let (complete, _) = whole(&stream, &path);
    fs::remove_file(&path).unwrap();
    // The log is cut a little each time too, as if a record had been torn.
    let mut until = 0;
    let result = loop {
        until = (until + 1300).min(stream.len());
        let (log, start) = PartialLog::create_or_resume(&path, &digest());
        let begin = start.checkpoint.decompressed as usize;
        if let Some(index) = scan(&stream, log, start, until.max(begin)) {
            break index;
        }
        let log = fs::read(&path).unwrap();
        if until % 3 == 0 {
            fs::write(&path, &log[..log.len() - 5]).unwrap();
        }
    };
    assert!(result == complete);
}

#[test]
fn damage_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let stream = stream();
    let (complete, log) = whole(&stream, &path);
    for i in (0..log.len()).step_by(3) {
        let mut damaged = log.clone();
        damaged[i] ^= 0x20;
        fs::write(&path, &damaged).unwrap();
        let (log, start) = PartialLog::create_or_resume(&path, &digest());
        assert!(
            scan(&stream, log, start, stream.len()).unwrap() == complete,
            "damaged at {i}"
        );
    }
}

#[test]
fn the_log_of_another_layer_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let stream = stream();
    whole(&stream, &path);
    let (log, start) = PartialLog::create_or_resume(&path, &Digest::sha256(b"another"));
    assert!(start.state.is_none() && log.is_recording());
    assert_eq!(start.index.len(), 1);
}

#[test]
fn one_process_records_and_others_go_without() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (first, _) = PartialLog::create_or_resume(&path, &digest());
    let (second, start) = PartialLog::create_or_resume(&path, &digest());
    assert!(first.is_recording() && !second.is_recording());
    assert!(start.index.child(EntryId::ROOT, b"d").is_none());
    second.remove();
    assert!(path.exists(), "it is not his");
    first.remove();
    assert!(!path.exists());
    let (third, _) = PartialLog::create_or_resume(&dir.path().join("no/such/dir"), &digest());
    assert!(!third.is_recording());
}
