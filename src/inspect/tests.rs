//! What is told of random images, against the plainest way to find it out: to compare whole listings.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::digest::Digest;
use crate::index::Kind;
use crate::layer::Workshop;
use crate::layer::sample::{self, gzip, image, lines, tar};
use crate::tree::Ino;

/// The image whose layers are these lines.
fn inspector(layers: &[String], dir: &Path) -> Arc<Inspector> {
    let workshop = Arc::new(Workshop::new(64 << 20, false));
    let blobs = layers
        .iter()
        .enumerate()
        .map(|(number, text)| tar(number, &lines(text)));
    let descriptors: Vec<_> = blobs
        .map(|tar| {
            let blob = gzip(&tar);
            sample::descriptor(&blob, Some(Digest::sha256(&tar)), sample::Source::new(blob.clone()))
        })
        .collect();
    let store = sample::store(dir);
    let layers = descriptors.iter().enumerate();
    let layers = layers
        .map(|(number, descriptor)| sample::layer_in(number, descriptor.clone(), &store, dir, &workshop))
        .collect();
    let image = image(descriptors);
    let tree = Tree::new(&image, layers, TreeOptions::default());
    Inspector::new(&Opened { image, tree, workshop })
}

/// All that a view shows.
async fn all(view: &View) -> BTreeMap<Vec<u8>, (Ino, Kind)> {
    let mut walk = Walk::of(view, Arc::new(view.root().unwrap()), true);
    let mut all = BTreeMap::new();
    while let Some(node) = walk.next().await.unwrap() {
        assert!(all.insert(node.path.clone(), (node.attr.ino, node.attr.kind)).is_none());
    }
    all
}

type Stages = Vec<BTreeMap<Vec<u8>, (Ino, Kind)>>;

/// What became of `path` by what a stage did.
fn fate(stage: &BTreeMap<Vec<u8>, (Ino, Kind)>, number: usize, path: &[u8]) -> Hidden {
    if stage.contains_key(path) {
        return Hidden::Overridden(number);
    }
    let mut parent = path;
    while let Some(at) = parent.iter().rposition(|byte| *byte == b'/') {
        parent = &parent[..at];
        match stage.get(parent) {
            Some((_, Kind::Directory)) => return Hidden::Deleted(number),
            Some(_) => return Hidden::Overridden(number),
            None => {}
        }
    }
    Hidden::Deleted(number)
}

/// All versions of a path, the newest first.
fn versions(stages: &Stages, path: &[u8]) -> Vec<(Kind, Option<Hidden>)> {
    let mut versions = Vec::new();
    let mut had_directory = false;
    for (number, stage) in stages.iter().enumerate().rev() {
        let Some(&(ino, kind)) = stage.get(path) else { continue };
        let next = stages.get(number + 1).map(|stage| stage.get(path).copied());
        let goes_on = next == Some(Some((ino, kind)));
        if goes_on || kind == Kind::Directory && std::mem::replace(&mut had_directory, true) {
            continue;
        }
        versions.push((kind, next.map(|_| fate(&stages[number + 1], number + 1, path))));
    }
    versions
}

async fn check_versions(inspector: &Arc<Inspector>, stages: &Stages) {
    let mut told: BTreeMap<Vec<u8>, Vec<(Kind, Option<Hidden>)>> = BTreeMap::new();
    let mut all = Versions::at(inspector, b"/", true).await.unwrap();
    while let Some(entry) = all.next().await.unwrap() {
        told.entry(entry.path).or_default().push((entry.kind, entry.hidden));
    }
    let paths = stages.iter().flat_map(|stage| stage.keys());
    let expected: BTreeMap<_, _> = paths.map(|path| (path.clone(), versions(stages, path))).collect();
    assert_eq!(told, expected);
}

async fn check_histories(inspector: &Arc<Inspector>, stages: &Stages) {
    let paths: std::collections::BTreeSet<_> = stages.iter().flat_map(|stage| stage.keys()).collect();
    for path in paths {
        // What a layer does to a directory shows in more than whether it is there.
        if stages
            .iter()
            .any(|stage| matches!(stage.get(path), Some((_, Kind::Directory))))
        {
            continue;
        }
        let there = |number: usize| stages[number].get(path).copied();
        let changed = |number: &usize| there(*number) != number.checked_sub(1).and_then(there);
        let expected: Vec<usize> = (0..stages.len()).filter(changed).collect();
        // The path may be a symlink's in the parent part in one stage and not in another: what is meant is the newest.
        let (newest, _) = inspector.newest(path).await.unwrap();
        if newest == *path {
            let told = inspector.history(path, false).await.unwrap();
            let told: Vec<usize> = told.iter().map(|event| event.layer).collect();
            assert_eq!(told, expected, "{}", path.escape_ascii());
        }
    }
}

