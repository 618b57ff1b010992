//! `peelfs find`.

use super::listing::Listing;
use super::{Failure, code, opening, progress};
use crate::image::reference::Reference;
use crate::inspect::{Matches, Pattern};

#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Arguments {
    /// The image, as for mount
    image: Reference,
    /// A glob such as '*.conf' for names, or with a slash '/etc/**/*.conf' for whole paths; upper layers hide nothing
    pattern: Pattern,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    opening: opening::Arguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    arguments.opening.with_image(&arguments.image, async |inspector| {
        let matches = Matches::of(inspector, arguments.pattern.clone());
        let mut matches = progress::during(inspector.layers(), arguments.opening.quiet, matches).await?;
        let mut listing = Listing::new(arguments.json);
        let mut result = code::NOT_FOUND;
        while let Some(entry) = matches.next().await? {
            result = code::FOUND;
            listing.entry(&entry, true).await?;
        }
        listing.finish().await?;
        Ok(result)
    })
}
