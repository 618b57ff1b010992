//! `peelfs history`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::listing::Listing;
use super::{Failure, code, opening, progress};
use crate::image::reference::Reference;
use crate::inspect::Event;

#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Arguments {
    /// The image, as for mount
    image: Reference,
    /// A path in it; a symlink at its end is not followed
    path: OsString,
    /// Do not read the contents of a file's versions for their digests
    #[arg(long)]
    no_digests: bool,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    opening: opening::Arguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    arguments.opening.with_image(&arguments.image, async |inspector| {
        let history = inspector.history(arguments.path.as_bytes(), !arguments.no_digests);
        let history = progress::during(inspector.layers(), arguments.opening.quiet, history).await?;
        let mut listing = Listing::new(arguments.json);
        for event in &history {
            match arguments.json {
                true => listing.value(event).await?,
                false => line(&mut listing, event).await?,
            }
        }
        listing.finish().await?;
        Ok(code::FOUND)
    })
}

async fn line(listing: &mut Listing, event: &Event) -> Result<(), Failure> {
    let actions: Vec<&str> = event.actions.iter().map(|action| action.words()).collect();
    listing.output.put(format!("[L{}] {}", event.layer, actions.join(", ")));
    if let Some(entry) = &event.entry {
        listing.output.put(": ");
        listing.attributes(entry);
        listing.name(entry, true);
    }
    if let Some(digest) = &event.digest {
        listing.output.put(format!(" {digest}"));
    }
    listing.output.end_line().await
}
