//! The tree against the rules: small cases written by hand, and random images against the model.

mod cases;
mod random;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::model::{Model, Node, Tag};
use super::{Attr, Ino, Tree, TreeOptions};
use crate::digest::Digest;
use crate::index::Kind;
use crate::layer::Workshop;
use crate::layer::sample::{self, Dress, Line, What, gzip, image, lines, shown_content, tar};

/// An image whose layers are in memory.
struct Sample {
    layers: Vec<Vec<Line>>,
    blobs: Vec<(Vec<u8>, Digest)>,
    model: Model,
}

impl Sample {
    fn new(layers: Vec<Vec<Line>>) -> Sample {
        Sample::packed(layers, |_, tar| gzip(tar))
    }

    /// With the tar of each layer made into a blob by `pack`.
    fn packed(layers: Vec<Vec<Line>>, pack: impl Fn(usize, &mut Vec<u8>) -> Vec<u8>) -> Sample {
        let tars = layers
            .iter()
            .enumerate()
            .map(|(number, lines)| (number, tar(number, lines)));
        Sample {
            blobs: tars
                .map(|(number, mut tar)| (pack(number, &mut tar), Digest::sha256(&tar)))
                .collect(),
            model: Model::new(&layers),
            layers,
        }
    }

    fn parse(layers: &[&str]) -> Sample {
        Sample::new(layers.iter().map(|text| lines(text)).collect())
    }

    /// A fresh mount of it with its cache in `dir`.
    fn tree(&self, dir: &Path) -> Arc<Tree> {
        let workshop = Arc::new(Workshop::new(64 << 20, false));
        let descriptors: Vec<_> = self
            .blobs
            .iter()
            .map(|(blob, diff_id)| {
                let source = sample::Source::new(blob.clone());
                sample::descriptor(blob, Some(*diff_id), source)
            })
            .collect();
        let store = sample::store(dir);
        let layers = descriptors.iter().enumerate();
        let layers = layers
            .map(|(number, descriptor)| sample::layer_in(number, descriptor.clone(), &store, dir, &workshop))
            .collect();
        Tree::new(&image(descriptors), layers, TreeOptions::default())
    }

    fn content(&self, (layer, number): Tag) -> Vec<u8> {
        match &self.layers[layer][number] {
            line if is_whiteout(&line.path) => Vec::new(),
            line => shown_content(layer, number, line),
        }
    }

    /// What the model says of a view, a line per path.
    fn expected(&self, layer: Option<usize>) -> Vec<String> {
        let view = self.model.view(layer);
        let shown = |(path, node): (&Vec<String>, &Node)| (path.join("/"), self.expected_line(node));
        let mut lines: Vec<_> = view.iter().map(shown).collect();
        lines.sort();
        lines
            .into_iter()
            .map(|(path, line)| format!("{path}: {line}"))
            .collect()
    }

    fn expected_line(&self, node: &Node) -> String {
        let what = match self.model.what(node) {
            What::Directory => "d".to_owned(),
            What::File(_) => "f".to_owned(),
            What::Symlink(to) => format!("l {to}"),
            What::Fifo => "p".to_owned(),
            What::Device => "c".to_owned(),
            What::Hardlink(_) => unreachable!("links are what they link to"),
        };
        line(&what, self.model.tag(node), self.model.names(node))
    }

    /// What the tree shows below a directory, a line per path.
    async fn shown(&self, tree: &Tree, root: Ino) -> Vec<String> {
        let mut lines = vec![(String::new(), self.shown_line(tree, &tree.getattr(root).unwrap()).await)];
        let mut todo = vec![(String::new(), root)];
        while let Some((path, dir)) = todo.pop() {
            let listing = tree.list(dir).await.unwrap();
            for listed in listing.iter().skip(2).filter(|listed| listed.ino != Ino::LAYERS) {
                let path = format!("{path}/{}", String::from_utf8_lossy(listed.name));
                let found = tree.lookup(dir, listed.name).await.unwrap();
                let attr = found.unwrap_or_else(|| panic!("{path} is listed and not found"));
                assert_eq!(
                    (listed.ino, listed.kind),
                    (attr.ino, attr.kind),
                    "{path} is listed as it is"
                );
                let attr_of_listed = tree.listed_attr(dir, &listed).await.unwrap().unwrap();
                tree.hold(&attr);
                assert!(attr.settled, "{path}: all is known");
                for other in [attr_of_listed, tree.getattr(attr.ino).unwrap()] {
                    let facts = |attr: &Attr| (attr.ino, attr.mode, attr.uid, attr.nlink, attr.size, attr.settled);
                    assert_eq!(facts(&other), facts(&attr), "{path}");
                }
                lines.push((path[1..].to_owned(), self.shown_line(tree, &attr).await));
                if attr.kind == Kind::Directory {
                    todo.push((path, attr.ino));
                }
            }
        }
        lines.sort();
        lines
            .into_iter()
            .map(|(path, line)| format!("{path}: {line}"))
            .collect()
    }

