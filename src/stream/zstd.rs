//! Zstandard (RFC 8878): a row of frames, each of which can only be decoded from its beginning.
//!
//! libzstd does the decoding. Frame headers are read here first, because what we refuse should be refused by name: a
//! dictionary, a window larger than [`WINDOW_LIMIT`]. Skippable frames are passed over.

use std::cell::Cell;
use std::fmt;

use ::zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

use super::{Checkpoint, Compression, Pass, Status, StreamError};

/// How far back a frame may refer: 128 MiB, which is also what the zstd tool allows without being told.
const WINDOW_LIMIT: u64 = 1 << WINDOW_LIMIT_LOG;
const WINDOW_LIMIT_LOG: u32 = 27;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The longest frame header: magic, descriptor, window, dictionary, content size.
const HEADER_MAX: usize = 4 + 1 + 1 + 4 + 8;

/// The largest block: a step gives this much, because output space has to be zeroed first.
const BLOCK: usize = 128 * 1024;

/// A frame up to this size is decoded in one step when all of it is there, for libzstd then needs no window of its own.
const ONE_STEP: u64 = 8 << 20;

/// The largest decompression context that is kept for the next span: it holds the window of the usual levels, 2 MiB.
const SPARE_MAX: usize = 4 << 20;

/// A zstd stream, from its beginning or from a frame's.
pub(super) struct Zstd {
    context: DCtx<'static>,
    state: State,
    /// The beginning of a frame header whose rest has not arrived yet.
    held: Vec<u8>,
    /// Whether a frame was seen, or the stream was entered behind one: an empty stream is not a zstd stream.
    begun: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// At a frame's header, or in it if `held` has something.
    Header,
    /// In a frame. `space` is what to offer for the next step's output; `more` if libzstd holds some back.
    Frame { space: usize, more: bool },
    /// In a skippable frame.
    Skip { left: u64 },
}

thread_local! {
    /// The context of the last span's decoder.
    static SPARE: Cell<Option<DCtx<'static>>> = const { Cell::new(None) };
}

impl Zstd {
    pub(super) fn resume(at: &Checkpoint) -> Result<Zstd, StreamError> {
        let context = match SPARE.take() {
            Some(context) => context,
            None => {
                let mut context = DCtx::try_create().ok_or(StreamError::Memory)?;
                context
                    .set_parameter(DParameter::WindowLogMax(WINDOW_LIMIT_LOG))
                    .map_err(|_| StreamError::Memory)?;
                context
            }
        };
        Ok(Zstd {
            context,
            state: State::Header,
            held: Vec::new(),
            begun: at.compressed > 0,
        })
    }

    pub(super) fn recycle(mut self) {
        if self.context.sizeof() <= SPARE_MAX && self.context.reset(ResetDirective::SessionOnly).is_ok() {
            SPARE.set(Some(self.context));
        }
    }

    /// Whether the stream may end here.
    pub(super) fn at_end(&self) -> bool {
        self.begun && self.held.is_empty() && matches!(self.state, State::Header)
    }

    pub(super) fn decode(&mut self, pass: &mut Pass<'_>) -> Result<Status, StreamError> {
        loop {
            match self.state {
                State::Header => {
                    let Some(first) = pass.input.first() else {
                        return Ok(Status::NeedsInput);
                    };
                    if self.held.is_empty() && *first == MAGIC[0] && pass.wants_checkpoint_here() {
                        return Ok(Status::Boundary);
                    }
                    if !self.header(pass)? {
                        return Ok(Status::NeedsInput);
                    }
                }
                State::Frame { space, more } => {
                    if pass.room == 0 {
                        return Ok(Status::OutputFull);
                    }
                    if pass.input.is_empty() && !more {
                        return Ok(Status::NeedsInput);
                    }
                    self.step(pass, space)?;
                }
                State::Skip { left } => {
                    let here = left.min(pass.input.len() as u64);
                    pass.consume(here as usize);
                    if here < left {
                        self.state = State::Skip { left: left - here };
                        return Ok(Status::NeedsInput);
                    }
                    self.state = State::Header;
                }
            }
        }
    }

    /// Reads a frame's header. `false`: its end has not arrived, all input is consumed.
    fn header(&mut self, pass: &mut Pass<'_>) -> Result<bool, StreamError> {
        if self.held.is_empty()
            && let Some(header) = Header::read(pass.input).map_err(|reason| corrupt(pass, reason))?
        {
            // libzstd wants to see the header too, so it stays in the input.
            self.begin_frame(pass, &header)?;
            if let Header::Skippable { .. } = header {
                pass.consume(Header::SKIPPABLE_LENGTH);
            }
            return Ok(true);
        }
        while let Some(byte) = pass.input.first() {
            self.held.push(*byte);
            pass.consume(1);
            if let Some(header) = Header::read(&self.held).map_err(|reason| corrupt(pass, reason))? {
                self.begin_frame(pass, &header)?;
                if let Header::Frame { .. } = header {
                    let mut held = InBuffer::around(&self.held);
                    self.context
                        .decompress_stream(&mut OutBuffer::around(&mut [0; 0][..]), &mut held)
                        .map_err(|code| corrupt(pass, get_error_name(code)))?;
                    if held.pos() < self.held.len() {
                        return Err(corrupt(pass, "the frame header is longer than it says"));
                    }
                }
                self.held.clear();
                return Ok(true);
            }
            if self.held.len() >= HEADER_MAX {
                return Err(corrupt(pass, "the frame header does not end"));
            }
        }
        Ok(false)
    }

