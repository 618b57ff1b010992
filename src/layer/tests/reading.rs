//! Any range of any file, however the layer is compressed, complete or not.

use super::*;

const TEXT: &str = "f small 1000\nf empty 0\nf large 5000000\nd d\nf d/x 10\nf last 300000";

fn formats() -> Vec<(&'static str, Vec<u8>)> {
    let tar = tar(0, &lines(TEXT));
    let mut padded = gzip(&tar);
    padded.extend([0; 700]);
    // A span is closed only after so much output, so this one has more compressed bytes than are read at once.
    let (front, back) = tar.split_at(2_500_000);
    let hollow = [gzip(front), gzip(&[]).repeat(300_000), gzip(back)].concat();
    vec![
        ("gzip", gzip(&tar)),
        ("gzip of one block", sample::gzip_at(1, &tar)),
        ("gzip with padding", padded),
        ("gzip with 6 MB of empty members", hollow),
        ("gzip of many members", sample::gzip_members(&tar, 300_000)),
        ("gzip of many small members", sample::gzip_members(&tar, 5_000)),
        ("zstd of one frame", sample::zstd_frames(&tar, usize::MAX)),
        ("zstd of many frames", sample::zstd_frames(&tar, 700_000)),
        ("zstd of many small frames", sample::zstd_frames(&tar, 10_000)),
        ("plain", tar),
    ]
}

