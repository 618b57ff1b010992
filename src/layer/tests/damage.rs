//! Bytes that are not what they should be, or do not come.

use super::*;

const TEXT: &str = "f a 400000\nf b 400000\nf c 400000";

/// Files anywhere below a directory.
fn files(dir: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

fn extents(sample: &Sample) -> usize {
    files(&sample.dir.path().join("store/extents")).len()
}

/// Asks for what is at the end, several times at once.
async fn refused(sample: &Sample, layer: &Arc<Layer>) {
    let (one, other, all) = tokio::join!(find(layer, "x"), find(layer, "y"), layer.complete());
    for error in [one.unwrap_err(), other.unwrap_err(), all.map(drop).unwrap_err()] {
        assert!(matches!(*error, LayerError::Corrupt { .. }), "{error}");
    }
    assert!(find(layer, "a").await.is_err(), "nothing of it is served any more");
    assert_eq!(layer.status().index, IndexState::Failed);
    eventually(|| extents(sample) == 0).await;
    assert_eq!(sample.indexes(), [""; 0]);
}

#[tokio::test]
async fn a_wrong_digest_is_noticed_and_nothing_kept() {
    let sample = Sample::parse(TEXT);
    let mut descriptor = sample.descriptor();
    descriptor.digest = Digest::sha256(b"something else");
    let workshop = Arc::new(Workshop::new(64 << 20, false));
    let layer = sample::layer(0, descriptor, sample.dir.path(), &workshop);
    assert!(find(&layer, "a").await.unwrap().is_some(), "as yet unverified");
    refused(&sample, &layer).await;
}

#[tokio::test]
async fn a_wrong_diff_id_is_noticed_and_nothing_kept() {
    let mut sample = Sample::parse(TEXT);
    sample.diff_id = Digest::sha256(b"something else");
    refused(&sample, &sample.open()).await;
}

#[tokio::test]
async fn damage_is_noticed_and_nothing_kept() {
    let tar = tar(0, &lines(TEXT));
    let gzip = gzip(&tar);
    let mut cut = gzip.clone();
    cut.truncate(gzip.len() / 2);
    let mut flipped = gzip.clone();
    flipped[600_000] ^= 1;
    let mut header = tar.clone();
    header[1] ^= 1;
    for blob in [
        cut,
        flipped,
        sample::gzip(&header),
        sample::gzip(&tar[..tar.len() / 2]),
        b"not a tar at all".to_vec(),
    ] {
        let sample = Sample::new(&tar, blob);
        refused(&sample, &sample.open()).await;
    }
}

#[tokio::test]
async fn a_failed_fetch_fails_the_questions_and_the_next_goes_on() {
    let sample = Sample::parse(TEXT);
    let layer = sample.open();
    sample.source.break_from(900_000);
    assert!(find(&layer, "a").await.unwrap().is_some());
    let (one, other) = tokio::join!(find(&layer, "x"), find(&layer, "y"));
    for error in [one.unwrap_err(), other.unwrap_err()] {
        assert!(matches!(*error, LayerError::Blob { .. }), "{error}");
    }
    assert!(find(&layer, "b").await.unwrap().is_some(), "what is known is known");
    sample.source.break_from(u64::MAX);
    assert!(find(&layer, "x").await.unwrap().is_none());
    assert_eq!(read_all(&layer, "c").await, content(0, 2, 400_000));
}

#[tokio::test]
async fn a_span_that_changed_is_fetched_once_more_and_then_refused() {
    for text in ["f a 3000000", "f a 3000000\nf b 3000000"] {
        let tar = tar(0, &lines(text));
        for blob in [gzip(&tar), sample::zstd_frames(&tar, usize::MAX)] {
            let sample = Sample::new(&tar, blob);
            sample.open().complete().await.unwrap();
            // Another cache for the bytes, and a registry that lies.
            let store = Store::open(&sample.dir.path().join("other"), 1 << 30);
            let mut lie = sample.blob.clone();
            lie[1_000_000] ^= 1;
            sample.source.replace(lie);
            let layer = sample.open_with(&store, 1 << 20);
            let entry = find(&layer, "a").await.unwrap().unwrap();
            let before = sample.source.cost().0;
            let error = layer.read(entry, 900_000, 300_000).await.unwrap_err();
            assert!(matches!(*error, LayerError::Corrupt { .. }), "{error}");
            assert!(sample.source.cost().0 >= before + 2, "it was tried again");
            // The truth is believed again.
            sample.source.replace(sample.blob.clone());
            assert_eq!(read_all(&layer, "a").await, content(0, 0, 3_000_000));
        }
    }
}

#[tokio::test]
async fn a_damaged_index_is_made_anew() {
    let sample = Sample::parse(TEXT);
    sample.open().complete().await.unwrap();
    let path = sample.dir.path().join("index").join(&sample.indexes()[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[300] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let layer = sample.open();
    assert!(layer.index().is_none());
    assert_eq!(read_all(&layer, "c").await, content(0, 2, 400_000));
    layer.complete().await.unwrap();
    assert!(sample.open().index().is_some());
}

/// The windows are not verified when an index is opened, only when they are used.
#[tokio::test]
async fn an_index_with_a_damaged_window_is_made_anew() {
    let sample = Sample::parse("f a 6000000");
    sample.open().complete().await.unwrap();
    let path = sample.dir.path().join("index").join(&sample.indexes()[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    let windows = bytes.len() - 40_000;
    bytes[windows..].iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(&path, bytes).unwrap();
    let layer = sample.open();
    let entry = find(&layer, "a").await.unwrap().unwrap();
    let read = layer.read(entry, 5_900_000, 10).await.unwrap();
    assert_eq!(read.bytes, content(0, 0, 6_000_000)[5_900_000..5_900_010]);
    layer.complete().await.unwrap();
    let layer = sample.open();
    assert!(layer.index().is_some(), "a sound one is kept");
    assert_eq!(read_all(&layer, "a").await, content(0, 0, 6_000_000));
    assert_eq!(sample.source.cost().1, sample.blob.len() as u64, "each byte once");
}
