//! What the tests of the index share: layers written in a line per entry, and trees shown in the same way.

use crate::range::ByteRange;

use super::{Entries, Entry, EntryId, Kind, Member};

/// The members of a layer: `d PATH`, `f PATH [SIZE]`, `l PATH TARGET`, `h PATH TARGET`, `p PATH`, `c PATH`, one a line.
/// Each gets its number in the layer as its mode, so that it can be told from others of the same name.
pub(super) fn members(text: &str) -> Vec<Member> {
    let mut position = 512;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let member = |(i, line): (usize, &str)| {
        let mut words = line.split(' ');
        let kind = match words.next().unwrap() {
            "d" => Kind::Directory,
            "f" => Kind::File,
            "l" => Kind::Symlink,
            "h" => Kind::Hardlink,
            "p" => Kind::Fifo,
            "c" => Kind::CharDevice,
            other => panic!("no such kind: {other}"),
        };
        let name = words.next().unwrap_or_default().as_bytes().to_vec();
        let rest = words.next().unwrap_or_default();
        let mut member = Member {
            name,
            kind,
            mode: i as u16 + 1,
            ..Member::default()
        };
        match kind {
            Kind::File => member.size = rest.parse().unwrap_or(0),
            _ => member.link = rest.as_bytes().to_vec(),
        }
        member.data = ByteRange::at(position, member.size);
        position = member.data.end().next_multiple_of(512) + 512;
        member
    };
    lines.enumerate().map(member).collect()
}

/// Every entry that names lead to, one a line in the order of paths: kind, path, what is special, mode in decimal.
pub(super) fn tree(index: &impl Entries) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![EntryId::ROOT];
    while let Some(id) = todo.pop() {
        let entry = index.entry(id).unwrap();
        let path = match id {
            EntryId::ROOT => "/".to_owned(),
            _ => String::from_utf8(index.path(id)).unwrap(),
        };
        let link = String::from_utf8_lossy(entry.link);
        let mut line = match entry.kind {
            Kind::Directory => format!("d {path}"),
            Kind::File => format!("f {path}"),
            Kind::Symlink => format!("l {path} -> {link}"),
            Kind::Fifo => format!("p {path}"),
            Kind::CharDevice => format!("c {path}"),
            Kind::BlockDevice => format!("b {path}"),
            Kind::Hardlink => match entry.target {
                Some(target) => {
                    let mode = index.entry(target).unwrap().mode;
                    format!("h {path} = {link}({mode})")
                }
                None => format!("h {path} => {link}"),
            },
        };
        if entry.size > 0 {
            line += &format!(" {} bytes", entry.size);
        }
        if entry.kind != Kind::Directory && entry.nlink != 1 {
            line += &format!(" x{}", entry.nlink);
        }
        for (flag, is) in [
            ("implied", entry.implied),
            ("unsolid", entry.kind == Kind::Directory && !entry.solid),
            ("whiteouts", entry.whiteouts),
            ("opaque", entry.opaque),
            ("replacing", entry.replacing),
        ] {
            if is {
                line += &format!(" {flag}");
            }
        }
        if !entry.implied {
            line += &format!(" {}", entry.mode);
        }
        lines.push(line);
        let children = index.children(id);
        for child in &children {
            let entry = index.entry(*child).unwrap();
            assert_eq!((entry.parent, index.child(id, entry.name)), (id, Some(*child)));
        }
        todo.extend(children.into_iter().rev());
    }
    lines
}

/// All of an entry in one line, its number too.
pub(super) fn shown(entry: &Entry<'_>) -> String {
    let Entry {
        id,
        parent,
        name,
        kind,
        mode,
        uid,
        gid,
        size,
        mtime,
        mtime_nsec,
        major,
        minor,
        data,
        link,
        ..
    } = entry;
    let Entry {
        target,
        nlink,
        implied,
        whiteouts,
        opaque,
        replacing,
        sparse,
        ..
    } = entry;
    let xattrs: Vec<_> = entry
        .xattrs()
        .map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()))
        .collect();
    let pieces: Vec<_> = entry.pieces().collect();
    let text = format!("{} -> {}", name.escape_ascii(), link.escape_ascii());
    let numbers = (
        id,
        parent,
        kind,
        mode,
        uid,
        gid,
        size,
        (mtime, mtime_nsec),
        (major, minor),
        data,
    );
    format!(
        "{text} {numbers:?} {:?} {xattrs:?} {pieces:?}",
        (target, nlink, implied, whiteouts, opaque, replacing, sparse)
    )
}

/// Demands that two indexes answer every question alike.
#[track_caller]
pub(super) fn same(a: &impl Entries, b: &impl Entries) {
    assert_eq!(tree(a), tree(b));
    assert_eq!(a.len(), b.len());
    for id in (0..a.len() + 2).map(EntryId) {
        let line = |entry: Option<Entry<'_>>| entry.map(|entry| shown(&entry));
        assert_eq!(line(a.entry(id)), line(b.entry(id)));
        assert_eq!(a.children(id), b.children(id));
        assert_eq!(a.path(id), b.path(id));
    }
    for start in (0..12_000).step_by(97) {
        let range = ByteRange::at(start, start % 1500);
        assert_eq!(a.entries_at(range), b.entries_at(range));
    }
}
