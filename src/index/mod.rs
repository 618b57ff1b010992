//! What is in a layer and where.
//!
//! A layer's blob is a compressed tar stream. Its index holds an [`Entry`] for each file, directory and link in it,
//! numbered in tar order, and cuts the stream into [`Span`]s, each of which can be decompressed, and checked, by itself.
//! Any file of the layer can then be carved out of a range of the blob.
//!
//! ```text
//! decompressed stream --TarScanner--> Member --GrowingIndex::add--> entries --finish--> file --LayerIndex
//! ```
//!
//! A [`TarScanner`] turns the stream into [`Member`]s, a [`GrowingIndex`] applies the rules that hold inside one layer
//! (which name wins, what is implied, where a symlinked parent leads) and can be asked while it grows. Complete, it
//! becomes an immutable file that a [`LayerIndex`] maps. Both answer as [`Entries`], alike for alike. A [`PartialLog`]
//! lets a scan that was killed go on where it stood.
//!
//! All of it is made from hostile input: sizes are bounded, offsets are checked, nothing panics. The bounds, beyond which
//! a layer is refused with a sentence that names the bound, unless it says otherwise:
//!
//! | what | most |
//! |---|---|
//! | entries of a layer | 4,194,304 |
//! | directories in a layer that no entry declares | 1,048,576 |
//! | names that lead through symlinks of their layer, and directories declared again after one | 4,194,304 |
//! | bytes of names, link targets and attributes in a layer, all together | 256 MiB |
//! | bytes of the headers before one entry (PAX, GNU long name, sparse map) | 1 MiB each |
//! | pieces of a sparse file | 131,072 |
//! | a path; a component; a symlink's target | 4096; 255; 4095 bytes, the entry is left out with a warning |
//! | symlinks followed in the parents of one name | 40, the entry is left out with a warning |
//! | an extended attribute's name; its value | 255 bytes; 64 KiB, it is left out with a warning |
//! | names of extended attributes of one file | 64 KiB, the rest is left out with a warning |
//! | warnings of a layer that are logged | 200, the rest is counted |
//!
//! How much a stream may decompress to is not bounded: what is held of it is.

mod fields;
mod file;
mod growing;
mod map;
mod member;
mod names;
mod partial;
mod record;
#[cfg(test)]
mod sample;
mod spans;
mod tar;
mod written;

use std::path::PathBuf;

use crate::digest::Digest;
use crate::range::ByteRange;

pub use file::{ASKED_FOR, LayerFacts, LayerIndex, WrittenMember};
pub use growing::{Change, GrowingIndex};
pub use member::Member;
pub(crate) use names::{OPAQUE, WHITEOUT, never_shown};
pub use partial::{PartialLog, ScanState, Start};
pub use record::{Pieces, Xattrs};
pub use spans::{Mark, Span};
pub use tar::TarScanner;

/// The number of an entry in its layer: tar order, implied directories where they first occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub u32);

impl EntryId {
    /// The layer's root directory.
    pub const ROOT: EntryId = EntryId(0);
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A directory.
    Directory = 0,
    /// A regular file; whiteouts are files too.
    File = 1,
    /// A symbolic link.
    Symlink = 2,
    /// A named pipe.
    Fifo = 3,
    /// A character device.
    CharDevice = 4,
    /// A block device.
    BlockDevice = 5,
    /// One more name of another entry, of this or of a lower layer.
    Hardlink = 6,
}

impl Kind {
    fn from_u8(byte: u8) -> Option<Kind> {
        Some(match byte {
            0 => Kind::Directory,
            1 => Kind::File,
            2 => Kind::Symlink,
            3 => Kind::Fifo,
            4 => Kind::CharDevice,
            5 => Kind::BlockDevice,
            6 => Kind::Hardlink,
            _ => return None,
        })
    }
}

