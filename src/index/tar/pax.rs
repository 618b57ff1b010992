//! PAX records: `LENGTH KEY=VALUE\n`, one after another, in the payload of an `x` header.

use std::collections::BTreeMap;

use super::sparse::Pieces;
use crate::index::Kind;

/// Longest name and largest value of an extended attribute that Linux has.
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 64 << 10;
/// What Linux lists of them, each name with a NUL at its end.
const MAX_XATTR_NAMES: usize = 64 << 10;

/// A time as PAX tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time {
    /// Seconds since the epoch, rounded down.
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What an `x` header says about the member that follows.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<Time>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: PaxSparse,
    /// What was wrong with it but does no harm.
    pub warnings: Vec<&'static str>,
}

/// What an `x` header says of a sparse file, in the three forms that GNU tar has had.
#[derive(Debug, Default, PartialEq)]
pub(super) struct PaxSparse {
    pub major: Option<Vec<u8>>,
    pub minor: Option<Vec<u8>>,
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub realsize: Option<u64>,
    /// The pieces, in form 0.0 one record per number, in form 0.1 all in one.
    pub pieces: Option<Pieces>,
    /// In form 0.0, the offset whose length is still to come.
    offset: Option<u64>,
}

impl PaxSparse {
    /// Whether the map of the pieces stands at the beginning of the file's data (form 1.0).
    pub fn is_in_data(&self) -> bool {
        self.major.as_deref() == Some(b"1") && self.minor.as_deref() == Some(b"0")
    }
}

/// The records in the payload of an `x` header; the error says what about them is wrong.
pub(super) fn parse(mut payload: &[u8]) -> Result<Pax, &'static str> {
    const MALFORMED: &str = "a malformed PAX record";
    let mut pax = Pax::default();
    // Some writers fill up with NULs.
    while payload.first().is_some_and(|byte| *byte != 0) {
        let space = payload
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or(MALFORMED)?;
        let len = payload.get(..space).and_then(decimal).ok_or(MALFORMED)?;
        let len = usize::try_from(len).map_err(|_| MALFORMED)?;
        let (record, rest) = payload.split_at_checked(len).ok_or(MALFORMED)?;
        let record = record
            .get(space + 1..)
            .and_then(|record| record.strip_suffix(b"\n"))
            .ok_or(MALFORMED)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(MALFORMED)?;
        let (key, value) = (
            record.get(..equals).unwrap_or_default(),
            record.get(equals + 1..).unwrap_or_default(),
        );
        if key.is_empty() {
            return Err(MALFORMED);
        }
        pax.take(key, value)?;
        payload = rest;
    }
    Ok(pax)
}

