//! From an image's reference to its tree: everything below put together.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Tree, TreeOptions};
use crate::blob::{Blob, BlobStats, ExtentKind, Store};
use crate::cache_dir;
use crate::digest::Digest;
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::image::{Access, Documents, Image, ImageError, Options, resolve};
use crate::layer::{IndexDir, Layer, Workshop};

/// What a user can set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where everything that is worth keeping is kept.
    pub cache_dir: PathBuf,
    /// The most bytes of blobs kept there.
    pub cache_size: u64,
    /// The most decoded bytes kept in memory; and the most compressed ones, up to 32 MiB, where the disk cannot keep them.
    pub memory: usize,
    /// The platform wanted; the host's if none.
    pub platform: Option<Platform>,
    /// Registries may be talked to without, or with unverified, TLS.
    pub insecure: bool,
    /// No request is made.
    pub offline: bool,
    /// How long anything may make no progress before it counts as failed.
    pub timeout: Duration,
    /// How to reach registries.
    pub access: Access,
    /// Nothing of a layer is served before the whole layer is verified.
    pub verify_first: bool,
    /// The name of the directory of the layers; none for a pure root file system.
    pub layers_dir: Option<Vec<u8>>,
}

/// An image that can be looked into.
#[derive(Debug)]
pub struct Opened {
    /// What was resolved.
    pub image: Image,
    /// Its namespace.
    pub tree: Arc<Tree>,
    /// What its layers share.
    pub workshop: Arc<Workshop>,
}

/// Resolves `reference` and opens its layers. Costs two or three requests, none of them for a layer.
///
/// # Errors
/// [`ImageError`] if there is no such image, or none for the platform.
pub async fn open(reference: &Reference, settings: &Settings) -> Result<Opened, ImageError> {
    let image = resolve_with(reference, settings).await?;
    Ok(Premises::new(settings).open(image).await)
}

/// What `reference` stands for. Costs the requests of [`open`].
///
/// # Errors
/// Those of [`open`].
pub async fn resolve_with(reference: &Reference, settings: &Settings) -> Result<Image, ImageError> {
    let documents = Documents::open(&settings.cache_dir.join("documents"));
    let options = Options {
        platform: settings.platform.clone(),
        insecure: settings.insecure,
        offline: settings.offline,
        timeout: settings.timeout,
        access: settings.access.clone(),
    };
    resolve(reference, &options, &documents).await
}

/// What was done for all images.
#[derive(Debug, Clone)]
pub struct Costs {
    /// Requests, bytes and hits.
    pub blobs: BlobStats,
    /// Compressed bytes of layers that were read to index them.
    pub scanned: u64,
}

/// What images that are open at the same time share: the cache directory, and the bounds of disk and memory.
#[derive(Debug)]
pub struct Premises {
    settings: Settings,
    store: Store,
    index_dir: IndexDir,
    workshop: Workshop,
}

impl Premises {
    /// Those that the settings say.
    pub fn new(settings: &Settings) -> Premises {
        Premises {
            settings: settings.clone(),
            store: Store::open_with_memory(
                &settings.cache_dir.join("store"),
                settings.cache_size,
                settings.memory as u64,
            ),
            index_dir: usable(settings.cache_dir.join("index")),
            workshop: Workshop::new(settings.memory, settings.verify_first),
        }
    }

    /// What all images have cost since these premises were made, those that are closed among them.
    pub fn costs(&self) -> Costs {
        Costs {
            blobs: self.store.stats(),
            scanned: self.workshop.scanned(),
        }
    }

    /// Opens the layers of an image.
    pub async fn open(&self, image: Image) -> Opened {
        let (settings, store) = (&self.settings, &self.store);
        let workshop = Arc::new(self.workshop.for_another_image());
        // A layer that occurs twice in an image is two layers with one blob.
        let mut blobs: HashMap<Digest, Arc<Blob>> = HashMap::new();
        let mut layers = Vec::new();
        for (number, descriptor) in image.layers.iter().enumerate() {
            let digest = descriptor.digest;
            let new = || {
                Blob::new(
                    digest,
                    descriptor.size,
                    descriptor.origin.clone(),
                    store,
                    settings.timeout,
                )
            };
            let blob = blobs.entry(digest).or_insert_with(new).clone();
            let decoded = store.extents(ExtentKind::Decoded, &digest);
            layers.push(Layer::open(
                number,
                descriptor.clone(),
                blob,
                decoded,
                self.index_dir.clone(),
                workshop.clone(),
            ));
        }
        futures_util::future::join_all(layers.iter().map(|layer| layer.take_up())).await;
        let tree = Tree::new(
            &image,
            layers,
            TreeOptions {
                layers_dir: settings.layers_dir.clone(),
            },
        );
        Opened { image, tree, workshop }
    }
}

/// The directory, made if it was missing. If nothing can be written there, what there is is used; or else a warning is given.
fn usable(dir: PathBuf) -> IndexDir {
    fn make(dir: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        tempfile_in(dir)
    }
    fn tempfile_in(dir: &Path) -> std::io::Result<()> {
        let probe = dir.join(format!("{}.probe.tmp", std::process::id()));
        std::fs::write(&probe, b"")?;
        std::fs::remove_file(&probe)
    }
    match make(&dir) {
        Ok(()) => {
            cache_dir::remove_stale(&dir);
            IndexDir::Kept(dir)
        }
        // The store tells of it.
        Err(error) if cache_dir::is_read_only(&dir, &error) => IndexDir::ReadOnly(dir),
        Err(error) => {
            tracing::warn!(
                "indexes cannot be kept in {}: {error}; they stay in memory",
                dir.display()
            );
            IndexDir::Memory
        }
    }
}
