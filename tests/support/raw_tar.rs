//! Tars written header by header, for what no library writes.

use field::{GID, MODE, MTIME, SIZE, UID};

/// The unit of everything in a tar.
const BLOCK: usize = 512;

/// A tar in the making. Members are ustar, 0644, of owner 0:0 and of the epoch, unless a change says otherwise.
#[derive(Clone, Debug, Default)]
pub struct RawTar(Vec<u8>);

impl RawTar {
    /// A tar without a byte.
    pub fn new() -> RawTar {
        RawTar::default()
    }

    /// Adds a header of type `flag`, changed by `change` before its checksum is made, and `data`.
    pub fn with(mut self, flag: u8, name: impl AsRef<[u8]>, data: &[u8], change: impl Fn(&mut [u8])) -> RawTar {
        let name = name.as_ref();
        let mut block = [0; BLOCK];
        let here = name.len().min(100);
        block[..here].copy_from_slice(&name[..here]);
        for (field, number) in [(MODE, 0o644), (UID, 0), (GID, 0), (SIZE, data.len() as u64), (MTIME, 0)] {
            octal(&mut block, field, number);
        }
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut block);
        block[148..156].copy_from_slice(b"        ");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self.padded(data)
    }

    /// Adds a member of type `flag`.
    pub fn add(self, flag: u8, name: impl AsRef<[u8]>, data: &[u8]) -> RawTar {
        self.with(flag, name, data, |_| {})
    }

    /// Adds a file.
    pub fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> RawTar {
        self.add(b'0', name, data.as_ref())
    }

    /// Adds a directory, 0755.
    pub fn dir(self, name: impl AsRef<[u8]>) -> RawTar {
        self.with(b'5', name, b"", |block| octal(block, MODE, 0o755))
    }

    /// Adds a link: type `1` is hard, `2` symbolic.
    pub fn link(self, flag: u8, name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> RawTar {
        let to = to.as_ref();
        self.with(flag, name, b"", |block| block[157..157 + to.len()].copy_from_slice(to))
    }

    /// Adds a PAX header of type `flag`: `x` for the next member, `g` for all.
    pub fn pax_of(self, flag: u8, records: &[(&str, &[u8])]) -> RawTar {
        let mut payload = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (1..)
                .map(|digits| rest + digits)
                .find(|len| len.to_string().len() + rest == *len)
                .expect("some length counts itself");
            payload.extend_from_slice(format!("{len} {key}=").as_bytes());
            payload.extend_from_slice(value);
            payload.push(b'\n');
        }
        self.add(flag, "pax", &payload)
    }

    /// Adds a PAX header for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> RawTar {
        self.pax_of(b'x', records)
    }

    /// Adds a GNU header for the next member: type `L` has its name, `K` its link's target.
    pub fn gnu_long(self, flag: u8, text: impl AsRef<[u8]>) -> RawTar {
        let text = [text.as_ref(), b"\0"].concat();
        self.with(flag, "././@LongLink", &text, gnu)
    }

    /// Adds bytes, filled up to a block.
    pub fn padded(mut self, data: &[u8]) -> RawTar {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// Adds bytes as they are.
    pub fn bytes(mut self, data: &[u8]) -> RawTar {
        self.0.extend_from_slice(data);
        self
    }

    /// The tar without its end.
    pub fn unended(self) -> Vec<u8> {
        self.0
    }

    /// The tar with the two blocks of zeros that end it.
    pub fn end(self) -> Vec<u8> {
        self.padded(&[0; 2 * BLOCK]).0
    }
}

/// The fields of a header by their names in POSIX: where each begins, and its length.
pub mod field {
    /// Permission bits.
    pub const MODE: (usize, usize) = (100, 8);
    /// Owner.
    pub const UID: (usize, usize) = (108, 8);
    /// Group.
    pub const GID: (usize, usize) = (116, 8);
    /// Bytes of data.
    pub const SIZE: (usize, usize) = (124, 12);
    /// Seconds since the epoch.
    pub const MTIME: (usize, usize) = (136, 12);
    /// Of a device.
    pub const DEVMAJOR: (usize, usize) = (329, 8);
    /// Of a device.
    pub const DEVMINOR: (usize, usize) = (337, 8);
}

/// Writes a number into a field in octal.
pub fn octal(block: &mut [u8], (at, len): (usize, usize), number: u64) {
    let width = len - 1;
    block[at..at + width].copy_from_slice(format!("{number:0width$o}").as_bytes());
}

/// Writes a number into a field in the base-256 form of GNU.
pub fn binary(block: &mut [u8], (at, len): (usize, usize), number: i128) {
    let bytes = &number.to_be_bytes()[16 - len..];
    block[at..at + len].copy_from_slice(bytes);
    block[at] |= 0x80;
}

/// Changes a header's magic to GNU's.
pub fn gnu(block: &mut [u8]) {
    block[257..265].copy_from_slice(b"ustar  \0");
}
