//! A registry that goes away and comes back.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::fixtures::Served;
use crate::support::*;

const READERS: u64 = 16;
const MINUTE: Duration = Duration::from_secs(60);

/// `--timeout` of these mounts, and how much longer a reader may take to hear of it.
const DEADLINE: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(6);

fn cold(number: u64) -> Content {
    Content::Noise {
        seed: 100 + number,
        size: 4_000_000,
    }
}

/// Some directories that are soon cached, and files for each reader that are not, one after another.
fn image() -> ImageBuilder {
    let cached = (0..100).flat_map(|number| {
        [
            Entry::dir(format!("cached/{number}")),
            Entry::file(format!("cached/{number}/file"), format!("{number}\n")),
        ]
    });
    // A scan fetches some 32 MB ahead of itself; what of those is left in the store depends on who was faster.
    let cold = (0..READERS + 12).map(|number| Entry::file(format!("cold/{number}"), cold(number)));
    ImageBuilder::of([Layer::of(cached.chain(cold))])
}

/// A mount whose layer is indexed, with little of it in the store.
fn indexed(served: &Served, cache: &std::path::Path) -> Mount {
    let mount = || {
        Mount::of(served.reference())
            .cache(cache)
            .with(["--cache-size", "8M", "--timeout", "2"])
    };
    mount().with(["--index"]).start().unmount();
    mount().start()
}

fn readers(mount: &Mount) -> Vec<Child> {
    (0..READERS)
        .map(|number| start("cat", &[mount.path(format!("cold/{number}"))]))
        .collect()
}

/// Each fails with EIO, within the deadline from `since`.
#[track_caller]
fn assert_eio(readers: Vec<Child>, since: Instant) {
    for reader in readers {
        let output = reader.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("Input/output error"), "{}: {said}", output.status);
        assert!(since.elapsed() < DEADLINE + SLACK, "after {:?}", since.elapsed());
    }
}

#[track_caller]
fn assert_cold(mount: &Mount, number: u64) {
    assert!(
        mount.read(&format!("cold/{number}")) == cold(number).bytes(),
        "cold/{number}"
    );
}

#[test]
fn without_its_registry_a_mount_serves_what_it_has_and_recovers_by_itself() {
    let served = Served::made(&image());
    let cache = tempfile::tempdir().unwrap();
    let mount = indexed(&served, cache.path());
    assert_eq!(mount.read("cached/7/file"), b"7\n");
    served.registry.faults().line(Line::Unplugged);

    let since = Instant::now();
    assert_eio(readers(&mount), since);
    assert_eq!(mount.read("cached/7/file"), b"7\n");
    assert_eq!(fs::read_dir(mount.path("cached")).unwrap().count(), 100);
    assert!(mount.status().layers[0].last_error.is_some());

    served.registry.faults().line(Line::Plugged);
    (0..READERS).for_each(|number| assert_cold(&mount, number));
}

#[test]
fn a_listing_of_what_is_cached_does_not_wait_beside_readers_that_do() {
    let served = Served::made(&image());
    let cache = tempfile::tempdir().unwrap();
    let mount = indexed(&served, cache.path());
    served.registry.log().clear();
    served.registry.faults().line(Line::Stalled);
    let since = Instant::now();
    let waiting = readers(&mount);
    eventually("readers wait", MINUTE, || {
        (!served.registry.log().is_empty()).then_some(())
    });

    // Each directory is new to the kernel, so each of these answers comes from the daemon.
    let mut took: Vec<_> = (0..100)
        .map(|number| {
            let asked = Instant::now();
            assert_eq!(fs::read_dir(mount.path(format!("cached/{number}"))).unwrap().count(), 1);
            asked.elapsed()
        })
        .collect();
    took.sort();
    // Other tests may hold up a few, but not for half of what those wait who wait for the line.
    let (most, slowest) = (took[94], took[99]);
    assert!(
        most < Duration::from_millis(100) && slowest < Duration::from_secs(1),
        "95 of 100 listings took up to {most:?}, the slowest {slowest:?}"
    );
    assert_eio(waiting, since);

    served.registry.faults().line(Line::Plugged);
    assert_cold(&mount, 3);
}

