//! What the store keeps, what it loses, and what it must never serve.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::{ExtentKind, Extents, Store, eviction};
use super::source::Recorded;
use super::*;

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.join("extents")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path)
            } else {
                found.push(path)
            }
        }
    }
    found.sort();
    found
}

fn bytes_in(dir: &Path) -> u64 {
    files(dir).iter().map(|file| file.metadata().unwrap().len()).sum()
}

fn used_before(file: &Path, age: Duration) {
    File::open(file).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

#[tokio::test]
async fn nothing_is_fetched_again_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(3 * MIB)));
    {
        // Nothing is closed or synced by anybody.
        let blob = blob_in(dir.path(), &source);
        blob.read(range(5, 3 * MIB)).await.unwrap();
        settle(&blob).await;
    }
    let blob = blob_in(dir.path(), &source);
    assert!(blob.read(range(5, 3 * MIB)).await.unwrap() == source.content[5..]);
    assert_eq!(source.requests().len(), 1);
    assert_eq!(blob.stored(), 3 * MIB - 5);
    assert_eq!(blob.stats().requests, 0);
}

#[tokio::test]
async fn files_are_private_and_hold_a_mebibyte_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(3 * MIB)).in_pieces_of(100_001));
    let blob = blob_in(&dir.path().join("new/store"), &source);
    blob.read(range(0, 3 * MIB)).await.unwrap();
    settle(&blob).await;
    let files = files(&dir.path().join("new/store"));
    assert_eq!(files.len(), 3);
    for file in &files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        for dir in file.ancestors().skip(1).take(6) {
            assert_eq!(
                dir.metadata().unwrap().permissions().mode() & 0o777,
                0o700,
                "{}",
                dir.display()
            );
        }
    }
}

#[tokio::test]
async fn a_damaged_file_is_noticed_removed_and_fetched_again() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 8] = [
        ("flipped data", |file| flip(file, 200_000)),
        ("flipped checksum", |file| flip(file, 98)),
        ("flipped offset", |file| flip(file, 80)),
        ("flipped digest", |file| flip(file, 20)),
        ("truncated", |file| {
            File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_len(300_000)
                .unwrap()
        }),
        ("empty", |file| fs::write(file, b"").unwrap()),
        ("longer", |file| {
            File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_len(2_000_000)
                .unwrap()
        }),
        ("a directory", |file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let source = Arc::new(Recorded::new(content(MIB)));
        let blob = blob_in(dir.path(), &source);
        blob.read(range(0, MIB)).await.unwrap();
        settle(&blob).await;
        let file = files(dir.path()).remove(0);
        damage(&file);
        assert!(blob.read(range(0, MIB)).await.unwrap() == source.content, "{what}");
        assert_eq!(source.requests(), [range(0, MIB), range(0, MIB)], "{what}");
        settle(&blob).await;
        if what != "a directory" {
            assert!(blob.read(range(0, MIB)).await.unwrap() == source.content, "{what}");
            assert_eq!(source.requests().len(), 2, "{what}");
        }
    }
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_file_under_a_wrong_name_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(MIB)));
    let blob = blob_in(dir.path(), &source);
    blob.read(range(0, 1000)).await.unwrap();
    settle(&blob).await;
    let file = files(dir.path()).remove(0);
    fs::rename(&file, file.with_file_name("c-800-3e8")).unwrap();
    let again = blob_in(dir.path(), &source);
    assert!(again.read(range(2048, 2100)).await.unwrap() == source.content[2048..2100]);
}

#[tokio::test]
async fn an_undamaged_part_of_a_damaged_file_may_be_served() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(MIB)));
    let blob = blob_in(dir.path(), &source);
    blob.read(range(0, MIB)).await.unwrap();
    settle(&blob).await;
    flip(&files(dir.path())[0], 900_000);
    assert!(blob.read(range(10, 100)).await.unwrap() == source.content[10..100]);
    assert_eq!(source.requests().len(), 1, "only the blocks that are touched are read");
}

#[tokio::test]
async fn two_processes_share_what_either_fetches() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(3 * MIB)));
    let (a, b) = (blob_in(dir.path(), &source), blob_in(dir.path(), &source));
    b.read(range(0, 10)).await.unwrap();
    settle(&b).await;
    for (i, (one, other)) in [(&a, &b), (&b, &a), (&a, &b)].into_iter().enumerate() {
        let wanted = range(i as u64 * MIB, (i as u64 + 1) * MIB);
        one.read(wanted).await.unwrap();
        settle(one).await;
        assert!(other.read(wanted).await.unwrap() == source.content[i * MIB as usize..(i + 1) * MIB as usize]);
    }
    assert_eq!(source.most_often_delivered(), 1);
}

