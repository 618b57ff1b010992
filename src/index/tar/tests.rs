use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::index::sample::{shown, tree};
use crate::index::{Entries, EntryId};

/// A tar written by hand, for headers that no library writes.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    /// Adds a header of type `flag`, changed by `change` before its checksum is made, and `data`.
    fn with(mut self, flag: u8, name: &str, data: &[u8], change: impl Fn(&mut [u8])) -> Tar {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[108..115].copy_from_slice(b"0000001");
        block[116..123].copy_from_slice(b"0000002");
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        block[136..147].copy_from_slice(b"00000000007");
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut block);
        block[148..156].copy_from_slice(b"        ");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self.data(data)
    }

    fn add(self, flag: u8, name: &str, data: &[u8]) -> Tar {
        self.with(flag, name, data, |_| {})
    }

    fn link(self, flag: u8, name: &str, to: &str) -> Tar {
        self.with(flag, name, b"", |block| {
            block[157..157 + to.len()].copy_from_slice(to.as_bytes())
        })
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut payload = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (1..)
                .map(|digits| rest + digits)
                .find(|len| len.to_string().len() + rest == *len)
                .unwrap();
            payload.extend_from_slice(format!("{len} {key}=").as_bytes());
            payload.extend_from_slice(value);
            payload.push(b'\n');
        }
        self.add(b'x', "pax", &payload)
    }

    fn data(mut self, data: &[u8]) -> Tar {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    fn end(self) -> Tar {
        self.data(&[0; 2 * BLOCK])
    }
}

/// Scans a stream that comes in pieces of `piece` bytes.
fn scanned_by(stream: &[u8], piece: usize) -> Result<GrowingIndex, IndexError> {
    let (mut scanner, mut index) = (TarScanner::new(), GrowingIndex::new());
    for piece in stream.chunks(piece) {
        scanner.feed(piece, &mut index)?;
    }
    scanner.finish()?;
    Ok(index)
}

/// Scans a stream whole and in pieces, which must not matter.
#[track_caller]
fn scanned(stream: &[u8]) -> Result<GrowingIndex, IndexError> {
    let all = |index: &GrowingIndex| {
        let ids = 0..index.len();
        ids.map(|id| shown(&index.entry(EntryId(id)).unwrap()))
            .collect::<Vec<_>>()
    };
    let whole = scanned_by(stream, usize::MAX);
    for piece in [1, 511, 512, 700] {
        match (&whole, scanned_by(stream, piece)) {
            (Ok(whole), Ok(pieces)) => assert_eq!(all(whole), all(&pieces)),
            (Err(whole), Err(pieces)) => assert_eq!(whole.to_string(), pieces.to_string()),
            (whole, pieces) => panic!("{:?} {:?}", whole.as_ref().err(), pieces.err()),
        }
    }
    whole
}

/// The tree of a tar without its root, and the warnings about it.
#[track_caller]
fn told(tar: Tar) -> (Vec<String>, Vec<String>) {
    let mut index = scanned(&tar.0).unwrap();
    (tree(&index).split_off(1), index.drain_warnings())
}

#[track_caller]
fn refused(tar: Tar) -> String {
    scanned(&tar.0).err().unwrap().to_string()
}

#[track_caller]
fn only(tar: &Tar) -> String {
    let index = scanned(&tar.0).unwrap();
    assert_eq!(index.len(), 2);
    shown(&index.entry(EntryId(1)).unwrap())
}

const LONG: &str =
    "a-name/that-is-longer-than-one-hundred-bytes/so-that-it-does-not-fit-into-the-name-field/of-any-header/at-all";

#[test]
fn every_type_is_what_it_says() {
    let tar = Tar::default()
        .add(b'0', "a", b"12345")
        .add(0, "b", b"")
        .add(b'7', "c", b"1")
        .link(b'1', "d", "a")
        .link(b'2', "e", "../x")
        .with(b'3', "f", b"", |block| {
            block[329..345].copy_from_slice(b"0000005\x000000021\0")
        })
        .with(b'4', "g", b"", |block| {
            block[329..345].copy_from_slice(b"\x80\0\0\0\0\0\x01\x030000021\0")
        })
        .add(b'5', "h/", b"")
        .add(b'6', "i", b"")
        .end();
    let expected = [
        "f a 5 bytes x2 420",
        "f b 420",
        "f c 1 bytes 420",
        "h d = a(420) x2 420",
        "l e -> ../x 420",
        "c f 420",
        "b g 420",
        "d h 420",
        "p i 420",
    ];
    assert_eq!(told(tar), (expected.map(str::to_owned).to_vec(), vec![]));
}

