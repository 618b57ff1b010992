//! Random interleavings against the plain bytes.

use std::sync::Arc;

use proptest::prelude::*;

use super::source::{Answer, Recorded, transient};
use super::*;

const SIZE: u64 = 600 * KIB;

#[derive(Debug, Clone)]
enum Action {
    Read(u64, u64),
    Prefetch(u64, u64),
    Scan {
        start: u64,
        pieces: usize,
        economical: bool,
    },
    Forget,
    Reopen,
}

fn action(forget: bool) -> impl Strategy<Value = Action> {
    let bounds = (0..=SIZE, 0..100 * KIB).prop_map(|(start, len)| (start, (start + len).min(SIZE)));
    prop_oneof![
        8 => bounds.clone().prop_map(|(start, end)| Action::Read(start, end)),
        3 => bounds.prop_map(|(start, end)| Action::Prefetch(start, end)),
        3 => (0..SIZE, 1..6_usize, any::<bool>()).prop_map(|(start, pieces, economical)| Action::Scan {
            start,
            pieces,
            economical
        }),
        u32::from(forget) => Just(Action::Forget),
        1 => Just(Action::Reopen),
    ]
}

async fn perform(blob: Arc<Blob>, source: Arc<Recorded>, action: Action) {
    match action {
        Action::Read(start, end) => {
            let read = blob.read(range(start, end)).await.unwrap();
            assert!(read == source.content[start as usize..end as usize]);
        }
        Action::Prefetch(start, end) => blob.prefetch(range(start, end)),
        Action::Scan {
            start,
            pieces,
            economical,
        } => {
            let mut sequential = blob.sequential(start);
            for _ in 0..pieces {
                let at = sequential.position() as usize;
                match sequential.next(economical).await.unwrap() {
                    Some(bytes) => assert!(!bytes.is_empty() && bytes == source.content[at..at + bytes.len()]),
                    None => assert_eq!(at as u64, SIZE),
                }
            }
        }
        Action::Forget => blob.forget(),
        Action::Reopen => {}
    }
}

/// Runs the actions, `width` of them at once.
async fn run(actions: Vec<Action>, width: usize, limit: u64, source: Arc<Recorded>) -> Arc<Recorded> {
    let dir = tempfile::tempdir().unwrap();
    let mut blob = blob_of(&Store::open(dir.path(), limit), &source);
    for together in actions.chunks(width) {
        let tasks: Vec<_> = together
            .iter()
            .map(|action| tokio::spawn(perform(Arc::clone(&blob), Arc::clone(&source), action.clone())))
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        if together.iter().any(|action| matches!(action, Action::Reopen)) {
            idle(&blob).await;
            blob = blob_of(&Store::open(dir.path(), limit), &source);
        }
    }
    idle(&blob).await;
    source
}

/// Waits until nobody but the test has the blob: what is to be read ahead may not even have begun yet, and would
/// otherwise find the directory removed, or another blob beside it.
async fn idle(blob: &Arc<Blob>) {
    while Arc::strong_count(blob) > 1 {
        tokio::task::yield_now().await;
    }
}

fn on_a_runtime<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_byte_is_fetched_twice(
        actions in prop::collection::vec(action(false), 1..40),
        width in 1..12_usize,
        piece in prop_oneof![Just(1000_u64), Just(16 * KIB), Just(200_000)],
    ) {
        let source = Arc::new(Recorded::new(content(SIZE)).in_pieces_of(piece));
        let source = on_a_runtime(run(actions, width, 1 << 30, source));
        prop_assert!(source.most_often_delivered() <= 1);
        prop_assert!(source.delivered() <= SIZE);
    }

    #[test]
    fn bytes_are_right_whatever_is_forgotten_evicted_or_breaks_off(
        actions in prop::collection::vec(action(true), 1..40),
        width in 1..12_usize,
        limit in prop_oneof![Just(0_u64), Just(100 * KIB), Just(1 << 30)],
        breaks in prop::collection::vec(0..50_000_u64, 0..4),
        ranges in any::<bool>(),
    ) {
        let answers = breaks.into_iter().map(|len| match ranges {
            true => Answer::Breaks(len, transient(None)),
            false => Answer::AllBreaks(len, transient(None)),
        });
        let otherwise = if ranges { Answer::Good } else { Answer::All };
        let source = Recorded::new(content(SIZE)).in_pieces_of(10_000).answering(answers).always(otherwise);
        on_a_runtime(run(actions, width, limit, Arc::new(source)));
    }
}
