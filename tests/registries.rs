//! Registries as people run them: plain, with passwords, behind TLS, and as mirrors of others.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{self, *};
use tempfile::TempDir;

const MINUTE: Duration = Duration::from_secs(60);

/// A layer with a small file at the front and a large one at the end.
fn image(dir: &Path) -> BuiltImage {
    let noise = |seed| Content::Noise { seed, size: 3_000_000 };
    let layer = [
        Entry::file("a", "first\n"),
        Entry::file("b", noise(1)),
        Entry::file("c", noise(2)),
    ];
    ImageBuilder::of([Layer::of(layer)]).write(dir, "latest").unwrap()
}

/// docker-registry with the image as `team/app:latest`, and all that they stand on.
struct Docker {
    registry: DockerRegistry,
    dir: TempDir,
}

impl Docker {
    fn start() -> Docker {
        Docker::configured(|_| String::new())
    }

    /// Pushed to without, served with what `more` adds to the configuration; it is given a directory for files.
    fn configured(more: impl FnOnce(&Path) -> String) -> Docker {
        let dir = tempfile::tempdir().unwrap();
        let image = image(&dir.path().join("layout"));
        let storage = dir.path().join("storage");
        DockerRegistry::start(&storage).push(&image, "team/app:latest");
        Docker {
            registry: DockerRegistry::configured(&storage, &more(dir.path())),
            dir,
        }
    }

    fn reference(&self) -> String {
        format!("{}/team/app:latest", self.registry.address())
    }
}

/// A registry and a mirror of it, both with the image, and a directory with the `hosts.toml` that says so.
struct Two {
    image: BuiltImage,
    mirror: Registry,
    registry: Registry,
    hosts: String,
    _dir: TempDir,
}

impl Two {
    fn start() -> Two {
        let dir = tempfile::tempdir().unwrap();
        let image = image(&dir.path().join("layout"));
        let serve = || Registry::of([("team/app", image.layout.clone())]);
        let (mirror, registry) = (serve(), serve());
        let text = format!("[host.\"http://{}\"]", mirror.address());
        let hosts = hosts(dir.path(), registry.address(), &text);
        Two {
            image,
            mirror,
            registry,
            hosts,
            _dir: dir,
        }
    }

    fn mount(&self, timeout: &str) -> Mount {
        self.mount_with(&["--timeout", timeout])
    }

    fn mount_with(&self, arguments: &[&str]) -> Mount {
        Mount::of(format!("{}/team/app:latest", self.registry.address()))
            .with(["--hosts-dir", &self.hosts])
            .with(arguments.iter().copied())
            .start()
    }
}

/// A directory with a `hosts.toml` for the registry at `address`.
fn hosts(dir: &Path, address: impl ToString, text: &str) -> String {
    let place = dir.join("hosts").join(address.to_string());
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("hosts.toml"), text).unwrap();
    dir.join("hosts").display().to_string()
}

#[track_caller]
fn assert_right(mount: &Mount) {
    assert_eq!(mount.read("a"), b"first\n");
    for (name, seed) in [("c", 2), ("b", 1)] {
        assert!(mount.read(name) == Content::noise(seed, 3_000_000).bytes(), "{name}");
    }
}

/// docker-registry that lets in `user` with `pass word`.
fn with_password() -> Docker {
    Docker::configured(|dir| {
        let file = dir.join("htpasswd");
        // Not by its arguments: that nobody shows the password is looked for in the list of processes.
        let hashed = run("sh", &["-c", r"printf 'pass\040word\n' | htpasswd -Bni user"]);
        fs::write(&file, hashed).unwrap();
        format!("auth: {{htpasswd: {{realm: registry, path: {}}}}}", file.display())
    })
}

#[test]
fn a_plain_registry_is_read() {
    let docker = Docker::start();
    assert_right(&Mount::of(docker.reference()).start());
}