#[test]
fn devices_have_numbers() {
    let device = |block: &mut [u8]| block[329..345].copy_from_slice(b"\x80\0\0\0\0\0\x01\x030000021\0");
    let tar = Tar::default().with(b'4', "g", b"", device);
    let index = scanned(&tar.0).unwrap();
    let entry = index.entry(EntryId(1)).unwrap();
    assert_eq!((entry.major, entry.minor), (259, 17));
}

#[test]
fn a_type_that_nobody_knows_is_a_file() {
    let (tree, warnings) = told(Tar::default().add(b'Q', "a", b"123").add(b'0', "b", b""));
    assert_eq!(tree, ["f a 3 bytes 420", "f b 420"]);
    assert_eq!(warnings, ["'a' is of the unknown type 'Q': taken for a file"]);
}

#[test]
fn an_old_directory_is_a_file_with_a_slash() {
    let (tree, _) = told(
        Tar::default()
            .add(0, "a/", b"")
            .add(b'0', "b/", b"skipped")
            .add(b'0', "c", b""),
    );
    assert_eq!(tree, ["d a 420", "d b 420", "f c 420"]);
}

#[test]
fn names_can_be_split_or_long() {
    let prefix = |block: &mut [u8]| block[345..348].copy_from_slice(b"p/q");
    let gnu = |block: &mut [u8]| block[257..265].copy_from_slice(b"ustar  \0");
    let v7 = |block: &mut [u8]| {
        prefix(block);
        block[257..265].fill(0);
    };
    let star = |block: &mut [u8]| {
        prefix(block);
        block[476..488].copy_from_slice(b"00000000007 ");
        block[508..512].copy_from_slice(b"tar\0");
    };
    let tar = Tar::default()
        .with(b'0', "ustar", b"", prefix)
        .with(b'0', "v7", b"", v7)
        .with(b'0', "star", b"", star)
        .with(b'0', "gnu", b"", |block| {
            gnu(block);
            block[345..356].copy_from_slice(b"00000000007");
        })
        .with(b'0', "old-go", b"", |block| {
            gnu(block);
            prefix(block);
        })
        .with(b'L', "././@LongLink", format!("{LONG}/L\0").as_bytes(), gnu)
        .with(b'0', "short", b"", gnu)
        .with(b'K', "././@LongLink", format!("{LONG}/K\0").as_bytes(), gnu)
        .link(b'2', "k", "short")
        .pax(&[("path", format!("{LONG}/x").as_bytes()), ("linkpath", b"to")])
        .link(b'2', "short", "short")
        .end();
    let (tree, warnings) = told(tar);
    let parts: Vec<&str> = LONG.split('/').collect();
    let mut expected: Vec<String> = (1..=parts.len())
        .map(|n| format!("d {} implied", parts[..n].join("/")))
        .collect();
    expected.extend([
        format!("f {LONG}/L 420"),
        format!("l {LONG}/x -> to 420"),
        "f gnu 420".to_owned(),
    ]);
    expected.push(format!("l k -> {LONG}/K 420"));
    expected.extend(
        [
            "d p implied",
            "d p/q implied",
            "f p/q/old-go 420",
            "f p/q/star 420",
            "f p/q/ustar 420",
        ]
        .map(str::to_owned),
    );
    expected.push("f v7 420".to_owned());
    assert_eq!((tree, warnings), (expected, vec![]));
}

