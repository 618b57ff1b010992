//! Images that several tests use: the Debian one and large ones, made once and kept between runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use super::{BuiltImage, Compression, Content, DockerRegistry, Entry, ImageBuilder, Layer, Registry, run};

/// Where images stay between runs: `$PEELFS_TEST_CACHE`, else a directory below `~/.cache`.
fn kept() -> PathBuf {
    let dir = match std::env::var_os("PEELFS_TEST_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache/peelfs-tests"),
    };
    fs::create_dir_all(&dir).expect("the tests' cache directory");
    dir
}

/// The directory `name` among those kept, made by `make` where it is not there yet.
fn keep(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    // Tests take turns; of several programs that make the same, the first to finish wins.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = kept().join(name);
    if !dir.exists() {
        let making = tempfile::Builder::new()
            .prefix(name)
            .tempdir_in(kept())
            .expect("a directory");
        make(making.path());
        let made = making.keep();
        if fs::rename(&made, &dir).is_err() {
            let _ = fs::remove_dir_all(made);
        }
    }
    dir
}

/// A Debian in three layers, of real packages; `etc/passwd` differs in each.
pub fn debian() -> BuiltImage {
    let layout = kept().join("debian");
    run(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/make-image"), &[&layout]);
    BuiltImage::open(&layout, "debian").expect("the Debian image")
}

/// The Debian image in Debian's docker-registry, behind a proxy that counts and can be unplugged.
pub struct Served {
    /// The image as it was pushed.
    pub image: BuiltImage,
    /// The proxy.
    pub registry: Registry,
    name: &'static str,
    _behind: Option<DockerRegistry>,
    _layout: Option<TempDir>,
}

impl Served {
    /// The Debian image, from docker-registry.
    pub fn debian() -> Served {
        let image = debian();
        // A storage for each build of the image: pushing takes longer than the tests that read it.
        let storage = keep(&format!("registry-{}", &image.manifest.hex()[..12]), |storage| {
            DockerRegistry::start(storage).push(&image, "debian:latest");
        });
        let behind = DockerRegistry::start(&storage);
        let registry = Registry::in_front_of(behind.address());
        Served {
            image,
            registry,
            name: "debian:latest",
            _behind: Some(behind),
            _layout: None,
        }
    }

    /// An image made in code, from the tests' own registry.
    pub fn made(image: &ImageBuilder) -> Served {
        let layout = tempfile::tempdir().expect("a directory");
        let image = image.write(layout.path(), "latest").expect("an image");
        Served {
            _layout: Some(layout),
            ..Served::kept(image)
        }
    }

    fn kept(image: BuiltImage) -> Served {
        let registry = Registry::of([("made", image.layout.clone())]);
        Served {
            image,
            registry,
            name: "made:latest",
            _behind: None,
            _layout: None,
        }
    }

    /// A layer of 670 MB: `data/large` (600 MB), `data/ten` (10 MB) and `data/tail` (60 MB).
    pub fn large() -> Served {
        Served::kept(large("large-1", || {
            Layer::of([
                Entry::dir("data"),
                Entry::file(
                    "data/large",
                    Content::Noise {
                        seed: 1,
                        size: 600_000_000,
                    },
                ),
                Entry::file("data/ten", ten()),
                Entry::file(
                    "data/tail",
                    Content::Noise {
                        seed: 3,
                        size: 60_000_000,
                    },
                ),
            ])
        }))
    }

    /// A layer of 100,000 files in 100 directories.
    pub fn many() -> Served {
        Served::kept(large("many-1", || {
            Layer::of((0..100).flat_map(|dir| {
                let files = (0..1000)
                    .map(move |file| Entry::file(format!("d{dir:02}/file-{file:03}"), format!("{dir}/{file}\n")));
                std::iter::once(Entry::dir(format!("d{dir:02}"))).chain(files)
            }))
            .compressed(Compression::Gzip)
        }))
    }

    /// The reference to mount.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.registry.address(), self.name)
    }

    /// Bytes of layers that went out, all together.
    pub fn layer_bytes(&self) -> u64 {
        self.image
            .layers
            .iter()
            .map(|layer| self.registry.log().bytes_of(&layer.digest))
            .sum()
    }

    /// Panics where a byte of a layer went out twice, or more of it than there is.
    #[track_caller]
    pub fn assert_no_byte_twice(&self) {
        let log = self.registry.log();
        for (number, layer) in self.image.layers.iter().enumerate() {
            let (sent, repeated) = (log.bytes_of(&layer.digest), log.repeated_of(&layer.digest));
            assert!(
                sent <= layer.size && repeated == 0,
                "layer {number} of {} bytes: {sent} bytes sent, {repeated} of them again\n{log}",
                layer.size
            );
        }
    }
}

/// What `data/ten` of [`Served::large`] holds.
pub fn ten() -> Content {
    Content::Noise {
        seed: 2,
        size: 10_000_000,
    }
}

fn large(name: &str, layer: impl FnOnce() -> Layer) -> BuiltImage {
    let layout = keep(name, |layout| {
        ImageBuilder::of([layer()]).write(layout, "latest").expect("an image");
    });
    BuiltImage::open(&layout, "latest").expect("an image")
}
