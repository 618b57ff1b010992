use super::*;
use crate::index::sample::{members, same};

fn facts() -> LayerFacts {
    LayerFacts {
        digest: Digest::sha256(b"blob"),
        diff_id: Digest::Sha512([7; 64]),
        compression: Compression::Gzip,
        compressed_size: 4000,
        decompressed_size: 90_000,
    }
}

fn checkpoint(compressed: u64, bits: u8, decompressed: u64) -> Checkpoint {
    let window = (0..32 << 10).map(|i| (i / 7) as u8).collect();
    Checkpoint {
        compressed,
        bits,
        decompressed,
        window,
    }
}

const LAYER: &str = "f a/b 600
    d c
    f c/z 5
    f c/y 5
    l c/x ../a
    h e a/b
    h low f
    f c/x/new 9
    f c/.wh.w
    f c/y 7
    f a/b 3
    d gone/down
    f gone/down/file 4
    f gone
    d a
    l s a
    f s/more
    d s/dir
    d a/dir
    h lower low";

fn grown() -> GrowingIndex {
    let mut index = GrowingIndex::new();
    for mut member in members(LAYER) {
        member.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec()), (member.name.clone(), vec![0; 300])];
        if member.name == b"c/z" {
            member.sparse = Some(vec![(10, 2), (20, 3)]);
            member.size = 30;
        }
        index.add(&member).unwrap();
    }
    index.add_checkpoint([1; 32], &checkpoint(1000, 3, 30_000)).unwrap();
    index.add_checkpoint([2; 32], &checkpoint(2000, 0, 60_000)).unwrap();
    index
}

fn complete() -> LayerIndex {
    LayerIndex::from_bytes(grown().finish(&facts(), [3; 32])).unwrap()
}

#[test]
fn the_file_answers_as_the_growing_index_did() {
    same(&grown(), &complete());
    let empty = LayerIndex::from_bytes(GrowingIndex::new().finish(&facts(), [0; 32])).unwrap();
    same(&GrowingIndex::new(), &empty);
}

#[test]
fn sparse_files_and_attributes_are_told() {
    let index = complete();
    let dir = index.child(EntryId::ROOT, b"c").unwrap();
    let entry = index.entry(index.child(dir, b"z").unwrap()).unwrap();
    assert!(entry.sparse);
    assert_eq!(entry.pieces().collect::<Vec<_>>(), [(10, 2), (20, 3)]);
    assert_eq!((entry.size, entry.data.len()), (30, 5));
    assert_eq!(entry.xattrs().next(), Some((&b"user.a"[..], &b"1"[..])));
    assert_eq!(entry.xattrs().count(), 2);
}

#[test]
fn the_attributes_that_every_file_is_asked_for_are_known_of_the_layer() {
    const LABEL: &str = "security.selinux";
    const LISTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
    for (had, may_be) in [
        ("user.other", &[][..]),
        (LABEL, &[LABEL]),
        (LISTS[0], &LISTS),
        (LISTS[1], &LISTS),
    ] {
        let mut growing = GrowingIndex::new();
        for (mut member, name) in members("d a\nf a/b\nl c a")
            .into_iter()
            .zip(["user.first", had, "user.last"])
        {
            member.xattrs = vec![(b"user.any".to_vec(), vec![0]), (name.as_bytes().to_vec(), vec![0])];
            growing.add(&member).unwrap();
        }
        let index = LayerIndex::from_bytes(growing.finish(&facts(), [0; 32])).unwrap();
        let told = [LABEL, LISTS[0], LISTS[1]]
            .into_iter()
            .filter(|name| index.may_have_xattr(name.as_bytes()));
        assert_eq!(told.collect::<Vec<_>>(), may_be, "{had}");
        assert!(index.may_have_xattr(b"security.capability"));
    }
}

/// The members of an index, one a line: the number of the line that declares it, and what was written if that is not what
/// the entry says.
fn written(index: &LayerIndex) -> Vec<String> {
    let text = |text: Option<&[u8]>| text.map_or(String::new(), |text| String::from_utf8(text.to_vec()).unwrap());
    let line = |member: WrittenMember<'_>| {
        let line = format!("{} {} {}", member.entry.mode, text(member.name), text(member.link));
        if member.entry.kind != Kind::Directory {
            assert_eq!(index.written_name(member.entry.id), member.name);
        }
        line.trim_end().to_owned()
    };
    index.members().map(line).collect()
}

fn of(layer: &str) -> LayerIndex {
    let mut index = GrowingIndex::new();
    for member in members(layer) {
        index.add(&member).unwrap();
    }
    let bytes = index.finish(&facts(), [0; 32]);
    let file = LayerIndex::from_bytes(bytes).unwrap();
    assert_eq!(index.written_otherwise(), file.written_otherwise());
    file
}

#[test]
fn members_are_told_as_they_were_written() {
    let layer = "d d
        f d/a
        l s d
        f s/b
        h d/h s/b
        d s/c/e
        d d/c
        d s/c
        h low gone
        h low2 low
        h none d
        h s/none d
        h never /";
    let told = [
        "1",
        "2",
        "3",
        "4 s/b",
        "5  s/b",
        "6 s/c/e",
        "8",
        "8 s/c",
        "9",
        "10  low",
        "11 none d",
        "12 s/none d",
    ];
    assert_eq!(written(&of(layer)), told);
    assert!(of(layer).written_otherwise());
}

