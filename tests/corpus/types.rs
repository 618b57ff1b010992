//! Types of entries, and one in the place of another.

use super::case::Tool::{BsdTar, GnuTar, Umoci};
use super::case::{Case, tar};
use crate::support::raw_tar::field::{DEVMAJOR, DEVMINOR, MODE};
use crate::support::raw_tar::octal;

#[test]
fn a_file_under_each_of_its_flags() {
    let layer = tar().add(b'0', "a", b"1").add(0, "b", b"2").add(b'7', "c", b"3");
    Case::of([layer.end()])
        .root(["a f =1", "b f =2", "c f =3"])
        .differs(Umoci, "it does not know the flag 7 of contiguous files")
        .check();
}

#[test]
fn an_unknown_flag_is_a_file() {
    let layer = tar().add(b'Z', "a", b"1").add(b'!', "b", b"2").file("c", "3");
    Case::of([layer.end()])
        .root(["a f =1", "b f =2", "c f =3"])
        .warns("layer 0")
        .warns("'a' is of the unknown type 'Z'")
        .differs(
            Umoci,
            "it gives up at a flag that it does not know, where POSIX asks for a file",
        )
        .check();
}

#[test]
fn every_kind() {
    let layer = tar()
        .dir("dir")
        .file("file", "1")
        .link(b'2', "symlink", "file")
        .with(b'6', "fifo", b"", |block| octal(block, MODE, 0o600))
        .with(b'3', "char", b"", |block| {
            octal(block, DEVMAJOR, 5);
            octal(block, DEVMINOR, 1);
        })
        .with(b'4', "block", b"", |block| {
            octal(block, DEVMAJOR, 7);
            octal(block, DEVMINOR, 2);
        })
        .link(b'1', "hardlink", "file");
    Case::of([layer.end()])
        .root([
            "block b 7:2",
            "char c 5:1",
            "dir d",
            "fifo p 0600",
            "file f =1 x2",
            "hardlink f =1 ~file x2",
            "symlink l -> file",
        ])
        .check();
}

#[test]
fn symlinks_are_what_they_say() {
    let long = format!("/{}", "t".repeat(4094));
    let layer = tar()
        .link(b'2', "absolute", "/etc/passwd")
        .link(b'2', "dangling", "nothing/here")
        .link(b'2', "dots", "../../..//x/./y/")
        .link(b'2', "latin", b"caf\xe9")
        .link(b'2', "loop", "loop")
        .pax(&[("linkpath", long.as_bytes())])
        .link(b'2', "long", "")
        .link(b'2', "one", "two")
        .link(b'2', "two", "one");
    Case::of([layer.end()])
        .root([
            "absolute l -> /etc/passwd".to_string(),
            "dangling l -> nothing/here".into(),
            "dots l -> ../../..//x/./y/".into(),
            "latin l -> caf\\xe9".into(),
            format!("long l -> {long}"),
            "loop l -> loop".into(),
            "one l -> two".into(),
            "two l -> one".into(),
        ])
        .check();
}

#[test]
fn a_symlink_that_linux_has_not_is_left_out() {
    let layer = tar()
        .pax(&[("linkpath", "t".repeat(4096).as_bytes())])
        .link(b'2', "long", "")
        .link(b'2', "empty", "")
        .gnu_long(b'K', "")
        .link(b'2', "empty-too", "x")
        .file("last", "1");
    Case::of([layer.end()])
        .root(["last f =1"])
        .warns("the target of the symlink is longer than 4095 bytes")
        .warns("the target of the symlink is empty")
        .differs(Umoci, "it gives up at what it cannot make")
        .differs(GnuTar, "it fails after all others")
        .differs(BsdTar, "it fails after all others")
        .check();
}

#[test]
fn a_directory_over_a_file_and_a_file_over_a_directory_across_layers() {
    let lower = tar()
        .file("a", "0")
        .dir("b")
        .file("b/x", "1")
        .dir("c")
        .file("c/x", "2")
        .link(b'2', "d", "b");
    let upper = tar()
        .dir("a")
        .file("a/y", "3")
        .file("b", "4")
        .link(b'2', "c", "a")
        .dir("d")
        .file("d/z", "5");
    Case::of([lower.end(), upper.end()])
        .root(["a d", "a/y f =3", "b f =4", "c l -> a", "d d", "d/z f =5"])
        .own(0, ["a f =0", "b d", "b/x f =1", "c d", "c/x f =2", "d l -> b"])
        .own(1, ["a d", "a/y f =3", "b f =4", "c l -> a", "d d", "d/z f =5"])
        .check();
}

#[test]
fn a_directory_over_a_file_in_one_layer() {
    let layer = tar()
        .file("a", "1")
        .dir("a")
        .file("a/x", "2")
        .link(b'2', "b", "a")
        .dir("b")
        .file("b/y", "3");
    Case::of([layer.end()])
        .root(["a d", "a/x f =2", "b d", "b/y f =3"])
        .check();
}

