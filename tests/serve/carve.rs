//! `/carve`: each scenario of carving a file, and what HTTP adds to it.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use super::Scene;
use crate::support::cli::{Asked, history};
use crate::support::*;

#[test]
fn without_a_layer_it_is_the_merged_version() {
    let scene = Scene::history();
    let answer = scene.get("carve", "&path=/etc/passwd");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.text(), "three\n");
    let layer = &scene.asked.served.image.layers[3];
    assert_eq!(answer.header("x-carve-layer-index"), Some("3"));
    assert_eq!(answer.header("x-carve-layer-digest"), Some(&*layer.digest.to_string()));
    assert_eq!(answer.header("x-carve-layer-size"), Some(&*layer.size.to_string()));
    let downloaded = answer.header("x-carve-bytes-downloaded").unwrap();
    assert_eq!(downloaded, scene.asked.served.layer_bytes().to_string());
    assert_eq!(answer.header("x-carve-efficiency"), Some("100"));
    assert_eq!(answer.header("content-length"), Some("6"));
    assert_eq!(
        answer.header("content-disposition"),
        Some("attachment; filename=\"passwd\"")
    );
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
}

#[test]
fn each_version_is_carved_from_its_layer_and_compared() {
    let scene = Scene::history();
    let log = scene.get("fslog", "&path=/etc/passwd").ok();
    let log = String::from_utf8(log).unwrap();
    for mark in [
        "passwd [L3]\n",
        "passwd [L1] (overridden)\n",
        "passwd [L0] (overridden)\n",
    ] {
        assert!(log.contains(mark), "{log}");
    }
    for (layer, content) in [("0", "zero\n"), ("1", "one, longer\n"), ("3", "three\n")] {
        let answer = scene.get("carve", &format!("&path=etc/passwd&layer={layer}"));
        assert_eq!(answer.header("x-carve-layer-index"), Some(layer));
        assert_eq!(answer.ok(), content.as_bytes());
    }
    let diff = scene.get("diff", "&a=0&b=3&path=/etc/passwd").json();
    assert_eq!(diff[0]["changes"], serde_json::json!(["content", "time"]));
    scene.asked.served.assert_no_byte_twice();
}

