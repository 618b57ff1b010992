//! Layer semantics, written as plainly as possible, for the tree to be compared with: complete layers, maps of paths,
//! one layer extracted over the result of those below.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::layer::sample::{Line, What};

type Path = Vec<String>;

/// Which line of which layer something is.
pub(super) type Tag = (usize, usize);

/// All there is in an image.
#[derive(Debug)]
pub(super) struct Model {
    inodes: Vec<Inode>,
    own: Vec<Own>,
    /// The result of each layer, merged with those below it.
    merged: Vec<BTreeMap<Path, Node>>,
    /// Whether a later member of a layer took the place of an earlier one.
    pub replaced: bool,
    /// Whether two members of a layer, one of them below a symlink of a lower layer, want the same place. Real tools
    /// differ in what comes of that, and no image has it.
    contested: bool,
    /// Whether a parent of a member was a hard link to a symlink of the same layer.
    followed_by_other_name: AtomicBool,
}

#[derive(Debug, Clone)]
struct Inode {
    tag: Tag,
    what: What,
    names: usize,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// With the member that declares it.
    Directory(Option<Tag>),
    /// The number of an inode.
    Leaf(usize),
}

/// One layer by itself.
#[derive(Debug, Clone, Default)]
struct Own {
    nodes: BTreeMap<Path, OwnNode>,
    /// Links to lower layers that were resolved.
    links: BTreeMap<Path, Option<usize>>,
}

#[derive(Debug, Clone)]
struct OwnNode {
    line: usize,
    is: OwnIs,
    /// It is a directory where the layer had something else before.
    replacing: bool,
}

#[derive(Debug, Clone)]
enum OwnIs {
    /// With the line that declares it.
    Directory(Option<usize>),
    Leaf(usize),
    /// A hard link to a path in lower layers.
    Link(Path),
}

fn clean(raw: &str) -> Path {
    let mut path = Path::new();
    for name in raw.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(path.pop()),
            name => path.push(name.to_owned()),
        }
    }
    path
}

fn under(path: &[String], base: &[String]) -> bool {
    path.len() > base.len() && path.starts_with(base)
}

/// Follows symlinks in `path`, in its last name only if `last`; `symlink` tells where the one at a path points. None if
/// there are too many.
fn follow(path: &[String], last: bool, symlink: impl Fn(&Path) -> Option<String>) -> Option<Path> {
    let mut done = Path::new();
    let mut todo: Vec<String> = path.iter().rev().cloned().collect();
    let mut hops = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            done.pop();
            continue;
        }
        done.push(name);
        let target = if todo.is_empty() && !last { None } else { symlink(&done) };
        if let Some(target) = target {
            hops += 1;
            if hops > 40 {
                return None;
            }
            done.pop();
            if target.starts_with('/') {
                done.clear();
            }
            let names = target.split('/').filter(|name| !name.is_empty() && *name != ".");
            todo.extend(names.rev().map(str::to_owned));
        }
    }
    Some(done)
}

impl Model {
    pub fn new(layers: &[Vec<Line>]) -> Model {
        let mut model = Model {
            inodes: Vec::new(),
            own: Vec::new(),
            merged: Vec::new(),
            replaced: false,
            contested: false,
            followed_by_other_name: AtomicBool::new(false),
        };
        for (number, lines) in layers.iter().enumerate() {
            let own = model.unpack(number, lines);
            model.own.push(own);
            let mut merged = match number {
                0 => BTreeMap::from([(Path::new(), Node::Directory(None))]),
                _ => model.merged[number - 1].clone(),
            };
            model.extract(number, &mut merged);
            model.merged.push(merged);
        }
        model
    }

