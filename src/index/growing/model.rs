//! A reference model of the rules of one layer, as plain as can be, and random layers to compare with it.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::digest::Digest;
use crate::index::sample::{same, tree};
use crate::index::{LayerFacts, LayerIndex, TarScanner};
use crate::stream::Compression;

type Path = Vec<String>;

#[derive(Clone)]
enum Node {
    Directory {
        mode: Option<u16>,
        whiteouts: bool,
        opaque: bool,
        replacing: bool,
    },
    /// A name of the inode of that number; `Some` with the path that a hardlink was made with.
    Inode(usize, Option<(Path, u16)>),
    /// A hard link to a lower layer, and whether it took the place of something else.
    Lower(Path, u16, bool),
}

struct Inode {
    kind: Kind,
    mode: u16,
    size: u64,
    link: String,
}

/// Every path that there is, and what it is.
struct Model {
    nodes: BTreeMap<Path, Node>,
    inodes: Vec<Inode>,
}

fn split(text: &str) -> impl DoubleEndedIterator<Item = String> + '_ {
    text.split('/')
        .filter(|name| !["", "."].contains(name))
        .map(str::to_owned)
}

fn clean(text: &str) -> Path {
    let mut path = Path::new();
    for name in split(text) {
        if name == ".." {
            path.pop();
        } else {
            path.push(name);
        }
    }
    path
}

impl Model {
    fn new() -> Model {
        let root = Node::Directory {
            mode: None,
            whiteouts: false,
            opaque: false,
            replacing: false,
        };
        Model {
            nodes: [(Path::new(), root)].into(),
            inodes: Vec::new(),
        }
    }

    fn symlink(&self, path: &Path) -> Option<&str> {
        match self.nodes.get(path) {
            Some(Node::Inode(i, _)) if self.inodes[*i].kind == Kind::Symlink => Some(&self.inodes[*i].link),
            _ => None,
        }
    }

