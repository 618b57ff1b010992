use super::*;
use crate::index::sample::{members, tree};

fn grown(layer: &str) -> GrowingIndex {
    let mut index = GrowingIndex::new();
    for member in members(layer) {
        index.add(&member).unwrap();
    }
    index
}

/// The tree of a layer, the line of its root left out, and the warnings about it.
fn told(layer: &str) -> (Vec<String>, Vec<String>) {
    let mut index = grown(layer);
    let mut tree = tree(&index);
    tree.remove(0);
    (tree, index.drain_warnings())
}

/// Adds members until one is refused.
fn refused(mut member: impl FnMut(usize) -> Member) -> String {
    let mut index = GrowingIndex::new();
    let refused = (0..).find_map(|number| index.add(&member(number)).err());
    refused.unwrap().to_string()
}

#[test]
fn a_layer_has_its_limits() {
    let implied = refused(|number| Member {
        name: [format!("{number}").as_bytes(), &b"/d".repeat(2000)].concat(),
        ..Member::default()
    });
    let expected = "the layer has more than 1048576 directories that no entry declares, which is not supported";
    assert_eq!(implied, expected);
    let value = vec![0; 64 << 10];
    let held = refused(|number| Member {
        name: format!("{number}").into(),
        xattrs: vec![(format!("user.{number}").into(), value.clone())],
        ..Member::default()
    });
    let expected = "the layer has more than 268435456 bytes of names and attributes, which is not supported";
    assert_eq!(held, expected);
}

macro_rules! layers {
    ($($rule:ident: $layer:literal => [$($line:literal),* $(,)?] $($warning:literal)*;)*) => {$(
        #[test]
        fn $rule() {
            let (tree, warnings) = told($layer);
            assert_eq!(tree, [$($line),*] as [&str; _]);
            let expected: Vec<&str> = vec![$($warning),*];
            assert_eq!(warnings, expected);
        }
    )*};
}

layers! {
    parents_are_implied: "f a/b/c 3" => ["d a implied", "d a/b implied", "f a/b/c 3 bytes 1"];
    a_directory_declared_late_keeps_its_children: "f a/b
        d a/" => ["d a 2", "f a/b 1"];
    a_directory_declared_twice_has_the_last_attributes: "d a
        f a/b
        d ./a" => ["d a 3", "f a/b 2"];
    the_last_file_wins: "f a 1
        f a 2" => ["f a 2 bytes 2"];
    a_file_takes_the_place_of_a_directory: "f a/b/c
        f a" => ["f a 2"];
    a_directory_takes_the_place_of_a_file: "f a
        d a
        f a/b" => ["d a replacing 2", "f a/b 3"];
    a_file_as_parent_is_replaced: "f a
        f a/b" => ["d a implied replacing", "f a/b 2"];
    a_whiteout_in_what_is_no_directory_is_left_out: "f a
        f a/.wh.b" => ["f a 1"] "'a/.wh.b' is left out: it is a whiteout in what is no directory";
    a_directory_stays_a_replacement_when_declared_again: "f a
        f a/b
        d a" => ["d a replacing 3", "f a/b 2"];
    a_replaced_directory_does_not_bring_its_children_back: "f a/b
        f a
        d a" => ["d a replacing 3"];
    names_are_normalised: "f ../x
        f a/../../y
        d //a//./b/" => ["d a implied", "d a/b 3", "f x 1", "f y 2"];
    parents_are_followed_through_symlinks: "d usr/lib
        l lib usr/lib
        f lib/x
        l lib64 /lib
        f lib64/y" => [
        "l lib -> usr/lib 2", "l lib64 -> /lib 4", "d usr implied", "d usr/lib 1", "f usr/lib/x 3", "f usr/lib/y 5"];
    a_symlink_to_what_is_missing_implies_it: "l lib usr/lib
        f lib/x" => ["l lib -> usr/lib 1", "d usr implied", "d usr/lib implied", "f usr/lib/x 2"];
    a_symlink_does_not_lead_out_of_the_root: "l a/b ../../../c
        f a/b/x" => ["d a implied", "l a/b -> ../../../c 1", "d c implied", "f c/x 2"];
    dots_in_a_symlink_are_physical: "d d/e
        l s d/e
        l t s/../f
        f t/x" => ["d d implied", "d d/e 1", "d d/f implied", "f d/f/x 4", "l s -> d/e 2", "l t -> s/../f 3"];
    a_directory_entry_replaces_a_symlink: "l lib usr/lib
        f lib/x
        d lib
        f lib/y" => ["d lib replacing 3", "f lib/y 4", "d usr implied", "d usr/lib implied", "f usr/lib/x 2"];
    a_last_component_is_not_followed: "d d
        l s d
        f s" => ["d d 1", "f s 3"];
    symlinks_in_a_circle_lead_nowhere: "l a b
        l b a
        f a/x" => ["l a -> b 1", "l b -> a 2"] "'a/x' is left out: its name leads through more than 40 symlinks";
    whiteouts_are_entries_that_mark_their_directory: "f a/.wh.b 7
        d c/.wh..wh..opq" => [
        "d a implied unsolid whiteouts", "f a/.wh.b 1", "d c implied unsolid whiteouts opaque", "f c/.wh..wh..opq 2"];
    a_directory_keeps_its_marks_when_declared: "f a/.wh.b
        d a" => ["d a whiteouts 2", "f a/.wh.b 1"];
    a_hardlink_is_its_target: "f a 3
        h d/b ./a
        h c d/b" => ["f a 3 bytes x3 1", "h c = d/b(1) x3 3", "d d implied", "h d/b = a(1) x3 2"];
    a_hardlink_keeps_its_target_when_that_is_replaced: "f a 3
        h b a
        f a 4" => ["f a 4 bytes 3", "h b = a(1) 2"];
    a_hardlink_that_is_replaced_counts_no_more: "f a 3
        h b a
        f b" => ["f a 3 bytes 1", "f b 3"];
    a_name_lost_with_its_directory_counts_no_more: "f a 3
        h d/b a
        f d" => ["f a 3 bytes 1", "f d 3"];
    a_hardlink_to_nothing_here_is_for_lower_layers: "h a /x/../b
        h c a
        h d d" => ["h a => b 1", "h c => b 2", "h d => d 3"];
    a_hardlink_to_itself_stays_what_it_was: "f a 3
        h a a" => ["h a = a(1) 2"];
    a_hardlinks_target_is_followed_through_symlinks: "l lib usr/lib
        f lib/x
        h a lib/x
        h b lib/y" => ["h a = usr/lib/x(2) x2 3", "h b => usr/lib/y 4", "l lib -> usr/lib 1",
        "d usr implied", "d usr/lib implied", "f usr/lib/x x2 2"];
    a_hardlink_to_a_symlink_is_that_symlink: "l a x
        h b a" => ["l a -> x x2 1", "h b = a(1) x2 2"];
    a_hardlink_to_a_symlink_is_followed_too: "l a b
        h c a
        f c/x" => ["l a -> b x2 1", "d b implied", "f b/x 3", "h c = a(1) x2 2"];
    a_hardlink_to_a_directory_is_left_out: "d a
        h b/c a
        h d /" => ["d a 1"]
        "'b/c' is left out: it is a hardlink to a directory, 'a'"
        "'d' is left out: it is a hardlink to a directory, '/'";
    a_hardlink_below_a_file_is_left_out: "f a
        h b a/c" => ["f a 1"] "'b' is left out: it is a hardlink to 'a/c', which does not exist";
    the_formats_own_files_are_hidden: "f stargz.index.json
        f .prefetch.landmark
        f ./.no.prefetch.landmark
        f a/.prefetch.landmark
        d stargz.index.json" => ["d a implied", "f a/.prefetch.landmark 4", "d stargz.index.json 5"];
    links_without_a_target_are_left_out: "l a
        h b" => [] "'a' is left out: the target of the symlink is empty"
        "'b' is left out: the target of the hardlink is empty";
    the_root_must_be_a_directory: "l . x
        f a" => ["f a 2"] "'.' is left out: the layer's root must be a directory";
}

