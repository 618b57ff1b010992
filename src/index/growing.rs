//! An index while its layer is being scanned: entries come one by one, and can be asked for at any time.
//!
//! The rules of one layer are here. The last entry of a path wins; a directory keeps its children when it is declared
//! again, but not when it was something else in between; parents that no entry declares are implied; symlinks made
//! earlier in the layer are followed in the parents of a name; a hardlink is what its target is when the link is made.

#[cfg(test)]
mod model;
mod records;
#[cfg(test)]
mod tests;

use std::mem;

use crate::range::ByteRange;
use crate::stream::Checkpoint;

use super::names::{self, MAX_HOPS, MAX_NAME, MAX_PATH, MAX_SYMLINK, NameFault, shown};
use super::record::{self, DEAD, IMPLIED, NONE, OPAQUE, REPLACING, Record, SPARSE, WHITEOUTS, pair};
use super::spans::{Mark, Marks, Span};
use super::written::{MAX_WRITTEN, Written};
use super::{Entries, Entry, EntryId, IndexError, Kind, Member};
use records::Records;

/// Warnings that are kept until someone takes them.
const MAX_WARNINGS: usize = 200;
/// Members that are kept for the log between two checkpoints, in encoded bytes.
const MAX_JOURNAL: usize = 64 << 20;

/// An answer given earlier that no longer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `name` in `parent` was the entry `old`, and all that was below `old` has gone with it.
    Replaced {
        /// The directory.
        parent: EntryId,
        /// The name in it.
        name: Box<[u8]>,
        /// What it was.
        old: EntryId,
    },
    /// The attributes of this directory are other ones: an entry has declared it.
    Declared(EntryId),
}

/// Why a member makes no entry.
enum Refusal {
    /// It is left out, with a warning: the text says what about it is wrong.
    Skip(String),
    /// It is left out silently.
    Hide,
    /// The scan cannot go on.
    Stop(IndexError),
}

impl From<IndexError> for Refusal {
    fn from(error: IndexError) -> Self {
        Refusal::Stop(error)
    }
}

/// Where the parents of a name lead.
struct Place {
    /// The last directory on the way that exists.
    dir: EntryId,
    /// The directories below it that do not.
    missing: Vec<Vec<u8>>,
    /// The first of them is something else than a directory.
    blocked: bool,
    /// The way leads through a symlink of the layer.
    through_symlink: bool,
}

/// What a hardlink links to.
struct LinkTarget {
    path: Vec<u8>,
    entry: Option<u32>,
    /// That this is what was written could only be told by what else the layer has.
    followed: bool,
}

/// Directories that no entry declares. Images have hardly any; but each can be had for two bytes of a name that a tar
/// repeats, so that a blob of a megabyte could make hundreds of millions.
const MAX_IMPLIED: u64 = 1 << 20;

/// The index of a layer as far as it has been scanned.
pub struct GrowingIndex {
    records: Records,
    /// Directories made because something was to be in them.
    implied: u64,
    written: Vec<Written>,
    /// Whether some of them tell names.
    written_otherwise: bool,
    marks: Marks,
    changes: Vec<Change>,
    warnings: Vec<String>,
    left_out: usize,
    /// Members added since it was last taken, encoded; `None` if nobody wants them.
    journal: Option<Vec<u8>>,
}

impl Default for GrowingIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl GrowingIndex {
    /// The index of a layer of which nothing has been read: an implied root, and a checkpoint at its beginning.
    pub fn new() -> GrowingIndex {
        GrowingIndex {
            records: Records::new(),
            implied: 0,
            written: Vec::new(),
            written_otherwise: false,
            marks: Marks::new(),
            changes: Vec::new(),
            warnings: Vec::new(),
            left_out: 0,
            journal: None,
        }
    }

    /// Enters what the next member of the layer is. Gives the entry that it made or declared, or `None` if it was
    /// left out, by a rule or with a warning. An error means that the layer is larger than is supported.
    pub fn add(&mut self, member: &Member) -> Result<Option<EntryId>, IndexError> {
        if let Some(journal) = &mut self.journal {
            member.encode(journal);
            if journal.len() > MAX_JOURNAL {
                self.journal = None;
            }
        }
        match self.enter(member) {
            Ok(id) => Ok(Some(EntryId(id))),
            Err(Refusal::Hide) => Ok(None),
            Err(Refusal::Skip(why)) => {
                self.warn(format!("{} is left out: {why}", shown(&member.name)));
                Ok(None)
            }
            Err(Refusal::Stop(error)) => Err(error),
        }
    }

