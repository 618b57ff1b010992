//! The file of one extent: a header that says what it holds, and the bytes.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `PEELEXTN` |
//! | 8 | 2 | version, 1 |
//! | 10 | 1 | kind: `c` or `d` |
//! | 11 | 1 | digest algorithm: 1 SHA-256, 2 SHA-512 |
//! | 12 | 4 | bytes a checksum covers, 65536 |
//! | 16 | 64 | digest, padded with zeros |
//! | 80 | 8 | offset of the first byte |
//! | 88 | 8 | number of bytes, 1 to 1 MiB |
//! | 96 | 4 n | CRC-32 of each block of 64 KiB; the last may be shorter |
//! | 96 + 4 n | 4 | CRC-32 of all of the header before it |
//!
//! Integers are little-endian. Its name says kind, offset and length again, so that a listing of the directory is all
//! the index that extents need; the header is what makes sure that the name tells the truth.
//!
//! Nothing is ever synced to disk: after a power loss a file may be torn, and the checksums catch that. Losing it costs
//! one fetch; syncing would cost milliseconds for each.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use crate::buffers;
use crate::digest::Digest;
use crate::range::ByteRange;
use crate::regular_file;

use super::ExtentKind;

/// Bytes that one checksum covers, hence the least that is read from disk.
pub const BLOCK: u64 = 64 * 1024;
/// The most bytes that one extent has.
pub const MAX_LEN: u64 = 1024 * 1024;

const MAGIC: &[u8; 8] = b"PEELEXTN";
const VERSION: u16 = 1;
const FIXED: usize = 96;

/// What is wrong with an extent's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It ends within the header.
    #[error("it is truncated")]
    Truncated,
    /// It does not begin as an extent's file of this version does.
    #[error("it is no extent of this version")]
    Foreign,
    /// The header contradicts itself or its checksum.
    #[error("its header is damaged")]
    Header,
    /// It holds something other than its name says.
    #[error("it is not what its name says")]
    Misnamed,
    /// It is longer or shorter than its header says.
    #[error("its size is wrong")]
    Size,
    /// The bytes do not have the checksum that the header gives.
    #[error("its bytes are damaged")]
    Data,
}

/// The header of an extent's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentHeader {
    kind: ExtentKind,
    digest: Digest,
    range: ByteRange,
    checksums: Vec<u32>,
}

