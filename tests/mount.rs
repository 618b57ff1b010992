//! What a user does with a mount, with the programs that users have.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use crate::support::fixtures::Served;
use crate::support::mount::{is_mounted, unmount_by_force};
use crate::support::*;
use nix::sys::signal::Signal;

const MINUTE: Duration = Duration::from_secs(60);

fn passwd(users: &[&str]) -> Entry {
    Entry::file(
        "etc/passwd",
        users
            .iter()
            .map(|user| format!("{user}:x:0:0::/:/bin/sh\n"))
            .collect::<String>(),
    )
}

/// Three layers: a base, one more user, one more user and a file less.
fn small() -> ImageBuilder {
    ImageBuilder::of([
        Layer::of([
            Entry::dir("etc"),
            passwd(&["root"]),
            Entry::file("etc/motd", "hello\n"),
            Entry::dir("empty"),
        ]),
        Layer::of([Entry::dir("etc"), passwd(&["root", "one"])]),
        Layer::of([
            Entry::dir("etc"),
            passwd(&["root", "one", "two"]),
            Entry::whiteout("etc/motd"),
        ]),
    ])
}

/// Runs `peelfs` with these arguments, which must fail, and returns what it said.
#[track_caller]
fn refused(arguments: &[&str]) -> String {
    let cache = tempfile::tempdir().expect("a directory");
    let output = peelfs()
        .args(arguments)
        .env("PEELFS_CACHE_DIR", cache.path())
        .output()
        .expect("peelfs");
    if output.status.success() {
        // It should not have; what it may have mounted must not outlive the test.
        let _ = peelfs().arg("umount").args(arguments.last()).status();
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "peelfs {} should fail", arguments.join(" "));
    assert!(!said.trim().is_empty() && !said.contains("panicked"), "{said}");
    said
}

fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_programs_of_users_work() {
    let served = Served::debian();
    let mount = Mount::of(served.reference()).start();
    let path = |path: &str| mount.path(path).into_os_string().into_string().unwrap();
    let copies = tempfile::tempdir().unwrap();

    let listed = String::from_utf8(run("ls", &["-l", &path("")])).unwrap();
    assert!(
        listed.contains("bin -> usr/bin") && listed.contains("layers"),
        "{listed}"
    );
    assert!(
        String::from_utf8(run("cat", &[&path("etc/passwd")]))
            .unwrap()
            .contains("/home/reader")
    );

    let diff = attempt("diff", &[path("layers/0/etc/passwd"), path("layers/2/etc/passwd")]);
    let said = String::from_utf8_lossy(&diff.stdout).into_owned();
    assert_eq!(
        diff.status.code(),
        Some(1),
        "{said}{}",
        String::from_utf8_lossy(&diff.stderr)
    );
    assert!(said.contains("> reader:") && !said.contains("< root:"), "{said}");

    let found = String::from_utf8(run("find", &[path("etc"), "-name".into(), "os-release".into()])).unwrap();
    assert_eq!(found.trim(), path("etc/os-release"));

    let archive = copies.path().join("etc.tar");
    run(
        "tar",
        &[
            "-C",
            &path(""),
            "--numeric-owner",
            "-cf",
            archive.to_str().unwrap(),
            "etc",
            "srv",
            "usr/share",
        ],
    );
    assert!(fs::metadata(&archive).unwrap().len() > 10 << 20);

    let copy = copies.path().join("srv");
    run("cp", &["-a", &path("srv"), copy.to_str().unwrap()]);
    Tree::of(&copy).assert_is(&Tree::of(path("srv")));

    let matched = String::from_utf8(run("grep", &["-r", "hello", &path("srv")])).unwrap();
    assert_eq!(matched.lines().count(), 2, "{matched}");

    let inside = String::from_utf8(run("chroot", &[&path(""), "/bin/ls", "/srv/app"])).unwrap();
    assert!(inside.contains("app.conf") && inside.contains("odd name"), "{inside}");
    mount.unmount();
}