#[test]
fn what_cannot_be_carved_is_said_with_what_can() {
    let scene = Scene::history();
    let problem = |rest: &str, status: u16, kind: &str| {
        let answer = scene.get("carve", rest);
        let json = answer.json();
        assert_eq!((answer.status, &json["kind"]), (status, &kind.into()), "{rest}: {json}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        json
    };
    let json = problem("&path=/etc/passwd&layer=4", 422, "no_such_layer");
    assert_eq!(json["error"], "there is no layer 4: the image has layers 0 to 3");
    assert_eq!(json["valid_layers"], serde_json::json!([0, 1, 2, 3]));
    let json = problem("&path=/etc/passwd&layer=2", 404, "not_in_layer");
    assert_eq!(json["error"], "/etc/passwd is not in layer 2; it is in layers 0, 1, 3");
    assert_eq!(json["layers"], serde_json::json!([0, 1, 3]));
    // A layer that was never looked into is not asked who else has it.
    scene.get("ls", "").ok();
    let json = problem("&path=/etc/old", 404, "not_found");
    assert_eq!(json["layers"], serde_json::json!([0]));
    problem("&path=/nothing", 404, "not_found");
    problem("&path=/etc/loop", 404, "too_many_symlinks");
    problem("&path=/etc/passwd/x", 404, "not_a_directory");
    problem("&path=/etc", 422, "no_content");
    problem("&path=/usr/bin/tool&as_text=true&layer=x", 400, "bad_query");
    problem("", 400, "bad_query");
    problem("&path=/etc/passwd&pth=x", 400, "bad_query");
    problem("&path=/etc/passwd&path=/etc/mode", 400, "bad_query");
    for (method, target, status, kind) in [
        ("GET", "/carve?path=/x", 400, "bad_query"),
        ("GET", "/carve?path=/x&image=A%20B", 400, "bad_query"),
        ("GET", "/nothing", 404, "no_route"),
        ("POST", "/carve", 405, "method"),
    ] {
        let answer = scene.serve.ask(method, target, &[]);
        assert_eq!(
            (answer.status, &answer.json()["kind"]),
            (status, &kind.into()),
            "{target}"
        );
    }
    let image = scene.serve.get(&format!(
        "/layers?image={}/none:1",
        scene.asked.served.registry.address()
    ));
    assert_eq!((image.status, &image.json()["kind"]), (404, &"no_such_image".into()));
}

#[test]
fn a_registry_that_fails_is_told_from_one_that_is_silent() {
    let scene = Scene::with(Asked::of(history()), &["--timeout", "1"]);
    let faults = scene.asked.served.registry.faults();
    faults.refuse(Part::Blobs, Some(403));
    let answer = scene.get("layers", "");
    assert_eq!(
        (answer.status, &answer.json()["kind"]),
        (502, &"registry".into()),
        "{answer:?}"
    );
    faults.clear();
    eventually("it is tried again", std::time::Duration::from_secs(30), || {
        (scene.get("layers", "").status == 200).then_some(())
    });
    faults.refuse(Part::Blobs, Some(403));
    let answer = scene.get("carve", "&path=/etc/passwd");
    assert_eq!(
        (answer.status, &answer.json()["kind"]),
        (502, &"registry".into()),
        "{answer:?}"
    );
    faults.clear();
    faults.hold(Some(Part::Blobs));
    let answer = scene.get("carve", "&path=/etc/passwd");
    assert_eq!(
        (answer.status, &answer.json()["kind"]),
        (504, &"registry_timeout".into()),
        "{answer:?}"
    );
    faults.clear();
    assert_eq!(scene.get("carve", "&path=/etc/passwd").ok(), b"three\n");
    assert_eq!(scene.serve.end().code(), Some(0));
}

#[test]
fn ranges_tags_and_heads_are_honoured() {
    let scene = Scene::history();
    let target = scene.target("carve", "&path=/usr/bin/tool");
    let whole = scene.serve.get(&target);
    let etag = whole.header("etag").unwrap().to_owned();
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    let whole = whole.ok();
    assert_eq!(whole.len(), 300_000);
    let with = |headers: &[(&str, &str)]| scene.serve.ask("GET", &target, headers);
    let part = with(&[("Range", "bytes=100000-250000")]);
    assert_eq!(part.status, 206);
    assert_eq!(part.header("content-range"), Some("bytes 100000-250000/300000"));
    assert_eq!(part.ok(), &whole[100_000..=250_000]);
    assert_eq!(with(&[("Range", "bytes=-5")]).ok(), &whole[299_995..]);
    assert_eq!(with(&[("Range", "bytes=0-1,5-6")]).ok(), whole);
    assert_eq!(with(&[("Range", "bytes=0-1"), ("If-Range", &etag)]).ok(), &whole[..2]);
    assert_eq!(with(&[("Range", "bytes=0-1"), ("If-Range", "\"other\"")]).ok(), whole);
    let outside = with(&[("Range", "bytes=300000-")]);
    assert_eq!(
        (outside.status, outside.header("content-range")),
        (416, Some("bytes */300000"))
    );
    assert_eq!(outside.json()["kind"], "range");
    let known = with(&[("If-None-Match", &etag)]);
    assert_eq!(
        (known.status, known.header("etag"), known.body.len()),
        (304, Some(&*etag), 0)
    );
    let all = with(&[("Range", "bytes=0-")]);
    assert_eq!(
        (all.status, all.header("content-range")),
        (206, Some("bytes 0-299999/300000"))
    );
    assert_eq!(all.ok(), whole);
    assert_eq!(known.header("content-length"), None);
    let known = with(&[("If-None-Match", "\"other\""), ("If-None-Match", &etag)]);
    assert_eq!(known.status, 304);
    let other = with(&[("If-Match", "\"other\""), ("Range", "bytes=0-1")]);
    assert_eq!((other.status, &other.json()["kind"]), (412, &"other_version".into()));
    assert_eq!(with(&[("If-Match", &etag), ("Range", "bytes=0-1")]).status, 206);
    // Another name of the same file.
    let linked = scene.get("carve", "&path=/usr/bin/tool2");
    assert_eq!(linked.header("etag"), Some(&*etag));
    assert_ne!(scene.get("carve", "&path=/etc/mode").header("etag"), Some(&*etag));

    let cost = scene.asked.cost();
    let head = scene.serve.ask("HEAD", &target, &[]);
    assert_eq!((head.status, head.header("content-length")), (200, Some("300000")));
    assert_eq!(head.header("x-carve-bytes-downloaded"), Some("0"));
    assert_eq!(head.header("etag"), Some(&*etag));
    assert_eq!(scene.asked.cost(), cost);
}

#[test]
fn the_costs_of_a_long_file_come_as_trailers_to_who_takes_them() {
    let layer = Layer::of([Entry::file(
        "long",
        Content::Noise {
            seed: 9,
            size: 3_000_000,
        },
    )]);
    let scene = Scene::of([layer]);
    let target = scene.target("carve", "&path=long");
    let told = scene.serve.ask("GET", &target, &[("TE", "trailers")]);
    assert_eq!(told.header("content-length"), None);
    assert!(
        told.header("trailer")
            .is_some_and(|names| names.contains("x-carve-efficiency"))
    );
    let downloaded: u64 = told.trailer("x-carve-bytes-downloaded").unwrap().parse().unwrap();
    assert_eq!(downloaded, scene.asked.served.layer_bytes());
    assert!(told.trailer("x-carve-efficiency").is_some());
    let plain = scene.serve.get(&target);
    assert_eq!(plain.header("content-length"), Some("3000000"));
    assert_eq!(plain.header("x-carve-bytes-downloaded"), None);
    assert_eq!(plain.ok(), told.ok());
    // HTTP/1.0 has no chunks; without a length a file that is cut off would look complete.
    let url = format!("{}{target}", scene.serve.url().trim_end_matches('/'));
    let old = run("curl", &["-s0", "-o/dev/null", "-D-", "-HTE: trailers", &url]);
    let old = String::from_utf8(old).unwrap().to_lowercase();
    assert!(old.contains("content-length: 3000000"), "{old}");
}

#[test]
fn text_is_shown_and_binaries_are_refused() {
    let scene = Scene::of([Layer::of([
        Entry::file("page.html", "<script>alert(1)</script>é\n"),
        Entry::file("latin", &b"caf\xe9\n"[..]),
        Entry::file("binary", &b"a\0b"[..]),
        Entry::file("empty", ""),
    ])]);
    let text = scene.get("carve", "&path=page.html&as_text=true");
    assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(
        text.header("content-disposition"),
        Some("inline; filename=\"page.html\"")
    );
    assert_eq!(text.ok(), "<script>alert(1)</script>é\n".as_bytes());
    assert_eq!(scene.get("carve", "&path=empty&as_text=true").ok(), b"");
    for path in ["latin", "binary"] {
        let answer = scene.get("carve", &format!("&path={path}&as_text=true"));
        assert_eq!((answer.status, &answer.json()["kind"]), (422, &"not_text".into()));
        assert_eq!(scene.get("carve", &format!("&path={path}")).status, 200);
    }
}

#[test]
fn every_file_is_the_same_through_http_the_command_and_the_mount() {
    let asked = Asked::of(history());
    let mount = Mount::of(asked.served.reference())
        .cache(&asked.cache())
        .with(["--no-layers"])
        .start();
    let mut files = BTreeMap::new();
    let found = run(
        "find",
        &[
            mount.root().as_os_str(),
            "-type".as_ref(),
            "f".as_ref(),
            "-printf".as_ref(),
            "%P\\0".as_ref(),
        ],
    );
    for path in found.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
        let content = std::fs::read(mount.path(std::ffi::OsStr::from_bytes(path))).unwrap();
        files.insert(path.to_vec(), content);
    }
    assert!(files.len() > 8, "{files:?}");
    mount.unmount();
    let cost = asked.cost();
    let scene = Scene::with(asked, &[]);
    for (path, content) in &files {
        let answer = scene.get("carve", &format!("&path={}", encoded(path)));
        assert!(answer.ok() == *content, "{}", path.escape_ascii());
        let said = scene
            .asked
            .run(&["carve".as_ref(), "IMAGE".as_ref(), std::ffi::OsStr::from_bytes(path)]);
        assert!(said.ok() == *content, "{}", path.escape_ascii());
    }
    assert_eq!(scene.asked.cost(), cost, "{}", scene.asked.served.registry.log());
}

