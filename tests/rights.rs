//! Who may mount, enter and read, and what no option loosens.
//!
//! An ordinary user here is number 1000, in no group but his own, with a home of his own. He mounts through fusermount3.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::fixtures::Served;
use crate::support::*;
use tempfile::TempDir;

const USER: u32 = 1000;
const OTHER: u32 = 1001;

fn served() -> Served {
    Served::made(&ImageBuilder::of([Layer::of([
        Entry::dir("d"),
        Entry::file("d/all", "for all\n"),
        Entry::file("d/own", "for 1000\n").mode(0o600).owner(1000, 1000),
        Entry::file("d/shadow", "for root\n").mode(0o640).owner(0, 42),
        Entry::file("d/su", "#!/bin/sh\n").mode(0o4755),
        Entry::dir("locked").mode(0o700),
        Entry::file("locked/file", "behind a door\n"),
        Entry::char_device("null", 1, 3).mode(0o666),
    ])]))
}

/// Runs a program as the user with that number.
fn attempt_as(user: u32, home: &Path, program: &str, arguments: &[OsString]) -> Output {
    let number = user.to_string();
    let mut all: Vec<OsString> = ["--reuid", &number, "--regid", &number, "--clear-groups", "env", "-i"]
        .map(OsString::from)
        .into();
    let home = |name: &str, below: &str| OsString::from(format!("{name}={}{below}", home.display()));
    all.extend([
        "PATH=/usr/bin:/bin".into(),
        "LC_ALL=C".into(),
        home("HOME", ""),
        home("XDG_CACHE_HOME", "/cache"),
        home("XDG_RUNTIME_DIR", ""),
        "DOCKER_CONFIG=/nonexistent".into(),
        "REGISTRY_AUTH_FILE=/nonexistent/auth.json".into(),
        program.into(),
    ]);
    all.extend_from_slice(arguments);
    attempt("setpriv", &all)
}

/// Gives this thread, and what it starts, mounts of their own, and there a device that everybody may open, as udev makes
/// it: fusermount3 opens it as the user who asks. In some containers it is for root alone.
fn with_an_open_device() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("fuse");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    run("mount", &["--make-rprivate", "/"]);
    // Mounts of other tests came along, and their daemons would outlive the unmounting that those wait for.
    // Some may be gone by now, which is an error.
    attempt("umount", &["--all", "--lazy", "--types", "fuse,fuse.peelfs"]);
    run(
        "mknod",
        &[
            "-m".as_ref(),
            "666".as_ref(),
            device.as_os_str(),
            "c".as_ref(),
            "10".as_ref(),
            "229".as_ref(),
        ],
    );
    run("mount", &["--bind".as_ref(), device.as_os_str(), "/dev/fuse".as_ref()]);
    dir
}

/// The home of an ordinary user, a program that he can start, and what he has mounted.
struct Home {
    dir: TempDir,
    peelfs: PathBuf,
    _device: TempDir,
}

