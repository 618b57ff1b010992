//! What a daemon that was killed leaves behind: nothing fetched in vain, nothing wrong believed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::fixtures::Served;
use crate::support::*;

const MINUTE: Duration = Duration::from_secs(60);

/// What a kill may cost again: the range that was under way, and what was not yet written.
const IN_FLIGHT: u64 = 4 << 20;

/// How far apart checkpoints are in noise, which does not compress, and a little more.
const CHECKPOINTS: u64 = 2 << 20;

#[test]
fn a_scan_that_was_killed_goes_on_from_its_last_checkpoint() {
    let noise = |seed, size| Content::Noise { seed, size };
    for compression in [Compression::Gzip, Compression::ZstdFrames(1 << 20), Compression::None] {
        let served = Served::made(&ImageBuilder::of([Layer::of([
            Entry::file("before", noise(1, 60_000_000)),
            Entry::file("wanted", "found\n"),
            Entry::file("after", noise(2, 20_000_000)),
        ])
        .compressed(compression)]));
        let (faults, layer) = (served.registry.faults(), &served.image.layers[0]);
        let cache = tempfile::tempdir().unwrap();
        let half = layer.size / 2;

        let mount = Mount::of(served.reference()).cache(cache.path()).start();
        faults.stall_after(half);
        let mut reader = start("cat", &[mount.path("layers/0/wanted")]);
        eventually("half of the layer is out", MINUTE, || {
            (served.layer_bytes() == half).then_some(())
        });
        let scanned = eventually("the scan has come as far", MINUTE, || {
            let indexed = mount.status().layers[0].indexed_bytes;
            (indexed + IN_FLIGHT >= half).then_some(indexed)
        });
        mount.crash();
        assert!(!reader.wait().unwrap().success(), "the reader of a killed daemon");
        faults.line(Line::Plugged);

        let mount = Mount::of(served.reference()).cache(cache.path()).start();
        let indexed = mount.status().layers[0].indexed_bytes;
        assert_eq!(mount.read("layers/0/wanted"), b"found\n");
        // What was on its way to the disk is lost with the process; nothing else is fetched again.
        let again = served.registry.log().repeated_of(&layer.digest);
        let log = served.registry.log();
        assert!(again <= IN_FLIGHT, "{compression:?}: {again} bytes again\n{log}");
        assert!(
            indexed + CHECKPOINTS >= scanned && indexed <= half,
            "{compression:?}: taken up at {indexed}, not near {scanned}"
        );
        run("ls", &[mount.path("layers/0")]);
        assert_eq!(mount.status().layers[0].index, "complete");
    }
}

/// Pages of a file that is being read are locked in the kernel until the read is answered; whoever wants to put bytes into
/// them waits, deaf to SIGKILL, until the mount is ended by force.
#[test]
fn a_daemon_that_is_killed_while_reads_wait_ends_by_force() {
    let content = Content::Noise {
        seed: 1,
        size: 60_000_000,
    };
    let served = Served::made(&ImageBuilder::of([Layer::of([Entry::file("file", content)])]));
    let faults = served.registry.faults();
    let cache = tempfile::tempdir().unwrap();
    let mount = || {
        Mount::of(served.reference())
            .cache(cache.path())
            .with(["--cache-size", "8M"])
    };
    mount().with(["--index"]).start().unmount();
    for allowance in [1_500_000, 2_100_000, 3_700_000, 5_300_000, 9_900_000] {
        let mount = mount().start();
        served.registry.log().clear();
        faults.stall_after(allowance);
        let path = mount.path("file");
        let mut readers: Vec<_> = (0..4)
            .map(|skip| {
                let (input, skip) = (format!("if={}", path.display()), format!("skip={skip}"));
                start("dd", &[&input, "of=/dev/null", "bs=700k", &skip])
            })
            .collect();
        eventually("the line stalls", MINUTE, || {
            (served.layer_bytes() == allowance).then_some(())
        });
        // Ends within a deadline, or panics.
        mount.crash_by_force();
        for reader in &mut readers {
            assert!(!reader.wait().unwrap().success(), "the reader of a killed daemon");
        }
        faults.line(Line::Plugged);
    }
}

/// How many times a daemon is killed at any moment: `$PEELFS_KILLS`, or as many as take half a minute.
fn kills() -> u64 {
    let told = std::env::var("PEELFS_KILLS").ok();
    told.map_or(40, |number| number.parse().expect("a number"))
}