#[test]
fn the_mount_has_layers_beside_the_merged_root() {
    let served = Served::made(&small());
    let mount = Mount::of(served.reference()).start();
    assert_eq!(names(mount.root()), ["empty", "etc", "layers"]);
    assert_eq!(
        names(mount.path("layers")),
        ["0", "1", "2", "config.json", "manifest.json"]
    );
    assert_eq!(names(mount.path("etc")), ["passwd"]);
    assert_eq!(names(mount.path("layers/0/etc")), ["motd", "passwd"]);
    assert_eq!(names(mount.path("layers/2/etc")), [".wh.motd", "passwd"]);
    assert!(mount.read("etc/passwd") == mount.read("layers/2/etc/passwd"));
    assert!(mount.read("layers/0/etc/passwd") != mount.read("layers/1/etc/passwd"));
    let manifest = mount.read("layers/manifest.json");
    assert!(served.image.manifest.matches(&manifest));
    let config: serde_json::Value = serde_json::from_slice(&mount.read("layers/config.json")).unwrap();
    assert_eq!(
        config["rootfs"]["diff_ids"][1],
        served.image.layers[1].diff_id.to_string()
    );
}

#[test]
fn the_layers_directory_has_another_name_or_none() {
    let served = Served::made(&small());
    let mount = Mount::of(served.reference())
        .with(["--layers-dir", ".by-layer"])
        .start();
    assert_eq!(names(mount.root()), [".by-layer", "empty", "etc"]);
    assert_eq!(names(mount.path(".by-layer/1/etc")), ["passwd"]);
    let mount = Mount::of(served.reference()).with(["--no-layers"]).start();
    assert_eq!(names(mount.root()), ["empty", "etc"]);
}

#[test]
fn later_entries_of_a_name_win_however_many_there_are() {
    let round = |round: usize| {
        let file = move |number| Entry::file(format!("d/{number}"), format!("{round}"));
        std::iter::once(Entry::dir("d")).chain((0..3000).map(file))
    };
    let served = Served::made(&ImageBuilder::of([Layer::of(
        std::iter::once(Entry::file("early", "old"))
            .chain([Entry::file("filler", Content::Noise { seed: 1, size: 1 << 20 })])
            .chain((0..4).flat_map(round))
            .chain([Entry::file("early", "new")]),
    )]));
    let mount = Mount::of(served.reference()).start();
    // Seen before the scan comes to what replaces it.
    assert_eq!(mount.read("early"), b"old");
    assert_eq!(names(mount.path("d")).len(), 3000);
    assert_eq!(mount.read("d/2999"), b"3");
    eventually("the name is looked up again", MINUTE, || {
        (mount.read("early") == b"new").then_some(())
    });
    let threads = fs::read_dir(format!("/proc/{}/task", mount.pid())).unwrap().count();
    assert!(threads < 64, "{threads} threads");
}

