//! The bytes of one file, a piece at a time, and what they cost.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::Serialize;

use super::{Follow, InspectError, Inspector, Node, View};
use crate::blob::BlobStats;
use crate::index::Kind;

/// The most that is asked for at once, and so what a reader who is slow keeps in memory.
const PIECE: u64 = 1 << 20;

/// The content of a file as a stream.
#[derive(Debug)]
pub struct Content {
    view: View,
    node: Arc<Node>,
    rest: Range<u64>,
    /// The most of a piece, and whether it is a copy.
    piece: u64,
    copied: bool,
}

impl Content {
    /// The bytes of `node` in `range`, as far as it has them.
    ///
    /// # Errors
    /// [`InspectError::NoContent`] if it is no file.
    pub fn of(view: &View, node: Arc<Node>, range: Range<u64>) -> Result<Content, InspectError> {
        let what = match node.attr.kind {
            Kind::File => None,
            Kind::Directory => Some("a directory"),
            Kind::Symlink => Some("a symlink"),
            Kind::Fifo => Some("a named pipe"),
            Kind::CharDevice | Kind::BlockDevice => Some("a device"),
            Kind::Hardlink => Some("a hard link to nothing"),
        };
        if let Some(what) = what {
            let path = node.path.clone();
            return Err(InspectError::NoContent { path, what });
        }
        let end = range.end.min(node.attr.size);
        let rest = range.start.min(end)..end;
        Ok(Content {
            view: view.clone(),
            node,
            rest,
            piece: PIECE,
            copied: false,
        })
    }

    /// In pieces of at most `piece` bytes, which keep nothing else in memory for as long as they live.
    pub fn in_pieces_of(self, piece: u64) -> Content {
        Content {
            piece: piece.clamp(1, PIECE),
            copied: true,
            ..self
        }
    }

    /// All bytes of `node`.
    ///
    /// # Errors
    /// [`InspectError::NoContent`] if it is no file.
    pub fn all(view: &View, node: Arc<Node>) -> Result<Content, InspectError> {
        Content::of(view, node, 0..u64::MAX)
    }

    /// How many bytes are still to come.
    pub fn remaining(&self) -> u64 {
        self.rest.end - self.rest.start
    }

    /// The next bytes, at most 1 MiB or a [piece](Content::in_pieces_of); none at the end. Whoever does not ask for the
    /// next lets the layer rest.
    ///
    /// # Errors
    /// [`InspectError::Tree`] if they cannot be had.
    pub async fn next(&mut self) -> Result<Option<Bytes>, InspectError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let len = self.remaining().min(self.piece) as usize;
        let content = self.view.tree().read(self.node.attr.ino, self.rest.start, len).await?;
        if content.bytes.is_empty() {
            return Err(InspectError::Short {
                path: self.node.path.clone(),
                at: self.rest.start,
                size: self.rest.end,
            });
        }
        self.rest.start += content.bytes.len() as u64;
        Ok(Some(match self.copied {
            true => Bytes::copy_from_slice(&content.bytes),
            false => content.bytes,
        }))
    }
}

impl Inspector {
    /// What is at `path` in the merged view or in one layer, with the view that it was found in.
    ///
    /// # Errors
    /// As [`View::resolve`]; [`InspectError::NoLayer`]. With the layers that have it: [`InspectError::NotInLayer`], for
    /// which all of them may have to be searched, and [`InspectError::Hidden`], for which none is that is not known.
    pub async fn find(&self, layer: Option<usize>, path: &[u8], follow: Follow) -> Result<(View, Node), InspectError> {
        let view = self.view(layer)?;
        let error = match view.resolve(path, follow).await {
            Ok(node) => return Ok((view, node)),
            Err(error @ (InspectError::NotFound { .. } | InspectError::NotADirectory { .. })) => error,
            Err(error) => return Err(error),
        };
        let numbers = (0..self.layers().len()).filter(|number| Some(*number) != layer);
        let wanted = path.strip_prefix(b"/").unwrap_or(path).to_vec();
        match layer {
            Some(layer) => Err(InspectError::NotInLayer {
                path: wanted,
                layer,
                others: self.layers_with(path, follow, numbers).await,
            }),
            None => {
                let known = |number: &usize| self.layers().get(*number).is_some_and(|layer| layer.index().is_some());
                let layers = self.layers_with(path, follow, numbers.filter(known)).await;
                match layers.is_empty() {
                    true => Err(error),
                    false => Err(InspectError::Hidden { path: wanted, layers }),
                }
            }
        }
    }

    /// Those of the layers `numbers` that have something at `path`.
    async fn layers_with(&self, path: &[u8], follow: Follow, numbers: impl Iterator<Item = usize>) -> Vec<usize> {
        let asked = numbers.map(|number| async move {
            match self.view(Some(number)).ok()?.resolve(path, follow).await {
                Ok(_) => Some(number),
                Err(error) if error.is_not_found() => None,
                Err(error) => {
                    tracing::warn!("whether layer {number} has it cannot be told: {error}");
                    None
                }
            }
        });
        let found = futures_util::future::join_all(asked).await;
        found.into_iter().flatten().collect()
    }
}