/// The store and the indexes are written all the time here: little of the image fits, and for every second kill it is
/// scanned anew.
#[test]
fn whenever_a_daemon_is_killed_the_next_one_reads_what_is_right() {
    let served = Served::made(&image());
    let expected = Tree::of(Mount::of(served.reference()).start().root());
    let mut cache = tempfile::tempdir().unwrap();
    // After so many bytes of layers, of which there are some 18 MB: moments of no pattern, the same each time.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for kill in 0..kills() {
        if kill % 2 == 0 {
            cache = tempfile::tempdir().unwrap();
        }
        let mount = || {
            Mount::of(served.reference())
                .cache(cache.path())
                .with(["--cache-size", "5M", "--memory", "2M"])
        };
        let killed = mount().start();
        let mut readers: Vec<_> = ["layers/0", "layers/1", "layers/2", "d"]
            .map(|dir| {
                start(
                    "grep",
                    &["-r".into(), "found nowhere".into(), killed.path(dir).into_os_string()],
                )
            })
            .into();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let moment = served.layer_bytes() + state % 20_000_000;
        // With most of it in the store there may come fewer; then it is killed when nobody reads any more.
        eventually("the moment, or the end of all readers", MINUTE, || {
            let ended = readers
                .iter_mut()
                .all(|reader| matches!(reader.try_wait(), Ok(Some(_))));
            (ended || served.layer_bytes() >= moment).then_some(())
        });
        killed.crash_by_force();
        for reader in &mut readers {
            reader.wait().unwrap();
        }
        let next = mount().start();
        let differences = Tree::of(next.root()).differences(&expected);
        assert!(differences.is_empty(), "kill {kill}, at byte {moment}: {differences}");
        next.unmount();
    }
}

/// All files below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry"))
    {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else if entry.file_type().unwrap().is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

fn image() -> ImageBuilder {
    let noise = |seed| Content::Noise { seed, size: 3_000_000 };
    let layer = |number: u64| {
        Layer::of([
            Entry::dir("d"),
            Entry::file("d/same", noise(number)),
            Entry::file(format!("d/only-{number}"), noise(10 + number)).mode(0o600),
            Entry::symlink("d/link", format!("only-{number}")),
        ])
    };
    ImageBuilder::of([
        layer(0),
        layer(1).compressed(Compression::None),
        layer(2).compressed(Compression::ZstdFrames(500_000)),
    ])
}

/// Fills a cache, spoils every file in it with `spoil`, and wants the same tree again, whatever that costs.
fn mended_after(spoil: impl Fn(usize, &mut Vec<u8>)) {
    let served = Served::made(&image());
    let cache = tempfile::tempdir().unwrap();
    let mount = || Mount::of(served.reference()).cache(cache.path());
    let first = mount().start();
    let expected = Tree::of(first.root());
    first.unmount();

    let kept = files(cache.path());
    assert!(kept.len() >= 3, "{kept:?}");
    for (number, file) in kept.iter().enumerate() {
        let mut bytes = fs::read(file).unwrap();
        spoil(number, &mut bytes);
        fs::write(file, bytes).unwrap();
    }

    // Without a registry there is nothing to mend it with: then no answer is right, and a wrong one is not.
    served.registry.faults().line(Line::Unplugged);
    if let Ok(offline) = mount().with(["--offline", "--timeout", "2"]).try_start() {
        assert_nothing_wrong(&offline, &expected);
    }
    served.registry.faults().line(Line::Plugged);

    let second = mount().start();
    Tree::of(second.root()).assert_is(&expected);
    second.unmount();

    // Mended means that it is whole again, not only this time.
    served.registry.log().clear();
    Tree::of(mount().start().root()).assert_is(&expected);
    assert_eq!(served.layer_bytes(), 0, "{}", served.registry.log());
}

/// What can be read at all is as expected; the rest is an error, or in a directory whose listing is one.
fn assert_nothing_wrong(mount: &Mount, expected: &Tree) {
    let differences = Tree::of(mount.root()).differences(expected);
    let unlisted = differences.contains("children is");
    for line in differences.lines().skip(1) {
        // Of a path that cannot be looked up, every attribute is missing.
        let unknown = line.contains("os error") || line.contains(" is -, not ");
        assert!(
            unknown || unlisted && line.ends_with(": missing"),
            "{line}\n{differences}"
        );
    }
}

#[test]
fn files_cut_in_the_middle_are_mended() {
    mended_after(|_, bytes| bytes.truncate(bytes.len() / 2));
}

#[test]
fn files_cut_near_their_end_are_mended() {
    mended_after(|_, bytes| bytes.truncate(bytes.len().saturating_sub(1)));
}

#[test]
fn emptied_files_are_mended() {
    mended_after(|_, bytes| bytes.clear());
}

#[test]
fn flipped_bytes_at_the_start_are_mended() {
    mended_after(|_, bytes| bytes.iter_mut().take(4).for_each(|byte| *byte ^= 0xff));
}

#[test]
fn flipped_bytes_in_the_middle_are_mended() {
    mended_after(|number, bytes| {
        let middle = bytes.len() / 2 + number;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 0x10;
        }
    });
}
