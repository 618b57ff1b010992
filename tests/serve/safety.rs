//! Who may ask, for what, and what browsers make of the answers.

use std::fs;

use super::Scene;
use crate::support::cli::{Asked, history};
use crate::support::*;

#[test]
fn others_than_this_machine_need_leave_for_registries() {
    let asked = Asked::of(history());
    for (arguments, word) in [
        ("serve --listen 0.0.0.0:0", "--allow-registry"),
        ("serve --listen [::]:0", "--allow-registry"),
        ("serve --listen 0.0.0.0:0 --allow-any --allow-local", "--allow-local"),
        ("serve --listen 127.0.0.1:0 --username me", "--allow-registry"),
        ("serve --listen nowhere", "--listen"),
    ] {
        let said = asked.ask(arguments);
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.err.contains(word), "{said:?}");
    }
    let behind_proxy = std::process::Command::new(env!("CARGO_BIN_EXE_peelfs"))
        .args(["serve", "--listen", "0.0.0.0:0", "--allow-any"])
        .env("HTTPS_PROXY", "http://proxy.example:3128")
        .output()
        .unwrap();
    assert_eq!(behind_proxy.status.code(), Some(2), "{behind_proxy:?}");
}

#[test]
fn strangers_do_not_use_the_logins_of_whoever_serves() {
    let asked = Asked::of(history());
    asked.served.registry.guard().basic("me", "secret");
    let config = tempfile::tempdir().unwrap();
    let auth = format!(
        r#"{{"auths": {{"{}": {{"auth": "bWU6c2VjcmV0"}}}}}}"#,
        asked.served.registry.address()
    );
    fs::write(config.path().join("config.json"), auth).unwrap();
    let registry = asked.served.registry.address().to_string();
    let answered = |allowed: &[&str]| {
        let arguments = [&["--listen", "0.0.0.0:0", "--allow-private"], allowed].concat();
        let serve = Serve::logged_in(&asked.cache(), &arguments, Some(config.path()));
        let image = encoded(asked.served.reference());
        serve.get(&format!("/layers?image={image}")).status
    };
    assert_eq!(answered(&["--allow-any"]), 502);
    assert_eq!(answered(&["--allow-registry", &registry]), 200);
}

#[test]
fn private_registries_are_not_asked_for_strangers() {
    let asked = Asked::of(history());
    let port = asked.served.registry.address().port();
    let scene = Scene::with(asked, &["--listen", "0.0.0.0:0", "--allow-any"]);
    for host in ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"] {
        let image = encoded(format!("{host}:{port}/made:latest"));
        let answer = scene.serve.get(&format!("/layers?image={image}"));
        assert!(matches!(answer.status, 403 | 502), "{host}: {answer:?}");
        let sentence = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(sentence.contains("private address"), "{host}: {sentence}");
    }
    assert!(scene.asked.served.registry.log().is_empty());
    let asked = scene.asked;
    let scene = Scene::with(asked, &["--listen", "0.0.0.0:0", "--allow-any", "--allow-private"]);
    assert_eq!(scene.get("layers", "").status, 200);
}

#[test]
fn only_registries_that_were_allowed_are_asked() {
    let asked = Asked::of(history());
    let scene = Scene::with(asked, &["--allow-registry", "registry.example"]);
    let answer = scene.get("layers", "");
    assert_eq!(
        (answer.status, &answer.json()["kind"]),
        (403, &"registry_not_allowed".into())
    );
    assert!(scene.asked.served.registry.log().is_empty());
}

#[test]
fn images_of_this_machine_need_leave() {
    let asked = Asked::of(history());
    let layout = format!(
        "/layers?image={}",
        encoded(format!("oci:{}", asked.served.image.layout.display()))
    );
    let scene = Scene::with(asked, &[]);
    let answer = scene.serve.get(&layout);
    assert_eq!((answer.status, &answer.json()["kind"]), (403, &"local_image".into()));
    let scene = Scene::with(scene.asked, &["--allow-local"]);
    assert_eq!(scene.serve.get(&layout).json().as_array().map(Vec::len), Some(4));
}