    fn follow(&self, parents: &[String]) -> Option<Path> {
        let (mut done, mut todo) = (Path::new(), VecDeque::from(parents.to_vec()));
        let mut hops = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                done.pop();
                continue;
            }
            done.push(name);
            if let Some(link) = self.symlink(&done) {
                hops += 1;
                if hops > 40 {
                    return None;
                }
                done.pop();
                if link.starts_with('/') {
                    done.clear();
                }
                split(link).rev().for_each(|name| todo.push_front(name));
            }
        }
        Some(done)
    }

    fn is_directory(&self, path: &[String]) -> bool {
        matches!(self.nodes.get(path), Some(Node::Directory { .. }))
    }

    fn add(&mut self, kind: Kind, name: &str, link: &str, size: u64, mode: u16) {
        let mut path = clean(name);
        let Some(last) = path.pop() else {
            if let (Kind::Directory, Some(Node::Directory { mode: old, .. })) = (kind, self.nodes.get_mut(&path)) {
                *old = Some(mode);
            }
            return;
        };
        let whiteout = last.starts_with(".wh.");
        let kind = if whiteout { Kind::File } else { kind };
        let Some(parent) = self.follow(&path) else { return };
        let in_the_way = |len: usize| self.nodes.contains_key(&parent[..len]) && !self.is_directory(&parent[..len]);
        let first = (1..=parent.len()).find(|len| in_the_way(*len));
        let hidden = |len: usize| whiteout || parent[len..].iter().any(|name| name.starts_with(".wh..wh."));
        if first.is_some_and(hidden) {
            return;
        }
        let mut node = match kind {
            Kind::Directory => Node::Directory {
                mode: Some(mode),
                whiteouts: false,
                opaque: false,
                replacing: false,
            },
            Kind::Hardlink => match self.link(link, mode) {
                Some(node) => node,
                None => return,
            },
            kind => {
                let size = if whiteout { 0 } else { size };
                self.inodes.push(Inode {
                    kind,
                    mode,
                    size,
                    link: link.to_owned(),
                });
                Node::Inode(self.inodes.len() - 1, None)
            }
        };
        for len in 1..=parent.len() {
            if !self.is_directory(&parent[..len]) {
                let implied = Node::Directory {
                    mode: None,
                    whiteouts: false,
                    opaque: false,
                    replacing: self.nodes.contains_key(&parent[..len]),
                };
                self.nodes.insert(parent[..len].to_vec(), implied);
            }
        }
        if let Some(Node::Directory { whiteouts, opaque, .. }) = self.nodes.get_mut(&parent) {
            *whiteouts |= whiteout;
            *opaque |= last == ".wh..wh..opq";
        }
        let path = [parent, vec![last]].concat();
        match (&mut node, self.nodes.get(&path)) {
            (
                Node::Directory {
                    whiteouts,
                    opaque,
                    replacing,
                    ..
                },
                Some(Node::Directory {
                    whiteouts: w,
                    opaque: o,
                    replacing: r,
                    ..
                }),
            ) => {
                (*whiteouts, *opaque, *replacing) = (*w, *o, *r);
            }
            (new, old) => {
                if let (Node::Directory { replacing, .. } | Node::Lower(_, _, replacing), Some(_)) = (new, old) {
                    *replacing = true;
                }
                self.nodes.retain(|other, _| !other.starts_with(&path));
            }
        }
        self.nodes.insert(path, node);
    }

    fn link(&self, link: &str, mode: u16) -> Option<Node> {
        let mut path = clean(link);
        let last = path.pop()?;
        let path = self.follow(&path)?;
        let blocked =
            (1..=path.len()).any(|len| self.nodes.contains_key(&path[..len]) && !self.is_directory(&path[..len]));
        if blocked || last.starts_with(".wh.") {
            return None;
        }
        let path = [path, vec![last]].concat();
        match self.nodes.get(&path) {
            Some(node @ Node::Directory { .. }) if self.is_solid(node, &path) => None,
            Some(Node::Directory { .. }) => Some(Node::Lower(path, mode, false)),
            Some(Node::Inode(inode, _)) => Some(Node::Inode(*inode, Some((path, mode)))),
            Some(Node::Lower(lower, ..)) => Some(Node::Lower(lower.clone(), mode, false)),
            None => Some(Node::Lower(path, mode, false)),
        }
    }

    /// Whether a directory exists because of this layer.
    fn is_solid(&self, node: &Node, path: &Path) -> bool {
        let declared = |node: &Node| !matches!(node, Node::Directory { mode: None, .. });
        let below = |(other, node): (&Path, &Node)| {
            let names = other.strip_prefix(path.as_slice()).filter(|names| !names.is_empty())?;
            let reserved = names.iter().any(|name| name.starts_with(".wh..wh."));
            let whiteout = !matches!(node, Node::Directory { .. }) && other.last()?.starts_with(".wh.");
            (declared(node) && !reserved && !whiteout).then_some(())
        };
        declared(node) || self.nodes.iter().find_map(below).is_some()
    }

    /// What [`tree`] must show.
    fn tree(&self) -> Vec<String> {
        let names = |inode| {
            let is_it = |node: &&Node| matches!(node, Node::Inode(other, _) if *other == inode);
            match self.nodes.values().filter(is_it).count() {
                1 => String::new(),
                n => format!(" x{n}"),
            }
        };
        let line = |(path, node): (&Path, &Node)| {
            let unsolid = if self.is_solid(node, path) { "" } else { " unsolid" };
            let path = if path.is_empty() {
                "/".to_owned()
            } else {
                path.join("/")
            };
            match node {
                Node::Directory {
                    mode,
                    whiteouts,
                    opaque,
                    replacing,
                } => {
                    let implied = if mode.is_none() { " implied" } else { "" };
                    let whiteouts = if *whiteouts { " whiteouts" } else { "" };
                    let opaque = if *opaque { " opaque" } else { "" };
                    let replacing = if *replacing { " replacing" } else { "" };
                    let mode = mode.map_or(String::new(), |mode| format!(" {mode}"));
                    format!("d {path}{implied}{unsolid}{whiteouts}{opaque}{replacing}{mode}")
                }
                Node::Lower(link, mode, replacing) => {
                    let replacing = if *replacing { " replacing" } else { "" };
                    format!("h {path} => {}{replacing} {mode}", link.join("/"))
                }
                Node::Inode(i, Some((link, mode))) => {
                    format!(
                        "h {path} = {}({}){} {mode}",
                        link.join("/"),
                        self.inodes[*i].mode,
                        names(*i)
                    )
                }
                Node::Inode(i, None) => {
                    let Inode { kind, mode, size, link } = &self.inodes[*i];
                    let names = names(*i);
                    match kind {
                        Kind::Symlink => format!("l {path} -> {link}{names} {mode}"),
                        _ if *size > 0 => format!("f {path} {size} bytes{names} {mode}"),
                        _ => format!("f {path}{names} {mode}"),
                    }
                }
            }
        };
        self.nodes.iter().map(line).collect()
    }
}

fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => Just("a"), 4 => Just("b"), 3 => Just("c"), 1 => Just(".wh.a"), 1 => Just(".wh..wh..opq"), 1 => Just(".."),
        1 => Just("."),
    ];
    let slash = prop_oneof![6 => Just(""), 1 => Just("/"), 1 => Just("./")];
    (slash, prop::collection::vec(part, 1..5)).prop_map(|(slash, parts)| format!("{slash}{}", parts.join("/")))
}

fn entry() -> impl Strategy<Value = (Kind, String, String, u64)> {
    let kind = prop_oneof![
        2 => Just(Kind::Directory), 3 => Just(Kind::File), 2 => Just(Kind::Symlink), 2 => Just(Kind::Hardlink),
    ];
    (kind, name(), name(), prop_oneof![Just(0), Just(5), 500u64..1200])
}

/// A tar header with whatever name it is given.
fn append(tar: &mut Vec<u8>, kind: Kind, name: &str, link: &str, size: u64, mode: u16) {
    let mut header = tar::Header::new_ustar();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    let (flag, size) = match kind {
        Kind::Directory => (tar::EntryType::Directory, 0),
        Kind::Symlink => (tar::EntryType::Symlink, 0),
        Kind::Hardlink => (tar::EntryType::Link, 0),
        _ => (tar::EntryType::Regular, size),
    };
    header.set_entry_type(flag);
    header.set_mode(mode.into());
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.resize(tar.len() + size.next_multiple_of(512) as usize, 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_are_as_the_model_says(
        entries in prop::collection::vec(entry(), 0..30),
        pieces in prop::collection::vec(1usize..3000, 1..20),
    ) {
        let (mut model, mut tar) = (Model::new(), Vec::new());
        for (i, (kind, name, link, size)) in entries.iter().enumerate() {
            let mode = i as u16 + 1;
            model.add(*kind, name, link, *size, mode);
            append(&mut tar, *kind, name, link, *size, mode);
        }
        let (mut scanner, mut index) = (TarScanner::new(), GrowingIndex::new());
        let mut rest = tar.as_slice();
        for piece in pieces.iter().cycle() {
            let (head, tail) = rest.split_at(rest.len().min(*piece));
            scanner.feed(head, &mut index).unwrap();
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        scanner.finish().unwrap();
        let mut expected = model.tree();
        let mut found = tree(&index);
        expected.sort();
        found.sort();
        prop_assert_eq!(found, expected);

        let facts = LayerFacts {
            digest: Digest::sha256(b""),
            diff_id: Digest::sha256(b""),
            compression: Compression::None,
            compressed_size: tar.len() as u64,
            decompressed_size: tar.len() as u64,
        };
        same(&index, &LayerIndex::from_bytes(index.finish(&facts, [0; 32])).unwrap());
    }
}
