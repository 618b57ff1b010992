//! The file of an extent may hold anything: another user's mistake, a torn write, a flipped bit.
#![no_main]

mod changed;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use peelfs::blob::ExtentKind;
use peelfs::blob::extent_file::{ExtentHeader, MAX_LEN};
use peelfs::digest::Digest;

static REAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let data = vec![7; 70_000];
    let digest = Digest::sha256(b"a blob");
    let header = ExtentHeader::describe(ExtentKind::Compressed, digest, 5000, &[data.clone().into()]);
    [header.expect("it is not too long").encode(), data].concat()
});

/// Makes the checksum of the header right.
fn mend(bytes: &mut [u8]) -> Option<()> {
    let len = u64::from_le_bytes(bytes.get(88..96)?.try_into().ok()?);
    let end = ExtentHeader::encoded_len(len.min(MAX_LEN));
    let checksum = crc32fast::hash(bytes.get(..end - 4)?).to_le_bytes();
    bytes.get_mut(end - 4..end)?.copy_from_slice(&checksum);
    Some(())
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = match input {
        [0, changes @ ..] => changed::changed(&REAL, changes),
        bytes => bytes.to_vec(),
    };
    let _ = mend(&mut bytes);
    if let Ok(header) = ExtentHeader::parse(&bytes) {
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
