//! Layer semantics, written as plainly as possible, for the tree to be compared with: complete layers, maps of paths,
//! one layer extracted over the result of those below.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Whether there is something in it of which an index keeps too little to tell what extraction gives: how many names
    /// things have in a directory whose place a hard link to nothing took; a whiteout in the place of a directory.
    pub unclear: bool,
    /// Whether two members of a layer want one place by different paths: until a layer is complete, that is not known.
    pub contested: bool,
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
    /// What happened, one after the other.
    events: Vec<Event>,
    /// The line that declares the directory which an event has made, be it a later one: an entry holds before and after
    /// its children.
    declared: BTreeMap<usize, usize>,
    /// What the hard link of an event is.
    links: BTreeMap<usize, Option<usize>>,
}

/// A member of a layer, or a directory that its own tree has because of one.
#[derive(Debug, Clone)]
struct Event {
    /// The path as it was written.
    path: Path,
    /// The directory of the layer's own tree that it is in, as far as that exists.
    dir: Path,
    /// The path in that tree; as it was written if that has it nowhere.
    own: Path,
    is: EventIs,
}

#[derive(Debug, Clone)]
enum EventIs {
    /// The event that made it.
    Directory(usize),
    /// A directory to be in the way of something that was written with a symlink.
    OnTheWay,
    Leaf(usize),
    /// A hard link to a path, and what it is in its own layer, if that has it.
    Link(Path, Option<OwnIs>),
}

#[derive(Debug, Clone)]
struct OwnNode {
    /// The event that made it.
    event: usize,
    is: OwnIs,
    /// It is a directory where the layer had something else before.
    replacing: bool,
}