#[test]
fn a_directory_that_is_replaced_while_it_is_looked_into_is_looked_for_anew() {
    let round = |_| [Entry::file("d", ""), Entry::file("d/x", ""), Entry::dir("d")];
    let served = Served::made(&ImageBuilder::of([Layer::of(
        (0..4000).flat_map(round).chain([Entry::file("d/x", "last")]),
    )]));
    let mount = Mount::of(served.reference()).start();
    // What it is at that moment may be a file; but whenever it is a directory, this is in it.
    if let Err(error) = fs::read(mount.path("d/x")) {
        assert_ne!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
    run("ls", &[mount.path("layers/0")]);
    eventually("the last is seen", MINUTE, || {
        // Until the kernel has been told, it may hold that `d` is a file.
        (fs::read(mount.path("d/x")).ok()? == b"last").then_some(())
    });
}

#[test]
fn an_own_directory_named_layers_is_seen_beside_the_numbers() {
    let served = Served::made(&ImageBuilder::of([Layer::of([
        Entry::dir("layers"),
        Entry::dir("layers/0"),
        Entry::file("layers/0/hidden", "by the number"),
        Entry::dir("layers/own"),
        Entry::file("layers/own/file", "x"),
    ])]));
    let mount = Mount::of(served.reference()).with(["--index"]).start();
    assert_eq!(
        names(mount.path("layers")),
        ["0", "config.json", "manifest.json", "own"]
    );
    assert_eq!(mount.read("layers/own/file"), b"x");
    assert_eq!(names(mount.path("layers/0")), ["layers"]);
    run("ls", &["-lR".as_ref(), mount.root().as_os_str()]);
    assert!(mount.log().contains("layers/0"), "{}", mount.log());
}

#[test]
fn facts_of_the_daemon_are_read_by_name_and_never_listed() {
    let served = Served::made(&small());
    let mount = Mount::of(served.reference()).start();
    let path = mount.path("etc/passwd");
    assert_eq!(xattr::get(&path, "user.peelfs.layer").unwrap().unwrap(), b"2");
    let digest = served.image.layers[2].digest.to_string();
    assert_eq!(
        xattr::get(&path, "user.peelfs.digest").unwrap().unwrap(),
        digest.as_bytes()
    );
    assert_eq!(xattr::list(&path).unwrap().count(), 0);
}

#[test]
fn attributes_that_no_file_has_are_not_supported_by_a_mount_that_knows_all_layers() {
    const LABEL: &str = "security.selinux";
    const ACCESS: &str = "system.posix_acl_access";
    const DEFAULT: &str = "system.posix_acl_default";
    const LIST: &[u8] =
        b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    let plain = || Layer::of([Entry::dir("d"), Entry::file("f", "1").xattr("user.note", "x")]);
    let listed = || Layer::of([Entry::dir("d").xattr(DEFAULT, LIST)]);
    let labelled = || Layer::of([Entry::file("h", "3").xattr(LABEL, "system_u:object_r:etc_t:s0")]);
    for (layers, supported) in [
        (vec![plain()], &[][..]),
        (vec![plain(), listed(), plain()], &[ACCESS, DEFAULT]),
        (vec![labelled(), plain()], &[LABEL]),
    ] {
        let served = Served::made(&ImageBuilder::of(layers));
        let cache = tempfile::tempdir().unwrap();
        for known in [false, true] {
            // What a mount answers in the beginning it answers to its end: the first comes to know all layers as well.
            let arguments = ["--index", "-o", "default_permissions"];
            let mount = Mount::of(served.reference())
                .cache(cache.path())
                .with(arguments.into_iter().filter(|_| known))
                .start();
            run("ls", &["-lR".as_ref(), mount.root().as_os_str()]);
            eventually("all layers are known", MINUTE, || {
                mount
                    .status()
                    .layers
                    .iter()
                    .all(|layer| layer.index == "complete")
                    .then_some(())
            });
            for name in [LABEL, ACCESS, DEFAULT] {
                for path in ["f", "d", "layers"] {
                    let found = xattr::get(mount.path(path), name).map_err(|error| error.raw_os_error());
                    let expected = match !known || supported.contains(&name) {
                        true => Ok(None),
                        false => Err(Some(nix::libc::EOPNOTSUPP)),
                    };
                    let has = path == "d" && name == DEFAULT && supported.contains(&name);
                    assert!(
                        found == expected || has && matches!(found, Ok(Some(_))),
                        "{name} of {path}: {found:?}"
                    );
                }
            }
            assert_eq!(xattr::get(mount.path("f"), "user.missing").unwrap(), None);
        }
    }
}

#[test]
fn what_is_decoded_of_files_that_were_listed_later_is_given_to_the_kernel_as_well() {
    let dir = |name: &'static str| {
        let file = move |i| Entry::file(format!("{name}/{i}"), Content::noise(i, 5000));
        std::iter::once(Entry::dir(name)).chain((0..20).map(file))
    };
    // All of it is in one span, which is decoded when nobody has seen `second` yet.
    let served = Served::made(&ImageBuilder::of([Layer::of(dir("first").chain(dir("second")))]));
    let mount = Mount::of(served.reference()).with(["--index"]).start();
    let cached = |dir: &str| {
        let files = (0..20).map(|i| mount.path(dir).join(i.to_string()));
        let mut arguments: Vec<_> = ["--raw", "--noheadings", "--bytes", "--output", "RES"]
            .map(Into::into)
            .into();
        arguments.extend(files);
        let told = String::from_utf8(run("fincore", &arguments)).unwrap();
        told.lines().filter(|bytes| *bytes == "8192").count()
    };
    run("ls", &["-l".as_ref(), mount.path("first").as_os_str()]);
    mount.read("first/7");
    eventually("the kernel has all of the first", MINUTE, || {
        (cached("first") == 20).then_some(())
    });
    run("ls", &["-l".as_ref(), mount.path("second").as_os_str()]);
    assert_eq!(cached("second"), 0);
    mount.read("second/7");
    eventually("the kernel has all of the second", MINUTE, || {
        (cached("second") == 20).then_some(())
    });
    let cost = served.layer_bytes();
    assert_eq!(cost, served.image.layers[0].size);
}

