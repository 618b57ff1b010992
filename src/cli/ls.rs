//! `peelfs ls`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::listing::Listing;
use super::{Failure, code, opening, progress};
use crate::image::reference::Reference;
use crate::inspect::{Entry, Follow, Inspector, Versions, Walk};

#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Arguments {
    /// The image, as for mount
    image: Reference,
    /// A directory or file in it
    #[arg(default_value = "/")]
    path: OsString,
    /// List what is below directories too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Look only into this layer; 0 is the base
    #[arg(long, value_name = "N", conflicts_with = "all")]
    layer: Option<usize>,
    /// Also list what upper layers hide: older versions, and what was deleted
    #[arg(short, long)]
    all: bool,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    opening: opening::Arguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    arguments.opening.with_image(&arguments.image, async |inspector| {
        match arguments.all {
            true => all(arguments, inspector).await?,
            false => visible(arguments, inspector).await?,
        }
        Ok(code::FOUND)
    })
}

async fn visible(arguments: &Arguments, inspector: &Arc<Inspector>) -> Result<(), Failure> {
    let (layers, quiet) = (inspector.layers(), arguments.opening.quiet);
    let found = inspector.find(arguments.layer, arguments.path.as_bytes(), Follow::Parents);
    let (view, node) = progress::during(layers, quiet, found).await?;
    let node = Arc::new(node);
    let mut listing = Listing::new(arguments.json);
    if !node.is_directory() {
        listing.entry(&Entry::of(&view, &node)?, true).await?;
        return listing.finish().await;
    }
    // The first listing may have to wait for layers; those after it do not.
    progress::during(layers, quiet, view.list(&node)).await?;
    let mut walk = Walk::of(&view, node, arguments.recursive);
    while let Some(node) = walk.next().await? {
        listing.entry(&Entry::of(&view, &node)?, arguments.recursive).await?;
    }
    listing.finish().await
}

async fn all(arguments: &Arguments, inspector: &Arc<Inspector>) -> Result<(), Failure> {
    let versions = Versions::at(inspector, arguments.path.as_bytes(), arguments.recursive);
    let mut versions = progress::during(inspector.layers(), arguments.opening.quiet, versions).await?;
    let mut listing = Listing::new(arguments.json);
    while let Some(entry) = versions.next().await? {
        listing.entry(&entry, arguments.recursive).await?;
    }
    listing.finish().await
}
