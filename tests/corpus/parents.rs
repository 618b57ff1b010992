//! Entries below symlinked parents, and directories that no entry declares.

use super::case::Tool::{BsdTar, GnuTar, Umoci};
use super::case::{Case, tar};
use crate::support::raw_tar::field::{MODE, UID};
use crate::support::raw_tar::{RawTar, octal};

const OWN: &str = "it leaves nothing below a symlink, or removes that";

#[test]
fn a_relative_symlink_of_a_lower_layer() {
    let lower = tar()
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/a", "1")
        .link(b'2', "lib", "usr/lib");
    let upper = tar().file("lib/b", "2").file("lib/.wh.a", "").file("lib/d/c", "3");
    Case::of([lower.end(), upper.end()])
        .root([
            "lib l -> usr/lib",
            "usr d",
            "usr/lib d",
            "usr/lib/b f =2",
            "usr/lib/d d",
            "usr/lib/d/c f =3",
        ])
        .own(1, ["lib d", "lib/.wh.a f =", "lib/b f =2", "lib/d d", "lib/d/c f =3"])
        .check();
}

#[test]
fn an_absolute_symlink_of_a_lower_layer() {
    let lower = tar()
        .dir("usr")
        .dir("usr/lib")
        .link(b'2', "usr/up", "/usr/lib")
        .link(b'2', "out", "/../../usr/lib");
    let upper = tar().file("usr/up/a", "1").file("out/b", "2");
    Case::of([lower.end(), upper.end()])
        .root([
            "out l -> /../../usr/lib",
            "usr d",
            "usr/lib d",
            "usr/lib/a f =1",
            "usr/lib/b f =2",
            "usr/up l -> /usr/lib",
        ])
        .check();
}

#[test]
fn a_symlink_of_the_same_layer() {
    let layer = tar()
        .dir("usr")
        .dir("usr/lib")
        .link(b'2', "lib", "usr/lib")
        .file("lib/a", "1")
        .file("lib/d/b", "2");
    Case::of([layer.end()])
        .root([
            "lib l -> usr/lib",
            "usr d",
            "usr/lib d",
            "usr/lib/a f =1",
            "usr/lib/d d",
            "usr/lib/d/b f =2",
        ])
        .own(
            0,
            [
                "lib l -> usr/lib",
                "usr d",
                "usr/lib d",
                "usr/lib/a f =1",
                "usr/lib/d d",
                "usr/lib/d/b f =2",
            ],
        )
        .differs(BsdTar, OWN)
        .check();
}

#[test]
fn a_symlink_is_followed_as_it_is_when_the_entry_comes() {
    let layer = tar()
        .dir("a")
        .dir("b")
        .link(b'2', "l", "a")
        .file("l/x", "1")
        .link(b'2', "l", "b")
        .file("l/y", "2");
    Case::of([layer.end()])
        .root(["a d", "a/x f =1", "b d", "b/y f =2", "l l -> b"])
        .differs(BsdTar, OWN)
        .check();
}

#[test]
fn a_directory_entry_replaces_a_symlink() {
    let lower = tar()
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/a", "1")
        .link(b'2', "lib", "usr/lib");
    let upper = tar().dir("lib").file("lib/b", "2");
    Case::of([lower.end(), upper.end()])
        .root(["lib d", "lib/b f =2", "usr d", "usr/lib d", "usr/lib/a f =1"])
        .check();
}

#[test]
fn through_several_symlinks_of_several_layers() {
    let first = tar().dir("d").dir("d/e").link(b'2', "a", "b");
    let second = tar().link(b'2', "b", "d/../c");
    let third = tar().link(b'2', "c", "/d/e").file("a/x", "1");
    Case::of([first.end(), second.end(), third.end()])
        .root(["a l -> b", "b l -> d/../c", "c l -> /d/e", "d d", "d/e d", "d/e/x f =1"])
        .check();
}

