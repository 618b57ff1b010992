//! A safe type around zlib-rs' inflate, through its C interface: the only one that can stop between two deflate blocks
//! and be started inside of a byte. All unsafe code of this module is here.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fmt;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateGetDictionary, inflateInit2_,
    inflatePrime, inflateReset2, inflateSetDictionary, z_stream, zlibVersion,
};

use super::{StreamError, WINDOW};

/// What surrounds the deflate data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapping {
    /// Nothing.
    Raw,
    /// A gzip header and trailer, both of which are verified.
    Gzip,
}

impl Wrapping {
    /// zlib's way to say it: 15 is the size of the window (32 KiB, as a power of two), the rest the kind.
    fn window_bits(self) -> i32 {
        match self {
            Wrapping::Raw => -15,
            Wrapping::Gzip => 15 + 16,
        }
    }
}

/// What one step did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub consumed: usize,
    pub produced: usize,
    pub stop: Stop,
}

/// Why a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The input is used up or the room is.
    Spent,
    /// A deflate block, not the last one, begins here; that many bits of the last byte consumed belong to it.
    Block { bits: u8 },
    /// The deflate data (and the gzip trailer, if it is wrapped in one) is over.
    End,
}

/// The state of one inflate stream.
pub(super) struct Inflate {
    /// Initialised by `inflateInit2_` for as long as this lives. Its pointers to input and output are set anew by each
    /// step and never followed outside of it.
    stream: z_stream,
}

// SAFETY: z_stream is not Send only because it holds raw pointers. `state` points to memory that this stream alone owns,
// allocated and freed with the global allocator (or malloc), which any thread may do; `msg` points to a constant; and
// `next_in` and `next_out` are not followed between two steps. Nothing in zlib-rs is bound to a thread.
unsafe impl Send for Inflate {}

impl Inflate {
    /// A stream at its beginning, raw.
    pub(super) fn new() -> Result<Inflate, StreamError> {
        let mut stream = z_stream::default();
        // SAFETY: `stream` is valid, and its default sets the allocator. The version and the size are those of the
        // library we link, so it reads no other layout than this one.
        let code = unsafe {
            inflateInit2_(
                &raw mut stream,
                Wrapping::Raw.window_bits(),
                zlibVersion(),
                size_of::<z_stream>() as i32,
            )
        };
        // Only memory can be missing: all arguments are constants that the library accepts.
        if code == Z_OK {
            Ok(Inflate { stream })
        } else {
            Err(StreamError::Memory)
        }
    }

    /// Begins another stream, forgetting this one.
    pub(super) fn reset(&mut self, wrapping: Wrapping) {
        // SAFETY: the stream is initialised.
        let code = unsafe { inflateReset2(&raw mut self.stream, wrapping.window_bits()) };
        debug_assert_eq!(code, Z_OK, "both values of window_bits are valid");
    }

    /// Before the first step of a raw stream: the lowest `bits` (at most 7) of `value` precede the input.
    pub(super) fn prime(&mut self, bits: u8, value: u8) {
        // SAFETY: the stream is initialised.
        let code = unsafe { inflatePrime(&raw mut self.stream, i32::from(bits), i32::from(value)) };
        debug_assert_eq!(code, Z_OK, "up to 16 bits fit an empty bit buffer");
    }

    /// Before the first step of a raw stream: the output that precedes it, at most [`WINDOW`] bytes.
    pub(super) fn set_window(&mut self, window: &[u8]) {
        let length = window.len().min(WINDOW);
        // SAFETY: the stream is initialised, and `window` has at least `length` bytes, which are copied.
        let code = unsafe { inflateSetDictionary(&raw mut self.stream, window.as_ptr(), length as u32) };
        debug_assert_eq!(code, Z_OK, "a raw stream takes a dictionary at any time");
    }

    /// The last output of this stream, at most [`WINDOW`] bytes, the window it was given included. Inflate keeps it for
    /// itself after each step, so nothing else has to.
    pub(super) fn window(&self) -> Box<[u8]> {
        let mut window = vec![0; WINDOW];
        let mut length = 0;
        // SAFETY: the stream is initialised and only read. `window` has the 32768 bytes that are always enough, and
        // `length` is valid.
        let code = unsafe { inflateGetDictionary(&raw const self.stream, window.as_mut_ptr(), &raw mut length) };
        debug_assert_eq!(code, Z_OK, "the stream is initialised");
        window.truncate(length as usize);
        window.into_boxed_slice()
    }

    /// Inflates from `input`, appending at most `room` bytes to `out`. With `stop_at_block` it ends at the next start
    /// of a block. Bytes that break the format are an error, in zlib's words; every further step is one as well.
    pub(super) fn step(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        room: usize,
        stop_at_block: bool,
    ) -> Result<Step, &'static str> {
        out.reserve(room);
        let spare = out.spare_capacity_mut();
        let room = room.min(spare.len()).min(u32::MAX as usize);
        let given = input.len().min(u32::MAX as usize);

        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = given as u32;
        self.stream.next_out = spare.as_mut_ptr().cast();
        self.stream.avail_out = room as u32;
        // SAFETY: the stream is initialised. `next_in` and `avail_in` are a part of `input`; `next_out` and `avail_out`
        // a part of the spare capacity of `out`, borrowed mutably: neither is null (both come from slices), they do not
        // overlap, and both outlive the call. The output may be uninitialised: inflate asks for MaybeUninit<u8>.
        let code = unsafe { inflate(&raw mut self.stream, if stop_at_block { Z_BLOCK } else { Z_NO_FLUSH }) };

