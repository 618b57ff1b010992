//! The scanner: reads a tar stream as it comes by, and makes a [`Member`] of each group of headers.
//!
//! A group is the header of a file, directory or link, with the headers before it that say more about it (PAX `x`, GNU
//! `L` and `K`) and the blocks behind it that hold a sparse map. The data of files is skipped, never held. What is held
//! is bounded: one group.

mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use std::mem;

use crate::range::ByteRange;

use super::names::shown;
use super::{GrowingIndex, IndexError, Kind, Member};
use header::{BLOCK, Header};
use pax::Pax;
use sparse::{MapReader, Pieces, TextMap};

/// Bytes of a PAX header, of a GNU long name, or of a sparse map: room for the largest attribute that Linux has.
const MAX_PAYLOAD: u64 = 1 << 20;

/// The owner of a file whose recorded owner is no number that Linux has: the kernel's own choice for such.
const OVERFLOW_ID: u32 = 65534;

/// Reads the headers of a tar stream.
///
/// After an error it must not be fed any more.
pub struct TarScanner {
    /// Offset in the stream of the next byte to be fed.
    position: u64,
    /// Offset of the first header of the group that is not complete.
    group: u64,
    state: State,
    /// The block that is being read, and how much of it there is.
    block: [u8; BLOCK],
    filled: usize,
    /// What the headers of the group so far say about the member to come.
    about: About,
}

enum State {
    /// A header comes next; `zero` if a block of zeros was before it.
    Header { zero: bool },
    /// Bytes that are of no interest up to `end`; those up to `needed` must be there.
    Skip { needed: u64, end: u64 },
    /// The payload of a header that says more about the member to come: `len` bytes, padded up to `end`.
    Payload {
        what: Payload,
        len: usize,
        end: u64,
        bytes: Vec<u8>,
    },
    /// A block with more pieces of an old GNU sparse file.
    MorePieces {
        member: Box<Member>,
        pieces: Pieces,
        stored: u64,
    },
    /// A block of the map before the data of a sparse file; `stored` counts the map too.
    Map {
        member: Box<Member>,
        map: MapReader,
        stored: u64,
    },
    /// Two blocks of zeros: what follows is none of the archive's.
    Ended,
}

#[derive(Clone, Copy)]
enum Payload {
    Pax,
    LongName,
    LongLink,
}

#[derive(Default)]
struct About {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl Default for TarScanner {
    fn default() -> Self {
        Self::new()
    }
}

impl TarScanner {
    /// A scanner at the beginning of a stream.
    pub fn new() -> TarScanner {
        Self::at(0, 0)
    }

    /// A scanner that is fed from `position` on, and takes up reading at `next_group`, which is not before it and
    /// what [`TarScanner::next_group`] of another scanner of the stream was.
    pub fn at(position: u64, next_group: u64) -> TarScanner {
        let end = next_group.max(position);
        TarScanner {
            position,
            group: end,
            state: match next_group {
                u64::MAX => State::Ended,
                _ => State::Skip { needed: end, end },
            },
            block: [0; BLOCK],
            filled: 0,
            about: About::default(),
        }
    }

    /// Offset in the stream of the next byte to be fed.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Offset of the first header of the group that is not completely read; all groups before it are in the index.
    /// `u64::MAX` once the archive has ended.
    pub fn next_group(&self) -> u64 {
        self.group
    }

