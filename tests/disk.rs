//! A cache directory that is full, not ours, not writable, shared, or of another version.
//!
//! A mount then answers as ever, keeps in memory what it cannot keep on disk, and says so in its log. What is kept is
//! never half of something.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::support::fixtures::Served;
use crate::support::mount::{MountBuilder, unmount_by_force};
use crate::support::*;
use tempfile::TempDir;

/// A layer of each sort, of some 4 MB each.
fn served() -> Served {
    let noise = |seed| Content::Noise { seed, size: 4_000_000 };
    let layer = |number: u64| {
        Layer::of([
            Entry::dir("d"),
            Entry::file("d/same", noise(number)),
            Entry::file(format!("d/only-{number}"), noise(10 + number)),
        ])
    };
    Served::made(&ImageBuilder::of([
        layer(0),
        layer(1).compressed(Compression::None),
        layer(2).compressed(Compression::ZstdFrames(500_000)),
    ]))
}

/// What the image holds, as a mount shows it whose cache is as it should be.
fn expected(served: &Served) -> Tree {
    Tree::of(Mount::of(served.reference()).start().root())
}

/// A file system of its own in memory, of that size.
struct Disk(TempDir);

impl Disk {
    fn of(size: &str) -> Disk {
        let disk = Disk(tempfile::tempdir().unwrap());
        let options = format!("size={size},mode=700");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &options, "tmpfs", disk.0.path().to_str().unwrap()],
        );
        disk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes until nothing fits any more.
    fn fill(&self) {
        let filling = format!("of={}", self.path().join("filling").display());
        let output = attempt("dd", &["if=/dev/zero", &filling, "bs=4k"]);
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("No space left"),
            "{output:?}"
        );
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount_by_force(self.0.path());
    }
}

fn on(served: &Served, cache: &Path) -> MountBuilder {
    Mount::of(served.reference()).cache(cache)
}

/// All is right, and a line of the log warns in these words.
#[track_caller]
fn assert_right_and_warned(mount: &Mount, expected: &Tree, words: &str) {
    Tree::of(mount.root()).assert_is(expected);
    let log = mount.log();
    let warned = log.lines().any(|line| line.contains("WARN") && line.contains(words));
    assert!(warned, "no warning of '{words}' in the log:\n{log}");
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let found = run(
        "find",
        &[dir.as_os_str(), "-type".as_ref(), "f".as_ref(), "-print0".as_ref()],
    );
    let paths = String::from_utf8(found).unwrap();
    paths.split_terminator('\0').map(PathBuf::from).collect()
}

#[test]
fn on_a_full_disk_a_mount_reads_and_warns() {
    let served = served();
    let expected = expected(&served);
    let disk = Disk::of("3m");
    disk.fill();
    let mount = on(&served, disk.path()).start();
    assert_right_and_warned(&mount, &expected, "No space left on device");
    mount.unmount();
}

#[test]
fn a_disk_that_becomes_full_leaves_nothing_torn_behind() {
    let served = served();
    let expected = expected(&served);
    let disk = Disk::of("5m");
    let mount = on(&served, disk.path()).start();
    assert_right_and_warned(&mount, &expected, "No space left on device");
    mount.unmount();
    // What there is on the disk now has been cut by nobody.
    let torn: Vec<_> = files(&disk.path().join("store"))
        .into_iter()
        .filter(|file| !whole(file))
        .collect();
    assert!(torn.is_empty(), "{torn:?}");
    assert!(!files(&disk.path().join("store")).is_empty(), "nothing was kept at all");
    Tree::of(on(&served, disk.path()).start().root()).assert_is(&expected);

    // With room again, all is kept again.
    run("mount", &["-o", "remount,size=100m", disk.path().to_str().unwrap()]);
    on(&served, disk.path()).with(["--index"]).start().unmount();
    Tree::of(on(&served, disk.path()).start().root()).assert_is(&expected);
    served.registry.log().clear();
    Tree::of(on(&served, disk.path()).start().root()).assert_is(&expected);
    assert_eq!(served.layer_bytes(), 0, "{}", served.registry.log());
}

/// Whether an extent's file is as long as its name says: a header of 100 bytes, 4 for each 64 KiB, and the bytes.
fn whole(file: &Path) -> bool {
    let name = file.file_name().unwrap().to_str().unwrap();
    if name == "lock" {
        return true;
    }
    let Some(Ok(len)) = name.rsplit('-').next().map(|len| u64::from_str_radix(len, 16)) else {
        return false;
    };
    !name.starts_with('.') && fs::metadata(file).unwrap().len() == 100 + 4 * len.div_ceil(65536) + len
}

#[test]
fn in_a_read_only_directory_a_mount_reads_and_warns() {
    let served = served();
    let expected = expected(&served);
    for filled in [false, true] {
        let disk = Disk::of("100m");
        if filled {
            on(&served, disk.path()).with(["--index"]).start().unmount();
        }
        run("mount", &["-o", "remount,ro", disk.path().to_str().unwrap()]);
        let mount = on(&served, disk.path()).start();
        served.registry.log().clear();
        assert_right_and_warned(&mount, &expected, "Read-only file system");
        if filled {
            // What there is is used, indexes too, and that is all there is to say.
            assert_eq!(served.layer_bytes(), 0, "{}", served.registry.log());
            assert_eq!(mount.log().matches(" WARN ").count(), 1, "{}", mount.log());
        }
        mount.unmount();
    }
}

