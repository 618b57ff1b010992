//! `peelfs layers`.

use super::listing::Listing;
use super::output::Style;
use super::{Failure, code, opening, size};
use crate::image::reference::Reference;
use crate::inspect::LayerSummary;

#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Arguments {
    /// The image, as for mount
    image: Reference,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    opening: opening::Arguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    arguments.opening.with_image(&arguments.image, async |inspector| {
        let mut listing = Listing::new(arguments.json);
        let layers = inspector.summaries();
        if !arguments.json {
            listing
                .output
                .put("layer       size   entries  digest               type       made by");
            listing.output.end_line().await?;
        }
        for layer in &layers {
            match arguments.json {
                true => listing.value(layer).await?,
                false => line(&mut listing, layer).await?,
            }
        }
        listing.finish().await?;
        Ok(code::FOUND)
    })
}

async fn line(listing: &mut Listing, layer: &LayerSummary) -> Result<(), Failure> {
    let entries = layer.entries.map_or("-".to_owned(), |entries| entries.to_string());
    // Of an algorithm and 64 digits, what a person can recognise it by.
    let digest = layer.digest.get(..19).unwrap_or(&layer.digest);
    let size = size::human(layer.size);
    let number = layer.number;
    let output = &mut listing.output;
    output.put(format!("{number:>5} {size:>10} {entries:>9}  {digest:<19}  "));
    output.put_name(
        format!("{:<9}  ", short_type(&layer.media_type)).as_bytes(),
        Style::Plain,
    );
    let words: Vec<&str> = layer
        .created_by
        .iter()
        .flat_map(|line| line.split_whitespace())
        .collect();
    output.put_name(words.join(" ").as_bytes(), Style::Plain);
    output.end_line().await
}

/// What a media type says of compression: `tar+gzip` of `application/vnd.oci.image.layer.v1.tar+gzip`.
fn short_type(media_type: &str) -> &str {
    match media_type.rfind(".tar") {
        Some(at) => &media_type[at + 1..],
        None => media_type,
    }
}