async fn check_ranges(layer: &Arc<Layer>, format: &str, seed: usize) {
    let mut number = numbers(seed);
    for (line, name, size) in [
        (2, "large", 5_000_000),
        (0, "small", 1000),
        (5, "last", 300_000),
        (1, "empty", 0),
    ] {
        let entry = find(layer, name).await.unwrap().unwrap();
        let whole = content(0, line, size as usize);
        for _ in 0..12 {
            let most = [10, 200_000, 1 << 20][number(3) as usize];
            let (offset, len) = (number(size + 2), number(most));
            let read = layer.read(entry, offset, len as usize).await.unwrap().bytes;
            let range = offset.min(size) as usize..(offset + len).min(size) as usize;
            assert_eq!(
                read,
                whole[range.start.min(range.end)..range.end],
                "{format}: {len} of {name} from {offset}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_range_of_any_file() {
    let tar = tar(0, &lines(TEXT));
    for (format, blob) in formats() {
        let sample = Sample::new(&tar, blob);
        let layer = sample.open();
        check_ranges(&layer, &format!("{format}, growing"), 1).await;
        layer.complete().await.unwrap();
        check_ranges(&layer, &format!("{format}, complete"), 2).await;
        // From the disk alone, with hardly any memory.
        let layer = sample.open_with(&sample::store(sample.dir.path()), 1);
        assert!(layer.index().is_some(), "{format}: the index was kept");
        check_ranges(&layer, &format!("{format}, remounted"), 3).await;
        assert_eq!(
            sample.source.cost().1,
            sample.blob.len() as u64,
            "{format}: each byte once"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_at_once() {
    let tar = tar(0, &lines(TEXT));
    for (format, blob) in formats() {
        let sample = Sample::new(&tar, blob);
        let layer = sample.open();
        let readers = (0..4).map(|seed| {
            let layer = layer.clone();
            tokio::spawn(async move { check_ranges(&layer, format, seed).await })
        });
        for reader in readers.collect::<Vec<_>>() {
            reader.await.unwrap();
        }
        layer.complete().await.unwrap();
        assert_eq!(
            sample.source.cost().1,
            sample.blob.len() as u64,
            "{format}: each byte once"
        );
    }
}

#[tokio::test]
async fn nothing_behind_the_last_span_of_a_file_is_read_ahead() {
    let sample = Sample::parse("f a 3000000\nf b 20000000");
    let layer = sample.open();
    let index = layer.complete().await.unwrap();
    layer.blob.forget();
    let before = sample.source.cost().1;
    let layer = sample.open_with(&Store::open(&sample.dir.path().join("other"), 1 << 30), 64 << 20);
    assert_eq!(read_all(&layer, "a").await, content(0, 0, 3_000_000));
    let entry = find(&layer, "a").await.unwrap().unwrap();
    let end = layer
        .glance(|view| view.entries().entry(entry).unwrap().data.end())
        .unwrap();
    let last = index.span(index.span_at(end - 1).unwrap()).unwrap();
    eventually(|| layer.workshop.spans.is_idle()).await;
    let cost = sample.source.cost().1 - before;
    assert!(cost <= last.compressed.end(), "{cost} of {:?}", last.compressed);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_spans_of_a_read_are_asked_for_at_once() {
    let sample = Sample::parse("f a 3000000\nf b 20000000");
    let index = sample.open().complete().await.unwrap();
    let layer = sample.open_with(&Store::open(&sample.dir.path().join("other"), 1 << 30), 64 << 20);
    let entry = find(&layer, "a").await.unwrap().unwrap();
    let end = index.entry(entry).unwrap().data.end();
    let last = index.span(index.span_at(end - 1).unwrap()).unwrap();
    assert!(last.compressed.start() > 0, "it takes several spans");
    let before = sample.source.cost().1;
    sample.source.hold(true);
    let reader = tokio::spawn({
        let layer = layer.clone();
        async move { layer.read(entry, 0, 3_000_000).await.unwrap().bytes }
    });
    let asked = || sample.source.cost().1 - before;
    eventually(|| asked() >= last.compressed.end()).await;
    sample.source.hold(false);
    assert!(reader.await.unwrap() == content(0, 0, 3_000_000));
    eventually(|| layer.workshop.spans.is_idle()).await;
    assert_eq!(asked(), last.compressed.end(), "each byte once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_is_decoded_ahead_of_who_reads_one_file_after_the_other() {
    let text: String = (0..100).map(|i| format!("f {i} 100000\n")).collect();
    let sample = Sample::parse(&text);
    let index = sample.open().complete().await.unwrap();
    let span_of = async |layer: &Arc<Layer>, name: &str| {
        let entry = index.entry(find(layer, name).await.unwrap().unwrap()).unwrap();
        index.span(index.span_at(entry.data.end() - 1).unwrap()).unwrap()
    };
    // These four are in one or two spans, and 1 MiB behind them begins another.
    for (names, ahead) in [
        (["3", "4", "5", "6"], true),
        (["6", "3", "5", "4"], false),
        (["3", "40", "5", "60"], false),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let layer = sample.open_with(&Store::open(cache.path(), 1 << 30), 64 << 20);
        for name in names {
            assert_eq!(read_all(&layer, name).await, content(0, name.parse().unwrap(), 100_000));
        }
        let behind = span_of(&layer, "20").await.decompressed.start();
        assert!(behind > span_of(&layer, "6").await.decompressed.end());
        let known = |start| layer.workshop.spans.get(layer.key, start).is_some();
        if ahead {
            eventually(|| known(behind)).await;
        }
        eventually(|| layer.workshop.spans.is_idle()).await;
        assert_eq!(known(behind), ahead, "{names:?}");
        assert!(!known(span_of(&layer, "90").await.decompressed.start()));
    }
}

#[tokio::test]
async fn a_blob_without_a_byte_is_an_empty_layer() {
    let sample = Sample::new(b"", Vec::new());
    assert_eq!(sample.open().complete().await.unwrap().len(), 1);
    assert_eq!(find(&sample.open(), "a").await.unwrap(), None);
}

/// With `--verify=full` not even a root's attributes come from bytes that nobody has checked.
#[tokio::test]
async fn nothing_unverified_is_shown_if_asked_so() {
    let sample = Sample::parse("d ./\nf a\nf b 3000000");
    let workshop = Arc::new(Workshop::new(1 << 20, true));
    let layer = sample::layer(0, sample.descriptor(), sample.dir.path(), &workshop);
    let root = |layer: &Layer| {
        layer
            .glance(|view| view.entries().entry(EntryId::ROOT).unwrap().implied)
            .unwrap()
    };
    assert!(root(&layer));
    find(&layer, "a").await.unwrap().unwrap();
    assert!(layer.index().is_some() && !root(&layer));
}
