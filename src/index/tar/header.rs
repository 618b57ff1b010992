//! The fields of one 512-byte tar header: ustar, GNU, star and the Unix v7 form before them.
//!
//! Leniency and strictness are those of Go's archive/tar, which all container tools read layers with.

/// Bytes of a header, and the unit of everything in a tar.
pub(super) const BLOCK: usize = 512;

/// One tar header.
pub(super) struct Header<'a>(pub &'a [u8; BLOCK]);

#[derive(PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    fn field(&self, start: usize, len: usize) -> &'a [u8] {
        self.0.get(start..start + len).unwrap_or_default()
    }

    /// Whether the checksum is right, counted with bytes as unsigned (the standard) or as signed (old Suns).
    pub fn is_genuine(&self) -> bool {
        let Some(told) = octal(self.field(148, 8)) else {
            return false;
        };
        let blanked = |i: usize, byte: u8| if (148..156).contains(&i) { b' ' } else { byte };
        let bytes = || self.0.iter().enumerate().map(|(i, byte)| blanked(i, *byte));
        let unsigned: u64 = bytes().map(u64::from).sum();
        if told == unsigned {
            return true;
        }
        let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
        i64::try_from(told) == Ok(signed)
    }

    pub fn flag(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or(0)
    }

    fn format(&self) -> Format {
        match (self.field(257, 6), self.field(263, 2)) {
            (b"ustar\0", _) if self.field(508, 4) == b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::V7,
        }
    }

    /// The name, with the prefix that ustar splits off.
    pub fn name(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = match self.format() {
            Format::Ustar => text(self.field(345, 155)),
            Format::Star => text(self.field(345, 131)),
            // Images written with Go before 1.8 have a ustar prefix in GNU headers, where two times should be.
            Format::Gnu => {
                let time = |at| self.field(at, 1) == [0] || number(self.field(at, 12)).is_some();
                let prefix = text(self.field(345, 155));
                if time(345) && time(357) || !prefix.is_ascii() {
                    b""
                } else {
                    prefix
                }
            }
            Format::V7 => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, name].join(&b'/')
        }
    }

    pub fn link(&self) -> &'a [u8] {
        text(self.field(157, 100))
    }

    pub fn mode(&self) -> Option<i64> {
        number(self.field(100, 8))
    }

    pub fn uid(&self) -> Option<i64> {
        number(self.field(108, 8))
    }

    pub fn gid(&self) -> Option<i64> {
        number(self.field(116, 8))
    }

    pub fn size(&self) -> Option<i64> {
        number(self.field(124, 12))
    }

    pub fn mtime(&self) -> Option<i64> {
        number(self.field(136, 12))
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> Option<(i64, i64)> {
        if self.format() == Format::V7 {
            return Some((0, 0));
        }
        Some((number(self.field(329, 8))?, number(self.field(337, 8))?))
    }

    /// The four pieces of an old GNU sparse file that its header has room for.
    pub fn sparse_pieces(&self) -> &'a [u8] {
        self.field(386, 96)
    }

    /// Whether blocks with more pieces follow.
    pub fn sparse_goes_on(&self) -> bool {
        self.field(482, 1) != [0]
    }

    /// The size of an old GNU sparse file with its holes.
    pub fn sparse_size(&self) -> Option<i64> {
        number(self.field(483, 12))
    }
}

/// Text up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number, in octal or in the base-256 form of GNU, which can be negative.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return i64::try_from(octal(field)?).ok();
    }
    let negative = first & 0x40 != 0;
    let flip = if negative { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (i, byte) in field.iter().enumerate() {
        let byte = byte ^ flip;
        let byte = if i == 0 { byte & 0x7f } else { byte };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if negative { !value } else { value })
}

/// An octal number between blanks and NULs; nothing at all is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = field.get(start..)?.split(blank).next()?;
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' if value >> 61 == 0 => Some(value << 3 | u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777777", Some(0o77777777777)),
            (b"648", None),
            (b"-1", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn every_number_that_does_not_fit_is_refused() {
        assert_eq!(octal(b"7777777777777777777777"), None);
        assert_eq!(octal(b"777777777777777777777"), Some(0o777777777777777777777));
    }
}
