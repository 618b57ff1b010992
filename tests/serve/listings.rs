//! Listings, versions and comparisons: the same as the commands print.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;

use super::Scene;
use super::load::large;
use crate::support::cli::Asked;
use crate::support::serve::read_head;
use crate::support::*;

#[test]
fn listings_are_those_of_the_commands_byte_for_byte() {
    let scene = Scene::history();
    for (command, route, rest) in [
        ("ls IMAGE -R --json", "ls", "&recursive=true"),
        ("ls IMAGE etc --json", "ls", "&path=etc"),
        ("ls IMAGE -R --all --json", "ls", "&recursive=true&all=true"),
        ("ls IMAGE -R --layer 1 --json", "ls", "&recursive=true&layer=1"),
        ("ls IMAGE etc/passwd --json", "ls", "&path=/etc/passwd"),
        ("find IMAGE pass* --json", "find", "&pattern=pass*"),
        ("find IMAGE nothing --json", "find", "&pattern=nothing"),
        ("layers IMAGE --json", "layers", ""),
        ("history IMAGE etc/passwd --json", "history", "&path=etc/passwd"),
        (
            "history IMAGE etc/mode --json --no-digests",
            "history",
            "&path=etc/mode&digests=false",
        ),
        ("diff IMAGE --layers 0 1 --json", "diff", "&a=0&b=1"),
        (
            "diff IMAGE --layers 0 2 --merged --ignore-times --json etc",
            "diff",
            "&a=0&b=2&merged=true&ignore_times=true&path=etc",
        ),
    ] {
        let answer = scene.get(route, rest);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let said = String::from_utf8(scene.asked.ask(command).out).unwrap();
        assert_eq!(String::from_utf8(answer.ok()).unwrap(), said, "{command}");
    }
    let image = encoded(scene.asked.served.reference());
    assert_eq!(scene.get("diff", &format!("&other={image}")).ok(), b"[]\n");
    let log = String::from_utf8(scene.get("fslog", "").ok()).unwrap();
    let text = String::from_utf8_lossy(&scene.asked.ask("ls IMAGE -R --all").out).replace('\u{fffd}', "\\xe9");
    assert_eq!(log, text);
    scene.asked.served.assert_no_byte_twice();
}

#[test]
fn a_log_of_files_has_one_line_for_each_whatever_its_name() {
    let names = ["a\nb", "a\\nb", "\u{202e}gpj.exe", "\u{1b}[2J"];
    let scene = Scene::of([Layer::of(names.map(|name| Entry::file(name, "")))]);
    let log = String::from_utf8(scene.get("fslog", "").ok()).unwrap();
    let shown: BTreeSet<&str> = log
        .lines()
        .filter_map(|line| line.split_once(" /"))
        .map(|(_, rest)| rest)
        .collect();
    let escaped = ["\\u{1b}[2J [L0]", "\\u{202e}gpj.exe [L0]", "a\\\\nb [L0]", "a\\nb [L0]"];
    assert_eq!(shown, BTreeSet::from(escaped));
}

#[test]
fn the_names_are_those_that_find_prints_in_the_mount() {
    let scene = Scene::history();
    let listed: BTreeSet<String> = scene
        .get("ls", "&recursive=true")
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["path"].as_str().unwrap().to_owned())
        .collect();
    let mount = Mount::of(scene.asked.served.reference())
        .cache(&scene.cache())
        .with(["--no-layers"])
        .start();
    let found = run(
        "find",
        &[
            mount.root().as_os_str(),
            "-mindepth".as_ref(),
            "1".as_ref(),
            "-printf".as_ref(),
            "/%P\\n".as_ref(),
        ],
    );
    let found = String::from_utf8_lossy(&found)
        .lines()
        .map(str::to_owned)
        .collect::<BTreeSet<_>>();
    assert_eq!(listed, found);
}

#[test]
fn the_listing_of_a_debian_is_the_same_through_http_the_command_and_the_mount() {
    let scene = Scene::with(Asked::about(fixtures::Served::debian()), &[]);
    let mount = Mount::of(scene.asked.served.reference())
        .cache(&scene.cache())
        .with(["--no-layers"])
        .start();
    let answer = scene.get("ls", "&recursive=true");
    let entries = answer.json();
    assert!(answer.ok() == scene.asked.ask("ls IMAGE -R --json").ok());
    let listed = entries.as_array().unwrap().iter().map(|entry| {
        let path = entry.get("path_bytes").unwrap_or(&entry["path"]);
        let size = match entry["type"] == "directory" {
            // The size of a directory is the file system's business.
            true => 0,
            false => entry["size"].as_u64().unwrap(),
        };
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let (mode, target) = (text("mode"), text("target"));
        let (uid, gid) = (&entry["uid"], &entry["gid"]);
        let time = format!("{}.{:09}", entry["mtime"], entry["mtime_nsec"].as_u64().unwrap());
        let kind = text("type");
        format!(
            "{} {kind} {mode} {uid} {gid} {size} {time} {target}",
            path.as_str().unwrap()
        )
    });
    let listed: BTreeSet<String> = listed.collect();
    assert!(listed.len() > 1000, "{}", listed.len());
    let print = "/%P\\0%y\\0%m\\0%U\\0%G\\0%s\\0%T@\\0%l\\0";
    let words = ["-mindepth", "1", "-printf", print].map(OsStr::new);
    let found = run("find", &[&[mount.root().as_os_str()], &words[..]].concat());
    let fields: Vec<&[u8]> = found.split(|byte| *byte == 0).collect();
    let found = fields.chunks_exact(8).map(|fields| {
        let text = |number: usize| match std::str::from_utf8(fields[number]) {
            Ok(text) => text.to_owned(),
            Err(_) => fields[number].escape_ascii().to_string(),
        };
        let kind = match fields[1] {
            b"d" => "directory",
            b"f" => "file",
            b"l" => "symlink",
            b"p" => "fifo",
            b"c" => "char_device",
            b"b" => "block_device",
            _ => panic!("{fields:?}"),
        };
        let size = if kind == "directory" { "0".to_owned() } else { text(5) };
        // It prints ten digits behind the point.
        let time = text(6).trim_end_matches('0').to_owned();
        let (second, fraction) = time.split_once('.').unwrap();
        let (path, uid, gid, target) = (text(0), text(3), text(4), text(7));
        format!(
            "{path} {kind} {:0>4} {uid} {gid} {size} {second}.{fraction:0<9} {target}",
            text(2)
        )
    });
    let found: BTreeSet<String> = found.collect();
    let (only_listed, only_found): (Vec<_>, Vec<_>) =
        (listed.difference(&found).collect(), found.difference(&listed).collect());
    assert!(
        only_listed.is_empty() && only_found.is_empty(),
        "{only_listed:#?}\n{only_found:#?}"
    );
}

