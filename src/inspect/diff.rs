//! In what two views differ: of one image, or of two.

use std::cmp::Ordering;
use std::sync::Arc;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::entry::put_path;
use super::{Content, Entry, Follow, InspectError, Node, View, Walk};
use crate::index::Kind;
use crate::tree::Listing;

/// What is different about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// One is a file, say, and the other a directory.
    Type,
    /// The bytes of a file.
    Content,
    /// Where a symlink points.
    Target,
    /// Permission bits.
    Mode,
    /// User or group.
    Owner,
    /// Time of modification.
    Time,
    /// The numbers of a device.
    Device,
    /// Extended attributes.
    Xattrs,
}

impl Change {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Change::Type => "type",
            Change::Content => "content",
            Change::Target => "target",
            Change::Mode => "mode",
            Change::Owner => "owner",
            Change::Time => "time",
            Change::Device => "device",
            Change::Xattrs => "xattrs",
        }
    }
}

/// One side of a comparison: what is at a place in a view.
pub(super) type Side<'a> = (&'a View, &'a Arc<Node>);

/// What is different about two entries. Contents are read only where nothing else tells whether they are the same.
pub(super) async fn changes(a: Side<'_>, b: Side<'_>) -> Result<Vec<Change>, InspectError> {
    let (left, right) = (&a.1.attr, &b.1.attr);
    let mut changes = Vec::new();
    let mut note = |differs: bool, change| differs.then(|| changes.push(change));
    if left.kind != right.kind {
        note(true, Change::Type);
    } else {
        match left.kind {
            Kind::File => note(!same_content(a, b).await?, Change::Content),
            Kind::Symlink => {
                let targets = (a.0.tree().readlink(left.ino)?, b.0.tree().readlink(right.ino)?);
                note(targets.0 != targets.1, Change::Target)
            }
            _ => note((left.major, left.minor) != (right.major, right.minor), Change::Device),
        };
    }
    note(left.mode != right.mode, Change::Mode);
    note((left.uid, left.gid) != (right.uid, right.gid), Change::Owner);
    note(
        (left.mtime, left.mtime_nsec) != (right.mtime, right.mtime_nsec),
        Change::Time,
    );
    note(xattrs(a)? != xattrs(b)?, Change::Xattrs);
    Ok(changes)
}

/// Names and values of extended attributes.
type Xattrs = Vec<(Vec<u8>, Option<Vec<u8>>)>;

fn xattrs((view, node): Side<'_>) -> Result<Xattrs, InspectError> {
    let (tree, ino) = (view.tree(), node.attr.ino);
    let names = tree.xattr_names(ino)?.into_iter();
    let pairs = names.map(|name| tree.xattr(ino, &name).map(|value| (name, value)));
    Ok(pairs.collect::<Result<_, _>>()?)
}

/// Whether two files have the same bytes.
async fn same_content(a: Side<'_>, b: Side<'_>) -> Result<bool, InspectError> {
    let (left, right) = (&a.1.attr, &b.1.attr);
    if left.size != right.size {
        return Ok(false);
    }
    if left.size == 0 || is_same_entry(a, b) {
        return Ok(true);
    }
    let (mut a, mut b) = (Content::all(a.0, a.1.clone())?, Content::all(b.0, b.1.clone())?);
    loop {
        match futures_util::future::try_join(a.next(), b.next()).await? {
            (None, None) => return Ok(true),
            (left, right) if left != right => return Ok(false),
            _ => {}
        }
    }
}

/// Whether two files are one and the same entry of the same stream, in whatever images.
fn is_same_entry(a: Side<'_>, b: Side<'_>) -> bool {
    let stream = |(view, node): Side<'_>| {
        let (layer, entry) = node.attr.ino.as_own()?;
        let descriptor = view.tree().layers().get(layer)?.descriptor();
        // A layer that was only compressed anew has another digest, and the same tar.
        Some((descriptor.diff_id.unwrap_or(descriptor.digest), entry))
    };
    stream(a).is_some_and(|left| stream(b) == Some(left))
}

/// An entry that is not the same on both sides.
#[derive(Debug, Clone)]
pub struct Difference {
    /// The path from the root, without a leading slash.
    pub path: Vec<u8>,
    /// What the first view has there.
    pub before: Option<Entry>,
    /// What the second has.
    pub after: Option<Entry>,
    /// If both have something: what is different about it.
    pub changes: Vec<Change>,
}

impl Difference {
    /// `added`, `removed` or `changed`.
    pub fn word(&self) -> &'static str {
        match (&self.before, &self.after) {
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        }
    }
}

impl Serialize for Difference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        put_path(&mut map, &self.path)?;
        map.serialize_entry("status", self.word())?;
        map.serialize_entry("changes", &self.changes)?;
        map.serialize_entry("before", &self.before)?;
        map.serialize_entry("after", &self.after)?;
        map.end()
    }
}

/// Goes through two views side by side, in the order of names.
#[derive(Debug)]
pub struct Diff {
    views: [View; 2],
    frames: Vec<Frame>,
    /// Things that are to be looked at next: found under one name on one side or both.
    next: Option<[Option<Arc<Node>>; 2]>,
    /// What is below a directory that only one side has, and on which side that is.
    alone: Option<(usize, Walk)>,
}

