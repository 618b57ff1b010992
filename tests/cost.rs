//! What a mount costs: requests and bytes, counted in front of the registry.

use std::time::Duration;

use crate::support::fixtures::{Served, ten};
use crate::support::*;

/// The most that a span may take of the compressed stream; there is one at each end of what is read.
const SPAN: u64 = 2 << 20;

#[test]
fn mounting_costs_three_requests_and_no_byte_of_a_layer() {
    let served = Served::debian();
    let _mount = Mount::of(served.reference()).start();
    let log = served.registry.log();
    assert!(log.len() <= 3, "{log}");
    assert_eq!(served.layer_bytes(), 0, "{log}");
}

#[test]
fn the_first_cat_costs_little_and_the_second_nothing() {
    let served = Served::debian();
    let log = served.registry.log();
    let cache = tempfile::tempdir().unwrap();
    let mount = Mount::of(served.reference()).cache(cache.path()).start();
    let first = mount.read("layers/0/etc/passwd");
    let (_, end) = served.image.layers[0].compressed_range_of("etc/passwd").unwrap();
    let cost = served.layer_bytes();
    assert!(
        cost <= (64 << 10).max(2 * end),
        "{cost} bytes, the file ends at {end}\n{log}"
    );
    assert_eq!(
        cost,
        log.bytes_of(&served.image.layers[0].digest),
        "another layer was read\n{log}"
    );

    let requests = log.len();
    assert!(mount.read("layers/0/etc/passwd") == first);
    assert_eq!(log.len(), requests, "{log}");
    mount.unmount();

    served.registry.faults().line(Line::Unplugged);
    let mount = Mount::of(served.reference())
        .cache(cache.path())
        .with(["--offline"])
        .start();
    assert!(mount.read("layers/0/etc/passwd") == first);
    assert_eq!(log.len(), requests, "{log}");
}

#[test]
fn a_file_of_an_indexed_layer_costs_its_size_and_a_span_at_each_end() {
    let served = Served::large();
    let log = served.registry.log();
    let layer = &served.image.layers[0];
    let cache = tempfile::tempdir().unwrap();
    let mount = || {
        Mount::of(served.reference())
            .cache(cache.path())
            .with(["--cache-size", "8M"])
    };
    let indexed = mount().with(["--index"]).start();
    assert_eq!(indexed.status().layers[0].index, "complete");
    assert!(log.bytes_of(&layer.digest) <= layer.size, "{log}");
    indexed.unmount();

    log.clear();
    let mounted = mount().start();
    assert!(mounted.read("data/ten") == ten().bytes());
    let (start, end) = layer.compressed_range_of("data/ten").unwrap();
    let cost = served.layer_bytes();
    assert!(
        cost <= end - start + 2 * SPAN,
        "{cost} bytes for {}\n{log}",
        end - start
    );
}

/// Shell commands to run in a mount, none of which may fetch what another has.
const COMMANDS: [&str; 8] = [
    "cat layers/0/etc/passwd layers/2/etc/passwd",
    "ls -l etc usr/bin",
    "cat usr/bin/perl etc/os-release",
    "find .",
    "ls -lR layers/1",
    "tail -c 100 usr/bin/git",
    "grep -r root etc layers/1/etc",
    "tar -c usr/share layers/2 | wc -c",
];

fn every_byte_once(order: impl IntoIterator<Item = usize>) {
    let served = Served::debian();
    let cache = tempfile::tempdir().unwrap();
    let mount = || {
        Mount::of(served.reference())
            .cache(cache.path())
            .with(["--cache-size", "1G"])
            .start()
    };
    let mut mounted = mount();
    for (step, number) in order.into_iter().enumerate() {
        let script = format!("cd \"$0\" && {{ {}; }} >/dev/null 2>&1", COMMANDS[number]);
        let output = attempt("sh", &["-c".as_ref(), script.as_ref(), mounted.root().as_os_str()]);
        assert!(output.status.code() != Some(124), "{} hangs", COMMANDS[number]);
        served.assert_no_byte_twice();
        if step % 3 == 2 {
            mounted.unmount();
            mounted = mount();
        }
    }
    let status = mounted.status();
    assert!(status.last_error.is_none(), "{:?}", status.last_error);
}

#[test]
fn no_byte_is_fetched_twice_by_growing_demands() {
    every_byte_once(0..COMMANDS.len());
}

