//! What a script says in a directory, and that it says the same in another.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Output;

use crate::support::attempt;

/// Runs a bash script in a directory, of which no part may fail unseen.
pub fn inside(dir: &Path, script: &str) -> Output {
    let script = format!("cd \"$0\"; set -euo pipefail; export PATH=$PATH:/usr/sbin:/sbin\n{script}");
    attempt("bash", &[OsStr::new("-c"), script.as_ref(), dir.as_os_str()])
}

/// Asserts that a script does the same in both directories, and returns what it says on standard output.
#[track_caller]
pub fn assert_same(found: &Path, expected: &Path, script: &str) -> String {
    let [found, expected] = [found, expected].map(|dir| {
        let output = inside(dir, script);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&*dir.to_string_lossy(), "ROOT");
        (text(&output.stdout), text(&output.stderr), output.status.code())
    });
    assert_lines(&found.0, &expected.0, script);
    assert_eq!((&found.1, found.2), (&expected.1, expected.2), "{script}");
    found.0
}

/// Panics with the lines that only one of two texts has.
#[track_caller]
pub fn assert_lines(found: &str, expected: &str, what: &str) {
    if found == expected {
        return;
    }
    let only = |this: &str, other: &str, sign: &str| -> Vec<String> {
        let other: std::collections::HashSet<&str> = other.lines().collect();
        let lines = this.lines().filter(|line| !other.contains(line));
        lines.take(30).map(|line| format!("{sign} {line}")).collect()
    };
    let lines = [only(expected, found, "-"), only(found, expected, "+")].concat();
    panic!("{what}\ndiffers in\n{}", lines.join("\n"));
}
