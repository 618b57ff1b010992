#![no_main]

//! Arbitrary bytes as a zstd stream, beside the zstd crate's own reader.

mod drive;

use libfuzzer_sys::fuzz_target;
use peelfs::stream::Compression;
use zstd::stream::read::Decoder;

fuzz_target!(|data: &[u8]| {
    drive::drive(Compression::Zstd, data, |stream| {
        let mut decoder = Decoder::with_buffer(stream).expect("memory");
        decoder.window_log_max(27).expect("a window that zstd has");
        decoder
    });
});
