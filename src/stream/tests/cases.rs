//! Streams made by hand, one rule each.

use super::*;

#[test]
fn a_format_is_recognised_by_its_magic() {
    for (bytes, compression) in [
        (&gzip(b"", 6)[..], Compression::Gzip),
        (&zstd_frame(b"", 3), Compression::Zstd),
        (&skippable(b""), Compression::Zstd),
        (b"ustar", Compression::None),
        (b"", Compression::None),
    ] {
        assert_eq!(Compression::detect(bytes), compression);
    }
}

#[test]
fn very_dense_streams_keep_to_the_room_and_have_checkpoints() {
    for (compression, stream) in [
        (Compression::Gzip, gzip(&vec![0; 8 << 20], 9)),
        (Compression::Zstd, zstd_frame(&vec![0; 8 << 20], 3)),
    ] {
        assert!(stream.len() < 9000, "{}", stream.len());
        let cuts = Cuts {
            rooms: vec![100_000],
            ..Cuts::every(1 << 20)
        };
        check(compression, &stream, &vec![0; 8 << 20], &cuts);
        // A small piece of input does not reserve all the room there is.
        let mut out = Vec::new();
        let mut decoder = Decoder::new(compression).unwrap();
        decoder.decode(&stream[..20], &mut out, 1 << 30, false).unwrap();
        assert!(out.capacity() <= 16 << 20, "{}", out.capacity());
    }
}

#[test]
fn checkpoints_come_at_the_distance_asked_for() {
    let data = mixed(3 << 20, 8);
    for level in [3, 6, 9] {
        let checkpoints = check(Compression::Gzip, &gzip(&data, level), &data, &Cuts::every(64 << 10));
        assert!(checkpoints.len() > 4, "{}", checkpoints.len());
        for (a, b) in checkpoints.iter().zip(&checkpoints[1..]) {
            assert!(b.decompressed - a.decompressed >= 64 << 10);
            assert_eq!(b.window.len(), WINDOW);
        }
    }
}

#[test]
fn a_window_grows_from_what_it_was_resumed_with() {
    // Blocks of a few KiB each, so that there are checkpoints before 32 KiB of output.
    let mut encoder = GzEncoder::new(Vec::new(), Level::new(6));
    let data = prose(100_000, 3);
    for piece in data.chunks(3000) {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    let checkpoints = check(Compression::Gzip, &encoder.finish().unwrap(), &data, &Cuts::every(1));
    assert!(checkpoints.len() > 30);
    for checkpoint in checkpoints {
        assert_eq!(checkpoint.window.len(), (checkpoint.decompressed as usize).min(WINDOW));
    }
}

#[test]
fn a_member_boundary_is_a_checkpoint_without_a_window() {
    let data = prose(5000, 1);
    let one = gzip(&data, 6);
    let checkpoints = check(
        Compression::Gzip,
        &[&one[..], &[0; 7], &one].concat(),
        &[&data[..], &data].concat(),
        &Cuts::every(4999),
    );
    let boundary = checkpoints.iter().find(|at| at.decompressed == 5000).unwrap();
    assert_eq!((boundary.compressed, boundary.bits), (one.len() as u64 + 7, 0));
    assert!(boundary.window.is_empty());
}

#[test]
fn empty_members_and_empty_blocks_make_no_checkpoints() {
    let empty = gzip(b"", 6);
    let mut flushed = GzEncoder::new(Vec::new(), Level::new(6));
    flushed.flush().unwrap();
    let flushed = flushed.finish().unwrap();
    let stream = [&empty[..], &flushed, &gzip(b"a", 6), &empty, &flushed, &empty].concat();
    let checkpoints = check(Compression::Gzip, &stream, b"a", &Cuts::every(0));
    // One behind the "a": what follows gives nothing more.
    assert_eq!(checkpoints.len(), 2);
}

#[test]
fn a_header_with_every_field_is_read_and_its_crc_verified() {
    let raw = |data: &[u8]| {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Level::new(6));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let mut header = vec![0x1f, 0x8b, 8, 0x1f, 1, 2, 3, 4, 0, 3];
    header.extend_from_slice(b"\x05\x00extra" as &[u8]);
    header.extend_from_slice(b"name\0comment\0");
    let crc = crc32fast::hash(&header) as u16;
    header.extend_from_slice(&crc.to_le_bytes());
    let data = prose(20_000, 2);
    let trailer = [crc32fast::hash(&data).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
    let mut stream = [header.clone(), raw(&data), trailer].concat();
    for piece in [1, 3, usize::MAX] {
        let cuts = Cuts {
            pieces: vec![piece],
            ..Cuts::every(1000)
        };
        check(Compression::Gzip, &stream, &data, &cuts);
    }
    stream[header.len() - 1] ^= 1;
    let result = run(Decoder::new(Compression::Gzip).unwrap(), &stream, &Cuts::whole()).result;
    assert!(matches!(result, Err(StreamError::Corrupt { .. })), "{result:?}");
}

#[test]
fn a_wrong_crc_or_length_is_an_error_and_skipped_in_a_member_entered_in_the_middle() {
    let data = mixed(400_000, 4);
    let sound = [gzip(&data, 6), gzip(b"second", 6)].concat();
    let first = gzip(&data, 6).len();
    let at = run(Decoder::new(Compression::Gzip).unwrap(), &sound, &Cuts::every(1000)).checkpoints[0].clone();
    assert!(!at.window.is_empty());
    for damaged in [first - 8, first - 1] {
        let mut stream = sound.clone();
        stream[damaged] ^= 1;
        let result = run(Decoder::new(Compression::Gzip).unwrap(), &stream, &Cuts::whole()).result;
        assert!(matches!(result, Err(StreamError::Corrupt { .. })), "{result:?}");
        let decoder = Decoder::resume(Compression::Gzip, &at).unwrap();
        let rest = run(decoder, &stream[at.read_from() as usize..], &Cuts::whole());
        assert_eq!(rest.result, Ok(()));
        assert!(rest.data == [&data[at.decompressed as usize..], b"second"].concat());
    }
}

#[test]
fn what_is_no_stream_of_the_format_is_an_error() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        for stream in [&b""[..], b"\x1f", b"plain text, and some more of it", &[0; 100]] {
            let result = run(Decoder::new(compression).unwrap(), stream, &Cuts::whole()).result;
            assert!(result.is_err(), "{compression} {stream:?}");
        }
    }
}

