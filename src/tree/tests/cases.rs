//! Each rule of layer semantics by a small case: the layers, then what the root shows and, if that is of interest, what
//! `layers/N` shows. `f 1.2 x3` is the file that line 2 of layer 1 makes, with three names; `-` is no entry at all.

use super::*;

struct Case {
    layers: &'static [&'static str],
    root: &'static [&'static str],
    own: &'static [(usize, &'static [&'static str])],
}

async fn check(case: Case) {
    let sample = Sample::parse(case.layers);
    let dir = tempfile::tempdir().unwrap();
    // The second time with indexes from the disk.
    for _ in 0..2 {
        let tree = sample.tree(dir.path());
        tree.index_all().await.unwrap();
        assert_eq!(sample.shown(&tree, Ino::ROOT).await[1..], *case.root, "merged");
        for (number, expected) in case.own {
            let layer = lookup(&tree, &["layers", &number.to_string()]).await.unwrap();
            assert_eq!(sample.shown(&tree, layer.ino).await[1..], **expected, "layers/{number}");
        }
        sample.compare(&tree).await;
    }
}

macro_rules! cases {
    ($($name:ident: [$($layer:literal),*] => [$($line:literal),*] $(, $number:literal: [$($own:literal),*])*;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                check(Case {
                    layers: &[$($layer),*],
                    root: &[$($line),*],
                    own: &[$(($number, &[$($own),*])),*],
                })
                .await
            }
        )*
    };
}