    /// Whether the archive has ended: whatever follows in the stream is ignored.
    pub fn ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Reads the next bytes of the decompressed stream, and enters what they tell.
    pub fn feed(&mut self, mut decompressed: &[u8], into: &mut GrowingIndex) -> Result<(), IndexError> {
        loop {
            // What is complete is dealt with even if no byte is left: a payload can be empty.
            match &mut self.state {
                State::Skip { end, .. } if self.position >= *end => self.state = State::Header { zero: false },
                State::Payload { what, bytes, end, .. } if self.position >= *end => {
                    let (what, bytes) = (*what, mem::take(bytes));
                    self.state = State::Header { zero: false };
                    self.take_payload(what, bytes)?;
                }
                _ if decompressed.is_empty() => return Ok(()),
                State::Ended => {
                    self.advance(&mut decompressed, usize::MAX);
                }
                State::Skip { end, .. } => {
                    let len = usize::try_from(*end - self.position).unwrap_or(usize::MAX);
                    self.advance(&mut decompressed, len);
                }
                State::Payload { len, end, bytes, .. } => {
                    let wanted = *len - bytes.len();
                    if wanted > 0 {
                        let (head, _) = decompressed.split_at(wanted.min(decompressed.len()));
                        bytes.extend_from_slice(head);
                        let len = head.len();
                        self.advance(&mut decompressed, len);
                    } else {
                        let len = usize::try_from(*end - self.position).unwrap_or(usize::MAX);
                        self.advance(&mut decompressed, len);
                    }
                }
                State::Header { .. } | State::MorePieces { .. } | State::Map { .. } => {
                    let head = self.advance(&mut decompressed, BLOCK - self.filled);
                    if let Some(room) = self.block.get_mut(self.filled..self.filled + head.len()) {
                        room.copy_from_slice(head);
                    }
                    self.filled += head.len();
                    if self.filled == BLOCK {
                        self.filled = 0;
                        self.take_block(into)?;
                    }
                }
            }
        }
    }

    /// Tells whether the stream may end here: not inside a group of headers, nor inside a file's data. Missing padding
    /// and missing blocks of zeros at the end do no harm.
    pub fn finish(&self) -> Result<(), IndexError> {
        let filled = self.block.get(..self.filled).unwrap_or_default();
        let inside = match &self.state {
            State::Ended => return Ok(()),
            State::Skip { needed, .. } if self.position < *needed => "the data of a file",
            State::Skip { end, .. } if self.group == *end => return Ok(()),
            State::Header { .. } if self.is_between_groups() && filled.iter().all(|byte| *byte == 0) => return Ok(()),
            _ => "a header",
        };
        Err(IndexError::Truncated {
            at: self.position,
            inside,
        })
    }

    fn is_between_groups(&self) -> bool {
        self.about.name.is_none() && self.about.link.is_none() && self.about.pax.is_none()
    }

    /// Takes up to `len` bytes from the input.
    fn advance<'a>(&mut self, input: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (head, rest) = input.split_at(len.min(input.len()));
        *input = rest;
        self.position = self.position.saturating_add(head.len() as u64);
        head
    }

    fn malformed(&self, what: &'static str) -> IndexError {
        let at = self.position.saturating_sub(BLOCK as u64);
        IndexError::Malformed { at, what }
    }

    fn take_block(&mut self, into: &mut GrowingIndex) -> Result<(), IndexError> {
        match mem::replace(&mut self.state, State::Header { zero: false }) {
            State::Header { zero } => self.take_header(zero, into),
            State::MorePieces { member, pieces, stored } => self.take_more_pieces(*member, pieces, stored, into),
            State::Map { member, map, stored } => self.take_map(*member, map, stored, into),
            other => {
                self.state = other;
                Ok(())
            }
        }
    }

    fn take_header(&mut self, zero: bool, into: &mut GrowingIndex) -> Result<(), IndexError> {
        if self.block.iter().all(|byte| *byte == 0) {
            if !self.is_between_groups() {
                return Err(self.malformed("the end of the archive instead of a file"));
            }
            self.state = State::Header { zero: true };
            if zero {
                self.state = State::Ended;
                self.group = u64::MAX;
            }
            return Ok(());
        }
        if zero {
            return Err(self.malformed("more after a block of zeros"));
        }
        let block = self.block;
        let header = Header(&block);
        if !header.is_genuine() {
            let at = self.position.saturating_sub(BLOCK as u64);
            return Err(IndexError::Checksum { at });
        }
        let size = header.size().and_then(|size| u64::try_from(size).ok());
        let size = || size.ok_or_else(|| self.malformed("a malformed size"));
        let payload = match header.flag() {
            b'x' => Payload::Pax,
            b'L' => Payload::LongName,
            b'K' => Payload::LongLink,
            b'g' => {
                let size = size()?;
                return self.skip(size, self.is_between_groups());
            }
            _ => return self.take_member(&header, into),
        };
        let size = size()?;
        if size > MAX_PAYLOAD {
            return Err(self.too_large());
        }
        self.state = State::Payload {
            what: payload,
            len: size as usize,
            end: self.position + size.next_multiple_of(BLOCK as u64),
            bytes: Vec::new(),
        };
        Ok(())
    }

