//! The tests' own footing: what they make must be what other tools read, and faults must be faults.

use std::fs;
use std::io::Read;
use std::time::Duration;

use crate::support::fixtures::Served;
use crate::support::*;

fn sample() -> ImageBuilder {
    ImageBuilder::of([
        Layer::of([
            Entry::dir("etc"),
            Entry::file("etc/passwd", "root:x:0:0::/root:/bin/sh\n").mtime(1_700_000_000, 123_456_789),
            Entry::file("etc/gone", "x"),
            Entry::file("bin/tool", "#!/bin/true\n")
                .mode(0o4755)
                .owner(3, 4)
                .xattr("user.note", "kept"),
            Entry::hardlink("bin/again", "bin/tool"),
            Entry::symlink("bin/link", "tool"),
            Entry::fifo("run/pipe"),
            Entry::char_device("dev/null", 1, 3),
            Entry::file(format!("long/{}/{}", "d".repeat(120), "f".repeat(120)), "deep"),
        ]),
        Layer::of([
            Entry::whiteout("etc/gone"),
            Entry::file("data", Content::Noise { seed: 5, size: 300_000 }),
        ])
        .compressed(Compression::GzipMembers(4096)),
    ])
}

fn get(registry: &Registry, path: &str, range: Option<&str>) -> (u16, Vec<u8>) {
    let url = format!("http://{}{path}", registry.address());
    // docker-registry hides manifests of OCI's from who does not ask for them.
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json, */*";
    let mut arguments = vec![
        "--header",
        accept,
        "--silent",
        "--max-time",
        "20",
        "--write-out",
        "%{stderr}%{http_code}",
        &url,
    ];
    if let Some(range) = range {
        arguments.extend(["--range", range]);
    }
    let output = attempt("curl", &arguments);
    (
        String::from_utf8_lossy(&output.stderr).parse().unwrap_or(0),
        output.stdout,
    )
}

/// A blob of 100,000 bytes and the path that it is served at.
fn blob(served: &Served) -> (String, Vec<u8>) {
    let layer = &served.image.layers[0];
    (
        format!("/v2/made/blobs/{}", layer.digest),
        fs::read(&layer.path).unwrap(),
    )
}

fn plain() -> Served {
    let content = Content::Noise { seed: 7, size: 100_000 };
    Served::made(&ImageBuilder::of([
        Layer::of([Entry::file("f", content)]).compressed(Compression::None)
    ]))
}

#[test]
fn other_tools_read_our_images() {
    let served = Served::made(&sample());
    let dir = tempfile::tempdir().unwrap();
    let copy = format!("oci:{}:x", dir.path().join("copy").display());
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            "--src-tls-verify=false",
            &format!("docker://{}", served.reference()),
            &copy,
        ],
    );
    let bundle = dir.path().join("bundle");
    run(
        "umoci",
        &["unpack", "--image", &copy["oci:".len()..], bundle.to_str().unwrap()],
    );
    let root = bundle.join("rootfs");
    assert_eq!(
        run(
            "stat",
            &["-c", "%a %u %g %h %Y", root.join("bin/tool").to_str().unwrap()]
        ),
        b"4755 3 4 2 1704164645\n"
    );
    assert_eq!(
        xattr::get(root.join("bin/tool"), "user.note").unwrap().unwrap(),
        b"kept"
    );
    assert!(!root.join("etc/gone").exists());
    assert_eq!(fs::metadata(root.join("data")).unwrap().len(), 300_000);
    let mtime = fs::metadata(root.join("etc/passwd")).unwrap().modified().unwrap();
    assert_eq!(
        mtime.duration_since(std::time::UNIX_EPOCH).unwrap(),
        Duration::new(1_700_000_000, 123_456_789)
    );
}

#[test]
fn every_compression_and_manifest_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let content = Content::Noise { seed: 9, size: 50_000 };
    let expected = content.bytes();
    let compressions = [
        Compression::None,
        Compression::Gzip,
        Compression::GzipMembers(7000),
        Compression::Zstd,
        Compression::ZstdFrames(7000),
    ];
    // Docker has no name for zstd.
    let layers = compressions.map(|compression| Layer::of([Entry::file("f", content.clone())]).compressed(compression));
    for (tag, image) in [
        ("docker", ImageBuilder::of(layers[..3].to_vec()).docker().indexed()),
        ("oci", ImageBuilder::of(layers).indexed()),
    ] {
        for layer in image.write(dir.path(), tag).unwrap().layers {
            let mut archive = tar::Archive::new(layer.tar().unwrap());
            let mut found = Vec::new();
            archive
                .entries()
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .read_to_end(&mut found)
                .unwrap();
            assert!(found == expected, "{layer:?}");
        }
        let registry = Registry::of([("made", dir.path())]);
        let source = format!("docker://{}/made:{tag}", registry.address());
        run("skopeo", &["inspect", "--no-tags", "--tls-verify=false", &source]);
    }
}

#[test]
fn docker_registry_serves_through_a_proxy_that_counts() {
    let dir = tempfile::tempdir().unwrap();
    let image = sample().write(&dir.path().join("layout"), "x").unwrap();
    let behind = DockerRegistry::start(&dir.path().join("storage"));
    behind.push(&image, "some/name:x");
    let proxy = Registry::in_front_of(behind.address());
    let layer = &image.layers[1];
    let path = format!("/v2/some/name/blobs/{}", layer.digest);
    let expected = fs::read(&layer.path).unwrap();
    assert_eq!(get(&proxy, &path, Some("100-299")), (206, expected[100..300].to_vec()));
    assert_eq!(get(&proxy, &path, Some("200-399")), (206, expected[200..400].to_vec()));
    assert_eq!(proxy.log().bytes_of(&layer.digest), 400);
    assert_eq!(proxy.log().repeated_of(&layer.digest), 100);
    assert_eq!(proxy.log().requests_of(&layer.digest).len(), 2);
    proxy.faults().flip(&layer.digest, 101);
    assert_ne!(get(&proxy, &path, Some("100-299")).1, expected[100..300]);
    assert_eq!(get(&proxy, "/v2/some/name/manifests/x", None).0, 200);
}

#[test]
fn ranges_are_answered_as_http_means_them() {
    let served = plain();
    let (path, bytes) = blob(&served);
    let size = bytes.len();
    for (range, status, expected) in [
        (Some("0-0"), 206, &bytes[..1]),
        (Some("5-9"), 206, &bytes[5..10]),
        (Some("99990-"), 206, &bytes[99_990..]),
        (Some("-7"), 206, &bytes[size - 7..]),
        (Some("99990-99999999"), 206, &bytes[99_990..]),
        (Some("99999999-"), 416, &[][..]),
        (None, 200, &bytes[..]),
    ] {
        assert_eq!(
            get(&served.registry, &path, range),
            (status, expected.to_vec()),
            "{range:?}"
        );
    }
    assert_eq!(get(&served.registry, &path, Some("0-1,4-5")).0, 400);
    assert_eq!(get(&served.registry, "/v2/made/manifests/nothing", None).0, 404);
    assert_eq!(get(&served.registry, "/v2/", None).0, 200);
}

#[test]
fn faults_are_faults_until_they_are_cleared() {
    let served = plain();
    let (path, bytes) = blob(&served);
    let (registry, digest) = (&served.registry, &served.image.layers[0].digest);
    let faults = registry.faults();

    faults.flip(digest, 10);
    let spoiled = get(registry, &path, None).1;
    assert!(spoiled[..10] == bytes[..10] && spoiled[10] == !bytes[10] && spoiled[11..] == bytes[11..]);
    assert_eq!(get(registry, &path, Some("10-10")).1, [!bytes[10]]);
    faults.clear();

    faults.truncate(Some(40));
    assert_eq!(get(registry, &path, None).1.len(), 40);
    faults.truncate(None);

    faults.status(Some(500));
    assert_eq!(get(registry, &path, None).0, 500);
    faults.status(None);

    faults.ignore_ranges(true);
    assert_eq!(get(registry, &path, Some("5-9")), (200, bytes.clone()));
    faults.ignore_ranges(false);

    faults.line(Line::Unplugged);
    assert_eq!(get(registry, &path, None), (0, Vec::new()));
    faults.line(Line::Plugged);
    assert_eq!(get(registry, &path, Some("5-9")), (206, bytes[5..10].to_vec()));
}

/// What curl says of an answer: its head as it came and how it ended.
fn head(url: &str, options: &[&str]) -> (String, Option<i32>) {
    let fixed = ["--silent", "--include", "--output", "-", "--range", "100-199", url];
    let output = attempt("curl", &[&fixed[..], options].concat());
    let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
    let head = text.split("\r\n\r\n").next().unwrap_or_default();
    (head.to_string(), output.status.code())
}

#[test]
fn heads_are_as_wrong_as_they_are_wanted() {
    let served = plain();
    let (path, bytes) = blob(&served);
    let registry = &served.registry;
    let (url, size) = (format!("http://{}{path}", registry.address()), bytes.len());
    // 18 is curl's code for a body that ended early.
    for (fault, wanted, code) in [
        (Head::ShiftedRange, format!("content-range: bytes 101-200/{size}"), 0),
        (
            Head::WrongTotal,
            format!("content-range: bytes 100-199/{}", size + 1),
            0,
        ),
        (Head::LongerLength, "content-length: 110".into(), 18),
        (Head::ShorterLength, "content-length: 90".into(), 0),
        (Head::Gzip, "content-encoding: gzip".into(), 0),
        (Head::WrongDigest, "docker-content-digest: sha256:".into(), 0),
        (Head::Http10, "http/1.0 206".into(), 0),
        (Head::Http10WithoutLength, "http/1.0 206".into(), 0),
        (Head::Chunked, "transfer-encoding: chunked".into(), 0),
    ] {
        registry.faults().head(Some(fault));
        let (head, ended) = head(&url, &["--raw"]);
        assert!(
            head.contains(&wanted) && ended == Some(code),
            "{fault:?}: {ended:?}\n{head}"
        );
        let lengthless = matches!(fault, Head::Http10WithoutLength | Head::Chunked);
        assert_ne!(head.contains("content-length"), lengthless, "{fault:?}: {head}");
        let digest = served.image.layers[0].digest.to_string();
        assert_ne!(head.contains(&digest), fault == Head::WrongDigest, "{head}");
    }
    registry.faults().head(None);
    // 56 is curl's code for a connection that was reset.
    registry.faults().reset_after(Some(40));
    assert_eq!(head(&url, &[]).1, Some(56));
    registry.faults().clear();
    registry.faults().status(Some(429));
    registry.faults().retry_after(Some(RetryAfter::Seconds(7)));
    assert!(head(&url, &[]).0.contains("retry-after: 7"));
    registry
        .faults()
        .retry_after(Some(RetryAfter::Date(Duration::from_secs(90))));
    assert!(head(&url, &[]).0.contains(" gmt"));
}

#[test]
fn redirects_lead_where_they_are_told_to_for_as_long_as_they_are_good() {
    let served = plain();
    let (path, bytes) = blob(&served);
    let registry = &served.registry;
    let url = format!("http://{}{path}", registry.address());
    let follow = |options: &[&str]| {
        let fixed = ["--silent", "--fail", "--location", "--max-redirs", "20", &url];
        let output = attempt("curl", &[&fixed[..], options].concat());
        (output.status.code(), output.stdout == bytes)
    };
    use Listener::{Elsewhere, Registry as Home};
    for hops in [&[Home][..], &[Elsewhere], &[Elsewhere, Home], &[Elsewhere; 10]] {
        registry.log().clear();
        registry.redirects().lead(hops);
        assert_eq!(follow(&[]), (Some(0), true), "{hops:?}");
        let came: Vec<_> = registry
            .log()
            .requests()
            .iter()
            .map(|request| request.listener)
            .collect();
        assert_eq!(came, [&[Home], hops].concat());
        assert_eq!(
            registry.log().bytes_of(&served.image.layers[0].digest),
            bytes.len() as u64
        );
    }
    // 47 is curl's code for too many redirects, 22 for a status of 400 or more.
    registry.redirects().circle(&[Elsewhere, Home]);
    assert_eq!(follow(&[]).0, Some(47));
    registry.redirects().lead(&[Elsewhere]);
    registry.redirects().uses(Some(0));
    assert_eq!(follow(&[]).0, Some(22));
    registry.redirects().uses(None);
    // As object stores do it.
    let trusting = ["--location-trusted", "--header", "Authorization: Bearer x"];
    assert_eq!(follow(&trusting).0, Some(22));
    let last = registry.log().requests().last().unwrap().clone();
    assert_eq!(
        (last.listener, last.status(), last.authorization.as_deref()),
        (Elsewhere, 400, Some("Bearer"))
    );

    let (signed, _) = head(&url, &[]);
    let signed = signed
        .split("location: ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .to_string();
    assert!(head(&signed, &[]).0.contains(" 206 "));
    registry.redirects().expire();
    assert!(head(&signed, &[]).0.contains(" 403 "));
    assert_eq!(follow(&[]), (Some(0), true));
}

#[test]
fn who_may_not_read_does_not() {
    let served = plain();
    let (path, _) = blob(&served);
    let registry = &served.registry;
    let guard = registry.guard();
    let url = format!("http://{}{path}", registry.address());
    let status = |url: &str, options: &[&str]| {
        let (head, _) = head(url, options);
        head.split(' ').nth(1).unwrap_or_default().to_string()
    };
    guard.basic("jack", "sesame");
    assert_eq!(status(&url, &[]), "401");
    assert_eq!(status(&url, &["--user", "jack:open"]), "401");
    assert_eq!(status(&url, &["--user", "jack:sesame"]), "206");

    let realm = format!(
        "http://{}/token?service=tests&scope=repository:made:pull",
        registry.address()
    );
    guard.tokens_for("jack", "sesame");
    assert!(
        head(&url, &[])
            .0
            .contains("www-authenticate: bearer realm=\"http://127.0.0.1")
    );
    assert_eq!(status(&realm, &[]), "401");
    assert_eq!(status(&realm, &["--user", "jack:sesame"]), "200");
    let bearer = format!("Authorization: Bearer {}", guard.issued()[0]);
    assert_eq!(status(&url, &["--header", &bearer]), "206");
    guard.expire();
    assert_eq!(status(&url, &["--header", &bearer]), "401");

    guard.tokens_for_refresh("again");
    let form = "grant_type=refresh_token&service=tests&scope=repository:made:pull&refresh_token=again";
    assert_eq!(status(&realm, &["--data", form]), "200");
    assert_eq!(status(&realm, &["--data", &form.replace("again", "anew")]), "401");
    guard.tokens();
    guard.uses(Some(1));
    assert_eq!(status(&realm, &[]), "200");
    let bearer = format!("Authorization: Bearer {}", guard.issued().last().unwrap());
    assert_eq!(status(&url, &["--header", &bearer]), "206");
    assert_eq!(status(&url, &["--header", &bearer]), "401");
    guard.open();
    assert_eq!(status(&url, &[]), "206");
    assert_eq!(registry.log().requests_of_tokens().len(), 5);
}

#[test]
fn a_stalled_answer_goes_on_when_the_line_is_plugged_in_again() {
    let served = plain();
    let (path, bytes) = blob(&served);
    let registry = &served.registry;
    let within = Duration::from_secs(10);
    std::thread::scope(|scope| {
        registry.faults().stall_after(70_000);
        let reader = scope.spawn(|| get(registry, &path, None).1);
        eventually("70,000 bytes out", within, || {
            (served.layer_bytes() == 70_000).then_some(())
        });
        registry.faults().line(Line::Plugged);
        assert!(reader.join().unwrap() == bytes);

        registry.log().clear();
        registry.faults().line(Line::Stalled);
        let reader = scope.spawn(|| get(registry, &path, None).1);
        eventually("a request", within, || (registry.log().len() == 1).then_some(()));
        assert_eq!(registry.log().requests()[0].status(), 0);
        registry.faults().line(Line::Plugged);
        assert!(reader.join().unwrap() == bytes);
    });
}

#[test]
fn trees_differ_where_they_differ() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let root = dir.path().join(name);
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "content").unwrap();
        fs::hard_link(root.join("sub/file"), root.join("link")).unwrap();
        root
    };
    let (one, other) = (make("one"), make("other"));
    let timeless = |root| Tree::of(root).ignoring("mtime", |_| true);
    timeless(&one).assert_is(&timeless(&other));
    fs::remove_file(other.join("link")).unwrap();
    fs::write(other.join("link"), "c0ntent").unwrap();
    fs::write(other.join("new\n"), "").unwrap();
    xattr::set(other.join("sub/file"), "user.x", b"1").unwrap();
    let text = timeless(&other).differences(&timeless(&one));
    for part in [
        "link: link is -, not link",
        "link: content is c0ntent, not content",
        "new\\n: should not be",
        "sub/file: xattrs is user.x=1, not -",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn the_compressed_range_of_a_file_is_where_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let noise = |seed| Content::Noise { seed, size: 1_000_000 };
    let layer = Layer::of([
        Entry::file("a", noise(1)),
        Entry::file("b", noise(2)),
        Entry::file("c", noise(3)),
    ]);
    let image = ImageBuilder::of([layer]).write(dir.path(), "x").unwrap();
    let (start, end) = image.layers[0].compressed_range_of("b").unwrap();
    let third = image.layers[0].size / 3;
    assert!(
        start.abs_diff(third) < third / 10 && end.abs_diff(2 * third) < third / 10,
        "{start}..{end} of {third} * 3"
    );
}

#[test]
fn the_debian_image_is_served() {
    let served = Served::debian();
    assert!(served.image.layers.len() >= 3);
    let passwd = |number: usize| {
        let (start, end) = served.image.layers[number].compressed_range_of("etc/passwd").unwrap();
        assert!(start < end);
    };
    passwd(0);
    passwd(2);
    let path = format!("/v2/debian/manifests/{}", served.image.manifest);
    assert_eq!(get(&served.registry, &path, None).0, 200);
}
