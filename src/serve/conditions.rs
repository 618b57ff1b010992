//! `Range`, `If-Range`, `If-Match` and `If-None-Match`; RFC 9110, 13 and 14.

use std::ops::Range;

use axum::http::header::{IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// What a request wants of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Nothing: the client has it.
    Nothing,
    /// Another version, which is not there.
    Other,
    /// All of it.
    All,
    /// These of its bytes, at least one; they may be all.
    Part(Range<u64>),
    /// Bytes that it does not have.
    Outside,
}

/// What a request with these headers wants of a file of `size` bytes with the strong validator `etag`.
///
/// Of several ranges no account is taken, as the RFC leaves to a server: the answer is the whole file.
pub(super) fn wanted(headers: &HeaderMap, etag: &str, size: u64) -> Wanted {
    // It compares strongly: a weak tag is none of ours.
    let is_this = |tag: &[u8]| tag == b"*" || tag == etag.as_bytes();
    if headers.contains_key(IF_MATCH) && !tags(headers, IF_MATCH).any(is_this) {
        return Wanted::Other;
    }
    let is_this_weakly = |tag: &[u8]| is_this(tag.strip_prefix(b"W/").unwrap_or(tag));
    if tags(headers, IF_NONE_MATCH).any(is_this_weakly) {
        return Wanted::Nothing;
    }
    // A date is never equal: there is no Last-Modified.
    let is_other = |tag: &HeaderValue| tag.as_bytes().trim_ascii() != etag.as_bytes();
    if headers.get(IF_RANGE).is_some_and(is_other) {
        return Wanted::All;
    }
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
    let Some(range) = range.and_then(one_range) else {
        return Wanted::All;
    };
    let range = match range {
        // The last bytes of an empty file, however many, are all of it; RFC 9110, 14.1.2. No Content-Range can say so.
        (None, Some(1..)) if size == 0 => return Wanted::All,
        (Some(first), last) => first..last.map_or(size, |last| last.saturating_add(1).min(size)),
        (None, last) => size.saturating_sub(last.unwrap_or(0))..size,
    };
    match range.is_empty() {
        true => Wanted::Outside,
        false => Wanted::Part(range),
    }
}

/// The tags in a header, which may stand in several lines. No tag of ours has a comma.
fn tags(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(name).into_iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii))
}

/// The first and last byte of the one range that is asked for; without the first, the last so many.
fn one_range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, range) = text.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    let number = |text: &str| match text {
        "" => Some(None),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(Some(digits.parse().unwrap_or(u64::MAX))),
        _ => None,
    };
    let (first, last) = (number(first)?, number(last)?);
    let sound = match (first, last) {
        (None, None) => false,
        (Some(first), Some(last)) => first <= last,
        _ => true,
    };
    (unit.eq_ignore_ascii_case("bytes") && sound).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &str)], size: u64) -> Wanted {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        wanted(&pairs.collect(), "\"a\"", size)
    }

    #[test]
    fn one_range_is_given() {
        for (range, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=2-", 2..10),
            ("Bytes=2-5", 2..6),
            ("bytes=2-99", 2..10),
            ("bytes=-3", 7..10),
            ("bytes=-99", 0..10),
        ] {
            assert_eq!(of(&[("range", range)], 10), Wanted::Part(part), "{range}");
        }
        for range in [
            "bytes=10-",
            "bytes=99-100",
            "bytes=-0",
            "bytes=99999999999999999999999-",
        ] {
            assert_eq!(of(&[("range", range)], 10), Wanted::Outside, "{range}");
        }
        for (range, wanted) in [
            ("bytes=0-", Wanted::Outside),
            ("bytes=-0", Wanted::Outside),
            ("bytes=-5", Wanted::All),
        ] {
            assert_eq!(of(&[("range", range)], 0), wanted, "{range}");
        }
        assert_eq!(of(&[("range", "bytes=0-")], 10), Wanted::Part(0..10));
        for range in [
            "bytes=0-1,3-4",
            "bytes=5-2",
            "bytes=-",
            "lines=1-2",
            "bytes=a-b",
            "bytes",
            "bytes=+1-2",
        ] {
            assert_eq!(of(&[("range", range)], 10), Wanted::All, "{range}");
        }
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        for tags in ["\"a\"", "W/\"a\"", "\"x\", \"a\"", "*"] {
            assert_eq!(
                of(&[("if-none-match", tags), ("range", "bytes=0-1")], 10),
                Wanted::Nothing
            );
        }
        assert_eq!(of(&[("if-none-match", "\"b\"")], 10), Wanted::All);
        // Header lines of one name are one list.
        let mut lines = HeaderMap::new();
        for tag in ["\"b\"", "\"a\""] {
            lines.append(IF_NONE_MATCH, tag.parse().unwrap());
        }
        assert_eq!(wanted(&lines, "\"a\"", 10), Wanted::Nothing);
    }

    #[test]
    fn another_version_than_the_one_wanted_is_not_sent() {
        for tags in ["\"b\"", "W/\"a\"", ""] {
            assert_eq!(
                of(&[("if-match", tags), ("if-none-match", "*")], 10),
                Wanted::Other,
                "{tags}"
            );
        }
        for tags in ["\"a\"", "\"b\",\"a\"", "*"] {
            assert_eq!(of(&[("if-match", tags)], 10), Wanted::All, "{tags}");
        }
    }

    #[test]
    fn a_part_of_another_version_is_of_no_use() {
        let part = |tag| of(&[("if-range", tag), ("range", "bytes=0-1")], 10);
        assert_eq!(part("\"a\""), Wanted::Part(0..2));
        let mut strange = HeaderMap::new();
        strange.insert(IF_RANGE, HeaderValue::from_bytes(b"\"\xe9\"").unwrap());
        strange.insert(RANGE, "bytes=0-1".parse().unwrap());
        assert_eq!(wanted(&strange, "\"a\"", 10), Wanted::All);
        for tag in ["\"b\"", "W/\"a\"", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(part(tag), Wanted::All, "{tag}");
        }
    }
}