#[derive(Debug, Clone)]
enum OwnIs {
    /// With the line that declares it.
    Directory(Option<usize>),
    Leaf(usize),
    /// A hard link to a lower layer.
    Link,
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
            unclear: false,
            contested: false,
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
        own.nodes
            .insert(Path::new(), OwnNode::new(usize::MAX, OwnIs::Directory(None)));
        for (line, Line { path, what, .. }) in lines.iter().enumerate() {
            let written = clean(path);
            let Some((name, written_parents)) = written.split_last() else {
                if let What::Directory = what {
                    self.replaced |= own.declare(&Path::new(), line);
                }
                continue;
            };
            let whiteout = name.starts_with(".wh.");
            let what = if whiteout { &What::File(0) } else { what };
            let to = match what {
                What::Symlink(to) if to.is_empty() => continue,
                What::Hardlink(to) => clean(to),
                _ => Path::new(),
            };
            let is_link = matches!(what, What::Hardlink(_));
            if is_link && to.is_empty() {
                continue;
            }
            let parents = follow(written_parents, true, |path| self.own_symlink(&own, path));
            let dir = own.deepest(parents.as_deref().unwrap_or_default());
            let blocked = |parents: &Path| parents.len() > dir.len() && own.nodes.contains_key(&parents[..=dir.len()]);
            let hidden = |parents: &Path| whiteout || never_shown(&parents[dir.len() + 1..], true);
            let parents = parents.filter(|parents| !blocked(parents) || !hidden(parents));
            let target = self.own_target(&own, &to).filter(|_| is_link);
            let leaf = (!is_link && !matches!(what, What::Directory)).then(|| {
                self.inodes.push(Inode {
                    tag: (layer, line),
                    what: what.clone(),
                    names: 0,
                });
                self.inodes.len() - 1
            });
            let happens = |dir, own, made| Event {
                path: written.clone(),
                dir,
                own,
                is: match leaf {
                    Some(inode) => EventIs::Leaf(inode),
                    None if is_link => EventIs::Link(to.clone(), target.clone()),
                    None => EventIs::Directory(made),
                },
            };
            let Some(parents) = parents.filter(|_| !is_link || target.is_some()) else {
                // By itself the layer has it nowhere; over others it may be something.
                let event = happens(dir, written.clone(), own.events.len());
                if let EventIs::Directory(made) = event.is {
                    own.declared.insert(made, line);
                }
                own.events.push(event);
                continue;
            };
            for len in 1..=parents.len() {
                let parent = parents[..len].to_vec();
                if !own.is_directory(&parent) {
                    let replacing = own.remove(&parent);
                    self.replaced |= replacing;
                    let event = own.events.len();
                    own.events.push(Event {
                        path: parent.clone(),
                        dir: parent[..len - 1].to_vec(),
                        own: parent.clone(),
                        is: match parents == written_parents {
                            true => EventIs::Directory(event),
                            false => EventIs::OnTheWay,
                        },
                    });
                    let is = OwnIs::Directory(None);
                    own.nodes.insert(parent, OwnNode { event, is, replacing });
                }
            }
            let path = [&*parents, std::slice::from_ref(name)].concat();
            if own.is_directory(&path) && matches!(what, What::Directory) {
                self.replaced |= own.declare(&path, line);
                own.events.push(happens(parents, path.clone(), own.nodes[&path].event));
                continue;
            }
            let removed = own.remove(&path);
            self.replaced |= removed;
            let is = match (leaf, target.clone()) {
                (Some(inode), _) => OwnIs::Leaf(inode),
                (None, Some(is)) => is,
                (None, None) => OwnIs::Directory(Some(line)),
            };
            let replacing = removed && matches!(is, OwnIs::Directory(_));
            let event = own.events.len();
            if let OwnIs::Directory(_) = is {
                own.declared.insert(event, line);
            }
            own.events.push(happens(parents, path.clone(), event));
            own.nodes.insert(path, OwnNode { event, is, replacing });
        }
        let names: Vec<usize> = own.nodes.values().filter_map(OwnNode::leaf).collect();
        for inode in names {
            self.inodes[inode].names += 1;
        }
        own
    }

    fn own_symlink(&self, own: &Own, path: &Path) -> Option<String> {
        self.symlink(own.nodes.get(path)?.leaf()?)
    }

    fn symlink(&self, inode: usize) -> Option<String> {
        match &self.inodes[inode].what {
            What::Symlink(to) => Some(to.clone()),
            _ => None,
        }
    }

    /// What a hard link to `to` is in its own layer; None if it is left out.
    fn own_target(&self, own: &Own, to: &Path) -> Option<OwnIs> {
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
            Some(OwnIs::Directory(None)) if !own.has_more_than_whiteouts(&path) => Some(OwnIs::Link),
            Some(OwnIs::Directory(_)) => None,
            Some(other) => Some(other.clone()),
            None => Some(OwnIs::Link),
        }
    }

    /// Extracts layer `number` over `result`, which is what the layers below it give.
    fn extract(&mut self, number: usize, result: &mut BTreeMap<Path, Node>) {
        let own = self.own[number].clone();
        let mut disk = Disk {
            lower: result.clone(),
            result,
            mine: BTreeMap::new(),
            replaced: BTreeSet::new(),
            hidden: BTreeMap::new(),
        };
        if let Some(OwnIs::Directory(Some(line))) = own.nodes.get(&Path::new()).map(|node| &node.is) {
            disk.result.insert(Path::new(), Node::Directory(Some((number, *line))));
        }
        let mut links = BTreeMap::new();
        let mut opened = BTreeSet::new();
        let mut landed = Vec::new();
        for (happened, event) in own.events.iter().enumerate() {
            let Some((name, parents)) = event.path.split_last() else {
                continue;
            };
            let line = match event.is {
                EventIs::OnTheWay => continue,
                EventIs::Directory(made) => match own.declared.get(&made) {
                    Some(line) => Some(*line),
                    None => continue,
                },
                _ => None,
            };
            for len in 0..=event.dir.len() {
                // Whatever its place in the tar, a whiteout holds for all that its layer has in the same directory.
                if opened.insert(event.dir[..len].to_vec()) {
                    for whiteout in own.whiteouts_in(&event.dir[..len]) {
                        self.hide(&mut disk, number, whiteout);
                    }
                }
            }
            if matches!(event.is, EventIs::Leaf(_)) && name.starts_with(".wh.") {
                self.unclear |= own.events[..happened].iter().any(|other| under(&other.own, &event.own));
                self.hide(&mut disk, number, &event.path);
                continue;
            }
            // Making its parents may take away what a link is to; by itself a layer shows one that lands nowhere.
            let mut target = None;
            if let EventIs::Link(to, by_itself) = &event.is {
                target = self.linked(&disk, to, by_itself.as_ref());
                if target.is_none() && by_itself.is_none() {
                    continue;
                }
                links.insert(happened, target);
                let was = |other: &Event| other.own == event.own || under(&other.own, &event.own);
                self.unclear |= target.is_none() && own.events[..happened].iter().any(was);
                // Extraction makes a directory where it is declared; here it is made where a whiteout is below it, before.
                let in_the_way = matches!(by_itself, Some(OwnIs::Link)) && own.is_directory(to);
                self.unclear |= target.is_none() && in_the_way;
            }
            let Some(place) = self.place(&disk, parents) else {
                continue;
            };
            let at = [place.clone(), vec![name.clone()]].concat();
            let shown = !never_shown(&at, matches!(event.is, EventIs::Directory(_)));
            let in_the_way = |len| matches!(disk.result.get(&place[..len]), Some(Node::Leaf(_)));
            if shown {
                disk.make(&place);
            } else if (1..=place.len()).any(in_the_way) {
                // What nobody sees takes no one's place.
                continue;
            }
            if let (EventIs::Link(_, None), Some(inode)) = (&event.is, target) {
                self.inodes[inode].names += 1;
            }
            let leaf = !matches!(event.is, EventIs::Directory(_));
            self.contested |= landed.iter().any(|(other, by, other_leaf): &(Path, &Path, bool)| {
                let same = *other == at && **by != event.own;
                same || (leaf && under(other, &at)) || (*other_leaf && under(&at, other))
            });
            landed.push((at.clone(), &event.own, leaf));
            match &event.is {
                EventIs::Directory(_) if shown => disk.declare(&at, number, line),
                EventIs::Directory(_) | EventIs::OnTheWay => {}
                EventIs::Leaf(inode) => disk.put(&at, *inode, shown),
                EventIs::Link(..) => {
                    target.iter().for_each(|inode| disk.put(&at, *inode, shown));
                }
            }
        }
        for node in own.nodes.values() {
            if let (OwnIs::Link, Some(Some(inode))) = (&node.is, links.get(&node.event)) {
                self.inodes[*inode].names += 1;
            }
        }
        self.own[number].links = links;
    }

    /// Does what the whiteout that was written with `path` does.
    fn hide(&self, disk: &mut Disk<'_>, number: usize, path: &[String]) {
        let Some((name, path)) = path.split_last() else { return };
        let Some(place) = self.place(disk, path) else { return };
        let is_directory = |len| matches!(disk.result.get(&place[..len]), Some(Node::Directory(_)));
        if !(1..=place.len()).all(is_directory) {
            return;
        }
        if name == ".wh..wh..opq" {
            disk.remove(number, |path| under(path, &place));
        } else if !name.starts_with(".wh..wh.") {
            let gone = [place, vec![name[".wh.".len()..].to_owned()]].concat();
            disk.remove(number, |path| *path == gone || under(path, &gone));
        }
    }

    /// Where the directory that was written as `path` is by now; None if a loop of symlinks leads nowhere.
    fn place(&self, disk: &Disk<'_>, path: &[String]) -> Option<Path> {
        follow(path, true, |at| self.symlink_at(disk.result.get(at)))
    }

    fn symlink_at(&self, node: Option<&Node>) -> Option<String> {
        match node? {
            Node::Leaf(inode) => self.symlink(*inode),
            Node::Directory(_) => None,
        }
    }

    /// The inode that a link to `to` is by now, which is `by_itself` in its own layer.
    fn linked(&self, disk: &Disk<'_>, to: &Path, by_itself: Option<&OwnIs>) -> Option<usize> {
        let (name, parents) = to.split_last()?;
        // What the layer removes from lower ones can still be linked to.
        let look = |at: &Path| match disk.mine.contains_key(at) {
            true => disk.result.get(at).cloned(),
            false if (1..=at.len()).any(|len| disk.replaced.contains(&at[..len])) => None,
            false => disk.lower.get(at).cloned(),
        };
        let mut path = follow(parents, true, |at| self.symlink_at(look(at).as_ref()))?;
        let passable = (1..=path.len()).all(|len| matches!(look(&path[..len].to_vec()), Some(Node::Directory(_))));
        path.push(name.clone());
        if let Some(inode) = disk.hidden.get(&path) {
            return Some(*inode);
        }
        match look(&path) {
            Some(Node::Leaf(inode)) if passable => Some(inode),
            // What the link is to has become the directory that the link is in.
            Some(Node::Directory(_)) => match by_itself {
                Some(OwnIs::Leaf(inode)) => Some(*inode),
                _ => None,
            },
            _ => None,
        }
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
                OwnIs::Link => Node::Leaf((*own.links.get(&node.event)?)?),
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

/// A file system while a layer is being extracted to it.
struct Disk<'a> {
    /// As it was before.
    lower: BTreeMap<Path, Node>,
    result: &'a mut BTreeMap<Path, Node>,
    /// What exists because of this layer; of directories the line that declares them.
    mine: BTreeMap<Path, Option<usize>>,
    /// Directories in places where the layer had something else before.
    replaced: BTreeSet<Path>,
    /// What the layer has at paths that are never shown.
    hidden: BTreeMap<Path, usize>,
}

