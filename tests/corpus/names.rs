//! Names: what path one means, and which cannot be one.

use super::case::Tool::{BsdTar, GnuTar, Umoci};
use super::case::{Case, tar};

#[test]
fn all_spellings_of_a_path_are_one() {
    let layer = tar()
        .file("./a", "1")
        .file("/b", "2")
        .file("c//d", "3")
        .file("e/./f", "4")
        .file(".//k", "5")
        .dir("l//")
        .file("l/./m", "6")
        .dir("./");
    Case::of([layer.end()])
        .root([
            "a f =1", "b f =2", "c d", "c/d f =3", "e d", "e/f f =4", "k f =5", "l d", "l/m f =6",
        ])
        .check();
}

#[test]
fn dots_never_leave_the_root() {
    let layer = tar()
        .file("../a", "1")
        .file("b/../../c", "2")
        .file("d/../e", "3")
        .file("../../f/g", "4")
        .dir("..")
        .file("/../h", "5");
    Case::of([layer.end()])
        .root(["a f =1", "c f =2", "e f =3", "f d", "f/g f =4", "h f =5"])
        .differs(GnuTar, "it leaves out what has '..' in its name")
        .differs(BsdTar, "it leaves out what has '..' in its name")
        .check();
}

#[test]
fn a_file_whose_name_ends_in_a_slash_is_a_directory() {
    let layer = tar().file("a/", "").add(0, "b//", b"").file("b/c", "1");
    Case::of([layer.end()])
        .root(["a d 0644", "b d 0644", "b/c f =1"])
        .differs(Umoci, "Go looks for the slash behind the flag NUL only")
        .check();
}

#[test]
fn the_data_of_a_directory_is_passed_over() {
    let layer = tar().file("a/", "data").file("b", "1");
    Case::of([layer.end()])
        .root(["a d 0644", "b f =1"])
        .differs(Umoci, "Go looks for the slash behind the flag NUL only")
        .differs(GnuTar, "it looks for the next header right behind a directory")
        .check();
}

#[test]
fn any_byte_but_a_slash_and_nul_is_a_name() {
    let names: [&[u8]; 12] = [
        b"-rf",
        b"back\\slash",
        b"bell\x07",
        b"caf\xe9",
        b"e\xcc\x81",
        b"new\nline",
        b"quote'\"`$(x)",
        b"space at end ",
        b"star*?[a]",
        b"tab\ttab",
        b"\x7f\x80\xfe\xff",
        b"\xe2\x80\xae",
    ];
    let layer = |tar: crate::support::RawTar| names.iter().fold(tar, |tar, name| tar.file(name, "1"));
    let mut lines: Vec<(Vec<u8>, String)> = names
        .iter()
        .map(|name| {
            (
                name.to_vec(),
                format!("{} f =1", name.escape_ascii().to_string().replace(' ', "\\x20")),
            )
        })
        .collect();
    lines.sort();
    Case::of([layer(tar()).end()])
        .root(lines.into_iter().map(|(_, line)| line))
        .check();
}

#[test]
fn long_names_come_in_three_ways() {
    let component = "c".repeat(255);
    let prefix = format!("{}/{}", "p".repeat(60), "q".repeat(90));
    let gnu = format!("{}/{}/{}", "g".repeat(120), "h".repeat(120), "gnu");
    let pax = format!("{}/{}/{}", "x".repeat(120), "y".repeat(120), "pax");
    let layer = tar()
        .pax(&[("path", component.as_bytes())])
        .file("short", "1")
        .with(b'0', "name", b"2", |block| {
            block[345..345 + prefix.len()].copy_from_slice(prefix.as_bytes())
        })
        .gnu_long(b'L', &gnu)
        .file(&gnu[..99], "3")
        .pax(&[("path", pax.as_bytes())])
        .file(&pax[..99], "4");
    let parents = |path: &str| {
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
        ends.into_iter()
            .map(|end| format!("{} d", &path[..end]))
            .collect::<Vec<_>>()
    };
    let mut lines = vec![format!("{component} f =1")];
    for (path, content) in [(gnu, "3"), (format!("{prefix}/name"), "2"), (pax, "4")] {
        lines.extend(parents(&path));
        lines.push(format!("{path} f ={content}"));
    }
    Case::of([layer.end()]).root(lines).check();
}