/// Whether a process waits for a file system: for an answer of FUSE, or for a page.
fn waits(process: &Child) -> bool {
    let place = fs::read_to_string(format!("/proc/{}/wchan", process.id())).unwrap_or_default();
    place.contains("wait_answer") || place.contains("folio") || place.contains("page")
}

/// Whoever is told to end while he waits ends, long before the deadline of what he waits for.
#[test]
fn a_reader_that_is_killed_waits_no_longer() {
    let served = Served::made(&image());
    let cache = tempfile::tempdir().unwrap();
    let patient = || Mount::of(served.reference()).with(["--cache-size", "8M", "--timeout", "3600"]);
    let unindexed = patient().start();
    patient().cache(cache.path()).with(["--index"]).start().unmount();
    let indexed = patient().cache(cache.path()).start();
    served.registry.faults().line(Line::Stalled);
    let stopped = |program: &str, path: std::path::PathBuf, signal: &str| {
        // By itself: it is to be the one that gets the signal.
        let mut reader = Command::new(program).arg(path).stdout(Stdio::null()).spawn().unwrap();
        eventually("the reader waits", MINUTE, || waits(&reader).then_some(()));
        run("kill", &["-s", signal, &reader.id().to_string()]);
        eventually("the reader ends", MINUTE, || reader.try_wait().unwrap())
    };
    for (number, signal) in ["INT", "TERM", "KILL"].into_iter().enumerate() {
        let status = stopped("cat", indexed.path(format!("cold/{number}")), signal);
        assert!(status.signal().is_some(), "{signal}: {status}");
    }
    for program in ["ls", "stat"] {
        let status = stopped(program, unindexed.path("cold/x"), "INT");
        assert!(status.signal().is_some(), "{program}: {status}");
    }
    served.registry.faults().line(Line::Plugged);
    assert_cold(&indexed, 0);
    assert_cold(&unindexed, 1);
}

#[test]
fn a_scan_whose_line_is_cut_is_an_error_and_goes_on_later() {
    let served = Served::made(&image());
    let faults = served.registry.faults();
    let size = served.image.layers[0].size;
    let mount = Mount::of(served.reference()).with(["--timeout", "2"]).start();
    faults.stall_after(size / 2);
    let since = Instant::now();
    let reader = start("ls", &[mount.path("cold")]);
    eventually("half of the layer is out", MINUTE, || {
        (served.layer_bytes() == size / 2).then_some(())
    });
    // Moving is no reason to give up; standing still is.
    let stalled = since.elapsed();
    let output = reader.wait_with_output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Input/output error"),
        "{output:?}"
    );
    assert!(
        since.elapsed() < stalled + DEADLINE + SLACK,
        "after {:?}",
        since.elapsed()
    );

    faults.line(Line::Plugged);
    run("ls", &[mount.path("cold")]);
    assert_cold(&mount, READERS);
}

#[test]
fn a_registry_that_stumbles_is_asked_again() {
    let served = Served::made(&image());
    let faults = served.registry.faults();
    let mount = Mount::of(served.reference()).with(["--timeout", "20"]).start();

    faults.truncate(Some(100_000));
    let reader = start("sha256sum", &[mount.path("cold/1")]);
    eventually("two answers are short", MINUTE, || {
        (served.layer_bytes() >= 200_000).then_some(())
    });
    faults.truncate(None);
    assert!(reader.wait_with_output().unwrap().status.success(), "{}", mount.log());

    faults.status(Some(503));
    let before = served.registry.log().len();
    let reader = start("cat", &[mount.path("cold/20")]);
    eventually("a refusal", MINUTE, || {
        (served.registry.log().len() > before).then_some(())
    });
    faults.status(None);
    assert!(reader.wait_with_output().unwrap().status.success(), "{}", mount.log());
    assert_cold(&mount, 20);
}

#[test]
fn a_registry_without_ranges_is_read_all_the_same() {
    let served = Served::made(&image());
    served.registry.faults().ignore_ranges(true);
    let mount = Mount::of(served.reference()).start();
    assert_cold(&mount, 0);
    assert_cold(&mount, READERS);
    assert_cold(&mount, 2);
}
