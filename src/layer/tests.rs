//! Layers on their own: what a question costs, any range of any file, and what happens when bytes are not what they
//! should be.

mod damage;
mod long;
mod reading;
mod sparse;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::sample::{self, Source, content, gzip, lines, tar};
use super::*;
use crate::blob::Store;

/// A layer whose blob is in memory.
struct Sample {
    dir: TempDir,
    blob: Vec<u8>,
    diff_id: Digest,
    source: Arc<Source>,
}

impl Sample {
    fn new(tar: &[u8], blob: Vec<u8>) -> Sample {
        Sample {
            dir: tempfile::tempdir().unwrap(),
            diff_id: Digest::sha256(tar),
            source: Source::new(blob.clone()),
            blob,
        }
    }

    /// A gzip layer, whose files hold [`content`].
    fn parse(text: &str) -> Sample {
        let tar = tar(0, &lines(text));
        Sample::new(&tar, gzip(&tar))
    }

    fn descriptor(&self) -> LayerDescriptor {
        sample::descriptor(&self.blob, Some(self.diff_id), self.source.clone())
    }

    /// A fresh mount of it.
    fn open(&self) -> Arc<Layer> {
        self.open_with(&sample::store(self.dir.path()), 64 << 20)
    }

    fn open_with(&self, store: &Store, memory: usize) -> Arc<Layer> {
        let workshop = Arc::new(Workshop::new(memory, false));
        sample::layer_in(0, self.descriptor(), store, self.dir.path(), &workshop)
    }

    /// Names of the files in the directory of indexes.
    fn indexes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("index")).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        entries.map(name).collect()
    }
}

/// Waits for `name` in the root of the layer.
async fn find(layer: &Arc<Layer>, name: &str) -> Result<Option<EntryId>, Arc<LayerError>> {
    let wanted = name.as_bytes().to_vec();
    layer
        .ask(
            Want::Little,
            || name.to_owned(),
            move |view| match view.entries().child(EntryId::ROOT, &wanted) {
                Some(entry) => Some(Some(entry)),
                None => view.complete().then_some(None),
            },
        )
        .await
}

async fn read_all(layer: &Arc<Layer>, name: &str) -> Vec<u8> {
    let entry = find(layer, name).await.unwrap().unwrap();
    let size = layer.glance(|view| view.entries().entry(entry).unwrap().size).unwrap();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < size {
        let read = layer.read(entry, bytes.len() as u64, 128 << 10).await.unwrap();
        assert!(!read.bytes.is_empty());
        bytes.extend_from_slice(&read.bytes);
    }
    bytes
}

/// Numbers that are the same in every run.
fn numbers(seed: usize) -> impl FnMut(u64) -> u64 {
    let bytes = content(99, seed, 1 << 16);
    let mut at = 0;
    move |below| {
        at = (at + 8) % (bytes.len() - 8);
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) % below.max(1)
    }
}

/// Waits, without knowing when, for something that is sure to happen soon.
async fn eventually(mut is: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not happen");
}

#[tokio::test]
async fn a_lookup_costs_little_more_than_what_is_before_it() {
    for before in [0, 100_000, 400_000, 3_000_000] {
        let sample = Sample::parse(&format!("f a {before}\nf b 10\nf c 9000000"));
        let layer = sample.open();
        find(&layer, "b").await.unwrap().unwrap();
        let most = (2 * (before as u64 + 4096)).max(64 << 10);
        let (_, cost) = sample.source.cost();
        assert!(cost <= most, "{before} bytes before it cost {cost}");
        assert_eq!(read_all(&layer, "b").await, content(0, 1, 10));
        assert_eq!(sample.source.cost().1, cost, "the content came with it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_at_once_share_one_scan() {
    let sample = Sample::parse("f a 1000000\nf b 1000000\nf c");
    let layer = sample.open();
    let (a, b, c, none) = tokio::join!(
        find(&layer, "c"),
        find(&layer, "b"),
        find(&layer, "c"),
        find(&layer, "x")
    );
    assert_eq!(a.unwrap(), c.unwrap());
    assert!(b.unwrap().is_some() && none.unwrap().is_none());
    assert_eq!(sample.source.cost().1, sample.blob.len() as u64, "each byte once");
}

#[tokio::test]
async fn a_watcher_does_not_have_a_layer_scanned() {
    let sample = Sample::parse("f a\nf b");
    let layer = sample.open();
    let watch = layer.ask(Want::ToWatch, String::new, |view| view.complete().then_some(()));
    tokio::pin!(watch);
    assert!(futures_util::poll!(&mut watch).is_pending());
    tokio::task::yield_now().await;
    assert_eq!(sample.source.cost().0, 0);
    layer.complete().await.unwrap();
    watch.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_go_away_leave_nothing_behind() {
    let sample = Sample::parse("f a 3000000");
    let layer = sample.open();
    layer.complete().await.unwrap();
    let layer = sample.open_with(&sample::store(sample.dir.path()), 64 << 20);
    let entry = find(&layer, "a").await.unwrap().unwrap();
    for _ in 0..10 {
        let read = layer.read(entry, 0, 1 << 20);
        tokio::pin!(read);
        let _ = futures_util::poll!(&mut read);
    }
    eventually(|| layer.workshop.spans.is_idle()).await;
    assert_eq!(read_all(&layer, "a").await, content(0, 0, 3_000_000));
}

/// Compressed bytes before the scan is given up and taken up again by another mount.
#[tokio::test]
async fn a_new_mount_goes_on_with_a_scan() {
    let text = "f a 3000000\nf b 3000000\nf c 3000000\nd d\nf d/e";
    let whole = Sample::parse(text);
    let whole = whole.open().complete().await.unwrap();
    for first in ["a", "b", "c"] {
        let sample = Sample::parse(text);
        let layer = sample.open();
        let number = find(&layer, first).await.unwrap();
        let entry = number.unwrap();
        layer.read(entry, 2_000_000, 1000).await.unwrap();
        let weak = Arc::downgrade(&layer);
        drop(layer);
        eventually(|| weak.strong_count() == 0).await;

        let layer = sample.open();
        assert_eq!(find(&layer, first).await.unwrap(), number);
        let begun = layer.glance(|view| view.compressed()).unwrap();
        assert!(begun > 1_000_000, "it starts at {begun}, not at the front");
        assert_eq!(read_all(&layer, "b").await, content(0, 1, 3_000_000));
        let index = layer.complete().await.unwrap();
        assert_eq!(index.facts(), whole.facts());
        assert_eq!(index.spans_len(), whole.spans_len());
        for i in 0..whole.spans_len() {
            assert_eq!(
                (index.span(i), index.checkpoint(i)),
                (whole.span(i), whole.checkpoint(i))
            );
        }
        let names = |index: &LayerIndex| -> Vec<_> { (0..index.len()).map(|id| index.path(EntryId(id))).collect() };
        assert_eq!(names(&index), names(&whole));
        assert_eq!(sample.source.cost().1, sample.blob.len() as u64, "each byte once");
        assert_eq!(
            sample.indexes().len(),
            1,
            "the log of the scan is gone: {:?}",
            sample.indexes()
        );
    }
}