impl Home {
    fn new() -> Home {
        let device = with_an_open_device();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // Where it was built may be out of his reach.
        let peelfs = dir.path().join("peelfs");
        fs::copy(env!("CARGO_BIN_EXE_peelfs"), &peelfs).unwrap();
        let home = Home {
            dir,
            peelfs,
            _device: device,
        };
        for path in [home.path(), home.mountpoint()] {
            fs::create_dir_all(&path).unwrap();
            chown(&path, Some(USER), Some(USER)).unwrap();
        }
        home
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn mountpoint(&self) -> PathBuf {
        self.path().join("mnt")
    }

    fn peelfs(&self, arguments: &[&str]) -> Output {
        let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
        attempt_as(USER, &self.path(), self.peelfs.to_str().unwrap(), &arguments)
    }

    #[track_caller]
    fn mount(&self, served: &Served, options: &[&str]) {
        let (reference, mountpoint) = (served.reference(), self.mountpoint());
        let what = [&*reference, mountpoint.to_str().unwrap()];
        let output = self.peelfs(&[&["mount"], options, &what].concat());
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Its daemon ends with it.
        if is_mounted(&self.mountpoint()) {
            attempt("umount", &["-f".as_ref(), "-l".as_ref(), self.mountpoint().as_os_str()]);
        }
        // A daemon that is just ending has it open.
        attempt("umount", &["-l", "/dev/fuse"]);
    }
}

/// What `cat` says as the user with that number: the content, or the last words of the error.
fn cat_as(user: u32, path: &Path) -> String {
    let output = attempt_as(user, Path::new("/nonexistent"), "cat", &[path.into()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => String::from_utf8(output.stdout).unwrap(),
        false => said.trim().rsplit(": ").next().unwrap_or_default().to_string(),
    }
}

/// Whether this thread has a mount at `mountpoint`.
fn is_mounted(mountpoint: &Path) -> bool {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == mountpoint.to_str())
}

/// The options of a mount, as the kernel knows them.
#[track_caller]
fn options_of(mountpoint: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let path = mountpoint.to_str().unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(path));
    let fields: Vec<_> = line.expect("a mount").split(' ').collect();
    fields[5]
        .split(',')
        .chain(fields.last().unwrap().split(','))
        .map(str::to_string)
        .collect()
}

fn has(options: &[String], option: &str) -> bool {
    options.iter().any(|other| other == option)
}

const DENIED: &str = "Permission denied";

#[test]
fn an_ordinary_user_mounts_reads_asks_and_unmounts() {
    let served = served();
    let home = Home::new();
    home.mount(&served, &["--index"]);
    let mountpoint = home.mountpoint();
    assert_eq!(cat_as(USER, &mountpoint.join("d/all")), "for all\n");
    // Nobody checks the modes of the image's files for him: it is he who mounted it.
    assert_eq!(cat_as(USER, &mountpoint.join("d/shadow")), "for root\n");
    assert_eq!(cat_as(USER, &mountpoint.join("locked/file")), "behind a door\n");
    // Nobody else may even enter, root included.
    for other in [OTHER, 0] {
        assert_eq!(cat_as(other, &mountpoint.join("d/all")), DENIED, "user {other}");
    }
    let output = attempt_as(
        USER,
        &home.path(),
        "stat",
        &["--format=%a %u %g".into(), mountpoint.join("d/shadow").into()],
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "640 0 42\n");

    let path = mountpoint.to_str().unwrap();
    let status = home.peelfs(&["status", path, "--json"]);
    assert!(status.status.success(), "{status:?}");
    let cache = home.path().join("cache/peelfs");
    assert_eq!(fs::metadata(&cache).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&cache).unwrap().uid(), USER);
    assert!(
        fs::read_dir(cache.join("index")).unwrap().count() >= 1,
        "no index was kept"
    );

    let output = home.peelfs(&["umount", path]);
    assert!(output.status.success(), "{output:?}");
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn an_ordinary_user_loosens_nothing() {
    let served = served();
    for options in [&[][..], &["-o", "suid,dev"], &["-o", "exec,nosuid,suid"]] {
        let home = Home::new();
        let mountpoint = home.mountpoint();
        let (reference, path) = (served.reference(), mountpoint.to_str().unwrap());
        let output = home.peelfs(&[&["mount"], options, &[&*reference, path]].concat());
        // It may be refused; what must not be is a mount that has it.
        if output.status.success() {
            let found = options_of(&mountpoint);
            assert!(
                ["ro", "nosuid", "nodev"].iter().all(|option| has(&found, option)),
                "{options:?}: {found:?}"
            );
        } else {
            assert!(!options.is_empty() && !is_mounted(&mountpoint), "{output:?}");
        }
    }
}

