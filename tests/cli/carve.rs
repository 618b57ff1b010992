//! `peelfs carve`: files out of an image without a mount, and what that costs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Stdio;
use std::time::Duration;

use crate::support::cli::{Asked, has_file_ending, history};
use crate::support::fixtures::Served;
use crate::support::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

#[test]
fn the_merged_version_and_that_of_each_layer() {
    let asked = Asked::of(history());
    let carve = |words: &str| asked.ask(&format!("carve {words}")).ok();
    assert_eq!(carve("IMAGE /etc/passwd"), b"three\n");
    assert_eq!(carve("IMAGE etc/passwd --layer 0"), b"zero\n");
    assert_eq!(carve("--layer 1 IMAGE etc/passwd"), b"one, longer\n");
    assert_eq!(carve("IMAGE etc/passwd -o - --layer 3"), b"three\n");
    assert_eq!(carve("IMAGE etc/old --layer 0 etc/mode"), b"old\nmode\n");
    assert_eq!(carve("IMAGE usr/lib/new"), b"new\n");
    assert!(carve("IMAGE usr/bin/tool2") == Content::Noise { seed: 5, size: 300_000 }.bytes());
}

#[test]
fn what_is_not_there_is_told_with_the_layers_that_have_it() {
    let asked = Asked::of(history());
    let said = asked.ask("carve IMAGE etc/passwd --layer 2");
    assert_eq!((said.code, said.text()), (1, ""));
    assert_eq!(
        said.err,
        "peelfs: /etc/passwd is not in layer 2; it is in layers 0, 1, 3\n"
    );
    let said = asked.ask("carve IMAGE etc/nothing --layer 2");
    assert_eq!(said.err, "peelfs: /etc/nothing is not in layer 2; it is in no layer\n");
    let said = asked.ask("carve IMAGE etc/old");
    let hidden = "peelfs: /etc/old is not in the image, as upper layers hide it; it is in layer 0\n";
    assert_eq!((said.code, &*said.err), (1, hidden));
    assert_eq!(
        asked.ask("carve IMAGE etc/no").err,
        "peelfs: /etc/no is not in the image\n"
    );
    // What is there of several is had all the same.
    let said = asked.ask("carve IMAGE etc/old etc/mode");
    assert_eq!((said.code, said.text()), (1, "mode\n"));
}

#[test]
fn a_layer_out_of_range_costs_nothing_and_names_the_range() {
    let asked = Asked::of(history());
    let said = asked.ask("carve IMAGE etc/passwd --layer 4");
    assert_eq!(said.code, 2);
    assert_eq!(said.err, "peelfs: there is no layer 4: the image has layers 0 to 3\n");
    assert_eq!(asked.cost(), (0, 0));
}

#[test]
fn symlinks_are_followed_inside_of_the_image() {
    let asked = Asked::of(history());
    for path in ["etc/absolute", "etc/above", "bin/../../etc/passwd", "/etc/./absolute"] {
        assert_eq!(asked.run(&["carve", "IMAGE", path]).ok(), b"three\n", "{path}");
    }
    let said = asked.ask("carve IMAGE etc/loop");
    assert_eq!(
        (said.code, &*said.err),
        (1, "peelfs: /etc/loop leads through more than 40 symlinks\n")
    );
    assert_eq!(asked.ask("carve IMAGE etc/dangling").code, 1);
    // By itself, layer 1 has no symlink to follow, and layer 0 its own file.
    assert_eq!(asked.ask("carve IMAGE etc/absolute --layer 1").code, 1);
    assert_eq!(asked.ask("carve IMAGE etc/absolute --layer 0").ok(), b"zero\n");
}

#[test]
fn what_has_no_content_is_told() {
    let asked = Asked::of(history());
    let said = asked.ask("carve IMAGE dev/pipe");
    assert_eq!(
        (said.code, &*said.err),
        (1, "peelfs: /dev/pipe is a named pipe, which has no content\n")
    );
    let said = asked.ask("carve IMAGE etc");
    assert_eq!(said.code, 2);
    assert!(said.err.contains("-o DIR"), "{}", said.err);
}

/// A layer whose files are far apart, and one on top of it.
fn far_apart() -> Vec<Layer> {
    let noise = |seed, size| Content::Noise { seed, size };
    vec![
        Layer::of([
            Entry::file("first", "first\n"),
            Entry::file("middle", noise(1, 1_500_000)),
            Entry::file("wanted", "wanted\n"),
            Entry::file("last", noise(2, 3_000_000)),
        ]),
        Layer::of([Entry::file("small", "small\n")]),
    ]
}