cases! {
    a_non_directory_of_the_top_layer_wins_whole: ["d a\nf a/x\nf b", "f a\nl b c"]
        => ["a: f 1.0", "b: l c 1.1"], 0: ["a: d 0.0", "a/x: f 0.1", "b: f 0.2"];
    directories_merge: ["d a\nf a/x\nf a/y", "d a\nf a/y\nf a/z"]
        => ["a: d 1.0", "a/x: f 0.1", "a/y: f 1.1", "a/z: f 1.2"], 1: ["a: d 1.0", "a/y: f 1.1", "a/z: f 1.2"];
    a_directory_replaces_a_file: ["f a", "d a\nf a/x"] => ["a: d 1.0", "a/x: f 1.1"];
    an_implied_directory_replaces_a_file: ["f a", "f a/x"] => ["a: d -", "a/x: f 1.0"];
    an_implied_parent_keeps_what_a_lower_layer_gave_it: ["d a", "f a/x"]
        => ["a: d 0.0", "a/x: f 1.0"], 1: ["a: d -", "a/x: f 1.0"];
    an_explicit_parent_wins_before_or_after_its_children: ["d a\nf a/x\nf b/x\nd b"]
        => ["a: d 0.0", "a/x: f 0.1", "b: d 0.3", "b/x: f 0.2"];
    a_whiteout_hides_what_is_below: ["f a\nd b\nf b/x", "f .wh.b\nf b/y\nf .wh.a"] => ["b: d -", "b/y: f 1.1"];
    a_whiteout_leaves_its_own_layer_alone: ["f a\nf b", "f a\nf .wh.a\nf .wh.b\nf b"]
        => ["a: f 1.0", "b: f 1.3"], 1: [".wh.a: f 1.1", ".wh.b: f 1.2", "a: f 1.0", "b: f 1.3"];
    a_whited_out_directory_does_not_come_back: ["d d\nf d/x", "f .wh.d", "d d\nf d/y"] => ["d: d 2.0", "d/y: f 2.1"];
    a_whiteout_beside_its_directory_hides_old_children: ["d d\nf d/x", "f .wh.d\nf d/y"] => ["d: d -", "d/y: f 1.1"];
    whiteouts_of_a_directory_that_is_replaced_hold_from_their_place_on:
        ["l b/c /a\nl b/d /a\nl b/e /a", "f b/c/x\nf b/.wh..wh..opq\nf b/d/y\nf b\nf z"]
        => ["a: d -", "a/x: f 1.0", "b: f 1.3", "z: f 1.4"];
    one_whiteout_of_a_directory_that_is_replaced_holds_from_its_place_on:
        ["l b/c /a\nl b/d /a", "f b/c/x\nf b/.wh.c\nf b/c/y\nf b\nf z"]
        => ["a: d -", "a/x: f 1.0", "b: f 1.3", "z: f 1.4"];
    an_opaque_directory_hides_lower_children: ["d d\nf d/x\nd d/e\nf d/e/x", "f d/y\nf d/.wh..wh..opq"]
        => ["d: d 0.0", "d/y: f 1.0"], 1: ["d: d -", "d/.wh..wh..opq: f 1.1", "d/y: f 1.0"];
    an_opaque_root_hides_all: ["d .\nf a", "f .wh..wh..opq\nf b", "f c"] => ["b: f 1.1", "c: f 2.0"];
    opaque_reaches_through_layers: ["d d\nf d/x", "d d/e", "d d\nf d/.wh..wh..opq"] => ["d: d 2.0"];
    children_of_an_opaque_directory_start_anew: ["d d\nd d/e\nf d/e/x", "f d/.wh..wh..opq\nf d/e/y"]
        => ["d: d 0.0", "d/e: d -", "d/e/y: f 1.1"];
    whiteouts_without_a_target_make_nothing_appear: ["f a", "f .wh.b\nf d/.wh.x\nf e/f/.wh..wh..opq\nf a/.wh.x"]
        => ["a: f 0.0"];
    aufs_leftovers_have_no_effect: ["f a\nf .a\nf b", "f .wh.\nf .wh..\nf .wh...\nf .wh..wh.plnk\nf .wh..wh.aufs"]
        => [".a: f 0.1", "a: f 0.0", "b: f 0.2"];
    only_the_last_name_is_a_whiteout: ["f a", "f .wh.a/x\nf .wh.b/.wh.x"] => [".wh.a: d -", ".wh.a/x: f 1.0", "a: f 0.0"];
    a_whiteout_that_became_a_directory_was_one: ["f a\nf b", "f .wh.a\nf .wh.a/x"]
        => [".wh.a: d -", ".wh.a/x: f 1.1", "b: f 0.1"], 1: [".wh.a: d -", ".wh.a/x: f 1.1"];
    a_symlink_to_a_name_of_aufs_makes_nothing_appear: ["l b a/.wh..wh.c", "f b/x"] => ["b: l a/.wh..wh.c 0.0"];
    a_directory_of_aufs_has_no_effect: ["f a", "d .wh..wh.plnk\nf .wh..wh.plnk/1.2\nh b .wh..wh.plnk/1.2"]
        => ["a: f 0.0", "b: f 1.1 x2"];
    a_directory_that_was_a_file_before_has_no_lower_children: ["d a\nf a/x\nd b\nf b/x", "f a\nd a\nf b\nf b/y"]
        => ["a: d 1.1", "b: d -", "b/y: f 1.3"];
    a_symlink_that_became_a_directory_is_not_followed: ["d c\nl a c\nd b", "l a b\nd a\nf a/x"]
        => ["a: d 1.1", "a/x: f 1.2", "b: d 0.2", "c: d 0.0"];
    a_whiteout_in_a_file_of_its_layer_leaves_that_alone: ["d a\nf a/x", "f a\nf a/.wh.x"] => ["a: f 1.0"], 1: ["a: f 1.0"];
    the_last_of_one_layer_wins: ["f a\nf a\nd b\nf b/x\nd b\nf c/x\nf c"]
        => ["a: f 0.1", "b: d 0.4", "b/x: f 0.3", "c: f 0.6"];
    odd_names: ["f ./a\nf /b\nf c//d\nf ../e\nf f/../../g\nd h/"]
        => ["a: f 0.0", "b: f 0.1", "c: d -", "c/d: f 0.2", "e: f 0.3", "g: f 0.4", "h: d 0.5"];
    a_hardlink_in_its_layer: ["f a\nh b a\nh c b"] => ["a: f 0.0 x3", "b: f 0.0 x3", "c: f 0.0 x3"];
    a_hardlink_to_a_lower_layer: ["f a", "h b a"]
        => ["a: f 0.0 x2", "b: f 0.0 x2"], 1: ["b: f 0.0 x2"];
    a_hardlink_keeps_a_removed_target: ["f a", "f .wh.a\nh b a", "f b/x"]
        => ["b: d -", "b/x: f 2.0"], 1: [".wh.a: f 1.0", "b: f 0.0 x2"];
    a_hardlink_is_its_target_of_that_moment: ["f a", "h b a\nf a\nh c a"] => ["a: f 1.1 x2", "b: f 0.0 x2", "c: f 1.1 x2"];
    a_hardlink_keeps_a_replaced_target: ["f a\nh b a\nf a"] => ["a: f 0.2", "b: f 0.0"];
    a_chain_of_hardlinks_through_layers: ["f a", "h b a", "f .wh.a\nh c b\nh d c", "h e d"]
        => ["b: f 0.0 x5", "c: f 0.0 x5", "d: f 0.0 x5", "e: f 0.0 x5"];
    a_hardlink_may_take_its_targets_name: ["f a", "h a a"] => ["a: f 0.0 x2"];
    a_hardlink_without_a_target_is_left_out: ["f a\nd d", "h a x\nh b x\nh c d\nh e .wh.a"] => ["a: f 0.0", "d: d 0.1"], 1: [];
    hardlinks_to_other_kinds: ["l a x\np b\nc c", "h d a\nh e b\nh f c"]
        => ["a: l x 0.0 x2", "b: p 0.1 x2", "c: c 0.2 x2", "d: l x 0.0 x2", "e: p 0.1 x2", "f: c 0.2 x2"];
    a_symlink_of_the_layer_is_followed_in_parents: ["l lib usr/lib\nf lib/x"]
        => ["lib: l usr/lib 0.0", "usr: d -", "usr/lib: d -", "usr/lib/x: f 0.1"];
    a_symlink_of_a_lower_layer_is_followed: ["d usr\nd usr/lib\nf usr/lib/a\nl lib usr/lib", "f lib/x\nf lib/.wh.a"]
        => ["lib: l usr/lib 0.3", "usr: d 0.0", "usr/lib: d 0.1", "usr/lib/x: f 1.0"],
        1: ["lib: d -", "lib/.wh.a: f 1.1", "lib/x: f 1.0"];
    an_explicit_directory_replaces_a_symlink: ["d usr/lib\nl lib usr/lib", "f lib/x\nd lib"]
        => ["lib: d 1.1", "lib/x: f 1.0", "usr: d -", "usr/lib: d 0.0"];
    what_went_through_a_symlink_stays_there: ["d usr/lib\nl lib usr/lib", "f lib/x", "d lib\nf lib/y"]
        => ["lib: d 2.0", "lib/y: f 2.1", "usr: d -", "usr/lib: d 0.0", "usr/lib/x: f 1.0"];
    an_absolute_symlink_stays_in_the_root: ["l a /b/c", "f a/x"] => ["a: l /b/c 0.0", "b: d -", "b/c: d -", "b/c/x: f 1.0"];
    a_symlink_cannot_leave_the_root: ["d d\nl d/a ../../../e", "f d/a/x"]
        => ["d: d 0.0", "d/a: l ../../../e 0.1", "e: d -", "e/x: f 1.0"];
    symlinks_of_several_layers: ["l a b", "l b c", "d c\nf a/x"] => ["a: l b 0.0", "b: l c 1.0", "c: d 2.0", "c/x: f 2.1"];
    a_symlink_of_a_lower_layer_to_one_of_the_same_layer: ["d d\nl a b/c", "l b d\nf a/x", "l b e\nh d/y a/x"]
        => ["a: l b/c 0.1", "b: l e 2.0", "d: d 0.0", "d/c: d -", "d/c/x: f 1.1"];
    a_symlink_to_a_file_becomes_a_directory_there: ["f b\nl a b", "f a/x"] => ["a: l b 0.1", "b: d -", "b/x: f 1.0"];
    a_loop_of_symlinks_leads_nowhere: ["l a b\nl b a", "f a/x\nf c"] => ["a: l b 0.0", "b: l a 0.1", "c: f 1.1"];
    whiteouts_below_a_dangling_symlink_make_nothing_appear: ["l a b/c", "f a/.wh.x"] => ["a: l b/c 0.0"];
    whiteouts_land_where_a_symlink_leads: ["l a b/c\nd b/c\nd b/c/x", "f a/.wh.x"] => ["a: l b/c 0.0", "b: d -", "b/c: d 0.1"];
    the_last_way_to_a_path_wins: ["d usr\nd usr/lib\nl lib usr/lib", "f usr/lib/x\nf lib/x\nf lib/y\nf usr/lib/y"]
        => ["lib: l usr/lib 0.2", "usr: d 0.0", "usr/lib: d 0.1", "usr/lib/x: f 1.1", "usr/lib/y: f 1.3"],
        1: ["lib: d -", "lib/x: f 1.1", "lib/y: f 1.2", "usr: d -", "usr/lib: d -", "usr/lib/x: f 1.0", "usr/lib/y: f 1.3"];
    by_two_ways_a_directory_and_a_file: ["d usr/lib\nl lib usr/lib", "d usr/lib/x\nf usr/lib/x/a\nf lib/x\nf usr/lib/y\nf lib/y/a"]
        => ["lib: l usr/lib 0.1", "usr: d -", "usr/lib: d 0.0", "usr/lib/x: f 1.2", "usr/lib/y: d -", "usr/lib/y/a: f 1.4"];
    by_two_ways_one_directory: ["d usr/lib\nl lib usr/lib", "d usr/lib/x\nf usr/lib/x/a\nd lib/x\nf lib/x/b"]
        => ["lib: l usr/lib 0.1", "usr: d -", "usr/lib: d 0.0", "usr/lib/x: d 1.2", "usr/lib/x/a: f 1.1", "usr/lib/x/b: f 1.3"];
    a_whiteout_below_what_is_no_directory_yet: ["d usr/lib\nf usr/lib/old\nl lib usr/lib", "f lib/x\nf usr/lib/x/.wh.old"]
        => ["lib: l usr/lib 0.2", "usr: d -", "usr/lib: d 0.0", "usr/lib/old: f 0.1", "usr/lib/x: f 1.0"];
    a_hardlink_to_a_file_that_has_whiteouts_below: ["f b", "f b/.wh.a\nh a/d b"]
        => ["a: d -", "a/d: f 0.0 x2", "b: f 0.0 x2"];
    a_hardlink_to_a_symlink_is_followed_in_parents: ["d c\nl b c", "h a b\nf a/x"]
        => ["a: l c 0.1", "b: l c 0.1", "c: d 0.0", "c/x: f 1.1"];
    what_went_through_a_symlink_stays_when_that_goes: ["d d\nl a d", "d a/b\nf a/f\nl a e"]
        => ["a: l e 1.2", "d: d 0.0", "d/b: d 1.0", "d/f: f 1.1"], 1: ["a: l e 1.2"];
    a_symlink_put_behind_a_symlink_is_followed: ["d opt\nd usr/lib\nl lib usr/lib", "l lib/s /opt\nf usr/lib/s/x"]
        => ["lib: l usr/lib 0.2", "opt: d 0.0", "opt/x: f 1.1", "usr: d -", "usr/lib: d 0.1", "usr/lib/s: l /opt 1.0"];
    a_hardlink_to_a_hardlink_is_what_that_is: ["f b", "h x b\nd b\nh b x"]
        => ["b: f 0.0 x3", "x: f 0.0 x3"];
    a_hardlink_to_a_hardlink_beside_a_symlink: ["f b\nl l d", "h x b\nf b\nh c x\nf l/f"]
        => ["b: f 1.1", "c: f 0.0 x3", "d: d -", "d/f: f 1.3", "l: l d 0.1", "x: f 0.0 x3"];
    what_went_through_a_symlink_stays_under_a_new_directory: ["l l d", "f l/f\nf l\nd l"]
        => ["d: d -", "d/f: f 1.0", "l: d 1.2"];
    a_link_to_nothing_leaves_what_was_there: ["f c/a\nh c a"] => ["c: d -", "c/a: f 0.0"], 0: [];
    a_link_to_nothing_leaves_room_for_what_a_symlink_leads_there: ["l b a", "f b/x\nh a a"]
        => ["a: d -", "a/x: f 1.0", "b: l a 0.0"];
    a_removed_symlink_is_not_followed: ["d b\nl a b", "f .wh.a\nf a/x"] => ["a: d -", "a/x: f 1.1", "b: d 0.0"];
    a_hardlink_target_through_a_symlink: ["d usr/lib\nf usr/lib/a\nl lib usr/lib", "h b lib/a"]
        => ["b: f 0.1 x2", "lib: l usr/lib 0.2", "usr: d -", "usr/lib: d 0.0", "usr/lib/a: f 0.1 x2"];
    a_hardlink_through_a_symlink_to_its_own_layer: ["d usr/lib\nf usr/lib/a\nl lib usr/lib", "f usr/lib/a\nh b lib/a"]
        => ["b: f 1.0 x2", "lib: l usr/lib 0.2", "usr: d -", "usr/lib: d 0.0", "usr/lib/a: f 1.0 x2"];
    a_hardlink_through_a_symlink_and_a_file_is_left_out: ["l b a\nf a/a", "f a\nh b b/a"] => ["a: f 1.0", "b: l a 0.0"];
    a_symlink_below_a_symlink: ["d usr/lib\nl usr/lib/sub ../../opt\nl lib usr/lib", "f lib/sub/x"]
        => ["lib: l usr/lib 0.2", "opt: d -", "opt/x: f 1.0", "usr: d -", "usr/lib: d 0.0", "usr/lib/sub: l ../../opt 0.1"];
    a_declared_directory_below_a_symlink_gives_its_attributes: ["d usr/lib/s\nl lib usr/lib", "d lib/s\nf usr/lib/s/x"]
        => ["lib: l usr/lib 0.1", "usr: d -", "usr/lib: d -", "usr/lib/s: d 1.0", "usr/lib/s/x: f 1.1"];
    dots_in_a_symlink_leave_what_does_not_exist: ["d d\nf f\nl a f/../d\nl b no/../d", "f a/x\nf b/y"]
        => ["a: l f/../d 0.2", "b: l no/../d 0.3", "d: d 0.0", "d/x: f 1.0", "d/y: f 1.1", "f: f 0.1"];
    an_empty_layer: ["", "f a", ""] => ["a: f 1.0"], 0: [], 2: [];
}