impl ExtentHeader {
    /// The header for `parts`, one after another, as the bytes from `start` on; `None` if there are none or more than
    /// an extent may have.
    pub fn describe(kind: ExtentKind, digest: Digest, start: u64, parts: &[Bytes]) -> Option<ExtentHeader> {
        let len = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        if len == 0 || len > MAX_LEN || start.checked_add(len).is_none() {
            return None;
        }
        let mut checksums = Vec::with_capacity(blocks(len));
        let (mut hasher, mut hashed) = (crc32fast::Hasher::new(), 0);
        for part in parts {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(BLOCK as usize - hashed));
                hasher.update(now);
                hashed += now.len();
                rest = later;
                if hashed == BLOCK as usize {
                    checksums.push(std::mem::take(&mut hasher).finalize());
                    hashed = 0;
                }
            }
        }
        if hashed > 0 {
            checksums.push(hasher.finalize());
        }
        let range = ByteRange::at(start, len);
        Some(ExtentHeader {
            kind,
            digest,
            range,
            checksums,
        })
    }

    /// Which of the blob's (or the stream's) bytes the file holds.
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// Length of the header of an extent of `len` bytes.
    pub fn encoded_len(len: u64) -> usize {
        FIXED + 4 * blocks(len) + 4
    }

    /// The header as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::encoded_len(self.range.len()));
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.push(self.kind.letter() as u8);
        out.push(algorithm(&self.digest));
        out.extend_from_slice(&(BLOCK as u32).to_le_bytes());
        out.extend_from_slice(self.digest.as_bytes());
        out.resize(80, 0);
        out.extend_from_slice(&self.range.start().to_le_bytes());
        out.extend_from_slice(&self.range.len().to_le_bytes());
        for checksum in &self.checksums {
            out.extend_from_slice(&checksum.to_le_bytes());
        }
        let checksum = crc32fast::hash(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads the header off the front of `bytes`, which may be anything.
    pub fn parse(bytes: &[u8]) -> Result<ExtentHeader, Damage> {
        let fixed = bytes.get(..FIXED).ok_or(Damage::Truncated)?;
        if fixed.get(..8) != Some(MAGIC)
            || array(fixed, 8).map(u16::from_le_bytes) != Some(VERSION)
            || array(fixed, 12).map(u32::from_le_bytes) != Some(BLOCK as u32)
        {
            return Err(Damage::Foreign);
        }
        let start = array(fixed, 80).map(u64::from_le_bytes).ok_or(Damage::Truncated)?;
        let len = array(fixed, 88).map(u64::from_le_bytes).ok_or(Damage::Truncated)?;
        if len == 0 || len > MAX_LEN || start.checked_add(len).is_none() {
            return Err(Damage::Header);
        }
        let before_checksum = FIXED + 4 * blocks(len);
        let covered = bytes.get(..before_checksum).ok_or(Damage::Truncated)?;
        let checksum = array(bytes, before_checksum).map(u32::from_le_bytes);
        if checksum.ok_or(Damage::Truncated)? != crc32fast::hash(covered) {
            return Err(Damage::Header);
        }
        let kind = match fixed.get(10) {
            Some(b'c') => ExtentKind::Compressed,
            Some(b'd') => ExtentKind::Decoded,
            _ => return Err(Damage::Header),
        };
        let digest = match fixed.get(11) {
            Some(1) => array(fixed, 16).map(Digest::Sha256),
            Some(2) => array(fixed, 16).map(Digest::Sha512),
            _ => None,
        };
        let checksums = covered[FIXED..]
            .chunks_exact(4)
            .filter_map(|four| array(four, 0).map(u32::from_le_bytes))
            .collect();
        Ok(ExtentHeader {
            kind,
            digest: digest.ok_or(Damage::Header)?,
            range: ByteRange::at(start, len),
            checksums,
        })
    }

    /// Whether `bytes` are what the header says of the blocks from number `first` on. They must end where a block or
    /// the extent ends.
    pub fn check(&self, first: usize, bytes: &[u8]) -> Result<(), Damage> {
        let checksums = self.checksums.get(first..).ok_or(Damage::Size)?;
        let blocks = bytes.chunks(BLOCK as usize);
        if blocks.len() > checksums.len() {
            return Err(Damage::Size);
        }
        let sound = blocks.zip(checksums).all(|(block, sum)| crc32fast::hash(block) == *sum);
        if sound { Ok(()) } else { Err(Damage::Data) }
    }
}

fn blocks(len: u64) -> usize {
    // At most MAX_LEN / BLOCK = 16 for every length that passes the checks above.
    len.div_ceil(BLOCK) as usize
}