#[test]
fn a_whiteout_below_a_symlink_removes_what_that_leads_to() {
    let lower = tar()
        .dir("real")
        .file("real/a", "1")
        .dir("real/d")
        .file("real/d/x", "2")
        .dir("real/o")
        .file("real/o/x", "3")
        .link(b'2', "l", "real");
    let upper = tar()
        .file("l/.wh.a", "")
        .file("l/.wh.d", "")
        .file("l/o/.wh..wh..opq", "");
    Case::of([lower.end(), upper.end()])
        .root(["l l -> real", "real d", "real/o d"])
        .check();
}

#[test]
fn a_hard_link_whose_target_is_below_a_symlink() {
    let lower = tar()
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/a", "1")
        .link(b'2', "lib", "usr/lib");
    Case::of([lower.end(), tar().link(b'1', "b", "lib/a").end()])
        .root([
            "b f =1 x2",
            "lib l -> usr/lib",
            "usr d",
            "usr/lib d",
            "usr/lib/a f =1 ~b x2",
        ])
        .own(1, ["b f =1 x2"])
        .differs(GnuTar, "its target is in another layer")
        .differs(BsdTar, "its target is in another layer")
        .check();
}

#[test]
fn by_two_ways_the_last_entry_wins() {
    let lower = tar().dir("usr").dir("usr/lib").link(b'2', "lib", "usr/lib");
    let upper = tar()
        .dir("usr/lib/d")
        .file("usr/lib/d/a", "1")
        .file("usr/lib/x", "1")
        .file("lib/x", "2")
        .file("lib/y", "3")
        .file("usr/lib/y", "4")
        .file("lib/d", "5")
        .file("lib/.wh.gone", "");
    Case::of([lower.end(), upper.end()])
        .root([
            "lib l -> usr/lib",
            "usr d",
            "usr/lib d",
            "usr/lib/d f =5",
            "usr/lib/x f =2",
            "usr/lib/y f =4",
        ])
        .check();
}

#[test]
fn what_went_through_a_symlink_stays_when_that_is_replaced() {
    let lower = tar().dir("d").link(b'2', "a", "d");
    let upper = tar().dir("a/b").file("a/f", "1").link(b'2', "a", "elsewhere");
    Case::of([lower.end(), upper.end()])
        .root(["a l -> elsewhere", "d d", "d/b d", "d/f f =1"])
        .differs(GnuTar, "it keeps the directory")
        .differs(BsdTar, "it keeps the directory")
        .check();
}

#[test]
fn a_hard_link_to_a_symlink_is_followed() {
    let lower = tar().dir("c").link(b'2', "b", "c");
    let upper = tar().link(b'1', "a", "b").file("a/x", "1");
    Case::of([lower.end(), upper.end()])
        .root(["a l -> c", "b l -> c ~a", "c d", "c/x f =1"])
        .differs(GnuTar, "it makes symlinks last")
        .differs(BsdTar, "it makes symlinks last")
        .check();
}

#[test]
fn a_hard_link_to_a_file_with_whiteouts_below() {
    let upper = tar().file("b/.wh.a", "").link(b'1', "a", "b");
    Case::of([tar().file("b", "1").end(), upper.end()])
        .root(["a f =1 x2", "b f =1 ~a x2"])
        .differs(GnuTar, "it cannot link to a directory")
        .differs(BsdTar, "it cannot link to a directory")
        .check();
}

#[test]
fn a_whiteout_below_what_is_a_file_by_another_way() {
    let lower = tar().dir("usr").dir("usr/lib").link(b'2', "lib", "usr/lib");
    let upper = tar().file("lib/x", "1").file("usr/lib/x/.wh.old", "");
    Case::of([lower.end(), upper.end()])
        .root(["lib l -> usr/lib", "usr d", "usr/lib d", "usr/lib/x f =1"])
        .check();
}

#[test]
fn a_dangling_symlink_makes_its_target() {
    Case::of([tar().link(b'2', "l", "not/there").end(), tar().file("l/x", "1").end()])
        .root(["l l -> not/there", "not d", "not/there d", "not/there/x f =1"])
        .own(1, ["l d", "l/x f =1"])
        .check();
}