    /// The tree of one tar.
    fn unpack(&mut self, layer: usize, lines: &[Line]) -> Own {
        let mut own = Own::default();
        own.nodes.insert(Path::new(), OwnNode::new(0, OwnIs::Directory(None)));
        for (line, Line { path, what, .. }) in lines.iter().enumerate() {
            let path = clean(path);
            let Some((name, parents)) = path.split_last() else {
                if let What::Directory = what {
                    self.replaced |= own.declare(&Path::new(), line);
                }
                continue;
            };
            let whiteout = name.starts_with(".wh.");
            let what = if whiteout { &What::File(0) } else { what };
            let Some(parents) = follow(parents, true, |path| self.own_symlink(&own, path)) else {
                continue;
            };
            let in_the_way = |len: usize| own.nodes.contains_key(&parents[..len]) && !own.is_directory(&parents[..len]);
            if whiteout && (1..=parents.len()).any(in_the_way) {
                continue;
            }
            let is = match what {
                What::Directory => OwnIs::Directory(Some(line)),
                What::Hardlink(to) => match self.own_target(&own, to) {
                    Some(is) => is,
                    None => continue,
                },
                What::Symlink(to) if to.is_empty() => continue,
                what => {
                    self.inodes.push(Inode {
                        tag: (layer, line),
                        what: what.clone(),
                        names: 0,
                    });
                    OwnIs::Leaf(self.inodes.len() - 1)
                }
            };
            for len in 1..=parents.len() {
                let parent = parents[..len].to_vec();
                if !own.is_directory(&parent) {
                    let replacing = own.remove(&parent);
                    self.replaced |= replacing;
                    let is = OwnIs::Directory(None);
                    own.nodes.insert(parent, OwnNode { line, is, replacing });
                }
            }
            let path = [parents, vec![name.clone()]].concat();
            if own.is_directory(&path) && matches!(what, What::Directory) {
                self.replaced |= own.declare(&path, line);
                continue;
            }
            let removed = own.remove(&path);
            self.replaced |= removed;
            let replacing = removed && matches!(is, OwnIs::Directory(_));
            own.nodes.insert(path, OwnNode { line, is, replacing });
        }
        let names: Vec<usize> = own.nodes.values().filter_map(OwnNode::leaf).collect();
        for inode in names {
            self.inodes[inode].names += 1;
        }
        own
    }

    fn own_symlink(&self, own: &Own, path: &Path) -> Option<String> {
        let node = own.nodes.get(path)?;
        let inode = node.leaf()?;
        if self.inodes[inode].tag.1 != node.line && self.symlink(inode).is_some() {
            // The index does not follow a symlink by its second name.
            self.followed_by_other_name.store(true, Ordering::Relaxed);
        }
        self.symlink(inode)
    }

    fn symlink(&self, inode: usize) -> Option<String> {
        match &self.inodes[inode].what {
            What::Symlink(to) => Some(to.clone()),
            _ => None,
        }
    }

    fn merged_symlink(&self, merged: &BTreeMap<Path, Node>, path: &Path) -> Option<String> {
        match merged.get(path)? {
            Node::Leaf(inode) => self.symlink(*inode),
            Node::Directory(_) => None,
        }
    }

    /// Where the symlink at `path` points, if there is one when the lines of the layer before `line` are extracted.
    fn symlink_then(&self, own: &Own, lower: &BTreeMap<Path, Node>, line: usize, path: &Path) -> Option<String> {
        match own.nodes.get(path).filter(|node| node.line < line) {
            None => self.merged_symlink(lower, path),
            Some(node) => match node.is {
                OwnIs::Leaf(inode) => self.symlink(inode).filter(|_| self.inodes[inode].tag.1 == node.line),
                OwnIs::Directory(None) => self.merged_symlink(lower, path),
                OwnIs::Directory(_) | OwnIs::Link(_) => None,
            },
        }
    }

    /// What a hard link to `to` is in its own layer; None if it is left out.
    fn own_target(&self, own: &Own, to: &str) -> Option<OwnIs> {
        let to = clean(to);
        let (name, parents) = to.split_last()?;
        if name.starts_with(".wh.") {
            return None;
        }
        let parents = follow(parents, true, |path| self.own_symlink(own, path))?;
        let in_the_way = |len: &usize| own.nodes.contains_key(&parents[..*len]) && !own.is_directory(&parents[..*len]);
        if (1..=parents.len()).any(|len| in_the_way(&len)) {
            return None;
        }
        let path = [parents, vec![name.clone()]].concat();
        match own.nodes.get(&path).map(|node| &node.is) {
            Some(OwnIs::Directory(_)) => None,
            Some(other) => Some(other.clone()),
            None => Some(OwnIs::Link(path)),
        }
    }

