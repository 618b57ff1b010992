//! File names and media types, as headers have them.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What is no `attr-char` of RFC 8187, 3.2.1.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// `Content-Disposition` for a file of this name; RFC 6266. The name is told in UTF-8 if it is not plain ASCII, and
/// bytes that are not UTF-8 stand in it as U+FFFD: there is no other way to say them.
pub(super) fn disposition(kind: &str, name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let is_plain = |letter: char| (letter == ' ' || letter.is_ascii_graphic()) && !matches!(letter, '"' | '\\' | '%');
    let plain: String = text
        .chars()
        .map(|letter| if is_plain(letter) { letter } else { '_' })
        .collect();
    match plain == text {
        true => format!("{kind}; filename=\"{plain}\""),
        false => format!(
            "{kind}; filename=\"{plain}\"; filename*=UTF-8''{}",
            utf8_percent_encode(&text, VALUE)
        ),
    }
}

/// The media type of a file of this name. Nothing that a browser would run or render as a document is among them:
/// pages, SVG, XML and PDF are bytes like any other.
pub(super) fn media_type(name: &[u8]) -> &'static str {
    let ending = match name.iter().rposition(|byte| *byte == b'.') {
        Some(dot) if dot > 0 => name[dot + 1..].to_ascii_lowercase(),
        _ => return "application/octet-stream",
    };
    match ending.as_slice() {
        b"txt" | b"text" | b"log" | b"md" | b"conf" | b"cfg" | b"ini" | b"list" | b"sh" | b"py" | b"rb" | b"pl"
        | b"c" | b"h" | b"rs" | b"go" | b"toml" | b"yaml" | b"yml" | b"service" | b"pem" | b"crt" => "text/plain",
        b"csv" => "text/csv",
        b"json" => "application/json",
        b"png" => "image/png",
        b"jpg" | b"jpeg" => "image/jpeg",
        b"gif" => "image/gif",
        b"webp" => "image/webp",
        b"bmp" => "image/bmp",
        b"ico" => "image/vnd.microsoft.icon",
        b"mp3" => "audio/mpeg",
        b"ogg" => "audio/ogg",
        b"wav" => "audio/wav",
        b"mp4" => "video/mp4",
        b"webm" => "video/webm",
        b"woff2" => "font/woff2",
        b"gz" | b"tgz" => "application/gzip",
        b"zst" => "application/zstd",
        b"xz" => "application/x-xz",
        b"bz2" => "application/x-bzip2",
        b"tar" => "application/x-tar",
        b"zip" | b"jar" | b"whl" => "application/zip",
        b"wasm" => "application/wasm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_told_in_two_ways() {
        for (name, header) in [
            (&b"passwd"[..], "a; filename=\"passwd\""),
            (b"two words", "a; filename=\"two words\""),
            (b"a\"b\\c", "a; filename=\"a_b_c\"; filename*=UTF-8''a%22b%5Cc"),
            (
                b"a\r\nX-Y: z",
                "a; filename=\"a__X-Y: z\"; filename*=UTF-8''a%0D%0AX-Y%3A%20z",
            ),
            ("é".as_bytes(), "a; filename=\"_\"; filename*=UTF-8''%C3%A9"),
            (b"caf\xe9", "a; filename=\"caf_\"; filename*=UTF-8''caf%EF%BF%BD"),
            (b"100%41", "a; filename=\"100_41\"; filename*=UTF-8''100%2541"),
        ] {
            assert_eq!(disposition("a", name), header);
        }
    }

    #[test]
    fn nothing_that_runs_has_a_type_of_its_own() {
        for name in [
            "x.html", "x.HTM", "x.svg", "x.xml", "x.xhtml", "x.pdf", "x.js", "x.mhtml", ".html", "x", "x.",
        ] {
            assert_eq!(media_type(name.as_bytes()), "application/octet-stream", "{name}");
        }
        assert_eq!(media_type(b"a.b.PNG"), "image/png");
        assert_eq!(media_type(b"notes.txt"), "text/plain");
    }
}