/// What a carve cost, and what it gave.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether the file was there, and was had.
    pub found: bool,
    /// The image's reference.
    pub image: String,
    /// The digest of its manifest, if it was found.
    pub digest: Option<String>,
    /// The path asked for.
    pub path: String,
    /// The same, escaped, if it is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// Bytes of the file; of a directory all that was written of it.
    pub size: Option<u64>,
    /// The layer that it comes from.
    pub layer_index: Option<usize>,
    /// The digest of that layer.
    pub layer_digest: Option<String>,
    /// Bytes of layers that were downloaded, of all that had to be looked into.
    pub bytes_downloaded: u64,
    /// Requests for them.
    pub requests: u64,
    /// The size of the layer that it comes from.
    pub layer_size: Option<u64>,
    /// How many percent of that layer were downloaded.
    pub efficiency_pct: Option<f64>,
    /// Whether all of that layer was checked against its digest: by whoever indexed it. A file that was carved out of a
    /// layer in the middle of its scan was not.
    pub verified: Option<bool>,
    /// How many layers were searched.
    pub layers_searched: usize,
    /// Seconds that it took.
    pub elapsed_seconds: f64,
    /// What went wrong, in a sentence.
    pub error: Option<String>,
}

impl Report {
    /// The report on `path` of an image of which nothing was had.
    pub fn failed(image: &str, path: &[u8], error: Option<String>) -> Report {
        Report {
            found: false,
            image: image.to_owned(),
            digest: None,
            path: String::from_utf8_lossy(path).into_owned(),
            path_bytes: std::str::from_utf8(path)
                .is_err()
                .then(|| path.escape_ascii().to_string()),
            size: None,
            layer_index: None,
            layer_digest: None,
            bytes_downloaded: 0,
            requests: 0,
            layer_size: None,
            efficiency_pct: None,
            verified: None,
            layers_searched: 0,
            elapsed_seconds: 0.0,
            error,
        }
    }
}

/// Measures what is fetched from its making on.
#[derive(Debug)]
pub struct Meter {
    before: Vec<BlobStats>,
    since: Instant,
}

impl Meter {
    /// Starts to measure.
    pub fn start(inspector: &Inspector) -> Meter {
        Meter {
            before: stats(inspector),
            since: Instant::now(),
        }
    }

    /// The report on `path`, asked for in `layer` or the merged view: that it is in the layer `from` and has `size`
    /// bytes, or that there was an error. Costs are final once the inspector [rests](Inspector::rest).
    pub fn report(
        &self,
        inspector: &Inspector,
        path: &[u8],
        layer: Option<usize>,
        result: Result<(Option<usize>, u64), String>,
    ) -> Report {
        let layers = inspector.layers();
        let spent: Vec<(u64, u64)> = stats(inspector)
            .iter()
            .zip(&self.before)
            .map(|(now, then)| (now.bytes_fetched - then.bytes_fetched, now.requests - then.requests))
            .collect();
        // Layers that are the same are one blob with one count.
        let mut seen = HashSet::new();
        let counted = spent
            .iter()
            .zip(layers)
            .filter(|(_, layer)| seen.insert(layer.descriptor().digest));
        let (bytes_downloaded, requests) = counted.fold((0, 0), |sum, (cost, _)| (sum.0 + cost.0, sum.1 + cost.1));
        let from = result.as_ref().ok().and_then(|(from, _)| *from);
        let layer_from = from.and_then(|from| layers.get(from));
        let descriptor = layer_from.map(|layer| layer.descriptor());
        let from_layer = from.and_then(|from| spent.get(from)).map_or(0, |(bytes, _)| *bytes);
        let layers_searched = match (&result, layer, from) {
            (Ok(_), Some(_), _) => 1,
            (Ok(_), None, Some(from)) => layers.len() - from,
            _ => layers.len(),
        };
        Report {
            found: result.is_ok(),
            digest: Some(inspector.image().resolved.to_string()),
            size: result.as_ref().ok().map(|(_, size)| *size),
            layer_index: from,
            layer_digest: descriptor.map(|layer| layer.digest.to_string()),
            bytes_downloaded,
            requests,
            layer_size: descriptor.map(|layer| layer.size),
            efficiency_pct: descriptor.map(|layer| percent(from_layer, layer.size)),
            verified: layer_from.map(|layer| layer.index().is_some()),
            layers_searched,
            elapsed_seconds: self.since.elapsed().as_secs_f64(),
            ..Report::failed(&inspector.image().reference, path, result.err())
        }
    }
}

fn stats(inspector: &Inspector) -> Vec<BlobStats> {
    inspector.layers().iter().map(|layer| layer.status().blob).collect()
}

fn percent(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        _ => (part as f64 * 10_000.0 / whole as f64).round() / 100.0,
    }
}
