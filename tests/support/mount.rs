//! A mount that is gone when the test is over, however it ends.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tempfile::TempDir;

use super::{attempt, eventually};

/// How long a mount may take to answer; far more than it should.
const START: Duration = Duration::from_secs(240);

/// The command under test, out of reach of the credentials of whoever runs the tests.
pub fn peelfs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peelfs"));
    command
        .env("DOCKER_CONFIG", "/nonexistent")
        .env("REGISTRY_AUTH_FILE", "/nonexistent/auth.json");
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(proxy).env_remove(proxy.to_lowercase());
    }
    command
        .env_remove("PEELFS_LOG")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
}

/// A mount to be.
pub struct MountBuilder {
    reference: String,
    cache: Option<PathBuf>,
    arguments: Vec<String>,
    environment: Vec<(String, OsString)>,
}

impl MountBuilder {
    /// With this cache directory, which outlives the mount, in place of one of its own.
    pub fn cache(mut self, dir: &Path) -> MountBuilder {
        self.cache = Some(dir.to_path_buf());
        self
    }

    /// With these arguments to `peelfs mount` too.
    pub fn with<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> MountBuilder {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With this variable in the daemon's environment.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> MountBuilder {
        self.environment.push((name.to_string(), value.into()));
        self
    }

    /// Mounts, and returns when the mount answers.
    #[track_caller]
    pub fn start(self) -> Mount {
        let reference = self.reference.clone();
        self.try_start()
            .unwrap_or_else(|failure| panic!("peelfs mount {reference}: {failure}"))
    }

    /// Mounts, or tells how that failed.
    pub fn try_start(self) -> Result<Mount, Failure> {
        let dir = tempfile::tempdir().expect("a directory");
        let mountpoint = dir.path().join("mnt");
        fs::create_dir(&mountpoint).expect("a mountpoint");
        let cache = self.cache.unwrap_or_else(|| dir.path().join("cache"));
        let log = dir.path().join("log");
        let mut child = peelfs()
            .args(["mount", "--foreground", "--cache-dir"])
            .arg(&cache)
            .args(&self.arguments)
            .arg(&self.reference)
            .arg(&mountpoint)
            .env("PEELFS_LOG", "info")
            .envs(self.environment)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .expect("peelfs");
        let said = lines(&mut child);
        let mut mount = Mount {
            child,
            mountpoint,
            log,
            _dir: dir,
        };
        let failed = eventually("the mount answers, or its daemon ends", START, || {
            if said.try_iter().any(|line| line.starts_with("peelfs: mounted")) {
                return Some(None);
            }
            mount.child.try_wait().expect("a child").map(Some)
        });
        match failed {
            None => Ok(mount),
            Some(status) => Err(Failure {
                status,
                said: mount.log(),
            }),
        }
    }
}

/// The lines of a child's standard output, as they come.
pub(super) fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (tell, said) = mpsc::channel();
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    // It ends with the child; nobody needs to hear it afterwards, but the pipe must not fill.
    std::thread::spawn(move || {
        output
            .lines()
            .map_while(Result::ok)
            .for_each(|line| drop(tell.send(line)))
    });
    said
}

/// A mount that did not come to be.
#[derive(Debug)]
pub struct Failure {
    /// How the command ended.
    pub status: ExitStatus,
    /// What it said on standard error.
    pub said: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.status, self.said)
    }
}

/// A mounted image and its daemon.
pub struct Mount {
    child: Child,
    mountpoint: PathBuf,
    log: PathBuf,
    _dir: TempDir,
}

impl Mount {
    /// A mount of `reference`, with a cache of its own that nobody used before.
    pub fn of(reference: impl Into<String>) -> MountBuilder {
        MountBuilder {
            reference: reference.into(),
            cache: None,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The mountpoint.
    pub fn root(&self) -> &Path {
        &self.mountpoint
    }

    /// A path below the mountpoint; `""` is the mountpoint itself.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        if path.as_ref().as_os_str().is_empty() {
            self.mountpoint.clone()
        } else {
            self.mountpoint.join(path)
        }
    }