impl Disk<'_> {
    /// Removes what lower layers have at some paths.
    fn remove(&mut self, number: usize, gone: impl Fn(&Path) -> bool) {
        let mine = &self.mine;
        self.result.retain(|path, _| !gone(path) || mine.contains_key(path));
        for (path, line) in mine.iter().filter(|(path, _)| gone(path)) {
            if let Some(node @ Node::Directory(_)) = self.result.get_mut(path) {
                *node = Node::Directory(line.map(|line| (number, line)));
            }
        }
    }

    /// Makes a directory and those above it; whatever else is in the way goes.
    fn make(&mut self, path: &[String]) {
        for len in 1..=path.len() {
            let path = path[..len].to_vec();
            if !matches!(self.result.get(&path), Some(Node::Directory(_))) {
                if self.mine.contains_key(&path) {
                    self.replaced.insert(path.clone());
                }
                self.result.insert(path.clone(), Node::Directory(None));
            }
            self.mine.entry(path).or_insert(None);
        }
    }

    fn declare(&mut self, path: &Path, number: usize, line: Option<usize>) {
        self.make(path);
        self.mine.insert(path.clone(), line);
        self.result
            .insert(path.clone(), Node::Directory(line.map(|line| (number, line))));
    }

    fn put(&mut self, path: &Path, inode: usize, shown: bool) {
        if !shown {
            self.hidden.insert(path.clone(), inode);
            return;
        }
        let gone = |other: &Path| other == path || under(other, path);
        self.result.retain(|other, _| !gone(other));
        self.mine.retain(|other, _| !gone(other));
        self.replaced.retain(|other| !gone(other));
        self.result.insert(path.clone(), Node::Leaf(inode));
        self.mine.insert(path.clone(), None);
    }
}

