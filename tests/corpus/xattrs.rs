//! Extended attributes.

use super::case::Tool::{BsdTar, GnuTar, Umoci};
use super::case::{Case, tar};

/// CAP_NET_RAW, permitted and effective, in the second version of the format.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// `user::rw-, user:1000:rw-, group::r--, mask::rw-, other::r--`.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x06\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

#[test]
fn of_files_and_directories() {
    let layer = tar()
        .pax(&[("SCHILY.xattr.security.capability", CAPABILITY)])
        .file("a", "1")
        .pax(&[
            ("SCHILY.xattr.user.note", b"\0\n\xff=x"),
            ("SCHILY.xattr.trusted.other", b"y"),
        ])
        .file("b", "2")
        .pax(&[("SCHILY.xattr.user.dir", b"z")])
        .dir("c");
    Case::of([layer.end()])
        .root([
            format!("a f =1 {{security.capability={}}}", CAPABILITY.escape_ascii()),
            "b f =2 {trusted.other=y user.note=\\x00\\n\\xff=x}".into(),
            "c d {user.dir=z}".into(),
        ])
        .check();
}

#[test]
fn of_what_is_neither_file_nor_directory() {
    let layer = tar()
        .pax(&[("SCHILY.xattr.trusted.link", b"1")])
        .link(b'2', "a", "b")
        .pax(&[("SCHILY.xattr.trusted.fifo", b"2")])
        .add(b'6', "b", b"");
    Case::of([layer.end()])
        .root(["a l -> b {trusted.link=1}", "b p {trusted.fifo=2}"])
        .check();
}

#[test]
fn that_linux_has_not_there() {
    let layer = tar()
        .pax(&[("SCHILY.xattr.user.link", b"1"), ("SCHILY.xattr.trusted.link", b"1")])
        .link(b'2', "a", "b")
        .pax(&[("SCHILY.xattr.bare", b"2"), ("SCHILY.xattr.user.file", b"2")])
        .file("b", "2");
    Case::of([layer.end()])
        .root(["a l -> b {trusted.link=1}", "b f =2 {user.file=2}"])
        .warns("extended attributes that no Linux has are left out")
        .differs(Umoci, "it refuses the layer")
        .differs(BsdTar, "it fails")
        .check();
}

#[test]
fn access_control_lists() {
    let layer = tar()
        .pax(&[("SCHILY.xattr.system.posix_acl_access", ACL)])
        .with(b'0', "a", b"1", |block| {
            crate::support::raw_tar::octal(block, crate::support::raw_tar::field::MODE, 0o664)
        })
        .pax(&[("SCHILY.xattr.system.posix_acl_default", ACL)])
        .dir("b");
    let acl = ACL.escape_ascii();
    Case::of([layer.end()])
        .root([
            format!("a f 0664 =1 {{system.posix_acl_access={acl}}}"),
            format!("b d {{system.posix_acl_default={acl}}}"),
        ])
        .differs(BsdTar, "it takes lists from records of their own only")
        .check();
}

#[test]
fn an_empty_value_removes() {
    let layer = tar()
        .pax(&[
            ("SCHILY.xattr.user.a", b"1"),
            ("SCHILY.xattr.user.b", b"2"),
            ("SCHILY.xattr.user.a", b""),
            ("LIBARCHIVE.xattr.user.b", b""),
            ("SCHILY.xattr.user.c", b""),
        ])
        .file("a", "1");
    Case::of([layer.end()])
        .root(["a f =1"])
        .differs(Umoci, "it does not read records of LIBARCHIVE")
        .differs(GnuTar, "it sets an empty attribute")
        .differs(BsdTar, "it sets an empty attribute")
        .check();
}

#[test]
fn in_both_of_their_spellings() {
    let layer = tar()
        .pax(&[
            ("LIBARCHIVE.xattr.user.na%6De%3D", b"AAH/"),
            ("LIBARCHIVE.xattr.user.pad", b"eA=="),
            ("SCHILY.xattr.user.both", b"first"),
            ("LIBARCHIVE.xattr.user.both", b"bGFzdA"),
        ])
        .file("a", "1");
    Case::of([layer.end()])
        .root(["a f =1 {user.both=last user.name==\\x00\\x01\\xff user.pad=x}"])
        .differs(Umoci, "it does not read records of LIBARCHIVE")
        .differs(GnuTar, "it does not read records of LIBARCHIVE")
        .check();
}

#[test]
fn of_a_hard_link_are_its_targets() {
    let layer = tar()
        .pax(&[("SCHILY.xattr.user.a", b"1")])
        .file("a", "1")
        .pax(&[("SCHILY.xattr.user.b", b"2")])
        .link(b'1', "b", "a");
    Case::of([layer.end()])
        .root(["a f =1 {user.a=1} x2", "b f =1 {user.a=1} ~a x2"])
        .check();
}

#[test]
fn of_a_merged_directory_are_the_topmost_ones() {
    let lower = tar()
        .pax(&[("SCHILY.xattr.user.low", b"1")])
        .dir("a")
        .pax(&[("SCHILY.xattr.user.low", b"1")])
        .dir("b");
    let upper = tar().pax(&[("SCHILY.xattr.user.high", b"2")]).dir("a").file("b/x", "1");
    Case::of([lower.end(), upper.end()])
        .root(["a d {user.high=2}", "b d {user.low=1}", "b/x f =1"])
        .check();
}

#[test]
fn the_largest_and_what_is_larger() {
    let largest = vec![b'v'; 65536];
    let larger = vec![b'w'; 65537];
    let name = format!("user.{}", "n".repeat(250));
    let long = format!("SCHILY.xattr.{name}");
    let longer = format!("SCHILY.xattr.{name}n");
    let layer = tar()
        .pax(&[
            ("SCHILY.xattr.user.large", &largest),
            ("SCHILY.xattr.user.larger", &larger),
            (&long, b"1"),
            (&longer, b"2"),
        ])
        .file("a", "1");
    Case::of([layer.end()])
        .root([format!("a f =1 {{user.large={} {name}=1}}", "v".repeat(65536))])
        .warns("an extended attribute that no Linux has is left out")
        .differs(Umoci, "the file system below has no room for it")
        .differs(GnuTar, "the file system below has no room for it")
        .differs(BsdTar, "the file system below has no room for it")
        .check();
}

#[test]
fn one_that_is_none_is_left_out() {
    let layer = tar()
        .pax(&[("LIBARCHIVE.xattr.user.a", b"?!"), ("SCHILY.xattr.", b"x")])
        .file("a", "1");
    Case::of([layer.end()])
        .root(["a f =1"])
        .warns("an extended attribute that is not base64 is left out")
        .differs(Umoci, "it fails at an attribute without a name")
        .differs(BsdTar, "it sets what it can make of a value that is not base64")
        .check();
}

#[test]
fn ours_can_be_read_and_are_not_listed() {
    let layer = tar()
        .pax(&[
            ("SCHILY.xattr.user.peelfs.layer", b"a lie"),
            ("SCHILY.xattr.user.a", b"1"),
        ])
        .file("a", "1");
    Case::of([layer.end()])
        .root(["a f =1 {user.a=1}"])
        .differs(Umoci, "it does not keep names for us")
        .differs(GnuTar, "it does not keep names for us")
        .differs(BsdTar, "it does not keep names for us")
        .check();
}