#[test]
fn names_of_one_file_are_one_inode_in_every_view() {
    let served = Served::made(&ImageBuilder::of([
        Layer::of([Entry::file("a", "content"), Entry::hardlink("b", "a")]),
        Layer::of([Entry::hardlink("c", "a"), Entry::whiteout("b")]),
    ]));
    let mount = Mount::of(served.reference()).start();
    let meta = |path: &str| fs::symlink_metadata(mount.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(names(mount.root()), ["a", "c", "layers"]);
    assert_eq!(names(mount.path("layers/1")), [".wh.b", "c"]);
    for path in ["c", "layers/0/a", "layers/0/b", "layers/1/c"] {
        assert_eq!(meta(path).ino(), meta("a").ino(), "{path}");
    }
    assert_eq!(meta("a").nlink(), 3);
    assert_eq!(mount.read("layers/1/c"), b"content");
}

#[test]
fn every_write_is_refused_as_read_only() {
    let served = Served::made(&small());
    let mount = Mount::of(served.reference()).start();
    let (file, new) = (mount.path("etc/passwd"), mount.path("etc/new"));
    let attempts: [(&str, io::Result<()>); 10] = [
        ("open", File::options().write(true).open(&file).map(drop)),
        ("create", File::create(&new).map(drop)),
        ("mkdir", fs::create_dir(&new)),
        ("unlink", fs::remove_file(&file)),
        ("rmdir", fs::remove_dir(mount.path("empty"))),
        ("rename", fs::rename(&file, &new)),
        ("link", fs::hard_link(&file, &new)),
        ("symlink", symlink("x", &new)),
        ("chmod", fs::set_permissions(&file, fs::Permissions::from_mode(0o600))),
        ("setxattr", xattr::set(&file, "user.x", b"1")),
    ];
    for (what, result) in attempts {
        assert_eq!(result.expect_err(what).raw_os_error(), Some(nix::libc::EROFS), "{what}");
    }
}

#[test]
fn mount_returns_when_the_mount_answers_and_leaves_a_daemon_behind() {
    struct Cleared<'a>(&'a Path);
    impl Drop for Cleared<'_> {
        fn drop(&mut self) {
            unmount_by_force(self.0);
        }
    }
    let served = Served::made(&small());
    let dir = tempfile::tempdir().unwrap();
    let (mountpoint, output) = (dir.path().join("mnt"), dir.path().join("output"));
    fs::create_dir(&mountpoint).unwrap();
    let _cleared = Cleared(&mountpoint);
    let file = File::create(&output).unwrap();
    let status = peelfs()
        .args(["mount", "--cache-dir"])
        .arg(dir.path().join("cache"))
        .arg(served.reference())
        .arg(&mountpoint)
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .status()
        .unwrap();
    assert!(status.success(), "{}", fs::read_to_string(&output).unwrap());
    assert_eq!(names(mountpoint.join("etc")), ["passwd"]);

    let status = peelfs().args(["status", "--json"]).arg(&mountpoint).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let pid = status["mounts"][0]["pid"].as_i64().unwrap();
    for stream in 0..3 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap_or_default();
        assert_ne!(target, output, "the daemon holds its caller's stream {stream}");
    }
    run("fusermount3", &["-u", mountpoint.to_str().unwrap()]);
    assert!(!is_mounted(&mountpoint));
    eventually("the daemon ends after its mount", MINUTE, || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
}

