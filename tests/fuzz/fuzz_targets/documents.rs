//! Any bytes as a manifest, an index or a config.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| peelfs::image::fuzz_documents(bytes));
