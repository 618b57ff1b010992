//! Commands that answer questions about an image without a mount, and an image to ask about.

use std::path::Path;
use std::process::Output;

use tempfile::TempDir;

use super::fixtures::Served;
use super::{Content, Entry, ImageBuilder, Layer, peelfs};

/// How one of these commands ended.
#[derive(Debug)]
pub struct Said {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Standard output as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("text")
    }

    /// Standard output, of a command that must have ended with 0 and without a complaint.
    #[track_caller]
    pub fn ok(self) -> Vec<u8> {
        assert!(self.code == 0 && self.err.is_empty(), "{self:?}");
        self.out
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            code: output.status.code().unwrap_or(-1),
            out: output.stdout,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// An image in a registry, and a cache for those who ask about it.
pub struct Asked {
    /// The image and its registry.
    pub served: Served,
    /// The cache directory is in it, and is there when it was used.
    pub dir: TempDir,
}

impl Asked {
    /// Of an image made in code.
    pub fn of(layers: impl IntoIterator<Item = Layer>) -> Asked {
        Asked::about(Served::made(&ImageBuilder::of(layers)))
    }

    /// Of an image that is served.
    pub fn about(served: Served) -> Asked {
        Asked {
            served,
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    /// The cache directory.
    pub fn cache(&self) -> std::path::PathBuf {
        self.dir.path().join("cache")
    }

    /// Runs `peelfs COMMAND [OPTION...] IMAGE [ARGUMENT...]`, in `words` without the image, which stands where `IMAGE` does.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Said {
        let reference = self.served.reference();
        let mut command = peelfs();
        for word in words {
            match word.as_ref() == "IMAGE" {
                true => command.arg(&reference),
                false => command.arg(word),
            };
        }
        command.env("PEELFS_CACHE_DIR", self.cache());
        command.output().expect("peelfs").into()
    }

    /// The same, of words in one string.
    pub fn ask(&self, words: &str) -> Said {
        self.run(&words.split(' ').collect::<Vec<_>>())
    }

    /// Requests for, and bytes of, all layers since the log was cleared.
    pub fn cost(&self) -> (usize, u64) {
        let log = self.served.registry.log();
        let requests = self
            .served
            .image
            .layers
            .iter()
            .map(|layer| log.requests_of(&layer.digest).len());
        (requests.sum(), self.served.layer_bytes())
    }
}

/// Four layers in which everything happens that can happen to a file:
///
/// | path | 0 | 1 | 2 | 3 |
/// |---|---|---|---|---|
/// | `etc/passwd` | added | content | | content |
/// | `etc/mode` | added | | mode | |
/// | `etc/old` | added | deleted | | |
/// | `etc/back` | added | deleted | added | |
/// | `gone/x` | added | deleted with `gone` | | |
/// | `becomes/inner` | added | `becomes` is a file | | |
/// | `opt/app/a`, `b` | added | | `opt/app` is opaque, with `c` | |
/// | `usr/lib/new` | | | | added as `lib/new` |
/// | `usr/bin/tool2` | | | hard link to `usr/bin/tool` | |
pub fn history() -> Vec<Layer> {
    let tool = Content::Noise { seed: 5, size: 300_000 };
    vec![
        Layer::of([
            Entry::dir("etc"),
            Entry::file("etc/passwd", "zero\n").mtime(1_000_000_000, 0),
            Entry::file("etc/mode", "mode\n"),
            Entry::file("etc/old", "old\n"),
            Entry::file("etc/back", "back 0\n"),
            Entry::symlink("etc/absolute", "/etc/passwd"),
            Entry::symlink("etc/above", "../../../../etc/passwd"),
            Entry::symlink("etc/loop", "loop"),
            Entry::symlink("etc/dangling", "/nowhere"),
            Entry::dir("usr"),
            Entry::dir("usr/bin"),
            Entry::file("usr/bin/tool", tool)
                .mode(0o4755)
                .owner(1, 2)
                .mtime(1_000_000_001, 500_000_000),
            Entry::dir("usr/lib"),
            Entry::file("usr/lib/libc", "libc\n"),
            Entry::symlink("bin", "usr/bin"),
            Entry::symlink("lib", "usr/lib"),
            Entry::dir("gone"),
            Entry::file("gone/x", "x\n"),
            Entry::dir("becomes"),
            Entry::file("becomes/inner", "inner\n"),
            Entry::dir("opt"),
            Entry::dir("opt/app"),
            Entry::file("opt/app/a", "a\n"),
            Entry::file("opt/app/b", "b\n"),
            Entry::dir("dev"),
            Entry::fifo("dev/pipe"),
        ]),
        Layer::of([
            Entry::dir("etc"),
            Entry::file("etc/passwd", "one, longer\n"),
            Entry::whiteout("etc/old"),
            Entry::whiteout("etc/back"),
            Entry::whiteout("gone"),
            Entry::file("becomes", "a file\n"),
        ]),
        Layer::of([
            Entry::dir("etc"),
            Entry::file("etc/mode", "mode\n").mode(0o600),
            Entry::file("etc/back", "back 2\n"),
            Entry::dir("opt"),
            Entry::dir("opt/app"),
            Entry::opaque("opt/app"),
            Entry::file("opt/app/c", "c\n"),
            Entry::dir("usr"),
            Entry::dir("usr/bin"),
            Entry::hardlink("usr/bin/tool2", "usr/bin/tool"),
        ]),
        Layer::of([
            Entry::dir("etc"),
            Entry::file("etc/passwd", "three\n"),
            Entry::file("lib/new", "new\n"),
            Entry::file(b"etc/caf\xe9", "coffee\n"),
        ]),
    ]
}

/// All files below a directory, by the part of their names before the first dot.
pub fn has_file_ending(dir: &Path, ending: &str) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|entry| entry.file_name().to_string_lossy().ends_with(ending))
}