#[test]
fn a_page_of_a_stranger_cannot_ask_by_a_name_of_its_own() {
    let scene = Scene::history();
    let target = scene.target("layers", "");
    let status = |host: &str| scene.serve.ask("GET", &target, &[("Host", host)]).status;
    assert_eq!(status("evil.example"), 421);
    assert_eq!(status("evil.example:7335"), 421);
    assert!(scene.asked.served.registry.log().is_empty());
    assert_eq!(status("localhost"), 200);
    let full = scene
        .serve
        .ask("GET", &format!("http://evil.example{target}"), &[("Host", "localhost")]);
    assert_eq!(full.status, 421);
    let origin = scene.serve.ask("GET", &target, &[("Origin", "http://evil.example")]);
    assert!(
        origin
            .headers
            .iter()
            .all(|(name, _)| !name.starts_with("access-control")),
        "{origin:?}"
    );
}

#[test]
fn a_name_that_leads_to_another_machine_has_to_be_told() {
    let asked = Asked::of(history());
    let arguments = [
        "--listen",
        "0.0.0.0:0",
        "--allow-any",
        "--allow-private",
        "--host",
        "images.example",
        "--host",
        "other.example",
    ];
    let scene = Scene::with(asked, &arguments);
    let target = scene.target("layers", "");
    let ask = |host: &str| scene.serve.ask("GET", &target, &[("Host", host)]);
    let refused = ask("evil.example");
    assert_eq!(refused.status, 421);
    let sentence = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(sentence.contains("--host"), "{sentence}");
    assert!(scene.asked.served.registry.log().is_empty());
    for host in [
        "images.example",
        "OTHER.example:7335",
        "192.0.2.7",
        "[2001:db8::1]:80",
        "localhost",
    ] {
        assert_eq!(ask(host).status, 200, "{host}");
    }
}

#[test]
fn a_page_of_another_site_may_lead_here_and_no_more() {
    let scene = Scene::history();
    let target = scene.target("browse", "");
    let status = |site: &str, mode: &str, dest: &str| {
        let headers = [
            ("Sec-Fetch-Site", site),
            ("Sec-Fetch-Mode", mode),
            ("Sec-Fetch-Dest", dest),
        ];
        scene.serve.ask("GET", &target, &headers).status
    };
    for dest in ["iframe", "frame", "embed", "object"] {
        assert_eq!(status("cross-site", "navigate", dest), 403, "{dest}");
    }
    assert_eq!(status("cross-site", "no-cors", "image"), 403);
    assert_eq!(status("cross-site", "cors", "empty"), 403);
    assert!(scene.asked.served.registry.log().is_empty());
    assert_eq!(status("cross-site", "navigate", "document"), 200);
    assert_eq!(status("same-origin", "cors", "empty"), 200);
    assert_eq!(status("none", "navigate", "document"), 200);
}

#[test]
fn nothing_from_an_image_is_run_or_rendered() {
    let names = ["x.html", "x.svg", "x.xml", "x.xhtml", "x.pdf", "x.js"];
    let page = "<script>alert(1)</script>";
    let scene = Scene::of([Layer::of(names.map(|name| Entry::file(name, page)))]);
    for name in names {
        for rest in ["", "&as_text=true"] {
            let answer = scene.get("carve", &format!("&path={name}{rest}"));
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            let policy = answer.header("content-security-policy").unwrap();
            assert!(
                policy.contains("default-src 'none'") && policy.contains("sandbox"),
                "{policy}"
            );
            let (kind, disposition) = match rest {
                "" => ("application/octet-stream", "attachment"),
                _ => ("text/plain; charset=utf-8", "inline"),
            };
            assert_eq!(answer.header("content-type"), Some(kind));
            assert!(answer.header("content-disposition").unwrap().starts_with(disposition));
        }
    }
}

#[test]
fn hostile_names_stay_names() {
    let odd: [&[u8]; 5] = [
        b"a\r\nSet-Cookie: x=1",
        b"q\"uote;\\",
        b"caf\xe9",
        "π 100%".as_bytes(),
        b"<b>&amp;",
    ];
    let scene = Scene::of([Layer::of(odd.map(|name| Entry::file(name, name)))]);
    for name in odd {
        let answer = scene.get("carve", &format!("&path={}", encoded(name)));
        assert_eq!(answer.header("set-cookie"), None);
        let disposition = answer.header("content-disposition").unwrap().to_owned();
        assert!(
            disposition.is_ascii() && !disposition.contains(char::is_control),
            "{disposition}"
        );
        assert_eq!(answer.ok(), name);
    }
    let pi = scene.get("carve", &format!("&path={}", encoded("π 100%")));
    let disposition = pi.header("content-disposition").unwrap();
    assert!(
        disposition.ends_with("filename*=UTF-8''%CF%80%20100%25"),
        "{disposition}"
    );
}
