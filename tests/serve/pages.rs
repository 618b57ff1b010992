//! The pages: what they show, that they show it as text, and that a browser makes of them what was meant.

use std::path::Path;

use super::Scene;
use crate::support::*;

#[test]
fn the_merged_image_a_layer_and_hidden_versions_can_be_browsed() {
    let scene = Scene::history();
    let start = scene.serve.get("/");
    assert_eq!(start.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = start.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert!(start.text().contains("<form action=\"/browse\">"));

    let etc = scene.get("browse", "&path=/etc");
    assert_eq!(etc.status, 200, "{}", etc.text());
    for part in ["[L3]", "[L0] (deleted in L1)", "[L1] (overridden)", ">passwd</a>"] {
        assert!(etc.text().contains(part), "{part}: {}", etc.text());
    }
    // Each link on it leads somewhere.
    let links = links(etc.text());
    assert!(links.iter().any(|link| link.contains("caf%E9")), "{links:?}");
    for link in &links {
        let answer = scene.serve.get(link);
        assert_eq!(answer.status, 200, "{link}: {}", answer.text());
    }
    let layer = scene.get("browse", "&path=/etc&layer=1");
    assert!(layer.text().contains("passwd") && !layer.text().contains(">mode</a>"));
    let root = scene.get("browse", "&path=&layer=");
    assert!(root.text().contains("usr/</a>"));
    let missing = scene.get("browse", "&path=/nothing");
    assert_eq!(missing.status, 404);
    assert!(missing.text().contains("<h1>Not found</h1>") && missing.text().contains("/nothing is not in the image"));
    let wrong = scene.get("browse", "&layer=x");
    assert!(
        wrong.status == 400 && !wrong.text().contains("Not found"),
        "{}",
        wrong.text()
    );
}

/// Where the links of a page lead, within the server.
fn links(html: &str) -> Vec<String> {
    let hrefs = html
        .split("<a href=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next());
    hrefs.map(|link| link.replace("&amp;", "&")).collect()
}

#[test]
fn a_file_is_viewed_with_its_versions_and_two_are_compared() {
    let scene = Scene::history();
    // One layer tells what is to be seen; the versions are in others.
    let view = scene.get("view", "&path=/etc/passwd&layer=3");
    assert_eq!(
        scene.asked.served.layer_bytes(),
        scene.asked.served.image.layers[3].size
    );
    let all = links(view.text())
        .into_iter()
        .find(|link| link.ends_with("&versions=true"));
    let view = scene.serve.get(&all.unwrap());
    assert!(
        view.text().contains("<pre class=\"file\">three\n</pre>"),
        "{}",
        view.text()
    );
    for part in [
        " [L0] (overridden), <a ",
        " [L1] (overridden), <a ",
        " [L3], <a ",
        "compare with layer 1",
    ] {
        assert!(view.text().contains(part), "{part}: {}", view.text());
    }
    let link = links(view.text())
        .into_iter()
        .find(|link| link.starts_with("/compare"))
        .unwrap();
    let compared = scene.serve.get(&link);
    assert!(
        compared
            .text()
            .contains("<td class=\"removed\"><pre>zero</pre><td class=\"added\"><pre>one, longer</pre>")
    );
    assert!(!scene.get("view", "&path=/etc").text().contains("<pre"));
    scene.asked.served.assert_no_byte_twice();
}

#[test]
fn versions_are_listed_without_what_is_in_them() {
    let noise = |seed| Content::Noise { seed, size: 3_000_000 };
    let file = |seed| Layer::of([Entry::file("file", noise(seed))]).compressed(Compression::None);
    let scene = Scene::of([file(1), file(2)]);
    scene.get("ls", "&all=true").ok();
    // What was fetched for the indexes is forgotten.
    let store = scene.cache().join("store/extents");
    let known = Scene::with(scene.asked, &[]);
    std::fs::remove_dir_all(store).unwrap();
    known.asked.served.registry.log().clear();
    let view = known.get("view", "&path=/file");
    assert!(view.text().contains(" [L0] (overridden)"), "{}", view.text());
    let log = known.asked.served.registry.log();
    let [below, above] = &known.asked.served.image.layers[..] else {
        panic!()
    };
    assert!(log.requests_of(&below.digest).is_empty(), "{log}");
    assert!(known.asked.served.layer_bytes() < above.size, "{log}");
}

#[test]
fn what_is_hidden_is_linked_where_it_is() {
    let scene = Scene::of([
        Layer::of([
            Entry::dir("usr"),
            Entry::dir("usr/bin"),
            Entry::file("usr/bin/tool", "tool\n"),
            Entry::symlink("bin", "usr/bin"),
        ]),
        Layer::of([
            Entry::dir("usr"),
            Entry::dir("usr/bin"),
            Entry::hardlink("usr/bin/tool2", "usr/bin/tool"),
        ]),
        // By itself the layer has it at another path.
        Layer::of([Entry::file("bin/below", "below\n")]),
        Layer::of([
            Entry::dir("usr"),
            Entry::dir("usr/bin"),
            Entry::whiteout("usr/bin/tool2"),
            Entry::whiteout("usr/bin/below"),
        ]),
    ]);
    let page = scene.get("browse", "&path=/usr/bin");
    let links = links(page.text());
    assert!(page.text().contains("(deleted in L3)"), "{}", page.text());
    assert!(
        links
            .iter()
            .any(|link| link.contains("tool2") && link.contains("layer=1")),
        "{links:?}"
    );
    for link in links {
        let answer = scene.serve.get(&link);
        assert_eq!(answer.status, 200, "{link}: {}", answer.text());
    }
}

/// Names and contents that would be markup if they were let.
fn hostile() -> Layer {
    let script = "<script>document.title='owned'</script>";
    Layer::of([
        Entry::dir(" a space first"),
        Entry::dir("<img src=x onerror=document.title='owned'>"),
        Entry::file("\"><b>bold", script),
        Entry::file(b"latin-\xe9", "latin\n"),
        Entry::file("many", "<b>many</b>\n".repeat(100_000)),
        Entry::symlink("link", "<i>target</i>"),
    ])
}

#[test]
fn nothing_from_an_image_is_markup() {
    let scene = Scene::of([hostile()]);
    let spaced = scene.get("browse", "&path=%20a%20space%20first");
    assert!(spaced.text().contains("<h1>/ a space first</h1>"), "{}", spaced.text());
    let pages = [
        scene.get("browse", ""),
        scene.get(
            "browse",
            &format!("&path={}", encoded("<img src=x onerror=document.title='owned'>")),
        ),
        scene.get("view", &format!("&path={}", encoded("\"><b>bold"))),
        scene.get("view", &format!("&path={}", encoded(b"latin-\xe9"))),
        scene.get("view", "&path=many"),
        scene.get("browse", &format!("&path={}", encoded("<script>"))),
        scene
            .serve
            .get(&format!("/browse?image={}", encoded("<script>alert(1)</script>"))),
    ];
    for page in pages {
        let text = page.text();
        for markup in ["<img", "<b>", "<i>", "<script>"] {
            assert!(!text.contains(markup), "{markup} in {text}");
        }
        assert!(text.len() < 4_000_000);
    }
}

/// The page at `target` as a browser sees it when its scripts have run.
fn in_a_browser(scene: &Scene, profile: &Path, target: &str) -> String {
    let url = format!("{}{}", scene.serve.url(), target.trim_start_matches('/'));
    let profile = format!("--user-data-dir={}", profile.display());
    let arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        &profile,
        "--dump-dom",
        &url,
    ];
    String::from_utf8(run("chromium", &arguments)).unwrap()
}

#[test]
fn a_browser_shows_names_as_text_and_runs_our_script_alone() {
    let scene = Scene::of([hostile()]);
    let profile = tempfile::tempdir().unwrap();
    let page = in_a_browser(&scene, profile.path(), &scene.target("browse", ""));
    assert!(page.contains("&lt;img src=x onerror="), "{page}");
    assert!(
        !page.contains("<title>owned") && page.contains("<title>/ - peelfs</title>"),
        "{page}"
    );
    // Only the script shows the field.
    let filter = page
        .split("id=\"filter\"")
        .nth(1)
        .and_then(|rest| rest.split('>').next())
        .unwrap();
    assert!(!filter.contains("hidden"), "{filter}");
    let file = format!("&path={}&as_text=true", encoded("\"><b>bold"));
    let text = in_a_browser(&scene, profile.path(), &scene.target("carve", &file));
    assert!(text.contains("&lt;script&gt;"), "{text}");
}