#[test]
fn what_cannot_be_listed_is_said() {
    let scene = Scene::history();
    for (route, rest, status, kind) in [
        ("ls", "&path=/nothing", 404, "not_found"),
        ("ls", "&path=opt&layer=1", 404, "not_in_layer"),
        ("ls", "&layer=9", 422, "no_such_layer"),
        ("ls", "&layer=1&all=true", 400, "bad_query"),
        ("fslog", "&path=/nothing", 404, "not_found"),
        ("find", "", 400, "bad_query"),
        ("find", "&pattern=%5B", 400, "bad_query"),
        ("history", "", 400, "bad_query"),
        ("history", "&path=/nothing", 404, "not_found"),
        ("diff", "", 400, "bad_query"),
        ("diff", "&a=0", 400, "bad_query"),
        ("diff", "&a=0&b=9", 422, "no_such_layer"),
    ] {
        let answer = scene.get(route, rest);
        assert_eq!(
            (answer.status, &answer.json()["kind"]),
            (status, &kind.into()),
            "{route} {rest}"
        );
    }
}

#[test]
fn the_metrics_count_what_was_asked_and_fetched() {
    let scene = Scene::history();
    assert_eq!(scene.serve.get("/healthz").ok(), b"ok\n");
    scene.get("carve", "&path=/etc/passwd").ok();
    let missing = scene.get("carve", "&path=/nothing");
    // What is known as a whole says its length.
    assert_eq!(missing.header("content-length"), Some(&*missing.body.len().to_string()));
    let text = String::from_utf8(scene.serve.get("/metrics").ok()).unwrap();
    for line in [
        "peelfs_http_requests_total{route=\"/carve\",status=\"200\"} 1",
        "peelfs_http_requests_total{route=\"/carve\",status=\"404\"} 1",
        "peelfs_errors_total{kind=\"not_found\"} 1",
        "peelfs_open_images 1",
        &format!("peelfs_fetched_bytes_total {}", scene.asked.served.layer_bytes()),
    ] {
        assert!(text.lines().any(|there| there == line), "{line} is not in {text}");
    }
}

/// The value of a counter.
fn counted(scene: &Scene, name: &str) -> u64 {
    let text = String::from_utf8(scene.serve.get("/metrics").ok()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

#[test]
fn what_was_done_stays_counted_when_an_image_is_closed_and_is_not_done_again() {
    let scene = Scene::with(Asked::of([large()]), &["--max-images", "1"]);
    let size = scene.asked.served.image.layers[0].size;
    let mut carve = scene.serve.send("GET", &scene.target("carve", "&path=large"), &[]);
    assert_eq!(read_head(&mut carve).0, 200);
    // Another name of the same image, and the place of the one that is being carved.
    let digest = scene.asked.served.image.manifest.to_string();
    let name = scene.asked.served.reference();
    let pinned = format!("{}@{digest}", name.trim_end_matches(":latest"));
    let other = || scene.serve.get(&format!("/ls?image={}", encoded(&pinned))).ok();
    other();
    assert_eq!(carve.read_to_end(&mut Vec::new()).unwrap(), 40_000_000);
    assert_eq!(counted(&scene, "peelfs_open_images"), 1);
    assert_eq!(
        counted(&scene, "peelfs_fetched_bytes_total"),
        scene.asked.served.layer_bytes()
    );
    let indexed = counted(&scene, "peelfs_indexed_bytes_total");
    assert!(indexed >= size, "{indexed} of {size}");
    scene.get("ls", "").ok();
    other();
    assert_eq!(counted(&scene, "peelfs_indexed_bytes_total"), indexed);
}

#[test]
fn an_answer_that_breaks_off_is_an_error() {
    let scene = Scene::with(Asked::of([large()]), &["--timeout", "2"]);
    let mut carve = scene.serve.send("GET", &scene.target("carve", "&path=large"), &[]);
    assert_eq!(read_head(&mut carve).0, 200);
    scene.asked.served.registry.faults().refuse(Part::Blobs, Some(403));
    scene.asked.served.registry.faults().truncate(Some(0));
    let mut body = Vec::new();
    let _ = carve.read_to_end(&mut body);
    assert!(body.len() < 40_000_000);
    assert_eq!(counted(&scene, "peelfs_errors_total{kind=\"registry\"}"), 1);
}