    /// Extracts layer `number` over `result`, which is what the layers below it give.
    fn extract(&mut self, number: usize, result: &mut BTreeMap<Path, Node>) {
        let lower = result.clone();
        let own = self.own[number].clone();
        let places = self.places(&own, &lower);

        // What it removes, it removes of what was there before.
        for (path, node) in &own.nodes {
            let Some((name, parents)) = path.split_last() else {
                continue;
            };
            let Some(place) = places.get(parents) else { continue };
            if node.replacing {
                let gone = [place.clone(), vec![name.clone()]].concat();
                result.retain(|path, _| *path != gone && !under(path, &gone));
            }
            let Some(name) = name.strip_prefix(".wh.").filter(|_| node.is_or_was_leaf()) else {
                continue;
            };
            if name == ".wh..opq" {
                result.retain(|path, _| !under(path, place));
            } else if !name.starts_with(".wh.") {
                let gone = [place.clone(), vec![name.to_owned()]].concat();
                result.retain(|path, _| *path != gone && !under(path, &gone));
            }
        }

        let mut taken: BTreeMap<Path, bool> = BTreeMap::new();
        for (path, node) in &own.nodes {
            let landed = match &node.is {
                OwnIs::Directory(_) => places.get(path),
                _ => path.split_last().and_then(|(_, parents)| places.get(parents)),
            };
            let directory = matches!(node.is, OwnIs::Directory(_));
            // A symlink may lead to such a name as well.
            let marked = never_shown(path, directory) || landed.is_some_and(|place| never_shown(place, true));
            match &node.is {
                OwnIs::Directory(_) if marked => {}
                OwnIs::Directory(declared) => {
                    let Some(place) = places.get(path) else { continue };
                    let solid = declared.is_some() || own.has_more_than_whiteouts(path);
                    if !solid {
                        continue;
                    }
                    make(result, place);
                    if let Some(line) = declared {
                        result.insert(place.clone(), Node::Directory(Some((number, *line))));
                        self.contested |= taken.insert(place.clone(), false).is_some();
                    }
                }
                OwnIs::Leaf(_) | OwnIs::Link(_) => {
                    let Some((name, parents)) = path.split_last() else {
                        continue;
                    };
                    let target = match &node.is {
                        OwnIs::Link(to) => self.linked(&own, &lower, &places, node.line, to),
                        OwnIs::Leaf(inode) => Some(*inode),
                        OwnIs::Directory(_) => None,
                    };
                    if let OwnIs::Link(_) = node.is {
                        self.own[number].links.insert(path.clone(), target);
                        target.iter().for_each(|inode| self.inodes[*inode].names += 1);
                    }
                    let (Some(inode), Some(place), false) = (target, places.get(parents), marked) else {
                        continue;
                    };
                    let place = [place.clone(), vec![name.clone()]].concat();
                    make(result, &place[..place.len() - 1]);
                    result.retain(|path, _| *path != place && !under(path, &place));
                    result.insert(place.clone(), Node::Leaf(inode));
                    self.contested |= taken.insert(place, true).is_some();
                }
            }
        }
        let leaves = taken.iter().filter(|(_, leaf)| **leaf).map(|(path, _)| path);
        let crossed = |leaf: &Path| places.values().any(|place| place == leaf || under(place, leaf));
        self.contested |= leaves.into_iter().any(crossed);
    }

    /// Where each directory of a layer lands; none for those that a loop of symlinks leads nowhere.
    fn places(&self, own: &Own, lower: &BTreeMap<Path, Node>) -> BTreeMap<Path, Path> {
        let mut places = BTreeMap::from([(Path::new(), Path::new())]);
        for (path, node) in &own.nodes {
            let (Some((name, parents)), OwnIs::Directory(declared)) = (path.split_last(), &node.is) else {
                continue;
            };
            let Some(base) = places.get(parents) else { continue };
            let here = [base.clone(), vec![name.clone()]].concat();
            let symlink = self.merged_symlink(lower, &here).is_some();
            if declared.is_some() || !symlink || own.removes(path) {
                places.insert(path.clone(), here);
            } else if let Some(target) = follow(&here, true, |path| self.symlink_then(own, lower, node.line, path)) {
                places.insert(path.clone(), target);
            }
        }
        places
    }

    /// The inode that a link, made by line `line`, to the path `to` outside of the layer's own tree is.
    fn linked(
        &mut self,
        own: &Own,
        lower: &BTreeMap<Path, Node>,
        places: &BTreeMap<Path, Path>,
        line: usize,
        to: &Path,
    ) -> Option<usize> {
        let path = follow(to, false, |path| self.symlink_then(own, lower, line, path))?;
        let in_the_way = |len: &usize| {
            let node = own.nodes.get(&path[..*len]);
            node.is_some_and(|node| node.line < line && !matches!(node.is, OwnIs::Directory(_)))
        };
        if (1..path.len()).any(|len| in_the_way(&len)) {
            return None;
        }
        // The path itself may pass through files.
        let passable = (1..path.len()).all(|len| matches!(lower.get(&path[..len]), Some(Node::Directory(_))));
        for (other, node) in own.nodes.iter().filter(|(_, node)| node.line < line) {
            let Some((name, parents)) = other.split_last() else {
                continue;
            };
            let place = places
                .get(parents)
                .map(|place| [place.clone(), vec![name.clone()]].concat());
            if place.as_ref() != Some(&path) && *other != path {
                continue;
            }
            if *other == *to || *other != path || place.as_ref() != Some(&path) {
                // Only since the link was made, or below a symlink itself.
                self.contested = true;
            }
            return match &node.is {
                OwnIs::Leaf(inode) => Some(*inode),
                OwnIs::Link(to) => self.linked(own, lower, places, node.line, to),
                OwnIs::Directory(_) => None,
            };
        }
        match lower.get(&path) {
            Some(Node::Leaf(inode)) if passable => Some(*inode),
            _ => None,
        }
    }

