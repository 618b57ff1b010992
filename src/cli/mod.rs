//! Arguments in, messages and exit codes out; one file per subcommand.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the image could not be had from its registry, layout or archive.

mod access;
mod daemon;
mod log;
mod mount;
mod progress;
mod size;
mod status;
mod umount;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::image::ImageError;
use crate::mount::MountError;

/// Look inside a container image without pulling it.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
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
}

/// What went wrong with a command: one sentence for the user, and the exit code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Image(Box<ImageError>),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Tree(#[from] crate::tree::TreeError),
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
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Failure {
        Failure::Image(Box::new(error))
    }
}

impl Failure {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Failure {
        move |cause| Failure::Io {
            what: what.into(),
            cause,
        }
    }

    fn code(&self) -> u8 {
        match self {
            Failure::Mount(_) | Failure::Tree(_) | Failure::Io { .. } => 1,
            Failure::Usage(_) => 2,
            Failure::Image(_) => 3,
            Failure::Told(code) => *code,
        }
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Mount(arguments) => mount::run(&arguments),
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Told(_)) {
                // Parts of it may be a stranger's: what a registry answered, what a file holds.
                let sentence = failure.to_string().replace(char::is_control, " ");
                eprintln!("peelfs: {sentence}");
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
