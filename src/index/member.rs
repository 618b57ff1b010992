//! A member: what one group of tar headers says, before any rule of the layer is applied to it.
//!
//! The scanner makes members, [`super::GrowingIndex::add`] makes entries of them. A table of contents that comes with
//! an image can be turned into members too. The log of an unfinished scan keeps members, so that an index taken up
//! again is rebuilt by the very rules that made it.

use crate::range::ByteRange;

use super::Kind;
use super::fields::{Fields, put_block};

/// What one group of tar headers says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name as the header has it.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// A symlink's or hardlink's target as the header has it.
    pub link: Vec<u8>,
    /// Permission bits; others are dropped.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of a file, its holes included.
    pub size: u64,
    /// Time of last change: seconds since the epoch, rounded down.
    pub mtime: i64,
    /// Nanoseconds to be added to `mtime`.
    pub mtime_nsec: u32,
    /// Major number of a device.
    pub major: u32,
    /// Minor number of a device.
    pub minor: u32,
    /// Extended attributes, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// For a sparse file the pieces that are stored, (offset in the file, length), in order and disjoint.
    pub sparse: Option<Vec<(u64, u64)>>,
    /// Where a file's stored bytes are in the decompressed stream: `size` bytes, or the sum of the pieces.
    pub data: ByteRange,
}

impl Default for Member {
    /// An empty file without a name.
    fn default() -> Self {
        Member {
            name: Vec::new(),
            kind: Kind::File,
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            mtime_nsec: 0,
            major: 0,
            minor: 0,
            xattrs: Vec::new(),
            sparse: None,
            data: ByteRange::new(0, 0),
        }
    }
}

impl Member {
    /// Appends the member for [`Member::decode`].
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        out.extend_from_slice(&self.mode.to_le_bytes());
        for word in [self.uid, self.gid, self.mtime_nsec, self.major, self.minor] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.mtime.to_le_bytes());
        for word in [self.size, self.data.start(), self.data.end()] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        put_block(out, &self.name);
        put_block(out, &self.link);
        out.extend_from_slice(&(self.xattrs.len() as u32).to_le_bytes());
        for (name, value) in &self.xattrs {
            put_block(out, name);
            put_block(out, value);
        }
        match &self.sparse {
            None => out.push(0),
            Some(pieces) => {
                out.push(1);
                out.extend_from_slice(&(pieces.len() as u32).to_le_bytes());
                for (offset, len) in pieces {
                    out.extend_from_slice(&offset.to_le_bytes());
                    out.extend_from_slice(&len.to_le_bytes());
                }
            }
        }
    }

    /// The next encoded member; `None` if the bytes are not one.
    pub(super) fn decode(from: &mut Fields<'_>) -> Option<Member> {
        let kind = Kind::from_u8(from.u8()?)?;
        let mode = from.u16()?;
        let (uid, gid, mtime_nsec, major, minor) = (from.u32()?, from.u32()?, from.u32()?, from.u32()?, from.u32()?);
        let mtime = from.i64()?;
        let (size, start, end) = (from.u64()?, from.u64()?, from.u64()?);
        let name = from.block()?.to_vec();
        let link = from.block()?.to_vec();
        let mut xattrs = Vec::new();
        for _ in 0..from.u32()? {
            xattrs.push((from.block()?.to_vec(), from.block()?.to_vec()));
        }
        let sparse = match from.u8()? {
            0 => None,
            1 => {
                let mut pieces = Vec::new();
                for _ in 0..from.u32()? {
                    pieces.push((from.u64()?, from.u64()?));
                }
                Some(pieces)
            }
            _ => return None,
        };
        let data = ByteRange::new(start, end);
        Some(Member {
            name,
            kind,
            link,
            mode,
            uid,
            gid,
            size,
            mtime,
            mtime_nsec,
            major,
            minor,
            xattrs,
            sparse,
            data,
        })
    }
}
