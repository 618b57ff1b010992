//! The index of a layer that was scanned to its end: an immutable file, mapped.
//!
//! ```text
//! header | records | checkpoints | stored | children | written | pool | windows
//! ```
//!
//! All numbers are little-endian. `records` are the entries by number, 64 bytes each. `checkpoints` have 72 bytes each.
//! `stored` are the numbers of the files with stored bytes, in stream order. `children` are the numbers of what each
//! directory has, sorted by name. `written` are the members that are not simply where their names say, in the order of
//! the tar, 16 bytes each. `pool` has names, links and attributes. `windows` are what it takes to decompress from
//! a checkpoint on; they come last, with a checksum each, so that no other question reads them.
//!
//! The checksum of the rest is verified when the file is opened. Still nothing in it is trusted: every offset is checked
//! when it is used, and an entry whose parent does not come before it is none, so no walk upwards is endless.

use std::path::Path;

use crate::digest::Digest;
use crate::range::ByteRange;
use crate::stream::{Checkpoint, Compression};

use super::fields::Fields;
use super::growing::GrowingIndex;
use super::map::Bytes;
use super::record::{self, DEAD, NONE, RECORD_LEN, Record, Xattrs, pair};
use super::spans::{Mark, Span, unpack};
use super::written::{WRITTEN_LEN, Written};
use super::{Entries, Entry, EntryId, IndexError, Kind};

const MAGIC: &[u8; 8] = b"peelidx\n";
const VERSION: u32 = 7;
const HEADER_LEN: usize = 200;
/// Where the header has its checksum, the last word of it.
const CHECKSUM_AT: usize = HEADER_LEN - 4;
const MARK_LEN: usize = 72;

/// Attributes that tools ask every file for (`ls -l`, `cp -a`) and few layers have: SELinux labels and ACLs. The header
/// tells which some entry has.
pub const ASKED_FOR: [&[u8]; 3] = [
    b"security.selinux",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
];

/// What is known of a layer as a whole once it was read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFacts {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the decompressed stream.
    pub diff_id: Digest,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Length of the blob.
    pub compressed_size: u64,
    /// Length of the decompressed stream.
    pub decompressed_size: u64,
}

