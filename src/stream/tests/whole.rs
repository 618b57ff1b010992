//! Which spans are decoded as a whole; that they are right is checked with all others.

use super::*;
use crate::stream::whole::inflate;

/// All places between the blocks of `stream`, and its end.
fn places(stream: &[u8], data: &[u8]) -> Vec<Checkpoint> {
    let mut places = check(Compression::Gzip, stream, data, &Cuts::every(1));
    places.push(Checkpoint {
        compressed: stream.len() as u64,
        decompressed: data.len() as u64,
        ..Checkpoint::start()
    });
    places
}

/// The compressed bytes between two places.
fn between<'a>(stream: &'a [u8], from: &Checkpoint, to: &Checkpoint) -> &'a [u8] {
    &stream[from.read_from() as usize..to.compressed as usize]
}

/// All spans between two places in one member, up to 1 MiB, are decoded as a whole. Gives the bits at which they began,
/// and the compressed bytes of each that began inside of a byte.
fn all_whole<'a>(stream: &'a [u8], data: &[u8]) -> ([bool; 8], Vec<&'a [u8]>) {
    let places = places(stream, data);
    let (mut bits, mut inside) = ([false; 8], Vec::new());
    for (from, to) in places[1..]
        .iter()
        .flat_map(|from| places.iter().map(move |to| (from, to)))
    {
        let len = to.decompressed.saturating_sub(from.decompressed) as usize;
        if len == 0 || len > 1 << 20 {
            continue;
        }
        let compressed = between(stream, from, to);
        let span = inflate(from, compressed, to.bits, len).expect("a sound span");
        assert!(
            span == data[from.decompressed as usize..][..len],
            "{from:?} to {to:?}: other bytes"
        );
        bits[usize::from(from.bits)] = true;
        if from.bits != 0 {
            inside.push(compressed);
        }
    }
    (bits, inside)
}

#[test]
fn every_span_inside_of_a_member_is() {
    let mut bits = [false; 8];
    for level in [1, 6, 9] {
        let data = mixed(3 << 20, level);
        let (some, _) = all_whole(&gzip(&data, level), &data);
        bits = std::array::from_fn(|number| bits[number] || some[number]);
    }
    assert_eq!(bits, [true; 8], "the bits at which spans began");
}

/// A stored block goes on at the next whole byte, wherever the span began.
#[test]
fn stored_blocks_keep_their_bytes() {
    for level in [6, 9] {
        let stored = noise(150_000, level);
        let data: Vec<u8> = (0..6)
            .flat_map(|seed| [mixed(200_000 + seed * 7, seed as u32), stored.clone()].concat())
            .collect();
        let stream = gzip(&data, level);
        let (_, inside) = all_whole(&stream, &data);
        let has_stored = |span: &&[u8]| span.windows(100).any(|bytes| bytes == &stored[100_000..100_100]);
        assert!(inside.iter().any(has_stored), "level {level}");
    }
}

#[test]
fn others_are_not() {
    let data = mixed(1 << 20, 7);
    let one = gzip(&data, 6);
    let (two, twice) = ([&one[..], &one].concat(), [&data[..], &data].concat());
    let places = places(&two, &twice);
    let split = places
        .iter()
        .position(|place| place.bits != 0 && place.decompressed > 0)
        .unwrap();
    let (from, to) = (&places[split], &places[split + 1]);
    let span = between(&two, from, to);
    let len = (to.decompressed - from.decompressed) as usize;
    assert!(inflate(from, span, to.bits, len).is_some());

    assert_eq!(inflate(from, span, to.bits, len - 1), None, "a part of it");
    assert_eq!(inflate(from, span, to.bits, len + 1), None, "more than it has");
    assert_eq!(inflate(from, span, to.bits, usize::MAX), None, "more than there can be");
    assert_eq!(
        inflate(from, &span[..span.len() / 2], to.bits, len),
        None,
        "half of its bytes"
    );
    assert_eq!(inflate(from, &[], to.bits, len), None, "none of them");
    assert_eq!(inflate(from, &span[..1], 8, len), None, "more bits than a byte has");
    let start = &places[0];
    let first = between(&two, start, &places[1]);
    assert_eq!(
        inflate(start, first, places[1].bits, places[1].decompressed as usize),
        None,
        "a header"
    );
    let across = between(&two, from, places.last().unwrap());
    let rest = twice.len() - from.decompressed as usize;
    assert_eq!(inflate(from, across, 0, rest), None, "two members");
    let short = Checkpoint {
        window: from.window[..1000].into(),
        ..from.clone()
    };
    assert_eq!(
        inflate(&short, span, to.bits, len),
        None,
        "a window that lacks what is referred to"
    );
    for window in [WINDOW + 1, 1 << 16] {
        let long = Checkpoint {
            window: vec![0; window].into(),
            ..from.clone()
        };
        assert_eq!(inflate(&long, span, to.bits, len), None, "a window of {window} bytes");
    }
}