impl Own {
    fn is_directory(&self, path: &[String]) -> bool {
        matches!(self.nodes.get(path), Some(node) if matches!(node.is, OwnIs::Directory(_)))
    }

    /// Gives the directory at `path` the attributes of `line`; true if it had others.
    fn declare(&mut self, path: &Path, line: usize) -> bool {
        let Some(node) = self.nodes.get_mut(path) else {
            return false;
        };
        self.declared.insert(node.event, line);
        match &mut node.is {
            OwnIs::Directory(declared) => declared.replace(line).is_some(),
            _ => false,
        }
    }

    /// The longest beginning of a path that is a directory.
    fn deepest(&self, path: &[String]) -> Path {
        let mut len = 0;
        while len < path.len() && self.is_directory(&path[..=len]) {
            len += 1;
        }
        path[..len].to_vec()
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

    /// How the whiteouts that are, or were before something took their place, in a directory were written.
    fn whiteouts_in<'a>(&'a self, path: &'a [String]) -> impl Iterator<Item = &'a Path> + 'a {
        self.nodes.iter().filter_map(move |(other, node)| {
            let (name, parents) = other.split_last()?;
            let is_one = parents == path && name.starts_with(".wh.") && node.is_or_was_leaf();
            is_one.then(|| &self.events[node.event].path)
        })
    }
}

/// Whether the rules keep a path out of the merged view: a whiteout, or anything that is aufs's or below it.
fn never_shown(path: &[String], directory: bool) -> bool {
    let last = path.last().is_some_and(|name| name.starts_with(".wh."));
    path.iter().any(|name| name.starts_with(".wh..wh.")) || last && !directory
}

impl OwnNode {
    fn new(event: usize, is: OwnIs) -> OwnNode {
        let replacing = false;
        OwnNode { event, is, replacing }
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