#[test]
fn a_carve_costs_what_the_mount_costs_and_a_second_one_nothing() {
    let asked = Asked::of(far_apart());
    let log = asked.served.registry.log();
    for (path, layer) in [("layers/0/first", "0"), ("layers/1/small", "1")] {
        let elsewhere = tempfile::tempdir().unwrap();
        log.clear();
        let mount = Mount::of(asked.served.reference()).cache(elsewhere.path()).start();
        let bytes = mount.read(path);
        mount.unmount();
        let cost = asked.cost();

        let name = path.rsplit('/').next().unwrap();
        log.clear();
        assert!(asked.run(&["carve", "IMAGE", name, "--layer", layer]).ok() == bytes);
        assert_eq!(asked.cost(), cost, "{path}\n{log}");
        assert!(
            asked
                .run(&["carve", "IMAGE", name, "--layer", layer, "--offline", "-q"])
                .ok()
                == bytes
        );
        assert!(asked.run(&["carve", "IMAGE", name, "--layer", layer]).ok() == bytes);
        assert_eq!(asked.cost(), cost, "{log}");
    }
}

#[test]
fn nothing_is_fetched_twice_between_carve_and_mount() {
    let asked = Asked::of(far_apart());
    asked.ask("carve IMAGE wanted --layer 0").ok();
    let mount = Mount::of(asked.served.reference()).cache(&asked.cache()).start();
    mount.read("layers/0/last");
    mount.read("small");
    mount.unmount();
    let cost = asked.cost();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().to_str().unwrap();
    asked.run(&["carve", "IMAGE", "last", "small", "first", "-o", out]).ok();
    let said = asked.run(&["carve", "IMAGE", "last", "--layer", "0"]);
    assert!(
        said.out
            == Content::Noise {
                seed: 2,
                size: 3_000_000
            }
            .bytes()
    );
    assert_eq!(asked.cost(), cost);
    asked.served.assert_no_byte_twice();
}

#[test]
fn a_carve_stops_when_the_file_is_complete_and_leaves_a_partial_index() {
    let asked = Asked::of(far_apart());
    let layer = &asked.served.image.layers[0];
    assert_eq!(asked.ask("carve IMAGE wanted --layer 0").ok(), b"wanted\n");
    let (_, end) = layer.compressed_range_of("wanted").unwrap();
    let (_, bytes) = asked.cost();
    assert!(
        bytes >= end && bytes <= 2 * end && bytes < layer.size,
        "{bytes} bytes, it ends at {end}"
    );
    let index = asked.cache().join("index");
    assert!(has_file_ending(&index, ".partial") && !has_file_ending(&index, ".index"));

    // Another one goes on where it stopped.
    let mount = Mount::of(asked.served.reference()).cache(&asked.cache()).start();
    assert_eq!(mount.status().layers[0].index, "partial");
    mount.unmount();
    asked.run(&["carve", "IMAGE", "last", "--layer", "0"]);
    asked.served.assert_no_byte_twice();
    assert!(has_file_ending(&index, ".index"));
}