/// A directory that both sides have.
#[derive(Debug)]
struct Frame {
    nodes: [Arc<Node>; 2],
    listings: [Arc<Listing>; 2],
    at: [usize; 2],
}

impl Diff {
    /// Of what is at `path` in `a` and in `b`, and below. A symlink at its end is not followed.
    ///
    /// # Errors
    /// [`InspectError::NotFound`] if neither has it, [`InspectError::Tree`].
    pub async fn of(a: View, b: View, path: &[u8]) -> Result<Diff, InspectError> {
        let there = |found: Result<Node, InspectError>| match found {
            Ok(node) => Ok(Some(Arc::new(node))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        };
        let left = there(a.resolve(path, Follow::Parents).await)?;
        let right = there(b.resolve(path, Follow::Parents).await)?;
        if left.is_none() && right.is_none() {
            let path = path.strip_prefix(b"/").unwrap_or(path).to_vec();
            return Err(InspectError::NotFound { path });
        }
        Ok(Diff {
            views: [a, b],
            frames: Vec::new(),
            next: Some([left, right]),
            alone: None,
        })
    }

    /// The next difference; none at the end.
    ///
    /// # Errors
    /// [`InspectError::Tree`].
    pub async fn next(&mut self) -> Result<Option<Difference>, InspectError> {
        loop {
            if let Some((side, walk)) = &mut self.alone {
                let side = *side;
                match walk.next().await? {
                    Some(node) => return self.only(side, &node).map(Some),
                    None => self.alone = None,
                }
            }
            let pair = match self.next.take() {
                Some(pair) => Some(pair),
                None => self.advance().await?,
            };
            let Some(pair) = pair else { return Ok(None) };
            if let Some(difference) = self.compare(pair).await? {
                return Ok(Some(difference));
            }
        }
    }

    /// The next name in the innermost directory, with what it is on each side.
    async fn advance(&mut self) -> Result<Option<[Option<Arc<Node>>; 2]>, InspectError> {
        while let Some(frame) = self.frames.last_mut() {
            let name = |side: usize| frame.listings[side].get(frame.at[side]).map(|listed| listed.name);
            let takes = match (name(0), name(1)) {
                (None, None) => {
                    self.frames.pop();
                    continue;
                }
                (Some(_), None) => [true, false],
                (None, Some(_)) => [false, true],
                (Some(left), Some(right)) => match left.cmp(right) {
                    Ordering::Less => [true, false],
                    Ordering::Greater => [false, true],
                    Ordering::Equal => [true, true],
                },
            };
            let mut pair = [None, None];
            for side in [0, 1].into_iter().filter(|side| takes[*side]) {
                let child = self.views[side].child(&frame.nodes[side], &frame.listings[side], frame.at[side]);
                pair[side] = child.await?.map(Arc::new);
                frame.at[side] += 1;
            }
            if pair.iter().any(Option::is_some) {
                return Ok(Some(pair));
            }
        }
        Ok(None)
    }

    /// What is different about what one name is on both sides; notes what is to be gone through next.
    async fn compare(&mut self, pair: [Option<Arc<Node>>; 2]) -> Result<Option<Difference>, InspectError> {
        let (left, right) = match pair {
            [Some(left), Some(right)] => (left, right),
            [Some(node), None] => return self.enter_alone(0, node).map(Some),
            [None, Some(node)] => return self.enter_alone(1, node).map(Some),
            [None, None] => return Ok(None),
        };
        let [a, b] = &self.views;
        let changes = changes((a, &left), (b, &right)).await?;
        let difference = match changes.is_empty() {
            true => None,
            false => Some(Difference {
                path: left.path.clone(),
                before: Some(Entry::of(a, &left)?),
                after: Some(Entry::of(b, &right)?),
                changes,
            }),
        };
        match (left.is_directory(), right.is_directory()) {
            (true, true) => {
                let listings = [a.list(&left).await?, b.list(&right).await?];
                // Those before are `.` and `..`.
                self.frames.push(Frame {
                    nodes: [left, right],
                    listings,
                    at: [2, 2],
                });
            }
            (true, false) => self.alone = Some((0, Walk::of(a, left, true))),
            (false, true) => self.alone = Some((1, Walk::of(b, right, true))),
            (false, false) => {}
        }
        Ok(difference)
    }

    fn enter_alone(&mut self, side: usize, node: Arc<Node>) -> Result<Difference, InspectError> {
        let difference = self.only(side, &node)?;
        if node.is_directory() {
            self.alone = Some((side, Walk::of(&self.views[side], node, true)));
        }
        Ok(difference)
    }

    fn only(&self, side: usize, node: &Node) -> Result<Difference, InspectError> {
        let entry = Some(Entry::of(&self.views[side], node)?);
        let (before, after) = if side == 0 { (entry, None) } else { (None, entry) };
        Ok(Difference {
            path: node.path.clone(),
            before,
            after,
            changes: Vec::new(),
        })
    }
}
