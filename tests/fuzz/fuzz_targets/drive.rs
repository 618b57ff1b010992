//! Pushes bytes through a decoder in uneven pieces, and holds it to its promises.

use peelfs::stream::{Checkpoint, Compression, Decoder, Status, StreamError, decode_span};

/// Output that is worth looking at: enough for some checkpoints, not enough for a bomb to cost the fuzzer its time.
const ENOUGH: usize = 1 << 18;

/// Checkpoints that are resumed from, for the same reason.
const RESUMED: usize = 8;

/// The first 4 bytes choose the pieces' sizes and the rooms', all others are the stream.
pub fn drive(compression: Compression, data: &[u8]) {
    let Some((choice, stream)) = data.split_first_chunk::<4>() else {
        return;
    };
    let [piece, room, due, cut] = choice.map(usize::from);
    let (piece, room, due) = (1 + piece * piece, 1 + room * room, due * 64);

    let decoder = Decoder::new(compression).expect("memory");
    let (whole, checkpoints, result) = run(decoder, stream, piece, room, due);

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
            let span = decode_span(compression, checkpoint, input, whole.len() - from).expect("it was decoded before");
            assert!(span == whole[from..], "{checkpoint:?}: other bytes in the span");
        }
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
