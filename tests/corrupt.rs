//! Layers that are not what their digests say.

use std::fs;
use std::io::Read;

use crate::support::fixtures::Served;
use crate::support::*;

fn noise(seed: u64) -> Content {
    Content::Noise { seed, size: 2_000_000 }
}

/// Two layers; the upper one, which the tests spoil, uncompressed, so that nothing but the digest can tell.
fn image() -> ImageBuilder {
    ImageBuilder::of([
        Layer::of([Entry::dir("good"), Entry::file("good/file", noise(1))]),
        Layer::of([
            Entry::dir("bad"),
            Entry::file("bad/file", noise(2)),
            Entry::file("bad/last", noise(3)),
        ])
        .compressed(Compression::None),
    ])
}

/// A scan of layer 1 fails as an I/O error, and both the log and the status say why in these words.
#[track_caller]
fn assert_refused(mount: &Mount, served: &Served, word: &str) {
    let output = attempt("ls", &[mount.path("layers/1/bad")]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("Input/output error"),
        "{said}"
    );
    let status = mount.status();
    let reason = status.layers[1].last_error.clone().unwrap_or_default();
    assert!(reason.contains(word), "status: {reason:?}");
    assert!(status.last_error.unwrap_or_default().contains(word));
    assert!(status.layers[0].last_error.is_none());
    assert_eq!(status.layers[1].index, "failed");
    let log = mount.log();
    let short = &served.image.layers[1].digest.hex()[..12];
    assert!(
        log.lines().any(|line| line.contains(word) && line.contains(short)),
        "log: {log}"
    );
    // The rest of that layer is refused too, from now on; the other layer is not.
    for path in ["layers/1/bad/file", "layers/1/bad/last", "bad/file"] {
        let output = mount.cat(path);
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("Input/output error"),
            "{path}: {output:?}"
        );
    }
    assert_eq!(mount.read("layers/0/good/file").len(), 2_000_000);
}

#[test]
fn a_layer_that_does_not_match_its_digest_is_an_error_and_nothing_is_kept() {
    let served = Served::made(&image());
    let layer = &served.image.layers[1];
    served.registry.faults().flip(&layer.digest, layer.size / 3);
    let cache = tempfile::tempdir().unwrap();
    let mount = Mount::of(served.reference()).cache(cache.path()).start();
    assert_refused(&mount, &served, "digest");
    mount.unmount();

    // Had a byte of it been kept, it would now be found.
    served.registry.faults().clear();
    let mount = Mount::of(served.reference()).cache(cache.path()).start();
    let mut archive = tar::Archive::new(layer.tar().unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = format!(
            "layers/1/{}",
            String::from_utf8(entry.path_bytes().into_owned()).unwrap()
        );
        let mut expected = Vec::new();
        entry.read_to_end(&mut expected).unwrap();
        if entry.header().entry_type().is_file() {
            assert!(mount.read(&path) == expected, "{path}");
        }
    }
    run("ls", &[mount.path("layers/1/bad")]);
    assert_eq!(mount.status().layers[1].index, "complete");
}

#[test]
fn a_stream_that_does_not_match_its_diff_id_is_an_error() {
    let served = Served::made(&image().wrong_diff_id(1));
    let mount = Mount::of(served.reference()).start();
    assert_refused(&mount, &served, "DiffID");
}

#[test]
fn fifos_in_the_place_of_what_was_kept_keep_nobody_waiting() {
    let served = Served::made(&image());
    let cache = tempfile::tempdir().unwrap();
    let read = || {
        let mount = Mount::of(served.reference()).cache(cache.path()).start();
        run("ls", &["-R".into(), mount.path("")]);
        assert_eq!(mount.read("good/file").len(), 2_000_000);
        assert_eq!(mount.read("bad/last").len(), 2_000_000);
        mount.unmount();
    };
    read();
    let script = "find \"$0\" -type f -exec rm {} ';' -exec mkfifo {} ';' -print";
    let replaced = run("sh", &["-c".as_ref(), script.as_ref(), cache.path().as_os_str()]);
    assert!(replaced.iter().filter(|byte| **byte == b'\n').count() > 5);
    read();
    read();
}

#[test]
fn a_broken_gzip_stream_is_an_error() {
    let broken = ImageBuilder::of([
        Layer::of([Entry::dir("good"), Entry::file("good/file", noise(1))]),
        Layer::of([
            Entry::dir("bad"),
            Entry::file("bad/file", noise(2)),
            Entry::file("bad/last", noise(3)),
        ]),
    ]);
    let served = Served::made(&broken);
    let layer = &served.image.layers[1];
    for offset in layer.size / 2..layer.size / 2 + 64 {
        served.registry.faults().flip(&layer.digest, offset);
    }
    let mount = Mount::of(served.reference()).start();
    let output = attempt("ls", &[mount.path("layers/1/bad")]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Input/output error"),
        "{output:?}"
    );
    assert!(mount.status().layers[1].last_error.is_some());
    assert_eq!(mount.read("layers/0/good/file").len(), 2_000_000);
}

#[test]
fn a_range_of_an_indexed_layer_is_checked_before_it_is_served() {
    let served = Served::made(&image());
    let cache = tempfile::tempdir().unwrap();
    // The index stays; of the layer's bytes no more than fits.
    let mount = || {
        Mount::of(served.reference())
            .cache(cache.path())
            .with(["--cache-size", "64K"])
    };
    mount().with(["--index"]).start().unmount();
    let layer = &served.image.layers[1];
    let (start, _) = layer.compressed_range_of("bad/file").unwrap();
    served.registry.faults().flip(&layer.digest, start + 100_000);
    let mount = mount().start();
    let output = mount.cat("layers/1/bad/file");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Input/output error"),
        "{}",
        output.status
    );
    assert!(noise(2).bytes().starts_with(&output.stdout), "wrong bytes were served");
    assert!(mount.status().layers[1].last_error.is_some());
}

#[test]
fn a_manifest_or_config_that_does_not_match_its_digest_does_not_mount() {
    let served = Served::made(&image());
    let by_digest = served
        .reference()
        .replace(":latest", &format!("@{}", served.image.manifest));
    let blobs = served.image.layout.join("blobs/sha256");
    let manifest = blobs.join(served.image.manifest.hex());
    let whole = fs::read(&manifest).unwrap();
    let mut spoiled = whole.clone();
    spoiled.push(b' ');
    fs::write(&manifest, spoiled).unwrap();
    let failure = Mount::of(by_digest).try_start().err().expect("a refusal");
    assert!(failure.said.contains("digest"), "{failure}");
    fs::write(&manifest, &whole).unwrap();

    let document: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    served
        .registry
        .faults()
        .flip(&document["config"]["digest"].as_str().unwrap().parse().unwrap(), 20);
    let failure = Mount::of(served.reference()).try_start().err().expect("a refusal");
    assert!(failure.said.contains("digest"), "{failure}");
}
