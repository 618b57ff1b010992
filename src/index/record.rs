//! A record: one entry in 64 bytes, the same in memory and on disk, with its names, links and attributes in a pool.
//!
//! What only some kinds have shares a field: `place` is where a file's bytes are, a device's numbers, or where a
//! directory's children are; `size` is a file's, or how many children make a directory exist. Offsets into the pool are 0 for "none", so a pool begins with a byte that means nothing.

use crate::range::ByteRange;

use super::fields::{Fields, put_block};
use super::names::never_shown;
use super::{Entry, EntryId, Kind};

/// Bytes of a record on disk.
pub(super) const RECORD_LEN: usize = 64;
/// An entry number that no entry has.
pub(super) const NONE: u32 = u32::MAX;

/// No entry has declared the directory yet.
pub(super) const IMPLIED: u8 = 1 << 3;
/// The directory has a child that is a whiteout.
pub(super) const WHITEOUTS: u8 = 1 << 4;
/// The directory has an opaque whiteout.
pub(super) const OPAQUE: u8 = 1 << 5;
/// Of a file: it has holes; its pieces are in `extra`.
pub(super) const SPARSE: u8 = 1 << 6;
/// Of a directory, or of a hard link to a lower layer: it took the place of something else in its layer.
pub(super) const REPLACING: u8 = 1 << 6;
/// Its name is taken by a later entry, or lies below one that is.
pub(super) const DEAD: u8 = 1 << 7;

/// One entry without its variable parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub parent: u32,
    pub name: u32,
    pub name_len: u8,
    /// The kind in the lower three bits, then the flags above.
    pub kind: u8,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime_nsec: u32,
    pub mtime: i64,
    pub size: u64,
    pub place: u64,
    pub target: u32,
    pub nlink: u32,
    pub link: u32,
    pub extra: u32,
}

/// A path or link target that is in the pool.
pub(super) fn text(pool: &[u8], at: u32) -> Option<&[u8]> {
    let mut fields = Fields(pool.get(usize::try_from(at).ok()?..)?);
    let len = usize::from(fields.u16()?);
    fields.take(len)
}

/// Two numbers in one `place`.
pub(super) fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn unpair(place: u64) -> (u32, u32) {
    ((place >> 32) as u32, place as u32)
}

impl Record {
    /// A directory that no entry has declared.
    pub fn implied(parent: u32, name: u32, name_len: u8) -> Record {
        Record {
            parent,
            name,
            name_len,
            kind: Kind::Directory as u8 | IMPLIED,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime_nsec: 0,
            mtime: 0,
            size: 0,
            place: 0,
            target: NONE,
            nlink: 1,
            link: 0,
            extra: 0,
        }
    }

    pub fn kind(&self) -> Option<Kind> {
        Kind::from_u8(self.kind & 7)
    }

    pub fn is(&self, kind: Kind) -> bool {
        self.kind() == Some(kind)
    }

    pub fn has(&self, flag: u8) -> bool {
        self.kind & flag != 0
    }

    /// Whether it is a directory that exists because of its layer.
    pub fn is_solid(&self) -> bool {
        self.is(Kind::Directory) && (!self.has(IMPLIED) || self.size > 0)
    }

    /// Whether the directory that it is in exists because of it.
    pub fn makes_solid(&self, pool: &[u8]) -> bool {
        let (Some(kind), Some(name)) = (self.kind(), self.name(pool)) else {
            return false;
        };
        !never_shown(name, kind) && (kind != Kind::Directory || self.is_solid())
    }

    /// Whether it is a file with holes.
    pub fn is_sparse(&self) -> bool {
        self.is(Kind::File) && self.has(SPARSE)
    }

    pub fn name<'a>(&self, pool: &'a [u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(self.name).ok()?;
        pool.get(start..start.checked_add(usize::from(self.name_len))?)
    }