#[test]
fn what_is_damaged_in_a_read_only_directory_is_read_from_the_registry() {
    let served = served();
    let expected = expected(&served);
    let disk = Disk::of("100m");
    on(&served, disk.path()).with(["--index"]).start().unmount();
    for file in files(disk.path()) {
        let mut bytes = fs::read(&file).unwrap();
        if let Some(byte) = bytes.last_mut() {
            *byte ^= 1;
        }
        fs::write(&file, bytes).unwrap();
    }
    run("mount", &["-o", "remount,ro", disk.path().to_str().unwrap()]);
    let mount = on(&served, disk.path()).start();
    Tree::of(mount.root()).assert_is(&expected);
    mount.unmount();
}

#[test]
fn a_directory_that_becomes_read_only_under_a_mount_is_warned_of() {
    let served = served();
    let expected = expected(&served);
    let disk = Disk::of("100m");
    let mount = on(&served, disk.path()).start();
    run("mount", &["-o", "remount,ro", disk.path().to_str().unwrap()]);
    assert_right_and_warned(&mount, &expected, "Read-only file system");
    mount.unmount();
}

#[test]
fn a_directory_that_vanishes_under_a_mount_is_made_again() {
    let served = served();
    let expected = expected(&served);
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let mount = on(&served, &cache).start();
    assert_eq!(mount.read("layers/0/d/same").len(), 4_000_000);
    // The daemon may be writing into it what it has just read.
    while let Err(error) = fs::remove_dir_all(&cache) {
        assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty, "{error}");
    }
    Tree::of(mount.root()).assert_is(&expected);
    mount.unmount();
}

#[test]
fn what_stands_in_the_way_of_the_directory_is_warned_of() {
    let served = served();
    let expected = expected(&served);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "in the way").unwrap();
    for cache in [file.clone(), file.join("below"), PathBuf::from("/proc/peelfs")] {
        let mount = on(&served, &cache).start();
        assert_right_and_warned(&mount, &expected, &cache.display().to_string());
        mount.unmount();
    }
    assert_eq!(fs::read(&file).unwrap(), b"in the way");
}

#[test]
fn two_daemons_share_a_directory_however_small() {
    let served = served();
    let expected = expected(&served);
    let cache = tempfile::tempdir().unwrap();
    let both = [0, 1].map(|_| {
        on(&served, cache.path())
            .with(["--cache-size", "2M", "--memory", "1M"])
            .start()
    });
    std::thread::scope(|scope| {
        let read = both.each_ref().map(|mount| scope.spawn(|| Tree::of(mount.root())));
        for read in read {
            read.join().unwrap().assert_is(&expected);
        }
    });
    for mount in both {
        Tree::of(mount.root()).assert_is(&expected);
        mount.unmount();
    }
    assert!(files(&cache.path().join("store")).iter().all(|file| whole(file)));
}

/// Fills a cache, changes the version in every file of this sort, and wants them made anew.
fn made_anew_of_another_version(dir: &str, version_at: usize, said: &str) {
    let served = served();
    let cache = tempfile::tempdir().unwrap();
    let mount = on(&served, cache.path()).with(["--index"]).start();
    let expected = Tree::of(mount.root());
    mount.unmount();
    let kept = files(&cache.path().join(dir));
    let kept: Vec<_> = kept.into_iter().filter(|file| !file.ends_with("lock")).collect();
    assert!(kept.len() >= 3, "{kept:?}");
    for file in &kept {
        let mut bytes = fs::read(file).unwrap();
        bytes[version_at] += 1;
        // As another program would: in place of the old one, which somebody may use.
        fs::remove_file(file).unwrap();
        fs::write(file, bytes).unwrap();
    }
    let mount = on(&served, cache.path()).start();
    assert_right_and_warned(&mount, &expected, said);
    mount.unmount();
    served.registry.log().clear();
    Tree::of(on(&served, cache.path()).start().root()).assert_is(&expected);
    assert_eq!(served.layer_bytes(), 0, "{}", served.registry.log());
}

#[test]
fn what_killed_writers_left_is_removed_when_it_is_old() {
    let served = served();
    let cache = tempfile::tempdir().unwrap();
    on(&served, cache.path()).start().unmount();
    let hour = std::time::Duration::from_secs(3600);
    let left: Vec<PathBuf> = ["index", "documents/sha256", "documents/tags"]
        .iter()
        .flat_map(|dir| ["old", "new"].map(|age| cache.path().join(dir).join(format!("{age}.7-0.tmp"))))
        .collect();
    for path in &left {
        let file = fs::File::create(path).unwrap();
        if path.to_str().unwrap().contains("old.7") {
            file.set_modified(std::time::SystemTime::now() - 2 * hour).unwrap();
        }
    }
    on(&served, cache.path()).start().unmount();
    for path in &left {
        assert_eq!(path.exists(), path.to_str().unwrap().contains("new.7"), "{path:?}");
    }
}

#[test]
fn extents_of_another_version_are_fetched_again() {
    made_anew_of_another_version("store", 8, "it is no extent of this version");
}

#[test]
fn indexes_of_another_version_are_made_again() {
    made_anew_of_another_version("index", 8, "version");
}

#[test]
fn the_directory_is_for_its_owner_alone_and_those_above_stay_as_they_were() {
    let served = served();
    let dir = tempfile::tempdir().unwrap();
    let above = dir.path().join("above");
    fs::create_dir(&above).unwrap();
    fs::set_permissions(&above, fs::Permissions::from_mode(0o2775)).unwrap();
    chown(&above, Some(1000), Some(1001)).unwrap();
    let cache = above.join("new/cache");
    on(&served, &cache).with(["--index"]).start().unmount();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&above), 0o2775);
    assert_eq!(fs::metadata(&above).unwrap().uid(), 1000);
    // A directory of mode 02775 hands its set-group-ID bit down.
    assert_eq!(mode(&cache) & 0o777, 0o700);
    for file in files(&cache) {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}
