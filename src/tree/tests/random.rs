//! Random images, asked random questions in random order and many at once, compared with the model.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::layer::sample::NameIn;

/// Layers of an image.
const MOST_LAYERS: usize = 4;

/// One thing that somebody asks the tree.
#[derive(Debug, Clone)]
struct Question {
    /// The merged view, or that of a layer.
    view: Option<usize>,
    path: Vec<String>,
    /// Whether a directory is also listed, a file also read.
    thoroughly: bool,
}

fn name() -> impl Strategy<Value = String> {
    let odd = vec![".wh.a", ".wh..wh.a", ".a", "-a", "a b", "a\nb", "\u{e9}", "*"];
    prop_oneof![
        20 => prop::sample::select(vec!["a", "b", "c", "d"]),
        1 => prop::sample::select(odd),
    ]
    .prop_map(str::to_owned)
}

fn path(most: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..=most).prop_map(|names| names.join("/"))
}

/// Other ways to write the same path.
fn spelled(path: String, way: u8) -> String {
    match way {
        0 => format!("./{path}"),
        1 => format!("/{path}"),
        2 => format!("../{path}"),
        3 => path.replace('/', "//"),
        4 => path.replace('/', "/./"),
        5 => format!("x/../{path}"),
        _ => path,
    }
}

fn dress() -> impl Strategy<Value = Dress> {
    let name = prop_oneof![6 => Just(NameIn::Header), 1 => Just(NameIn::Pax), 1 => Just(NameIn::Gnu)];
    let seconds = prop_oneof![4 => 0..2_000_000_000i64, 1 => -2_000_000_000..0i64];
    let mtime = (seconds, prop_oneof![2 => Just(0), 1 => 1..1_000_000_000u32]);
    let flag = prop::option::weighted(0.2, prop::sample::select(vec![0, b'0', b'7', b'Z']));
    let xattrs = prop::collection::btree_map(
        prop::sample::select(vec!["user.a", "user.b", "trusted.c", "security.capability"]).prop_map(str::to_owned),
        prop::collection::vec(any::<u8>(), 1..20),
        0..3,
    );
    let xattrs = prop_oneof![4 => Just(Default::default()), 1 => xattrs];
    (0..70_000u32, mtime, xattrs, name, flag, prop::bool::weighted(0.1)).prop_map(
        |(gid, mtime, xattrs, name, flag, sparse)| Dress {
            gid,
            mtime,
            xattrs: xattrs.into_iter().collect(),
            name,
            flag,
            sparse,
        },
    )
}

/// How a layer's tar ends, and how it is made into a blob.
fn pack(kind: u8, end: u8, tar: &mut Vec<u8>) -> Vec<u8> {
    let last = tar.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    match end {
        // One block of zeros at the end, or none, or more than that, or anything behind it.
        0 => tar.truncate(tar.len() - sample::BLOCK),
        1 => tar.truncate(last.next_multiple_of(sample::BLOCK)),
        2 => tar.resize(tar.len() + 20 * sample::BLOCK, 0),
        3 => tar.extend_from_slice(&[b'x'; 3000]),
        _ => {}
    }
    match kind {
        0 => tar.clone(),
        1 => sample::gzip_at(1, tar),
        2 => sample::gzip_at(0, tar),
        3 => sample::gzip_members(tar, 10_000),
        4 => [gzip(tar), vec![0; 100]].concat(),
        5 => sample::zstd_frames(tar, usize::MAX),
        6 => sample::zstd_frames(tar, 20_000),
        7 => [
            b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(),
            sample::zstd_frames(tar, 30_000),
        ]
        .concat(),
        _ => gzip(tar),
    }
}

fn target() -> impl Strategy<Value = String> {
    let start = prop::sample::select(vec!["", "/", "../", "../../", "./"]);
    (start, path(2)).prop_map(|(start, path)| format!("{start}{path}"))
}