    async fn shown_line(&self, tree: &Tree, attr: &Attr) -> String {
        let implied = attr.kind == Kind::Directory && attr.mode == 0o755;
        let tag = (!implied).then(|| (attr.uid as usize, usize::from(attr.mode) - 1));
        if let Some((layer, number)) = tag {
            let line = &self.layers[layer][number];
            let names = tree.xattr_names(attr.ino).unwrap().into_iter();
            let value = |name: Vec<u8>| {
                let value = tree.xattr(attr.ino, &name).unwrap().unwrap();
                (String::from_utf8(name).unwrap(), value)
            };
            let found = (
                attr.gid,
                (attr.mtime, attr.mtime_nsec),
                names.map(value).collect::<Vec<_>>(),
            );
            let Dress {
                gid, mtime, mut xattrs, ..
            } = line.dress.clone();
            // Linux has those that begin with `user.` of files and directories only.
            let users = matches!(attr.kind, Kind::File | Kind::Directory);
            xattrs.retain(|(name, _)| !is_whiteout(&line.path) && (users || !name.starts_with("user.")));
            assert_eq!(found, (gid, mtime, xattrs), "{line:?}");
        }
        let what = match attr.kind {
            Kind::Directory => "d".to_owned(),
            Kind::File => {
                let tag = tag.unwrap();
                let (half, all) = ((attr.size / 2) as usize, attr.size as usize);
                let mut bytes = tree.read(attr.ino, 0, half).await.unwrap().bytes.to_vec();
                let rest = tree.read(attr.ino, half as u64, all + 1).await.unwrap().bytes;
                bytes.extend_from_slice(&rest);
                let name = if bytes == self.content(tag) {
                    "f"
                } else {
                    "f with other bytes"
                };
                name.to_owned()
            }
            Kind::Symlink => format!("l {}", String::from_utf8(tree.readlink(attr.ino).unwrap()).unwrap()),
            Kind::Fifo => "p".to_owned(),
            Kind::CharDevice => "c".to_owned(),
            other => panic!("{other:?}"),
        };
        line(&what, tag, attr.nlink as usize)
    }

    /// Compares all of a tree with the model.
    async fn compare(&self, tree: &Tree) {
        tree.index_all().await.unwrap();
        assert_eq!(self.shown(tree, Ino::ROOT).await, self.expected(None), "merged");
        for number in 0..self.layers.len() {
            let layer = lookup(tree, &["layers", &number.to_string()]).await.unwrap();
            assert_eq!(
                self.shown(tree, layer.ino).await,
                self.expected(Some(number)),
                "layers/{number}"
            );
        }
    }
}

fn is_whiteout(path: &str) -> bool {
    let name = path.trim_end_matches('/').rsplit('/').next();
    name.is_some_and(|name| name.starts_with(".wh."))
}

fn line(what: &str, tag: Option<Tag>, names: usize) -> String {
    let tag = tag.map_or("-".to_owned(), |(layer, line)| format!("{layer}.{line}"));
    match names {
        0 | 1 => format!("{what} {tag}"),
        names => format!("{what} {tag} x{names}"),
    }
}

/// Looks a path up and holds all that is on it, as the kernel does.
async fn lookup(tree: &Tree, path: &[&str]) -> Option<Attr> {
    let mut at = tree.getattr(Ino::ROOT).unwrap();
    for name in path {
        if at.kind != Kind::Directory {
            return None;
        }
        at = tree.lookup(at.ino, name.as_bytes()).await.unwrap()?;
        tree.hold(&at);
    }
    Some(at)
}

/// Inode numbers of the merged view and of a layer that should be one.
#[tokio::test]
async fn a_file_has_one_number_in_every_view() {
    let sample = Sample::parse(&["f a\nh b a", "h c b"]);
    let dir = tempfile::tempdir().unwrap();
    let tree = sample.tree(dir.path());
    let mut numbers = BTreeMap::new();
    for path in [
        &["a"][..],
        &["b"],
        &["c"],
        &["layers", "0", "a"],
        &["layers", "0", "b"],
        &["layers", "1", "c"],
    ] {
        let attr = lookup(&tree, path).await.unwrap();
        numbers.entry(attr.ino).or_insert_with(Vec::new).push(path);
    }
    assert_eq!(numbers.len(), 1, "{numbers:?}");
    tree.index_all().await.unwrap();
    assert_eq!(lookup(&tree, &["a"]).await.unwrap().nlink, 3);
}

/// To look through a layer may take looks through all below it, one on top of the other.
#[test]
fn as_many_layers_as_there_may_be_fit_on_a_stack() {
    let layers: Vec<String> = (0..128).map(|number| format!("f a/{number}/x")).collect();
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    let sample = Sample::parse(&layers);
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _runtime = runtime.enter();
    // What a thread of the mount's session has.
    let looked = std::thread::scope(|scope| {
        let look = || {
            runtime.block_on(async {
                let tree = sample.tree(dir.path());
                tree.index_all().await.unwrap();
                let remounted = sample.tree(dir.path());
                let missing = lookup(&remounted, &["a", "nothing"]).await;
                (missing.is_none(), lookup(&remounted, &["a", "0", "x"]).await.is_some())
            })
        };
        std::thread::Builder::new()
            .stack_size(2 << 20)
            .spawn_scoped(scope, look)
            .unwrap()
            .join()
            .unwrap()
    });
    assert_eq!(looked, (true, true));
}