impl GrowingIndex {
    /// The index file of a layer that was read to its end. `last` is the BLAKE3 of the blob from where the open span
    /// begins ([`GrowingIndex::open_span`]) to the blob's end.
    pub fn finish(&self, facts: &LayerFacts, last: [u8; 32]) -> Vec<u8> {
        let (all, pool) = (self.records().all(), self.records().pool());
        let mut living: Vec<u32> = (1..)
            .zip(all.iter().skip(1))
            .filter(|(_, record)| !record.has(DEAD))
            .map(|(id, _)| id)
            .collect();
        living.sort_unstable_by_key(|id| all.get(*id as usize).map(|record| (record.parent, record.name(pool))));
        let mut records = all.to_vec();
        for record in records.iter_mut().filter(|record| record.is(Kind::Directory)) {
            record.place = 0;
        }
        for (i, id) in living.iter().enumerate() {
            let parent = records.get(*id as usize).map(|record| record.parent as usize);
            if let Some(parent) = parent.and_then(|parent| records.get_mut(parent)) {
                let (start, len) = parent.children();
                parent.place = if len == 0 {
                    pair(i as u32, 1)
                } else {
                    pair(start, len + 1)
                };
            }
        }
        let stored: Vec<u32> = self.records().stored().collect();
        let marks = self.marks().all();
        let written = self.written();

        let mut out = Vec::with_capacity(HEADER_LEN + records.len() * (RECORD_LEN + 8) + pool.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        let compression = match facts.compression {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        };
        let digests = (algorithm(&facts.digest), algorithm(&facts.diff_id));
        out.extend_from_slice(&[compression, digests.0, digests.1, asked_for_in(&records, pool)]);
        for digest in [&facts.digest, &facts.diff_id] {
            let mut bytes = [0; 64];
            bytes
                .iter_mut()
                .zip(digest.as_bytes())
                .for_each(|(to, from)| *to = *from);
            out.extend_from_slice(&bytes);
        }
        let windows: usize = marks.iter().map(|mark| mark.window.len()).sum();
        for len in [
            facts.compressed_size,
            facts.decompressed_size,
            pool.len() as u64,
            windows as u64,
        ] {
            out.extend_from_slice(&len.to_le_bytes());
        }
        for len in [records.len(), marks.len(), stored.len(), living.len(), written.len()] {
            out.extend_from_slice(&(len as u32).to_le_bytes());
        }
        out.extend_from_slice(&[0; 4]);
        debug_assert_eq!(out.len(), HEADER_LEN, "the header has a fixed length");

        for record in &records {
            record.encode(&mut out);
        }
        let mut window_at = 0u64;
        for mark in marks {
            for word in [mark.compressed, mark.decompressed, window_at] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.extend_from_slice(&(mark.window.len() as u32).to_le_bytes());
            out.extend_from_slice(&crc32fast::hash(&mark.window).to_le_bytes());
            out.extend_from_slice(&[mark.bits, 0, 0, 0, 0, 0, 0, 0]);
            out.extend_from_slice(&mark.digest.unwrap_or(last));
            window_at += mark.window.len() as u64;
        }
        for id in stored.iter().chain(&living) {
            out.extend_from_slice(&id.to_le_bytes());
        }
        written.iter().for_each(|written| written.encode(&mut out));
        out.extend_from_slice(pool);
        let checksum = checksum(&out).to_le_bytes();
        if let Some(place) = out.get_mut(CHECKSUM_AT..HEADER_LEN) {
            place.copy_from_slice(&checksum);
        }
        out.extend(marks.iter().flat_map(|mark| &mark.window));
        out
    }
}

fn algorithm(digest: &Digest) -> u8 {
    match digest {
        Digest::Sha256(_) => 1,
        Digest::Sha512(_) => 2,
    }
}

/// The bit of an attribute that is one of [`ASKED_FOR`]. Whoever has ACLs has them of both kinds.
fn asked_for(name: &[u8]) -> Option<u8> {
    match name {
        b"security.selinux" => Some(1),
        b"system.posix_acl_access" | b"system.posix_acl_default" => Some(2),
        _ => None,
    }
}

/// The bits of those that some entry has.
fn asked_for_in(records: &[Record], pool: &[u8]) -> u8 {
    let extras = records.iter().filter_map(|record| record.extra(pool));
    let names = extras.flat_map(|extra| Xattrs(extra.xattrs).map(|(name, _)| name));
    names.filter_map(asked_for).fold(0, |found, bit| found | bit)
}

/// CRC-32 of everything but the checksum itself and the windows.
fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes.get(..CHECKSUM_AT).unwrap_or_default());
    hasher.update(bytes.get(HEADER_LEN..).unwrap_or_default());
    hasher.finalize()
}

/// Where a section is in the file.
type Section = std::ops::Range<usize>;

/// The complete index of a layer.
pub struct LayerIndex {
    bytes: Bytes,
    facts: LayerFacts,
    entries: u32,
    /// The bits of the [`ASKED_FOR`] that some entry has.
    asked_for: u8,
    records: Section,
    marks: Section,
    stored: Section,
    children: Section,
    written: Section,
    /// Whether some of these tell names.
    written_otherwise: bool,
    pool: Section,
    windows: Section,
}

impl LayerIndex {
    /// Maps the index of the layer `expected`, and verifies all of it but the windows.
    pub fn open(path: &Path, expected: &Digest) -> Result<LayerIndex, IndexError> {
        let bytes = Bytes::map(path).map_err(|source| {
            let path = path.to_owned();
            IndexError::Read { path, source }
        })?;
        let index = Self::verified(bytes)?;
        if index.facts.digest != *expected {
            return Err(IndexError::OtherLayer {
                found: Box::new(index.facts.digest),
                expected: Box::new(*expected),
            });
        }
        Ok(index)
    }

