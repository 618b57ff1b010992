//! An entry as it is told to people and programs.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{InspectError, Node, View};
use crate::index::Kind;
use crate::tree::{Attr, Tree};

/// Why the merged view does not show an entry, and which layer saw to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden {
    /// The layer has something else there, or where one of its parents was.
    Overridden(usize),
    /// The layer removed it: by a whiteout, or by an opaque mark on a directory that it was in.
    Deleted(usize),
}

/// One name in a view, or one that the merged view hides.
///
/// As JSON, paths are absolute. What is not UTF-8 in them stands there as U+FFFD, and then the field of the same name
/// with `_bytes` has it exactly, escaped as in Rust and C (`\xff`, and `\\` for a backslash).
#[derive(Debug, Clone)]
pub struct Entry {
    /// The path from the root, without a leading slash.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file or of a symlink's target.
    pub size: u64,
    /// Time of modification in seconds from the epoch.
    pub mtime: i64,
    /// And nanoseconds.
    pub mtime_nsec: u32,
    /// Of a device: major and minor number.
    pub device: Option<(u32, u32)>,
    /// Where a symlink points.
    pub target: Option<Vec<u8>>,
    /// The layer that it comes from; of a hard link that which has the file.
    pub layer: Option<usize>,
    /// Why it is not to be seen, if it is not.
    pub hidden: Option<Hidden>,
    /// Of one of several versions: the layer in which it is to be found at this path. Of a hard link that may be another
    /// than the one that has the file.
    pub found_in: Option<usize>,
}

impl Entry {
    /// The entry of a node of `view`.
    ///
    /// # Errors
    /// [`InspectError::Tree`].
    pub fn of(view: &View, node: &Node) -> Result<Entry, InspectError> {
        Entry::new(view.tree(), node.path.clone(), &node.attr, node.layer())
    }

    pub(super) fn new(tree: &Tree, path: Vec<u8>, attr: &Attr, layer: Option<usize>) -> Result<Entry, InspectError> {
        let target = match attr.kind {
            Kind::Symlink => Some(tree.readlink(attr.ino)?),
            _ => None,
        };
        let device = matches!(attr.kind, Kind::CharDevice | Kind::BlockDevice);
        Ok(Entry {
            path,
            kind: attr.kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            mtime: attr.mtime,
            mtime_nsec: attr.mtime_nsec,
            device: device.then_some((attr.major, attr.minor)),
            target,
            layer,
            hidden: None,
            found_in: None,
        })
    }

    /// The last name of its path; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

/// What an entry is, in a word.
pub(super) fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => "directory",
        Kind::File => "file",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::CharDevice => "char_device",
        Kind::BlockDevice => "block_device",
        Kind::Hardlink => "hardlink",
    }
}

/// `path` with whatever is no UTF-8, moves a terminal's cursor or turns the text around it around, escaped; and so are
/// backslashes, that none of it can be taken for another name.
pub fn escaped(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\\' => text.push_str("\\\\"),
                letter if letter.is_control() || is_direction(letter) => text.extend(letter.escape_default()),
                letter => text.push(letter),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// Whether it says in which direction the text beside it is to be read; names with such can be made to look like others.
pub fn is_direction(letter: char) -> bool {
    matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Writes bytes as a field `name`, and if they are no UTF-8 a field `bytes_name` with all of them.
pub(super) fn put_bytes<M: SerializeMap>(
    map: &mut M,
    (name, bytes_name): (&'static str, &'static str),
    bytes: &[u8],
) -> Result<(), M::Error> {
    map.serialize_entry(name, &String::from_utf8_lossy(bytes))?;
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(()),
        Err(_) => map.serialize_entry(bytes_name, &bytes.escape_ascii().to_string()),
    }
}

/// As [`put_bytes`], for a path from the root.
pub(super) fn put_path<M: SerializeMap>(map: &mut M, path: &[u8]) -> Result<(), M::Error> {
    put_bytes(map, ("path", "path_bytes"), &[b"/", path].concat())
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.put(&mut map)?;
        map.end()
    }
}

impl Entry {
    fn put<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        put_path(map, &self.path)?;
        map.serialize_entry("type", kind_word(self.kind))?;
        map.serialize_entry("mode", &format!("{:04o}", self.mode))?;
        map.serialize_entry("uid", &self.uid)?;
        map.serialize_entry("gid", &self.gid)?;
        map.serialize_entry("size", &self.size)?;
        map.serialize_entry("mtime", &self.mtime)?;
        map.serialize_entry("mtime_nsec", &self.mtime_nsec)?;
        if let Some((major, minor)) = self.device {
            map.serialize_entry("major", &major)?;
            map.serialize_entry("minor", &minor)?;
        }
        if let Some(target) = &self.target {
            put_bytes(map, ("target", "target_bytes"), target)?;
        }
        map.serialize_entry("layer", &self.layer)?;
        let (status, by) = match self.hidden {
            None => ("visible", None),
            Some(Hidden::Overridden(by)) => ("overridden", Some(by)),
            Some(Hidden::Deleted(by)) => ("deleted", Some(by)),
        };
        map.serialize_entry("status", status)?;
        if let Some(by) = by {
            map.serialize_entry("hidden_by", &by)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &[u8]) -> Entry {
        Entry {
            path: path.to_vec(),
            kind: Kind::Symlink,
            mode: 0o777,
            uid: 1,
            gid: 2,
            size: 3,
            mtime: -4,
            mtime_nsec: 5,
            device: None,
            target: Some(b"a/b".to_vec()),
            layer: Some(1),
            hidden: Some(Hidden::Deleted(2)),
            found_in: None,
        }
    }

    #[test]
    fn the_bytes_of_a_name_are_told_only_if_it_is_no_text() {
        let json = |path: &[u8]| serde_json::to_value(entry(path)).unwrap();
        let plain = json("dir/é".as_bytes());
        assert_eq!(plain["path"], "/dir/é");
        assert_eq!(plain.get("path_bytes"), None);
        assert_eq!(plain["status"], "deleted");
        assert_eq!(plain["hidden_by"], 2);
        let raw = json(b"dir/\xe9\\");
        assert_eq!(raw["path"], "/dir/\u{fffd}\\");
        assert_eq!(raw["path_bytes"], "/dir/\\xe9\\\\");
    }

    #[test]
    fn what_could_move_a_cursor_is_escaped() {
        assert_eq!(escaped("é \u{1b}[1m\n".as_bytes()), "é \\u{1b}[1m\\n");
        assert_eq!(escaped(b"a\xff"), "a\\xff");
        assert_eq!(
            escaped("a\u{202e}gpj.exe\u{2069}".as_bytes()),
            "a\\u{202e}gpj.exe\\u{2069}"
        );
        assert_eq!(escaped(b"a\\xff"), "a\\\\xff");
    }
}
