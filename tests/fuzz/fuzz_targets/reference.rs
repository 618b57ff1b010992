//! Any text as a reference, a digest or a platform: what is accepted can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peelfs::digest::Digest;
use peelfs::image::platform::Platform;
use peelfs::image::reference::Reference;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let shown = reference.to_string();
        assert_eq!(
            shown.parse::<Reference>().expect("it was just shown").to_string(),
            shown
        );
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(
            platform.to_string().parse::<Platform>().expect("it was just shown"),
            platform
        );
    }
});