#[tokio::test]
async fn overlapping_extents_are_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(MIB);
    let extents = Store::open(dir.path(), 1 << 30).extents(ExtentKind::Decoded, &digest());
    for (start, end) in [(0, 400_000), (100_000, 200_000), (300_000, 900_000), (300_000, 500_000)] {
        extents.write(start, content.slice(start as usize..end)).await;
    }
    assert_eq!(extents.stored(), 900_000);
    assert!(extents.read(range(1, 899_999)).await.unwrap() == content[1..899_999]);
    assert!(extents.read(range(1, 900_001)).await.is_none());
}

#[tokio::test]
async fn the_two_kinds_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30);
    let compressed = store.extents(ExtentKind::Compressed, &digest());
    let decoded = store.extents(ExtentKind::Decoded, &digest());
    compressed.write(0, Bytes::from_static(b"gz")).await;
    decoded.write(0, Bytes::from(vec![7; 3 * MIB as usize])).await;
    assert_eq!(compressed.read(range(0, 2)).await.unwrap(), "gz");
    assert_eq!(decoded.read(range(0, 3 * MIB)).await.unwrap().len(), 3 * MIB as usize);
    decoded.forget();
    assert!(decoded.read(range(0, 1)).await.is_none());
    assert_eq!(compressed.read(range(0, 2)).await.unwrap(), "gz");
}

#[tokio::test]
async fn the_least_recently_used_goes_first_and_the_limit_holds() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 10 * MIB);
    let extents = store.extents(ExtentKind::Compressed, &digest());
    let mebibyte = content(MIB);
    for i in 0..9 {
        extents.write(i * MIB, mebibyte.clone()).await;
    }
    assert_eq!(files(dir.path()).len(), 9);
    for (age, i) in [8, 2, 5, 0, 7].iter().enumerate() {
        let file = extents_file(&dir, *i);
        used_before(&file, Duration::from_secs(5000 - age as u64));
    }
    // Its use makes it the youngest, whatever it was.
    extents.read(range(8 * MIB, 8 * MIB + 1)).await.unwrap();
    for i in 9..11 {
        extents.write(i * MIB, mebibyte.clone()).await;
    }
    assert!(bytes_in(dir.path()) <= 10 * MIB);
    assert_eq!(store.usage(), bytes_in(dir.path()));
    for (i, kept) in [
        (8, true),
        (2, false),
        (5, false),
        (0, true),
        (1, true),
        (9, true),
        (10, true),
    ] {
        assert_eq!(extents_file(&dir, i).exists(), kept, "{i}");
        let read = extents.read(range(i * MIB, (i + 1) * MIB)).await;
        assert_eq!(read.is_some(), kept, "{i}");
    }
}

fn extents_file(dir: &tempfile::TempDir, mebibyte: u64) -> PathBuf {
    let hex = digest().hex();
    let name = format!("c-{:x}-100000", mebibyte * MIB);
    dir.path().join("extents/sha256").join(&hex[..2]).join(hex).join(name)
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 4 * MIB);
    let extents = store.extents(ExtentKind::Compressed, &digest());
    let mebibyte = content(MIB);
    extents.write(0, mebibyte.clone()).await;
    let pin = extents.pin(range(10, 20));
    used_before(&extents_file(&dir, 0), Duration::from_secs(5000));
    for i in 1..10 {
        extents.write(i * MIB, mebibyte.clone()).await;
        assert!(
            extents.read(range(i * MIB, (i + 1) * MIB)).await.is_some(),
            "just written"
        );
    }
    assert!(extents_file(&dir, 0).exists());
    drop(pin);
    for i in 10..14 {
        extents.write(i * MIB, mebibyte.clone()).await;
    }
    assert!(!extents_file(&dir, 0).exists());
}

#[tokio::test]
async fn what_another_process_has_written_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mebibyte = content(MIB);
    let (a, b) = (Store::open(dir.path(), 8 * MIB), Store::open(dir.path(), 8 * MIB));
    let of = |store: &Store, what: &[u8]| store.extents(ExtentKind::Compressed, &Digest::sha256(what));
    let (of_a, of_b): (Arc<Extents>, Arc<Extents>) = (of(&a, b"a"), of(&b, b"b"));
    for i in 0..20 {
        of_a.write(i * MIB, mebibyte.clone()).await;
        of_b.write(i * MIB, mebibyte.clone()).await;
        assert!(
            bytes_in(dir.path()) <= 9 * MIB,
            "one may write while the other has not looked yet"
        );
    }
}

#[tokio::test]
async fn old_temporary_files_are_cleared_up() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(dir.path(), 1 << 30)
        .extents(ExtentKind::Compressed, &digest())
        .write(0, content(10))
        .await;
    let (old, young) = (
        extents_file(&dir, 0).with_file_name(".a.tmp"),
        extents_file(&dir, 0).with_file_name(".b.tmp"),
    );
    fs::write(&old, b"x").unwrap();
    fs::write(&young, b"x").unwrap();
    used_before(&old, Duration::from_secs(4000));
    assert!(eviction::scan(&dir.path().join("extents")).bytes > 10);
    assert!(!old.exists() && young.exists());
}