#[test]
fn numbers_are_given_in_order_and_parents_first() {
    let mut index = GrowingIndex::new();
    let ids = members("f a/b\nd c\nf c/d\nd a\nf a/b")
        .iter()
        .map(|member| index.add(member).unwrap())
        .collect::<Vec<_>>();
    assert_eq!(ids, [2, 3, 4, 1, 5].map(|id| Some(EntryId(id))));
    assert_eq!(index.len(), 6);
}

#[test]
fn the_root_is_implied_until_it_is_declared() {
    let mut index = grown("f a");
    assert_eq!(tree(&index)[0], "d / implied");
    index.add(&members("d ./").remove(0)).unwrap();
    assert_eq!(tree(&index), ["d / 1", "f a 1"]);
    assert_eq!(index.drain_changes(), [Change::Declared(EntryId::ROOT)]);
}

#[test]
fn changes_of_what_was_there_are_told() {
    let mut index = grown("f a/b\nf a/b\nd a\nf a");
    let replaced = |parent, name: &str, old| Change::Replaced {
        parent: EntryId(parent),
        name: name.as_bytes().into(),
        old: EntryId(old),
    };
    assert_eq!(
        index.drain_changes(),
        [replaced(1, "b", 2), Change::Declared(EntryId(1)), replaced(0, "a", 1)]
    );
    assert_eq!(index.drain_changes(), []);
    assert_eq!(index.child(EntryId(1), b"b"), None, "gone with its directory");
}

#[test]
fn files_are_found_by_where_their_bytes_are() {
    let index = grown("f a 600\nf b\nf c 10\nd d\nf e 5\nf c 7");
    // a at 512, c at 2560 (then replaced), e at 4096, c again at 5120.
    let at = |start, end| {
        index
            .entries_at(ByteRange::new(start, end))
            .into_iter()
            .map(|id| id.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(at(0, 10_000), [1, 5, 6]);
    assert_eq!(at(0, 512), [0; 0]);
    assert_eq!(at(1111, 1112), [1]);
    assert_eq!(at(1112, 4000), [0; 0]);
    assert_eq!(at(600, 700), [1]);
}

#[test]
fn warnings_are_bounded() {
    let mut index = GrowingIndex::new();
    for _ in 0..1000 {
        index.add(&Member::default()).unwrap();
    }
    let warnings = index.drain_warnings();
    assert_eq!(warnings.len(), MAX_WARNINGS + 1);
    assert_eq!(
        warnings.last().unwrap(),
        "800 more warnings about this layer are not shown"
    );
}

#[test]
fn long_ways_through_symlinks_are_refused() {
    let deep = "abcdefghi/".repeat(300);
    let (_, warnings) = told(&format!("l s {deep}\nl {deep}t s\nf s/{deep}x"));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].ends_with("its name is longer than 4096 bytes"),
        "{warnings:?}"
    );
}
