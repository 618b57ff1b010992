//! Memory is bounded by settings, not by the image.

use crate::support::fixtures::Served;
use crate::support::*;
use tempfile::TempDir;

/// The cache of decoded spans.
const MEMORY: u64 = 32 << 20;

/// What the daemon may take in all.
const LIMIT: u64 = MEMORY + (64 << 20);

#[track_caller]
fn assert_bounded(mount: &Mount) {
    let memory = mount.memory();
    assert!(memory.peak < LIMIT && memory.anonymous < LIMIT, "{memory:?}");
}

fn mounted(served: &Served, cache: &TempDir) -> Mount {
    let memory = MEMORY.to_string();
    Mount::of(served.reference())
        .cache(cache.path())
        .with(["--memory", &memory])
        .start()
}

/// The output of a shell command in the mount.
fn inside(mount: &Mount, command: &str) -> String {
    let script = format!("cd \"$0\" && {command}");
    let output = run("sh", &["-c".as_ref(), script.as_ref(), mount.root().as_os_str()]);
    String::from_utf8(output).unwrap().trim().to_string()
}

#[test]
fn a_600_mb_file_is_read_in_bounded_memory() {
    let served = Served::large();
    let cache = tempfile::tempdir().unwrap();
    let mount = mounted(&served, &cache);
    assert_eq!(inside(&mount, "cat data/large | wc -c"), "600000000");
    assert_bounded(&mount);
    inside(&mount, "ls data");
    mount.unmount();
    // And again, with an index, which is another way through the daemon.
    let mount = mounted(&served, &cache);
    assert_eq!(inside(&mount, "cat data/large | wc -c"), "600000000");
    assert_bounded(&mount);
}

#[test]
fn a_hundred_thousand_entries_are_listed_in_bounded_memory() {
    let served = Served::many();
    let cache = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mount = mounted(&served, &cache);
        assert_eq!(inside(&mount, "find layers/0 -type f | wc -l"), "100000");
        assert_eq!(inside(&mount, "ls -lR d00 d50 d99 | grep -c file-"), "3000");
        assert_bounded(&mount);
        mount.unmount();
    }
}
