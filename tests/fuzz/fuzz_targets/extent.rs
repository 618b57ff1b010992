//! The file of an extent may hold anything: another user's mistake, a torn write, a flipped bit.

#![no_main]

use libfuzzer_sys::fuzz_target;
use peelfs::blob::extent_file::{ExtentHeader, MAX_LEN};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = ExtentHeader::parse(bytes) {
        let range = header.range();
        assert!(!range.is_empty() && range.len() <= MAX_LEN);
        let encoded = header.encode();
        assert_eq!(encoded.len(), ExtentHeader::encoded_len(range.len()));
        assert_eq!(ExtentHeader::parse(&encoded).as_ref(), Ok(&header));
        let data = bytes.get(encoded.len()..).unwrap_or_default();
        for first in [0, 1, 15, 16, usize::MAX] {
            let _ = header.check(first, data);
        }
    }
});
