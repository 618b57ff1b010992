//! Archives as docker, podman and skopeo make them, and as nobody should.

use std::io::Write;

use serde_json::Value;
use tar::{Builder, EntryType, Header};

use super::*;

const OLD_ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

struct Made(Builder<Vec<u8>>);

impl Made {
    fn new() -> Made {
        Made(Builder::new(Vec::new()))
    }

    fn file(&mut self, path: &str, bytes: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        self.0.append_data(&mut header, path, bytes).unwrap();
    }

    fn link(&mut self, kind: EntryType, path: &str, target: &str) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).unwrap();
    }

    /// The path of a config with these layers.
    fn config(&mut self, layers: &[&[u8]]) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::sha256(layer).to_string()).collect();
        let config = json!({"os": "linux", "architecture": "arm64", "rootfs": {"diff_ids": diff_ids}}).to_string();
        let path = format!("{}.json", Digest::sha256(config.as_bytes()).hex());
        self.file(&path, config.as_bytes());
        path
    }

    fn manifest(&mut self, images: Value) {
        self.file("manifest.json", images.to_string().as_bytes());
    }

    async fn resolve(self, tag: Option<&str>) -> Result<Image, ImageError> {
        open(&self.0.into_inner().unwrap(), tag).await
    }
}

async fn open(bytes: &[u8], tag: Option<&str>) -> Result<Image, ImageError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let platform = "linux/arm64".parse().unwrap();
    resolve("docker-archive:x".to_owned(), file.path(), tag, Some(&platform)).await
}