fn member() -> impl Strategy<Value = Line> {
    let size = prop_oneof![8 => 0..2000usize, 1 => 60_000..90_000usize];
    prop_oneof![
        4 => path(3).prop_map(|path| (path, What::Directory)),
        5 => (path(3), size).prop_map(|(path, size)| (path, What::File(size))),
        3 => (path(2), target()).prop_map(|(path, to)| (path, What::Symlink(to))),
        // What a link to itself means, through symlinks that lead it somewhere else, is nothing to be agreed on.
        3 => (path(3), path(3))
            .prop_filter("a link to itself", |(path, to)| path != to)
            .prop_map(|(path, to)| (path, What::Hardlink(to))),
        1 => path(3).prop_map(|path| (path, What::Fifo)),
        1 => path(3).prop_map(|path| (path, What::Device)),
        3 => path(3).prop_map(|path| (beside(&path, ".wh."), What::File(0))),
        1 => path(3).prop_map(|path| (format!("{path}/.wh..wh..opq"), What::File(0))),
        1 => Just((".wh..wh..opq".to_owned(), What::File(0))),
        1 => Just(("./".to_owned(), What::Directory)),
    ]
    .prop_flat_map(|(path, what)| {
        (dress(), 0..20u8).prop_map(move |(dress, way)| Line {
            path: spelled(path.clone(), way),
            what: what.clone(),
            dress,
        })
    })
}

/// The path with `prefix` before its last name.
fn beside(path: &str, prefix: &str) -> String {
    match path.rsplit_once('/') {
        Some((parents, name)) => format!("{parents}/{prefix}{name}"),
        None => format!("{prefix}{path}"),
    }
}

/// For each layer what [`pack`] shall make of it.
fn packs() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((0..16u8, 0..12u8), MOST_LAYERS)
}

/// Layers; now and then between the members something of a size that makes a scan stop short of what follows.
fn layers() -> impl Strategy<Value = Vec<Vec<Line>>> {
    let filler = prop::option::weighted(0.3, 50_000..150_000usize);
    let layer = prop::collection::vec((member(), filler), 0..12).prop_map(|members| {
        let line = |(number, (member, filler)): (usize, (Line, Option<usize>))| {
            let path = format!("filler{number}");
            let filler = filler.map(|size| Line {
                path,
                what: What::File(size),
                dress: Dress::default(),
            });
            [Some(member), filler].into_iter().flatten()
        };
        members.into_iter().enumerate().flat_map(line).collect()
    });
    prop::collection::vec(layer, 1..=MOST_LAYERS)
}

fn question() -> impl Strategy<Value = Question> {
    let name = prop_oneof![8 => name(), 1 => name().prop_map(|name| format!(".wh.{name}"))];
    let path = prop::collection::vec(name, 0..=4);
    (prop::option::weighted(0.4, 0..4usize), path, prop::bool::weighted(0.1))
        .prop_map(|(view, path, thoroughly)| Question { view, path, thoroughly })
}

/// The layers without the members that would take the place of an earlier one.
fn without_replacements(layers: Vec<Vec<Line>>) -> Vec<Vec<Line>> {
    let mut kept: Vec<Vec<Line>> = Vec::new();
    for layer in layers {
        kept.push(Vec::new());
        for line in layer {
            let last = kept.len() - 1;
            kept[last].push(line);
            if Model::new(&kept).replaced {
                kept[last].pop();
            }
        }
    }
    kept
}

/// Which inode number was seen for which inode of the model.
type Numbers = Mutex<BTreeMap<(Option<usize>, Tag), Ino>>;

