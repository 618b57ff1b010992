//! What every listing and every read goes through, by itself: `cargo bench`.

#[path = "../support/image.rs"]
#[allow(dead_code, reason = "the images here need only some of what tests do")]
mod image;

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use image::{Content, Entry, ImageBuilder, Layer};
use peelfs::digest::Digest;
use peelfs::image::Access;
use peelfs::image::reference::Reference;
use peelfs::index::{Entries as _, GrowingIndex, LayerFacts, LayerIndex, TarScanner};
use peelfs::stream::{Compression, Decoder, Status};
use peelfs::tree::{self, Ino, Settings, Tree};

/// Files of the layer that is scanned, each of 2 KiB, 100 to a directory.
const FILES: usize = 20_000;

/// Distance of checkpoints, as a scan has them.
const SPAN: u64 = 1 << 20;

/// Where things are made.
static PLACE: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

/// A gzip layer, and the tar that it is.
static LAYER: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let directory = |number: usize| format!("usr/share/{number:03}");
    let file = |number: usize| {
        let content = Content::noise(number as u64, 2048);
        Entry::file(format!("{}/file-{number}", directory(number / 100)), content)
    };
    let directories = (0..FILES / 100).map(|number| Entry::dir(directory(number)));
    let layer = Layer::of(directories.chain((0..FILES).map(file)));
    let layout = PLACE.path().join("layer");
    let image = ImageBuilder::of([layer])
        .write(&layout, "latest")
        .expect("it is written");
    let blob = std::fs::read(layout.join("blobs/sha256").join(image.layers[0].digest.hex())).expect("it is there");
    let mut tar = Vec::new();
    std::io::copy(&mut image.layers[0].tar().expect("a layer"), &mut tar).expect("a tar");
    (blob, tar)
});

/// The index of that layer, as it is on disk.
static INDEX: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (blob, tar) = &*LAYER;
    let facts = LayerFacts {
        digest: Digest::sha256(blob),
        diff_id: Digest::sha256(tar),
        compression: Compression::Gzip,
        compressed_size: blob.len() as u64,
        decompressed_size: tar.len() as u64,
    };
    scanned(tar).finish(&facts, [0; 32])
});

fn scanned(tar: &[u8]) -> GrowingIndex {
    let (mut scanner, mut index) = (TarScanner::new(), GrowingIndex::new());
    for piece in tar.chunks(128 << 10) {
        scanner.feed(piece, &mut index).expect("a sound tar");
    }
    index
}

/// How many checkpoints were made, one for each `distance`.
fn inflated(blob: &[u8], distance: u64) -> usize {
    let mut decoder = Decoder::new(Compression::Gzip).expect("memory");
    let (mut at, mut last, mut checkpoints) = (0, 0, 0);
    let mut out = Vec::with_capacity(128 << 10);
    loop {
        out.clear();
        let due = decoder.decompressed() >= last + distance;
        let decoded = decoder
            .decode(&blob[at..], &mut out, 128 << 10, due)
            .expect("a sound blob");
        at += decoded.consumed;
        match decoded.status {
            Status::Boundary => {
                last = decoder.decompressed();
                checkpoints += usize::from(black_box(decoder.checkpoint()).is_some());
            }
            Status::NeedsInput if at == blob.len() => return checkpoints,
            _ => {}
        }
    }
}

#[divan::bench]
fn inflate(bencher: Bencher) {
    let (blob, tar) = &*LAYER;
    bencher
        .counter(BytesCount::new(tar.len()))
        .bench(|| inflated(blob, u64::MAX / 2));
}

#[divan::bench]
fn inflate_with_checkpoints(bencher: Bencher) {
    let (blob, tar) = &*LAYER;
    assert!(inflated(blob, SPAN) > 10);
    bencher
        .counter(BytesCount::new(tar.len()))
        .bench(|| inflated(blob, SPAN));
}

#[divan::bench]
fn scan_of_the_tar(bencher: Bencher) {
    let (_, tar) = &*LAYER;
    bencher
        .counter(BytesCount::new(tar.len()))
        .counter(ItemsCount::new(FILES))
        .bench(|| scanned(tar));
}

#[divan::bench]
fn open_of_an_index(bencher: Bencher) {
    let path = PLACE.path().join("index");
    std::fs::write(&path, &*INDEX).expect("a file");
    let digest = Digest::sha256(&LAYER.0);
    bencher.bench(|| LayerIndex::open(&path, &digest).expect("a sound index"));
}

#[divan::bench]
fn lookup_in_an_index(bencher: Bencher) {
    let index = LayerIndex::from_bytes(INDEX.clone()).expect("a sound index");
    let mut next = (0..FILES).cycle().step_by(7919);
    let lookup = |number: usize| {
        let path = format!("usr/share/{:03}/file-{number}", number / 100);
        let mut names = path.split('/');
        names.try_fold(peelfs::index::EntryId::ROOT, |at, name| {
            index.child(at, name.as_bytes())
        })
    };
    bencher
        .counter(ItemsCount::new(1usize))
        .with_inputs(|| next.next().unwrap_or_default())
        .bench_local_values(|number| lookup(number).expect("it is there"));
}

/// An image of so many layers, all of whose indexes are known; each has a file of its own in one directory.
fn overlay(layers: usize, runtime: &tokio::runtime::Runtime) -> Arc<Tree> {
    let place = PLACE.path().join(format!("overlay-{layers}"));
    let layer = |number: usize| Layer::of([Entry::dir("d"), Entry::file(format!("d/{number}"), "x".repeat(100))]);
    let layout = place.join("layout");
    let built = ImageBuilder::of((0..layers).map(layer)).write(&layout, "latest");
    built.expect("it is written");
    let settings = settings(&place.join("cache"));
    let reference: Reference = format!("oci:{}", layout.display()).parse().expect("a reference");
    let opened = runtime.block_on(tree::open(&reference, &settings)).expect("an image");
    runtime.block_on(opened.tree.index_all()).expect("sound layers");
    opened.tree
}

fn settings(cache_dir: &Path) -> Settings {
    Settings {
        cache_dir: cache_dir.to_owned(),
        cache_size: 1 << 30,
        memory: 32 << 20,
        platform: None,
        insecure: false,
        offline: false,
        timeout: Duration::from_secs(30),
        access: Access::default(),
        verify_first: false,
        layers_dir: None,
    }
}

/// The file of the bottom layer, which all others must be asked for first.
#[divan::bench(args = [1, 10, 100])]
fn lookup_through_layers(bencher: Bencher, layers: usize) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let tree = overlay(layers, &runtime);
    let directory = runtime.block_on(tree.lookup(Ino::ROOT, b"d"));
    let directory = directory.expect("sound layers").expect("it is there");
    // As the kernel does with what it knows.
    tree.hold(&directory);
    bencher.bench(|| {
        let found = runtime.block_on(tree.lookup(directory.ino, black_box(b"0")));
        found.expect("sound layers").expect("it is there")
    });
}

fn main() {
    divan::main();
}
