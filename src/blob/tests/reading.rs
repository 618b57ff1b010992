//! What a reader gets, and how many requests that takes.

use std::io::Write;
use std::sync::Arc;

use futures_util::FutureExt;

use crate::image::source::BlobOrigin;

use super::super::{Blob, Cause, Store};
use super::source::{Answer, Recorded};
use super::*;

#[tokio::test]
async fn a_range_read_twice_is_fetched_once() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(3 * MIB)));
    let blob = blob_in(dir.path(), &source);
    let mut from_store = 0;
    for _ in 0..2 {
        from_store = blob.stats().bytes_from_store;
        let read = blob.read(range(1000, 2 * MIB)).await.unwrap();
        assert!(read == source.content[1000..2 * MIB as usize]);
        settle(&blob).await;
    }
    assert_eq!(source.requests(), [range(1000, 2 * MIB)]);
    let stats = blob.stats();
    from_store = stats.bytes_from_store - from_store;
    assert_eq!((stats.requests, stats.hits, stats.misses, stats.retries), (1, 1, 1, 0));
    assert_eq!((stats.bytes_fetched, from_store), (2 * MIB - 1000, 2 * MIB - 1000));
    assert_eq!(blob.stored(), 2 * MIB - 1000);
}

#[tokio::test]
async fn only_the_missing_part_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(MIB)));
    let blob = blob_in(dir.path(), &source);
    blob.read(range(100, 200)).await.unwrap();
    let read = blob.read(range(50, 300)).await.unwrap();
    assert!(read == source.content[50..300]);
    assert_eq!(source.requests(), [range(100, 200), range(50, 100), range(200, 300)]);
}

#[tokio::test]
async fn readers_of_one_range_cause_one_request() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(MIB)).gated());
    let blob = blob_in(dir.path(), &source);
    let readers: Vec<_> = (0..32)
        .map(|_| {
            let blob = Arc::clone(&blob);
            tokio::spawn(async move { blob.read(range(0, MIB)).await.unwrap() })
        })
        .collect();
    source.asked(1).await;
    source.let_pass(1000);
    for reader in readers {
        assert!(reader.await.unwrap() == source.content);
    }
    assert_eq!(source.requests(), [range(0, MIB)]);
}

#[tokio::test]
async fn a_reader_wakes_before_the_fetch_ends() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(4 * MIB)).in_pieces_of(64 * KIB).gated());
    let blob = blob_in(dir.path(), &source);
    blob.prefetch(range(0, 4 * MIB));
    source.asked(1).await;
    source.let_pass(2);
    let read = blob.read(range(64 * KIB, 128 * KIB)).await.unwrap();
    assert!(read == source.content[64 * KIB as usize..128 * KIB as usize]);
    assert_eq!(source.delivered(), 128 * KIB);
    assert_eq!(source.requests(), [range(0, 4 * MIB)]);
}

#[tokio::test]
async fn what_is_in_memory_is_ready_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(4 * MIB)).in_pieces_of(64 * KIB).gated());
    let blob = blob_in(dir.path(), &source);
    blob.prefetch(range(0, 4 * MIB));
    source.asked(1).await;
    source.let_pass(1);
    blob.read(range(0, 64 * KIB)).await.unwrap();
    let again = blob.read(range(10, 1000)).now_or_never();
    assert!(again.unwrap().unwrap() == source.content[10..1000]);
    assert!(blob.read(range(0, 65 * KIB)).now_or_never().is_none());
}

#[tokio::test]
async fn a_reader_who_goes_away_does_not_stop_the_fetch() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(MIB)).gated());
    let blob = blob_in(dir.path(), &source);
    let reader = tokio::spawn({
        let blob = Arc::clone(&blob);
        async move { blob.read(range(0, MIB)).await }
    });
    source.asked(1).await;
    reader.abort();
    assert!(reader.await.unwrap_err().is_cancelled());
    source.let_pass(1000);
    assert!(blob.read(range(0, MIB)).await.unwrap() == source.content);
    assert_eq!(source.requests().len(), 1);
}

