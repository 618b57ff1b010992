//! A case: the layers of an image, what the mount must show of it, and where other tools show something else.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::{BuiltImage, ImageBuilder, Layer, Mount, RawTar, Tree, attempt};

/// The first line of a tar in the making.
pub fn tar() -> RawTar {
    RawTar::new()
}

/// An image, and what is right about it. Other tools must agree, unless it is said of them that they differ; then they
/// must differ indeed.
pub struct Case {
    layers: Vec<Layer>,
    root: Vec<String>,
    own: Vec<(usize, Vec<String>)>,
    warnings: Vec<&'static str>,
    differing: Vec<(Tool, &'static str)>,
}

/// A tool that extracts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tool {
    /// `umoci unpack`, of the whole image.
    Umoci,
    /// GNU tar, of each layer by itself.
    GnuTar,
    /// libarchive's tar, of each layer by itself.
    BsdTar,
}

impl Case {
    /// An image of these tars, base first.
    pub fn of<T: Into<Vec<u8>>>(layers: impl IntoIterator<Item = T>) -> Case {
        Case::of_layers(layers.into_iter().map(|tar| Layer::tar(tar)))
    }

    /// An image of these layers, base first.
    pub fn of_layers(layers: impl IntoIterator<Item = Layer>) -> Case {
        Case {
            layers: layers.into_iter().collect(),
            root: Vec::new(),
            own: Vec::new(),
            warnings: Vec::new(),
            differing: Vec::new(),
        }
    }

    /// The root shows this, a line for each path, as [`Tree::lines`] has them, with the number of names if several.
    pub fn root<S: Into<String>>(mut self, lines: impl IntoIterator<Item = S>) -> Case {
        self.root = lines.into_iter().map(Into::into).collect();
        self
    }

    /// `layers/NUMBER` shows this.
    pub fn own<S: Into<String>>(mut self, number: usize, lines: impl IntoIterator<Item = S>) -> Case {
        self.own.push((number, lines.into_iter().map(Into::into).collect()));
        self
    }

    /// The log has this in one of its lines.
    pub fn warns(mut self, text: &'static str) -> Case {
        self.warnings.push(text);
        self
    }

    /// `tool` makes something else of it, and why that is not right, or not to be compared.
    pub fn differs(mut self, tool: Tool, why: &'static str) -> Case {
        self.differing.push((tool, why));
        self
    }

    /// Mounts it, asks in several orders, and asks the other tools.
    #[track_caller]
    pub fn check(self) {
        let dir = tempfile::tempdir().expect("a directory");
        let image = ImageBuilder::of(self.layers.iter().cloned())
            .write(&dir.path().join("layout"), "latest")
            .expect("an image");
        let cache = dir.path().join("cache");
        let mount = || {
            let reference = format!("oci:{}:{}", image.layout.display(), image.tag);
            Mount::of(reference).cache(&cache).start()
        };

        // Every path by itself, while nothing is known of its layer, is what it is in the end.
        let fresh = mount();
        for (number, lines) in self.views().rev() {
            for line in lines.iter().rev() {
                assert_type(&view(&fresh, number), line);
            }
        }
        self.assert_shown(&fresh);
        let log = fresh.log();
        for warning in &self.warnings {
            assert!(log.contains(warning), "the log has no '{warning}':\n{log}");
        }
        fresh.unmount();
        // From the index on disk.
        let again = mount();
        self.assert_shown(&again);

        let merged = Tree::of(again.root()).without(is_layers);
        self.assert_tool(Tool::Umoci, &unpacked(&image, dir.path()), &merged);
        for tool in [Tool::GnuTar, Tool::BsdTar] {
            let differences: Result<Vec<String>, String> = (0..image.layers.len())
                .map(|number| {
                    let expected = extracted(tool, &image, number, dir.path())?;
                    Ok(compared(&Tree::of(view(&again, Some(number))), &expected))
                })
                .collect();
            self.assert_agrees(tool, differences.map(|all| all.concat()));
        }
        again.unmount();
    }

    /// The views that something is said of: the root first, then layers by their numbers.
    fn views(&self) -> impl DoubleEndedIterator<Item = (Option<usize>, &Vec<String>)> {
        let own = self.own.iter().map(|(number, lines)| (Some(*number), lines));
        std::iter::once((None, &self.root)).chain(own)
    }

    #[track_caller]
    fn assert_shown(&self, mount: &Mount) {
        for (number, expected) in self.views() {
            let root = view(mount, number);
            let tree = Tree::of(&root).without(|path| number.is_none() && is_layers(path));
            let shown = tree.lines().into_iter().zip(tree.paths().filter(|path| *path != b"."));
            let shown: Vec<String> = shown.map(|(line, path)| with_names(&root, path, line)).collect();
            assert_eq!(
                shown,
                *expected,
                "{}",
                number.map_or("the root".into(), |number| format!("layers/{number}"))
            );
        }
    }