    /// The index whose file's bytes these are, in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<LayerIndex, IndexError> {
        Self::verified(Bytes::Owned(bytes))
    }

    fn verified(bytes: Bytes) -> Result<LayerIndex, IndexError> {
        let header: [u8; HEADER_LEN] = *bytes.first_chunk().ok_or(IndexError::Damaged("it is too short"))?;
        let mut header = Fields(&header);
        if header.take(8) != Some(MAGIC) {
            return Err(IndexError::Damaged("it does not begin as one"));
        }
        match header.u32() {
            Some(VERSION) => {}
            found => {
                return Err(IndexError::Version {
                    found: found.unwrap_or(0),
                    expected: VERSION,
                });
            }
        }
        let mut index = Self::laid_out(header, bytes).ok_or(IndexError::Damaged("its header contradicts itself"))?;
        let told = index
            .bytes
            .get(CHECKSUM_AT..HEADER_LEN)
            .and_then(|told| Fields(told).u32());
        if told != Some(checksum(index.bytes.get(..index.windows.start).unwrap_or_default())) {
            return Err(IndexError::Damaged("its checksum is wrong"));
        }
        // There may be millions of them, and every hard link to a lower layer asks.
        let otherwise = index
            .all_written()
            .any(|written| written.name != 0 || written.link != 0);
        index.written_otherwise = otherwise;
        Ok(index)
    }

    /// Takes the header, from behind the version, and finds the sections, which must fill the file.
    fn laid_out(mut header: Fields<'_>, bytes: Bytes) -> Option<LayerIndex> {
        let compression = match header.u8()? {
            0 => Compression::None,
            1 => Compression::Gzip,
            2 => Compression::Zstd,
            _ => return None,
        };
        let algorithms = (header.u8()?, header.u8()?);
        let asked_for = header.u8()?;
        let digests = (header.array()?, header.array()?);
        let facts = LayerFacts {
            digest: digest(algorithms.0, digests.0)?,
            diff_id: digest(algorithms.1, digests.1)?,
            compression,
            compressed_size: header.u64()?,
            decompressed_size: header.u64()?,
        };
        let pool = usize::try_from(header.u64()?).ok()?;
        let windows = usize::try_from(header.u64()?).ok()?;
        let entries = header.u32()?;
        let (marks, stored, children, written) = (header.u32()?, header.u32()?, header.u32()?, header.u32()?);
        let mut end = HEADER_LEN;
        let mut section = |count: u32, len: usize| {
            let start = end;
            end = start.checked_add(usize::try_from(count).ok()?.checked_mul(len)?)?;
            Some(start..end)
        };
        let records = section(entries, RECORD_LEN)?;
        let marks = section(marks, MARK_LEN)?;
        let stored = section(stored, 4)?;
        let children = section(children, 4)?;
        let written = section(written, WRITTEN_LEN)?;
        let pool = section(1, pool)?;
        let windows = section(1, windows)?;
        if windows.end != bytes.len() || entries == 0 || marks.is_empty() {
            return None;
        }
        Some(LayerIndex {
            bytes,
            facts,
            entries,
            asked_for,
            records,
            marks,
            stored,
            children,
            written,
            written_otherwise: false,
            pool,
            windows,
        })
    }

    /// The members that made the entries, in the order of the tar. Directories that none declares, or only by a name that
    /// leads through a symlink of the layer, are not among them.
    pub fn members(&self) -> impl Iterator<Item = WrittenMember<'_>> {
        let mut written = self.all_written().peekable();
        let mut made = 1;
        let next = move || {
            loop {
                let entries_left = made < self.entries;
                let is_due = |next: &Written| !entries_left || next.before <= made && next.entry != made;
                if let Some(again) = written.next_if(is_due) {
                    return Some(
                        self.member(again.entry, Some(again))
                            .filter(|_| again.entry < again.before),
                    );
                }
                if !entries_left {
                    return None;
                }
                let how = written.next_if(|next| next.entry == made && next.before == made);
                made += 1;
                if !how.is_some_and(Written::is_implied) {
                    return Some(self.member(made - 1, how));
                }
            }
        };
        std::iter::from_fn(next).flatten()
    }

    /// The name that the member which made an entry was written with, if that is another than the entry's path.
    pub fn written_name(&self, id: EntryId) -> Option<&[u8]> {
        let rows = self.section(&self.written);
        let row = |i: usize| Written::decode(rows.get(i.checked_mul(WRITTEN_LEN)?..)?);
        let is_before = |row: Written| row.before < id.0 || row.before == id.0 && row.entry != id.0;
        let i = partition_point(rows.len() / WRITTEN_LEN, |i| row(i).is_some_and(is_before));
        let row = row(i).filter(|row| row.entry == id.0 && row.before == id.0 && row.name != 0)?;
        record::text(self.section(&self.pool), row.name)
    }

    fn member(&self, id: u32, how: Option<Written>) -> Option<WrittenMember<'_>> {
        let entry = self.entry(EntryId(id))?;
        if entry.kind == Kind::Directory && entry.implied {
            return None;
        }
        let pool = self.section(&self.pool);
        let text = |at: u32| {
            if at == 0 {
                Some(None)
            } else {
                record::text(pool, at).map(Some)
            }
        };
        let (name, link) = match how {
            Some(how) => (text(how.name)?, text(how.link)?),
            None => (None, None),
        };
        Some(WrittenMember { entry, name, link })
    }

    fn all_written(&self) -> impl Iterator<Item = Written> + '_ {
        self.section(&self.written)
            .chunks_exact(WRITTEN_LEN)
            .filter_map(Written::decode)
    }

    /// What is known of the layer as a whole.
    pub fn facts(&self) -> &LayerFacts {
        &self.facts
    }

    /// Whether an entry may have an attribute of this name. It is certain of those that are [`ASKED_FOR`]; any other may
    /// be there.
    pub fn may_have_xattr(&self, name: &[u8]) -> bool {
        asked_for(name).is_none_or(|bit| self.asked_for & bit != 0)
    }

    /// How many spans there are: they cover the whole layer.
    pub fn spans_len(&self) -> usize {
        self.section(&self.marks).len() / MARK_LEN
    }

    /// A span.
    pub fn span(&self, i: usize) -> Option<Span> {
        let (this, _) = self.mark(i)?;
        let (compressed, following, decompressed) = match self.mark(i.checked_add(1)?) {
            Some((next, _)) => (next.compressed, next.bits, next.decompressed),
            None => (self.facts.compressed_size, 0, self.facts.decompressed_size),
        };
        Some(Span {
            compressed: ByteRange::new(this.read_from(), compressed),
            following,
            decompressed: ByteRange::new(this.decompressed, decompressed),
            digest: this.digest?,
        })
    }

    /// The span with the byte at `offset` of the decompressed stream.
    pub fn span_at(&self, offset: u64) -> Option<usize> {
        if offset >= self.facts.decompressed_size {
            return None;
        }
        let begins_by = |i| self.mark(i).is_some_and(|(mark, _)| mark.decompressed <= offset);
        partition_point(self.spans_len(), begins_by).checked_sub(1)
    }

    /// The checkpoint at which span `i` begins; `None` if there is none, or if its window is damaged.
    pub fn checkpoint(&self, i: usize) -> Option<Checkpoint> {
        let (mark, (at, len, crc)) = self.mark(i)?;
        let at = usize::try_from(at).ok()?;
        let len = usize::try_from(len).ok()?;
        let window = self.section(&self.windows).get(at..at.checked_add(len)?)?;
        if crc32fast::hash(window) != crc {
            return None;
        }
        let window = unpack(window)?;
        Some(Checkpoint {
            window,
            ..mark.checkpoint()?
        })
    }

    fn section(&self, section: &Section) -> &[u8] {
        self.bytes.get(section.clone()).unwrap_or_default()
    }

    /// A checkpoint without its window, and the window's (offset, length, CRC-32).
    fn mark(&self, i: usize) -> Option<(Mark, (u64, u32, u32))> {
        let start = i.checked_mul(MARK_LEN)?;
        let mut fields = Fields(self.section(&self.marks).get(start..start.checked_add(MARK_LEN)?)?);
        let (compressed, decompressed) = (fields.u64()?, fields.u64()?);
        let window = (fields.u64()?, fields.u32()?, fields.u32()?);
        let bits = fields.u8()?;
        fields.take(7)?;
        let mark = Mark {
            compressed,
            bits,
            decompressed,
            window: Box::default(),
            digest: Some(fields.array()?),
        };
        Some((mark, window))
    }

    fn record(&self, id: u32) -> Option<Record> {
        let start = usize::try_from(id).ok()?.checked_mul(RECORD_LEN)?;
        let record = Record::decode(self.section(&self.records).get(start..)?)?;
        (record.parent < id || id == 0 && record.parent == 0).then_some(record)
    }

    /// Number `i` of a table of numbers.
    fn number(&self, table: &Section, i: usize) -> Option<u32> {
        Fields(self.section(table).get(i.checked_mul(4)?..)?).u32()
    }

    /// The directory's part of the table of children.
    fn children_of(&self, dir: EntryId) -> Option<Section> {
        let record = self.record(dir.0).filter(|record| record.is(Kind::Directory))?;
        let (start, len) = record.children();
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        (end <= self.section(&self.children).len() / 4).then_some(start..end)
    }
}