fn algorithm(digest: &Digest) -> u8 {
    match digest {
        Digest::Sha256(_) => 1,
        Digest::Sha512(_) => 2,
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Why a part of an extent could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The file is there and wrong.
    #[error("{0}")]
    Damaged(#[from] Damage),
    /// The operating system cannot read it.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads `wanted`, which must lie within what `name` says, and checks every block that it touches.
pub(super) fn read_part(
    file: &File,
    file_len: u64,
    name: ExtentName,
    digest: &Digest,
    wanted: ByteRange,
) -> Result<Bytes, ReadError> {
    let header_len = ExtentHeader::encoded_len(name.len);
    if file_len != header_len as u64 + name.len {
        return Err(Damage::Size.into());
    }
    let mut header = vec![0; header_len];
    file.read_exact_at(&mut header, 0)?;
    let header = ExtentHeader::parse(&header)?;
    if header.kind != name.kind || header.digest != *digest || header.range != name.range() {
        return Err(Damage::Misnamed.into());
    }
    let from = wanted.start().saturating_sub(name.start);
    let to = wanted.end().saturating_sub(name.start).min(name.len);
    let first = from / BLOCK;
    let aligned = ByteRange::new(first * BLOCK, to.div_ceil(BLOCK).saturating_mul(BLOCK).min(name.len));
    let mut bytes = buffers::of_len(aligned.len() as usize).map_err(io::Error::other)?;
    file.read_exact_at(&mut bytes, header_len as u64 + aligned.start())?;
    header.check(first as usize, &bytes)?;
    let within = (from - aligned.start()) as usize..(to - aligned.start()) as usize;
    Ok(buffers::freeze(bytes).slice(within))
}

/// Whether the file at `path` is the extent that its name says, whole and undamaged; none if it cannot be read.
pub(super) fn is_sound(path: &Path, name: ExtentName, digest: &Digest) -> Option<bool> {
    let file = regular_file::open_to_read(path).ok()?;
    let len = file.metadata().ok()?.len();
    match read_part(&file, len, name, digest, name.range()) {
        Ok(_) => Some(true),
        Err(ReadError::Damaged(_)) => Some(false),
        Err(ReadError::Io(_)) => None,
    }
}

/// The name of an extent's file: `<c|d>-<start>-<length>`, both in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ExtentName {
    pub(super) kind: ExtentKind,
    pub(super) start: u64,
    pub(super) len: u64,
}

impl ExtentName {
    /// What `name` says; `None` if it is not exactly as [`fmt::Display`] writes it.
    pub(super) fn parse(name: &str) -> Option<ExtentName> {
        let (kind, rest) = name.split_once('-')?;
        let (start, len) = rest.split_once('-')?;
        let parsed = ExtentName {
            kind: ExtentKind::ALL.into_iter().find(|k| kind == k.letter().to_string())?,
            start: u64::from_str_radix(start, 16).ok()?,
            len: u64::from_str_radix(len, 16).ok()?,
        };
        let usable = parsed.len > 0 && parsed.len <= MAX_LEN && parsed.start.checked_add(parsed.len).is_some();
        (usable && parsed.to_string() == name).then_some(parsed)
    }

    pub(super) fn range(&self) -> ByteRange {
        ByteRange::at(self.start, self.len)
    }

    /// What a file of this name occupies.
    pub(super) fn file_len(&self) -> u64 {
        ExtentHeader::encoded_len(self.len) as u64 + self.len
    }
}

impl fmt::Display for ExtentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}-{:x}", self.kind.letter(), self.start, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> ExtentHeader {
        let parts = [Bytes::from(vec![7; 100_000]), Bytes::from(vec![8; 50_000])];
        ExtentHeader::describe(ExtentKind::Decoded, Digest::sha256(b"x"), 77, &parts).unwrap()
    }

    #[test]
    fn a_header_survives_a_round_trip() {
        let encoded = header().encode();
        assert_eq!(encoded.len(), ExtentHeader::encoded_len(150_000));
        assert_eq!(ExtentHeader::parse(&encoded), Ok(header()));
    }

    #[test]
    fn the_checksums_do_not_depend_on_how_the_bytes_came() {
        let whole = [[7; 100_000].as_slice(), &[8; 50_000]].concat();
        let one = ExtentHeader::describe(ExtentKind::Decoded, Digest::sha256(b"x"), 77, &[whole.clone().into()]);
        assert_eq!(one.unwrap(), header());
        assert_eq!(header().check(0, &whole), Ok(()));
        assert_eq!(header().check(1, &whole[BLOCK as usize..]), Ok(()));
        assert_eq!(header().check(1, &whole), Err(Damage::Size));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_of_a_header_is_noticed() {
        let encoded = header().encode();
        for bit in 0..encoded.len() * 8 {
            let mut flipped = encoded.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(ExtentHeader::parse(&flipped).is_err(), "bit {bit}");
        }
        for len in 0..encoded.len() {
            assert!(ExtentHeader::parse(&encoded[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn only_names_that_we_would_write_are_read() {
        let name = ExtentName {
            kind: ExtentKind::Compressed,
            start: 0x1000,
            len: 0xff,
        };
        assert_eq!(name.to_string(), "c-1000-ff");
        assert_eq!(ExtentName::parse("c-1000-ff"), Some(name));
        for text in [
            "",
            "c",
            "c-1000",
            "c-1000-0",
            "c-01000-ff",
            "c-1000-FF",
            "e-1000-ff",
            "c-1000-ff-1",
            "c-+1-ff",
            "c-ffffffffffffffff-ff",
            "c-0-100001",
        ] {
            assert_eq!(ExtentName::parse(text), None, "{text}");
        }
    }
}
