//! Other programs, none of which may hang a test.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};

/// Seconds after which a program is killed. Nothing in the tests should come near.
const DEADLINE: &str = "180";

fn command<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", DEADLINE, program])
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    // In a group of its own it is out of reach for a Ctrl-C, which then ends the test first, guards and all.
    command.process_group(0);
    command
}

/// Runs a program and returns how it ended and what it said.
pub fn attempt<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Output {
    command(program, arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs a program that must succeed and returns its standard output.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Vec<u8> {
    let output = attempt(program, arguments);
    let arguments: Vec<_> = arguments
        .iter()
        .map(|argument| argument.as_ref().to_string_lossy())
        .collect();
    assert!(
        output.status.success(),
        "{program} {}: {}\n{}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Starts a program, its output piped.
pub fn start<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Child {
    command(program, arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}
