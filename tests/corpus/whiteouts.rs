//! Whiteouts and opaque directories.

use super::case::Tool::Umoci;
use super::case::{Case, tar};
use crate::support::raw_tar::field::MODE;
use crate::support::raw_tar::octal;

#[test]
fn of_every_kind() {
    let lower = tar()
        .file("a", "1")
        .dir("b")
        .file("b/x", "2")
        .dir("b/y")
        .file("b/y/z", "3")
        .link(b'2', "c", "d")
        .dir("d")
        .file("d/x", "4")
        .add(b'6', "e", b"");
    let upper = tar()
        .file(".wh.a", "")
        .file(".wh.b", "")
        .file(".wh.c", "")
        .file(".wh.e", "");
    Case::of([lower.end(), upper.end()])
        .root(["d d", "d/x f =4"])
        .own(1, [".wh.a f =", ".wh.b f =", ".wh.c f =", ".wh.e f ="])
        .check();
}

#[test]
fn of_what_is_not_there() {
    let upper = tar()
        .file(".wh.x", "")
        .file("a/.wh.x", "")
        .file("no/where/.wh.x", "")
        .file("no/.wh..wh..opq", "");
    Case::of([tar().dir("a").end(), upper.end()])
        .root(["a d"])
        .own(
            1,
            [
                ".wh.x f =",
                "a d",
                "a/.wh.x f =",
                "no d",
                "no/.wh..wh..opq f =",
                "no/where d",
                "no/where/.wh.x f =",
            ],
        )
        .check();
}

#[test]
fn beside_the_same_name_made_again_in_both_orders() {
    let lower = tar()
        .file("a", "1")
        .file("b", "2")
        .dir("c")
        .file("c/old", "3")
        .dir("d")
        .file("d/old", "4");
    let upper = tar()
        .file("a", "5")
        .file(".wh.a", "")
        .file(".wh.b", "")
        .file("b", "6")
        .dir("c")
        .file("c/new", "7")
        .file(".wh.c", "")
        .file(".wh.d", "")
        .dir("d")
        .file("d/new", "8");
    Case::of([lower.end(), upper.end()])
        .root(["a f =5", "b f =6", "c d", "c/new f =7", "d d", "d/new f =8"])
        .check();
}

#[test]
fn under_an_opaque_directory() {
    let lower = tar().dir("a").file("a/x", "1").file("a/y", "2");
    let upper = tar()
        .dir("a")
        .file("a/.wh..wh..opq", "")
        .file("a/.wh.x", "")
        .file("a/y", "3");
    Case::of([lower.end(), upper.end()]).root(["a d", "a/y f =3"]).check();
}

#[test]
fn a_directory_that_a_higher_layer_brings_back_is_new() {
    let layers = [
        tar()
            .with(b'5', "a", b"", |block| octal(block, MODE, 0o700))
            .file("a/x", "1")
            .dir("a/d")
            .file("a/d/y", "2"),
        tar().file(".wh.a", ""),
        tar().file("a/z", "3").dir("a/d"),
    ];
    Case::of(layers.map(|tar| tar.end()))
        .root(["a d", "a/d d", "a/z f =3"])
        .check();
}

#[test]
fn the_names_that_have_no_effect() {
    let lower = tar()
        .file("a", "1")
        .file(".a", "2")
        .file("..b", "3")
        .dir("d")
        .file("d/x", "4");
    let upper = tar()
        .file(".wh.", "")
        .file(".wh..", "")
        .file(".wh...", "")
        .file(".wh..wh.aufs", "")
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", "x")
        .file("d/.wh..wh.x", "");
    Case::of([lower.end(), upper.end()])
        .root(["..b f =3", ".a f =2", "a f =1", "d d", "d/x f =4"])
        .differs(
            Umoci,
            "it knows nothing of aufs, and takes '.wh...' for a whiteout of '..'",
        )
        .check();
}

#[test]
fn names_that_begin_with_a_dot() {
    let lower = tar()
        .file(".a", "1")
        .file("..b", "2")
        .file(".wh", "3")
        .file("wh.a", "4");
    Case::of([lower.end(), tar().file(".wh..a", "").file(".wh...b", "").end()])
        .root([".wh f =3", "wh.a f =4"])
        .check();
}

#[test]
fn an_opaque_root() {
    let lower = tar()
        .with(b'5', "./", b"", |block| octal(block, MODE, 0o711))
        .file("a", "1")
        .dir("b")
        .file("b/x", "2");
    let upper = tar().file(".wh..wh..opq", "").file("c", "3").file("b/y", "4");
    Case::of([lower.end(), upper.end(), tar().file("d", "5").end()])
        .root(["b d", "b/y f =4", "c f =3", "d f =5"])
        .check();
}

#[test]
fn an_opaque_directory_keeps_what_its_own_layer_has_before_and_after_the_mark() {
    let lower = tar().dir("a").file("a/old", "1").dir("a/d").file("a/d/old", "2");
    let upper = tar()
        .dir("a")
        .file("a/before", "3")
        .file("a/.wh..wh..opq", "")
        .file("a/after", "4")
        .dir("a/d");
    Case::of([lower.end(), upper.end()])
        .root(["a d", "a/after f =4", "a/before f =3", "a/d d"])
        .check();
}

#[test]
fn an_opaque_directory_without_an_entry_of_its_own() {
    let lower = tar()
        .with(b'5', "a", b"", |block| octal(block, MODE, 0o700))
        .file("a/old", "1");
    Case::of([lower.end(), tar().file("a/.wh..wh..opq", "").file("a/new", "2").end()])
        .root(["a d 0700", "a/new f =2"])
        .own(1, ["a d", "a/.wh..wh..opq f =", "a/new f =2"])
        .check();
}

#[test]
fn an_opaque_mark_hides_through_all_lower_layers_and_not_above() {
    let layers = [
        tar().dir("a").file("a/0", "0"),
        tar().dir("a").file("a/1", "1"),
        tar().dir("a").file("a/.wh..wh..opq", "").file("a/2", "2"),
        tar().file("a/3", "3"),
    ];
    Case::of(layers.map(|tar| tar.end()))
        .root(["a d", "a/2 f =2", "a/3 f =3"])
        .check();
}

#[test]
fn a_whiteout_of_any_type_is_one() {
    let lower = tar().file("a", "1").file("b", "2").file("c", "3");
    let upper = tar().link(b'2', ".wh.a", "x").dir(".wh.b").file(".wh.c", "with bytes");
    Case::of([lower.end(), upper.end()])
        .root(Vec::<String>::new())
        .own(1, [".wh.a f =", ".wh.b f 0755 =", ".wh.c f ="])
        .differs(super::case::Tool::GnuTar, "whiteouts are nothing to it")
        .differs(super::case::Tool::BsdTar, "whiteouts are nothing to it")
        .check();
}

#[test]
fn a_whiteout_below_a_file_leaves_that_alone() {
    Case::of([tar().file("a", "1").end(), tar().file("a/.wh.x", "").end()])
        .root(["a f =1"])
        .own(1, ["a d", "a/.wh.x f ="])
        .check();
    Case::of([
        tar().dir("a").file("a/x", "0").end(),
        tar().file("a", "1").file("a/.wh.x", "").end(),
    ])
    .root(["a f =1"])
    .own(1, ["a f =1"])
    .differs(super::case::Tool::GnuTar, "it fails at a parent that is a file")
    .differs(
        super::case::Tool::BsdTar,
        "it makes a directory of a parent that is a file",
    )
    .check();
}