#[test]
fn numbers_can_be_large_or_negative() {
    let tar = Tar::default().with(b'0', "a", b"", |block| {
        block[108..116].copy_from_slice(b"\x80\0\0\0\xff\xff\xff\xfe");
        block[136..148].copy_from_slice(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe");
    });
    assert!(only(&tar).contains("420, 4294967294, 2, 0, (-2, 0)"), "{}", only(&tar));
    let tar = Tar::default()
        .pax(&[("mtime", b"-1.25"), ("uid", b"70000"), ("gid", b"4294967295")])
        .add(b'0', "a", b"");
    assert!(
        only(&tar).contains("70000, 4294967295, 0, (-2, 750000000)"),
        "{}",
        only(&tar)
    );
    let (_, warnings) = told(
        Tar::default()
            .pax(&[("uid", b"-1"), ("gid", b"4294967296")])
            .add(b'0', "a", b""),
    );
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

#[test]
fn pax_is_for_one_member_and_global_headers_for_none() {
    let tar = Tar::default()
        .add(b'g', "global", b"12 path=nope\n")
        .pax(&[("path", b"b"), ("size", b"3"), ("SCHILY.xattr.user.a", b"1")])
        .add(b'g', "global", b"12 path=nope\n")
        .with(b'0', "a", b"123", |block| {
            block[124..135].copy_from_slice(b"00000000000")
        })
        .add(b'0', "c", b"");
    let index = scanned(&tar.0).unwrap();
    assert_eq!(tree(&index), ["d / implied", "f b 3 bytes 420", "f c 420"]);
    let xattrs = |name| {
        index
            .entry(index.child(EntryId::ROOT, name).unwrap())
            .unwrap()
            .xattrs()
            .count()
    };
    assert_eq!((xattrs(b"b"), xattrs(b"c")), (1, 0));
}

#[test]
fn the_largest_attribute_fits() {
    let value = vec![b'\n'; 64 << 10];
    let tar = Tar::default()
        .pax(&[("SCHILY.xattr.user.big", &value)])
        .add(b'0', "a", b"");
    let index = scanned_by(&tar.0, 1000).unwrap();
    let entry = index.entry(EntryId(1)).unwrap();
    assert_eq!(entry.xattrs().collect::<Vec<_>>(), [(&b"user.big"[..], &value[..])]);
}

/// Four pieces of a sparse file of 100 bytes, as an old GNU header has them.
fn old_map(block: &mut [u8], pieces: &[(u64, u64)]) {
    for (place, (offset, len)) in block.chunks_exact_mut(24).zip(pieces) {
        place.copy_from_slice(format!("{offset:011o}\0{len:011o}\0").as_bytes());
    }
}

#[test]
fn sparse_files_of_every_form() {
    let map = "(10, 2), (20, 3)]";
    let old = Tar::default().with(b'S', "a", b"12345", |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        old_map(&mut block[386..482], &[(10, 2), (20, 3), (100, 0)]);
        block[483..494].copy_from_slice(b"00000000144");
    });
    let v00 = [
        ("GNU.sparse.size", &b"100"[..]),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"10"),
        ("GNU.sparse.numbytes", b"2"),
        ("GNU.sparse.offset", b"20"),
        ("GNU.sparse.numbytes", b"3"),
    ];
    let v01 = [
        ("GNU.sparse.size", &b"100"[..]),
        ("GNU.sparse.name", b"a"),
        ("GNU.sparse.map", b"10,2,20,3"),
    ];
    let v10 = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"a"),
        ("GNU.sparse.realsize", b"100"),
    ];
    let mut in_data = b"2\n10\n2\n20\n3\n".to_vec();
    in_data.resize(BLOCK, 0);
    in_data.extend_from_slice(b"12345");
    for tar in [
        old,
        Tar::default().pax(&v00).add(b'0', "a", b"12345"),
        Tar::default().pax(&v01).add(b'0', "GNUSparseFile.0/a", b"12345"),
        Tar::default().pax(&v10).add(b'0', "GNUSparseFile.0/a", &in_data),
    ] {
        let line = only(&tar.end());
        assert!(line.starts_with("a -> ") && line.ends_with(map), "{line}");
        assert!(line.contains("2, 100, (7, 0)"), "{line}");
    }
}

#[test]
fn old_sparse_maps_go_on_in_more_blocks() {
    let pieces: Vec<(u64, u64)> = (0..40).map(|i| (i * 1000, 3)).collect();
    let mut more = Tar(vec![0; 2 * BLOCK]);
    old_map(&mut more.0[..504], &pieces[4..25]);
    more.0[504] = 1;
    old_map(&mut more.0[BLOCK..BLOCK + 504], &pieces[25..]);
    let mut tar = Tar::default().with(b'S', "a", b"", |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        block[124..135].copy_from_slice(format!("{:011o}", 120).as_bytes());
        old_map(&mut block[386..482], &pieces);
        block[482] = 1;
        block[483..494].copy_from_slice(format!("{:011o}", 50_000).as_bytes());
    });
    tar.0.extend_from_slice(&more.0);
    let index = scanned(&tar.data(&[1; 120]).add(b'0', "b", b"").0).unwrap();
    let entry = index.entry(EntryId(1)).unwrap();
    assert_eq!(entry.pieces().collect::<Vec<_>>(), pieces);
    assert_eq!((entry.data, entry.size), (ByteRange::at(3 * BLOCK as u64, 120), 50_000));
    assert!(index.child(EntryId::ROOT, b"b").is_some());
}

#[test]
fn what_is_behind_the_end_is_ignored() {
    let (tree, _) = told(
        Tar::default()
            .add(b'0', "a", b"")
            .end()
            .add(b'0', "b", b"")
            .data(b"junk"),
    );
    assert_eq!(tree, ["f a 420"]);
}