#[tokio::test]
async fn large_reads_are_several_requests_and_exact() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(20 * MIB)).in_pieces_of(100_000));
    let blob = blob_in(dir.path(), &source);
    assert!(blob.read(range(0, 20 * MIB)).await.unwrap() == source.content);
    let mut requests = source.requests();
    requests.sort();
    assert_eq!(
        requests,
        [range(0, 8 * MIB), range(8 * MIB, 16 * MIB), range(16 * MIB, 20 * MIB)]
    );
    settle(&blob).await;
    assert!(blob.read(range(0, 20 * MIB)).await.unwrap() == source.content);
    assert_eq!(source.delivered(), 20 * MIB);
}

#[tokio::test]
async fn what_the_blob_does_not_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(1000)));
    let blob = blob_in(dir.path(), &source);
    let error = blob.read(range(990, 1001)).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::OutOfRange { size: 1000 }));
    assert!(blob.read(range(1000, 1000)).await.unwrap().is_empty());
    assert!(blob.read(range(2000, 2000)).await.is_err());
    blob.prefetch(range(900, u64::MAX));
    settle(&blob).await;
    assert!(blob.read(range(900, 1000)).await.unwrap() == source.content[900..]);
}

#[tokio::test]
async fn a_host_without_ranges_is_asked_once_and_all_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(5 * MIB)).always(Answer::All));
    let blob = blob_in(dir.path(), &source);
    let read = blob.read(range(2 * MIB + 5, 2 * MIB + 10)).await.unwrap();
    assert!(read == source.content[2 * MIB as usize + 5..2 * MIB as usize + 10]);
    assert!(blob.read(range(0, 5 * MIB)).await.unwrap() == source.content);
    settle(&blob).await;
    assert!(blob.read(range(0, 5 * MIB)).await.unwrap() == source.content);
    assert_eq!(source.requests(), [range(2 * MIB + 5, 2 * MIB + 10)]);
    assert_eq!((blob.stored(), source.delivered()), (5 * MIB, 5 * MIB));
    blob.forget();
    assert!(blob.read(range(7, 9)).await.unwrap() == source.content[7..9]);
    assert_eq!(
        source.requests().last(),
        Some(&range(0, 5 * MIB)),
        "it has no ranges, and that is remembered"
    );
}

#[tokio::test]
async fn many_readers_of_a_host_without_ranges_share_one_body() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(5 * MIB)).always(Answer::All).gated());
    let blob = blob_in(dir.path(), &source);
    let readers: Vec<_> = (0..10)
        .map(|i| {
            let (blob, wanted) = (Arc::clone(&blob), range(i * 500_000, i * 500_000 + 1000));
            tokio::spawn(async move { (wanted, blob.read(wanted).await.unwrap()) })
        })
        .collect();
    source.asked(1).await;
    source.let_pass(10_000);
    for reader in readers {
        let (wanted, read) = reader.await.unwrap();
        assert!(read == source.content[wanted.start() as usize..wanted.end() as usize]);
    }
    settle(&blob).await;
    // A piece of each that gives way may have arrived before that was clear, but not more.
    assert!(source.delivered() <= 5 * MIB + 4 * 16 * KIB, "{}", source.delivered());
    assert_eq!(blob.stored(), 5 * MIB);
}

#[tokio::test]
async fn a_local_file_is_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let content = content(3 * MIB);
    file.write_all(b"before").unwrap();
    file.write_all(&content).unwrap();
    let origin = BlobOrigin::File {
        file: Arc::new(file),
        range: range(6, 6 + 3 * MIB),
    };
    let blob = Blob::new(
        digest(),
        3 * MIB + 1,
        origin,
        &Store::open(dir.path(), 1 << 30),
        DEADLINE,
    );
    assert!(blob.read(range(1, 2 * MIB)).await.unwrap() == content[1..2 * MIB as usize]);
    assert!(
        blob.read(range(1, 3 * MIB + 1)).await.is_err(),
        "the file does not have the last byte"
    );
    let mut sequential = blob.sequential(MIB);
    let mut read = Vec::new();
    while read.len() < 2 * MIB as usize {
        read.extend(sequential.next(true).await.unwrap_or_default().unwrap_or_default());
        if sequential.position() == 3 * MIB {
            break;
        }
    }
    assert!(read == content[MIB as usize..]);
    assert_eq!(blob.stats().requests, 0);
}
