//! Questions about an image that no mount is needed for: one file's bytes, listings with the layer of each entry, the
//! versions that layers hide, comparisons.
//!
//! > inspector > view (merged, of one layer, or as a layer left the image) > entry > content
//!
//! Everything is asked of the same trees, layers and store as by the mount, so that nothing is fetched twice between
//! them, and the answers are the same. What one layer did to the image is found by comparing the merged view with the
//! layer and without it: the rules of whiteouts, opaque directories, links and symlinked parents stand in [`tree`]
//! alone. A symlink is followed inside of the image, never on this machine.
//!
//! | file | what it answers |
//! |---|---|
//! | `view` | what is at a path |
//! | `carve` | the bytes of a file, and what they cost |
//! | `walk` | what is in a directory, and below it |
//! | `versions` | what the merged view hides |
//! | `history` | what each layer did to a path |
//! | `find` | which names match a pattern |
//! | `diff` | in what two views differ |
//! | `layers` | what the layers are, and what made them |
//! | `text` | an entry as a line of text |
//!
//! [`tree`]: crate::tree

mod carve;
mod diff;
mod entry;
mod find;
mod history;
mod layers;
#[cfg(test)]
mod tests;
mod text;
mod versions;
mod view;
mod walk;

use std::sync::{Arc, OnceLock};

use crate::image::Image;
use crate::layer::{Layer, LayerError};
use crate::tree::{Opened, Tree, TreeError, TreeOptions};

pub use carve::{Content, Meter, Report};
pub use diff::{Change, Diff, Difference};
pub use entry::{Entry, Hidden, escaped, is_direction};
pub use find::{Matches, Pattern, PatternError};
pub use history::{Action, Event};
pub use layers::LayerSummary;
pub use text::{mode, time};
pub use versions::Versions;
pub use view::{Follow, Node, View};
pub use walk::Walk;

/// Why a question about an image has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InspectError {
    /// A layer cannot tell.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The image has no such layer.
    #[error("there is no layer {number}: the image has {}", valid(*.count))]
    NoLayer {
        /// What was asked for.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// Nothing is there.
    #[error("{} is not in the image", shown(.path))]
    NotFound {
        /// The path asked for.
        path: Vec<u8>,
    },
    /// Nothing is there any more.
    #[error("{} is not in the image, as upper layers hide it; {}", shown(.path), elsewhere(.layers))]
    Hidden {
        /// The path asked for.
        path: Vec<u8>,
        /// The layers that have it.
        layers: Vec<usize>,
    },
    /// The layer has nothing there.
    #[error("{} is not in layer {layer}; {}", shown(.path), elsewhere(.others))]
    NotInLayer {
        /// The path asked for.
        path: Vec<u8>,
        /// The layer asked.
        layer: usize,
        /// The layers that have it.
        others: Vec<usize>,
    },
    /// Something on the way is no directory.
    #[error("{} is not a directory", shown(.path))]
    NotADirectory {
        /// What is none.
        path: Vec<u8>,
    },
    /// Neither a file nor, where one will do, a directory.
    #[error("{} is {what}, which has no content", shown(.path))]
    NoContent {
        /// What was to be read.
        path: Vec<u8>,
        /// What it is, with an article.
        what: &'static str,
    },
    /// More symlinks than are followed.
    #[error("{} leads through more than {} symlinks", shown(.path), view::MOST_SYMLINKS)]
    Loop {
        /// The path asked for.
        path: Vec<u8>,
    },
    /// A file has fewer bytes than its entry says.
    #[error("{} ends after {at} of {size} bytes", shown(.path))]
    Short {
        /// The file.
        path: Vec<u8>,
        /// Where it ends.
        at: u64,
        /// What its entry says.
        size: u64,
    },
}

/// A path in a sentence.
fn shown(path: &[u8]) -> String {
    format!("/{}", escaped(path))
}

fn valid(count: usize) -> String {
    match count {
        0 => "no layers".to_owned(),
        1 => "only layer 0".to_owned(),
        _ => format!("layers 0 to {}", count - 1),
    }
}

