//! Sparse files, in the four forms that GNU tar has had.

use super::case::Tool::{GnuTar, Umoci};
use super::case::{Case, tar};
use crate::support::raw_tar::field::SIZE;
use crate::support::raw_tar::{gnu, octal};

/// What is stored of a file of 5000 bytes: 512 from 1024 on, and 3 from 4096 on. GNU tar has pieces begin with a block
/// of the tar, so that all but the last must be whole blocks for all tools to agree.
fn stored() -> Vec<u8> {
    [vec![b'A'; 512], b"CDE".to_vec()].concat()
}

#[test]
fn the_old_form_of_gnu() {
    let layer = tar().with(b'S', "a", &stored(), |block| {
        gnu(block);
        for (i, number) in [1024, 512, 4096, 3, 5000, 0].into_iter().enumerate() {
            octal(block, (386 + 12 * i, 12), number);
        }
        octal(block, (483, 12), 5000);
    });
    Case::of([layer.file("b", "1").end()])
        .root(["a f 5000 bytes", "b f =1"])
        .differs(Umoci, "it does not know old sparse files")
        .check();
}

#[test]
fn the_old_form_of_gnu_with_more_pieces_than_a_header_holds() {
    let pieces: Vec<(u64, u64)> = (0..30).map(|i| (i * 1536, 512)).collect();
    let map = |pieces: &[(u64, u64)], len: usize| {
        let mut map = vec![0; len];
        for (i, (offset, size)) in pieces.iter().enumerate() {
            octal(&mut map, (24 * i, 12), *offset);
            octal(&mut map, (24 * i + 12, 12), *size);
        }
        map
    };
    let (head, rest) = pieces.split_at(4);
    let (second, third) = rest.split_at(21);
    let more = |pieces, more: u8| [map(pieces, 504), vec![more], vec![0; 7]].concat();
    let data: Vec<u8> = (0..30).flat_map(|i| [b'A' + i; 512]).collect();
    let layer = tar()
        .with(b'S', "a", b"", |block| {
            gnu(block);
            block[386..482].copy_from_slice(&map(head, 96));
            block[482] = 1;
            octal(block, (483, 12), 45056);
            octal(block, SIZE, data.len() as u64);
        })
        .bytes(&more(second, 1))
        .bytes(&more(third, 0))
        .padded(&data)
        .file("b", "1");
    Case::of([layer.end()])
        .root(["a f 45056 bytes", "b f =1"])
        .differs(Umoci, "it does not know old sparse files")
        .check();
}

#[test]
fn the_form_0_0() {
    let layer = tar()
        .pax(&[
            ("GNU.sparse.size", b"5000"),
            ("GNU.sparse.numblocks", b"3"),
            ("GNU.sparse.offset", b"1024"),
            ("GNU.sparse.numbytes", b"512"),
            ("GNU.sparse.offset", b"4096"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"5000"),
            ("GNU.sparse.numbytes", b"0"),
        ])
        .file("a", stored())
        .file("b", "1");
    Case::of([layer.end()]).root(["a f 5000 bytes", "b f =1"]).check();
}

/// The records of the form 0.1.
const FORM_0_1: &[(&str, &[u8])] = &[
    ("GNU.sparse.size", b"5000"),
    ("GNU.sparse.numblocks", b"3"),
    ("GNU.sparse.name", b"a"),
    ("GNU.sparse.map", b"1024,512,4096,3,5000,0"),
];

#[test]
fn the_form_0_1() {
    let layer = tar().pax(FORM_0_1).file("GNUSparseFile.1/a", stored()).file("b", "1");
    Case::of([layer.end()]).root(["a f 5000 bytes", "b f =1"]).check();
}

#[test]
fn the_form_1_0() {
    let mut data = b"3\n1024\n512\n4096\n3\n5000\n0\n".to_vec();
    data.resize(512, 0);
    data.extend(stored());
    let layer = tar()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"a"),
            ("GNU.sparse.realsize", b"5000"),
        ])
        .file("GNUSparseFile.1/a", &data)
        .file("b", "1");
    Case::of([layer.end()]).root(["a f 5000 bytes", "b f =1"]).check();
}

/// Pieces that are no whole blocks: they follow each other without a gap, as Go and libarchive have it.
#[test]
fn small_pieces() {
    let layer = tar()
        .pax(&[
            ("GNU.sparse.size", b"10"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.name", b"a"),
            ("GNU.sparse.map", b"2,2,7,3"),
        ])
        .file("x", "ABCDE")
        .file("b", "1");
    Case::of([layer.end()])
        .root(["a f =\\x00\\x00AB\\x00\\x00\\x00CDE", "b f =1"])
        .differs(GnuTar, "it takes each piece for whole blocks")
        .check();
}

#[test]
fn a_file_of_nothing_but_a_hole_larger_than_8_gib() {
    let layer = tar()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"a"),
            ("GNU.sparse.realsize", b"9000000000"),
        ])
        .file("GNUSparseFile.1/a", &{
            let mut map = b"1\n9000000000\n0\n".to_vec();
            map.resize(512, 0);
            map
        });
    // Its content is looked at elsewhere: all of it would be read here.
    let layout = tempfile::tempdir().unwrap();
    let image = crate::support::ImageBuilder::of([crate::support::Layer::tar(layer.end())]);
    image.write(layout.path(), "latest").unwrap();
    let mount = crate::support::Mount::of(format!("oci:{}:latest", layout.path().display())).start();
    let file = std::fs::File::open(mount.path("a")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 9_000_000_000);
    let mut bytes = [1; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 8_999_990_000).unwrap();
    assert_eq!(bytes, [0; 4096]);
    assert_eq!(
        std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 8_999_999_999).unwrap(),
        1
    );
    assert_eq!(
        std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 9_000_000_000).unwrap(),
        0
    );
    drop(file);
    mount.unmount();
}

#[test]
fn a_sparse_file_can_be_linked_and_replaced() {
    let layer = tar()
        .pax(FORM_0_1)
        .file("x", stored())
        .link(b'1', "b", "a")
        .pax(FORM_0_1)
        .file("x", stored().to_ascii_lowercase());
    Case::of([layer.end()])
        .root(["a f 5000 bytes", "b f 5000 bytes"])
        .check();
}