    pub fn link<'a>(&self, pool: &'a [u8]) -> Option<&'a [u8]> {
        match self.link {
            0 => Some(b""),
            at => text(pool, at),
        }
    }

    pub fn extra<'a>(&self, pool: &'a [u8]) -> Option<Extra<'a>> {
        if self.extra == 0 {
            return Some(Extra::default());
        }
        let mut fields = Fields(pool.get(usize::try_from(self.extra).ok()?..)?);
        let xattrs = fields.block()?;
        let pieces = fields.block()?;
        Some(Extra { xattrs, pieces })
    }

    /// Where the children of a directory begin in the table of children, and how many they are.
    pub fn children(&self) -> (u32, u32) {
        unpair(self.place)
    }

    /// Where the stored bytes of a file are.
    pub fn data(&self, pool: &[u8]) -> Option<ByteRange> {
        if !self.is(Kind::File) {
            return Some(ByteRange::new(0, 0));
        }
        let len = if self.is_sparse() {
            Fields(self.extra(pool)?.pieces).u64()?
        } else {
            self.size
        };
        Some(ByteRange::at(self.place, len))
    }

    /// The entry that this record is, with all its variable parts; `None` if they are damaged.
    pub fn entry<'a>(&self, id: EntryId, pool: &'a [u8]) -> Option<Entry<'a>> {
        let kind = self.kind()?;
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let (major, minor) = if device { unpair(self.place) } else { (0, 0) };
        let extra = self.extra(pool)?;
        Some(Entry {
            id,
            parent: EntryId(self.parent),
            name: self.name(pool)?,
            kind,
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            size: if kind == Kind::Directory { 0 } else { self.size },
            mtime: self.mtime,
            mtime_nsec: self.mtime_nsec,
            major,
            minor,
            data: self.data(pool)?,
            link: self.link(pool)?,
            target: (self.target != NONE).then_some(EntryId(self.target)),
            nlink: self.nlink,
            implied: self.has(IMPLIED),
            solid: self.is_solid(),
            whiteouts: self.has(WHITEOUTS),
            opaque: self.has(OPAQUE),
            replacing: matches!(kind, Kind::Directory | Kind::Hardlink) && self.has(REPLACING),
            sparse: self.is_sparse(),
            xattrs: extra.xattrs,
            pieces: extra.pieces,
        })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.parent.to_le_bytes());
        out.extend_from_slice(&self.name.to_le_bytes());
        out.extend_from_slice(&[self.name_len, self.kind]);
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.uid.to_le_bytes());
        out.extend_from_slice(&self.gid.to_le_bytes());
        out.extend_from_slice(&self.mtime_nsec.to_le_bytes());
        out.extend_from_slice(&self.mtime.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.place.to_le_bytes());
        for word in [self.target, self.nlink, self.link, self.extra] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let mut fields = Fields(bytes);
        Some(Record {
            parent: fields.u32()?,
            name: fields.u32()?,
            name_len: fields.u8()?,
            kind: fields.u8()?,
            mode: fields.u16()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
            mtime_nsec: fields.u32()?,
            mtime: fields.i64()?,
            size: fields.u64()?,
            place: fields.u64()?,
            target: fields.u32()?,
            nlink: fields.u32()?,
            link: fields.u32()?,
            extra: fields.u32()?,
        })
    }
}

/// The rare parts of an entry as they lie in the pool.
#[derive(Default)]
pub(super) struct Extra<'a> {
    pub xattrs: &'a [u8],
    pub pieces: &'a [u8],
}

/// Puts the rare parts of an entry into the form in which the pool has them; the map of a sparse file begins with the
/// number of bytes stored. The pieces must be disjoint.
pub(super) fn encode_extra(xattrs: &[(Vec<u8>, Vec<u8>)], pieces: Option<&[(u64, u64)]>) -> Vec<u8> {
    let mut names = Vec::new();
    for (name, value) in xattrs {
        put_block(&mut names, name);
        put_block(&mut names, value);
    }
    let mut out = Vec::new();
    put_block(&mut out, &names);
    let mut map = Vec::new();
    if let Some(pieces) = pieces {
        let stored = pieces.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
        map.extend_from_slice(&stored.to_le_bytes());
        for (offset, len) in pieces {
            map.extend_from_slice(&offset.to_le_bytes());
            map.extend_from_slice(&len.to_le_bytes());
        }
    }
    put_block(&mut out, &map);
    out
}

/// The extended attributes of an entry: name and value of each.
#[derive(Clone)]
pub struct Xattrs<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut fields = Fields(self.0);
        let pair = (fields.block()?, fields.block()?);
        self.0 = fields.0;
        Some(pair)
    }
}

/// The stored pieces of a sparse file: offset in the file and length of each. They are disjoint, in order, inside the
/// file, and no more than is stored, whatever the index says: the first that is not ends them.
#[derive(Clone)]
pub struct Pieces<'a> {
    pieces: Fields<'a>,
    /// End of the piece before.
    from: u64,
    size: u64,
    /// Stored bytes that no piece has had yet.
    stored: u64,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(map: &'a [u8], size: u64) -> Self {
        let mut pieces = Fields(map);
        let stored = pieces.u64().unwrap_or(0);
        Pieces {
            pieces,
            from: 0,
            size,
            stored,
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let (offset, len) = (self.pieces.u64()?, self.pieces.u64()?);
        let end = offset.checked_add(len)?;
        if offset < self.from || end > self.size || len > self.stored {
            self.pieces = Fields(&[]);
            return None;
        }
        self.from = end;
        self.stored -= len;
        Some((offset, len))
    }
}