#[test]
fn no_byte_is_fetched_twice_in_another_order() {
    every_byte_once([5, 2, 0, 6, 1, 4, 7, 3]);
}

#[test]
fn all_of_it_at_once_fetches_no_byte_twice() {
    let served = Served::debian();
    let mount = Mount::of(served.reference()).with(["--cache-size", "1G"]).start();
    let running: Vec<_> = COMMANDS
        .iter()
        .map(|command| {
            let script = format!("cd \"$0\" && {{ {command}; }} >/dev/null 2>&1");
            start("sh", &["-c".as_ref(), script.as_ref(), mount.root().as_os_str()])
        })
        .collect();
    for mut child in running {
        assert_ne!(child.wait().unwrap().code(), Some(124), "a command hangs");
    }
    served.assert_no_byte_twice();
}

/// Requests and bytes for a layer, of which so many readers want one file at the same moment.
fn cost_of_readers(served: &Served, readers: usize) -> (usize, u64) {
    let (log, faults) = (served.registry.log(), served.registry.faults());
    let layer = &served.image.layers[0].digest;
    let mount = Mount::of(served.reference()).start();
    log.clear();
    faults.line(Line::Stalled);
    let running: Vec<_> = (0..readers)
        .map(|_| start("sha256sum", &[mount.path("layers/0/wanted")]))
        .collect();
    eventually("a first request", Duration::from_secs(30), || {
        (!log.is_empty()).then_some(())
    });
    faults.line(Line::Plugged);
    let sums: Vec<_> = running
        .into_iter()
        .map(|child| child.wait_with_output().unwrap().stdout)
        .collect();
    assert!(
        !sums[0].is_empty() && sums.iter().all(|sum| sum == &sums[0]),
        "{sums:?}"
    );
    (log.requests_of(layer).len(), log.bytes_of(layer))
}

#[test]
fn many_readers_of_one_cold_file_cause_the_requests_of_one() {
    let noise = |seed| Content::Noise { seed, size: 400_000 };
    let layer = [
        Entry::file("before", noise(1)),
        Entry::file("wanted", noise(2)),
        Entry::file("after", noise(3)),
    ];
    let served = Served::made(&ImageBuilder::of([Layer::of(layer)]));
    let (requests, bytes) = cost_of_readers(&served, 1);
    let many = cost_of_readers(&served, 32);
    served.assert_no_byte_twice();
    // How large the requests of a scan are depends on how much has arrived when it asks: the first has 64 KiB, each other
    // at least half of what all before it had, and never is more asked for than twice what was taken.
    let most = 1
        + (1..)
            .take_while(|n| 65_536.0 * 1.5_f64.powi(*n) < many.1 as f64)
            .count()
        + 1;
    assert!(
        many.0 <= most && many.1 <= 2 * bytes,
        "one: {requests} requests, {bytes} bytes; 32: {many:?}"
    );
}

#[test]
fn status_says_what_the_registry_counted() {
    let served = Served::debian();
    let mount = Mount::of(served.reference()).start();
    mount.read("layers/0/etc/passwd");
    run("ls", &[mount.path("layers/2/etc")]);
    let status = mount.status();
    assert_eq!(status.mountpoint, mount.root());
    assert_eq!(status.digest, served.image.manifest.to_string());
    assert_eq!(status.pid, mount.pid().as_raw());
    assert_eq!(status.compressed_size, served.image.size());
    assert_eq!(status.layers.len(), served.image.layers.len());
    for (number, (said, layer)) in status.layers.iter().zip(&served.image.layers).enumerate() {
        let log = served.registry.log();
        assert_eq!((said.number, said.size), (number, layer.size));
        assert_eq!(said.digest, layer.digest.to_string());
        assert_eq!(said.bytes_fetched, log.bytes_of(&layer.digest), "layer {number}\n{log}");
        assert_eq!(
            said.requests,
            log.requests_of(&layer.digest).len() as u64,
            "layer {number}\n{log}"
        );
    }
    let index: Vec<&str> = status.layers.iter().map(|layer| layer.index.as_str()).collect();
    assert_eq!(index, ["partial", "none", "complete"]);
    assert!(
        status.downloaded_pct > 0.0 && status.downloaded_pct < 5.0,
        "{}",
        status.downloaded_pct
    );
    assert!(status.last_error.is_none());
}