#[tokio::test]
async fn without_a_usable_directory_a_little_is_kept_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    for store in [Store::open(&file, 1 << 30), Store::open(&dir.path().join("zero"), 0)] {
        let source = Arc::new(Recorded::new(content(40 * MIB)).in_pieces_of(MIB / 2));
        let blob = blob_of(&store, &source);
        for _ in 0..2 {
            assert!(blob.read(range(0, 8 * MIB)).await.unwrap() == source.content[..8 * MIB as usize]);
            settle(&blob).await;
        }
        assert_eq!(source.most_often_delivered(), 1);
        assert!(blob.read(range(0, 40 * MIB)).await.unwrap() == source.content);
        settle(&blob).await;
        assert!(store.inner().memory().bytes() <= 33 * MIB);
        assert_eq!(blob.stored(), 0);
        drop(blob);
        assert_eq!(store.inner().memory().bytes(), 0);
    }
    assert!(!dir.path().join("zero").exists());
}

#[tokio::test]
async fn how_little_is_kept_in_memory_can_be_told() {
    let dir = tempfile::tempdir().unwrap();
    for (told, most) in [(8 * MIB, 8 * MIB), (0, 4 * MIB), (1 << 40, 32 * MIB)] {
        let store = Store::open_with_memory(dir.path(), 0, told);
        let source = Arc::new(Recorded::new(content(40 * MIB)).in_pieces_of(MIB / 2));
        let blob = blob_of(&store, &source);
        assert!(blob.read(range(0, 40 * MIB)).await.unwrap() == source.content);
        settle(&blob).await;
        let kept = store.inner().memory().bytes();
        assert!((most - MIB..=most + MIB).contains(&kept), "{kept} of {told}");
    }
}

#[tokio::test]
async fn where_writing_fails_the_mount_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(3 * MIB)));
    let blob = blob_in(dir.path(), &source);
    // A file where the directory should be: also root cannot write there.
    fs::write(dir.path().join("extents/sha256"), b"").unwrap();
    for _ in 0..2 {
        assert!(blob.read(range(0, 3 * MIB)).await.unwrap() == source.content);
        settle(&blob).await;
    }
    assert_eq!(source.most_often_delivered(), 1);
    assert_eq!(blob.stored(), 0);
}

#[tokio::test]
async fn forgetting_forgets_also_what_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(3 * MIB)).in_pieces_of(MIB).gated());
    let blob = blob_in(dir.path(), &source);
    let reader = tokio::spawn({
        let blob = Arc::clone(&blob);
        async move { blob.read(range(0, 3 * MIB)).await.unwrap() }
    });
    source.asked(1).await;
    source.let_pass(2);
    while source.delivered() < 2 * MIB {
        tokio::task::yield_now().await;
    }
    blob.forget();
    source.let_pass(1000);
    assert!(reader.await.unwrap() == source.content);
    settle(&blob).await;
    blob.forget();
    while !files(dir.path()).is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(blob.stored(), 0);
    let before = source.requests().len();
    assert!(blob.read(range(0, 10)).await.unwrap() == source.content[..10]);
    assert_eq!(source.requests().len(), before + 1);
    assert!(blob.stats().requests >= 3, "counts stay");
}

#[tokio::test]
async fn what_was_begun_before_a_forgetting_is_not_kept_after_it() {
    let dir = tempfile::tempdir().unwrap();
    for limit in [0, 1 << 30] {
        let extents = Store::open(dir.path(), limit).extents(ExtentKind::Compressed, &digest());
        let epoch = extents.epoch();
        extents.forget();
        extents.write_parts(epoch, 0, vec![Bytes::from_static(b"old")]).await;
        assert!(extents.read(range(0, 3)).await.is_none());
        assert!(files(dir.path()).is_empty());
        extents.write(0, Bytes::from_static(b"new")).await;
        assert_eq!(extents.read(range(0, 3)).await.unwrap(), "new");
    }
}

#[tokio::test]
async fn removing_all_frees_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Recorded::new(content(3 * MIB)));
    let store = Store::open(dir.path(), 1 << 30);
    let blob = blob_of(&store, &source);
    blob.read(range(0, 3 * MIB)).await.unwrap();
    settle(&blob).await;
    let freed = store.prune(0);
    assert!(freed >= 3 * MIB);
    assert_eq!((store.usage(), files(dir.path()).len()), (0, 0));
    assert!(blob.read(range(0, 3 * MIB)).await.unwrap() == source.content);
}