async fn check_diff(inspector: &Inspector, stages: &Stages, a: usize, b: usize) {
    let views = (inspector.stage(a).unwrap(), inspector.stage(b).unwrap());
    let mut diff = Diff::of(views.0, views.1, b"").await.unwrap();
    let mut told = BTreeMap::new();
    while let Some(difference) = diff.next().await.unwrap() {
        assert!(told.insert(difference.path.clone(), difference.word()).is_none());
    }
    // The root may have been declared.
    told.remove(&b""[..]);
    let (left, right) = (&stages[a], &stages[b]);
    for path in left.keys().chain(right.keys()) {
        let expected = match (left.get(path), right.get(path)) {
            (Some(_), None) => Some("removed"),
            (None, Some(_)) => Some("added"),
            (Some((_, Kind::Directory)), Some((_, Kind::Directory))) => continue,
            // Every line has another mode, or owner.
            (Some(left), Some(right)) => (left != right).then_some("changed"),
            (None, None) => None,
        };
        assert_eq!(told.get(path).copied(), expected, "{}", path.escape_ascii());
    }
}

fn path(most: usize) -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    prop::collection::vec(name, 1..=most).prop_map(|names| names.join("/"))
}

/// One line of a layer.
fn member() -> impl Strategy<Value = String> {
    let whiteout = |path: String| match path.rsplit_once('/') {
        Some((parents, name)) => format!("f {parents}/.wh.{name}"),
        None => format!("f .wh.{path}"),
    };
    prop_oneof![
        4 => path(3).prop_map(|path| format!("d {path}")),
        5 => path(3).prop_map(|path| format!("f {path}")),
        2 => (path(2), path(2)).prop_map(|(path, to)| format!("l {path} /{to}")),
        1 => (path(3), path(3))
            .prop_filter("a link to itself", |(path, to)| path != to)
            .prop_map(|(path, to)| format!("h {path} {to}")),
        3 => path(3).prop_map(whiteout),
        1 => path(2).prop_map(|path| format!("f {path}/.wh..wh..opq")),
    ]
}

fn layers() -> impl Strategy<Value = Vec<String>> {
    let layer = prop::collection::vec(member(), 0..10).prop_map(|lines| lines.join("\n"));
    prop::collection::vec(layer, 1..=5)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn what_is_told_is_what_listings_differ_in(layers in layers()) {
        let dir = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let inspector = inspector(&layers, dir.path());
            inspector.complete().await.unwrap();
            let mut stages = Vec::new();
            for number in 0..layers.len() {
                stages.push(all(&inspector.stage(number).unwrap()).await);
            }
            assert_eq!(stages.last(), Some(&all(&inspector.view(None).unwrap()).await));
            check_versions(&inspector, &stages).await;
            check_histories(&inspector, &stages).await;
            for b in 0..layers.len() {
                check_diff(&inspector, &stages, 0, b).await;
            }
        });
    }
}

/// A layer that has its entries where a symlink of a lower one leads cannot be judged by the paths in its tar.
#[tokio::test(flavor = "multi_thread")]
async fn a_whiteout_below_a_symlink_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let layers = ["d usr\nd usr/lib\nf usr/lib/x\nl lib usr/lib", "f other", "f lib/.wh.x"];
    let inspector = inspector(&layers.map(str::to_owned), dir.path());
    let mut versions = Versions::at(&inspector, b"/usr/lib", false).await.unwrap();
    let entry = versions.next().await.unwrap().unwrap();
    assert_eq!(
        (entry.path.as_slice(), entry.hidden),
        (&b"usr/lib/x"[..], Some(Hidden::Deleted(2)))
    );
    assert!(versions.next().await.unwrap().is_none());
}

/// A server answers from tasks that move between threads.
#[tokio::test(flavor = "multi_thread")]
async fn questions_can_be_asked_by_any_task() {
    let dir = tempfile::tempdir().unwrap();
    let inspector = inspector(&["d a\nf a/b 10".to_owned(), "f a/b 20".to_owned()], dir.path());
    let task = tokio::spawn(async move {
        let (view, node) = inspector.find(Some(0), b"a/b", Follow::Last).await?;
        let mut content = Content::of(&view, Arc::new(node), 2..5)?;
        let bytes = content.next().await?.unwrap_or_default();
        let mut matches = Matches::of(&inspector, "b".parse().unwrap()).await?;
        let mut layers = Vec::new();
        while let Some(entry) = matches.next().await? {
            layers.push(entry.layer);
        }
        let history = inspector.history(b"/a/b", true).await?;
        let mut diff = Diff::of(inspector.stage(0)?, inspector.view(None)?, b"/").await?;
        let changed = diff.next().await?.map(|difference| difference.path);
        inspector.rest().await;
        Ok::<_, InspectError>((bytes.len(), layers, history.len(), changed))
    });
    let answers = task.await.unwrap().unwrap();
    assert_eq!(answers, (3, vec![Some(1), Some(0)], 2, Some(b"a/b".to_vec())));
}