/// The image's own directory of the name `layers` is seen beside the numbers, except for what these take.
#[tokio::test]
async fn the_images_own_layers_stay_visible() {
    let sample = Sample::parse(&["d layers\nf layers/0\nf layers/x\nf layers/7"]);
    let dir = tempfile::tempdir().unwrap();
    let tree = sample.tree(dir.path());
    let names = async || {
        let listing = tree.list(Ino::LAYERS).await.unwrap();
        let names = listing
            .iter()
            .skip(2)
            .map(|listed| String::from_utf8_lossy(listed.name).into_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(
        names().await,
        ["0", "manifest.json", "config.json"],
        "nothing is scanned for it"
    );
    assert_eq!(lookup(&tree, &["layers", "x"]).await.unwrap().mode, 3);
    assert_eq!(lookup(&tree, &["layers", "0"]).await.unwrap().kind, Kind::Directory);
    assert_eq!(lookup(&tree, &["layers", "7"]).await.unwrap().mode, 4);
    assert!(lookup(&tree, &["layers", "00"]).await.is_none());
    tree.index_all().await.unwrap();
    assert_eq!(names().await, ["0", "manifest.json", "config.json", "7", "x"]);
}

/// Nobody waits for a layer to have the attributes of its root, or of the mount's.
#[tokio::test]
async fn roots_are_known_at_once() {
    let sample = Sample::parse(&["d .\nf a", "d .\nf b"]);
    let dir = tempfile::tempdir().unwrap();
    let tree = sample.tree(dir.path());
    for path in [&[][..], &["layers", "0"], &["layers", "1"]] {
        let attr = lookup(&tree, path).await.unwrap();
        assert_eq!((attr.mode, attr.settled), (0o755, false));
    }
    assert!(
        tree.layers()
            .iter()
            .all(|layer| layer.glance(|view| view.compressed()).unwrap() == 0)
    );
    tree.index_all().await.unwrap();
    let root = tree.getattr(Ino::ROOT).unwrap();
    assert_eq!((root.uid, root.mode, root.settled), (1, 1, true));
}

/// A directory of the base that only its children tell of is there as soon as one of them is.
#[tokio::test]
async fn an_implied_directory_of_the_base_is_known_at_once() {
    let sample = Sample::parse(&["f d/e/x\nf big 9000000\nd d/e", "f y"]);
    let dir = tempfile::tempdir().unwrap();
    let tree = sample.tree(dir.path());
    let attr = lookup(&tree, &["d", "e"]).await.unwrap();
    assert_eq!((attr.mode, attr.settled), (0o755, false));
    assert!(lookup(&tree, &["d", "e", "x"]).await.is_some());
    assert!(
        tree.layers()[0].index().is_none(),
        "the rest of the base was not needed"
    );
    tree.index_all().await.unwrap();
    let attr = tree.getattr(attr.ino).unwrap();
    assert_eq!((attr.mode, attr.settled), (3, true));
    sample.compare(&tree).await;
}

/// Whether a layer's names lead through symlinks is not told for good while a lower layer may still make some.
#[tokio::test]
async fn a_directory_of_a_lower_layer_that_becomes_a_symlink_is_followed() {
    let sample = Sample::parse(&["d b\nd a\nf big 9000000\nl b a", "f b/x\nh y b/x"]);
    let dir = tempfile::tempdir().unwrap();
    let tree = sample.tree(dir.path());
    let early = lookup(&tree, &["b"]).await.unwrap();
    assert_eq!(early.kind, Kind::Directory);
    assert!(
        tree.layers()[0].index().is_none(),
        "the rest of the base was not needed"
    );
    sample.compare(&tree).await;
}
