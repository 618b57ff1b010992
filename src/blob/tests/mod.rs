//! The rules of the whole module, checked with a source that counts.

mod economy;
mod failing;
mod keeping;
mod model;
mod reading;
mod source;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::digest::Digest;
use crate::image::source::BlobOrigin;
use crate::range::ByteRange;

use super::{Blob, Store};
use source::{Recorded, Source};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const DEADLINE: Duration = Duration::from_secs(30);

/// Bytes that differ from place to place, so that any shift is noticed.
fn content(len: u64) -> Bytes {
    let mut state = 0x9E37_79B9_u32;
    let bytes = (0..len).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    });
    bytes.collect::<Vec<u8>>().into()
}

fn digest() -> Digest {
    Digest::sha256(b"the blob of the tests")
}

fn blob_in(dir: &Path, source: &Arc<Recorded>) -> Arc<Blob> {
    blob_of(&Store::open(dir, 1 << 30), source)
}

fn blob_of(store: &Store, source: &Arc<Recorded>) -> Arc<Blob> {
    let origin = BlobOrigin::Remote(Arc::new(Source(Arc::clone(source))));
    Blob::new(digest(), source.content.len() as u64, origin, store, DEADLINE)
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end)
}

/// Lets everything run that can without new bytes or time passing: flights end, files get their names.
async fn settle(blob: &Blob) {
    while blob.flights_under_way() > 0 {
        tokio::task::yield_now().await;
    }
}
