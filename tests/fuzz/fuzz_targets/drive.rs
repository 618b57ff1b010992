//! Pushes bytes through a decoder in uneven pieces, holds it to its promises, and compares it with another one.

use std::io::Read;

use peelfs::stream::{Checkpoint, Compression, Decoder, Status, StreamError, decode_span};

/// Output that is worth looking at: enough for some checkpoints, not enough for a bomb to cost the fuzzer its time.
const ENOUGH: usize = 1 << 18;

/// Checkpoints that are resumed from, for the same reason.
const RESUMED: usize = 8;

/// The first 6 bytes choose the pieces' sizes, the rooms and a range, all others are the stream. `other` decodes a whole
/// stream by another implementation.
pub fn drive<'a, R: Read>(compression: Compression, data: &'a [u8], other: impl Fn(&'a [u8]) -> R) {
    let Some((choice, stream)) = data.split_first_chunk::<6>() else {
        return;
    };
    let [piece, room, due, cut, at, len] = choice.map(usize::from);
    let (piece, room, due) = (1 + piece * piece, 1 + room * room, due * 64);

    let decoder = Decoder::new(compression).expect("memory");
    let (whole, checkpoints, result) = run(decoder, stream, piece, room, due);
    compare(stream, &whole, &result, other(stream));

    if result.is_ok() {
        for (from, to) in checkpoints.iter().zip(checkpoints.iter().skip(1)) {
            let input = &stream[from.read_from() as usize..to.compressed as usize];
            let expected = &whole[from.decompressed as usize..to.decompressed as usize];
            let span = decode_span(compression, from, input, to.bits, expected.len()).expect("it was decoded before");
            assert!(span == expected, "{from:?} to {to:?}: other bytes in the span");
        }
    }
    for checkpoint in checkpoints.iter().rev().take(RESUMED) {
        let from = checkpoint.decompressed as usize;
        let input = &stream[checkpoint.read_from() as usize..];
        let decoder = Decoder::resume(compression, checkpoint).expect("the decoder made this checkpoint");
        let (tail, _, resumed) = run(decoder, input, 1 + cut, 1 + cut * 16, usize::MAX);
        if result.is_ok() && whole.len() < ENOUGH {
            // A resumed member's checksum is not verified, so that what failed may pass, but never the other way.
            assert!(resumed.is_ok(), "{checkpoint:?}: {resumed:?}");
            assert!(tail == whole[from..], "{checkpoint:?}: other bytes");
        }
        if result.is_ok() && from < whole.len() {
            // All that is left, and some range behind the checkpoint.
            let left = whole.len() - from;
            let (start, end) = (left * at / 256, left * at / 256 + (left - left * at / 256) * len / 255);
            for (start, end) in [(0, left), (start, end)] {
                let span = decode_span(compression, checkpoint, input, 0, end).expect("it was decoded before");
                assert!(
                    span[start..] == whole[from + start..from + end],
                    "{checkpoint:?}: other bytes in the span"
                );
            }
        }
    }
}

/// What another decoder accepts we accept, with the same bytes; and where one of the two gives up, there was no difference
/// before. The other way round we are more lenient: what follows the last gzip member, if it is no member, is ignored,
/// as gzip does.
fn compare(stream: &[u8], whole: &[u8], result: &Result<(), StreamError>, other: impl Read) {
    let mut expected = Vec::new();
    let accepted = other.take(ENOUGH as u64).read_to_end(&mut expected).is_ok();
    let both = whole.len().min(expected.len());
    assert!(whole[..both] == expected[..both], "other bytes");
    // An empty stream is a stream to some, and none to us.
    if accepted && expected.len() < ENOUGH && !stream.is_empty() {
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(whole.len(), expected.len());
    }
}

/// Decodes until the end, an error, or [`ENOUGH`].
fn run(
    mut decoder: Decoder,
    mut input: &[u8],
    piece: usize,
    room: usize,
    due: usize,
) -> (Vec<u8>, Vec<Checkpoint>, Result<(), StreamError>) {
    let mut whole = Vec::new();
    let mut checkpoints: Vec<Checkpoint> = Vec::new();
    let start = decoder.decompressed();
    let mut last = start;
    while whole.len() < ENOUGH {
        let before = (decoder.compressed(), decoder.decompressed(), whole.len());
        let given = &input[..piece.min(input.len())];
        let want = decoder.decompressed() - last >= due as u64;
        let decoded = match decoder.decode(given, &mut whole, room, want) {
            Ok(decoded) => decoded,
            Err(error) => {
                assert_eq!(decoder.finish(), Err(error.clone()));
                return (whole, checkpoints, Err(error));
            }
        };
        input = &input[decoded.consumed..];
        assert!(whole.len() - before.2 <= room);
        assert_eq!(decoder.compressed() - before.0, decoded.consumed as u64);
        assert_eq!(decoder.decompressed() - start, whole.len() as u64);
        match decoded.status {
            Status::NeedsInput => {
                assert_eq!(decoded.consumed, given.len());
                if input.is_empty() {
                    return (whole, checkpoints, decoder.finish());
                }
            }
            Status::OutputFull => assert_eq!(whole.len() - before.2, room),
            Status::Boundary => {
                assert!(want && decoder.decompressed() > last);
                last = decoder.decompressed();
                checkpoints.push(decoder.checkpoint().expect("a checkpoint at a boundary"));
            }
        }
    }
    (whole, checkpoints, Ok(()))
}
