//! Streams made at random.

use flate2::GzBuilder;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn content() -> impl Strategy<Value = Vec<u8>> {
    (0..5u8, 0..60_000usize, any::<u32>()).prop_map(|(kind, len, seed)| match kind {
        0 => noise(len, seed),
        1 => vec![seed as u8; len],
        2 => prose(len % 200, seed),
        3 => mixed(len * 3, seed),
        _ => prose(len * 3, seed),
    })
}

fn cuts() -> impl Strategy<Value = Cuts> {
    let sizes = || prop_oneof![1..8usize, 1..600usize, 1_000..70_000usize, Just(usize::MAX)];
    (vec(sizes(), 1..5), vec(sizes(), 1..5), 1..40_000u64).prop_map(|(pieces, rooms, due)| Cuts {
        // Pieces and rooms of a few bytes only would take all day.
        pieces: pieces.into_iter().chain([9_000]).collect(),
        rooms: rooms.into_iter().chain([20_000]).collect(),
        due,
    })
}

/// A gzip member with some header fields, and perhaps a flush (an empty stored block) at its start and in it.
fn member() -> impl Strategy<Value = Vec<u8>> {
    let level = prop_oneof![Just(0), Just(1), Just(6), Just(9)];
    (content(), level, any::<[bool; 5]>()).prop_map(|(data, level, [name, extra, comment, early, late])| {
        let mut header = GzBuilder::new().mtime(7);
        if name {
            header = header.filename("layer.tar");
        }
        if extra {
            header = header.extra(noise(300, 5));
        }
        if comment {
            header = header.comment("no comment");
        }
        let mut encoder = header.write(Vec::new(), Level::new(level));
        if early {
            encoder.flush().unwrap();
        }
        let (a, b) = data.split_at(data.len() / 3);
        encoder.write_all(a).unwrap();
        if late {
            encoder.flush().unwrap();
            encoder.flush().unwrap();
        }
        encoder.write_all(b).unwrap();
        encoder.finish().unwrap()
    })
}

fn leftovers() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        (1..3000usize).prop_map(|len| vec![0; len]),
        Just(b"garbage".to_vec()),
        Just(vec![0x1f]),
        Just(vec![0, 0, 0x1f, 0x8c, 0x1f, 0x8b]),
    ]
}