    fn too_large(&self) -> IndexError {
        IndexError::TooLarge {
            what: "bytes in the header of one file",
            limit: MAX_PAYLOAD,
        }
    }

    fn take_payload(&mut self, what: Payload, bytes: Vec<u8>) -> Result<(), IndexError> {
        // GNU ends names with a NUL, and so nothing behind one counts.
        let name = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match what {
            Payload::LongName => self.about.name = Some(name(&bytes)),
            Payload::LongLink => self.about.link = Some(name(&bytes)),
            Payload::Pax => self.about.pax = Some(pax::parse(&bytes).map_err(|what| self.malformed(what))?),
        }
        Ok(())
    }

    /// Goes on behind `stored` bytes of data; `complete` if the group ends before them.
    fn skip(&mut self, stored: u64, complete: bool) -> Result<(), IndexError> {
        let needed = self.position.checked_add(stored);
        let end = needed.and_then(|needed| needed.checked_next_multiple_of(BLOCK as u64));
        let (Some(needed), Some(end)) = (needed, end.filter(|end| *end < i64::MAX as u64)) else {
            return Err(self.malformed("an impossible size"));
        };
        if complete {
            self.group = end;
        }
        self.state = State::Skip { needed, end };
        Ok(())
    }

    /// Makes a member of a header and all that was said before it.
    fn take_member(&mut self, header: &Header<'_>, into: &mut GrowingIndex) -> Result<(), IndexError> {
        let about = mem::take(&mut self.about);
        let mut pax = about.pax.unwrap_or_default();
        let flag = header.flag();
        let mut sparse = mem::take(&mut pax.sparse);
        // A GNU long name is taken before PAX, as Go does; the name in a sparse file's header is not its own.
        let mut name = about.name.or(pax.path.take()).unwrap_or_else(|| header.name());
        let is_file = !matches!(flag, b'1'..=b'6');
        if let Some(own) = sparse.name.take().filter(|_| is_file) {
            name = own;
        }
        let kind = match flag {
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'0' | 0 | b'7' if name.ends_with(b"/") => Kind::Directory,
            _ => Kind::File,
        };
        if is_file && !matches!(flag, b'0' | 0 | b'7' | b'S') {
            let flag = [flag];
            into.warn(format!(
                "{} is of the unknown type {}: taken for a file",
                shown(&name),
                shown(&flag)
            ));
        }
        let xattrs = pax.xattrs_of(kind);
        for warning in &pax.warnings {
            into.warn(format!("{}: {warning}", shown(&name)));
        }
        let mut id = |told: Option<i64>, what: &'static str| {
            let told = told.ok_or_else(|| self.malformed(what))?;
            Ok(u32::try_from(told).unwrap_or_else(|_| {
                into.warn(format!(
                    "{} has the owner {told}, which Linux has not: {OVERFLOW_ID} is taken",
                    shown(&name)
                ));
                OVERFLOW_ID
            }))
        };
        let uid = id(pax.uid.or_else(|| header.uid()), "a malformed uid")?;
        let gid = id(pax.gid.or_else(|| header.gid()), "a malformed gid")?;
        let mtime = match pax.mtime {
            Some(time) => (time.seconds, time.nanoseconds),
            None => (header.mtime().ok_or_else(|| self.malformed("a malformed mtime"))?, 0),
        };
        let (major, minor) = match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                let device = header
                    .device()
                    .ok_or_else(|| self.malformed("a malformed device number"))?;
                let number = |number: i64| u32::try_from(number).ok();
                let device = number(device.0).zip(number(device.1));
                device.ok_or_else(|| self.malformed("an impossible device number"))?
            }
            _ => (0, 0),
        };
        let told = pax
            .size
            .or_else(|| header.size().and_then(|size| u64::try_from(size).ok()));
        // Links, devices, directories and pipes have no data, whatever size they tell.
        let stored = if is_file {
            told.ok_or_else(|| self.malformed("a malformed size"))?
        } else {
            0
        };
        let mode = header.mode().ok_or_else(|| self.malformed("a malformed mode"))?;
        let member = Member {
            kind,
            link: about
                .link
                .or(pax.linkpath.take())
                .unwrap_or_else(|| header.link().to_vec()),
            mode: (mode & 0o7777) as u16,
            uid,
            gid,
            size: stored,
            mtime: mtime.0,
            mtime_nsec: mtime.1,
            major,
            minor,
            xattrs,
            sparse: None,
            data: ByteRange::at(self.position, 0),
            name,
        };
        let real = sparse.realsize.or(sparse.size).unwrap_or(stored);
        if kind != Kind::File {
            return self.enter(member, None, stored, into);
        }
        if flag == b'S' {
            let size = header.sparse_size().and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| self.malformed("a malformed size of a sparse file"))?;
            let mut pieces = Pieces::new();
            self.old_pieces(header.sparse_pieces(), &mut pieces)?;
            let member = Member { size, ..member };
            if header.sparse_goes_on() {
                let member = Box::new(member);
                self.state = State::MorePieces { member, pieces, stored };
                return Ok(());
            }
            return self.enter(member, Some(pieces), stored, into);
        }
        let member = Member { size: real, ..member };
        if sparse.is_in_data() {
            let (member, map) = (Box::new(member), MapReader::default());
            self.state = State::Map { member, map, stored };
            return Ok(());
        }
        match sparse.pieces {
            Some(pieces) => self.enter(member, Some(pieces), stored, into),
            None => self.enter(Member { size: stored, ..member }, None, stored, into),
        }
    }

    fn old_pieces(&self, block: &[u8], pieces: &mut Pieces) -> Result<(), IndexError> {
        let malformed = || self.malformed("a malformed map of a sparse file");
        sparse::old_pieces(block, pieces).ok_or_else(malformed)?;
        if pieces.len() > sparse::MAX_PIECES {
            Err(self.too_large())
        } else {
            Ok(())
        }
    }

    fn take_more_pieces(
        &mut self,
        member: Member,
        mut pieces: Pieces,
        stored: u64,
        into: &mut GrowingIndex,
    ) -> Result<(), IndexError> {
        let [block @ .., _, _, _, _, _, _, _, _] = self.block;
        self.old_pieces(&block, &mut pieces)?;
        if self.block.get(block.len()) != Some(&0) {
            let member = Box::new(member);
            self.state = State::MorePieces { member, pieces, stored };
            return Ok(());
        }
        self.enter(member, Some(pieces), stored, into)
    }

    fn take_map(
        &mut self,
        member: Member,
        mut map: MapReader,
        stored: u64,
        into: &mut GrowingIndex,
    ) -> Result<(), IndexError> {
        let malformed = || self.malformed("a malformed map of a sparse file");
        let read = map.take(&self.block);
        let stored_behind = stored.checked_sub(map.len()).ok_or_else(malformed)?;
        match read {
            TextMap::Complete(pieces) => self.enter(member, Some(pieces), stored_behind, into),
            TextMap::Unfinished if map.len() >= MAX_PAYLOAD => Err(self.too_large()),
            TextMap::Unfinished => {
                let member = Box::new(member);
                self.state = State::Map { member, map, stored };
                Ok(())
            }
            TextMap::Malformed => Err(malformed()),
        }
    }

    /// Hands a complete member on, and goes on behind its data.
    fn enter(
        &mut self,
        mut member: Member,
        pieces: Option<Pieces>,
        stored: u64,
        into: &mut GrowingIndex,
    ) -> Result<(), IndexError> {
        let contradiction = || self.malformed("a contradictory map of a sparse file");
        member.data = ByteRange::at(self.position, stored);
        if let Some(pieces) = pieces {
            let pieces = sparse::checked(pieces, member.size, stored).ok_or_else(contradiction)?;
            // A map without a hole is no map.
            if pieces == [(0, member.size)] || (pieces.is_empty() && member.size == 0) {
                member.data = ByteRange::at(self.position, member.size);
            } else {
                member.data = ByteRange::at(self.position, pieces.iter().map(|(_, len)| len).sum());
                member.sparse = Some(pieces);
            }
        }
        if member.kind != Kind::File {
            member.size = 0;
            member.data = ByteRange::at(self.position, 0);
        }
        self.skip(stored, true)?;
        into.add(&member)?;
        Ok(())
    }
}