#[test]
fn the_report_says_what_the_registry_counted() {
    let asked = Asked::of(far_apart());
    let log = asked.served.registry.log();
    let said = asked.ask("carve IMAGE wanted --json");
    assert_eq!((said.code, said.text()), (0, "wanted\n"));
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    let report: Value = serde_json::from_str(&said.err).unwrap();
    let layer = &asked.served.image.layers[0];
    let (requests, bytes) = asked.cost();
    assert_eq!(report["found"], true);
    assert_eq!(report["image"], asked.served.reference());
    assert_eq!(report["digest"], asked.served.image.manifest.to_string());
    assert_eq!(report["path"], "wanted");
    assert_eq!(report["size"], 7);
    assert_eq!(report["layer_index"], 0);
    assert_eq!(report["layer_digest"], layer.digest.to_string());
    assert_eq!(report["layer_size"], layer.size);
    assert_eq!(report["bytes_downloaded"], bytes, "{log}");
    assert_eq!(report["requests"], requests, "{log}");
    let share = log.bytes_of(&layer.digest) as f64 * 100.0 / layer.size as f64;
    assert!(
        (report["efficiency_pct"].as_f64().unwrap() - share).abs() < 0.01,
        "{report}"
    );
    assert_eq!(report["layers_searched"], 2);
    // It stopped in the middle of the layer.
    assert_eq!(report["verified"], false);
    assert!(report["elapsed_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(report["error"], Value::Null);

    asked.ask("index IMAGE");
    let said = asked.ask("carve IMAGE wanted --json");
    let report: Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!(report["verified"], true);

    let to = asked.dir.path().join("report");
    let said = asked.run(&[
        "carve".as_ref(),
        "IMAGE".as_ref(),
        "no".as_ref(),
        "--report".as_ref(),
        to.as_os_str(),
    ]);
    assert_eq!(said.code, 1);
    let report: Value = serde_json::from_slice(&fs::read(&to).unwrap()).unwrap();
    assert_eq!(report["found"], false);
    assert_eq!(report["error"], "/no is not in the image");
    assert_eq!(report["layer_index"], Value::Null);
}

#[test]
fn a_file_keeps_mode_and_time_and_takes_the_place_of_what_was_there() {
    let asked = Asked::of(history());
    let dir = tempfile::tempdir().unwrap();
    let (out, victim) = (dir.path().join("out"), dir.path().join("victim"));
    fs::write(&victim, "mine").unwrap();
    symlink(&victim, &out).unwrap();
    let carve = |more: &[&str]| {
        let out = out.to_str().unwrap();
        asked
            .run(&[&["carve", "IMAGE", "bin/tool", "-o", out], more].concat())
            .ok();
        let meta = fs::symlink_metadata(out).unwrap();
        assert!(meta.is_file());
        assert!(fs::read(out).unwrap() == Content::Noise { seed: 5, size: 300_000 }.bytes());
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000_001, 500_000_000));
        meta.mode() & 0o7777
    };
    assert_eq!(carve(&[]), 0o755);
    assert_eq!(carve(&["--setuid"]), 0o4755);
    assert_eq!(fs::read(&victim).unwrap(), b"mine");

    // What cannot be had leaves all as it was, and nothing half.
    asked.served.registry.faults().line(Line::Unplugged);
    fs::remove_dir_all(asked.cache().join("store")).unwrap();
    let said = asked.run(&[
        "carve",
        "IMAGE",
        "bin/tool",
        "--timeout",
        "1",
        "-o",
        victim.to_str().unwrap(),
    ]);
    assert_eq!(said.code, 3, "{said:?}");
    assert_eq!(fs::read(&victim).unwrap(), b"mine");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_directory_goes_out_whole() {
    let asked = Asked::of(history());
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let said = asked.run(&["carve", "IMAGE", "/", "-q", "-o", out.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{said:?}");
    let mount = Mount::of(asked.served.reference())
        .cache(&asked.cache())
        .with(["--no-layers"])
        .start();
    // As anybody could make it: without devices and pipes, foreign owners and setuid.
    let special = |path: &[u8]| path == b"dev/pipe";
    let ours = |tree: crate::support::Tree| {
        tree.without(special)
            .ignoring("owner", |_| true)
            .ignoring("mode", |path| path.starts_with(b"usr/bin/tool"))
            .ignoring("link", |_| true)
            .ignoring("nlink", |_| true)
    };
    let (carved, mounted) = (
        ours(crate::support::Tree::of(&out)),
        ours(crate::support::Tree::of(mount.root())),
    );
    assert_eq!(carved, mounted);

    // Into a directory that is there, under its own name; files beside it.
    asked
        .run(&["carve", "IMAGE", "opt/app", "etc/mode", "-o", out.to_str().unwrap()])
        .ok();
    assert_eq!(fs::read(out.join("app/c")).unwrap(), b"c\n");
    assert_eq!(fs::read(out.join("mode")).unwrap(), b"mode\n");
    assert!(!out.join("app/a").exists());
}

#[test]
fn a_new_directory_is_the_images_in_mode_too() {
    let asked = Asked::of([Layer::of([
        Entry::dir("private").mode(0o700),
        Entry::dir("private/shared").mode(0o1777),
        Entry::file("private/shared/file", "x"),
    ])]);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    asked
        .run(&["carve", "IMAGE", "private", "-o", out.to_str().unwrap()])
        .ok();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&out), mode(&out.join("shared"))), (0o700, 0o1777));
}