#[test]
fn leftovers_behind_the_last_member_are_consumed() {
    let stream = [&gzip(b"data", 6)[..], &[0; 100], b"left over"].concat();
    let mut decoder = Decoder::new(Compression::Gzip).unwrap();
    let mut out = Vec::new();
    let decoded = decoder.decode(&stream, &mut out, 100, false).unwrap();
    assert_eq!((decoded.consumed, decoded.status), (stream.len(), Status::NeedsInput));
    assert_eq!(decoder.compressed(), stream.len() as u64);
    assert_eq!((decoder.finish(), &out[..]), (Ok(()), &b"data"[..]));
}

#[test]
fn a_zstd_frame_with_a_dictionary_is_refused_by_name() {
    let samples: Vec<Vec<u8>> = (0..200).map(|seed| prose(1000, seed % 5)).collect();
    let content = samples.concat();
    // A raw prefix has no number; one is given to it by the dictionary format's header, which is enough for this test.
    let mut stream = ::zstd::bulk::compress(&content, 3).unwrap();
    let descriptor = stream[4];
    stream[4] |= 3;
    let after_window = if descriptor & 0x20 == 0 { 6 } else { 5 };
    stream.splice(after_window..after_window, 77u32.to_le_bytes());
    for piece in [1, usize::MAX] {
        let cuts = Cuts {
            pieces: vec![piece],
            ..Cuts::whole()
        };
        let result = run(Decoder::new(Compression::Zstd).unwrap(), &stream, &cuts).result;
        assert!(
            matches!(result, Err(StreamError::Dictionary { id: 77, .. })),
            "{result:?}"
        );
    }
}

#[test]
fn a_zstd_window_above_the_limit_is_refused_by_name() {
    let frame = |log: u8, mantissa: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3 | mantissa, 1, 0, 0];
    for (stream, window) in [
        (frame(28, 0).to_vec(), Some(1 << 28)),
        (frame(27, 1).to_vec(), Some((1 << 27) + (1 << 24))),
        (frame(41, 7).to_vec(), Some((1 << 41) + 7 * (1 << 38))),
        (frame(27, 0).to_vec(), None),
        // A single segment: the content is the window.
        (
            [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &u64::MAX.to_le_bytes(), &[1, 0, 0]].concat(),
            Some(u64::MAX),
        ),
    ] {
        let result = run(Decoder::new(Compression::Zstd).unwrap(), &stream, &Cuts::whole()).result;
        match window {
            None => assert_eq!(result, Ok(())),
            Some(window) => {
                assert!(
                    matches!(result, Err(StreamError::Window { window: w, .. }) if w == window),
                    "{result:?}"
                )
            }
        }
    }
}

#[test]
fn zstd_checkpoints_are_the_starts_of_data_frames() {
    let (a, b) = (prose(70_000, 1), noise(50_000, 2));
    let parts = [
        skippable(b"head"),
        zstd_frame(&a, 3),
        skippable(b"seek table"),
        zstd_frame(&b, 3),
        skippable(&[0; 99]),
    ];
    let checkpoints = check(Compression::Zstd, &parts.concat(), &[a, b].concat(), &Cuts::every(1));
    let places: Vec<u64> = checkpoints.iter().map(|at| at.compressed).collect();
    assert_eq!(places, [0, parts[..3].concat().len() as u64]);
}

