//! `peelfs completions` and `peelfs man`: what the arguments are, for shells and for man(1).

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Failure, code};

/// What the program is called.
const NAME: &str = "peelfs";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArguments {
    /// A command of peelfs
    command: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Arguments::command(), NAME, &mut text);
    write(&text)
}

pub(super) fn man(arguments: &ManArguments) -> Result<u8, Failure> {
    let mut all = super::Arguments::command();
    all.build();
    let page = match &arguments.command {
        None => all,
        Some(name) => match all.find_subcommand(name) {
            Some(command) => command.clone(),
            None => return Err(Failure::Usage(format!("peelfs has no command '{name}'"))),
        },
    };
    let mut text = Vec::new();
    let made = clap_mangen::Man::new(page).render(&mut text);
    made.map_err(Failure::io("cannot make the page"))?;
    write(&text)
}

fn write(text: &[u8]) -> Result<u8, Failure> {
    match std::io::stdout().lock().write_all(text) {
        Ok(()) => Ok(code::FOUND),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Closed),
        Err(error) => Err(Failure::io("cannot write to standard output")(error)),
    }
}