/// One entry of a layer, as the layer by itself has it.
#[derive(Clone)]
pub struct Entry<'a> {
    /// Its number.
    pub id: EntryId,
    /// The directory that it is in, always of a lower number; the root is its own parent.
    pub parent: EntryId,
    /// Its name in that directory; empty for the root.
    pub name: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky: 07777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of a file in bytes, holes included; 0 for anything else.
    pub size: u64,
    /// Time of last change: seconds since the epoch, rounded down.
    pub mtime: i64,
    /// Nanoseconds to be added to `mtime`.
    pub mtime_nsec: u32,
    /// Major number of a device.
    pub major: u32,
    /// Minor number of a device.
    pub minor: u32,
    /// Where a file's stored bytes are in the decompressed stream.
    pub data: ByteRange,
    /// A symlink's target verbatim; a hardlink's as a normalised path from the root, without a leading slash.
    pub link: &'a [u8],
    /// For a hardlink whose target came earlier in this layer, the entry that it is: never itself a hardlink.
    /// Without one, a lower layer must tell what `link` is.
    pub target: Option<EntryId>,
    /// How many names of this layer are this entry; of a hardlink with a target, the target's. 0: none any more.
    pub nlink: u32,
    /// A directory that has not been declared by an entry.
    pub implied: bool,
    /// A directory that exists because of its layer: it is declared, or anything but whiteouts is below it. Others are
    /// only on the way to whiteouts, which do something to what lower layers have and make nothing appear.
    pub solid: bool,
    /// The directory has, or had, a child whose name begins with `.wh.`.
    pub whiteouts: bool,
    /// The directory has `.wh..wh..opq`.
    pub opaque: bool,
    /// It took the place of something else that its layer had there before. Said of a directory, in which there is then
    /// nothing of lower layers, and of a hard link to a lower layer, which is none if it leads nowhere.
    pub replacing: bool,
    /// The file has holes: [`Entry::pieces`] says where its stored bytes belong.
    pub sparse: bool,
    xattrs: &'a [u8],
    pieces: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Its extended attributes, sorted by name when a tar told them.
    pub fn xattrs(&self) -> Xattrs<'a> {
        Xattrs(self.xattrs)
    }

    /// The pieces of a sparse file: the stored bytes are those of the first piece, then those of the second, and so on.
    pub fn pieces(&self) -> Pieces<'a> {
        Pieces::new(self.pieces, self.size)
    }
}

/// What the growing and the complete index both answer, with the same numbers.
pub trait Entries {
    /// How many entries there are, unreachable ones included; all numbers are below.
    fn len(&self) -> u32;

    /// Whether there is no entry: never, as the root is always there.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry of that number; `None` if there is none, or if the index is damaged there.
    fn entry(&self, id: EntryId) -> Option<Entry<'_>>;

    /// What `name` is in the directory `dir`, as far as is known.
    fn child(&self, dir: EntryId, name: &[u8]) -> Option<EntryId>;

    /// All that is known to be in the directory `dir`, sorted by name.
    fn children(&self, dir: EntryId) -> Vec<EntryId>;

    /// The files with stored bytes in `stream`, a range of the decompressed stream, in stream order. Those that no
    /// name leads to any more are left out.
    fn entries_at(&self, stream: ByteRange) -> Vec<EntryId>;

    /// Whether a name or the target of a hardlink leads through a symlink of the layer, or to another hardlink, so that
    /// over other layers it may be another.
    fn written_otherwise(&self) -> bool;

    /// How many entries no name leads to, because a later one has replaced them or they were nowhere from the start. As
    /// long as that does not grow, every name that was found is what it was.
    fn replaced(&self) -> u32;

    /// The path of an entry from the layer's root, without a leading slash; empty for the root.
    fn path(&self, id: EntryId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = id;
        while at != EntryId::ROOT {
            // The chain ends: a parent's number is always the lower one.
            let Some(entry) = self.entry(at) else { break };
            names.push(entry.name.to_vec());
            at = entry.parent;
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// Why a layer cannot be indexed, or an index not be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The bytes where a header must be are none.
    #[error("the layer is damaged or no tar: the header at byte {at} of its stream has a wrong checksum")]
    Checksum {
        /// Offset of the header in the decompressed stream.
        at: u64,
    },
    /// A header says what none may say.
    #[error("the layer's tar is malformed: {what} in the header at byte {at} of its stream")]
    Malformed {
        /// Offset of the header in the decompressed stream.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The layer ends too early.
    #[error("the layer's tar is cut off inside {inside}, after {at} bytes of its stream")]
    Truncated {
        /// Length of the decompressed stream.
        at: u64,
        /// What is incomplete.
        inside: &'static str,
    },
    /// The layer is larger than anything that is meant seriously.
    #[error("the layer has more than {limit} {what}, which is not supported")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much would be accepted.
        limit: u64,
    },
    /// The index file cannot be read.
    #[error("cannot read the index {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The index was written by another version of this program.
    #[error("the index has format version {found}, this program reads {expected}")]
    Version {
        /// Version of the file.
        found: u32,
        /// The one that is read and written.
        expected: u32,
    },
    /// The index is damaged, or is none.
    #[error("the index is damaged: {0}")]
    Damaged(&'static str),
    /// The index is another layer's.
    #[error("the index is of the layer {found}, not {expected}")]
    OtherLayer {
        /// The layer that it is of.
        found: Box<Digest>,
        /// The layer that was asked for.
        expected: Box<Digest>,
    },
    /// A checkpoint is not behind the one before it.
    #[error("checkpoint at byte {decompressed} of the layer's stream is out of order")]
    Checkpoint {
        /// Where it was to be.
        decompressed: u64,
    },
}
