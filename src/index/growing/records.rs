//! The entries of a growing index: their records, and the table that finds them by directory and name.
//!
//! Numbers that come in from outside are looked up with care; those that records hold are of our own making.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::index::record::{DEAD, IMPLIED, NONE, OPAQUE, Record, WHITEOUTS};
use crate::index::{Entry, EntryId, IndexError, Kind};
use crate::range::ByteRange;

/// Entries that a layer may have. The largest images have some million.
const MAX_ENTRIES: usize = 4 << 20;
/// Bytes of names, links and attributes that a layer may have: ten times what a million entries take. They are held in
/// memory while the layer is scanned, and a megabyte of gzip can hold a gigabyte of them.
const MAX_POOL: usize = 256 << 20;

/// The entries of a layer, of which entry 0 is the root.
pub(in crate::index) struct Records {
    records: Vec<Record>,
    /// For each entry the next older one that was made in the same directory; `place` of a directory is the youngest.
    siblings: Vec<u32>,
    pool: Vec<u8>,
    /// The entry that a name is in a directory, by hash of both.
    by_name: HashTable<u32>,
    hasher: RandomState,
    /// Files with stored bytes, in stream order.
    stored: Vec<u32>,
    /// Where the rare parts of the last entry that had some are in the pool: often the next has the same.
    last_extra: (u32, usize),
}

impl Records {
    /// An implied root, and nothing in it.
    pub fn new() -> Records {
        let mut root = Record::implied(0, 0, 0);
        root.place = u64::from(NONE);
        Records {
            records: vec![root],
            siblings: vec![NONE],
            pool: vec![0],
            by_name: HashTable::new(),
            hasher: RandomState::new(),
            stored: Vec::new(),
            last_extra: (0, 0),
        }
    }

    pub fn all(&self) -> &[Record] {
        &self.records
    }

    pub fn pool(&self) -> &[u8] {
        &self.pool
    }

    /// The record of an entry that is there.
    pub fn get(&self, id: u32) -> &Record {
        &self.records[id as usize]
    }

    /// The record of an entry that is there.
    pub fn get_mut(&mut self, id: u32) -> &mut Record {
        &mut self.records[id as usize]
    }

    /// Puts a new entry into a directory that has no entry of that name.
    pub fn insert(&mut self, dir: u32, name: &[u8], mut record: Record) -> Result<u32, IndexError> {
        let id = self.next_id()?;
        record.parent = dir;
        record.name = self.keep(name)?;
        record.name_len = name.len() as u8;
        self.records.push(record);
        let sibling = self.get(dir).place as u32;
        self.siblings.push(sibling);
        self.get_mut(dir).place = u64::from(id);
        let (records, pool, hasher) = (&self.records, &self.pool, &self.hasher);
        self.by_name.insert_unique(hasher.hash_one((dir, name)), id, |id| {
            let record = &records[*id as usize];
            hasher.hash_one((record.parent, record.name(pool).unwrap_or_default()))
        });
        if record.is(Kind::File) && self.data(id).is_some_and(|data| !data.is_empty()) {
            let at = self
                .stored
                .partition_point(|other| self.records[*other as usize].place <= record.place);
            self.stored.insert(at, id);
        }
        if self.get(id).makes_solid(&self.pool) {
            self.hold(dir);
        }
        Ok(id)
    }

    /// Puts an entry in that no name leads to.
    pub fn keep_dead(&mut self, name: &[u8], mut record: Record) -> Result<u32, IndexError> {
        let id = self.next_id()?;
        record.nlink = 0;
        record.name = self.keep(name)?;
        record.name_len = name.len() as u8;
        self.records.push(record);
        self.siblings.push(NONE);
        Ok(id)
    }

    fn next_id(&self) -> Result<u32, IndexError> {
        if self.records.len() >= MAX_ENTRIES {
            let limit = MAX_ENTRIES as u64;
            return Err(IndexError::TooLarge { what: "entries", limit });
        }
        Ok(self.records.len() as u32)
    }

    /// Notes that an entry has declared a directory.
    pub fn declare(&mut self, id: u32) {
        let was_solid = self.get(id).is_solid();
        self.get_mut(id).kind &= !IMPLIED;
        let record = self.get(id);
        if !was_solid && id != 0 && record.makes_solid(&self.pool) {
            self.hold(record.parent);
        }
    }

    /// Notes that one more entry makes `dir` exist, and so those above it.
    fn hold(&mut self, mut dir: u32) {
        loop {
            let was_solid = self.get(dir).is_solid();
            self.get_mut(dir).size += 1;
            let record = self.get(dir);
            if was_solid || dir == 0 || !record.makes_solid(&self.pool) {
                break;
            }
            dir = record.parent;
        }
    }

    /// Notes that one entry less makes `dir` exist.
    fn release(&mut self, mut dir: u32) {
        loop {
            let made_solid = self.get(dir).makes_solid(&self.pool);
            self.get_mut(dir).size -= 1;
            let record = self.get(dir);
            if record.is_solid() || dir == 0 || !made_solid {
                break;
            }
            dir = record.parent;
        }
    }

