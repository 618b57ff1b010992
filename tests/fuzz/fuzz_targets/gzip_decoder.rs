#![no_main]

//! Arbitrary bytes as a gzip stream, beside flate2 with miniz_oxide.

mod drive;

use flate2::bufread::MultiGzDecoder;
use libfuzzer_sys::fuzz_target;
use peelfs::stream::Compression;

fuzz_target!(|data: &[u8]| drive::drive(Compression::Gzip, data, MultiGzDecoder::new));