#[test]
fn every_file_of_a_debian_is_the_same_through_http_the_command_and_the_mount() {
    let asked = Asked::about(fixtures::Served::debian());
    let mount = Mount::of(asked.served.reference())
        .cache(&asked.cache())
        .with(["--no-layers"])
        .start();
    let scene = Scene::with(asked, &[]);
    let dir = tempfile::tempdir().unwrap();
    let carved = dir.path().join("all");
    let said = scene
        .asked
        .run(&["carve", "IMAGE", "/", "-q", "-o", carved.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{said:?}");
    let print = ["-type", "f", "-printf", "%P\\0"].map(std::ffi::OsStr::new);
    let found = run("find", &[&[mount.root().as_os_str()], &print[..]].concat());
    let found: Vec<&[u8]> = found.split(|byte| *byte == 0).filter(|path| !path.is_empty()).collect();
    assert!(found.len() > 1000, "{}", found.len());
    std::thread::scope(|scope| {
        for part in found.chunks(found.len().div_ceil(4)) {
            let (scene, mount, carved) = (&scene, &mount, &carved);
            scope.spawn(move || {
                for path in part {
                    let name = std::ffi::OsStr::from_bytes(path);
                    let content = std::fs::read(mount.path(name)).unwrap();
                    let answer = scene.get("carve", &format!("&path={}", encoded(path)));
                    assert!(answer.ok() == content, "{}", path.escape_ascii());
                    let written = std::fs::read(carved.join(name)).unwrap();
                    assert!(written == content, "{}", path.escape_ascii());
                }
            });
        }
    });
    scene.asked.served.assert_no_byte_twice();
}

#[test]
fn the_same_question_costs_the_same_however_it_is_asked() {
    let image = || {
        let rest = Content::Noise {
            seed: 2,
            size: 3_000_000,
        };
        [
            Layer::of([Entry::file("first", "first\n"), Entry::file("rest", rest)]),
            Layer::of([Entry::file("above", "above\n")]),
        ]
    };
    let (http, command, mounted) = (Scene::of(image()), Asked::of(image()), Asked::of(image()));
    let content = http.get("carve", "&path=first&layer=0").ok();
    assert_eq!(command.ask("carve IMAGE first --layer 0").ok(), content);
    let mount = Mount::of(mounted.served.reference()).cache(&mounted.cache()).start();
    assert_eq!(mount.read("layers/0/first"), content);
    mount.unmount();
    assert_eq!(http.asked.cost(), command.cost());
    assert_eq!(http.asked.cost(), mounted.cost());
    // And what one has fetched, the other has.
    let cost = http.asked.cost();
    assert_eq!(http.asked.ask("carve IMAGE first --layer 0").ok(), content);
    assert_eq!(http.get("carve", "&path=first&layer=0").ok(), content);
    assert_eq!(http.asked.cost(), cost);
}
