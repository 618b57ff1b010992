//! The bytes of an index file, mapped or in memory. The only unsafe code of the index.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::regular_file;

/// Bytes that do not change.
pub(super) enum Bytes {
    /// A file's, read by the kernel when they are first looked at.
    Mapped(Mmap),
    /// Our own.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file that is an index: one that nobody writes to any more.
    pub fn map(path: &Path) -> io::Result<Bytes> {
        let file = regular_file::open_to_read(path)?;
        if file.metadata()?.len() == 0 {
            // Nothing cannot be mapped.
            return Ok(Bytes::Owned(Vec::new()));
        }
        // SAFETY: a mapping is sound to read as a slice as long as nobody changes or cuts the file. Index files are
        // written under another name, get theirs by rename, and are never opened for writing after that: a new version
        // is a new file, an evicted one is unlinked, and neither touches what is mapped. Their directory belongs to the
        // user and to this program. The slice is handed out as plain bytes only, for which every value is valid, and it
        // does not outlive the mapping.
        unsafe { Mmap::map(&file) }.map(Bytes::Mapped)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