/// A member of a layer, as its tar has it.
pub struct WrittenMember<'a> {
    /// The entry that it made or declared.
    pub entry: Entry<'a>,
    /// Its name, without empty components, `.` and `..`, if that is another than the path of its entry.
    pub name: Option<&'a [u8]>,
    /// The target of the hardlink that it is, if that is another than its entry's.
    pub link: Option<&'a [u8]>,
}

fn digest(algorithm: u8, bytes: [u8; 64]) -> Option<Digest> {
    match algorithm {
        1 => bytes.first_chunk().copied().map(Digest::Sha256),
        2 => Some(Digest::Sha512(bytes)),
        _ => None,
    }
}

/// The first number below `len` of which `before` does not hold, if it holds of all before that and none after.
fn partition_point(len: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1
        } else {
            high = middle
        }
    }
    low
}

impl Entries for LayerIndex {
    fn len(&self) -> u32 {
        self.entries
    }

    fn entry(&self, id: EntryId) -> Option<Entry<'_>> {
        let mut record = self.record(id.0)?;
        if record.target != NONE {
            let target = self.record(record.target).filter(|target| target.target == NONE)?;
            record.nlink = target.nlink;
        }
        record.entry(id, self.section(&self.pool))
    }

    fn child(&self, dir: EntryId, name: &[u8]) -> Option<EntryId> {
        let children = self.children_of(dir)?;
        let pool = self.section(&self.pool);
        let child = |i: usize| self.number(&self.children, children.start + i);
        let is_before = |i: usize| {
            let record = child(i).and_then(|id| self.record(id));
            record
                .and_then(|record| record.name(pool))
                .is_some_and(|other| other < name)
        };
        let i = partition_point(children.len(), is_before);
        let id = (i < children.len()).then(|| child(i))??;
        let record = self.record(id)?;
        (record.parent == dir.0 && id != 0 && record.name(pool) == Some(name)).then_some(EntryId(id))
    }

    fn children(&self, dir: EntryId) -> Vec<EntryId> {
        let ids = self
            .children_of(dir)
            .unwrap_or_default()
            .filter_map(|i| self.number(&self.children, i));
        let is_child = |id: &u32| *id != 0 && self.record(*id).is_some_and(|record| record.parent == dir.0);
        ids.filter(is_child).map(EntryId).collect()
    }

    fn entries_at(&self, stream: ByteRange) -> Vec<EntryId> {
        let pool = self.section(&self.pool);
        let data = |id| self.record(id).and_then(|record| record.data(pool));
        let nth = |i| self.number(&self.stored, i);
        let ends_before = |i| nth(i).and_then(data).is_none_or(|data| data.end() <= stream.start());
        let len = self.section(&self.stored).len() / 4;
        (partition_point(len, ends_before)..len)
            .map_while(nth)
            .take_while(|id| data(*id).is_some_and(|data| data.start() < stream.end()))
            .map(EntryId)
            .collect()
    }

    fn written_otherwise(&self) -> bool {
        self.written_otherwise
    }

    fn replaced(&self) -> u32 {
        // All others but the root are some directory's children.
        let children = (self.section(&self.children).len() / 4) as u32;
        self.entries.saturating_sub(1).saturating_sub(children)
    }
}

#[cfg(test)]
mod tests;
