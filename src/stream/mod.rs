//! Any range of a decompressed stream, from a range of the compressed one.
//!
//! A layer is one long compressed stream, and such a stream can be entered at a few places only: a [`Checkpoint`].
//! One pass over the layer finds them, and from then on any byte of it costs the decompression of one span, from the
//! checkpoint before that byte. This is the idea of zlib's `zran.c`, applied to the formats that layers come in:
//!
//! | format | where a checkpoint can be | what resuming needs |
//! |---|---|---|
//! | none | anywhere | nothing |
//! | gzip | between two members | nothing |
//! | gzip | between two deflate blocks | up to 7 bits of the byte before, and the 32 KiB of output before: the window |
//! | zstd | between two frames | nothing |
//!
//! [`Decoder`] is the one type for all of them. It is pushed: bytes go in as they arrive from the network, in pieces
//! of any size, and output is appended to a buffer of the caller's, never more than the caller has room for. A scan asks
//! it to stop at the next place for a checkpoint once one is due. [`decode_span`] does a whole short span at once, which
//! for gzip takes half the time.
//!
//! ```text
//! gzip     one stream of members: inflate, checkpoints, trailers, padding
//! inflate  the binding to zlib-rs; the only unsafe code
//! whole    a span between two deflate blocks, by libdeflate
//! zstd     one stream of frames
//! ```
//!
//! The bytes are a stranger's. Whatever they are, a call ends with an error or has taken or given at least one byte,
//! and memory stays within the caller's room, the window, and for zstd 128 MiB that a frame may ask to look back.

mod gzip;
mod inflate;
#[cfg(test)]
mod tests;
mod whole;
mod zstd;

use std::fmt;

use bytes::Bytes;
use gzip::Gzip;
use zstd::Zstd;

use crate::buffers;

/// How far back deflate can refer: 32 KiB.
pub const WINDOW: usize = 32 * 1024;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// Gzip (RFC 1952), one member or many.
    Gzip,
    /// Zstandard (RFC 8878), one frame or many.
    Zstd,
}

impl Compression {
    /// What the first bytes of a blob (4 are enough) say. The media type of a layer is often wrong, these are not.
    pub fn detect(first_bytes: &[u8]) -> Compression {
        match first_bytes {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// A bound of what `compressed` bytes can decompress to, after the formats' densest encodings: 258 bytes from two
    /// bits in deflate, a block of 128 KiB from 4 bytes in zstd.
    fn most_from(self, compressed: usize) -> usize {
        match self {
            Compression::None => compressed,
            Compression::Gzip => compressed.saturating_mul(1032).saturating_add(1032),
            Compression::Zstd => compressed.saturating_mul(32 * 1024),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::None => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        })
    }
}

/// A place in a compressed stream at which decompression can begin.
#[derive(Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Offset of the first whole byte behind the place, in the compressed stream.
    pub compressed: u64,
    /// How many of the upper bits of the byte before still belong to what follows: 0 to 7, and 0 but for gzip.
    pub bits: u8,
    /// Offset of the next byte in the decompressed stream.
    pub decompressed: u64,
    /// The output before the place, up to [`WINDOW`] bytes. Empty at the start of a gzip member or zstd frame, and
    /// anywhere in an uncompressed stream.
    pub window: Box<[u8]>,
}

impl Checkpoint {
    /// The beginning of any stream.
    pub fn start() -> Checkpoint {
        Checkpoint {
            compressed: 0,
            bits: 0,
            decompressed: 0,
            window: Box::default(),
        }
    }

    /// Offset of the first compressed byte that resuming here needs.
    pub fn read_from(&self) -> u64 {
        self.compressed.saturating_sub(u64::from(self.bits != 0))
    }

    /// Refuses what no decoder made: a checkpoint may come from a file, or from an index that somebody else built.
    fn check(&self, compression: Compression) -> Result<(), StreamError> {
        let fits = match compression {
            Compression::None | Compression::Zstd => self.bits == 0 && self.window.is_empty(),
            Compression::Gzip if self.bits == 0 => self.window.len() <= WINDOW,
            Compression::Gzip => self.bits <= 7 && self.compressed > 0 && (1..=WINDOW).contains(&self.window.len()),
        };
        if fits {
            Ok(())
        } else {
            Err(StreamError::Checkpoint {
                compression,
                at: self.compressed,
            })
        }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("compressed", &self.compressed)
            .field("bits", &self.bits)
            .field("decompressed", &self.decompressed)
            .field("window", &format_args!("{} bytes", self.window.len()))
            .finish()
    }
}

