//! A directory with everything that can differ in it, to compare with another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use peelfs::digest::Digest;

/// Files up to this size are compared, and shown, by their bytes; larger ones by a digest.
const SMALL: u64 = 100;

/// All paths below a directory, the directory itself as `.`, each with its attributes by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree(BTreeMap<Vec<u8>, Attributes>);

type Attributes = BTreeMap<&'static str, String>;

impl Tree {
    /// Reads the tree at `root`, contents included. What cannot be read shows as an error in its place.
    pub fn of(root: impl AsRef<Path>) -> Tree {
        let root = root.as_ref();
        let mut tree = BTreeMap::new();
        let mut inodes: HashMap<(u64, u64), Vec<Vec<u8>>> = HashMap::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let full = root.join(&path);
            let name = if path.as_os_str().is_empty() {
                b".".to_vec()
            } else {
                path.as_os_str().as_bytes().to_vec()
            };
            let mut attributes = Attributes::new();
            // Children first: the attributes of a directory may be provisional until it has been listed.
            let children = match fs::symlink_metadata(&full) {
                Ok(meta) if meta.is_dir() => {
                    Some(fs::read_dir(&full).and_then(|entries| entries.collect::<io::Result<Vec<_>>>()))
                }
                _ => None,
            };
            match children {
                Some(Ok(entries)) => waiting.extend(entries.iter().map(|entry| path.join(entry.file_name()))),
                Some(Err(error)) => {
                    attributes.insert("children", error.to_string());
                }
                None => {}
            }
            match fs::symlink_metadata(&full) {
                Ok(meta) => {
                    describe(&full, &meta, &mut attributes);
                    if !meta.is_dir() {
                        inodes.entry((meta.dev(), meta.ino())).or_default().push(name.clone());
                    }
                }
                Err(error) => {
                    attributes.insert("type", error.to_string());
                }
            }
            tree.insert(name, attributes);
        }
        let mut tree = Tree(tree);
        tree.link(inodes.into_values());
        tree
    }

    /// Notes with each path of a group, if there are several, the first of them.
    fn link(&mut self, groups: impl Iterator<Item = Vec<Vec<u8>>>) {
        for mut names in groups.filter(|names| names.len() > 1) {
            names.sort();
            for name in &names {
                if let Some(attributes) = self.0.get_mut(name) {
                    attributes.insert("link", shown(&names[0]));
                }
            }
        }
    }

    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Without the paths that `drop` picks.
    pub fn without(mut self, drop: impl Fn(&[u8]) -> bool) -> Tree {
        self.0.retain(|path, _| !drop(path));
        // A group may have lost names.
        let mut groups: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
        for (path, attributes) in &mut self.0 {
            if let Some(first) = attributes.remove("link") {
                groups.entry(first).or_default().push(path.clone());
            }
        }
        self.link(groups.into_values());
        self
    }

    /// Without the attribute `name` of the paths that `of` picks.
    pub fn ignoring(mut self, name: &str, of: impl Fn(&[u8]) -> bool) -> Tree {
        for attributes in self
            .0
            .iter_mut()
            .filter(|(path, _)| of(path))
            .map(|(_, attributes)| attributes)
        {
            attributes.retain(|other, _| *other != name);
        }
        self
    }

    /// All paths.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.0.keys().map(Vec::as_slice)
    }

    /// A line for each path but the root, in their order: the path, then a letter for what it is, as `ls` has it, then
    /// what is not usual: a mode other than 0644 (directories: 0755), an owner other than 0:0, a time other than the
    /// epoch; then the content (`=`), the size of a large file, a symlink's target, a device's numbers, the extended
    /// attributes, and the first name of the same inode.
    pub fn lines(&self) -> Vec<String> {
        self.0
            .iter()
            .filter(|(path, _)| *path != b".")
            .map(|(path, attributes)| format!("{} {}", shown(path).replace(' ', "\\x20"), line(path, attributes)))
            .collect()
    }

    /// The directories whose time is the epoch, as that of directories that no entry declares.
    pub fn undated_directories(&self) -> HashSet<Vec<u8>> {
        let is_one =
            |attributes: &Attributes| attributes["type"] == "directory" && attributes["mtime"] == "0.000000000";
        let ones = self.0.iter().filter(|(_, attributes)| is_one(attributes));
        ones.map(|(path, _)| path.clone()).collect()
    }

    /// Panics with what differs, and where.
    #[track_caller]
    pub fn assert_is(&self, expected: &Tree) {
        let differences = self.differences(expected);
        assert!(differences.is_empty(), "of {} paths, {}", expected.len(), differences);
    }

    /// A line for each difference, the first 40 of them; empty where there is none.
    pub fn differences(&self, expected: &Tree) -> String {
        let mut lines = Vec::new();
        for (path, wanted) in &expected.0 {
            match self.0.get(path) {
                None => lines.push(format!("{}: missing", shown(path))),
                Some(found) => {
                    let names = wanted
                        .keys()
                        .chain(found.keys().filter(|name| !wanted.contains_key(*name)));
                    for name in names.filter(|name| wanted.get(*name) != found.get(*name)) {
                        let value = |attributes: &Attributes| attributes.get(name).map_or("-".into(), String::clone);
                        lines.push(format!(
                            "{}: {name} is {}, not {}",
                            shown(path),
                            value(found),
                            value(wanted)
                        ));
                    }
                }
            }
        }
        lines.extend(
            self.0
                .keys()
                .filter(|path| !expected.0.contains_key(*path))
                .map(|path| format!("{}: should not be", shown(path))),
        );
        let mut text = String::new();
        if !lines.is_empty() {
            let _ = writeln!(text, "{} differences", lines.len());
            lines.iter().take(40).for_each(|line| {
                let _ = writeln!(text, "  {line}");
            });
        }
        text
    }
}