    /// Ends the span that is open at `next`, and begins the one after it.
    ///
    /// `digest` is the BLAKE3 of the blob from [`Checkpoint::read_from`] of the last checkpoint up to
    /// `next.compressed`. The first span is open from the start, at the beginning of the stream.
    pub fn add_checkpoint(&mut self, digest: [u8; 32], next: &Checkpoint) -> Result<(), IndexError> {
        self.add_mark(digest, Mark::new(next))
    }

    /// [`GrowingIndex::add_checkpoint`] with a checkpoint whose window is compressed already.
    pub fn add_mark(&mut self, digest: [u8; 32], next: Mark) -> Result<(), IndexError> {
        self.marks.push(digest, next)
    }

    /// How many spans are closed.
    pub fn spans_len(&self) -> usize {
        self.marks.all().len() - 1
    }

    /// A closed span.
    pub fn span(&self, i: usize) -> Option<Span> {
        self.marks.span(i)
    }

    /// The closed span with the byte at `offset` of the decompressed stream.
    pub fn span_at(&self, offset: u64) -> Option<usize> {
        self.marks.span_at(offset)
    }

    /// The checkpoint at which span `i` begins, be it closed or open.
    pub fn checkpoint(&self, i: usize) -> Option<Checkpoint> {
        self.marks.all().get(i)?.checkpoint()
    }

    /// Where the open span begins: (`read_from` in the blob, offset in the decompressed stream).
    pub fn open_span(&self) -> (u64, u64) {
        self.marks
            .all()
            .last()
            .map_or((0, 0), |mark| (mark.read_from(), mark.decompressed))
    }

    /// What has changed about entries that were there before, since this was last asked.
    pub fn drain_changes(&mut self) -> Vec<Change> {
        mem::take(&mut self.changes)
    }

    /// What was wrong with the layer, since this was last asked. The caller knows which layer it is.
    pub fn drain_warnings(&mut self) -> Vec<String> {
        let mut warnings = mem::take(&mut self.warnings);
        match mem::take(&mut self.left_out) {
            0 => {}
            more => warnings.push(format!("{more} more warnings about this layer are not shown")),
        }
        warnings
    }