#[test]
fn signals_and_umount_end_the_mount_cleanly() {
    let served = Served::made(&small());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut mount = Mount::of(served.reference()).start();
        mount.read("etc/passwd");
        mount.signal(signal);
        assert!(mount.ended().success(), "{signal}: {}", mount.log());
        assert!(!mount.is_mounted());
    }
    let mount = Mount::of(served.reference()).start();
    let mountpoint = mount.root().to_path_buf();
    mount.unmount();
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn a_stale_mountpoint_gets_a_sentence_and_can_be_unmounted() {
    let served = Served::made(&small());
    let mut mount = Mount::of(served.reference()).start();
    let mountpoint = mount.root().to_path_buf();
    mount.signal(Signal::SIGKILL);
    mount.ended();
    // The kernel still knows the attributes of the root, but nothing new can be had.
    assert_eq!(
        fs::metadata(mountpoint.join("srv")).unwrap_err().raw_os_error(),
        Some(nix::libc::ENOTCONN)
    );
    let said = refused(&["mount", &served.reference(), mountpoint.to_str().unwrap()]);
    assert!(
        said.contains("peelfs umount") || said.contains("fusermount3 -u"),
        "{said}"
    );
    run(
        env!("CARGO_BIN_EXE_peelfs"),
        &["umount".as_ref(), mountpoint.as_os_str()],
    );
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn a_mount_whose_daemon_does_not_answer_ends_by_force() {
    let served = Served::made(&small());
    let mut mount = Mount::of(served.reference()).start();
    // Whoever inherits an open file closes it and so asks the daemon, unless that has said before that it need not know.
    mount.read("layers/0/etc/motd");
    let opened = File::open(mount.root().join("etc/passwd")).expect("a file");
    mount.signal(Signal::SIGSTOP);
    mount.unmount_by_force();
    // It is in use, and nobody has to let go of it first.
    assert_eq!(
        io::read_to_string(opened).unwrap_err().raw_os_error(),
        Some(nix::libc::ENOTCONN)
    );
    mount.signal(Signal::SIGCONT);
    mount.ended();
}

#[test]
fn a_mount_has_a_status_by_a_symlink_as_well() {
    let served = Served::made(&small());
    let mount = Mount::of(served.reference()).start();
    let dir = tempfile::tempdir().expect("a directory");
    let link = dir.path().join("link");
    symlink(mount.root(), &link).expect("a symlink");
    let output = peelfs().arg("status").arg(&link).output().expect("peelfs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    mount.unmount();
}

#[test]
fn what_cannot_be_mounted_is_said_in_a_sentence() {
    let served = Served::made(&small().indexed());
    let dir = tempfile::tempdir().unwrap();
    let mountpoint = dir.path().to_str().unwrap();
    let reference = served.reference();
    let missing = reference.replace(":latest", ":missing");

    let said = refused(&["mount", &missing, mountpoint]);
    assert!(said.contains("missing"), "{said}");
    let said = refused(&["mount", "Not A Reference", mountpoint]);
    assert!(said.contains("Not A Reference"), "{said}");
    let nowhere = dir.path().join("nowhere");
    let said = refused(&["mount", &reference, nowhere.to_str().unwrap()]);
    assert!(said.contains("nowhere"), "{said}");
    let said = refused(&["mount", "--platform", "linux/s390x", &reference, mountpoint]);
    assert!(
        said.contains("plan9/mips") && said.contains(&format!("linux/{}", image::architecture())),
        "{said}"
    );
    let said = refused(&["umount", mountpoint]);
    assert!(said.contains(mountpoint), "{said}");
    let said = refused(&["status", mountpoint]);
    assert!(said.contains("not a peelfs mount"), "{said}");
    served.registry.faults().line(Line::Unplugged);
    let said = refused(&["mount", "--timeout", "2", &reference, mountpoint]);
    assert!(said.contains(&served.registry.address().to_string()), "{said}");
    assert!(!is_mounted(dir.path()));
}

#[test]
fn what_mounting_lacks_is_said_with_what_to_do() {
    let served = Served::made(&small());
    let dir = tempfile::tempdir().unwrap();
    let without_device = "mount -t tmpfs none /dev && : >/dev/null && exec \"$@\"";
    let in_namespace = [
        "unshare",
        "--mount",
        "--propagation=private",
        "sh",
        "-c",
        without_device,
        "sh",
    ];
    let not_permitted = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
    for (wrapper, helper, expected) in [
        (&in_namespace[..], None, "there is no /dev/fuse"),
        (&not_permitted, Some("/nonexistent"), "install the package fuse3"),
        (&not_permitted, None, "--cap-add SYS_ADMIN"),
    ] {
        // Should it mount, it ends nevertheless.
        let mut command = std::process::Command::new("timeout");
        command
            .arg("60")
            .args(wrapper)
            .args([env!("CARGO_BIN_EXE_peelfs"), "mount", "--foreground", "--cache-dir"])
            .arg(dir.path().join("cache"))
            .arg(served.reference());
        fs::create_dir_all(dir.path().join("mnt")).unwrap();
        command
            .arg(dir.path().join("mnt"))
            .envs(helper.map(|path| ("FUSERMOUNT_PATH", path)));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(expected),
            "{expected}: {said}"
        );
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn what_is_not_a_peelfs_mount_is_not_unmounted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    run("mount", &["-t", "tmpfs", "none", path]);
    let said = refused(&["umount", path]);
    let there = is_mounted(dir.path());
    run("umount", &[path]);
    assert!(there && said.contains("no peelfs image"), "{said}");
}

#[test]
fn options_that_could_not_hold_what_they_promise_are_refused() {
    let served = Served::made(&small());
    let dir = tempfile::tempdir().unwrap();
    for (option, why) in [
        ("allow_root", "allow_root"),
        ("auto_unmount", "allow_other"),
        ("rw", "rw"),
    ] {
        let said = refused(&["mount", "-o", option, &served.reference(), dir.path().to_str().unwrap()]);
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_cache_inside_of_the_mountpoint_is_refused() {
    let served = Served::made(&ImageBuilder::of([Layer::of([Entry::file("a", "x")])]));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let cache = format!("{path}/cache");
    let output = attempt(
        env!("CARGO_BIN_EXE_peelfs"),
        &["mount", "--cache-dir", &cache, &served.reference(), path],
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("is inside of the mountpoint"), "{said}");
    assert_eq!(fs::read_dir(path).unwrap().count(), 0, "something was made there");
    assert!(served.registry.log().is_empty(), "{}", served.registry.log());
}

#[test]
fn usage_errors_exit_with_2() {
    for arguments in [
        &["mount"][..],
        &["mount", "--no-such-option", "a", "b"],
        &["no-such-command"],
    ] {
        assert_eq!(
            peelfs().args(arguments).output().unwrap().status.code(),
            Some(2),
            "{arguments:?}"
        );
    }
}

#[test]
fn an_index_and_docker_media_types_mount_too() {
    for image in [small().indexed(), small().docker(), small().docker().indexed()] {
        let served = Served::made(&image);
        let mount = Mount::of(served.reference()).start();
        assert_eq!(names(mount.path("etc")), ["passwd"]);
        assert_eq!(mount.status().digest, served.image.manifest.to_string());
        let by_digest = served
            .reference()
            .replace(":latest", &format!("@{}", served.image.manifest));
        assert_eq!(names(Mount::of(by_digest).start().path("etc")), ["passwd"]);
    }
}

#[test]
fn layouts_and_archives_mount_without_a_registry() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    small().write(&layout, "x").unwrap();
    let archive = dir.path().join("saved.tar");
    let (source, target) = (
        format!("oci:{}:x", layout.display()),
        format!("docker-archive:{}", archive.display()),
    );
    run("skopeo", &["copy", "-q", &source, &format!("{target}:some/name:x")]);
    let expected = b"root:x:0:0::/:/bin/sh\none:x:0:0::/:/bin/sh\ntwo:x:0:0::/:/bin/sh\n";
    for reference in [source, format!("oci:{}", layout.display()), target] {
        let mount = Mount::of(&reference).start();
        assert_eq!(mount.read("etc/passwd"), expected, "{reference}");
        assert_eq!(names(mount.path("etc")), ["passwd"], "{reference}");
    }
}
