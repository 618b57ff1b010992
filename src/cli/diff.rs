//! `peelfs diff`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::listing::Listing;
use super::output::Style;
use super::{Failure, code, opening, progress};
use crate::image::reference::Reference;
use crate::inspect::{Change, Diff, Difference, Entry, Inspector, View};
use crate::tree::{self, Settings};

/// It is that of diff(1), but where there is nothing to compare.
const EXIT_CODES: &str = "Exit codes: 0 no difference, 1 differences, or the path is on neither side, 2 wrong usage, \
3 the registry did not give what was asked for, 4 corrupt";

#[derive(Debug, clap::Args)]
#[command(
    after_help = EXIT_CODES,
    override_usage = "peelfs diff [OPTIONS] <IMAGE> <IMAGE> [PATH]\n       peelfs diff [OPTIONS] <IMAGE> --layers <N> <M> [PATH]"
)]
pub(super) struct Arguments {
    /// The image, as for mount
    image: Reference,
    /// The image to compare it with, and a path in both; with --layers only a path
    #[arg(value_name = "IMAGE|PATH", num_args = 0..=2)]
    rest: Vec<OsString>,
    /// Compare two layers of the image, as the mount shows them below layers/
    #[arg(long, num_args = 2, value_names = ["N", "M"])]
    layers: Option<Vec<usize>>,
    /// With --layers: compare the image as it is after one layer with the image as it is after the other
    #[arg(long, requires = "layers")]
    merged: bool,
    /// Take no notice of times
    #[arg(long)]
    ignore_times: bool,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    opening: opening::Arguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let usage = |sentence: &str| Err(Failure::Usage(sentence.to_owned()));
    match (&arguments.layers, arguments.rest.as_slice()) {
        (Some(_), [_, _]) => usage("with --layers there is one image and one path"),
        (Some(layers), rest) => {
            let (layers, path) = (layers.as_slice(), path(rest.first()));
            arguments.opening.with_image(&arguments.image, async |inspector| {
                arguments.layers(inspector, layers, path).await
            })
        }
        (None, []) => usage("say what to compare the image with: another image, or --layers N M"),
        (None, [other, rest @ ..]) => {
            let other = match other.to_string_lossy().parse() {
                Ok(other) => other,
                Err(error) => return Err(Failure::Usage(format!("{error}"))),
            };
            let path = path(rest.first());
            arguments
                .opening
                .work(async |settings| arguments.images(settings, &other, path).await)
        }
    }
}

fn path(given: Option<&OsString>) -> &[u8] {
    given.map_or(b"/", |path| path.as_bytes())
}

impl Arguments {
    /// Compares two layers.
    async fn layers(&self, inspector: &Arc<Inspector>, layers: &[usize], path: &[u8]) -> Result<u8, Failure> {
        let view = |number: usize| match self.merged {
            true => inspector.stage(number),
            false => inspector.view(Some(number)),
        };
        let [a, b] = layers else {
            return Err(Failure::Usage("--layers takes two numbers".to_owned()));
        };
        self.compare(view(*a)?, view(*b)?, path).await
    }

    /// Compares two images. What they share is fetched once, as the second is opened when the first is known.
    async fn images(&self, settings: &Settings, other: &Reference, path: &[u8]) -> Result<u8, Failure> {
        let a = self.known(settings, &self.image).await?;
        let b = self.known(settings, other).await?;
        let result = self.compare(a.view(None)?, b.view(None)?, path).await;
        opening::rest(&a).await;
        opening::rest(&b).await;
        result
    }

    async fn known(&self, settings: &Settings, image: &Reference) -> Result<Arc<Inspector>, Failure> {
        let inspector = Inspector::new(&tree::open(image, settings).await?);
        progress::during(inspector.layers(), self.opening.quiet, inspector.complete()).await?;
        Ok(inspector)
    }

    async fn compare(&self, a: View, b: View, path: &[u8]) -> Result<u8, Failure> {
        let (layers, quiet) = (a.tree().layers().to_vec(), self.opening.quiet);
        let mut diff = progress::during(&layers, quiet, Diff::of(a, b, path)).await?;
        let mut listing = Listing::new(self.json);
        let mut result = code::FOUND;
        while let Some(mut difference) = diff.next().await? {
            if self.ignore_times && !difference.changes.is_empty() {
                difference.changes.retain(|change| *change != Change::Time);
                if difference.changes.is_empty() {
                    continue;
                }
            }
            result = code::NOT_FOUND;
            match self.json {
                true => listing.value(&difference).await?,
                false => line(&mut listing, &difference).await?,
            }
        }
        listing.finish().await?;
        Ok(result)
    }
}

/// A line as of `docker diff`, with what has changed.
async fn line(listing: &mut Listing, difference: &Difference) -> Result<(), Failure> {
    let (letter, style) = match difference.word() {
        "added" => ("A ", Style::Added),
        "removed" => ("D ", Style::Removed),
        _ => ("C ", Style::Plain),
    };
    listing.output.put(letter);
    listing
        .output
        .put_name(&[b"/", difference.path.as_slice()].concat(), style);
    if let (Some(before), Some(after)) = (&difference.before, &difference.after) {
        let words: Vec<String> = difference
            .changes
            .iter()
            .map(|change| words(*change, before, after))
            .collect();
        listing.output.put(format!(" ({})", words.join(", ")));
    }
    listing.output.end_line().await
}

/// What has changed, from what to what where that is short.
fn words(change: Change, before: &Entry, after: &Entry) -> String {
    let word = change.word();
    match change {
        Change::Mode => format!("{word} {:04o} to {:04o}", before.mode, after.mode),
        Change::Owner => format!("{word} {}:{} to {}:{}", before.uid, before.gid, after.uid, after.gid),
        Change::Content if before.size != after.size => format!("{word}, size {} to {}", before.size, after.size),
        _ => word.to_owned(),
    }
}