#[test]
fn a_file_over_a_directory_in_one_layer() {
    let layer = tar()
        .dir("a")
        .file("a/x", "1")
        .file("a", "2")
        .file("b/x", "3")
        .link(b'2', "b", "a");
    Case::of([layer.end()])
        .root(["a f =2", "b l -> a"])
        .differs(GnuTar, "it does not replace a directory that is not empty")
        .differs(BsdTar, "it does not replace a directory that is not empty")
        .check();
}

#[test]
fn a_file_as_a_parent_becomes_a_directory() {
    let layer = tar().file("a", "1").file("a/x", "2");
    Case::of([tar().dir("a").file("a/old", "0").end(), layer.end()])
        .root(["a d", "a/x f =2"])
        .differs(Umoci, "it gives up at a parent that is a file of the same layer")
        .differs(GnuTar, "it fails at a parent that is a file of the same layer")
        .differs(BsdTar, "it fails at a parent that is a file of the same layer")
        .check();
}

#[test]
fn a_file_of_a_lower_layer_as_a_parent_becomes_a_directory() {
    Case::of([tar().file("a", "1").end(), tar().file("a/x", "2").end()])
        .root(["a d", "a/x f =2"])
        .own(1, ["a d", "a/x f =2"])
        .differs(Umoci, "it gives up at a parent that is a file of a lower layer")
        .check();
}

#[test]
fn what_was_a_file_in_between_has_nothing_of_lower_layers() {
    let lower = tar().dir("a").file("a/old", "0").dir("b").file("b/old", "1");
    let upper = tar()
        .file("a", "2")
        .dir("a")
        .file("a/new", "3")
        .link(b'2', "b", "a")
        .dir("b")
        .file("b/new", "4");
    Case::of([lower.end(), upper.end()])
        .root(["a d", "a/new f =3", "b d", "b/new f =4"])
        .check();
}

#[test]
fn a_directory_merges_and_has_the_topmost_attributes() {
    let dir = |mode: u64| move |block: &mut [u8]| octal(block, MODE, mode);
    let lower = tar()
        .with(b'5', "a", b"", dir(0o700))
        .file("a/x", "0")
        .with(b'5', "b", b"", dir(0o711))
        .file("b/x", "1");
    let upper = tar().with(b'5', "a", b"", dir(0o770)).file("a/y", "2").file("b/y", "3");
    Case::of([lower.end(), upper.end()])
        .root(["a d 0770", "a/x f =0", "a/y f =2", "b d 0711", "b/x f =1", "b/y f =3"])
        .own(1, ["a d 0770", "a/y f =2", "b d", "b/y f =3"])
        .check();
}

#[test]
fn global_headers_change_nothing() {
    let layer = tar()
        .pax_of(
            b'g',
            &[
                ("comment", b"a git commit"),
                ("uid", b"77"),
                ("mtime", b"99"),
                ("path", b"elsewhere"),
            ],
        )
        .file("a", "1")
        .pax(&[("mtime", b"5")])
        .file("b", "2")
        .pax_of(b'g', &[("SCHILY.xattr.user.x", b"1")])
        .file("c", "3");
    Case::of([layer.end()])
        .root(["a f =1", "b f @5 =2", "c f =3"])
        .differs(Umoci, "it does not know global headers")
        .differs(
            GnuTar,
            "it does what the headers say, as POSIX has it; no container tool does",
        )
        .check();
}

#[test]
fn the_formats_own_files_are_hidden() {
    let layer = tar()
        .file("stargz.index.json", "{}")
        .file("./.prefetch.landmark", "1")
        .file(".no.prefetch.landmark", "1")
        .dir("d")
        .file("d/.prefetch.landmark", "an image's own");
    Case::of([layer.end()])
        .root(["d d", "d/.prefetch.landmark f =an image\\'s own"])
        .own(0, ["d d", "d/.prefetch.landmark f =an image\\'s own"])
        .differs(Umoci, "it knows nothing of eStargz")
        .differs(GnuTar, "it knows nothing of eStargz")
        .differs(BsdTar, "it knows nothing of eStargz")
        .check();
}

#[test]
fn an_image_with_layers_of_its_own() {
    let layer = tar()
        .dir("layers")
        .file("layers/0", "hidden")
        .file("layers/00", "1")
        .file("layers/7", "2")
        .file("layers/x", "3");
    let case = Case::of([layer.end()]);
    // What is in the root's `layers` is looked at by tests/mount.rs; here, that the rest is as it was.
    case.root(Vec::<String>::new())
        .own(
            0,
            [
                "layers d",
                "layers/0 f =hidden",
                "layers/00 f =1",
                "layers/7 f =2",
                "layers/x f =3",
            ],
        )
        .differs(
            Umoci,
            "it has no directory of layers, so the image's own is left out of the comparison",
        )
        .check();
}