fn elsewhere(others: &[usize]) -> String {
    let numbers = others.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    match others.len() {
        0 => "it is in no layer".to_owned(),
        1 => format!("it is in layer {numbers}"),
        _ => format!("it is in layers {numbers}"),
    }
}

impl InspectError {
    /// Whether it is certain that what was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            InspectError::NotFound { .. }
                | InspectError::Hidden { .. }
                | InspectError::NotInLayer { .. }
                | InspectError::NotADirectory { .. }
                | InspectError::NoContent { .. }
                | InspectError::Loop { .. }
        )
    }

    /// Whether bytes are not what they should be.
    pub fn is_corrupt(&self) -> bool {
        match self {
            InspectError::Tree(error) => error.is_corrupt(),
            InspectError::Short { .. } => true,
            _ => false,
        }
    }
}

impl TreeError {
    /// Whether bytes are not what they should be, rather than out of reach.
    pub fn is_corrupt(&self) -> bool {
        match self {
            TreeError::Layer(error) => matches!(**error, LayerError::Corrupt { .. } | LayerError::Index { .. }),
            _ => false,
        }
    }
}

/// An image to be asked about.
#[derive(Debug)]
pub struct Inspector {
    image: Image,
    merged: Arc<Tree>,
    /// The image as each layer left it.
    stages: Vec<OnceLock<Arc<Tree>>>,
    /// Whether each layer's paths are those in the image.
    plain: Vec<OnceLock<bool>>,
}

impl Inspector {
    /// For an image that was opened, for a mount or for this.
    pub fn new(opened: &Opened) -> Arc<Inspector> {
        let layers = opened.tree.layers();
        Arc::new(Inspector {
            image: opened.image.clone(),
            merged: tree(&opened.image, layers),
            stages: layers.iter().map(|_| OnceLock::new()).collect(),
            plain: layers.iter().map(|_| OnceLock::new()).collect(),
        })
    }

    /// What was resolved.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The layers, base first.
    pub fn layers(&self) -> &[Arc<Layer>] {
        self.merged.layers()
    }

    /// The merged view, or with a number that of one layer by itself.
    ///
    /// # Errors
    /// [`InspectError::NoLayer`].
    pub fn view(&self, layer: Option<usize>) -> Result<View, InspectError> {
        match layer {
            None => Ok(View::merged(self.merged.clone())),
            Some(number) => {
                self.check(number)?;
                Ok(View::of_layer(self.merged.clone(), number))
            }
        }
    }

    /// The image as it is when layer `number` and all below it are applied.
    ///
    /// # Errors
    /// [`InspectError::NoLayer`].
    pub fn stage(&self, number: usize) -> Result<View, InspectError> {
        self.check(number)?;
        if number + 1 == self.stages.len() {
            return Ok(View::merged(self.merged.clone()));
        }
        let layers = self.layers().get(..=number).unwrap_or_default();
        let stage = self
            .stages
            .get(number)
            .map(|stage| stage.get_or_init(|| tree(&self.image, layers)));
        Ok(View::merged(stage.unwrap_or(&self.merged).clone()))
    }

    fn check(&self, number: usize) -> Result<(), InspectError> {
        let count = self.stages.len();
        match number < count {
            true => Ok(()),
            false => Err(InspectError::NoLayer { number, count }),
        }
    }

    /// [`Inspector::rest`] of the layers that a carve can have touched: of `layer` alone, or from the one `found` upwards.
    pub async fn rest_of(&self, layer: Option<usize>, found: Option<usize>) {
        let first = layer.or(found).unwrap_or(0);
        let layers = self.layers().iter().skip(first);
        let count = if layer.is_some() { 1 } else { usize::MAX };
        futures_util::future::join_all(layers.take(count).map(|layer| layer.rest())).await;
    }

    /// Waits until nothing is fetched or scanned any more. To be called before the process ends: what was fetched is
    /// kept then, and the costs are final.
    pub async fn rest(&self) {
        futures_util::future::join_all(self.layers().iter().map(|layer| layer.rest())).await;
    }
}

fn tree(image: &Image, layers: &[Arc<Layer>]) -> Arc<Tree> {
    Tree::new(image, layers.to_vec(), TreeOptions { layers_dir: None })
}