#[test]
fn the_end_may_be_missing_or_half_there() {
    for cut in 0..=2 * BLOCK {
        let mut tar = Tar::default().add(b'0', "a", b"1").end();
        tar.0.truncate(tar.0.len() - cut);
        assert!(scanned_by(&tar.0, usize::MAX).is_ok(), "{cut}");
    }
    assert!(scanned(b"").is_ok());
    assert!(scanned(&[0; 1024]).is_ok());
    let mut tar = Tar::default().add(b'0', "a", b"1");
    tar.0.truncate(BLOCK + 1);
    assert!(scanned(&tar.0).is_ok(), "missing padding");
}

#[test]
fn a_stream_cut_inside_a_group_or_data_is_truncated() {
    let tar = Tar::default().pax(&[("path", b"b")]).add(b'0', "a", &[1; 700]);
    for cut in 1..tar.0.len() {
        let result = scanned_by(&tar.0[..cut], usize::MAX);
        let whole = cut >= 3 * BLOCK + 700;
        assert_eq!(result.is_ok(), whole, "{cut}");
        if let Err(error) = result {
            assert!(matches!(error, IndexError::Truncated { .. }), "{error}");
        }
    }
}

#[test]
fn damage_is_told_with_its_place() {
    let mut tar = Tar::default().add(b'0', "a", b"1").add(b'0', "b", b"");
    tar.0[1030] ^= 1;
    assert!(refused(tar).contains("the header at byte 1024 of its stream has a wrong checksum"));
    let malformed = |what: &str, tar: Tar| {
        let told = refused(tar);
        assert!(told.contains(what), "{told}");
    };
    malformed(
        "a malformed size",
        Tar::default().with(b'0', "a", b"", |block| block[124] = b'x'),
    );
    malformed(
        "a malformed size",
        Tar::default().with(b'0', "a", b"", |block| block[124..136].fill(0xff)),
    );
    malformed(
        "an impossible size",
        Tar::default().with(b'0', "a", b"", |block| {
            block[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
        }),
    );
    malformed("a malformed PAX record", Tar::default().add(b'x', "a", b"99 path=b\n"));
    malformed(
        "more than 1048576 bytes in the header of one file",
        Tar::default().with(b'x', "a", b"", |block| {
            block[124..135].copy_from_slice(b"00010000000");
        }),
    );
    malformed(
        "more after a block of zeros",
        Tar::default().data(&[0; 512]).add(b'0', "a", b""),
    );
    malformed("the end of the archive instead", Tar::default().pax(&[]).end());
    let contradiction = [("GNU.sparse.size", &b"4"[..]), ("GNU.sparse.map", b"0,5")];
    malformed(
        "a contradictory map",
        Tar::default().pax(&contradiction).add(b'0', "a", b"12345"),
    );
}

#[test]
fn the_next_group_is_where_a_scan_can_go_on() {
    let tar = Tar::default()
        .pax(&[("path", b"b")])
        .add(b'0', "a", &[1; 700])
        .add(b'5', "d", b"")
        .end();
    let starts = [0, 2560, 3072];
    let whole = scanned(&tar.0).unwrap();
    for cut in 0..tar.0.len() {
        let (mut scanner, mut index) = (TarScanner::new(), GrowingIndex::new());
        scanner.feed(&tar.0[..cut], &mut index).unwrap();
        let next = scanner.next_group();
        assert!(
            starts.contains(&next) || next == u64::MAX && cut >= 4096,
            "{next} at {cut}"
        );
        let from = next.min(cut as u64);
        let mut scanner = TarScanner::at(from, next);
        scanner.feed(&tar.0[from as usize..], &mut index).unwrap();
        scanner.finish().unwrap();
        assert_eq!(tree(&index), tree(&whole), "{cut}");
    }
}

/// GNU tar's own listing of a tree, and the same made from our index.
fn listing(index: &GrowingIndex) -> Vec<String> {
    let mut lines: Vec<String> = (0..index.len())
        .map(EntryId)
        .map(|id| {
            let entry = index.entry(id).unwrap();
            let path = match id {
                EntryId::ROOT => "./".to_owned(),
                _ => format!(
                    "./{}{}",
                    String::from_utf8(index.path(id)).unwrap(),
                    if entry.kind == Kind::Directory { "/" } else { "" }
                ),
            };
            let link = String::from_utf8_lossy(entry.link);
            let (letter, tail) = match entry.kind {
                Kind::Directory => ("d", String::new()),
                Kind::File => ("-", String::new()),
                Kind::Symlink => ("l", format!(" -> {link}")),
                Kind::Fifo => ("p", String::new()),
                Kind::Hardlink => ("h", format!(" link to ./{link}")),
                other => panic!("{other:?}"),
            };
            format!(
                "{letter}{:04o} {}/{} {} {}.{:09} {path}{tail}",
                entry.mode, entry.uid, entry.gid, entry.size, entry.mtime, entry.mtime_nsec
            )
        })
        .collect();
    lines.sort();
    lines
}

/// A tree on disk with all that a user can make.
fn plant(dir: &Path) {
    let deep = dir.join(LONG);
    fs::create_dir_all(&deep).unwrap();
    fs::create_dir_all(dir.join(format!("{}/{}", "x".repeat(90), "y".repeat(90)))).unwrap();
    fs::write(deep.join("file"), vec![7; 3000]).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::set_permissions(dir.join("empty"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(deep.join("file"), dir.join("second name")).unwrap();
    std::os::unix::fs::symlink(format!("../{LONG}/{LONG}"), dir.join("symlink")).unwrap();
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    for i in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[9; 100], i * 200_000 + 70_000).unwrap();
    }
    sparse.set_len(7_000_000).unwrap();
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    fs::File::open(dir.join("empty"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH - std::time::Duration::from_millis(1250))
        .unwrap();
}

#[test]
fn gnu_tar_makes_what_we_read() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path());
    for (format, whole_seconds, negative) in [
        ("pax", false, true),
        ("posix --sparse --sparse-version=0.0", false, true),
        ("posix --sparse --sparse-version=0.1", false, true),
        ("posix --sparse --sparse-version=1.0", false, true),
        ("gnu --sparse", true, true),
        ("oldgnu --sparse", true, true),
        ("ustar", true, false),
    ] {
        if !negative {
            fs::File::open(dir.path().join("empty"))
                .unwrap()
                .set_modified(std::time::UNIX_EPOCH)
                .unwrap();
        }
        let mut command = Command::new("tar");
        command.args(["-C", dir.path().to_str().unwrap(), "-cf", "-", "--sort=name"]);
        command.args(format!("--format={format}").split(' '));
        if format == "ustar" {
            command.args(["--exclude=symlink", "--exclude=second name"]);
        }
        let output = command.arg(".").output().unwrap();
        assert!(
            output.status.success(),
            "{format}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut index = scanned_by(&output.stdout, 10_000).unwrap_or_else(|error| panic!("{format}: {error}"));
        assert_eq!(index.drain_warnings(), [""; 0]);

        let mut expected = Vec::new();
        let mut todo = vec![dir.path().to_owned()];
        while let Some(path) = todo.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            let mut name = format!("./{}", path.strip_prefix(dir.path()).unwrap().to_str().unwrap());
            if format == "ustar" && ["./symlink", "./second name"].contains(&name.as_str()) {
                continue;
            }
            let (letter, mut size) = match meta.mode() & 0o170000 {
                0o040000 => ("d", 0),
                0o120000 => ("l", 0),
                0o010000 => ("p", 0),
                _ => ("-", meta.len()),
            };
            let mut letter = letter;
            if letter == "d" {
                name += if name == "./" { "" } else { "/" };
                todo.extend(fs::read_dir(&path).unwrap().map(|child| child.unwrap().path()));
            }
            let mut tail = match fs::read_link(&path) {
                Ok(target) => format!(" -> {}", target.to_str().unwrap()),
                Err(_) => String::new(),
            };
            if name == "./second name" {
                (letter, size, tail) = ("h", 0, format!(" link to ./{LONG}/file"));
            }
            let nsec = if whole_seconds { 0 } else { meta.mtime_nsec() };
            let (mode, uid, gid, mtime) = (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime());
            expected.push(format!(
                "{letter}{mode:04o} {uid}/{gid} {size} {mtime}.{nsec:09} {name}{tail}"
            ));
        }
        expected.sort();
        assert_eq!(listing(&index), expected, "{format}");
        if format.contains("--sparse") {
            let entry = index.entry(index.child(EntryId::ROOT, b"sparse").unwrap()).unwrap();
            let stored: u64 = entry.pieces().map(|(_, len)| len).sum();
            let mut content = vec![0; entry.size as usize];
            let mut from = entry.data.start() as usize;
            for (offset, len) in entry.pieces() {
                let (offset, len) = (offset as usize, len as usize);
                content[offset..offset + len].copy_from_slice(&output.stdout[from..from + len]);
                from += len;
            }
            assert!(entry.sparse && stored < 1_000_000, "{format}: {stored}");
            assert!(content == fs::read(dir.path().join("sparse")).unwrap(), "{format}");
        }
    }
}
