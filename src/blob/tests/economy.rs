//! How much a sequential reader has fetched.

use std::sync::Arc;

use super::super::Sequential;
use super::source::{Answer, Recorded, permanent};
use super::*;

/// Takes until `sequential` stands at `to` or beyond.
async fn take(sequential: &mut Sequential, economical: bool, to: u64, source: &Recorded) {
    while sequential.position() < to {
        let at = sequential.position() as usize;
        let bytes = sequential.next(economical).await.unwrap().unwrap();
        assert!(bytes == source.content[at..at + bytes.len()]);
    }
}

fn requested(source: &Recorded) -> u64 {
    source.requests().iter().map(|range| range.len()).sum()
}

#[tokio::test]
async fn the_first_request_is_small_and_they_double() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(MIB)).in_pieces_of(64 * KIB));
    let blob = blob_in(dir.path(), &source);
    let mut sequential = blob.sequential(0);
    take(&mut sequential, true, MIB, &source).await;
    assert!(sequential.next(true).await.unwrap().is_none());
    let expected = [(0, 64), (64, 128), (128, 256)].map(|(a, b)| range(a * KIB, b * KIB));
    assert_eq!(source.requests()[..3], expected);
    assert_eq!((requested(&source), source.most_often_delivered()), (MIB, 1));
}

#[tokio::test]
async fn never_more_than_twice_what_was_taken() {
    for (piece, start) in [(1000, 0), (5000, 12_345), (16 * KIB, 77), (100_000, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let source = Arc::new(Recorded::new(content(3 * MIB)).in_pieces_of(piece));
        let blob = blob_in(dir.path(), &source);
        let mut sequential = blob.sequential(start);
        let mut taken = 0;
        while let Some(bytes) = sequential.next(true).await.unwrap() {
            assert!(
                requested(&source) <= (64 * KIB).max(2 * taken),
                "{} {taken}",
                requested(&source)
            );
            taken += bytes.len() as u64;
        }
        assert_eq!((taken, requested(&source)), (3 * MIB - start, 3 * MIB - start));
    }
}

#[tokio::test]
async fn a_small_rest_is_one_request() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(MIB)));
    let blob = blob_in(dir.path(), &source);
    take(&mut blob.sequential(MIB - 100), true, MIB, &source).await;
    assert_eq!(source.requests(), [range(MIB - 100, MIB)]);
}

#[tokio::test]
async fn the_next_request_leaves_before_the_last_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(MIB)).in_pieces_of(4 * KIB).gated());
    let blob = blob_in(dir.path(), &source);
    let mut sequential = blob.sequential(0);
    source.let_pass(12);
    take(&mut sequential, true, 48 * KIB, &source).await;
    assert_eq!(source.requests(), [range(0, 64 * KIB)]);
    source.let_pass(1);
    take(&mut sequential, true, 52 * KIB, &source).await;
    source.asked(2).await;
    assert_eq!(source.requests(), [range(0, 64 * KIB), range(64 * KIB, 96 * KIB)]);
}

#[tokio::test]
async fn who_takes_all_has_several_large_requests_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(40 * MIB)).in_pieces_of(MIB / 4).gated());
    let blob = blob_in(dir.path(), &source);
    let reader = tokio::spawn({
        let (blob, source) = (Arc::clone(&blob), Arc::clone(&source));
        async move { take(&mut blob.sequential(0), false, 40 * MIB, &source).await }
    });
    // Three at once: the blob's fourth slot is for somebody who reads elsewhere.
    source.asked(3).await;
    let mut first = source.requests();
    first.sort();
    assert_eq!(first, [range(0, MIB), range(MIB, 3 * MIB), range(3 * MIB, 7 * MIB),]);
    source.let_pass(1000);
    reader.await.unwrap();
    assert_eq!((requested(&source), source.most_often_delivered()), (40 * MIB, 1));
    assert_eq!(source.requests().len(), 8, "{:?}", source.requests());
}

#[tokio::test]
async fn one_may_change_ones_mind_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(30 * MIB)).in_pieces_of(100_000));
    let blob = blob_in(dir.path(), &source);
    let mut sequential = blob.sequential(0);
    take(&mut sequential, true, 200 * KIB, &source).await;
    take(&mut sequential, false, 3 * MIB, &source).await;
    settle(&blob).await;
    let at_the_change = requested(&source);
    take(&mut sequential, true, at_the_change / 2 + MIB, &source).await;
    settle(&blob).await;
    assert!(requested(&source) <= at_the_change.max(2 * sequential.position()));
    take(&mut sequential, false, 30 * MIB, &source).await;
    assert_eq!((requested(&source), source.most_often_delivered()), (30 * MIB, 1));
}

#[tokio::test]
async fn what_is_stored_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(4 * MIB)));
    let blob = blob_in(dir.path(), &source);
    blob.read(range(0, 2 * MIB)).await.unwrap();
    settle(&blob).await;
    let before = requested(&source);
    let mut sequential = blob.sequential(0);
    take(&mut sequential, true, 2 * MIB, &source).await;
    assert_eq!(requested(&source), before);
    sequential.next(true).await.unwrap();
    assert_eq!(source.requests().last(), Some(&range(2 * MIB, 2 * MIB + 64 * KIB)));
    let mut all = blob.sequential(0);
    take(&mut all, false, 4 * MIB, &source).await;
    assert_eq!((requested(&source), source.most_often_delivered()), (4 * MIB, 1));
}

#[tokio::test(start_paused = true)]
async fn after_an_error_it_can_go_on() {
    for economical in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let answers = [Answer::Breaks(10_000, permanent()), Answer::Error(permanent())];
        let source = Arc::new(Recorded::new(content(MIB)).answering(answers));
        let blob = blob_in(dir.path(), &source);
        let mut sequential = blob.sequential(0);
        let mut errors = 0;
        while sequential.position() < MIB {
            errors += u64::from(sequential.next(economical).await.is_err());
        }
        // Who does not wait yet when a fetch fails, asks again without being told.
        assert!((1..=2).contains(&errors), "{errors}");
        assert!(blob.read(range(0, MIB)).await.unwrap() == source.content);
        assert_eq!(source.most_often_delivered(), 1);
    }
}

#[tokio::test]
async fn where_only_memory_keeps_it_little_is_fetched_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(50 * MIB)).in_pieces_of(MIB / 4));
    let blob = blob_of(&Store::open(dir.path(), 0), &source);
    let mut sequential = blob.sequential(0);
    while let Some(bytes) = sequential.next(false).await.unwrap() {
        assert!(requested(&source) <= sequential.position() + 4 * MIB + bytes.len() as u64);
    }
    assert_eq!(source.most_often_delivered(), 1);
}
