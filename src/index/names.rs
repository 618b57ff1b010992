//! Names: what path a tar header's name means, and which names mean something to the layer format.

use std::fmt;

use super::Kind;

/// Longest path, in bytes.
pub(super) const MAX_PATH: usize = 4096;
/// Longest component of a path, in bytes.
pub(super) const MAX_NAME: usize = 255;
/// Longest target that a symlink can have.
pub(super) const MAX_SYMLINK: usize = 4095;
/// Symlinks that are followed in the parents of one name, as many as Linux follows.
pub(super) const MAX_HOPS: usize = 40;

/// The start of a whiteout's name.
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// The start of names that belong to aufs, with all that is below them.
const RESERVED: &[u8] = b".wh..wh.";
/// The name of the whiteout that makes its directory opaque.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Files that eStargz puts into the root of a layer for itself.
const INTERNAL: [&[u8]; 3] = [b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"];

/// Why a name or link target cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameFault {
    Empty,
    Nul,
    LongName,
    LongPath,
    Loop,
}

impl fmt::Display for NameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NameFault::Empty => "is empty",
            NameFault::Nul => "has a NUL",
            NameFault::LongName => "has a component of more than 255 bytes",
            NameFault::LongPath => "is longer than 4096 bytes",
            NameFault::Loop => "leads through more than 40 symlinks",
        })
    }
}

/// The components of the path that `raw` names, none of them empty, `.` or `..`; no component means the root.
/// `..` never leaves the root, and does not look at what its parent is: `umoci` cleans names like this too.
pub(super) fn normalise(raw: &[u8]) -> Result<Vec<&[u8]>, NameFault> {
    if raw.is_empty() {
        return Err(NameFault::Empty);
    }
    if raw.contains(&0) {
        return Err(NameFault::Nul);
    }
    let mut path = Vec::new();
    for name in raw.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(path.pop()),
            name => path.push(name),
        }
    }
    if path.iter().any(|name| name.len() > MAX_NAME) {
        return Err(NameFault::LongName);
    }
    if path.iter().map(|name| name.len() + 1).sum::<usize>() > MAX_PATH + 1 {
        return Err(NameFault::LongPath);
    }
    Ok(path)
}

/// Whether a last component is a whiteout's.
pub(super) fn is_whiteout(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT)
}

/// Whether a last component makes its directory opaque.
pub(super) fn is_opaque(name: &[u8]) -> bool {
    name == OPAQUE
}

/// Whether an entry of that name is never part of the merged view. Only the last name of a path makes a whiteout: of
/// `.wh.a/b` the first is a directory like others, as all tools have it.
pub(crate) fn never_shown(name: &[u8], kind: Kind) -> bool {
    name.starts_with(RESERVED) || is_whiteout(name) && kind != Kind::Directory
}

/// Whether a file of this name in a layer's root belongs to the layer's format, not to the image.
pub(super) fn is_internal(name: &[u8]) -> bool {
    INTERNAL.contains(&name)
}

/// A name for a message: what is not printable is escaped, and an absurd length cut.
pub(super) fn shown(name: &[u8]) -> String {
    match name.get(..120) {
        Some(start) if name.len() > 123 => format!("'{}...'", start.escape_ascii()),
        _ => format!("'{}'", name.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(raw: &str) -> String {
        let path = normalise(raw.as_bytes()).unwrap();
        String::from_utf8(path.join(&b'/')).unwrap()
    }

    #[test]
    fn all_spellings_of_a_path_are_one() {
        for raw in [
            "x/y",
            "./x/y",
            "/x/y",
            "x/y/",
            "x//y",
            "x/./y",
            "../x/y",
            "x/z/../y",
            "a/../../x/y",
            "//x/y/.",
        ] {
            assert_eq!(path(raw), "x/y", "{raw}");
        }
    }

    #[test]
    fn the_root_has_no_component() {
        for raw in [".", "./", "/", "..", "a/.."] {
            assert_eq!(path(raw), "", "{raw}");
        }
    }

    #[test]
    fn names_that_no_file_system_takes_are_refused() {
        assert_eq!(normalise(b""), Err(NameFault::Empty));
        assert_eq!(normalise(b"a\0b"), Err(NameFault::Nul));
        assert_eq!(normalise(&[b'a'; 256]), Err(NameFault::LongName));
        assert!(normalise(&[b'a'; 255]).is_ok());
        assert!(normalise(&b"a/".repeat(2048)).is_ok());
        assert_eq!(normalise(&b"abc/".repeat(1025)), Err(NameFault::LongPath));
        assert!(normalise(&b"abc/".repeat(1024)).is_ok());
    }
}
