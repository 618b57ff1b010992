//! What happens when the other side fails, stalls or lies. Time is tokio's and stands still while anything runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::image::source::FetchError;

use super::super::{BlobError, Cause};
use super::source::{Answer, Recorded, permanent, transient};
use super::*;

fn refused(error: &BlobError) -> bool {
    matches!(error.cause(), Cause::Refused(_))
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_where_it_broke_off() {
    let dir = tempfile::tempdir().unwrap();
    let answers = [
        Answer::Error(transient(None)),
        Answer::Breaks(300_000, transient(None)),
        Answer::Ends(5),
        Answer::Breaks(0, transient(None)),
    ];
    let source = Arc::new(Recorded::new(content(MIB)).answering(answers));
    let blob = blob_in(dir.path(), &source);
    assert!(blob.read(range(0, MIB)).await.unwrap() == source.content);
    assert_eq!(
        source.requests(),
        [
            range(0, MIB),
            range(0, MIB),
            range(300_000, MIB),
            range(300_005, MIB),
            range(300_005, MIB)
        ]
    );
    assert_eq!((source.delivered(), source.most_often_delivered()), (MIB, 1));
    let stats = blob.stats();
    assert_eq!((stats.requests, stats.retries), (5, 4));
    assert!(stats.last_error.unwrap().message.contains("out of sorts"));
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_reaches_all_and_the_next_read_asks_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = Recorded::new(content(MIB)).answering([Answer::Breaks(100_000, permanent())]);
    let source = Arc::new(source.in_pieces_of(50_000).gated());
    let blob = blob_in(dir.path(), &source);
    let readers: Vec<_> = (0..32)
        .map(|_| {
            let blob = Arc::clone(&blob);
            tokio::spawn(async move { blob.read(range(0, MIB)).await })
        })
        .collect();
    while blob.readers_waiting() < 32 {
        tokio::task::yield_now().await;
    }
    source.let_pass(1000);
    for reader in readers {
        let error = reader.await.unwrap().unwrap_err();
        assert!(refused(&error), "{error}");
        assert!(error.to_string().contains("registry.test does not have it"), "{error}");
    }
    assert_eq!(source.requests().len(), 1);
    assert!(blob.read(range(0, MIB)).await.unwrap() == source.content);
    assert_eq!(
        source.requests(),
        [range(0, MIB), range(100_000, MIB)],
        "what had arrived was kept"
    );
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_deadline() {
    for answer in [
        Answer::Stalls(None),
        Answer::Error(transient(None)),
        Answer::Error(transient(Some(Duration::from_secs(3600)))),
        Answer::Error(transient(Some(Duration::MAX))),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let source = Arc::new(Recorded::new(content(2000)).always(answer.clone()));
        let blob = blob_in(dir.path(), &source);
        let began = Instant::now();
        let error = blob.read(range(0, 2000)).await.unwrap_err();
        assert!(matches!(error.cause(), Cause::Deadline { .. }), "{error}");
        let took = began.elapsed();
        assert!(
            took >= DEADLINE && took < DEADLINE + Duration::from_secs(1),
            "{answer:?} {took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_a_host_again_that_was_silent_does_not_wait_as_long() {
    let dir = tempfile::tempdir().unwrap();
    // Three stalls fill the first deadline, the fourth is that of the second reader.
    let source = Recorded::new(content(2000)).answering(vec![Answer::Stalls(None); 4]);
    let source = Arc::new(source);
    let blob = blob_in(dir.path(), &source);
    blob.read(range(0, 2000)).await.unwrap_err();
    let began = Instant::now();
    let error = blob.read(range(0, 2000)).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Deadline { .. }), "{error}");
    assert!(began.elapsed() <= DEADLINE / 10 + Duration::from_secs(1));
    assert!(
        blob.read(range(0, 2000)).await.unwrap() == source.content,
        "it is asked every time"
    );
}

#[tokio::test(start_paused = true)]
async fn progress_begins_the_deadline_anew() {
    let dir = tempfile::tempdir().unwrap();
    let source = Recorded::new(content(80_000)).always(Answer::Stalls(Some(4096)));
    let source = Arc::new(source);
    let blob = blob_in(dir.path(), &source);
    let began = Instant::now();
    assert!(blob.read(range(0, 80_000)).await.unwrap() == source.content);
    assert!(began.elapsed() > 4 * DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn hardly_anything_is_no_progress() {
    let dir = tempfile::tempdir().unwrap();
    let source = Recorded::new(content(80_000)).always(Answer::Stalls(Some(100)));
    let source = Arc::new(source);
    let blob = blob_in(dir.path(), &source);
    let began = Instant::now();
    let error = blob.read(range(0, 80_000)).await.unwrap_err();
    assert!(error.to_string().contains("hardly anything"), "{error}");
    assert!(began.elapsed() <= DEADLINE, "{:?}", began.elapsed());
    // What has come is good all the same, and what is left is little enough to be progress when it comes in one go.
    let source = Recorded::new(content(1000)).always(Answer::Stalls(Some(1000)));
    assert!(
        blob_in(dir.path(), &Arc::new(source))
            .read(range(0, 1000))
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn a_stall_is_noticed_long_before_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let source = Recorded::new(content(MIB)).answering([Answer::Stalls(None), Answer::Stalls(Some(500_000))]);
    let source = Arc::new(source);
    let blob = blob_in(dir.path(), &source);
    assert!(blob.read(range(0, MIB)).await.unwrap() == source.content);
    assert_eq!(source.requests(), [range(0, MIB), range(0, MIB), range(500_000, MIB)]);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let answers = [Answer::Error(transient(Some(Duration::from_secs(7))))];
    let source = Arc::new(Recorded::new(content(1000)).answering(answers));
    let blob = blob_in(dir.path(), &source);
    let began = Instant::now();
    assert!(blob.read(range(0, 1000)).await.unwrap() == source.content);
    assert!(began.elapsed() >= Duration::from_secs(7) && began.elapsed() < Duration::from_secs(8));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed_by_those_who_were_not_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30);
    let told = Recorded::new(content(1000)).answering([Answer::Error(transient(Some(Duration::from_secs(7))))]);
    let (told, other) = (Arc::new(told), Arc::new(Recorded::new(content(1000))));
    let origin = BlobOrigin::Remote(Arc::new(Source(Arc::clone(&told))));
    let began = Instant::now();
    Blob::new(Digest::sha256(b"told"), 1000, origin, &store, DEADLINE).prefetch(range(0, 1000));
    told.asked(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(blob_of(&store, &other).read(range(0, 1000)).await.unwrap() == other.content);
    assert!(began.elapsed() >= Duration::from_secs(7) && began.elapsed() < Duration::from_secs(8));
}

#[tokio::test(start_paused = true)]
async fn those_in_the_queue_do_not_wait_a_deadline_each() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(MIB)).always(Answer::Stalls(None)));
    let blob = blob_in(dir.path(), &source);
    let began = Instant::now();
    let readers: Vec<_> = (0..20)
        .map(|i| {
            let blob = Arc::clone(&blob);
            tokio::spawn(async move { blob.read(range(i * 1000, i * 1000 + 10)).await })
        })
        .collect();
    for reader in readers {
        assert!(reader.await.unwrap().is_err());
    }
    assert!(began.elapsed() < DEADLINE * 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn that_another_blob_gets_ahead_does_not_make_them_wait_longer() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30);
    let slow = Arc::new(Recorded::new(content(MIB)).always(Answer::Stalls(Some(1000))));
    let origin = BlobOrigin::Remote(Arc::new(Source(Arc::clone(&slow))));
    Blob::new(Digest::sha256(b"slow"), MIB, origin, &store, DEADLINE).prefetch(range(0, MIB));
    slow.asked(1).await;
    let source = Arc::new(Recorded::new(content(MIB)).always(Answer::Stalls(None)));
    let blob = blob_of(&store, &source);
    let began = Instant::now();
    let readers: Vec<_> = (0..20)
        .map(|i| {
            let blob = Arc::clone(&blob);
            tokio::spawn(async move { blob.read(range(i * 1000, i * 1000 + 10)).await })
        })
        .collect();
    for reader in readers {
        assert!(reader.await.unwrap().is_err());
    }
    assert!(began.elapsed() < DEADLINE * 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lying_answer_is_an_error_and_never_data() {
    let says = [
        range(10, 20),
        range(0, 2 * MIB),
        range(0, u64::MAX),
        range(100, 100),
        range(99, 200),
        range(150, 200),
    ];
    for said in says {
        let dir = tempfile::tempdir().unwrap();
        let source = Arc::new(Recorded::new(content(MIB)).answering([Answer::Says(said)]));
        let blob = blob_in(dir.path(), &source);
        let error = blob.read(range(100, 200)).await.unwrap_err();
        assert!(refused(&error), "{said} {error}");
        assert!(blob.read(range(100, 200)).await.unwrap() == source.content[100..200]);
    }
}

#[tokio::test(start_paused = true)]
async fn fewer_bytes_than_asked_for_are_taken_and_the_rest_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let answers = [Answer::Says(range(100, 150)), Answer::Good];
    let source = Arc::new(Recorded::new(content(MIB)).in_pieces_of(50).answering(answers));
    let blob = blob_in(dir.path(), &source);
    assert!(blob.read(range(100, 200)).await.unwrap() == source.content[100..200]);
    assert_eq!(source.requests(), [range(100, 200), range(150, 200)]);
}

#[tokio::test(start_paused = true)]
async fn more_bytes_than_promised_are_never_data() {
    for piece in [7, 64, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let source = Recorded::new(content(MIB)).in_pieces_of(piece);
        let source = Arc::new(source.answering([Answer::Surplus(50), Answer::Good]));
        let blob = blob_in(dir.path(), &source);
        // Where the surplus comes apart from the bytes that were asked for, these are good.
        match blob.read(range(100, 200)).await {
            Ok(read) => assert!(read == source.content[100..200]),
            Err(error) => assert!(refused(&error), "{error}"),
        }
        settle(&blob).await;
        assert!(blob.read(range(90, 300)).await.unwrap() == source.content[90..300]);
        assert!(blob.stats().last_error.unwrap().message.contains("promised"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_without_ranges_begins_anew_and_no_byte_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let answers = [
        Answer::AllBreaks(MIB, transient(None)),
        Answer::AllBreaks(2 * MIB, transient(None)),
    ];
    let source = Arc::new(Recorded::new(content(3 * MIB)).answering(answers).always(Answer::All));
    let blob = blob_in(dir.path(), &source);
    assert!(blob.read(range(3 * MIB - 10, 3 * MIB)).await.unwrap() == source.content[3 * MIB as usize - 10..]);
    assert!(blob.read(range(0, 3 * MIB)).await.unwrap() == source.content);
    assert_eq!(source.requests().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_host_without_ranges_that_always_breaks_off_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let answer = Answer::AllBreaks(
        MIB,
        FetchError::Transient {
            reason: "broke off".to_owned(),
            retry_after: None,
        },
    );
    let source = Arc::new(Recorded::new(content(3 * MIB)).always(answer));
    let blob = blob_in(dir.path(), &source);
    let error = blob.read(range(2 * MIB, 2 * MIB + 1)).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Deadline { .. }), "{error}");
    assert!(
        blob.read(range(0, MIB)).await.unwrap() == source.content[..MIB as usize],
        "kept all the same"
    );
}