    #[track_caller]
    fn assert_tool(&self, tool: Tool, truth: &Result<Tree, String>, shown: &Tree) {
        self.assert_agrees(tool, truth.clone().map(|truth| compared(shown, &truth)));
    }

    #[track_caller]
    fn assert_agrees(&self, tool: Tool, differences: Result<String, String>) {
        let why = self.differing.iter().find(|(other, _)| *other == tool);
        match (differences, why) {
            (Ok(differences), None) => assert!(differences.is_empty(), "{tool:?} has it otherwise: {differences}"),
            (Err(failure), None) => panic!("{tool:?}: {failure}"),
            (Ok(differences), Some((_, why))) => assert!(!differences.is_empty(), "{tool:?} does not differ ({why})"),
            (Err(_), Some(_)) => {}
        }
    }
}

fn view(mount: &Mount, layer: Option<usize>) -> PathBuf {
    match layer {
        None => mount.root().to_path_buf(),
        Some(number) => mount.path(format!("layers/{number}")),
    }
}

fn is_layers(path: &[u8]) -> bool {
    path == b"layers" || path.starts_with(b"layers/")
}

/// Adds the number of names.
fn with_names(root: &Path, path: &[u8], line: String) -> String {
    let metadata = fs::symlink_metadata(root.join(std::ffi::OsStr::from_bytes(path)));
    match metadata {
        Ok(metadata) if !metadata.is_dir() && metadata.nlink() > 1 => format!("{line} x{}", metadata.nlink()),
        _ => line,
    }
}

/// Looks up the path of an expected line, alone.
#[track_caller]
fn assert_type(root: &Path, line: &str) {
    let (path, rest) = line.split_once(' ').expect("a path and a type");
    let path = root.join(std::ffi::OsStr::from_bytes(&unescaped(path)));
    let metadata = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{line}: {error}"));
    let mode = metadata.mode() & nix::libc::S_IFMT;
    let kind = match mode {
        nix::libc::S_IFREG => "f",
        nix::libc::S_IFDIR => "d",
        nix::libc::S_IFLNK => "l",
        nix::libc::S_IFIFO => "p",
        nix::libc::S_IFCHR => "c",
        _ => "b",
    };
    assert!(rest.starts_with(kind), "{line}, by itself: {kind}");
}

/// The bytes that `escape_ascii` made a text of.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match (byte, byte == b'\\') {
            (byte, false) => byte,
            _ => match rest.next() {
                Some(b'x') => {
                    let digits: String = rest.by_ref().take(2).map(char::from).collect();
                    u8::from_str_radix(&digits, 16).expect("two digits")
                }
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'r') => b'\r',
                Some(other) => other,
                None => b'\\',
            },
        });
    }
    bytes
}

/// What differs, apart from what extraction cannot know: the times of directories that it had to make by itself, here
/// those that have no time in the mount.
fn compared(shown: &Tree, truth: &Tree) -> String {
    let timeless = shown.undated_directories();
    let without = |tree: &Tree| tree.clone().ignoring("mtime", |path| timeless.contains(path));
    without(shown).differences(&without(truth))
}

fn told(output: &Output) -> String {
    format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
}

/// What umoci makes of the image.
fn unpacked(image: &BuiltImage, dir: &Path) -> Result<Tree, String> {
    let bundle = dir.join("bundle");
    let source = format!("{}:{}", image.layout.display(), image.tag);
    let output = attempt(
        "umoci",
        &["unpack", "--image", &source, bundle.to_str().expect("UTF-8")],
    );
    match output.status.success() {
        true => Ok(Tree::of(bundle.join("rootfs"))),
        false => Err(told(&output)),
    }
}

/// What a tar makes of a layer.
fn extracted(tool: Tool, image: &BuiltImage, number: usize, dir: &Path) -> Result<Tree, String> {
    let archive = dir.join(format!("{tool:?}-{number}.tar"));
    let root = dir.join(format!("{tool:?}-{number}"));
    let mut tar = image.layers[number].tar().map_err(|error| error.to_string())?;
    let mut file = fs::File::create(&archive).map_err(|error| error.to_string())?;
    std::io::copy(&mut tar, &mut file).map_err(|error| error.to_string())?;
    fs::create_dir(&root).map_err(|error| error.to_string())?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
    let (program, options) = match tool {
        // Both so that the time of a directory is set when nothing is made in it any more.
        Tool::GnuTar => (
            "tar",
            "--same-owner --preserve-permissions --numeric-owner --xattrs --xattrs-include=* --delay-directory-restore",
        ),
        _ => (
            "bsdtar",
            "--same-owner --preserve-permissions --numeric-owner --xattrs --acls",
        ),
    };
    let mut arguments = vec!["--extract", "--directory", root.to_str().expect("UTF-8")];
    arguments.extend(options.split(' '));
    arguments.extend(["--file", archive.to_str().expect("UTF-8")]);
    let output = attempt(program, &arguments);
    match output.status.success() {
        true => Ok(Tree::of(&root)),
        false => Err(told(&output)),
    }
}