    /// Refuses the frames that we cannot or do not want to decode.
    fn begin_frame(&mut self, pass: &Pass<'_>, header: &Header) -> Result<(), StreamError> {
        let at = pass.compressed;
        self.begun = true;
        self.state = match *header {
            Header::Skippable { length } => State::Skip { left: length },
            Header::Frame { dictionary: id, .. } if id != 0 => return Err(StreamError::Dictionary { at, id }),
            Header::Frame { window, .. } if window > WINDOW_LIMIT => {
                return Err(StreamError::Window {
                    at,
                    window,
                    limit: WINDOW_LIMIT,
                });
            }
            Header::Frame { content, .. } => State::Frame {
                space: content.unwrap_or(0).clamp(BLOCK as u64, ONE_STEP) as usize,
                more: false,
            },
        };
        Ok(())
    }

    /// One step through a frame, with at least some room, and some input or output held back.
    fn step(&mut self, pass: &mut Pass<'_>, space: usize) -> Result<(), StreamError> {
        let space = space.min(pass.room);
        let before = pass.out.len();
        pass.out.resize(before.saturating_add(space), 0);
        let mut input = InBuffer::around(pass.input);
        let mut output = OutBuffer::around(&mut pass.out[before..]);
        let result = self.context.decompress_stream(&mut output, &mut input);
        let (consumed, produced) = (input.pos(), output.pos());
        pass.out.truncate(before.saturating_add(produced));
        pass.consume(consumed);
        pass.produced(produced);
        let hint = result.map_err(|code| corrupt(pass, get_error_name(code)))?;

        if hint == 0 {
            self.state = State::Header;
        } else if consumed == 0 && produced == 0 && !pass.input.is_empty() {
            return Err(corrupt(pass, "the decompressor makes no progress"));
        } else {
            let more = produced == space;
            self.state = State::Frame { space: BLOCK, more };
        }
        Ok(())
    }
}

impl fmt::Debug for Zstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zstd")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// What a frame says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Header {
    Frame {
        /// How far back it refers, in bytes.
        window: u64,
        /// Number of its dictionary, 0 for none.
        dictionary: u32,
        /// How many bytes it holds, if it says so.
        content: Option<u64>,
    },
    /// Not data, to be passed over.
    Skippable { length: u64 },
}

impl Header {
    /// Of a skippable frame: magic and length.
    const SKIPPABLE_LENGTH: usize = 8;

    /// Reads the header at the start of `bytes`; `None` if it is not complete.
    fn read(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
        let Some((magic, rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        match *magic {
            MAGIC => {}
            [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                return Ok(number(rest, 4).map(|(length, _)| Header::Skippable { length }));
            }
            _ => return Err("this is no zstd frame"),
        }
        let Some((descriptor, rest)) = rest.split_first() else {
            return Ok(None);
        };
        if descriptor & 0x08 != 0 {
            return Err("a reserved bit of the frame header is set");
        }
        let single_segment = descriptor & 0x20 != 0;
        let window_length = usize::from(!single_segment);
        let dictionary_length = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let content_length = match descriptor >> 6 {
            0 => usize::from(single_segment),
            flag => 1 << flag,
        };
        Ok((|| {
            let (window, rest) = number(rest, window_length)?;
            let (dictionary, rest) = number(rest, dictionary_length)?;
            let (content, _) = number(rest, content_length)?;
            let content = match content_length {
                0 => None,
                2 => Some(content + 256),
                _ => Some(content),
            };
            let window = match content {
                Some(content) if single_segment => content,
                _ => {
                    let base = 1 << (10 + (window >> 3));
                    base + base / 8 * (window & 7)
                }
            };
            Some(Header::Frame {
                window,
                dictionary: dictionary as u32,
                content,
            })
        })())
    }
}

/// A little-endian number of `length` bytes, at most 8, and what follows it.
fn number(bytes: &[u8], length: usize) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_at_checked(length)?;
    let value = number.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some((value, rest))
}

fn corrupt(pass: &Pass<'_>, reason: &'static str) -> StreamError {
    StreamError::Corrupt {
        compression: Compression::Zstd,
        at: pass.compressed,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_header_is_read_as_the_rfc_has_it() {
        let frame = |window, dictionary, content| Header::Frame {
            window,
            dictionary,
            content,
        };
        for (bytes, header) in [
            (&[0x00, 0x58][..], frame(2 << 20, 0, None)),
            (&[0x04, 0x0d], frame(2048 + 5 * 256, 0, None)),
            (&[0x20, 7], frame(7, 0, Some(7))),
            (&[0x60, 1, 2], frame(0x201 + 256, 0, Some(0x201 + 256))),
            (&[0xa0, 1, 2, 3, 4], frame(0x0403_0201, 0, Some(0x0403_0201))),
            (&[0x81, 0, 9, 1, 0, 0, 0], frame(1024, 9, Some(1))),
            (&[0x02, 0, 1, 2], frame(1024, 0x201, None)),
            (
                &[0xc3, 0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0],
                frame(1024, 0x0403_0201, Some(5)),
            ),
        ] {
            let bytes = [&MAGIC[..], bytes].concat();
            assert_eq!(Header::read(&bytes), Ok(Some(header)));
            for cut in 0..bytes.len() {
                assert_eq!(Header::read(&bytes[..cut]), Ok(None));
            }
        }
        let skippable = [0x5f, 0x2a, 0x4d, 0x18, 1, 2, 0, 0];
        assert_eq!(Header::read(&skippable), Ok(Some(Header::Skippable { length: 0x201 })));
        assert!(Header::read(&[0x28, 0xb5, 0x2f, 0xfd, 0x08]).is_err());
        assert!(Header::read(b"none").is_err());
    }
}