    /// Takes away the name of an entry, and all that is below it.
    pub fn remove(&mut self, old: u32) {
        let record = self.get(old);
        if record.makes_solid(&self.pool) {
            self.release(record.parent);
        }
        let mut todo = vec![old];
        while let Some(id) = todo.pop() {
            let record = *self.get(id);
            let hash = self.hash(record.parent, record.name(&self.pool).unwrap_or_default());
            if let Ok(slot) = self.by_name.find_entry(hash, |other| *other == id) {
                slot.remove();
            }
            self.records[id as usize].kind |= DEAD;
            // Links that were made to it earlier keep what it is.
            let inode = self.inode(id);
            let nlink = &mut self.records[inode as usize].nlink;
            *nlink = nlink.saturating_sub(1);
            if record.is(Kind::Directory) {
                // Its whiteouts go with it.
                self.records[id as usize].kind &= !(OPAQUE | WHITEOUTS);
                todo.extend(self.living(id));
            }
        }
    }

    /// The children of a directory in no order, those that are no longer there left out.
    fn living(&self, dir: u32) -> impl Iterator<Item = u32> + '_ {
        let mut next = self.get(dir).place as u32;
        let all = std::iter::from_fn(move || {
            let id = next;
            next = *self.siblings.get(id as usize)?;
            Some(id)
        });
        all.filter(|id| !self.get(*id).has(DEAD))
    }

    /// How many entries no name leads to.
    pub fn replaced(&self) -> u32 {
        // The root has no name, and is not among those that have one.
        (self.records.len() - 1 - self.by_name.len()) as u32
    }

    /// What an entry is a name of: the target of a hardlink, or itself.
    pub fn inode(&self, id: u32) -> u32 {
        match self.get(id).target {
            NONE => id,
            target => target,
        }
    }

    fn data(&self, id: u32) -> Option<ByteRange> {
        self.records.get(id as usize)?.data(&self.pool)
    }

    fn hash(&self, dir: u32, name: &[u8]) -> u64 {
        self.hasher.hash_one((dir, name))
    }

    pub fn find(&self, dir: u32, name: &[u8]) -> Option<u32> {
        let is_it = |id: &u32| {
            let record = self.get(*id);
            record.parent == dir && record.name(&self.pool) == Some(name)
        };
        self.by_name.find(self.hash(dir, name), is_it).copied()
    }

    /// Puts bytes into the pool.
    fn keep(&mut self, bytes: &[u8]) -> Result<u32, IndexError> {
        let at = self.pool.len();
        if at + bytes.len() > MAX_POOL {
            let (what, limit) = ("bytes of names and attributes", MAX_POOL as u64);
            return Err(IndexError::TooLarge { what, limit });
        }
        self.pool.extend_from_slice(bytes);
        Ok(at as u32)
    }

    pub fn keep_link(&mut self, link: &[u8]) -> Result<u32, IndexError> {
        // Both kinds of link are at most 4096 bytes.
        let at = self.keep(&(link.len() as u16).to_le_bytes())?;
        self.keep(link)?;
        Ok(at)
    }

    pub fn keep_extra(&mut self, extra: &[u8]) -> Result<u32, IndexError> {
        let (at, len) = self.last_extra;
        if at != 0 && self.pool.get(at as usize..at as usize + len) == Some(extra) {
            return Ok(at);
        }
        let at = self.keep(extra)?;
        self.last_extra = (at, extra.len());
        Ok(at)
    }

    pub fn entry(&self, id: EntryId) -> Option<Entry<'_>> {
        let record = self.records.get(id.0 as usize)?;
        let mut entry = record.entry(id, &self.pool)?;
        entry.nlink = self.get(self.inode(id.0)).nlink;
        Some(entry)
    }

    /// What is in a directory, sorted by name.
    pub fn children(&self, dir: u32) -> Vec<u32> {
        if !self
            .records
            .get(dir as usize)
            .is_some_and(|record| record.is(Kind::Directory))
        {
            return Vec::new();
        }
        let mut children: Vec<u32> = self.living(dir).collect();
        children.sort_unstable_by_key(|id| self.get(*id).name(&self.pool).unwrap_or_default());
        children
    }

    /// Files with stored bytes that still have a name, in stream order.
    pub fn stored(&self) -> impl Iterator<Item = u32> + '_ {
        self.stored.iter().copied().filter(|id| self.get(*id).nlink > 0)
    }

    /// Those of them with bytes in `stream`.
    pub fn stored_in(&self, stream: ByteRange) -> Vec<EntryId> {
        let ends_before = |id: &u32| self.data(*id).is_none_or(|data| data.end() <= stream.start());
        let from = self.stored.partition_point(ends_before);
        let overlapping = self.stored.iter().skip(from).copied();
        overlapping
            .take_while(|id| self.get(*id).place < stream.end())
            .filter(|id| self.get(*id).nlink > 0)
            .map(EntryId)
            .collect()
    }
}
