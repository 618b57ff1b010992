//! Arguments in, messages and exit codes out; one file per subcommand.
//!
//! Exit codes: 0 done or found, 1 not found (or something on this machine failed), 2 wrong usage, 3 the image or its
//! bytes could not be had from its registry, layout or archive, 4 they are corrupt.

mod access;
mod cache;
mod carve;
mod completions;
mod daemon;
mod diff;
mod find;
mod history;
mod index;
mod layers;
mod listing;
mod log;
mod ls;
mod mount;
mod opening;
mod output;
mod progress;
mod serve;
mod size;
mod status;
mod umount;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::image::ImageError;
use crate::inspect::InspectError;
use crate::mount::MountError;
use crate::tree::TreeError;

/// What the exit codes mean, for `--help`.
const EXIT_CODES: &str = "Exit codes: 0 found, 1 not found, or this machine failed, 2 wrong usage, 3 the registry did not \
give what was asked for, 4 corrupt";

/// The exit codes.
mod code {
    pub(super) const FOUND: u8 = 0;
    pub(super) const NOT_FOUND: u8 = 1;
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const REGISTRY: u8 = 3;
    pub(super) const CORRUPT: u8 = 4;
}

/// Look inside a container image without pulling it.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount an image as a directory, straight from its registry
    Mount(Box<mount::Arguments>),
    /// Unmount it; also what is left when a daemon was killed
    #[command(visible_alias = "unmount")]
    Umount(umount::Arguments),
    /// Tell what is mounted, how far it is indexed and what it has cost
    Status(status::Arguments),
    /// Get files out of an image
    Carve(Box<carve::Arguments>),
    /// List what is in a directory of an image, with the layer of each entry
    Ls(Box<ls::Arguments>),
    /// Find names in all layers of an image
    Find(Box<find::Arguments>),
    /// List the layers of an image, and what made them
    Layers(Box<layers::Arguments>),
    /// Tell what each layer did to a path
    History(Box<history::Arguments>),
    /// Compare two images, or two layers of one
    Diff(Box<diff::Arguments>),
    /// Answer questions about images over HTTP, and show pages to people
    Serve(Box<serve::Arguments>),
    /// Index images ahead of time
    Index(Box<index::Arguments>),
    /// Look after the cache
    Cache(cache::Arguments),
    /// Write completions for a shell to standard output
    Completions(completions::Arguments),
    /// Write the man page, or that of a command, to standard output
    Man(completions::ManArguments),
}

/// What went wrong with a command: one sentence for the user, and the exit code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Image(Box<ImageError>),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error("{what}: {cause}")]
    Io {
        what: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("{0}")]
    Usage(String),
    /// It was told already, by the process that met it.
    #[error("the daemon could not be started")]
    Told(u8),
    /// By a signal of this number.
    #[error("interrupted")]
    Interrupted(u8),
    /// Nobody reads standard output any more, which is no failure.
    #[error("standard output is closed")]
    Closed,
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Failure {
        Failure::Image(Box::new(error))
    }
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Failure {
        Failure::Inspect(error.into())
    }
}

impl Failure {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Failure {
        let what = what.into();
        move |cause| Failure::Io { what, cause }
    }

    fn code(&self) -> u8 {
        match self {
            Failure::Mount(_) | Failure::Io { .. } => code::FAILED,
            Failure::Usage(_) | Failure::Inspect(InspectError::NoLayer { .. }) => code::USAGE,
            Failure::Inspect(error) if error.is_corrupt() => code::CORRUPT,
            Failure::Image(error) if error.is_corrupt() => code::CORRUPT,
            Failure::Inspect(error) if error.is_not_found() => code::NOT_FOUND,
            Failure::Inspect(_) | Failure::Image(_) => code::REGISTRY,
            Failure::Told(code) => *code,
            // As a shell says it.
            Failure::Interrupted(signal) => 128 + *signal,
            Failure::Closed => code::FOUND,
        }
    }
}

/// Tells the user something on standard error.
fn say(sentence: &str) {
    // Parts of it may be a stranger's: what a registry answered, what a file holds.
    eprintln!("peelfs: {}", sentence.replace(char::is_control, " "));
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let done = |()| code::FOUND;
    let result = match Arguments::parse().command {
        Command::Mount(arguments) => mount::run(&arguments).map(done),
        Command::Umount(arguments) => umount::run(&arguments).map(done),
        Command::Status(arguments) => status::run(&arguments).map(done),
        Command::Carve(arguments) => carve::run(&arguments),
        Command::Ls(arguments) => ls::run(&arguments),
        Command::Find(arguments) => find::run(&arguments),
        Command::Layers(arguments) => layers::run(&arguments),
        Command::History(arguments) => history::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Index(arguments) => index::run(&arguments),
        Command::Cache(arguments) => cache::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => completions::man(&arguments),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if !matches!(failure, Failure::Told(_) | Failure::Interrupted(_) | Failure::Closed) {
                say(&failure.to_string());
            }
            ExitCode::from(failure.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Arguments::command().debug_assert();
    }
}