/// Why a stream cannot be decompressed. Offsets count compressed bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The bytes break the format's rules, or a checksum in them does not match.
    #[error("the {compression} data is damaged near byte {at}: {reason}")]
    Corrupt {
        /// The format.
        compression: Compression,
        /// Where it was noticed.
        at: u64,
        /// In the words of the library that noticed it.
        reason: &'static str,
    },
    /// The input ended inside of a member or frame.
    #[error("the {compression} data ends too early, at byte {at}")]
    Truncated {
        /// The format.
        compression: Compression,
        /// Where the input ended.
        at: u64,
    },
    /// A span holds fewer bytes than it should.
    #[error("the {compression} data at byte {at} gives {got} bytes where {wanted} were expected")]
    ShortSpan {
        /// The format.
        compression: Compression,
        /// Where the span begins.
        at: u64,
        /// The length that was asked for.
        wanted: usize,
        /// What the span can give at most, or gave.
        got: usize,
    },
    /// A zstd frame was compressed with a dictionary, which no image carries.
    #[error("the zstd frame at byte {at} needs the dictionary {id}, and dictionaries are not supported in layers")]
    Dictionary {
        /// Where the frame's header ends.
        at: u64,
        /// The dictionary's number.
        id: u32,
    },
    /// A zstd frame refers back further than we are willing to remember.
    #[error("the zstd frame at byte {at} needs a window of {window} bytes, more than the {limit} that are allowed")]
    Window {
        /// Where the frame's header ends.
        at: u64,
        /// What the frame asks for.
        window: u64,
        /// What it may have.
        limit: u64,
    },
    /// The checkpoint cannot be one of such a stream.
    #[error("the checkpoint at byte {at} does not fit a {compression} stream")]
    Checkpoint {
        /// The format.
        compression: Compression,
        /// Where it says it is.
        at: u64,
    },
    /// There is no memory for the decompressor's state or for its output.
    #[error("there is not enough memory to decompress")]
    Memory,
}

/// What one call of [`Decoder::decode`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// How many bytes of the input it took. The rest must be given again.
    pub consumed: usize,
    /// Why it stopped.
    pub status: Status,
}

/// Why [`Decoder::decode`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All of the input is consumed and all that it gives is in `out`.
    NeedsInput,
    /// `room` bytes were appended. There may be more to come, even if all input is consumed.
    OutputFull,
    /// A checkpoint was wanted and can be made here, with [`Decoder::checkpoint`].
    Boundary,
}

/// Decompresses a stream that is pushed into it, from its beginning or from a [`Checkpoint`].
///
/// After an error a decoder only repeats it.
#[derive(Debug)]
pub struct Decoder {
    codec: Codec,
    compression: Compression,
    compressed: u64,
    decompressed: u64,
    /// Decompressed position of the last boundary, or of the start: the next one must lie behind it.
    last_boundary: u64,
    at_boundary: bool,
    failed: Option<StreamError>,
}

#[derive(Debug)]
enum Codec {
    None,
    Gzip(Gzip),
    Zstd(Box<Zstd>),
}

impl Decoder {
    /// A decoder for a whole stream: its input begins at offset 0.
    pub fn new(compression: Compression) -> Result<Decoder, StreamError> {
        Decoder::resume(compression, &Checkpoint::start())
    }

    /// A decoder that goes on from `at`: its input begins at [`Checkpoint::read_from`].
    ///
    /// Checksums cover whole gzip members, so that of a member which is entered in the middle cannot be verified; all
    /// others are.
    pub fn resume(compression: Compression, at: &Checkpoint) -> Result<Decoder, StreamError> {
        at.check(compression)?;
        let codec = match compression {
            Compression::None => Codec::None,
            Compression::Gzip => Codec::Gzip(Gzip::resume(at)?),
            Compression::Zstd => Codec::Zstd(Box::new(Zstd::resume(at)?)),
        };
        Ok(Decoder {
            codec,
            compression,
            compressed: at.read_from(),
            decompressed: at.decompressed,
            last_boundary: at.decompressed,
            at_boundary: false,
            failed: None,
        })
    }

    /// Takes in `input` and appends what it gives to `out`, at most `room` bytes.
    ///
    /// `room` must not be zero. A scan should leave room for a few hundred KiB, as each call has a small fixed cost.
    /// With `want_checkpoint` it stops at the next place for a checkpoint whose decompressed position lies behind the
    /// last one's (and behind the start); ask for that only when one is due, because looking for it costs some speed.
    ///
    /// On an error, `out` may have grown by what was decoded before it.
    pub fn decode(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        room: usize,
        want_checkpoint: bool,
    ) -> Result<Decoded, StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.at_boundary = false;
        if room == 0 {
            return Ok(Decoded {
                consumed: 0,
                status: Status::OutputFull,
            });
        }
        let mut pass = Pass {
            input,
            out,
            room,
            compressed: self.compressed,
            decompressed: self.decompressed,
            want_checkpoint,
            last_boundary: self.last_boundary,
        };
        let result = match &mut self.codec {
            Codec::None => Ok(copy(&mut pass)),
            Codec::Gzip(gzip) => gzip.decode(&mut pass),
            Codec::Zstd(zstd) => zstd.decode(&mut pass),
        };
        let consumed = input.len() - pass.input.len();
        self.compressed = pass.compressed;
        self.decompressed = pass.decompressed;
        match result {
            Ok(status) => {
                if status == Status::Boundary {
                    self.at_boundary = true;
                    self.last_boundary = self.decompressed;
                }
                Ok(Decoded { consumed, status })
            }
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Position in the compressed stream: behind the last byte consumed.
    pub fn compressed(&self) -> u64 {
        self.compressed
    }

    /// Position in the decompressed stream: behind the last byte given.
    pub fn decompressed(&self) -> u64 {
        self.decompressed
    }

    /// The checkpoint for where it stands; `None` unless the last call stopped with [`Status::Boundary`].
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        if !self.at_boundary {
            return None;
        }
        let (bits, window) = match &self.codec {
            Codec::Gzip(gzip) => gzip.boundary(),
            Codec::None | Codec::Zstd(_) => (0, Box::default()),
        };
        Some(Checkpoint {
            compressed: self.compressed,
            bits,
            decompressed: self.decompressed,
            window,
        })
    }