#[test]
fn of_plain_layers_nothing_is_written_otherwise() {
    let index = of("d a
        f a/b
        d a
        l c a
        h d a/b
        f e/f
        d e");
    assert_eq!(written(&index), ["3", "2", "4", "5", "7", "6", "7"]);
    assert!(!index.written_otherwise());
}

#[test]
fn spans_cover_the_layer() {
    let (growing, index) = (grown(), complete());
    assert_eq!(*index.facts(), facts());
    assert_eq!((growing.spans_len(), index.spans_len()), (2, 3));
    let span = |c, following, d, digest| Span {
        compressed: c,
        following,
        decompressed: d,
        digest: [digest; 32],
    };
    let spans = [
        span(ByteRange::new(0, 1000), 3, ByteRange::new(0, 30_000), 1),
        span(ByteRange::new(999, 2000), 0, ByteRange::new(30_000, 60_000), 2),
        span(ByteRange::new(2000, 4000), 0, ByteRange::new(60_000, 90_000), 3),
    ];
    for (i, span) in spans.into_iter().enumerate() {
        assert_eq!(index.span(i), Some(span));
        assert_eq!(growing.span(i), (i < 2).then_some(span));
        assert_eq!(index.checkpoint(i), growing.checkpoint(i));
        for offset in [span.decompressed.start(), span.decompressed.end() - 1] {
            assert_eq!(index.span_at(offset), Some(i));
            assert_eq!(growing.span_at(offset), (i < 2).then_some(i));
        }
    }
    assert_eq!(index.checkpoint(1), Some(checkpoint(1000, 3, 30_000)));
    assert_eq!(
        (index.span(3), index.checkpoint(3), index.span_at(90_000)),
        (None, None, None)
    );
}

#[test]
fn checkpoints_out_of_order_are_refused() {
    let mut index = grown();
    assert!(index.add_checkpoint([0; 32], &checkpoint(2000, 0, 70_000)).is_err());
    assert!(index.add_checkpoint([0; 32], &checkpoint(2001, 0, 59_000)).is_err());
}

#[test]
fn an_index_of_another_layer_or_version_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes = grown().finish(&facts(), [3; 32]);
    std::fs::write(&file, &bytes).unwrap();
    same(&grown(), &LayerIndex::open(file.path(), &facts().digest).unwrap());
    let other = LayerIndex::open(file.path(), &Digest::sha256(b""));
    assert!(matches!(other, Err(IndexError::OtherLayer { .. })));
    let mut other = bytes.clone();
    other[8] = u8::MAX;
    assert!(matches!(
        LayerIndex::from_bytes(other),
        Err(IndexError::Version { found: 255, .. })
    ));
    assert!(matches!(
        LayerIndex::open(&file.path().join("x"), &facts().digest),
        Err(IndexError::Read { .. })
    ));
    std::fs::write(&file, b"").unwrap();
    assert!(matches!(
        LayerIndex::open(file.path(), &facts().digest),
        Err(IndexError::Damaged(_))
    ));
}

/// Asks everything that can be asked; whatever comes is fine, as long as something does.
fn ask(index: &LayerIndex) {
    for id in (0..index.len().min(100)).map(EntryId) {
        if let Some(entry) = index.entry(id) {
            let _ = (entry.xattrs().count(), entry.pieces().count());
        }
        for child in index.children(id) {
            let name = index.entry(child).map(|entry| entry.name.to_vec());
            assert!(child > id);
            index.child(id, &name.unwrap_or_default());
        }
        index.path(id);
    }
    assert!(index.members().count() < 1000);
    index.entries_at(ByteRange::new(0, u64::MAX));
    for i in 0..index.spans_len().min(10) {
        let _ = (index.span(i), index.checkpoint(i));
    }
    index.span_at(12345);
}

#[test]
fn damage_is_noticed() {
    let bytes = grown().finish(&facts(), [3; 32]);
    let windows = complete().windows;
    for i in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[i] ^= 0x10;
        match LayerIndex::from_bytes(damaged) {
            Err(_) => assert!(i < windows.start),
            Ok(index) => {
                assert!(windows.contains(&i));
                assert!((0..3).any(|i| index.checkpoint(i).is_none()));
            }
        }
    }
    for len in 0..bytes.len() {
        assert!(LayerIndex::from_bytes(bytes[..len].to_vec()).is_err());
    }
}

#[test]
fn damage_under_a_right_checksum_does_no_harm() {
    let bytes = grown().finish(&facts(), [3; 32]);
    let windows = complete().windows.start;
    for i in (HEADER_LEN..windows).chain(12..CHECKSUM_AT) {
        for value in [0xff, bytes[i] ^ 0x41] {
            let mut damaged = bytes.clone();
            damaged[i] = value;
            let sum = checksum(&damaged[..windows]).to_le_bytes();
            damaged[CHECKSUM_AT..HEADER_LEN].copy_from_slice(&sum);
            if let Ok(index) = LayerIndex::from_bytes(damaged) {
                ask(&index);
            }
        }
    }
}