#[test]
fn a_path_of_4096_bytes_is_the_longest() {
    // Components of 255 bytes: 16 with their slashes are 4096 bytes.
    let path = |last: usize| format!("{}/{}", vec!["d".repeat(255); 15].join("/"), "e".repeat(last));
    let layer = tar()
        .pax(&[("path", path(256).as_bytes())])
        .file("component", "1")
        .pax(&[("path", format!("{}/{}", "a/b".repeat(1500), "f").as_bytes())])
        .file("path", "2")
        .file("last", "3");
    Case::of([layer.end()])
        .root(["last f =3"])
        .warns("has a component of more than 255 bytes")
        .warns("is longer than 4096 bytes")
        .differs(Umoci, "it gives up at such a name")
        .differs(GnuTar, "it fails after all others")
        .differs(BsdTar, "it fails after all others")
        .check();
}

#[test]
fn what_cannot_be_a_name_is_left_out() {
    let layer = tar()
        .file("", "1")
        .pax(&[("path", b"a\0b")])
        .file("nul", "2")
        .file("last", "3");
    Case::of([layer.end()])
        .root(["last f =3"])
        .warns("layer 0")
        .warns("is left out: its name is empty")
        .warns("is left out: its name has a NUL")
        .differs(Umoci, "Go refuses a NUL in a PAX path, and with it the layer")
        .differs(
            GnuTar,
            "it ends a PAX path at a NUL, and goes on with a name that is empty",
        )
        .differs(BsdTar, "it ends a PAX path at a NUL")
        .check();
}

#[test]
fn only_the_last_name_of_a_path_is_a_whiteout() {
    let upper = tar().dir("a").file("a/.wh.b/c", "1").file(".wh.x/.wh.y/z", "2");
    Case::of([tar().dir("a").file("a/b", "0").file("x", "0").end(), upper.end()])
        .root([
            ".wh.x d",
            ".wh.x/.wh.y d",
            ".wh.x/.wh.y/z f =2",
            "a d",
            "a/.wh.b d",
            "a/.wh.b/c f =1",
            "a/b f =0",
            "x f =0",
        ])
        .check();
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let layer = tar()
        .file("a", "1")
        .dir("b")
        .file("b/x", "2")
        .file("./a", "3")
        .with(b'5', "b", b"", |block| {
            crate::support::raw_tar::octal(block, crate::support::raw_tar::field::MODE, 0o700)
        });
    Case::of([layer.end()]).root(["a f =3", "b d 0700", "b/x f =2"]).check();
}

#[test]
fn the_headers_that_others_put_into_names() {
    // A GNU header has two times where ustar has its prefix: they are no part of the name.
    let times = |block: &mut [u8]| {
        crate::support::raw_tar::gnu(block);
        block[345..356].copy_from_slice(b"14565212345");
        block[357..368].copy_from_slice(b"14565212345");
    };
    let v7 = |block: &mut [u8]| block[257..512].fill(0);
    let layer = tar()
        .with(b'0', "gnu", b"1", times)
        .with(0, "v7", b"2", v7)
        .with(b'0', "star", b"3", |block| {
            block[345..351].copy_from_slice(b"prefix");
            block[476..487].copy_from_slice(b"14565212345");
            block[488..499].copy_from_slice(b"14565212345");
            block[508..512].copy_from_slice(b"tar\0");
        });
    Case::of([layer.end()])
        .root(["gnu f =1", "prefix d", "prefix/star f =3", "v7 f =2"])
        .check();
}
