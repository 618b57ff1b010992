//! What a mount is and what it has cost, for `peelfs status`.
//!
//! The report is an extended attribute of the mount's root. So it needs no socket and no place to find one, whoever
//! may enter the mount can read it, and it works through bind mounts and in containers.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::layer::IndexState;
use crate::tree::{Opened, Tree};

/// Everything that `peelfs status` tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusReport {
    /// One for each mount.
    pub mounts: Vec<MountReport>,
}

/// One mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountReport {
    /// Where.
    pub mountpoint: String,
    /// The reference as it was given.
    pub image: String,
    /// The digest of the manifest that it was resolved to.
    pub digest: String,
    /// The platform of the image.
    pub platform: String,
    /// The daemon's process.
    pub pid: u32,
    /// The daemon's log, if it has one of its own.
    pub log: Option<String>,
    /// Compressed bytes of all layers.
    pub compressed_size: u64,
    /// Bytes of layers that came over the network since the mount.
    pub bytes_fetched: u64,
    /// Requests for layers since the mount.
    pub requests: u64,
    /// Those of them that were sent because an earlier one had failed.
    #[serde(default)]
    pub retries: u64,
    /// Those of them that were answered with 429, too many requests.
    #[serde(default)]
    pub throttled: u64,
    /// Reads of layers that needed no request.
    pub cache_hits: u64,
    /// `bytes_fetched` in percent of `compressed_size`.
    pub downloaded_pct: f64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// Base first.
    pub layers: Vec<LayerReport>,
}

/// One layer of a mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its number; 0 is the base.
    pub number: usize,
    /// Its digest.
    pub digest: String,
    /// Compressed bytes.
    pub size: u64,
    /// Compressed bytes that have been indexed.
    pub indexed_bytes: u64,
    /// `none`, `partial`, `complete` or `failed`.
    pub index: String,
    /// Entries known.
    pub entries: u32,
    /// Bytes that came over the network since the mount.
    pub bytes_fetched: u64,
    /// Requests since the mount.
    pub requests: u64,
    /// Those of them that were sent because an earlier one had failed.
    #[serde(default)]
    pub retries: u64,
    /// Those of them that were answered with 429, too many requests.
    #[serde(default)]
    pub throttled: u64,
    /// Reads that needed no request.
    pub cache_hits: u64,
    /// Compressed bytes in the store.
    pub stored_bytes: u64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// Makes the reports of one mount.
#[derive(Debug)]
pub(super) struct Reporter {
    tree: Arc<Tree>,
    mountpoint: PathBuf,
    image: String,
    digest: String,
    platform: String,
    log: Option<PathBuf>,
}

impl Reporter {
    pub(super) fn new(opened: &Opened, mountpoint: PathBuf, log: Option<PathBuf>) -> Reporter {
        Reporter {
            tree: opened.tree.clone(),
            mountpoint,
            image: opened.image.reference.clone(),
            digest: opened.image.resolved.to_string(),
            platform: opened.image.platform.to_string(),
            log,
        }
    }

    /// Bytes of the decompressed layers, as far as known, and entries: what `df` shows.
    pub(super) fn extent(&self) -> (u64, u64) {
        let extents = self.tree.layers().iter().map(|layer| match layer.index() {
            Some(index) => (index.facts().decompressed_size, u64::from(layer.status().entries)),
            None => (layer.descriptor().size, u64::from(layer.status().entries)),
        });
        extents.fold((0, 0), |sum, one| {
            (sum.0.saturating_add(one.0), sum.1.saturating_add(one.1))
        })
    }

    /// The report as JSON. It has to fit into an extended attribute, 64 KiB.
    pub(super) fn report_json(&self) -> Vec<u8> {
        const MOST: usize = 65536;
        let mut report = self.report();
        let mut json = serde_json::to_vec(&report).unwrap_or_default();
        while json.len() > MOST && !report.layers.is_empty() {
            // Only an image of several hundred layers comes here: those at the bottom are left out.
            report.layers.remove(0);
            json = serde_json::to_vec(&report).unwrap_or_default();
        }
        json
    }

    fn report(&self) -> MountReport {
        let errors = self.tree.layers().iter().filter_map(|layer| layer.status().last_error);
        let latest = errors.max_by_key(|(_, at)| *at);
        let layers: Vec<LayerReport> = self.tree.layers().iter().map(|layer| layer_report(layer)).collect();
        // A layer that occurs twice is fetched once, and both tell of the same blob.
        let mut seen = std::collections::HashSet::new();
        let blobs: Vec<&LayerReport> = layers
            .iter()
            .filter(|layer| seen.insert(layer.digest.as_str()))
            .collect();
        let compressed_size = blobs.iter().map(|layer| layer.size).sum::<u64>();
        let bytes_fetched = blobs.iter().map(|layer| layer.bytes_fetched).sum::<u64>();
        MountReport {
            mountpoint: self.mountpoint.to_string_lossy().into_owned(),
            image: self.image.clone(),
            digest: self.digest.clone(),
            platform: self.platform.clone(),
            pid: std::process::id(),
            log: self.log.as_ref().map(|path| path.to_string_lossy().into_owned()),
            compressed_size,
            bytes_fetched,
            requests: blobs.iter().map(|layer| layer.requests).sum(),
            retries: blobs.iter().map(|layer| layer.retries).sum(),
            throttled: blobs.iter().map(|layer| layer.throttled).sum(),
            cache_hits: blobs.iter().map(|layer| layer.cache_hits).sum(),
            downloaded_pct: match compressed_size {
                0 => 0.0,
                size => bytes_fetched as f64 * 100.0 / size as f64,
            },
            last_error: latest.map(|(text, _)| text),
            layers,
        }
    }
}

fn layer_report(layer: &crate::layer::Layer) -> LayerReport {
    let status = layer.status();
    LayerReport {
        number: layer.number(),
        digest: layer.descriptor().digest.to_string(),
        size: layer.descriptor().size,
        indexed_bytes: status.indexed_bytes,
        index: match status.index {
            IndexState::None => "none",
            IndexState::Partial => "partial",
            IndexState::Complete => "complete",
            IndexState::Failed => "failed",
        }
        .into(),
        entries: status.entries,
        bytes_fetched: status.blob.bytes_fetched,
        requests: status.blob.requests,
        retries: status.blob.retries,
        throttled: status.blob.throttled,
        cache_hits: status.blob.hits,
        stored_bytes: status.stored,
        last_error: status.last_error.map(|(text, _)| text),
    }
}

/// The value of an extended attribute; of a symlink, of where it leads.
pub(super) fn read_xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    xattr::get_deref(path, name)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODATA))
}
