//! Numbers: owners, sizes, times and devices, in octal, base 256 and PAX.

use super::case::Tool::{BsdTar, GnuTar, Umoci};
use super::case::{Case, tar};
use crate::support::raw_tar::field::{DEVMAJOR, DEVMINOR, GID, MODE, MTIME, SIZE, UID};
use crate::support::raw_tar::{binary, gnu, octal};

#[test]
fn modes_keep_their_special_bits_and_nothing_else() {
    let with = |mode: u64| move |block: &mut [u8]| octal(block, MODE, mode);
    let layer = tar()
        .with(b'0', "a", b"1", with(0o4755))
        .with(b'0', "b", b"2", with(0o2755))
        .with(b'5', "c", b"", with(0o1777))
        .with(b'0', "d", b"3", with(0o100600))
        .with(b'0', "e", b"4", with(0))
        .with(b'5', "f", b"", with(0o42770))
        .with(b'0', "g", b"5", with(0o7777));
    Case::of([layer.end()])
        .root([
            "a f 4755 =1",
            "b f 2755 =2",
            "c d 1777",
            "d f 0600 =3",
            "e f 0000 =4",
            "f d 2770",
            "g f 7777 =5",
        ])
        .check();
}

#[test]
fn owners_up_to_the_largest_that_linux_has() {
    let octal_owner = |block: &mut [u8]| {
        octal(block, UID, 0o7777777);
        octal(block, GID, 0o7777776);
    };
    let binary_owner = |block: &mut [u8]| {
        gnu(block);
        binary(block, UID, 0xffff_fffe);
        binary(block, GID, 3_000_000);
    };
    let layer = tar()
        .with(b'0', "a", b"1", octal_owner)
        .with(b'0', "b", b"2", binary_owner)
        .pax(&[("uid", b"4000000000"), ("gid", b"2097152")])
        .file("c", "3");
    Case::of([layer.end()])
        .root([
            "a f 2097151:2097150 =1",
            "b f 4294967294:3000000 =2",
            "c f 4000000000:2097152 =3",
        ])
        .check();
}

#[test]
fn an_owner_that_linux_has_not_is_the_overflow_owner() {
    let negative = |block: &mut [u8]| {
        gnu(block);
        binary(block, UID, -1);
        binary(block, GID, 5);
    };
    let layer = tar()
        .with(b'0', "a", b"1", negative)
        .pax(&[("uid", b"4294967296"), ("gid", b"-7")])
        .file("b", "2")
        .pax(&[("gid", b"4294967295")])
        .file("c", "3");
    Case::of([layer.end()])
        .root(["a f 65534:5 =1", "b f 65534:65534 =2", "c f 0:65534 =3"])
        .warns("which Linux has not")
        .differs(
            Umoci,
            "what it asks the kernel for is cut to 32 bits, or leaves the owner as it is",
        )
        .differs(GnuTar, "it takes root instead")
        .differs(BsdTar, "it takes root instead")
        .check();
}

#[test]
fn times_from_before_the_epoch_to_the_next_centuries() {
    let at = |seconds: i128| {
        move |block: &mut [u8]| {
            gnu(block);
            binary(block, MTIME, seconds);
        }
    };
    let layer = tar()
        .with(b'0', "a", b"1", |block| octal(block, MTIME, 0o37777777777))
        .with(b'0', "b", b"2", at(-1))
        .with(b'0', "c", b"3", at(-2_000_000_000))
        .with(b'0', "d", b"4", at(10_000_000_000))
        .pax(&[("mtime", b"1600000000.123456789")])
        .file("e", "5")
        .pax(&[("mtime", b"-1.5")])
        .file("f", "6")
        .pax(&[("mtime", b"0.000000001")])
        .file("g", "7")
        .pax(&[("mtime", b"1234567890.9999999999999")])
        .file("h", "8")
        .pax(&[("mtime", b"15")])
        .dir("i")
        .pax(&[("mtime", b"16.25")])
        .link(b'2', "j", "a");
    Case::of([layer.end()])
        .root([
            "a f @4294967295 =1",
            "b f @-1 =2",
            "c f @-2000000000 =3",
            "d f @10000000000 =4",
            "e f @1600000000.123456789 =5",
            "f f @-2.5 =6",
            "g f @0.000000001 =7",
            "h f @1234567890.999999999 =8",
            "i d @15",
            "j l @16.25 -> a",
        ])
        .differs(Umoci, "it keeps times as nanoseconds in 64 bits, which end in 2262")
        .differs(
            BsdTar,
            "it adds the fraction of a time before the epoch instead of subtracting it",
        )
        .check();
}

#[test]
fn sizes_in_base_256_and_pax() {
    let layer = tar()
        .with(b'0', "a", b"12345", |block| {
            gnu(block);
            binary(block, SIZE, 5);
        })
        .pax(&[("size", b"4")])
        .with(b'0', "b", b"1234", |block| octal(block, SIZE, 0))
        .file("c", "123");
    Case::of([layer.end()])
        .root(["a f =12345", "b f =1234", "c f =123"])
        .check();
}

#[test]
fn devices_with_large_numbers() {
    let device = |major: i128, minor: i128| {
        move |block: &mut [u8]| {
            gnu(block);
            binary(block, DEVMAJOR, major);
            binary(block, DEVMINOR, minor);
        }
    };
    let layer = tar()
        .with(b'3', "a", b"", |block| {
            octal(block, DEVMAJOR, 1);
            octal(block, DEVMINOR, 3);
        })
        .with(b'4', "b", b"", device(8, 1_048_575))
        .with(b'3', "c", b"", device(4095, 256))
        .with(b'3', "d", b"", device(0, 0));
    Case::of([layer.end()])
        .root(["a c 1:3", "b b 8:1048575", "c c 4095:256", "d c 0:0"])
        .check();
}

#[test]
fn a_device_that_linux_has_not_is_left_out() {
    let device = |major: u64, minor: u64| {
        move |block: &mut [u8]| {
            octal(block, DEVMAJOR, major);
            octal(block, DEVMINOR, minor);
        }
    };
    let layer = tar()
        .with(b'3', "a", b"", device(4096, 1))
        .with(b'4', "b", b"", device(1, 1 << 20))
        .file("c", "1");
    Case::of([layer.end()])
        .root(["c f =1"])
        .warns("no device of Linux")
        .differs(Umoci, "it cuts the numbers to what Linux has")
        .differs(GnuTar, "it cuts the numbers to what Linux has, or fails")
        .differs(BsdTar, "it cuts the numbers to what Linux has, or fails")
        .check();
}

#[test]
fn a_header_between_pax_records_and_octal() {
    // The records say what the header's fields are too small for; an empty value gives the header its say back.
    let layer = tar()
        .pax(&[
            ("uid", b"7"),
            ("uid", b""),
            ("mtime", b"9"),
            ("path", b"b"),
            ("path", b""),
        ])
        .with(b'0', "a", b"1", |block| octal(block, UID, 8))
        .pax(&[
            ("comment", b"x"),
            ("atime", b"1"),
            ("ctime", b"2"),
            ("uname", b"root"),
            ("gname", b"daemon"),
        ])
        .with(b'0', "c", b"2", |block| octal(block, GID, 99));
    Case::of([layer.end()])
        .root(["a f 8:0 @9 =1", "c f 0:99 =2"])
        .differs(GnuTar, "it does not know that an empty value takes a record back")
        .differs(BsdTar, "it takes an empty value for 0")
        .check();
}
