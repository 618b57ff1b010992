//! What a mount shows is what extraction gives: the merged root what `umoci unpack` makes of the image, each layer what
//! GNU tar makes of its tar.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::support::fixtures::Served;
use crate::support::image::BuiltLayer;
use crate::support::*;

/// The tree that umoci makes of an image.
fn unpacked(image: &BuiltImage) -> Tree {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let source = format!("{}:{}", image.layout.display(), image.tag);
    run("umoci", &["unpack", "--image", &source, bundle.to_str().unwrap()]);
    Tree::of(bundle.join("rootfs"))
}

/// The tree that GNU tar makes of a layer.
fn extracted(layer: &BuiltLayer) -> Tree {
    let dir = tempfile::tempdir().unwrap();
    let (archive, root) = (dir.path().join("layer.tar"), dir.path().join("root"));
    std::io::copy(&mut layer.tar().unwrap(), &mut fs::File::create(&archive).unwrap()).unwrap();
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let arguments = [
        "--extract",
        "--preserve-permissions",
        "--same-owner",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        // Both so that the time of a directory is set when nothing is made in it any more.
        "--delay-directory-restore",
        "--absolute-names",
    ];
    let places = [
        "--directory",
        root.to_str().unwrap(),
        "--file",
        archive.to_str().unwrap(),
    ];
    run("tar", &[&arguments[..], &places[..]].concat());
    Tree::of(&root)
}

/// The paths that a layer's tar has entries for.
fn declared(layer: &BuiltLayer) -> HashSet<Vec<u8>> {
    let mut archive = tar::Archive::new(layer.tar().unwrap());
    let entries = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path_bytes().into_owned());
    entries
        .map(|path| {
            let path = path.strip_prefix(b"./").unwrap_or(&path);
            let path = path.strip_suffix(b"/").unwrap_or(path);
            if path.is_empty() { b".".to_vec() } else { path.to_vec() }
        })
        .collect()
}

/// A directory that no entry declares was made just now by the tool that extracts, and at no time in the mount.
fn timeless_where_undeclared(tree: Tree, declared: &HashSet<Vec<u8>>) -> Tree {
    tree.ignoring("mtime", |path| !declared.contains(path))
}

fn assert_merged_is_unpacked(served: &Served) {
    let mount = Mount::of(served.reference()).with(["--no-layers"]).start();
    let declared = served.image.layers.iter().flat_map(declared).collect();
    let expected = timeless_where_undeclared(unpacked(&served.image), &declared);
    timeless_where_undeclared(Tree::of(mount.root()), &declared).assert_is(&expected);
}

fn assert_layers_are_their_tars(served: &Served) {
    let mount = Mount::of(served.reference()).start();
    for (number, layer) in served.image.layers.iter().enumerate() {
        let declared = declared(layer);
        let expected = timeless_where_undeclared(extracted(layer), &declared);
        let shown = Tree::of(mount.path(Path::new("layers").join(number.to_string())));
        timeless_where_undeclared(shown, &declared).assert_is(&expected);
    }
}

#[test]
fn the_merged_debian_is_what_umoci_unpacks() {
    let served = Served::debian();
    assert_merged_is_unpacked(&served);
    served.assert_no_byte_twice();
}

#[test]
fn each_debian_layer_is_its_tar() {
    let served = Served::debian();
    assert_layers_are_their_tars(&served);
    served.assert_no_byte_twice();
}

/// Kinds, attributes and names of every sort, in an order as tools write it.
fn varied() -> Vec<Entry> {
    vec![
        Entry::dir("./").mode(0o755),
        Entry::dir("./usr/"),
        Entry::dir("./usr/lib/").mode(0o2775).owner(7, 8),
        Entry::symlink("./lib", "usr/lib"),
        Entry::file("./usr/lib/one", "one")
            .mode(0o4711)
            .owner(1000, 100)
            .mtime(1_600_000_000, 987_654_321),
        Entry::file("./usr/lib/capable", "x")
            .xattr("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        Entry::file("./usr/lib/noted", "x")
            .xattr("user.note", "a\0b")
            .xattr("trusted.other", "1"),
        Entry::hardlink("./usr/lib/linked", "./usr/lib/one"),
        Entry::dir("./dev/"),
        Entry::char_device("./dev/null", 1, 3).mode(0o666),
        Entry::fifo("./dev/pipe").mode(0o600).owner(5, 6),
        Entry::dir("./names/").mode(0o1777),
        Entry::file("./names/new\nline and \"quotes\"", "n"),
        Entry::file(b"./names/latin-\xe9", "l"),
        Entry::dir(format!("./names/{}", "d".repeat(200))),
        Entry::file(format!("./names/{}/{}", "d".repeat(200), "f".repeat(255)), "deep"),
        Entry::symlink("./names/far", format!("/{}", "target/".repeat(40))),
        Entry::file("./empty", ""),
        Entry::file(
            "./noise",
            Content::Noise {
                seed: 11,
                size: 3_000_000,
            },
        ),
    ]
}

#[test]
fn a_layer_is_its_tar_however_it_is_compressed() {
    let compressions = [
        Compression::None,
        Compression::Gzip,
        Compression::GzipMembers(100_000),
        Compression::Zstd,
        Compression::ZstdFrames(100_000),
    ];
    let layers = compressions.map(|compression| Layer::of(varied()).compressed(compression));
    assert_layers_are_their_tars(&Served::made(&ImageBuilder::of(layers)));
}

#[test]
fn merging_is_what_umoci_does() {
    let served = Served::made(&ImageBuilder::of([
        Layer::of(varied().into_iter().chain([
            Entry::dir("gone"),
            Entry::file("gone/with", "x"),
            Entry::dir("opaque").mode(0o700),
            Entry::file("opaque/old", "x"),
            Entry::dir("kept"),
            Entry::file("kept/old", "x"),
            // Where umoci has to imply a directory, it leaves the time of its parent at that moment.
            Entry::dir("becomes"),
            Entry::file("becomes/directory", "a file at first"),
            Entry::dir("becomes/file"),
            Entry::file("becomes/file/child", "x"),
            Entry::file("replaced", "below").mode(0o600),
            Entry::file("target", "of a link above"),
            Entry::dir("again"),
            Entry::file("again/old", "x"),
        ])),
        Layer::of([
            // Order within a layer means nothing to its whiteouts.
            Entry::whiteout("gone"),
            Entry::file("opaque/new", "x"),
            Entry::opaque("opaque"),
            Entry::dir("kept").mode(0o750).owner(3, 3),
            Entry::file("kept/new", "x"),
            Entry::dir("becomes/directory"),
            Entry::file("becomes/directory/child", "x"),
            Entry::file("becomes/file", "a file at last"),
            Entry::file("replaced", "above").mode(0o644),
            Entry::hardlink("link", "target"),
            Entry::file("lib/through", "a symlink in the parent"),
            Entry::whiteout("again"),
            Entry::whiteout("never/was"),
        ]),
        Layer::of([
            Entry::dir("again"),
            Entry::file("again/new", "x"),
            Entry::whiteout("target"),
            Entry::whiteout("lib/one"),
        ]),
    ]));
    assert_merged_is_unpacked(&served);
}