#[test]
fn only_root_loosens_suid_and_dev_and_nobody_ro() {
    let served = served();
    let options = |arguments: &[&str]| {
        let mount = Mount::of(served.reference()).with(arguments.iter().copied()).start();
        options_of(mount.root())
    };
    for strict in [&[][..], &["-o", "allow_other"]] {
        let found = options(strict);
        assert!(
            ["ro", "nosuid", "nodev"].iter().all(|option| has(&found, option)),
            "{found:?}"
        );
    }
    let loose = options(&["-o", "suid,dev"]);
    assert!(
        has(&loose, "ro") && !has(&loose, "nosuid") && !has(&loose, "nodev"),
        "{loose:?}"
    );
    let failure = Mount::of(served.reference())
        .with(["-o", "rw"])
        .try_start()
        .err()
        .expect("a refusal");
    assert!(failure.said.contains("'rw'"), "{failure}");
    let mount = Mount::of(served.reference()).start();
    // What the superblock was made with stays, whatever the flags of the mount become.
    attempt(
        "mount",
        &["-o".as_ref(), "remount,rw".as_ref(), mount.root().as_os_str()],
    );
    let output = attempt("touch", &[mount.path("d/new")]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Read-only file system"), "{said}");
}

#[test]
fn without_default_permissions_whoever_may_enter_reads_all_and_with_it_modes_count() {
    let served = served();
    let mount = |options: &str| Mount::of(served.reference()).with(["-o", options]).start();
    let readable = |mount: &Mount, user: u32| {
        // Of tests that make a directory of their own, nobody else may enter that.
        fs::set_permissions(mount.root().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        ["d/all", "d/own", "d/shadow", "locked/file"].map(|path| cat_as(user, &mount.path(path)))
    };
    let (all, own, root) = ("for all\n", "for 1000\n", "for root\n");
    let open = mount("allow_other");
    for user in [0, USER, OTHER] {
        assert_eq!(
            readable(&open, user),
            [all, own, root, "behind a door\n"],
            "user {user}"
        );
    }
    let checked = mount("allow_other,default_permissions");
    assert_eq!(readable(&checked, 0), [all, own, root, "behind a door\n"]);
    assert_eq!(readable(&checked, USER), [all, own, DENIED, DENIED]);
    assert_eq!(readable(&checked, OTHER), [all, DENIED, DENIED, DENIED]);
    let closed = mount("default_permissions");
    assert_eq!(readable(&closed, USER), [DENIED; 4]);
    assert_eq!(readable(&closed, 0), [all, own, root, "behind a door\n"]);
}

#[test]
fn the_directory_of_another_user_is_not_needed_and_not_touched() {
    let served = served();
    let home = Home::new();
    let theirs = home.dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    chown(&theirs, Some(OTHER), Some(OTHER)).unwrap();
    for (mode, below) in [(0o700, ""), (0o755, ""), (0o755, "/missing")] {
        fs::set_permissions(&theirs, fs::Permissions::from_mode(mode)).unwrap();
        let cache = format!("{}{below}", theirs.display());
        home.mount(&served, &["--cache-dir", &cache]);
        let mountpoint = home.mountpoint();
        for _ in 0..2 {
            assert_eq!(cat_as(USER, &mountpoint.join("d/all")), "for all\n", "{mode:o} {cache}");
        }
        assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
        assert_eq!(fs::metadata(&theirs).unwrap().mode() & 0o777, mode);
        let output = home.peelfs(&["umount", mountpoint.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn root_of_a_user_namespace_mounts_and_reads() {
    let served = served();
    let dir = tempfile::tempdir().unwrap();
    let script = "set -e
        mkdir \"$1/mnt\"
        \"$0\" mount --cache-dir \"$1/cache\" \"$2\" \"$1/mnt\"
        trap '\"$0\" umount \"$1/mnt\"' EXIT
        cat \"$1/mnt/d/all\" \"$1/mnt/d/own\"
        stat --format='%a %s' \"$1/mnt/d/su\"
        grep \" $1/mnt \" /proc/self/mountinfo | cut -d' ' -f6";
    let arguments = [
        "-Urm",
        "bash",
        "-c",
        script,
        env!("CARGO_BIN_EXE_peelfs"),
        dir.path().to_str().unwrap(),
    ];
    let said = run("unshare", &[&arguments[..], &[&served.reference()]].concat());
    let said = String::from_utf8(said).unwrap();
    assert_eq!(said, "for all\nfor 1000\n4755 10\nro,nosuid,nodev,relatime\n");
}
