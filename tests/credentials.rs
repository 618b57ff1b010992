//! Passwords and tokens: they go where they belong and nowhere else, and no oftener than they must.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use crate::support::Listener::{Elsewhere, Registry as Home};
use crate::support::fixtures::Served;
use crate::support::registry::{Target, basic};
use crate::support::*;
use peelfs::digest::Digest;

const MINUTE: Duration = Duration::from_secs(60);

const USER: &str = "jack-the-reader";
const PASSWORD: &str = "open-sesame-and-2-more";
const REFRESH: &str = "a-refresh-token-that-nobody-may-see";

fn sha256(content: &Content) -> String {
    Digest::sha256(&content.bytes()).hex()
}

/// So many layers with a file `NUMBER` of 300,000 bytes in each.
fn image(layers: u64) -> ImageBuilder {
    ImageBuilder::of(
        (0..layers).map(|number| Layer::of([Entry::file(number.to_string(), Content::noise(number, 300_000))])),
    )
}

fn summing(mount: &Mount, path: &str) -> Child {
    start("sha256sum", &[mount.path(path)])
}

#[track_caller]
fn assert_sum(mount: &Mount, reader: Child, content: &Content) {
    let output = reader.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with(&sha256(content)), "{output:?}\n{}", mount.log());
}

/// A configuration of Docker's or podman's with what `docker login` or `podman login` would leave there.
fn log_in(dir: &Path, name: &str, registry: &Registry, credential: &str) {
    let text = format!(r#"{{"auths": {{"{}": {{{credential}}}}}}}"#, registry.address());
    fs::write(dir.join(name), text).unwrap();
}

fn password() -> String {
    format!(r#""auth": "{}""#, basic(USER, PASSWORD).trim_start_matches("Basic "))
}

#[test]
fn no_authorization_goes_to_a_host_that_it_is_not_for() {
    let config = tempfile::tempdir().unwrap();
    type Guard = fn(&Registry);
    let guards: [(&str, Guard); 3] = [
        ("Bearer", |registry| registry.guard().tokens()),
        ("Bearer", |registry| registry.guard().tokens_for(USER, PASSWORD)),
        ("Basic", |registry| registry.guard().basic(USER, PASSWORD)),
    ];
    for hops in [
        &[][..],
        &[Home],
        &[Elsewhere],
        &[Elsewhere, Home],
        &[Home, Elsewhere],
        &[Elsewhere, Home, Elsewhere, Home],
    ] {
        for (scheme, guard) in guards {
            let served = Served::made(&image(2));
            let registry = &served.registry;
            log_in(config.path(), "config.json", registry, &password());
            guard(registry);
            registry.redirects().lead(hops);
            let mount = Mount::of(served.reference())
                .env("DOCKER_CONFIG", config.path())
                .start();
            assert!(mount.read("0") == mount.read("layers/0/0"));
            // Back to the registry, from a place that was remembered.
            registry.redirects().expire();
            assert_sum(&mount, summing(&mount, "1"), &Content::noise(1, 300_000));

            let log = registry.log();
            for request in log.requests() {
                let wanted = match (request.listener, &request.target) {
                    (Elsewhere, _) => None,
                    (Home, Target::Token) => continue,
                    (Home, _) if request.status() == 401 => continue,
                    (Home, _) => Some(scheme),
                };
                assert_eq!(
                    request.authorization.as_deref(),
                    wanted,
                    "{hops:?} {scheme}: {} in\n{log}",
                    request.path
                );
            }
            let led_away = log.requests().iter().any(|request| request.listener == Elsewhere);
            assert_eq!(led_away, hops.contains(&Elsewhere), "{hops:?}\n{log}");
        }
    }
}

/// Reads a file of `size` bytes by `readers` at once, with a token that ends when a quarter is out.
#[track_caller]
fn a_token_ends_while(readers: usize, size: u64) {
    let large = Content::noise(1, size);
    let served = Served::made(&ImageBuilder::of([
        Layer::of([Entry::file("large", large.clone())]).compressed(Compression::None)
    ]));
    let registry = &served.registry;
    registry.guard().tokens();
    let mount = Mount::of(served.reference()).start();
    assert_eq!(registry.guard().issued().len(), 1);

    registry.faults().stall_after(size / 4);
    let readers: Vec<_> = (0..readers).map(|_| summing(&mount, "large")).collect();
    eventually("a quarter is out", MINUTE, || {
        (served.layer_bytes() == size / 4).then_some(())
    });
    registry.guard().expire();
    registry.faults().line(Line::Plugged);
    for reader in readers {
        assert_sum(&mount, reader, &large);
    }
    assert_eq!(registry.log().requests_of_tokens().len(), 2, "{}", registry.log());
    served.assert_no_byte_twice();
}

#[test]
fn a_token_that_ends_while_eight_read_is_renewed_once_and_nothing_comes_twice() {
    a_token_ends_while(8, 20_000_000);
}

#[test]
fn a_token_that_ends_in_a_long_read_is_renewed_once_and_nothing_comes_twice() {
    a_token_ends_while(1, 600_000_000);
}

#[test]
fn many_who_wait_for_a_token_cause_one_request_for_it() {
    const READERS: u64 = 8;
    let served = Served::made(&image(READERS));
    let (registry, faults) = (&served.registry, served.registry.faults());
    registry.guard().tokens();
    let mount = Mount::of(served.reference()).start();
    registry.guard().expire();
    registry.log().clear();

    // All of them are on their way with the old token before one of them hears that it is not good any more.
    faults.hold(Some(Part::Blobs));
    let readers: Vec<_> = (0..READERS)
        .map(|number| summing(&mount, &format!("layers/{number}/{number}")))
        .collect();
    eventually("all have asked", MINUTE, || {
        (registry.log().len() as u64 >= READERS).then_some(())
    });
    faults.hold(Some(Part::Tokens));
    eventually("all are refused, and one asks for a token", MINUTE, || {
        let refused = registry
            .log()
            .requests()
            .iter()
            .filter(|request| request.status() == 401)
            .count();
        (refused as u64 >= READERS && !registry.log().requests_of_tokens().is_empty()).then_some(())
    });
    faults.hold(None);
    for (number, reader) in (0..).zip(readers) {
        assert_sum(&mount, reader, &Content::noise(number, 300_000));
    }
    assert_eq!(registry.log().requests_of_tokens().len(), 1, "{}", registry.log());
}

/// The files below `dir` that hold one of the secrets.
fn files_with(secrets: &[String], dir: &Path) -> Vec<String> {
    let mut arguments = vec!["-r".to_string(), "-l".into(), "-a".into(), "-F".into()];
    arguments.extend(secrets.iter().flat_map(|secret| ["-e".to_string(), secret.clone()]));
    arguments.push(dir.to_str().unwrap().to_string());
    let output = attempt("grep", &arguments);
    // 1 is "not found".
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_string)
        .collect()
}

#[test]
fn credentials_are_found_and_never_shown() {
    type Guarded = (&'static str, fn(&Registry), String);
    let guards: [Guarded; 3] = [
        (
            "a password",
            |registry| registry.guard().basic(USER, PASSWORD),
            password(),
        ),
        (
            "a token for a password",
            |registry| registry.guard().tokens_for(USER, PASSWORD),
            password(),
        ),
        (
            "a token for a refresh token",
            |registry| registry.guard().tokens_for_refresh(REFRESH),
            format!(
                r#""auth": "{}", "identitytoken": "{REFRESH}""#,
                basic(USER, "").trim_start_matches("Basic ")
            ),
        ),
    ];
    for (what, guard, credential) in guards {
        for variable in ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE"] {
            let served = Served::made(&image(3));
            let (registry, config) = (&served.registry, tempfile::tempdir().unwrap());
            guard(registry);
            registry.redirects().lead(&[Elsewhere]);
            let reference = served.reference();
            let mount = || {
                Mount::of(&reference)
                    .with(["--timeout", "2"])
                    .env("PEELFS_LOG", "trace")
            };
            let refused = mount().try_start().err().expect("nobody is let in without").said;
            assert!(refused.contains("log in"), "{what}: {refused}");

            let value = match variable {
                "DOCKER_CONFIG" => config.path().to_path_buf(),
                _ => config.path().join("config.json"),
            };
            log_in(config.path(), "config.json", registry, &credential);
            let cache = tempfile::tempdir().unwrap();
            let mount = mount().env(variable, value).cache(cache.path()).start();
            assert_sum(&mount, summing(&mount, "2"), &Content::noise(2, 300_000));
            // What is said of a failure is where a secret would slip out.
            registry.guard().expire();
            registry.redirects().expire();
            registry.faults().refuse(Part::Tokens, Some(503));
            registry.faults().head(Some(Head::WrongTotal));
            assert!(!mount.cat("1").status.success());
            registry.guard().basic("somebody-else", "other");
            assert!(!mount.cat("0").status.success());

            let status = peelfs().arg("status").arg(mount.root()).arg("--json").output().unwrap();
            assert!(
                String::from_utf8_lossy(&status.stdout).contains("last_error\": \""),
                "{status:?}"
            );
            let shown = tempfile::tempdir().unwrap();
            fs::write(shown.path().join("status"), status.stdout).unwrap();
            fs::write(shown.path().join("log"), mount.log()).unwrap();
            let cmdline = fs::read(format!("/proc/{}/cmdline", mount.pid())).unwrap();
            fs::write(shown.path().join("cmdline"), cmdline).unwrap();
            mount.unmount();

            let mut secrets = registry.guard().issued();
            assert_eq!(secrets.is_empty(), what == "a password");
            secrets.extend([PASSWORD, REFRESH].map(str::to_string));
            secrets.push(basic(USER, PASSWORD).trim_start_matches("Basic ").to_string());
            for dir in [shown.path(), cache.path()] {
                assert_eq!(files_with(&secrets, dir), [""; 0], "{what}, {variable}");
            }
            // It does find them where they are.
            assert_eq!(files_with(&secrets, config.path()).len(), 1);
        }
    }
}