#[test]
fn a_password_comes_by_standard_input_or_the_environment_and_shows_up_nowhere() {
    let docker = with_password();
    let refused = Mount::of(docker.reference()).try_start().err().unwrap();
    assert_eq!(refused.status.code(), Some(3));
    assert!(refused.said.contains("docker login"), "{refused}");

    let cache = tempfile::tempdir().unwrap();
    for by_pipe in [true, false] {
        let mountpoint = tempfile::tempdir().unwrap();
        let mut command = peelfs();
        command
            .args(["mount", "--cache-dir"])
            .arg(cache.path())
            .arg(docker.reference())
            .arg(mountpoint.path())
            .env("PEELFS_LOG", "trace");
        match by_pipe {
            true => command
                .args(["--username", "user", "--password-stdin"])
                .stdin(Stdio::piped()),
            false => command
                .env("PEELFS_USERNAME", "user")
                .env("PEELFS_PASSWORD", "pass word"),
        };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let Some(mut input) = child.stdin.take() {
            input.write_all(b"pass word\n").unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let status = peelfs()
            .args(["status", "--json"])
            .arg(mountpoint.path())
            .output()
            .unwrap();
        assert!(status.status.success());
        assert_eq!(fs::read(mountpoint.path().join("a")).unwrap(), b"first\n");
        let processes = run("ps", &["-eww", "-o", "args"]);
        support::mount::unmount(mountpoint.path());
        // In plain, and as Basic authentication has it.
        for secret in ["pass word", "dXNlcjpwYXNzIHdvcmQ="] {
            for (place, text) in [
                ("what it said", said.as_bytes()),
                ("its status", &status.stdout),
                ("the list of processes", &processes[..]),
            ] {
                assert!(
                    !String::from_utf8_lossy(text).contains(secret),
                    "{secret} is in {place}"
                );
            }
            let found = attempt("grep", &["-rlF".as_ref(), secret.as_ref(), cache.path().as_os_str()]);
            assert_eq!(found.status.code(), Some(1), "{secret} is in {:?}", found.stdout);
        }
    }
}

#[test]
fn a_wrong_password_is_told_as_one() {
    let docker = with_password();
    let mut command = peelfs();
    let mountpoint = tempfile::tempdir().unwrap();
    command
        .args(["mount", "--username", "user", "--cache-dir"])
        .arg(docker.dir.path().join("cache"))
        .arg(docker.reference())
        .arg(mountpoint.path())
        .env("PEELFS_PASSWORD", "wrong");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("as somebody who may read it"), "{said}");
    assert!(!said.contains("wrong"), "{said}");
}

