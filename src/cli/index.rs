//! `peelfs index`.

use super::{Failure, code, opening, progress};
use crate::image::reference::Reference;
use crate::inspect::Inspector;
use crate::tree::{self, Settings};

#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Arguments {
    /// Images, as for mount
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<Reference>,
    #[command(flatten)]
    opening: opening::Arguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    arguments.opening.work(async |settings| {
        let mut worst = code::FOUND;
        for image in &arguments.images {
            // Each for itself: that one cannot be had is no reason to leave out the others.
            if let Err(failure) = index(settings, image, arguments.opening.quiet).await {
                super::say(&failure.to_string());
                worst = worst.max(failure.code());
            }
        }
        Ok(worst)
    })
}

async fn index(settings: &Settings, image: &Reference, quiet: bool) -> Result<(), Failure> {
    let opened = tree::open(image, settings).await?;
    let result = progress::index(&opened, quiet).await;
    opening::rest(&Inspector::new(&opened)).await;
    if result.is_ok() && !quiet {
        let layers = opened.tree.layers();
        let entries: u64 = layers.iter().map(|layer| u64::from(layer.status().entries)).sum();
        let (image, count) = (&opened.image.reference, layers.len());
        eprintln!("peelfs: {image} is indexed: {count} layers, {entries} entries");
    }
    result
}