fn zstd_piece() -> impl Strategy<Value = Vec<u8>> {
    (content(), prop_oneof![Just(-5), Just(1), Just(3), Just(12)], 0..5u8).prop_map(|(data, level, kind)| match kind {
        0 => skippable(&data[..data.len().min(3000)]),
        1 => {
            // Without a content size, and with a checksum.
            let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), level).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(&data).unwrap();
            encoder.finish().unwrap()
        }
        2 => ::zstd::bulk::compress(&data, level).unwrap(),
        _ => zstd_frame(&data, level),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_gzip_stream_can_be_entered_at_any_checkpoint(
        members in vec(member(), 1..5),
        leftovers in leftovers(),
        cuts in cuts(),
    ) {
        let stream = members.concat();
        let data = truth(Compression::Gzip, &stream);
        check(Compression::Gzip, &[stream, leftovers].concat(), &data, &cuts);
    }

    #[test]
    fn any_zstd_stream_can_be_entered_at_any_checkpoint(pieces in vec(zstd_piece(), 1..6), cuts in cuts()) {
        let stream = pieces.concat();
        let data = truth(Compression::Zstd, &stream);
        check(Compression::Zstd, &stream, &data, &cuts);
    }

    #[test]
    fn an_uncompressed_stream_can_be_entered_anywhere(data in content(), piece in 1..50_000usize, room in 1..50_000usize) {
        let cuts = Cuts { pieces: vec![piece], rooms: vec![room], due: u64::MAX };
        check(Compression::None, &data, &data, &cuts);
        let at = data.len() / 2;
        let checkpoint = Checkpoint { compressed: at as u64, decompressed: at as u64, ..Checkpoint::start() };
        let tail = run(Decoder::resume(Compression::None, &checkpoint).unwrap(), &data[at..], &cuts);
        prop_assert!(tail.data == data[at..]);
    }

    #[test]
    fn a_truncated_gzip_stream_is_an_error(members in vec(member(), 1..4), keep in any::<prop::sample::Index>(), cuts in cuts()) {
        let ends: Vec<usize> = members.iter().scan(0, |end, member| { *end += member.len(); Some(*end) }).collect();
        let stream = members.concat();
        let keep = keep.index(stream.len());
        let cut = run(Decoder::new(Compression::Gzip).unwrap(), &stream[..keep], &cuts);
        // Behind a member it may end; the first byte of the next one alone could be anything.
        let legal = ends.contains(&keep) || ends.contains(&keep.wrapping_sub(1));
        prop_assert_eq!(cut.result.is_ok(), legal, "{:?} of {:?}", keep, ends);
        prop_assert!(truth(Compression::Gzip, &stream).starts_with(&cut.data));
        for checkpoint in &cut.checkpoints {
            let tail = &stream[checkpoint.read_from() as usize..keep];
            let tail = run(Decoder::resume(Compression::Gzip, checkpoint).unwrap(), tail, &cuts);
            prop_assert_eq!(tail.result.is_ok(), legal);
        }
    }

    #[test]
    fn a_truncated_zstd_stream_is_an_error(pieces in vec(zstd_piece(), 1..4), keep in any::<prop::sample::Index>(), cuts in cuts()) {
        let ends: Vec<usize> = pieces.iter().scan(0, |end, piece| { *end += piece.len(); Some(*end) }).collect();
        let stream = pieces.concat();
        let keep = keep.index(stream.len());
        let cut = run(Decoder::new(Compression::Zstd).unwrap(), &stream[..keep], &cuts);
        prop_assert_eq!(cut.result.is_ok(), ends.contains(&keep));
        prop_assert!(truth(Compression::Zstd, &stream).starts_with(&cut.data));
    }

    #[test]
    fn damage_is_noticed_or_changes_nothing(
        data in content(),
        zstd in any::<bool>(),
        flips in vec((any::<prop::sample::Index>(), 0..8u8), 1..4),
        cuts in cuts(),
    ) {
        let (compression, mut stream) = if zstd {
            let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(&data).unwrap();
            (Compression::Zstd, encoder.finish().unwrap())
        } else {
            (Compression::Gzip, gzip(&data, 6))
        };
        let sound = run(Decoder::new(compression).unwrap(), &stream, &cuts);
        for (at, bit) in flips {
            let at = at.index(stream.len());
            stream[at] ^= 1 << bit;
        }
        let damaged = run(Decoder::new(compression).unwrap(), &stream, &cuts);
        // A zstd frame's checksum is itself optional, by a bit of the header.
        if damaged.result.is_ok() && !zstd {
            prop_assert!(damaged.data == data);
        }
        for checkpoint in &sound.checkpoints {
            let tail = &stream[checkpoint.read_from() as usize..];
            run(Decoder::resume(compression, checkpoint).unwrap(), tail, &cuts);
            let _ = decode_span(compression, checkpoint, tail, 0, data.len());
        }
    }

    #[test]
    fn arbitrary_bytes_and_checkpoints_never_panic(
        bytes in vec(any::<u8>(), 0..400),
        magic in 0..4usize,
        bits in 0..9u8,
        following in any::<u8>(),
        window in 0..40_000usize,
        compressed in prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>()],
        len in prop_oneof![0..1000usize, Just(usize::MAX), any::<usize>()],
        cuts in cuts(),
    ) {
        let magic: &[u8] = [&b""[..], &[0x1f, 0x8b, 8], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18]][magic];
        let stream = [magic, &bytes].concat();
        let window = if window % 3 == 0 { Box::default() } else { noise(window, 3).into() };
        let at = Checkpoint { compressed, bits, decompressed: 1 << 40, window };
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let _ = run(Decoder::new(compression).unwrap(), &stream, &cuts);
            let _ = decode_span(compression, &at, &stream, following, len);
            if let Ok(decoder) = Decoder::resume(compression, &at) {
                let _ = run(decoder, &stream, &cuts);
            }
        }
    }
}
