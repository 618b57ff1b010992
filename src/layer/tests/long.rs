//! Spans that are too long to be decoded as a whole.

use super::*;

/// A tar with one file `a` and a small one behind it.
fn one_file(bytes: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in [("a", bytes), ("b", b"the end")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Reads ranges in and out of order, and checks that memory holds few of the decoded bytes.
async fn check(layer: &Arc<Layer>, whole: &[u8], what: &str) {
    let entry = find(layer, "a").await.unwrap().unwrap();
    let mut number = numbers(whole.len());
    let size = whole.len() as u64;
    let mut offsets = vec![0, size - 1, size / 2, (1 << 20) - 1024, (3 << 20) + 1, size - (1 << 20)];
    offsets.extend((0..4).map(|_| number(size)));
    offsets.extend((0..4).map(|i| size / 4 + i * (256 << 10)));
    for offset in offsets {
        let len = number(300_000) as usize;
        let read = layer.read(entry, offset, len).await.unwrap().bytes;
        let end = (offset as usize + len).min(whole.len());
        assert!(read == whole[offset as usize..end], "{what}: {len} bytes from {offset}");
        assert!(layer.workshop.spans.bytes() <= 8 << 20, "{what}");
    }
    assert_eq!(read_all(layer, "b").await, b"the end", "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_spans_are_read_anywhere() {
    let zeros = vec![0; 64 << 20];
    let random = content(0, 0, 20 << 20);
    let text: Vec<u8> = (0u32..2 << 20).flat_map(|i| (i / 3).to_le_bytes()).collect();
    for (what, bytes, compress) in [
        ("zeros in gzip", &zeros, gzip as fn(&[u8]) -> Vec<u8>),
        ("one block of gzip", &random, |tar| sample::gzip_at(1, tar)),
        ("zeros in zstd", &zeros, |tar| sample::zstd_frames(tar, usize::MAX)),
        ("random bytes in zstd", &random, |tar| {
            sample::zstd_frames(tar, usize::MAX)
        }),
        ("something like text in zstd", &text, |tar| {
            sample::zstd_frames(tar, usize::MAX)
        }),
    ] {
        let tar = one_file(bytes);
        let sample = Sample::new(&tar, compress(&tar));
        let layer = sample.open_with(&sample::store(sample.dir.path()), 8 << 20);
        check(&layer, bytes, &format!("{what}, growing")).await;
        let index = layer.complete().await.unwrap();
        let longest = (0..index.spans_len())
            .map(|i| index.span(i).unwrap().decompressed.len())
            .max();
        assert!(longest > Some(spans::LONG_SPAN), "{what}: {longest:?}");
        check(&layer, bytes, &format!("{what}, complete")).await;
        assert_eq!(
            sample.source.cost().1,
            sample.blob.len() as u64,
            "{what}: each byte once"
        );

        // With a store that keeps nothing on disk, and with one that has lost the decoded pieces.
        let layer = sample.open_with(&Store::open(sample.dir.path(), 0), 8 << 20);
        check(&layer, bytes, &format!("{what}, with nothing kept")).await;
        let layer = sample.open_with(&sample::store(sample.dir.path()), 8 << 20);
        layer.decoded.forget();
        check(&layer, bytes, &format!("{what}, with pieces lost")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growing_long_span_is_read_without_a_store() {
    let random = content(0, 0, 20 << 20);
    let tar = one_file(&random);
    let sample = Sample::new(&tar, sample::zstd_frames(&tar, usize::MAX));
    let layer = sample.open_with(&Store::open(sample.dir.path(), 0), 8 << 20);
    check(&layer, &random, "growing, with nothing kept").await;
}