/// What [`Tree::lines`] says behind a path.
fn line(path: &[u8], attributes: &Attributes) -> String {
    let get = |name: &str| attributes.get(name).map_or("", String::as_str);
    let kind = match get("type") {
        "file" => "f",
        "directory" => "d",
        "symlink" => "l",
        "fifo" => "p",
        "character device" => "c",
        "block device" => "b",
        other => other,
    };
    let mut line = kind.to_string();
    let usual = if kind == "d" { "0755" } else { "0644" };
    for (name, usual) in [("mode", usual), ("owner", "0:0")] {
        if !["", usual].contains(&get(name)) {
            line += &format!(" {}", get(name));
        }
    }
    if get("mtime") != "0.000000000" {
        line += &format!(" @{}", get("mtime").trim_end_matches('0').trim_end_matches('.'));
    }
    for (name, before) in [("content", "="), ("target", "-> "), ("device", ""), ("children", "!")] {
        if let Some(value) = attributes.get(name) {
            line += &format!(" {before}{value}");
        }
    }
    if attributes.contains_key("sha256") {
        line += &format!(" {} bytes", get("size"));
    }
    if !get("xattrs").is_empty() {
        line += &format!(" {{{}}}", get("xattrs"));
    }
    if !["", &*shown(path)].contains(&get("link")) {
        line += &format!(" ~{}", get("link"));
    }
    line
}

fn describe(path: &Path, meta: &fs::Metadata, attributes: &mut Attributes) {
    let kind = meta.file_type();
    let name = match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () => "socket",
    };
    attributes.insert("type", name.into());
    attributes.insert("owner", format!("{}:{}", meta.uid(), meta.gid()));
    attributes.insert("mtime", format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()));
    if !kind.is_symlink() {
        attributes.insert("mode", format!("{:04o}", meta.mode() & 0o7777));
    }
    if kind.is_symlink() {
        let target =
            fs::read_link(path).map_or_else(|error| error.to_string(), |target| shown(target.as_os_str().as_bytes()));
        attributes.insert("target", target);
    }
    if kind.is_char_device() || kind.is_block_device() {
        attributes.insert(
            "device",
            format!(
                "{}:{}",
                nix::sys::stat::major(meta.rdev()),
                nix::sys::stat::minor(meta.rdev())
            ),
        );
    }
    if kind.is_file() {
        attributes.insert("size", meta.len().to_string());
        if meta.len() <= SMALL {
            let content = fs::read(path).map_or_else(|error| error.to_string(), |bytes| shown(&bytes));
            attributes.insert("content", content);
        } else {
            attributes.insert("sha256", hash(path).unwrap_or_else(|error| error.to_string()));
        }
    }
    match xattrs(path) {
        Ok(xattrs) if xattrs.is_empty() => {}
        Ok(xattrs) => {
            attributes.insert("xattrs", xattrs);
        }
        Err(error) => {
            attributes.insert("xattrs", error.to_string());
        }
    }
}

fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Digest::sha256(b"").hasher();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish().hex()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn xattrs(path: &Path) -> io::Result<String> {
    let mut all = Vec::new();
    for name in xattr::list(path)?.filter(|name| name != OsStr::new("security.selinux")) {
        let value = xattr::get(path, &name)?.unwrap_or_default();
        all.push(format!("{}={}", shown(name.as_bytes()), shown(&value)));
    }
    all.sort();
    Ok(all.join(" "))
}

/// Bytes for a person: printable ASCII as it is, the rest escaped.
fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