#[test]
fn a_registry_behind_tls_is_trusted_by_its_authority_alone() {
    let docker = Docker::start();
    let nginx = Nginx::in_front_of(docker.registry.address());
    let reference = format!("{}/team/app:latest", nginx.address());
    let server = format!("https://{}", nginx.address());
    let certificate = nginx.certificate();
    let quoted = format!("ca = {:?}", certificate.display().to_string());

    let refused = |arguments: &[&str]| {
        let builder = Mount::of(&reference)
            .with(["--timeout", "2"])
            .with(arguments.iter().copied());
        let failure = builder.try_start().err().expect("an error");
        assert_eq!(failure.status.code(), Some(3), "{failure}");
        failure.said
    };
    let strict = hosts(
        &docker.dir.path().join("strict"),
        nginx.address(),
        &format!("server = \"{server}\""),
    );
    let said = refused(&["--hosts-dir", &strict]);
    assert!(said.contains("certificate"), "{said}");
    let said = refused(&["--tls-ca", "/nonexistent.pem"]);
    assert!(said.contains("cannot read /nonexistent.pem"), "{said}");

    let with = |name: &str, settings: &str| {
        let text = format!("server = \"{server}\"\n{settings}");
        hosts(&docker.dir.path().join(name), nginx.address(), &text)
    };
    let (authority, any) = (with("ca", &quoted), with("any", "skip_verify = true"));
    let file = certificate.display().to_string();
    for arguments in [["--tls-ca", &file], ["--hosts-dir", &authority], ["--hosts-dir", &any]] {
        assert_right(&Mount::of(&reference).with(arguments).start());
    }
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_while_it_is_away() {
    let two = Two::start();
    let (mirror, registry) = (&two.mirror, &two.registry);
    let mount = two.mount("16");
    assert_eq!(mount.read("a"), b"first\n");
    assert!(registry.log().is_empty(), "{}", registry.log());
    assert!(mirror.log().to_string().contains("ns="), "{}", mirror.log());

    mirror.faults().line(Line::Unplugged);
    assert_right(&mount);
    assert!(!registry.log().is_empty());
    let layer = &two.image.layers[0];
    let bytes = [mirror, registry].map(|host| host.log().bytes_of(&layer.digest));
    assert_eq!(bytes.iter().sum::<u64>(), layer.size);

    // It comes back: a new mount asks it alone again.
    mirror.faults().line(Line::Plugged);
    registry.log().clear();
    assert_right(&two.mount("16"));
    assert!(registry.log().is_empty(), "{}", registry.log());
}

#[test]
fn a_mirror_that_takes_connections_and_is_silent_costs_a_part_of_the_deadline() {
    let two = Two::start();
    two.mirror.faults().line(Line::Stalled);
    assert_right(&two.mount("8"));
    // Once for the manifest; then it rests.
    assert!(two.mirror.log().len() <= 3, "{}", two.mirror.log());
}

#[test]
fn a_mirror_with_other_bytes_than_the_registry_is_passed_over() {
    let two = Two::start();
    let layer = &two.image.layers[0];
    // Nothing can be made of its first byte; or nobody has seen anything yet when the digest turns out to be wrong.
    for (offset, arguments) in [(0, &[][..]), (layer.size / 2, &["--verify", "full"])] {
        two.mirror.faults().clear();
        two.mirror.faults().flip(&layer.digest, offset);
        two.registry.log().clear();
        let mount = two.mount_with(arguments);
        assert_right(&mount);
        assert_eq!(two.registry.log().bytes_of(&layer.digest), layer.size);
        assert!(mount.log().contains("anew from another host"), "{}", mount.log());
        assert_eq!(mount.status().layers[0].index, "complete");
    }
}

#[test]
fn a_range_that_a_mirror_gives_wrongly_is_read_from_the_registry() {
    let two = Two::start();
    let cache = tempfile::tempdir().unwrap();
    let mount = || {
        Mount::of(format!("{}/team/app:latest", two.registry.address()))
            .cache(cache.path())
            .with(["--hosts-dir", &two.hosts, "--cache-size", "64K"])
    };
    mount().with(["--index"]).start().unmount();
    let layer = &two.image.layers[0];
    let (start, _) = layer.compressed_range_of("c").unwrap();
    two.mirror.faults().flip(&layer.digest, start + 1_000_000);
    assert_right(&mount().start());
    assert!(two.registry.log().bytes_of(&layer.digest) > 0);
}

#[test]
fn a_pull_through_mirror_has_what_its_registry_has() {
    let docker = Docker::start();
    let storage = docker.dir.path().join("mirror");
    let proxy = format!("proxy: {{remoteurl: 'http://{}'}}", docker.registry.address());
    let mirror = DockerRegistry::configured(&storage, &proxy);
    let counted = Registry::in_front_of(mirror.address());
    let text = format!("[host.\"http://{}\"]", counted.address());
    let hosts = hosts(docker.dir.path(), docker.registry.address(), &text);
    let mount = Mount::of(docker.reference()).with(["--hosts-dir", &hosts]).start();
    assert_right(&mount);
    assert!(!counted.log().is_empty());
}

#[test]
fn a_proxy_is_asked_for_what_is_behind_it_and_learns_nothing_of_what_tls_hides() {
    let docker = with_password();
    let nginx = Nginx::in_front_of(docker.registry.address());
    let certificate = nginx.certificate().display().to_string();
    // Only the proxy knows the name: it is not resolved here.
    let mount = |proxy: &Proxy, no_proxy: &str| {
        Mount::of("registry.test/team/app:latest")
            .with(["--tls-ca", &certificate, "--timeout", "5", "--username", "user"])
            .env("PEELFS_PASSWORD", "pass word")
            .env("HTTPS_PROXY", proxy.url())
            .env("NO_PROXY", no_proxy)
            .try_start()
    };
    let proxy = || Proxy::knowing([("registry.test:443", nginx.address())]);
    let used = proxy();
    assert_right(&mount(&used, "other.test,127.0.0.0/8").unwrap_or_else(|failure| panic!("{failure}")));
    let asked = used.asked();
    assert!(!asked.is_empty());
    for line in asked {
        assert_eq!(line, "CONNECT registry.test:443 HTTP/1.1");
    }
    for secret in ["authorization", "dXNlcjpwYXNzIHdvcmQ=", "/v2/"] {
        assert!(!used.has_seen(secret), "{secret}");
    }

    let passed_by = proxy();
    let failure = mount(&passed_by, "registry.test").err().expect("nobody knows the name");
    assert!(failure.said.contains("cannot reach registry.test"), "{failure}");
    assert!(passed_by.asked().is_empty(), "{:?}", passed_by.asked());
}

#[test]
fn a_registry_without_tls_is_asked_through_its_proxy_and_one_on_this_machine_without() {
    let dir = tempfile::tempdir().unwrap();
    let layout = image(&dir.path().join("layout"));
    let registry = Registry::of([("team/app", layout.layout.clone())]);
    let hosts = hosts(dir.path(), "plain.test:5000", "server = \"http://plain.test:5000\"");
    let proxy = Proxy::knowing([("plain.test:5000", registry.address())]);
    let mount = |host: String| {
        Mount::of(format!("{host}/team/app:latest"))
            .with(["--hosts-dir", &hosts, "--timeout", "5"])
            .env("HTTP_PROXY", proxy.url())
            .env("HTTPS_PROXY", proxy.url())
            .start()
    };
    assert_right(&mount(registry.address().to_string()));
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
    assert_right(&mount("plain.test:5000".to_owned()));
    assert!(
        proxy
            .asked()
            .iter()
            .all(|line| line.starts_with("GET http://plain.test:5000/v2/")),
        "{:?}",
        proxy.asked()
    );
    assert!(!proxy.asked().is_empty());
}

#[test]
fn what_is_behind_a_proxy_must_not_send_us_to_private_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let layout = image(&dir.path().join("layout"));
    let registry = Registry::of([("team/app", layout.layout.clone())]);
    registry.redirects().lead(&[Listener::Elsewhere]);
    let hosts = hosts(dir.path(), "plain.test:5000", "server = \"http://plain.test:5000\"");
    let proxy = Proxy::knowing([("plain.test:5000", registry.address())]);
    let mount = |allowed: &[&str]| {
        Mount::of("plain.test:5000/team/app:latest")
            .with(["--hosts-dir", &hosts, "--timeout", "5"])
            .with(allowed.iter().copied())
            .env("HTTP_PROXY", proxy.url())
    };
    let refused = mount(&[])
        .try_start()
        .err()
        .expect("the configuration is elsewhere")
        .said;
    assert!(refused.contains("--allow-private-redirects"), "{refused}");
    assert_right(&mount(&["--allow-private-redirects"]).start());
}