impl Pax {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // An empty value means what the header itself says.
        let text = || (!value.is_empty()).then(|| value.to_vec());
        fn number<T>(
            value: &[u8],
            parse: impl Fn(&[u8]) -> Option<T>,
            what: &'static str,
        ) -> Result<Option<T>, &'static str> {
            if value.is_empty() {
                Ok(None)
            } else {
                parse(value).map(Some).ok_or(what)
            }
        }
        const SPARSE: &str = "a malformed PAX record of a sparse file";
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.linkpath = text(),
            b"size" => self.size = number(value, decimal, "a malformed PAX size")?,
            b"uid" => self.uid = number(value, signed, "a malformed PAX uid")?,
            b"gid" => self.gid = number(value, signed, "a malformed PAX gid")?,
            b"mtime" => match number(value, time, "a malformed PAX mtime") {
                Ok(mtime) => self.mtime = mtime,
                // As GNU tar has it: the header has a time as well.
                Err(_) => self.warnings.push("a malformed PAX mtime means nothing"),
            },
            b"GNU.sparse.major" => self.sparse.major = text(),
            b"GNU.sparse.minor" => self.sparse.minor = text(),
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.size" => self.sparse.size = number(value, decimal, SPARSE)?,
            b"GNU.sparse.realsize" => self.sparse.realsize = number(value, decimal, SPARSE)?,
            b"GNU.sparse.offset" => match self.sparse.offset {
                Some(_) => return Err(SPARSE),
                None => self.sparse.offset = Some(decimal(value).ok_or(SPARSE)?),
            },
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or(SPARSE)?;
                let piece = (offset, decimal(value).ok_or(SPARSE)?);
                self.sparse.pieces.get_or_insert_default().push(piece);
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value.split(|byte| *byte == b',').map(decimal).collect();
                let numbers = if value.is_empty() {
                    Vec::new()
                } else {
                    numbers.ok_or(SPARSE)?
                };
                if !numbers.len().is_multiple_of(2) {
                    return Err(SPARSE);
                }
                let pieces = numbers
                    .chunks_exact(2)
                    .filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)));
                self.sparse.pieces = Some(pieces.collect());
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name.to_vec(), value.to_vec());
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    match base64(value) {
                        Some(value) => self.set_xattr(percent_decoded(name), value),
                        None => self
                            .warnings
                            .push("an extended attribute that is not base64 is left out"),
                    }
                }
            }
        }
        Ok(())
    }

    /// The extended attributes that something of the kind `kind` can have. `user.` is for files and directories alone: of
    /// anything else, Linux lets nobody read them. More names than its lists hold cannot be listed.
    pub fn xattrs_of(&mut self, kind: Kind) -> Vec<(Vec<u8>, Vec<u8>)> {
        let all = self.xattrs.len();
        self.xattrs.retain(|name, _| exists_for(kind, name));
        if self.xattrs.len() < all {
            self.warnings.push("extended attributes that no Linux has are left out");
        }
        let (all, mut names) = (self.xattrs.len(), 0);
        self.xattrs.retain(|name, _| {
            names += name.len() + 1;
            names <= MAX_XATTR_NAMES
        });
        if self.xattrs.len() < all {
            self.warnings
                .push("extended attributes beyond 64 KiB of names are left out");
        }
        std::mem::take(&mut self.xattrs).into_iter().collect()
    }

    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) {
        if value.is_empty() {
            self.xattrs.remove(&name);
        } else if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) || value.len() > MAX_XATTR_VALUE {
            self.warnings
                .push("an extended attribute that no Linux has is left out");
        } else {
            self.xattrs.insert(name, value);
        }
    }
}

/// Whether something of the kind `kind` can have an attribute `name`.
fn exists_for(kind: Kind, name: &[u8]) -> bool {
    let suffix = |namespace: &[u8]| name.strip_prefix(namespace).is_some_and(|suffix| !suffix.is_empty());
    match kind {
        // The attributes of a hard link mean nothing.
        Kind::File | Kind::Directory | Kind::Hardlink if suffix(b"user.") => true,
        _ => suffix(b"security.") || suffix(b"trusted.") || suffix(b"system."),
    }
}

/// A decimal number without a sign.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn signed(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(decimal(digits)?),
        None => i64::try_from(decimal(text)?).ok(),
    }
}

/// `[-]SECONDS[.FRACTION]`; what is finer than a nanosecond is cut off.
fn time(text: &[u8]) -> Option<Time> {
    let point = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let (whole, fraction) = text.split_at(point);
    let seconds = signed(whole)?;
    let fraction = fraction.get(1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    if whole.starts_with(b"-") && nanoseconds > 0 {
        return Some(Time {
            seconds: seconds.checked_sub(1)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        });
    }
    Some(Time { seconds, nanoseconds })
}

/// `%XX` is the byte XX; a `%` that begins no such thing stands for itself.
fn percent_decoded(mut text: &[u8]) -> Vec<u8> {
    let nibble = |digit: &u8| char::from(*digit).to_digit(16).map(|digit| digit as u8);
    let mut out = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        text = rest;
        if let (b'%', Some([high, low])) = (first, rest.first_chunk::<2>())
            && let (Some(high), Some(low)) = (nibble(high), nibble(low))
        {
            out.push(high << 4 | low);
            text = rest.get(2..).unwrap_or_default();
        } else {
            out.push(*first);
        }
    }
    out
}