    /// To be asked when there is no more input: `Ok` if the stream may end here, that is behind a gzip trailer, behind
    /// a zstd frame, or anywhere if uncompressed.
    ///
    /// What is left over behind the last gzip member (padding, and anything that is no member) is no error.
    pub fn finish(&self) -> Result<(), StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let ended = match &self.codec {
            Codec::None => true,
            Codec::Gzip(gzip) => gzip.at_end(),
            Codec::Zstd(zstd) => zstd.at_end(),
        };
        if ended {
            Ok(())
        } else {
            Err(StreamError::Truncated {
                compression: self.compression,
                at: self.compressed,
            })
        }
    }

    /// Leaves the parts that are worth it for the next decoder of this thread.
    fn recycle(self) {
        match self.codec {
            Codec::None => {}
            Codec::Gzip(gzip) => gzip.recycle(),
            Codec::Zstd(zstd) => zstd.recycle(),
        }
    }
}

/// Decompresses a whole short span: the `len` bytes that follow `at`, from the `compressed` bytes that begin at
/// [`Checkpoint::read_from`]. The upper `following` bits of the last of them belong to what follows: the
/// [`bits`](Checkpoint::bits) of the checkpoint there.
///
/// It stops at `len` bytes, so that the beginning of a span can be had for less than the whole; what follows, even a
/// checksum, need not have been looked at. Fewer bytes are an error.
pub fn decode_span(
    compression: Compression,
    at: &Checkpoint,
    compressed: &[u8],
    following: u8,
    len: usize,
) -> Result<Bytes, StreamError> {
    let short = |got| StreamError::ShortSpan {
        compression,
        at: at.read_from(),
        wanted: len,
        got,
    };
    // A length that cannot be true must not allocate.
    let most = compression.most_from(compressed.len());
    if len > most {
        return Err(short(most));
    }
    if len == 0 {
        return Ok(Bytes::new());
    }
    at.check(compression)?;
    if compression == Compression::Gzip
        && let Some(span) = whole::inflate(at, compressed, following, len)
    {
        return Ok(span);
    }
    let mut out = buffers::empty(len).map_err(|_| StreamError::Memory)?;
    let mut decoder = Decoder::resume(compression, at)?;
    decoder.decode(compressed, &mut out, len, false)?;
    decoder.recycle();
    if out.len() == len {
        Ok(buffers::freeze(out))
    } else {
        Err(short(out.len()))
    }
}

/// One call of [`Decoder::decode`] under way.
struct Pass<'a> {
    /// What is not consumed yet.
    input: &'a [u8],
    out: &'a mut Vec<u8>,
    /// How many more bytes `out` may take.
    room: usize,
    compressed: u64,
    decompressed: u64,
    want_checkpoint: bool,
    last_boundary: u64,
}

impl Pass<'_> {
    /// Counts bytes of the input as consumed.
    fn consume(&mut self, bytes: usize) {
        self.input = self.input.get(bytes..).unwrap_or_default();
        self.compressed = self.compressed.saturating_add(bytes as u64);
    }

    /// Counts bytes that were appended to `out`.
    fn produced(&mut self, bytes: usize) {
        self.room = self.room.saturating_sub(bytes);
        self.decompressed = self.decompressed.saturating_add(bytes as u64);
    }

    /// Whether a checkpoint is wanted, and would be another one than the last.
    fn wants_checkpoint_here(&self) -> bool {
        self.want_checkpoint && self.decompressed > self.last_boundary
    }
}

/// The decoder for what is not compressed.
fn copy(pass: &mut Pass<'_>) -> Status {
    let piece = pass.input.get(..pass.room).unwrap_or(pass.input);
    pass.out.extend_from_slice(piece);
    pass.consume(piece.len());
    pass.produced(piece.len());
    if pass.wants_checkpoint_here() {
        Status::Boundary
    } else if pass.input.is_empty() {
        Status::NeedsInput
    } else {
        Status::OutputFull
    }
}