    /// The content of a file.
    #[track_caller]
    pub fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()))
    }

    /// The content of a file, read by another process, so that a mount that hangs does not hang the test.
    pub fn cat(&self, path: &str) -> Output {
        attempt("cat", &[self.path(path)])
    }

    /// What the daemon has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The daemon's process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// What `peelfs status --json` says of this mount.
    #[track_caller]
    pub fn status(&self) -> Status {
        let output = peelfs()
            .arg("status")
            .arg(&self.mountpoint)
            .arg("--json")
            .output()
            .expect("peelfs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "peelfs status: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut all: AllStatus = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
        assert_eq!(all.mounts.len(), 1, "of one mountpoint: {text}");
        all.mounts.remove(0)
    }

    /// Resident memory: the most there was, less what files are mapped, and what there is now without files; in bytes.
    pub fn memory(&self) -> Memory {
        Memory::of(self.pid())
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a running daemon");
    }

    /// Waits until the daemon has ended by itself.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the daemon ends", Duration::from_secs(60), || {
            child.try_wait().expect("a child")
        })
    }

    /// Whether the kernel has this mount.
    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.mountpoint)
    }

    /// Unmounts with `peelfs umount` and waits for the daemon to end well.
    #[track_caller]
    pub fn unmount(mut self) {
        unmount(&self.mountpoint);
        let status = self.ended();
        assert!(status.success(), "the daemon: {status}\n{}", self.log());
    }

    /// Kills the daemon without a warning, and takes the dead mount away.
    pub fn crash(mut self) {
        self.signal(Signal::SIGKILL);
        self.ended();
    }
}

impl Mount {
    /// As [`Mount::crash`], with the mount ended by `peelfs umount --force`: a thread that is putting bytes into the page
    /// cache may wait there, deaf to SIGKILL, for a read that only the killed daemon could answer.
    #[track_caller]
    pub fn crash_by_force(mut self) {
        self.signal(Signal::SIGKILL);
        self.unmount_by_force();
        self.ended();
    }

    /// `peelfs umount --force`.
    #[track_caller]
    pub fn unmount_by_force(&self) {
        let mut umount = peelfs();
        let output = umount.args(["umount", "--force"]).arg(&self.mountpoint).output();
        let output = output.expect("peelfs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!is_mounted(&self.mountpoint));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        let _ = attempt(
            "fusermount3",
            &["-u".as_ref(), "-q".as_ref(), self.mountpoint.as_os_str()],
        );
        let _ = self.child.kill();
        // Before waiting: what the kernel does not let go of, a killed daemon cannot leave.
        unmount_by_force(&self.mountpoint);
        let _ = self.child.wait();
    }
}

/// Takes a mount away whatever uses it, and whether or not its daemon lives.
pub fn unmount_by_force(mountpoint: &Path) {
    if is_mounted(mountpoint) {
        let _ = attempt("umount", &["-f".as_ref(), "-l".as_ref(), mountpoint.as_os_str()]);
    }
}

/// Whether the kernel has a mount at `mountpoint`.
pub fn is_mounted(mountpoint: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = mountpoint.to_string_lossy();
    table.lines().any(|line| line.split(' ').nth(4) == Some(&wanted))
}

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The most there ever was, without mapped files.
    pub peak: u64,
    /// What there is now, without mapped files.
    pub anonymous: u64,
}

impl Memory {
    /// Of a running process.
    pub fn of(pid: Pid) -> Memory {
        let text = fs::read_to_string(format!("/proc/{}/status", pid)).expect("a running daemon");
        let field = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default();
            line.trim_start_matches(':')
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .unwrap_or_default()
                << 10
        };
        Memory {
            peak: field("VmHWM").saturating_sub(field("RssFile")),
            anonymous: field("RssAnon"),
        }
    }
}

/// Unmounts with `peelfs umount`.
#[track_caller]
pub fn unmount(mountpoint: &Path) {
    eventually("it is not in use", Duration::from_secs(60), || {
        let output = peelfs().arg("umount").arg(mountpoint).output().expect("peelfs");
        let said = String::from_utf8_lossy(&output.stderr);
        // What another test is about to start has for a moment all files that are open here.
        let in_use = said.contains("it is in use");
        assert!(output.status.success() || in_use, "peelfs umount: {said}");
        output.status.success().then_some(())
    });
}

#[derive(Debug, Deserialize)]
struct AllStatus {
    mounts: Vec<Status>,
}

/// What `peelfs status --json` says of a mount.
#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "reading it checks that all of this is there")]
pub struct Status {
    pub mountpoint: PathBuf,
    pub image: String,
    pub digest: String,
    pub pid: i32,
    pub platform: String,
    pub compressed_size: u64,
    pub bytes_fetched: u64,
    pub requests: u64,
    pub retries: u64,
    pub throttled: u64,
    pub cache_hits: u64,
    pub downloaded_pct: f64,
    pub last_error: Option<String>,
    pub layers: Vec<LayerStatus>,
}

/// What it says of a layer.
#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "reading it checks that all of this is there")]
pub struct LayerStatus {
    pub number: usize,
    pub digest: String,
    pub size: u64,
    pub indexed_bytes: u64,
    pub index: String,
    pub entries: u64,
    pub bytes_fetched: u64,
    pub requests: u64,
    pub cache_hits: u64,
    pub last_error: Option<String>,
}