    pub(super) fn warn(&mut self, warning: String) {
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(warning);
        } else {
            self.left_out += 1;
        }
    }

    fn enter(&mut self, member: &Member) -> Result<u32, Refusal> {
        let path = names::normalise(&member.name).map_err(name_fault)?;
        let Some((name, parents)) = path.split_last() else {
            if member.kind != Kind::Directory {
                return Err(Refusal::Skip("the layer's root must be a directory".to_owned()));
            }
            self.declare(0, member)?;
            return Ok(0);
        };
        let whiteout = names::is_whiteout(name);
        let kind = if whiteout { Kind::File } else { member.kind };
        if kind == Kind::File && parents.is_empty() && names::is_internal(name) {
            return Err(Refusal::Hide);
        }
        match kind {
            Kind::Symlink => check_symlink(&member.link)?,
            Kind::CharDevice | Kind::BlockDevice => check_device(member.major, member.minor)?,
            _ => {}
        }
        let found = self.find_place(parents, name, (member, kind));
        let (place, target) = match found {
            Ok(found) => found,
            // Over the layers below it may be something after all.
            Err(refusal @ Refusal::Skip(_)) => {
                self.keep_refused(&path, (member, kind))?;
                return Err(refusal);
            }
            Err(refusal) => return Err(refusal),
        };
        let through_symlink = place.through_symlink;
        let dir = self.make(place)?;
        let mut replacing = false;
        if let Some(old) = self.records.find(dir, name) {
            if kind == Kind::Directory && self.records.get(old).is(Kind::Directory) {
                self.declare(old, member)?;
                self.note_again(old, through_symlink.then_some(&*path))?;
                return Ok(old);
            }
            self.replace(dir, name, old);
            let to_lower_layer = target.as_ref().is_some_and(|target| target.entry.is_none());
            replacing = kind == Kind::Directory || to_lower_layer;
        }
        if names::is_opaque(name) {
            self.records.get_mut(dir).kind |= OPAQUE | WHITEOUTS;
        } else if whiteout {
            self.records.get_mut(dir).kind |= WHITEOUTS;
        }
        let mut record = self.record_of(member, kind, whiteout, target.as_ref())?;
        if replacing {
            record.kind |= REPLACING;
        }
        let id = self.records.insert(dir, name, record)?;
        let link = target.as_ref().filter(|target| target.followed);
        if through_symlink || link.is_some() {
            let link = link.map(|_| &*member.link);
            self.note_written(id, through_symlink.then_some(&*path), link)?;
        }
        if let Some(target) = target.and_then(|target| target.entry) {
            self.records.get_mut(target).nlink += 1;
        }
        Ok(id)
    }

    /// Where in the layer a member belongs, and what it is a hardlink to.
    fn find_place(
        &self,
        parents: &[&[u8]],
        name: &[u8],
        (member, kind): (&Member, Kind),
    ) -> Result<(Place, Option<LinkTarget>), Refusal> {
        let place = self.place(parents, name.len()).map_err(name_fault)?;
        let hidden = |name: &Vec<u8>| names::never_shown(name, Kind::Directory);
        if place.blocked && (names::is_whiteout(name) || place.missing.iter().skip(1).any(hidden)) {
            // What it would hide does not exist, and what nobody sees takes no one's place.
            return Err(Refusal::Skip("it is a whiteout in what is no directory".to_owned()));
        }
        let target = match kind {
            Kind::Hardlink => Some(self.link_target(&member.link)?),
            _ => None,
        };
        Ok((place, target))
    }

    /// Keeps what the layer by itself has nowhere.
    fn keep_refused(&mut self, path: &[&[u8]], (member, kind): (&Member, Kind)) -> Result<(), IndexError> {
        let Some((name, parents)) = path.split_last() else {
            return Ok(());
        };
        let link = match kind {
            Kind::Hardlink => Some(&*member.link),
            _ => None,
        };
        if link.is_some_and(|link| names::normalise(link).map_or(true, |link| link.is_empty())) {
            return Ok(());
        }
        let mut record = self.record_of(member, kind, names::is_whiteout(name), None)?;
        record.kind |= DEAD;
        record.parent = self.place(parents, name.len()).map_or(0, |place| place.dir.0);
        let id = self.records.keep_dead(name, record)?;
        self.note_written(id, Some(path), link)
    }

    /// Notes how the member that made an entry was written.
    fn note_written(&mut self, id: u32, path: Option<&[&[u8]]>, link: Option<&[u8]>) -> Result<(), IndexError> {
        self.note((id, id), path, link)
    }

    /// Notes that a directory is declared again. As long as every entry is where its name says, that changes nothing.
    fn note_again(&mut self, id: u32, path: Option<&[&[u8]]>) -> Result<(), IndexError> {
        match self.implied == 0 && self.written.is_empty() {
            true => Ok(()),
            false => self.note((id, self.records.all().len() as u32), path, None),
        }
    }

    /// Notes how a member was written that made or declared `entry` when there were `before` others.
    fn note(
        &mut self,
        (entry, before): (u32, u32),
        path: Option<&[&[u8]]>,
        link: Option<&[u8]>,
    ) -> Result<(), IndexError> {
        if self.written.len() >= MAX_WRITTEN {
            return Err(IndexError::TooLarge {
                what: "names that lead through symlinks and directories that are declared again",
                limit: MAX_WRITTEN as u64,
            });
        }
        let name = path.map(|path| path.join(&b'/'));
        let link = link
            .and_then(|link| names::normalise(link).ok())
            .map(|link| link.join(&b'/'));
        self.written_otherwise |= name.is_some() || link.is_some();
        let mut keep = |text: Option<Vec<u8>>| text.map_or(Ok(0), |text| self.records.keep_link(&text));
        let written = Written {
            entry,
            before,
            name: keep(name)?,
            link: keep(link)?,
        };
        self.written.push(written);
        Ok(())
    }

    pub(super) fn written(&self) -> &[Written] {
        &self.written
    }

    /// A record of what `member` is, without its place in the tree.
    fn record_of(
        &mut self,
        member: &Member,
        kind: Kind,
        whiteout: bool,
        target: Option<&LinkTarget>,
    ) -> Result<Record, IndexError> {
        let mut record = Record::implied(0, 0, 0);
        record.kind = kind as u8;
        record.mode = member.mode & 0o7777;
        record.uid = member.uid;
        record.gid = member.gid;
        record.mtime = member.mtime;
        record.mtime_nsec = member.mtime_nsec.min(999_999_999);
        match kind {
            Kind::Directory => record.place = u64::from(NONE),
            Kind::File if whiteout => record.place = member.data.start(),
            Kind::File => {
                record.place = member.data.start();
                record.size = member.size;
                match &member.sparse {
                    Some(_) => record.kind |= SPARSE,
                    None => record.size = member.data.len(),
                }
            }
            Kind::CharDevice | Kind::BlockDevice => record.place = pair(member.major, member.minor),
            Kind::Symlink => record.link = self.records.keep_link(&member.link)?,
            Kind::Hardlink => {
                if let Some(target) = target {
                    record.link = self.records.keep_link(&target.path)?;
                    record.target = target.entry.unwrap_or(NONE);
                }
            }
            Kind::Fifo => {}
        }
        let sparse = member.sparse.as_deref().filter(|_| kind == Kind::File && !whiteout);
        if !whiteout && (!member.xattrs.is_empty() || sparse.is_some()) {
            record.extra = self.records.keep_extra(&record::encode_extra(&member.xattrs, sparse))?;
        }
        Ok(record)
    }

    /// Gives a directory the attributes of an entry that declares it; its children stay.
    fn declare(&mut self, id: u32, member: &Member) -> Result<(), IndexError> {
        let new = self.record_of(member, Kind::Directory, false, None)?;
        self.records.declare(id);
        let old = self.records.get_mut(id);
        old.mode = new.mode;
        old.uid = new.uid;
        old.gid = new.gid;
        old.mtime = new.mtime;
        old.mtime_nsec = new.mtime_nsec;
        old.extra = new.extra;
        self.changes.push(Change::Declared(EntryId(id)));
        Ok(())
    }

    /// Follows the parents of a name, as the layer has them so far. `..` in a symlink is what it is to the kernel:
    /// the directory above the one that was reached, and the root above the root.
    fn place(&self, parents: &[&[u8]], name_len: usize) -> Result<Place, NameFault> {
        let mut way: Vec<(&[u8], Option<u32>)> = Vec::with_capacity(parents.len());
        let mut todo: Vec<&[u8]> = parents.iter().rev().copied().collect();
        let mut hops = 0;
        while let Some(name) = todo.pop() {
            match name {
                b"" | b"." => continue,
                b".." => {
                    way.pop();
                    continue;
                }
                _ if name.len() > MAX_NAME => return Err(NameFault::LongName),
                _ => {}
            }
            let dir = way.last().map_or(Some(0), |(_, id)| *id);
            let found = dir.and_then(|dir| self.records.find(dir, name));
            // One more name of a symlink is that symlink.
            let inode = found.map(|id| (id, self.records.inode(id)));
            let directory = match inode.map(|(id, inode)| (id, self.records.get(inode))) {
                Some((id, record)) if record.is(Kind::Directory) => Some(id),
                Some((_, record)) if record.is(Kind::Symlink) => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return Err(NameFault::Loop);
                    }
                    let link = record.link(self.records.pool()).unwrap_or_default();
                    if link.starts_with(b"/") {
                        way.clear();
                    }
                    todo.extend(link.rsplit(|byte| *byte == b'/'));
                    continue;
                }
                _ => None,
            };
            way.push((name, directory));
        }
        if way.iter().map(|(name, _)| name.len() + 1).sum::<usize>() + name_len > MAX_PATH {
            return Err(NameFault::LongPath);
        }
        let known = way.iter().take_while(|(_, id)| id.is_some()).count();
        let (known, missing) = way.split_at(known);
        let dir = known.last().and_then(|(_, id)| *id).unwrap_or(0);
        let blocked = missing
            .first()
            .is_some_and(|(name, _)| self.records.find(dir, name).is_some());
        let missing = missing.iter().map(|(name, _)| name.to_vec()).collect();
        Ok(Place {
            dir: EntryId(dir),
            missing,
            blocked,
            through_symlink: hops > 0,
        })
    }

    /// The directory that a place is, made as far as it is missing.
    fn make(&mut self, place: Place) -> Result<u32, IndexError> {
        let mut dir = place.dir.0;
        for name in place.missing {
            let old = self.records.find(dir, &name);
            if let Some(old) = old {
                self.replace(dir, &name, old);
            }
            self.implied += 1;
            if self.implied > MAX_IMPLIED {
                return Err(IndexError::TooLarge {
                    what: "directories that no entry declares",
                    limit: MAX_IMPLIED,
                });
            }
            let mut record = Record::implied(0, 0, 0);
            record.place = u64::from(NONE);
            if old.is_some() {
                record.kind |= REPLACING;
            }
            dir = self.records.insert(dir, &name, record)?;
            if place.through_symlink {
                // Nothing says that it is meant to be at this very place.
                self.note_written(dir, None, None)?;
            }
        }
        Ok(dir)
    }

    /// Takes away what `name` was so far.
    fn replace(&mut self, dir: u32, name: &[u8], old: u32) {
        self.changes.push(Change::Replaced {
            parent: EntryId(dir),
            name: name.into(),
            old: EntryId(old),
        });
        self.records.remove(old);
    }

    fn link_target(&self, raw: &[u8]) -> Result<LinkTarget, Refusal> {
        let fault = |fault| Refusal::Skip(format!("the target of the hardlink {fault}"));
        let to = || shown(raw);
        let path = names::normalise(raw).map_err(fault)?;
        let Some((name, parents)) = path.split_last() else {
            return Err(Refusal::Skip("it is a hardlink to a directory, '/'".to_owned()));
        };
        let place = self.place(parents, name.len()).map_err(fault)?;
        if place.blocked || names::is_whiteout(name) {
            return Err(Refusal::Skip(format!(
                "it is a hardlink to {}, which does not exist",
                to()
            )));
        }
        let found = match place.missing.is_empty() {
            true => self.records.find(place.dir.0, name),
            false => None,
        };
        // A directory that is only on the way to whiteouts makes nothing appear: the lower layers may have a file there.
        let found = found.filter(|id| {
            let record = self.records.get(*id);
            !record.is(Kind::Directory) || record.is_solid()
        });
        if let Some(id) = found {
            let record = self.records.get(id);
            if record.is(Kind::Directory) {
                return Err(Refusal::Skip(format!("it is a hardlink to a directory, {}", to())));
            }
            if record.is(Kind::Hardlink) && record.target == NONE {
                let path = record.link(self.records.pool()).unwrap_or_default().to_vec();
                let (entry, followed) = (None, true);
                return Ok(LinkTarget { path, entry, followed });
            }
        }
        let followed = place.through_symlink || found.is_none() && self.is_below_implied(place.dir.0);
        let mut path = match place.dir {
            EntryId::ROOT => Vec::new(),
            dir => vec![self.path(dir)],
        };
        path.extend(place.missing);
        path.push(name.to_vec());
        let path = path.join(&b'/');
        let entry = found.map(|id| {
            if self.records.get(id).is(Kind::Hardlink) {
                self.records.get(id).target
            } else {
                id
            }
        });
        Ok(LinkTarget { path, entry, followed })
    }

    /// Whether it depends on the layers below if a directory, or one that it is in, exists by now.
    fn is_below_implied(&self, mut dir: u32) -> bool {
        while dir != 0 && !self.records.get(dir).has(IMPLIED) {
            dir = self.records.get(dir).parent;
        }
        dir != 0
    }

    /// From now on keeps the members that are added, for [`GrowingIndex::take_journal`].
    pub(super) fn keep_journal(&mut self) {
        self.journal = Some(Vec::new());
    }

    /// The members added since this was last asked, encoded; `None` if they are not kept or became too many.
    pub(super) fn take_journal(&mut self) -> Option<Vec<u8>> {
        self.journal.as_mut().map(mem::take)
    }

    pub(super) fn marks(&self) -> &Marks {
        &self.marks
    }

    pub(super) fn marks_mut(&mut self) -> &mut Marks {
        &mut self.marks
    }

    pub(super) fn records(&self) -> &Records {
        &self.records
    }
}