/// Base64 with or without padding: libarchive writes none.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    let text = text.get(..end)?;
    if text.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut word = 0u32;
        for (i, digit) in group.iter().enumerate() {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            word |= u32::from(value) << (18 - 6 * i);
        }
        let [_, bytes @ ..] = word.to_be_bytes();
        out.extend(bytes.iter().take(group.len() - 1));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let len = (1..)
            .map(|digits| rest + digits)
            .find(|len| len.to_string().len() + rest == *len)
            .unwrap();
        [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn attributes_that_cannot_be_read_are_left_out() {
        let names = |kind, names: &[&str]| {
            let records = names
                .iter()
                .flat_map(|name| record(&format!("SCHILY.xattr.{name}"), b"1"));
            let mut pax = parse(&records.collect::<Vec<u8>>()).unwrap();
            let kept = pax.xattrs_of(kind).into_iter();
            let kept: Vec<_> = kept.map(|(name, _)| String::from_utf8(name).unwrap()).collect();
            (kept.join(" "), pax.warnings.len())
        };
        let all = ["bare", "security.capability", "trusted.a", "user.", "user.a"];
        let of_file = "security.capability trusted.a user.a".to_owned();
        assert_eq!(names(Kind::File, &all), (of_file, 1));
        assert_eq!(
            names(Kind::Symlink, &all),
            ("security.capability trusted.a".to_owned(), 1)
        );
        let many: Vec<String> = (0..10_000).map(|number| format!("user.{number:04}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (kept, warnings) = names(Kind::File, &many);
        assert_eq!((kept.len() + 1, warnings), (65_530, 1));
    }

    #[test]
    fn a_malformed_time_means_nothing() {
        for text in ["1e5", ".5", "noon"] {
            let pax = parse(&record("mtime", text.as_bytes())).unwrap();
            assert_eq!((pax.mtime, pax.warnings.len()), (None, 1));
        }
    }

    #[test]
    fn times_are_rounded_down_to_nanoseconds() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("", None),
            (".5", None),
            ("1.-5", None),
            ("99999999999999999999", None),
        ] {
            let time = time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
            assert_eq!(time, expected, "{text}");
        }
    }

    #[test]
    fn later_records_win_and_empty_ones_take_back() {
        let payload = [
            record("path", b"a=b\nc"),
            record("SCHILY.xattr.user.a", b"1"),
            record("SCHILY.xattr.user.b", b"\0\n"),
            record("SCHILY.xattr.user.a", b""),
            record("LIBARCHIVE.xattr.user.%63%25", b"aGVsbG8"),
            record("uid", b"-5"),
            record("size", b"12"),
            record("size", b""),
            record("comment", b"whatever"),
        ]
        .concat();
        let pax = parse(&payload).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a=b\nc"[..]));
        let xattrs: Vec<_> = pax.xattrs.into_iter().collect();
        assert_eq!(
            xattrs,
            [
                (b"user.b".to_vec(), b"\0\n".to_vec()),
                (b"user.c%".to_vec(), b"hello".to_vec())
            ]
        );
        assert_eq!((pax.uid, pax.size), (Some(-5), None));
    }

    #[test]
    fn records_that_are_none_are_refused() {
        for payload in [
            "3 a",
            "x a=b\n",
            "6 a=b",
            "99 a=b\n",
            "5 ab\n",
            "4 =\n",
            "0 a=b\n",
            "9 size=x\n",
            "99999999999999999999 a",
        ] {
            assert!(parse(payload.as_bytes()).is_err(), "{payload}");
        }
        assert_eq!(parse(b"\0\0\0"), Ok(Pax::default()));
    }

    #[test]
    fn base64_of_every_length() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("AA==", b"\0"),
            ("/+8", b"\xff\xef"),
            ("AAEC", b"\0\x01\x02"),
        ] {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes));
        }
        assert_eq!(base64(b"A"), None);
        assert_eq!(base64(b"A?=="), None);
    }
}