    /// Whether the rules tell all of it.
    pub fn is_clear(&self) -> bool {
        !self.contested && !self.followed_by_other_name.load(Ordering::Relaxed)
    }

    /// What the mount shows at its root; `Some(n)`: in `layers/n`.
    pub fn view(&self, layer: Option<usize>) -> BTreeMap<Path, Node> {
        let Some(layer) = layer else {
            return self.merged.last().cloned().unwrap_or_default();
        };
        let own = &self.own[layer];
        let node = |(path, node): (&Path, &OwnNode)| {
            let node = match &node.is {
                OwnIs::Directory(line) => Node::Directory(line.map(|line| (layer, line))),
                OwnIs::Leaf(inode) => Node::Leaf(*inode),
                OwnIs::Link(_) => Node::Leaf((*own.links.get(path)?)?),
            };
            Some((path.clone(), node))
        };
        own.nodes.iter().filter_map(node).collect()
    }

    pub fn tag(&self, node: &Node) -> Option<Tag> {
        match node {
            Node::Directory(tag) => *tag,
            Node::Leaf(inode) => Some(self.inodes[*inode].tag),
        }
    }

    pub fn what(&self, node: &Node) -> What {
        match node {
            Node::Directory(_) => What::Directory,
            Node::Leaf(inode) => self.inodes[*inode].what.clone(),
        }
    }

    pub fn names(&self, node: &Node) -> usize {
        match node {
            Node::Directory(_) => 1,
            Node::Leaf(inode) => self.inodes[*inode].names,
        }
    }
}

/// Makes a directory and those above it; whatever else is in the way goes.
fn make(result: &mut BTreeMap<Path, Node>, path: &[String]) {
    for len in 1..=path.len() {
        let path = path[..len].to_vec();
        if !matches!(result.get(&path), Some(Node::Directory(_))) {
            result.insert(path, Node::Directory(None));
        }
    }
}

impl Own {
    fn is_directory(&self, path: &[String]) -> bool {
        matches!(self.nodes.get(path), Some(node) if matches!(node.is, OwnIs::Directory(_)))
    }

    /// Gives the directory at `path` the attributes of `line`; true if it had others.
    fn declare(&mut self, path: &Path, line: usize) -> bool {
        match self.nodes.get_mut(path).map(|node| &mut node.is) {
            Some(OwnIs::Directory(declared)) => declared.replace(line).is_some(),
            _ => false,
        }
    }

    /// Takes away what is at `path`; true if anything was.
    fn remove(&mut self, path: &Path) -> bool {
        let before = self.nodes.len();
        self.nodes.retain(|other, _| other != path && !under(other, path));
        self.nodes.len() < before
    }

    fn has_more_than_whiteouts(&self, path: &Path) -> bool {
        let mut below = self.nodes.iter().filter(|(other, _)| under(other, path));
        below.any(|(other, node)| {
            !never_shown(&other[path.len()..], false) && !matches!(node.is, OwnIs::Directory(None))
        })
    }

    /// Whether the layer has a whiteout for `path`, or for anything above it.
    fn removes(&self, path: &Path) -> bool {
        (1..=path.len()).any(|len| {
            let (parents, name) = (&path[..len - 1], &path[len - 1]);
            let marker = |name: String| [parents, &[name]].concat();
            let file = |path: Path| self.nodes.get(&path).is_some_and(OwnNode::is_or_was_leaf);
            let whiteout = !name.starts_with(".wh.") && file(marker(format!(".wh.{name}")));
            let replacing = self.nodes.get(&path[..len]).is_some_and(|node| node.replacing);
            whiteout || replacing || file(marker(".wh..wh..opq".into()))
        })
    }
}

/// Whether the rules keep a path out of the merged view: a whiteout, or anything that is aufs's or below it.
fn never_shown(path: &[String], directory: bool) -> bool {
    let last = path.last().is_some_and(|name| name.starts_with(".wh."));
    path.iter().any(|name| name.starts_with(".wh..wh.")) || last && !directory
}

impl OwnNode {
    fn new(line: usize, is: OwnIs) -> OwnNode {
        let replacing = false;
        OwnNode { line, is, replacing }
    }

    fn is_or_was_leaf(&self) -> bool {
        self.replacing || !matches!(self.is, OwnIs::Directory(_))
    }

    fn leaf(&self) -> Option<usize> {
        match self.is {
            OwnIs::Leaf(inode) => Some(inode),
            _ => None,
        }
    }
}