#[test]
fn a_checkpoint_that_fits_no_stream_is_refused() {
    let at = |compressed, bits, window| Checkpoint {
        compressed,
        bits,
        decompressed: 9,
        window: vec![0; window].into(),
    };
    for (compression, at) in [
        (Compression::Gzip, at(9, 8, 10)),
        (Compression::Gzip, at(9, 1, 0)),
        (Compression::Gzip, at(0, 1, 10)),
        (Compression::Gzip, at(9, 0, WINDOW + 1)),
        (Compression::Zstd, at(9, 1, 0)),
        (Compression::Zstd, at(9, 0, 1)),
        (Compression::None, at(9, 0, 1)),
    ] {
        let error = Decoder::resume(compression, &at).unwrap_err();
        assert!(matches!(error, StreamError::Checkpoint { .. }), "{compression} {at:?}");
    }
}

#[test]
fn a_span_may_be_asked_for_in_part_but_not_beyond_its_end() {
    for (compression, stream) in [
        (Compression::None, b"some bytes".to_vec()),
        (Compression::Gzip, gzip(b"some bytes", 6)),
        (Compression::Zstd, zstd_frame(b"some bytes", 3)),
    ] {
        let span = |len| decode_span(compression, &Checkpoint::start(), &stream, 0, len);
        assert_eq!(span(0).unwrap(), "");
        assert_eq!(span(4).unwrap(), "some");
        assert_eq!(span(10).unwrap(), "some bytes");
        for len in [11, usize::MAX] {
            assert!(matches!(span(len), Err(StreamError::ShortSpan { .. })), "{compression}");
        }
    }
}

#[test]
fn a_checkpoint_first_wanted_inside_of_a_header_comes_behind_it() {
    let mut flushed = GzEncoder::new(Vec::new(), Level::new(6));
    flushed.flush().unwrap();
    flushed.write_all(&mixed(300_000, 1)).unwrap();
    // 40 bytes of content: the magic's first byte, 40, occurs in the frame's header again.
    let frame = ::zstd::bulk::compress(&noise(40, 1), 3).unwrap();
    assert_eq!(frame[..6], [0x28, 0xb5, 0x2f, 0xfd, 0x20, 40]);
    for (compression, first, second) in [
        (Compression::Gzip, gzip(b"first", 6), flushed.finish().unwrap()),
        (
            Compression::Zstd,
            zstd_frame(b"first", 3),
            [&frame[..], &frame].concat(),
        ),
    ] {
        let stream = [&first[..], &second].concat();
        let data = truth(compression, &stream);
        let mut decoder = Decoder::new(compression).unwrap();
        let mut out = Vec::new();
        let early = first.len() + 5;
        let decoded = decoder.decode(&stream[..early], &mut out, 1000, false).unwrap();
        assert_eq!((decoded.consumed, &out[..]), (early, &b"first"[..]));
        assert!(decoder.finish().is_err());
        let decoded = decoder.decode(&stream[early..], &mut out, 1 << 20, true).unwrap();
        assert_eq!(decoded.status, Status::Boundary);
        let at = decoder.checkpoint().unwrap();
        assert!(at.decompressed > 5);
        assert_eq!(at.window.is_empty(), compression == Compression::Zstd);
        let decoder = Decoder::resume(compression, &at).unwrap();
        let rest = run(decoder, &stream[at.read_from() as usize..], &Cuts::whole());
        assert_eq!(rest.result, Ok(()));
        assert!(rest.data == data[at.decompressed as usize..]);
    }
}

#[test]
fn what_a_piece_of_input_gives_does_not_depend_on_the_room() {
    for (compression, stream) in [
        (Compression::Gzip, gzip(&vec![0; 1 << 20], 9)),
        (Compression::Zstd, zstd_frame(&vec![0; 1 << 20], 3)),
    ] {
        for piece in stream.len() - 20..stream.len() {
            let [all, small] = [usize::MAX, 1000].map(|room| {
                let cuts = Cuts {
                    rooms: vec![room],
                    ..Cuts::whole()
                };
                run(Decoder::new(compression).unwrap(), &stream[..piece], &cuts).data
            });
            assert!(
                !all.is_empty() && small == all,
                "{compression} {}, {}",
                small.len(),
                all.len()
            );
        }
    }
}

#[test]
fn a_decoder_may_move_to_another_thread() {
    let stream = gzip(&mixed(100_000, 1), 6);
    let (head, tail) = stream.split_at(30_000);
    let mut decoder = Decoder::new(Compression::Gzip).unwrap();
    let mut out = Vec::new();
    decoder.decode(head, &mut out, usize::MAX, false).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| run(decoder, tail, &Cuts::whole()).result.unwrap());
    });
}