#[test]
fn a_loop_of_symlinks_leads_nowhere() {
    Case::of([
        tar().link(b'2', "a", "b").link(b'2', "b", "a").end(),
        tar().file("a/x", "1").file("c", "2").end(),
    ])
    .root(["a l -> b", "b l -> a", "c f =2"])
    .own(1, ["a d", "a/x f =1", "c f =2"])
    .warns("loop of symlinks")
    .differs(Umoci, "it gives up at a loop")
    .check();
}

fn merged_usr() -> RawTar {
    tar()
        .dir("usr")
        .dir("usr/lib")
        .dir("usr/share")
        .file("usr/share/k", "1")
        .link(b'2', "lib", "usr/lib")
}

#[test]
fn a_symlink_of_the_layer_that_lies_below_one_of_a_lower_layer() {
    let upper = tar().link(b'2', "lib/s", "../share/s").file("lib/s/x", "2");
    Case::of([merged_usr().end(), upper.end()])
        .root([
            "lib l -> usr/lib",
            "usr d",
            "usr/lib d",
            "usr/lib/s l -> ../share/s",
            "usr/share d",
            "usr/share/k f =1",
            "usr/share/s d",
            "usr/share/s/x f =2",
        ])
        .own(
            1,
            [
                "lib d",
                "lib/s l -> ../share/s",
                "share d",
                "share/s d",
                "share/s/x f =2",
            ],
        )
        .differs(GnuTar, "it makes symlinks last")
        .differs(BsdTar, "it makes symlinks last")
        .check();
}

#[test]
fn whiteouts_and_hard_links_through_such_a_symlink() {
    let upper = tar()
        .link(b'2', "lib/s", "../share")
        .link(b'1', "h", "lib/s/k")
        .file("lib/s/.wh.k", "");
    Case::of([merged_usr().end(), upper.end()])
        .root([
            "h f =1 x2",
            "lib l -> usr/lib",
            "usr d",
            "usr/lib d",
            "usr/lib/s l -> ../share",
            "usr/share d",
        ])
        .own(
            1,
            [
                "h f =1 x2",
                "lib d",
                "lib/s l -> ../share",
                "share d",
                "share/.wh.k f =",
            ],
        )
        .differs(GnuTar, "it has no sight of what the link is to")
        .differs(BsdTar, "it has no sight of what the link is to")
        .check();
}

#[test]
fn a_symlink_of_the_layer_through_one_of_a_lower_layer_and_up() {
    let lower = tar().dir("q").dir("q/r").dir("x").link(b'2', "up", "q/r");
    let upper = tar().link(b'2', "s", "up/../x").file("s/a", "1");
    Case::of([lower.end(), upper.end()])
        .root([
            "q d",
            "q/r d",
            "q/x d",
            "q/x/a f =1",
            "s l -> up/../x",
            "up l -> q/r",
            "x d",
        ])
        .own(1, ["s l -> up/../x", "x d", "x/a f =1"])
        .differs(GnuTar, "it makes symlinks last")
        .differs(BsdTar, "it makes symlinks last")
        .check();
}

#[test]
fn a_hard_link_to_what_is_a_directory_in_its_own_tar_only() {
    let lower = tar().dir("usr").dir("usr/lib").link(b'2', "lib", "usr/lib");
    let upper = tar().file("lib/x", "1").link(b'1', "h", "lib");
    Case::of([lower.end(), upper.end()])
        .root([
            "h l -> usr/lib x2",
            "lib l -> usr/lib ~h x2",
            "usr d",
            "usr/lib d",
            "usr/lib/x f =1",
        ])
        .own(1, ["lib d", "lib/x f =1"])
        .differs(GnuTar, OWN)
        .differs(BsdTar, OWN)
        .check();
}