async fn ask(sample: &Sample, tree: &Tree, question: &Question, numbers: &Numbers) {
    let view = sample.model.view(question.view);
    let number = question.view.map(|number| number.to_string());
    let prefix: Vec<&str> = number.iter().flat_map(|number| ["layers", number]).collect();
    let mut at = lookup(tree, &prefix).await.unwrap();
    let mut path = Vec::new();
    let mut held = vec![at.ino];
    for name in &question.path {
        if at.kind != Kind::Directory {
            break;
        }
        path.push(name.clone());
        let found = tree.lookup(at.ino, name.as_bytes()).await.unwrap();
        let expected = view.get(&path);
        assert_eq!(found.is_some(), expected.is_some(), "{path:?} {:?}", question.view);
        let (Some(attr), Some(expected)) = (found, expected) else {
            break;
        };
        tree.hold(&attr);
        held.push(attr.ino);
        if attr.kind != Kind::Directory {
            let tag = sample.model.tag(expected).unwrap();
            let known = *numbers.lock().entry((None, tag)).or_insert(attr.ino);
            assert_eq!(known, attr.ino, "one inode, one number");
        }
        let names = sample.model.names(expected);
        let unsettled = |attr: &Attr| Attr {
            nlink: if attr.settled { attr.nlink } else { names as u32 },
            ..attr.clone()
        };
        if attr.settled || attr.kind != Kind::Directory {
            let line = sample.shown_line(tree, &unsettled(&attr)).await;
            assert_eq!(line, sample.expected_line(expected), "{path:?} {:?}", question.view);
        }
        at = attr;
    }
    if question.thoroughly && at.kind == Kind::Directory {
        let listing = tree.list(at.ino).await.unwrap();
        let mut names: Vec<_> = listing
            .iter()
            .skip(2)
            .filter(|listed| listed.ino != Ino::LAYERS)
            .map(|listed| {
                (
                    String::from_utf8_lossy(listed.name).into_owned(),
                    listed.kind == Kind::Directory,
                )
            })
            .collect();
        names.sort();
        let is_child = |child: &&Vec<String>| child.len() == path.len() + 1 && child.starts_with(&path);
        if view.contains_key(&path) {
            let expected: Vec<_> = view
                .keys()
                .filter(is_child)
                .map(|child| (child[path.len()].clone(), matches!(view[child], Node::Directory(_))))
                .collect();
            assert_eq!(names, expected, "in {path:?} {:?}", question.view);
        }
    }
    for ino in held {
        tree.release(ino, 1);
    }
}

/// Asks all questions at once, in groups.
async fn interrogate(sample: &Arc<Sample>, tree: &Arc<Tree>, groups: &[Vec<Question>]) {
    let numbers = Arc::new(Numbers::default());
    for group in groups {
        let ask_one = |question: &Question| {
            let (sample, tree, numbers, question) = (sample.clone(), tree.clone(), numbers.clone(), question.clone());
            tokio::spawn(async move { ask(&sample, &tree, &question, &numbers).await })
        };
        let exists = |question: &&Question| question.view.is_none_or(|number| number < sample.layers.len());
        for task in group.iter().filter(exists).map(ask_one).collect::<Vec<_>>() {
            task.await.unwrap();
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(config(50))]

    /// While layers are being scanned every answer is the one that it will be in the end, and in the next mount.
    #[test]
    fn answers_are_those_of_the_model_from_the_start(
        layers in layers(),
        groups in prop::collection::vec(prop::collection::vec(question(), 1..5), 1..6),
        packs in packs(),
    ) {
        let layers = without_replacements(layers);
        let sample = Arc::new(Sample::packed(layers, |number, tar| pack(packs[number].0, packs[number].1, tar)));
        prop_assume!(!sample.model.contested);
        prop_assume!(!sample.model.unclear);
        let dir = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            for mount in 0..3 {
                let tree = sample.tree(dir.path());
                interrogate(&sample, &tree, &groups).await;
                // The second mount finds what the first has left half-way, the third finds all.
                if mount > 0 {
                    sample.compare(&tree).await;
                }
            }
        });
    }

    /// Whatever the order of the members, in the end the last one holds.
    #[test]
    fn complete_layers_are_as_the_model_has_them(layers in layers(), packs in packs()) {
        let sample = Sample::packed(layers, |number, tar| pack(packs[number].0, packs[number].1, tar));
        prop_assume!(!sample.model.unclear);
        let dir = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            for _ in 0..2 {
                sample.compare(&sample.tree(dir.path())).await;
            }
        });
    }
}

/// Tries `usual` cases, always the same ones: what fails by chance holds up whoever is not the cause of it. With
/// `PROPTEST_CASES` as many as that says, and others each time.
fn config(usual: u32) -> ProptestConfig {
    let told = std::env::var("PROPTEST_CASES").ok().and_then(|told| told.parse().ok());
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: told.unwrap_or(usual),
        max_global_rejects: u32::MAX,
        rng_seed: match told {
            Some(_) => default.rng_seed,
            None => RngSeed::Fixed(4243),
        },
        ..default
    }
}