fn contents(image: &Image) -> Vec<String> {
    let content = |layer: &crate::image::LayerDescriptor| {
        let BlobOrigin::File { file, range } = &layer.origin else {
            panic!()
        };
        assert_eq!(range.len(), layer.size);
        let mut bytes = vec![0; range.len() as usize];
        file.read_exact_at(&mut bytes, range.start()).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    image.layers.iter().map(content).collect()
}

#[tokio::test]
async fn the_old_style_with_links_between_layers() {
    let mut made = Made::new();
    made.file(&format!("{OLD_ID}/layer.tar"), b"one");
    made.file("b/layer.tar", b"two");
    made.link(EntryType::Symlink, "c/layer.tar", &format!("../{OLD_ID}/layer.tar"));
    made.link(EntryType::Link, "d/layer.tar", "b/layer.tar");
    let config = made.config(&[b"one", b"two", b"one", b"two"]);
    let layers = [
        &format!("{OLD_ID}/layer.tar"),
        "b/layer.tar",
        "c/layer.tar",
        "./d/layer.tar",
    ];
    made.manifest(json!([{"Config": config, "RepoTags": null, "Layers": layers}]));
    let image = made.resolve(None).await.unwrap();
    assert_eq!(contents(&image), ["one", "two", "one", "two"]);
    for layer in &image.layers {
        assert_eq!(Some(layer.digest), layer.diff_id);
    }
    assert_eq!(image.resolved, Digest::sha256(&image.manifest));
    assert_eq!(image.platform.to_string(), "linux/arm64");
}

#[tokio::test]
async fn digests_of_the_new_style_and_of_skopeo() {
    let packed: &[u8] = &[0x1f, 0x8b, 8, 0, 1, 2, 3];
    let named = Digest::sha256(b"named");
    let mut made = Made::new();
    made.file(&format!("blobs/sha256/{}", named.hex()), packed);
    made.file(&format!("{}.tar", Digest::sha256(b"two").hex()), b"two");
    made.file("x.tar", packed);
    let config = made.config(&[b"one", b"two", b"three"]);
    let layers = [
        format!("blobs/sha256/{}", named.hex()),
        format!("{}.tar", Digest::sha256(b"two").hex()),
        "x.tar".to_owned(),
    ];
    made.manifest(json!([{"Config": config, "Layers": layers}]));
    let image = made.resolve(None).await.unwrap();
    let digests: Vec<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
    assert_eq!(digests, [named, Digest::sha256(b"two"), Digest::sha256(packed)]);
    let kinds: Vec<bool> = image
        .layers
        .iter()
        .map(|layer| layer.media_type.ends_with("gzip"))
        .collect();
    assert_eq!(kinds, [true, false, true]);
    assert_eq!(image.layers[2].diff_id, Some(Digest::sha256(b"three")));
}

#[tokio::test]
async fn an_image_is_chosen_by_name() {
    for (tag, expected) in [
        (Some("debian:12"), Some("one")),
        (Some("docker.io/library/debian:12"), Some("one")),
        (Some("12"), Some("one")),
        (Some("r.example/x:13"), Some("two")),
        (Some("13"), Some("two")),
        (Some("both"), None),
        (Some("14"), None),
        (None, None),
    ] {
        let mut made = Made::new();
        made.file("1", b"one");
        made.file("2", b"two");
        let (one, two) = (made.config(&[b"one"]), made.config(&[b"two"]));
        made.manifest(json!([
            {"Config": one, "RepoTags": ["debian:12", "a:both"], "Layers": ["1"]},
            {"Config": two, "RepoTags": ["r.example/x:13", "b:both"], "Layers": ["2"]},
        ]));
        match made.resolve(tag).await {
            Ok(image) => assert_eq!(Some(contents(&image)[0].as_str()), expected, "{tag:?}"),
            Err(error) => {
                assert_eq!(expected, None, "{tag:?}: {error}");
                assert!(error.to_string().contains("debian:12"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_archive_is_told() {
    let told = async |bytes: &[u8]| open(bytes, None).await.unwrap_err().to_string();
    assert!(told(&[0x1f, 0x8b, 8, 0, 0, 0]).await.contains("compressed (gzip)"));
    assert!(told(b"").await.contains("no manifest.json"));
    let secret = told(&b"root:secret:".repeat(200)).await;
    assert!(secret.contains("not a tar") && !secret.contains("root"), "{secret}");
    let mut oci = Made::new();
    oci.file("index.json", b"{}");
    assert!(oci.resolve(None).await.unwrap_err().to_string().contains("oci:DIR"));
    for manifest in [
        json!([]),
        json!({}),
        json!([{"Config": "../../etc/passwd"}]),
        json!([{"Config": 7}]),
    ] {
        let mut made = Made::new();
        made.manifest(manifest.clone());
        assert!(made.resolve(None).await.is_err(), "{manifest}");
    }
}

#[tokio::test]
async fn hostile_archives_end() {
    let with = async |layer: &str, make: &dyn Fn(&mut Made)| {
        let mut made = Made::new();
        make(&mut made);
        let config = made.config(&[b"one"]);
        made.manifest(json!([{"Config": config, "Layers": [layer]}]));
        made.resolve(None).await
    };
    assert!(with("a", &|made| made.file("a", b"one")).await.is_ok());
    assert!(with("a", &|_| ()).await.is_err(), "missing");
    let circle = |made: &mut Made| {
        made.link(EntryType::Symlink, "a", "b");
        made.link(EntryType::Symlink, "b", "a");
    };
    assert!(with("a", &circle).await.is_err());
    assert!(
        with("a", &|made| made.link(EntryType::Symlink, "a", "../../etc/passwd"))
            .await
            .is_err()
    );
    assert!(with("/", &|_| ()).await.is_err());

    // A member that ends behind the file.
    let mut made = Made::new();
    let config = made.config(&[b"one"]);
    made.manifest(json!([{"Config": config, "Layers": ["a"]}]));
    let mut bytes = made.0.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    let mut header = Header::new_gnu();
    header.set_path("a").unwrap();
    for size in [5, 1 << 40, u64::MAX >> 1, u64::MAX] {
        header.set_size(size);
        header.set_cksum();
        let cut = [bytes.as_slice(), header.as_bytes(), b"one"].concat();
        assert!(open(&cut, None).await.is_err(), "{size}");
    }

    // A config under the name of another.
    let mut made = Made::new();
    made.file(&format!("{OLD_ID}.json"), b"{\"rootfs\":{}}");
    made.manifest(json!([{"Config": format!("{OLD_ID}.json")}]));
    assert!(matches!(made.resolve(None).await, Err(ImageError::WrongDigest { .. })));
}
