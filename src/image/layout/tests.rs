//! Layouts made by hand.

use serde_json::{Value, json};

use super::*;

struct Made {
    dir: tempfile::TempDir,
}

impl Made {
    fn new() -> Made {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        Made { dir }
    }

    fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        fs::write(self.path(&digest), bytes).unwrap();
        digest
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    /// The digest of the manifest of an image with the layer `layer`.
    fn image(&self, layer: &str, architecture: &str) -> Digest {
        let digest = self.blob(layer.as_bytes()).to_string();
        let config = json!({"os": "linux", "architecture": architecture, "rootfs": {"diff_ids": [digest]}}).to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "config": {"digest": self.blob(config.as_bytes()).to_string(), "size": config.len()},
            "layers": [{"digest": digest, "size": layer.len()}],
        });
        self.blob(manifest.to_string().as_bytes())
    }

    fn index(&self, entries: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": entries});
        fs::write(self.dir.path().join("index.json"), index.to_string()).unwrap();
    }

    async fn resolve(&self, tag: Option<&str>) -> Result<Image, ImageError> {
        let platform = "linux/arm64".parse().unwrap();
        resolve("oci:x".to_owned(), self.dir.path(), tag, Some(&platform)).await
    }
}

fn named(digest: Digest, name: &str) -> Value {
    json!({"digest": digest.to_string(), "size": 1, "annotations": {REF_NAME: name}})
}

fn entry(digest: Digest, architecture: &str) -> Value {
    json!({"digest": digest.to_string(), "size": 1, "platform": {"os": "linux", "architecture": architecture}})
}

fn content(image: &Image) -> String {
    let BlobOrigin::File { file, range } = &image.layers[0].origin else {
        panic!()
    };
    let mut bytes = vec![0; range.len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(&**file, &mut bytes, range.start()).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn the_only_image_needs_no_tag() {
    let made = Made::new();
    made.index(&[named(made.image("one", "arm64"), "1")]);
    for tag in [None, Some("1")] {
        assert_eq!(content(&made.resolve(tag).await.unwrap()), "one");
    }
    let error = made.resolve(Some("2")).await.unwrap_err().to_string();
    assert!(error.contains("but: 1"), "{error}");
}

#[tokio::test]
async fn of_several_images_one_is_named() {
    let made = Made::new();
    made.index(&[
        named(made.image("one", "arm64"), "1"),
        named(made.image("two", "arm64"), "r.example/x:2"),
    ]);
    let error = made.resolve(None).await.unwrap_err().to_string();
    assert!(error.contains("1, r.example/x:2"), "{error}");
    assert_eq!(content(&made.resolve(Some("1")).await.unwrap()), "one");
    assert_eq!(content(&made.resolve(Some("r.example/x:2")).await.unwrap()), "two");
}

#[tokio::test]
async fn several_without_a_name_are_platforms() {
    let made = Made::new();
    made.index(&[
        entry(made.image("one", "amd64"), "amd64"),
        entry(made.image("two", "arm64"), "arm64"),
    ]);
    assert_eq!(content(&made.resolve(None).await.unwrap()), "two");
}

#[tokio::test]
async fn an_index_in_the_index_is_followed_but_not_for_ever() {
    let made = Made::new();
    let mut digest = made.image("one", "arm64");
    for depth in 0..5 {
        made.index(&[entry(digest, "arm64")]);
        assert_eq!(made.resolve(None).await.is_ok(), depth < 4, "{depth}");
        let index = json!({"manifests": [entry(digest, "arm64")]});
        digest = made.blob(index.to_string().as_bytes());
    }
}

#[tokio::test]
async fn damage_is_told() {
    let made = Made::new();
    let missing = made.resolve(None).await.unwrap_err().to_string();
    assert!(missing.contains("index.json"), "{missing}");

    let manifest = made.image("one", "arm64");
    made.index(&[named(manifest, "1")]);
    fs::write(made.path(&Digest::sha256(b"one")), "longer").unwrap();
    let error = made.resolve(None).await.unwrap_err().to_string();
    assert!(error.contains("6 bytes instead of 3"), "{error}");
    fs::write(made.path(&manifest), "{}").unwrap();
    assert!(matches!(made.resolve(None).await, Err(ImageError::WrongDigest { .. })));
    fs::remove_file(made.path(&manifest)).unwrap();
    fs::create_dir(made.path(&manifest)).unwrap();
    assert!(matches!(made.resolve(None).await, Err(ImageError::Io { .. })));
    for entry in [
        json!({"digest": "sha256:../../../etc/passwd", "size": 1}),
        json!({"digest": "", "size": -1}),
    ] {
        made.index(&[entry]);
        assert!(made.resolve(None).await.is_err());
    }
    made.index(&[]);
    assert!(matches!(made.resolve(None).await, Err(ImageError::Choose { .. })));
}
