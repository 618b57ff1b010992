//! Any text in the headers of a registry's answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    peelfs::registry::fuzz_challenges(text.lines());
    text.lines().for_each(peelfs::registry::fuzz_content_range);
});
