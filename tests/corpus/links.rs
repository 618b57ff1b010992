//! Hard links: one inode with several names, in one layer and across layers.

use super::case::Tool::{BsdTar, GnuTar, Umoci};
use super::case::{Case, tar};
use crate::support::raw_tar::field::{DEVMAJOR, DEVMINOR, GID, MODE, MTIME, UID};
use crate::support::raw_tar::octal;

const ALONE: &str = "its target is in another layer";

#[test]
fn a_chain_is_one_file() {
    let layer = tar()
        .file("a", "1")
        .link(b'1', "b", "a")
        .link(b'1', "c/d", "b")
        .link(b'1', "e", "./c//d");
    Case::of([layer.end()])
        .root(["a f =1 x4", "b f =1 ~a x4", "c d", "c/d f =1 ~a x4", "e f =1 ~a x4"])
        .check();
}

#[test]
fn the_entry_of_a_link_has_no_attributes_of_its_own() {
    let other = |block: &mut [u8]| {
        octal(block, MODE, 0o600);
        octal(block, UID, 7);
        octal(block, GID, 8);
        octal(block, MTIME, 99);
        block[157] = b'a';
    };
    let layer = tar().file("a", "1").with(b'1', "b", b"", other);
    Case::of([layer.end()]).root(["a f =1 x2", "b f =1 ~a x2"]).check();
}

#[test]
fn a_link_keeps_a_target_that_is_replaced_after_it() {
    let layer = tar()
        .file("a", "1")
        .link(b'1', "b", "a")
        .file("a", "2")
        .link(b'1', "c", "a");
    Case::of([layer.end()])
        .root(["a f =2 x2", "b f =1", "c f =2 ~a x2"])
        .check();
}

#[test]
fn a_link_keeps_a_target_that_a_higher_layer_replaces_or_removes() {
    let lower = tar()
        .file("a", "1")
        .link(b'1', "b", "a")
        .file("c", "2")
        .link(b'1', "d", "c");
    Case::of([lower.end(), tar().file("a", "3").file(".wh.c", "").end()])
        .root(["a f =3", "b f =1 x2", "d f =2 x2"])
        .check();
}

#[test]
fn a_link_to_a_lower_layer_is_the_file_there() {
    let middle = tar().link(b'1', "b", "a").link(b'1', "d/c", "/a");
    Case::of([
        tar().file("a", "1").end(),
        middle.end(),
        tar().link(b'1', "e", "d/c").end(),
    ])
    .root(["a f =1 x4", "b f =1 ~a x4", "d d", "d/c f =1 ~a x4", "e f =1 ~a x4"])
    .own(0, ["a f =1 x4"])
    .own(1, ["b f =1 x4", "d d", "d/c f =1 ~b x4"])
    .own(2, ["e f =1 x4"])
    .differs(GnuTar, ALONE)
    .differs(BsdTar, ALONE)
    .check();
}

#[test]
fn a_link_is_its_target_of_that_moment() {
    let upper = tar().link(b'1', "before", "a").file("a", "2").link(b'1', "after", "a");
    Case::of([tar().file("a", "1").end(), upper.end()])
        .root(["a f =2 x2", "after f =2 ~a x2", "before f =1 x2"])
        .differs(GnuTar, ALONE)
        .differs(BsdTar, ALONE)
        .check();
}

#[test]
fn a_link_to_a_file_that_its_own_layer_removes() {
    // Whiteouts are for lower layers whatever the order; what the link is was there when it was made.
    let upper = tar().link(b'1', "b", "a").file(".wh.a", "");
    Case::of([tar().file("a", "1").end(), upper.end()])
        .root(["b f =1 x2"])
        .own(1, [".wh.a f =", "b f =1 x2"])
        .differs(GnuTar, ALONE)
        .differs(BsdTar, ALONE)
        .check();
    let upper = tar().file(".wh.a", "").link(b'1', "b", "a");
    Case::of([tar().file("a", "1").end(), upper.end()])
        .root(["b f =1 x2"])
        .differs(Umoci, "it applies whiteouts one by one, and the target is gone")
        .differs(GnuTar, ALONE)
        .differs(BsdTar, ALONE)
        .check();
}

#[test]
fn links_to_other_kinds() {
    let layer = tar()
        .link(b'2', "a", "nothing")
        .link(b'1', "b", "a")
        .add(b'6', "c", b"")
        .link(b'1', "d", "c")
        .with(b'3', "e", b"", |block| {
            octal(block, DEVMAJOR, 1);
            octal(block, DEVMINOR, 5);
        })
        .link(b'1', "f", "e");
    Case::of([layer.end()])
        .root([
            "a l -> nothing x2",
            "b l -> nothing ~a x2",
            "c p x2",
            "d p ~c x2",
            "e c 1:5 x2",
            "f c 1:5 ~e x2",
        ])
        .check();
}

#[test]
fn a_link_to_itself_stays_what_it_was() {
    let layer = tar()
        .file("a", "1")
        .link(b'1', "a", "a")
        .link(b'1', "./b", "b")
        .file("c", "2");
    Case::of([layer.end()])
        .root(["a f =1", "c f =2"])
        .differs(Umoci, "it removes the target to make room for the link")
        .differs(GnuTar, "it fails at the link to what is not there")
        .differs(BsdTar, "it removes the target to make room for the link")
        .check();
    // What a lower layer has under the name is linked to, and stays.
    Case::of([tar().file("a", "1").end(), tar().link(b'1', "a", "a").end()])
        .root(["a f =1 x2"])
        .differs(Umoci, "it removes the target to make room for the link")
        .differs(GnuTar, ALONE)
        .differs(BsdTar, ALONE)
        .check();
}

#[test]
fn a_link_to_nothing_or_to_a_directory_is_left_out() {
    let upper = tar()
        .dir("d")
        .link(b'1', "a", "nothing")
        .link(b'1', "b", "d")
        .link(b'1', "c", "/")
        .link(b'1', "e", "d/.wh.x")
        .link(b'1', "f", "low")
        .file("last", "1");
    Case::of([tar().dir("low").end(), upper.end()])
        .root(["d d", "last f =1", "low d"])
        .own(1, ["d d", "last f =1"])
        .warns("it is a hardlink to a directory, 'd'")
        .differs(Umoci, "it gives up at a link that it cannot make")
        .differs(GnuTar, "it fails after all others")
        .differs(BsdTar, "it fails after all others")
        .check();
}

#[test]
fn a_link_replaces_what_was_there() {
    let lower = tar().dir("a").file("a/x", "1").file("b", "2");
    let upper = tar().file("t", "3").link(b'1', "a", "t").link(b'1', "b", "t");
    Case::of([lower.end(), upper.end()])
        .root(["a f =3 x3", "b f =3 ~a x3", "t f =3 ~a x3"])
        .check();
}

#[test]
fn the_data_of_a_link_is_passed_over_where_there_is_none() {
    // A size in the header of a link, symlink, fifo or directory means nothing: no data follows.
    let sized = |to: &'static str| {
        move |block: &mut [u8]| {
            octal(block, crate::support::raw_tar::field::SIZE, 1234);
            block[157..157 + to.len()].copy_from_slice(to.as_bytes());
        }
    };
    let layer = tar()
        .file("a", "1")
        .with(b'1', "b", b"", sized("a"))
        .with(b'2', "c", b"", sized("a"))
        .with(b'6', "d", b"", sized(""))
        .with(b'5', "e", b"", sized(""))
        .file("f", "2");
    Case::of([layer.end()])
        .root(["a f =1 x2", "b f =1 ~a x2", "c l -> a", "d p", "e d 0644", "f f =2"])
        .check();
}