#[test]
fn devices_and_pipes_are_written_to_as_they_are() {
    let asked = Asked::of(history());
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    run("mknod", &[path("null").as_str(), "c", "1", "3"]);
    run("mkfifo", &[path("pipe").as_str()]);
    asked.run(&["carve", "IMAGE", "etc/passwd", "-o", &path("null")]).ok();
    let pipe = path("pipe");
    let reader = std::thread::spawn(move || fs::read(pipe).unwrap());
    asked.run(&["carve", "IMAGE", "etc/passwd", "-o", &path("pipe")]).ok();
    assert_eq!(reader.join().unwrap(), b"three\n");
    let kind = |name: &str| fs::symlink_metadata(path(name)).unwrap().mode() & nix::libc::S_IFMT;
    assert_eq!((kind("null"), kind("pipe")), (nix::libc::S_IFCHR, nix::libc::S_IFIFO));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn two_paths_of_one_name_are_refused() {
    let asked = Asked::of(history());
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    for words in [
        &["carve", "IMAGE", "etc/passwd", "opt/passwd", "-o", out][..],
        &["carve", "IMAGE", "etc/passwd", "/etc/passwd/", "--tar"],
    ] {
        let said = asked.run(words);
        assert!(said.code == 2 && said.err.contains("'passwd'"), "{said:?}");
    }
    assert_eq!(asked.cost(), (0, 0));
}

#[test]
fn a_layer_that_another_image_has_under_a_false_name_is_corrupt() {
    let honest = Layer::of([Entry::file("sh", "good")]);
    let asked = Asked::of([honest.clone()]);
    asked.ask("index IMAGE -q").ok();
    let blob = fs::read(&asked.served.image.layers[0].path).unwrap();
    let liar = Served::made(&ImageBuilder::of([Layer::blob(blob, b"another tar")]));
    let output = peelfs()
        .args(["carve", &liar.reference(), "sh", "--cache-dir"])
        .arg(asked.cache())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout.is_empty() && said.contains("DiffID"), "{said}");
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn nothing_is_written_through_a_symlink_in_the_directory() {
    let asked = Asked::of(history());
    let dir = tempfile::tempdir().unwrap();
    let (out, outside) = (dir.path().join("out"), dir.path().join("outside"));
    fs::create_dir(&out).unwrap();
    fs::create_dir(&outside).unwrap();
    symlink(&outside, out.join("opt")).unwrap();
    let said = asked.run(&["carve", "IMAGE", "opt", "-o", out.to_str().unwrap()]);
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

/// What is in a tar: kind, mode, content or target, by name.
fn members(tar: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(tar);
    let describe = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry
            .link_name_bytes()
            .map(|link| String::from_utf8_lossy(&link).into_owned());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header();
        let content = match content.len() {
            0..100 => String::from_utf8_lossy(&content).into_owned(),
            len => format!("{len} bytes"),
        };
        let text = format!(
            "{:?} {:o} {} {}",
            header.entry_type(),
            header.mode().unwrap(),
            header.uid().unwrap(),
            link.unwrap_or(content)
        );
        (name, text)
    };
    archive.entries().unwrap().map(describe).collect()
}

#[test]
fn a_tar_has_everything() {
    let asked = Asked::of(history());
    let tar = asked.ask("carve IMAGE /usr etc/absolute --tar").ok();
    let expected = [
        ("absolute", "Regular 644 0 three\n"),
        ("usr/", "Directory 755 0 "),
        ("usr/bin/", "Directory 755 0 "),
        ("usr/bin/tool", "Regular 4755 1 300000 bytes"),
        ("usr/bin/tool2", "Link 4755 1 usr/bin/tool"),
        ("usr/lib/", "Directory 755 0 "),
        ("usr/lib/libc", "Regular 644 0 libc\n"),
        ("usr/lib/new", "Regular 644 0 new\n"),
    ];
    let expected: BTreeMap<String, String> = expected
        .into_iter()
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .collect();
    assert_eq!(members(&tar), expected);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.tar");
    asked
        .run(&["carve", "IMAGE", "/", "--tar", "-o", file.to_str().unwrap()])
        .ok();
    let listed = run("tar", &["-tf".as_ref(), file.as_os_str()]);
    let listed = String::from_utf8_lossy(&listed).into_owned();
    assert!(
        listed.lines().any(|line| line == "./") && listed.lines().any(|line| line == "dev/pipe"),
        "{listed}"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let size = 20_000_000;
    let large = Entry::file("large", Content::Noise { seed: 1, size });
    let asked = Asked::of([Layer::of([large]).compressed(Compression::None)]);
    let mut command = peelfs();
    command
        .args(["carve", &asked.served.reference(), "large"])
        .env("PEELFS_CACHE_DIR", asked.cache())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(
        asked.cost().1 < asked.served.image.size(),
        "it was carved to its end for nobody"
    );
}

#[test]
fn a_layout_whose_layer_was_cut_off_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let image = ImageBuilder::of([Layer::of([Entry::file("file", "1")])])
        .write(dir.path(), "cut")
        .unwrap();
    let layer = &image.layers[0];
    let blob = image.layout.join("blobs/sha256").join(layer.digest.hex());
    fs::File::options()
        .write(true)
        .open(blob)
        .unwrap()
        .set_len(layer.size - 1)
        .unwrap();
    let reference = format!("oci:{}:{}", image.layout.display(), image.tag);
    let said = Asked::of(history()).run(&["carve", &reference, "file"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("bytes instead of"), "{said:?}");
}

#[test]
fn what_is_corrupt_and_what_is_out_of_reach_have_codes_of_their_own() {
    let noise = Content::Noise { seed: 3, size: 10_000 }.bytes();
    let asked = Asked::of([Layer::blob(noise.clone(), &noise)]);
    let said = asked.ask("carve IMAGE file --json");
    assert_eq!(said.code, 4, "{said:?}");
    let asked = Asked::of(history());
    asked.served.registry.faults().line(Line::Unplugged);
    let said = asked.ask("carve IMAGE etc/passwd --timeout 1 --json -q");
    assert_eq!(said.code, 3, "{said:?}");
    let report: Value = serde_json::from_str(said.err.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    assert_eq!(report["found"], false);
    assert_eq!(asked.ask("carve IMAGE").code, 2);
}

#[test]
fn everything_of_a_debian_is_what_the_mount_shows() {
    let asked = Asked::about(Served::debian());
    let tar = asked.dir.path().join("all.tar");
    asked
        .run(&[
            "carve".as_ref(),
            "IMAGE".as_ref(),
            "/".as_ref(),
            "--tar".as_ref(),
            "-o".as_ref(),
            tar.as_os_str(),
        ])
        .ok();
    let (_, bytes) = asked.cost();
    assert_eq!(bytes, asked.served.image.size());

    let mount = Mount::of(asked.served.reference())
        .cache(&asked.cache())
        .with(["--no-layers"])
        .start();
    // Contents, modes, owners, times, targets, devices and hard links.
    let words = ["--numeric-owner", "-df"].map(std::ffi::OsStr::new);
    let places = [tar.as_os_str(), "-C".as_ref(), mount.root().as_os_str()];
    let differences = run("tar", &[words.as_slice(), &places].concat());
    assert_eq!(String::from_utf8_lossy(&differences), "");
    let count = |output: Vec<u8>| output.iter().filter(|byte| **byte == b'\n').count();
    let carved = count(run("tar", &["-tf".as_ref(), tar.as_os_str()]));
    // A name may have a newline in it, which tar escapes.
    let words = [mount.root().as_os_str(), "-printf".as_ref(), "\\n".as_ref()];
    let mounted = count(run("find", &words));
    assert!(
        carved == mounted && carved > 10_000,
        "{carved} carved, {mounted} in the mount"
    );
    assert_eq!(asked.cost().1, bytes, "nothing is fetched twice");
}

#[test]
fn who_is_interrupted_leaves_nothing_half() {
    let asked = Asked::of(history());
    asked.ask("index -q IMAGE").ok();
    fs::remove_dir_all(asked.cache().join("store")).unwrap();
    asked.served.registry.faults().line(Line::Stalled);
    let dir = tempfile::tempdir().unwrap();
    let mut command = peelfs();
    command
        .args([
            "carve",
            "--tag-ttl",
            "10000",
            &asked.served.reference(),
            "bin/tool",
            "-o",
        ])
        .arg(dir.path().join("out"))
        .env("PEELFS_CACHE_DIR", asked.cache());
    let mut child = command.spawn().unwrap();
    let begun = || has_file_ending(dir.path(), ".tmp").then_some(());
    eventually("it waits for the file's bytes", Duration::from_secs(60), begun);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let status = eventually("it ends", Duration::from_secs(60), || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(130));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