fn name_fault(fault: NameFault) -> Refusal {
    Refusal::Skip(format!("its name {fault}"))
}

fn check_symlink(link: &[u8]) -> Result<(), Refusal> {
    let fault = match link {
        [] => "is empty",
        link if link.contains(&0) => "has a NUL",
        link if link.len() > MAX_SYMLINK => "is longer than 4095 bytes",
        _ => return Ok(()),
    };
    Err(Refusal::Skip(format!("the target of the symlink {fault}")))
}

/// Linux has 12 bits for a device's major number and 20 for its minor one.
fn check_device(major: u32, minor: u32) -> Result<(), Refusal> {
    if major < 1 << 12 && minor < 1 << 20 {
        Ok(())
    } else {
        Err(Refusal::Skip(format!("{major}:{minor} is no device of Linux")))
    }
}

impl Entries for GrowingIndex {
    fn len(&self) -> u32 {
        self.records.all().len() as u32
    }

    fn entry(&self, id: EntryId) -> Option<Entry<'_>> {
        self.records.entry(id)
    }

    fn child(&self, dir: EntryId, name: &[u8]) -> Option<EntryId> {
        self.records.find(dir.0, name).map(EntryId)
    }

    fn children(&self, dir: EntryId) -> Vec<EntryId> {
        self.records.children(dir.0).into_iter().map(EntryId).collect()
    }

    fn entries_at(&self, stream: ByteRange) -> Vec<EntryId> {
        self.records.stored_in(stream)
    }

    fn written_otherwise(&self) -> bool {
        self.written_otherwise
    }

    fn replaced(&self) -> u32 {
        self.records.replaced()
    }
}