#[test]
fn a_tag_within_its_time_costs_no_request_and_otherwise_one() {
    let dir = tempfile::tempdir().unwrap();
    let layout = image(&dir.path().join("layout"));
    let registry = Registry::of([("team/app", layout.layout.clone())]);
    let cache = dir.path().join("cache");
    let reference = format!("{}/team/app:latest", registry.address());
    let requests = |arguments: &[&str]| {
        registry.log().clear();
        let mount = Mount::of(&reference)
            .cache(&cache)
            .with(arguments.iter().copied())
            .start();
        assert_eq!(mount.read("a"), b"first\n");
        mount.unmount();
        registry.log().to_string()
    };
    let first = requests(&["--tag-ttl", "3600"]);
    assert_eq!(first.matches("/manifests/").count(), 1, "{first}");
    let again = requests(&["--tag-ttl", "3600"]);
    assert_eq!(again.matches("/manifests/").count(), 0, "{again}");
    let asked = requests(&[]);
    assert_eq!(
        (asked.matches("/manifests/").count(), asked.matches("HEAD").count()),
        (1, 1),
        "{asked}"
    );

    registry.faults().line(Line::Unplugged);
    let mount = Mount::of(&reference).cache(&cache).with(["--timeout", "2"]).start();
    assert!(mount.log().contains("is taken as it was last seen"), "{}", mount.log());
    assert_eq!(mount.read("a"), b"first\n");
    eventually("its daemon says so in its status", MINUTE, || {
        (mount.status().digest == layout.manifest.to_string()).then_some(())
    });
}
