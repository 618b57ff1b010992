//! What holds for every format: any pieces, any room, any checkpoint give the bytes that an independent decoder gives.

mod cases;
mod properties;
mod whole;

use std::io::{Read, Write};

use flate2::Compression as Level;
use flate2::write::GzEncoder;

use super::*;

/// Bytes that do not compress.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    (0..len).map(step).collect()
}

/// Bytes that compress about 10:1, with matches from near and far.
fn prose(len: usize, seed: u32) -> Vec<u8> {
    let words = noise(4096, seed);
    let mut text = Vec::new();
    for pick in noise(len / 8 + 1, !seed).chunks(2) {
        let start = usize::from(pick[0]) * 13;
        text.extend_from_slice(&words[start..start + 40]);
        text.push(pick[0]);
    }
    text.truncate(len);
    text
}

/// Bytes that compress about 2:1, so that deflate needs many blocks for them.
fn mixed(len: usize, seed: u32) -> Vec<u8> {
    let (noise, prose) = (noise(len, seed), prose(len, seed));
    let halves = noise.chunks(500).zip(prose.chunks(500));
    let mut data: Vec<u8> = halves.flat_map(|(noise, prose)| [noise, prose].concat()).collect();
    data.truncate(len);
    data
}

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd_frame(data: &[u8], level: i32) -> Vec<u8> {
    ::zstd::stream::encode_all(data, level).unwrap()
}

fn skippable(data: &[u8]) -> Vec<u8> {
    [&[0x53, 0x2a, 0x4d, 0x18], &(data.len() as u32).to_le_bytes()[..], data].concat()
}

fn truth(compression: Compression, stream: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    match compression {
        Compression::None => data.extend_from_slice(stream),
        Compression::Gzip => drop(
            flate2::read::MultiGzDecoder::new(stream)
                .read_to_end(&mut data)
                .unwrap(),
        ),
        Compression::Zstd => ::zstd::stream::copy_decode(stream, &mut data).unwrap(),
    }
    data
}

/// How the stream is cut up: pieces and rooms in turn, and the distance of checkpoints.
#[derive(Debug, Clone)]
struct Cuts {
    pieces: Vec<usize>,
    rooms: Vec<usize>,
    due: u64,
}

impl Cuts {
    fn whole() -> Cuts {
        Cuts {
            pieces: vec![usize::MAX],
            rooms: vec![usize::MAX],
            due: u64::MAX,
        }
    }

    fn every(due: u64) -> Cuts {
        Cuts { due, ..Cuts::whole() }
    }
}

struct Run {
    data: Vec<u8>,
    checkpoints: Vec<Checkpoint>,
    result: Result<(), StreamError>,
}

/// Decodes all of `input`, checking what each call promises.
fn run(mut decoder: Decoder, mut input: &[u8], cuts: &Cuts) -> Run {
    let mut run = Run {
        data: Vec::new(),
        checkpoints: Vec::new(),
        result: Ok(()),
    };
    let (start, mut last) = (decoder.decompressed(), decoder.decompressed());
    let mut pieces = cuts.pieces.iter().cycle();
    let mut rooms = cuts.rooms.iter().cycle();
    let mut idle = 0;
    loop {
        let (piece, room) = (*pieces.next().unwrap(), *rooms.next().unwrap());
        let given = &input[..piece.min(input.len())];
        let before = run.data.len();
        // As a scan does it: room up to where the next checkpoint is due, and then the wish for one.
        let since = decoder.decompressed() - last;
        let want = since >= cuts.due;
        let room = if want {
            room
        } else {
            room.min((cuts.due - since) as usize)
        };
        let decoded = match decoder.decode(given, &mut run.data, room, want) {
            Ok(decoded) => decoded,
            Err(error) => {
                assert_eq!(decoder.finish(), Err(error.clone()));
                assert_eq!(decoder.decode(b"", &mut run.data, 1, false), Err(error.clone()));
                run.result = Err(error);
                return run;
            }
        };
        input = &input[decoded.consumed..];
        let produced = run.data.len() - before;
        assert!(produced <= room);
        assert_eq!(decoder.decompressed() - start, run.data.len() as u64);
        match decoded.status {
            Status::NeedsInput => {
                assert_eq!(decoded.consumed, given.len());
                if input.is_empty() {
                    run.result = decoder.finish();
                    return run;
                }
            }
            Status::OutputFull => assert_eq!(produced, room),
            Status::Boundary => {
                assert!(want && decoder.decompressed() > last);
                last = decoder.decompressed();
                run.checkpoints.push(decoder.checkpoint().unwrap());
            }
        }
        if decoded.status != Status::Boundary {
            assert_eq!(decoder.checkpoint(), None);
        }
        // A boundary may be met before anything is consumed, but not twice.
        idle = if decoded.consumed + produced == 0 { idle + 1 } else { 0 };
        assert!(idle < 2 || decoded.status == Status::NeedsInput, "no progress");
    }
}

/// Decodes `stream` by `cuts`; then from every checkpoint to the end, and every span between neighbours.
fn check(compression: Compression, stream: &[u8], data: &[u8], cuts: &Cuts) -> Vec<Checkpoint> {
    let all = run(Decoder::new(compression).unwrap(), stream, cuts);
    assert_eq!(all.result, Ok(()));
    assert!(all.data == data, "other bytes");
    let mut checkpoints = vec![Checkpoint::start()];
    checkpoints.extend(all.checkpoints);
    for (number, checkpoint) in checkpoints.iter().enumerate() {
        let (from, read_from) = (checkpoint.decompressed as usize, checkpoint.read_from() as usize);
        let decoder = Decoder::resume(compression, checkpoint).unwrap();
        let tail = run(decoder, &stream[read_from..], cuts);
        assert_eq!(tail.result, Ok(()), "{checkpoint:?}");
        assert!(tail.data == data[from..], "{checkpoint:?}: other bytes");
        if cuts.pieces == [usize::MAX] {
            // The same places again, with the same windows: they do not depend on where it was begun.
            assert!(
                tail.checkpoints == checkpoints[number + 1..],
                "{checkpoint:?}: other checkpoints"
            );
        }
        let next = checkpoints.get(number + 1);
        let (end, following, to) = next.map_or((stream.len(), 0, data.len()), |next| {
            (next.compressed as usize, next.bits, next.decompressed as usize)
        });
        let span = |len| decode_span(compression, checkpoint, &stream[read_from..end], following, len);
        assert!(
            span(to - from).unwrap() == data[from..to],
            "{checkpoint:?}: other bytes in the span"
        );
        let over = span(to - from + 1);
        assert!(next.is_none() || over.is_ok() || matches!(over, Err(StreamError::ShortSpan { .. })));
    }
    checkpoints
}