#[test]
fn hard_links_to_one_another_through_a_symlink_of_a_lower_layer() {
    let lower = tar().dir("d").file("d/0", "1").link(b'2', "s", "d");
    let upper = tar()
        .dir("d")
        .link(b'1', "d/1", "s/0")
        .link(b'1', "d/2", "s/1")
        .link(b'1', "d/3", "s/2");
    Case::of([lower.end(), upper.end()])
        .root([
            "d d",
            "d/0 f =1 x4",
            "d/1 f =1 ~d/0 x4",
            "d/2 f =1 ~d/0 x4",
            "d/3 f =1 ~d/0 x4",
            "s l -> d",
        ])
        .differs(GnuTar, "the first target is in another layer")
        .differs(BsdTar, "the first target is in another layer")
        .check();
}

#[test]
fn a_directory_of_a_lower_layer_that_becomes_a_symlink() {
    let lower = tar().dir("b").dir("a").file("a/x", "1").link(b'2', "b", "a");
    let upper = tar().file("b/y", "2").link(b'1', "h", "b/x");
    Case::of([lower.end(), upper.end()])
        .root(["a d", "a/x f =1 x2", "a/y f =2", "b l -> a", "h f =1 ~a/x x2"])
        .differs(GnuTar, "its target is in another layer")
        .differs(BsdTar, "its target is in another layer")
        .check();
}

#[test]
fn a_hard_link_to_a_hard_link_to_nothing_is_to_what_lies_below() {
    let upper = tar().link(b'1', "a", "gone").link(b'1', "b", "a");
    Case::of([tar().file("a", "1").end(), upper.end()])
        .root(["a f =1 x2", "b f =1 ~a x2"])
        .own(1, ["b f =1 x2"])
        .differs(Umoci, "it gives up at the first")
        .differs(GnuTar, "it gives up at the first")
        .differs(BsdTar, "it gives up at the first")
        .check();
}

#[test]
fn a_hard_link_to_what_whiteouts_are_below_is_to_what_lies_below() {
    let upper = tar()
        .file("b/c/d/.wh..wh..opq", "")
        .link(b'1', "a", "b")
        .file(".wh..wh..opq", "")
        .dir("b/c");
    Case::of([tar().link(b'2', "b", "x").end(), upper.end()])
        .root(["a l -> x x2", "b d", "b/c d"])
        .differs(GnuTar, "its target is in another layer")
        .differs(BsdTar, "its target is in another layer")
        .check();
}

#[test]
fn the_last_entry_of_a_directory_counts_by_whatever_way() {
    let mode = |mode: u32| move |block: &mut [u8]| octal(block, MODE, mode.into());
    let upper = tar()
        .with(b'5', "b/a", b"", mode(0o700))
        .with(b'5', "c/a", b"", mode(0o711))
        .with(b'5', "b/a", b"", mode(0o750));
    Case::of([tar().dir("b").link(b'2', "c", "b").end(), upper.end()])
        .root(["b d", "b/a d 0750", "c l -> b"])
        .own(1, ["b d", "b/a d 0750", "c d", "c/a d 0711"])
        .check();
}

#[test]
fn implied_directories_are_roots_and_have_no_time() {
    let upper = tar().file("a/y", "2").file("b/c/x", "3");
    let lower = tar().with(b'5', "a", b"", |block| {
        octal(block, MODE, 0o750);
        octal(block, UID, 5);
    });
    Case::of([lower.end(), upper.end()])
        .root(["a d 0750 5:0", "a/y f =2", "b d", "b/c d", "b/c/x f =3"])
        .own(1, ["a d", "a/y f =2", "b d", "b/c d", "b/c/x f =3"])
        .check();
}

#[test]
fn a_directory_is_declared_before_or_after_its_children() {
    let private = |block: &mut [u8]| octal(block, MODE, 0o700);
    let layer = tar()
        .file("a/x", "1")
        .with(b'5', "a", b"", private)
        .with(b'5', "b", b"", private)
        .file("b/x", "2");
    Case::of([layer.end()])
        .root(["a d 0700", "a/x f =1", "b d 0700", "b/x f =2"])
        .check();
}
