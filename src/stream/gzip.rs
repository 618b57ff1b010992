//! Random access to gzip (RFC 1952), after zlib's `examples/zran.c`.
//!
//! The stream is a row of members: header, deflate blocks, trailer. A member that is decoded from its header on is left
//! to inflate's gzip mode, which verifies CRC and length. One that is entered at a checkpoint is raw deflate up to its
//! trailer, which then says nothing about the part that was seen and is skipped.

use std::cell::Cell;

use super::inflate::{Inflate, Stop, Wrapping};
use super::{Checkpoint, Compression, Pass, Status, StreamError};

const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// CRC-32 and length of a member.
const TRAILER: usize = 8;

/// Output for which there is always room asked for, whatever the input's size: inflate may hold back a match.
const HELD_BACK: usize = 64 * 1024;

/// A gzip stream, from its beginning or from a checkpoint.
#[derive(Debug)]
pub(super) struct Gzip {
    inflate: Inflate,
    state: State,
    /// Whether there is output to refer to, so that a checkpoint in this member has a window.
    has_window: bool,
    /// At a boundary inside a member: the bits of the last byte that belong to the block that follows.
    bits: u8,
}

/// What the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Of a member that was, or is to be, seen from its first byte on.
    Member,
    /// The one whose upper bits begin the block at which we resume.
    SplitByte { bits: u8 },
    /// Of a member that was entered at a checkpoint.
    Entered,
    /// Of the trailer of such a member.
    Trailer { left: usize },
    /// Behind a trailer: of the next member, or of padding, or neither.
    Between,
    /// The second one of a member, perhaps: the first was right.
    Magic,
    /// Left over behind the last member. As gzip does, we ignore it; digests of the whole blob are for our caller.
    Garbage,
}

thread_local! {
    /// The state of the last span's decoder, 50 KB: making one costs more than a small span.
    static SPARE: Cell<Option<Inflate>> = const { Cell::new(None) };
}

impl Gzip {
    pub(super) fn resume(at: &Checkpoint) -> Result<Gzip, StreamError> {
        let mut inflate = match SPARE.take() {
            Some(inflate) => inflate,
            None => Inflate::new()?,
        };
        let state = if !at.window.is_empty() {
            inflate.reset(Wrapping::Raw);
            inflate.set_window(&at.window);
            match at.bits {
                0 => State::Entered,
                bits => State::SplitByte { bits },
            }
        } else if at.compressed == 0 {
            inflate.reset(Wrapping::Gzip);
            State::Member
        } else {
            State::Between
        };
        Ok(Gzip {
            inflate,
            state,
            has_window: !at.window.is_empty(),
            bits: 0,
        })
    }

    pub(super) fn recycle(self) {
        SPARE.set(Some(self.inflate));
    }

    /// Bits and window of a checkpoint here, at a boundary.
    pub(super) fn boundary(&self) -> (u8, Box<[u8]>) {
        match self.state {
            State::Member | State::Entered => (self.bits, self.inflate.window()),
            _ => (0, Box::default()),
        }
    }

    /// Whether the stream may end here. A lone first byte of the magic is garbage when nothing follows.
    pub(super) fn at_end(&self) -> bool {
        matches!(self.state, State::Between | State::Magic | State::Garbage)
    }

    pub(super) fn decode(&mut self, pass: &mut Pass<'_>) -> Result<Status, StreamError> {
        loop {
            match self.state {
                State::Member | State::Entered => {
                    if let Some(status) = self.inflate(pass)? {
                        return Ok(status);
                    }
                }
                State::SplitByte { bits } => {
                    let Some(byte) = pass.input.first() else {
                        return Ok(Status::NeedsInput);
                    };
                    self.inflate.prime(bits, byte >> (8 - bits));
                    pass.consume(1);
                    self.state = State::Entered;
                }
                State::Trailer { left } => {
                    let here = left.min(pass.input.len());
                    pass.consume(here);
                    if here < left {
                        self.state = State::Trailer { left: left - here };
                        return Ok(Status::NeedsInput);
                    }
                    self.state = State::Between;
                }
                State::Between => {
                    let zeros = pass.input.iter().position(|byte| *byte != 0);
                    pass.consume(zeros.unwrap_or(pass.input.len()));
                    match pass.input.first() {
                        None => return Ok(Status::NeedsInput),
                        Some(byte) if *byte != MAGIC[0] => self.state = State::Garbage,
                        Some(_) if pass.wants_checkpoint_here() => return Ok(Status::Boundary),
                        Some(_) => {
                            pass.consume(1);
                            self.state = State::Magic;
                        }
                    }
                }
                State::Magic => match pass.input.first() {
                    None => return Ok(Status::NeedsInput),
                    Some(byte) if *byte != MAGIC[1] => self.state = State::Garbage,
                    Some(_) => self.begin_member(pass)?,
                },
                State::Garbage => {
                    pass.consume(pass.input.len());
                    return Ok(Status::NeedsInput);
                }
            }
        }
    }

    /// Starts inflate on the member whose first byte is consumed already.
    fn begin_member(&mut self, pass: &Pass<'_>) -> Result<(), StreamError> {
        self.inflate.reset(Wrapping::Gzip);
        self.inflate
            .step(&MAGIC[..1], &mut Vec::new(), 0, false)
            .map_err(|reason| corrupt(pass, reason))?;
        self.has_window = false;
        self.state = State::Member;
        Ok(())
    }

    /// One step through a member. `None`: there is more to do in this pass.
    fn inflate(&mut self, pass: &mut Pass<'_>) -> Result<Option<Status>, StreamError> {
        // No more than the input can give, so that a small piece of it does not reserve a large room.
        let room = pass
            .room
            .min(Compression::Gzip.most_from(pass.input.len()).saturating_add(HELD_BACK));
        let step = self
            .inflate
            .step(pass.input, pass.out, room, pass.want_checkpoint)
            .map_err(|reason| corrupt(pass, reason))?;
        pass.consume(step.consumed);
        pass.produced(step.produced);
        self.has_window |= step.produced > 0;

        match step.stop {
            Stop::End => {
                self.state = match self.state {
                    State::Entered => State::Trailer { left: TRAILER },
                    _ => State::Between,
                };
                return Ok(None);
            }
            // An empty window would mean the start of a member: behind a header, or behind empty blocks, go on.
            Stop::Block { bits } if self.has_window && pass.wants_checkpoint_here() => {
                self.bits = bits;
                return Ok(Some(Status::Boundary));
            }
            Stop::Block { .. } | Stop::Spent => {}
        }
        if pass.room == 0 {
            return Ok(Some(Status::OutputFull));
        }
        if step.consumed > 0 || step.produced > 0 {
            return Ok(None);
        }
        if pass.input.is_empty() {
            return Ok(Some(Status::NeedsInput));
        }
        Err(corrupt(pass, "the decompressor makes no progress"))
    }
}

fn corrupt(pass: &Pass<'_>, reason: &'static str) -> StreamError {
    StreamError::Corrupt {
        compression: Compression::Gzip,
        at: pass.compressed,
        reason,
    }
}
