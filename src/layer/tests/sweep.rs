//! Blobs cut or flipped anywhere: right bytes or an error, never wrong bytes, and never "there is no such file".

use super::*;

/// Files of a layer and what they hold.
const TINY: &str = "f a 100\nf b 700\nf c 20";
const LARGE: &str = "f a 1500000\nf b 1200000\nf c 20";

struct Kind {
    name: &'static str,
    blob: Vec<u8>,
}

fn kinds(tar: &[u8]) -> Vec<Kind> {
    let members = tar.len() / 5;
    [
        ("plain", tar.to_vec()),
        ("gzip", gzip(tar)),
        ("stored gzip", sample::gzip_at(0, tar)),
        ("gzip members", sample::gzip_members(tar, members)),
        ("zstd", sample::zstd_frames(tar, usize::MAX)),
        ("zstd frames", sample::zstd_frames(tar, members)),
    ]
    .map(|(name, blob)| Kind { name, blob })
    .into()
}

/// The files of `text` by name.
fn files(text: &str) -> Vec<(String, Vec<u8>)> {
    let file = |(number, line): (usize, &sample::Line)| match line.what {
        sample::What::File(len) => (line.path.clone(), content(0, number, len)),
        _ => panic!("only files"),
    };
    lines(text).iter().enumerate().map(file).collect()
}

/// Reads a file of which all that comes must be right.
async fn right_or_error(
    layer: &Arc<Layer>,
    (name, expected): &(String, Vec<u8>),
    what: &str,
) -> Result<(), Arc<LayerError>> {
    let entry = find(layer, name).await?;
    let entry = entry.unwrap_or_else(|| panic!("{what}: {name} is there"));
    let mut bytes = Vec::new();
    while bytes.len() < expected.len() {
        let read = layer.read(entry, bytes.len() as u64, 128 << 10).await?;
        assert!(!read.bytes.is_empty(), "{what}: {name} is short");
        bytes.extend_from_slice(&read.bytes);
        assert!(expected.starts_with(&bytes), "{what}: {name} has wrong bytes");
    }
    Ok(())
}

/// All questions about it are errors that say that it is corrupt.
async fn refused(layer: &Arc<Layer>, what: &str) {
    let error = layer
        .complete()
        .await
        .err()
        .unwrap_or_else(|| panic!("{what}: it was believed"));
    assert!(matches!(*error, LayerError::Corrupt { .. }), "{what}: {error}");
    for name in ["a", "c", "x"] {
        assert!(find(layer, name).await.is_err(), "{what}: {name} after the refusal");
    }
    assert_eq!(layer.status().index, IndexState::Failed, "{what}");
}

async fn cuts(text: &str, step: impl Fn(usize) -> usize) {
    let tar = tar(0, &lines(text));
    for Kind { name, blob } in kinds(&tar) {
        for cut in (0..blob.len()).step_by(step(blob.len())) {
            let what = format!("{name} of {} cut at {cut}", blob.len());
            let sample = Sample::new(&tar, blob[..cut].to_vec());
            let judged = async {
                let layer = sample.open();
                for file in &files(text) {
                    let _ = right_or_error(&layer, file, &what).await;
                }
                assert!(find(&layer, "x").await.is_err(), "{what}: absence is not proven");
                refused(&layer, &what).await;
                refused(&sample.open(), &what).await;
            };
            let waited = tokio::time::timeout(Duration::from_secs(60), judged).await;
            assert!(waited.is_ok(), "{what}: it hangs");
        }
    }
}

#[tokio::test]
async fn a_small_blob_cut_anywhere_is_refused() {
    cuts(TINY, |_| 83).await;
}

#[tokio::test]
async fn a_blob_of_many_spans_cut_anywhere_is_refused() {
    cuts(LARGE, |len| len / 9).await;
}

async fn flips(text: &str, step: impl Fn(usize) -> usize) {
    let tar = tar(0, &lines(text));
    let files = files(text);
    for Kind { name, blob } in kinds(&tar) {
        for at in (0..blob.len()).step_by(step(blob.len())) {
            let what = format!("{name} of {} flipped at {at}", blob.len());
            let mut bad = blob.clone();
            bad[at] ^= 1 << (at % 8);
            let judged = async {
                // A layer that was pushed like this. Some bits mean nothing, like the time in a gzip header.
                let sample = Sample::new(&tar, bad.clone());
                let workshop = Arc::new(Workshop::new(64 << 20, true));
                let layer = sample::layer(0, sample.descriptor(), sample.dir.path(), &workshop);
                let mut first = Ok(());
                for file in &files {
                    first = first.and(right_or_error(&layer, file, &what).await);
                }
                match first {
                    Ok(()) => drop(layer.complete().await.unwrap()),
                    Err(_) => refused(&layer, &what).await,
                }
                // A layer that was damaged on its way here.
                let sample = Sample::new(&tar, blob.clone());
                sample.source.replace(bad);
                let layer = sample::layer(0, sample.descriptor(), sample.dir.path(), &workshop);
                for (name, _) in &files {
                    assert!(find(&layer, name).await.is_err(), "{what}: {name}");
                }
                refused(&layer, &what).await;
            };
            let waited = tokio::time::timeout(Duration::from_secs(60), judged).await;
            assert!(waited.is_ok(), "{what}: it hangs");
        }
    }
}

#[tokio::test]
async fn a_small_blob_flipped_anywhere_is_right_or_refused() {
    flips(TINY, |_| 107).await;
}

#[tokio::test]
async fn a_blob_of_many_spans_flipped_anywhere_is_right_or_refused() {
    flips(LARGE, |len| len / 7).await;
}
