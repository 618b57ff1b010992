#![no_main]

//! Arbitrary bytes as a zstd stream.

mod drive;

use libfuzzer_sys::fuzz_target;
use peelfs::stream::Compression;

fuzz_target!(|data: &[u8]| drive::drive(Compression::Zstd, data));