        let consumed = given.saturating_sub(self.stream.avail_in as usize);
        let produced = room.saturating_sub(self.stream.avail_out as usize);
        let length = out.len() + produced;
        // SAFETY: inflate has written the first `produced` bytes of the spare capacity: it counts `avail_out` down by
        // what it has written from `next_out` on. `produced` is at most `room`, so `length` is within the capacity.
        unsafe { out.set_len(length) };

        let stop = match code {
            Z_STREAM_END => Stop::End,
            // "No progress": not an error, the caller sees it from the counts.
            Z_OK | Z_BUF_ERROR => self.block_start().filter(|_| stop_at_block).unwrap_or(Stop::Spent),
            _ => return Err(self.message()),
        };
        Ok(Step {
            consumed,
            produced,
            stop,
        })
    }

    /// Whether the last step ended where a block begins. `data_type` has 128 for behind a block or header, 64 if that
    /// block was the last one, and the number of unused bits of the last byte in the lowest bits.
    fn block_start(&self) -> Option<Stop> {
        let data_type = self.stream.data_type;
        let bits = u8::try_from(data_type & 63).ok().filter(|bits| *bits < 8)?;
        (data_type & 128 != 0 && data_type & 64 == 0).then_some(Stop::Block { bits })
    }

    fn message(&self) -> &'static str {
        if self.stream.msg.is_null() {
            return "the decompressor gave up";
        }
        // SAFETY: when it is not null, `msg` points to a string constant of zlib-rs, with a NUL at its end.
        let message: &'static CStr = unsafe { CStr::from_ptr(self.stream.msg) };
        message.to_str().unwrap_or("the decompressor gave up")
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream is initialised, and not used again.
        unsafe { inflateEnd(&raw mut self.stream) };
    }
}

impl fmt::Debug for Inflate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inflate")
    }
}

/// What the unsafe code promises, small enough for Miri: `scripts/miri`.
#[cfg(test)]
mod tests {
    use super::*;

    /// [`text`], deflated by Python's zlib with Z_PARTIAL_FLUSH after each quarter, which ends a block inside of a byte. Not
    /// made here, because Miri has objections to flate2's compressor.
    const DEFLATED: &[u8] = include_bytes!("tests/partial_flushes.deflate");

    fn text() -> Vec<u8> {
        (0u32..300)
            .flat_map(|i| format!("{} line\n", i.wrapping_mul(2_654_435_761) % 977).into_bytes())
            .collect()
    }

    /// Steps to the end, with `room` bytes at a time; calls `at_block` at every start of a block with what was consumed,
    /// what was produced, and the bits.
    fn run(
        inflate: &mut Inflate,
        input: &[u8],
        room: usize,
        mut at_block: impl FnMut(&Inflate, usize, usize, u8),
    ) -> Result<Vec<u8>, &'static str> {
        let (mut out, mut at) = (Vec::new(), 0);
        loop {
            let step = inflate.step(&input[at..], &mut out, room, true)?;
            at += step.consumed;
            match step.stop {
                Stop::End => return Ok(out),
                Stop::Block { bits } => at_block(inflate, at, out.len(), bits),
                Stop::Spent if step.consumed + step.produced == 0 => return Err("no progress"),
                Stop::Spent => {}
            }
        }
    }

    #[test]
    fn a_stream_is_taken_up_at_every_block_in_another_thread() {
        let text = text();
        let mut places = Vec::new();
        let mut inflate = Inflate::new().unwrap();
        let whole = run(&mut inflate, DEFLATED, 1000, |inflate, at, produced, bits| {
            places.push((at, produced, bits, inflate.window()));
        });
        assert_eq!(whole.unwrap(), text);
        assert!(
            places.iter().any(|(_, produced, bits, _)| *produced > 0 && *bits > 0),
            "{places:?}"
        );
        for (at, produced, bits, window) in places {
            let rest = std::thread::scope(|scope| {
                let mut inflate = Inflate::new().unwrap();
                inflate.set_window(&window);
                if bits > 0 {
                    inflate.prime(bits, DEFLATED[at - 1] >> (8 - bits));
                }
                scope
                    .spawn(move || run(&mut inflate, &DEFLATED[at..], 777, |_, _, _, _| {}))
                    .join()
                    .unwrap()
            });
            assert_eq!(rest.unwrap(), text[produced..]);
        }
    }

    #[test]
    fn a_stream_can_be_dropped_or_begun_again_at_any_place() {
        let header = b"\x1f\x8b\x08\0\0\0\0\0\0\x03";
        let trailer = [crc32fast::hash(&text()), text().len() as u32].map(u32::to_le_bytes);
        let input = [&header[..], DEFLATED, trailer.as_flattened()].concat();
        let mut inflate = Inflate::new().unwrap();
        for cut in (0..input.len()).step_by(if cfg!(miri) { 97 } else { 1 }) {
            inflate.reset(Wrapping::Gzip);
            let mut out = Vec::new();
            let step = inflate.step(&input[..cut], &mut out, 1 << 16, false).unwrap();
            assert_ne!(step.stop, Stop::End, "{cut}");
        }
        inflate.reset(Wrapping::Gzip);
        assert_eq!(run(&mut inflate, &input, 100, |_, _, _, _| {}).unwrap(), text());
    }

    #[test]
    fn bytes_that_are_no_deflate_are_told_in_the_words_of_zlib() {
        let mut inflate = Inflate::new().unwrap();
        let step = inflate.step(&[0b110, 1, 2, 3], &mut Vec::new(), 10, false);
        assert_eq!(step.unwrap_err(), "invalid block type");
        inflate.reset(Wrapping::Gzip);
        let step = inflate.step(b"\x1f\x8b\x07\0\0\0\0\0\0\0", &mut Vec::new(), 10, false);
        assert_eq!(step.unwrap_err(), "unknown compression method");
        assert!(inflate.step(b"", &mut Vec::new(), 0, true).is_err(), "it is over");
    }
}
