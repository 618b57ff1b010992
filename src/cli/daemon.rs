//! Going into the background: the command starts itself again and waits until that process is ready.
//!
//! The child's standard output is a pipe on which it says that the mount answers; its standard input is another, by which
//! it gets what must not stand among its arguments, and whose end tells it that the terminal's process has gone before
//! the mount answers. Errors go to the inherited standard error.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Failure;

/// What a ready daemon's line begins with.
const READY: &str = "peelfs: mounted";

/// Tells a process that it is the daemon.
const MARK: &str = "PEELFS_DAEMON";

/// How the allocator is set; glibc reads this only when a process starts. An arena for each of two dozen threads, none of
/// which gives back what the others freed, is much more memory than is in use, and so are arenas with large blocks in them,
/// for which glibc raises its threshold unless it is set. What is below it, and comes often, is what hyper reads into:
/// 412 KiB, which in a mapping of its own is cleared by the kernel each time.
const ALLOCATOR: [(&str, &str); 4] = [
    ("MALLOC_ARENA_MAX", "2"),
    ("MALLOC_MMAP_THRESHOLD_", "524288"),
    ("MALLOC_TRIM_THRESHOLD_", "2097152"),
    ("MALLOC_TOP_PAD_", "1048576"),
];

/// Replaces this process by itself with the allocator set, if it is not. It comes back only if that is not possible.
pub(super) fn set_allocator() {
    if ALLOCATOR.iter().all(|(name, _)| std::env::var_os(name).is_some()) {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // An error is no harm: it only takes more memory then.
        let _ = Command::new(program)
            .args(std::env::args_os().skip(1))
            .envs(ALLOCATOR)
            .exec();
    }
}

/// Whether this process was started by [`start`].
pub(super) fn is_daemon() -> bool {
    std::env::var_os(MARK).is_some()
}

/// What [`start`] was given, in the process that it started.
pub(super) fn secret() -> Result<Option<String>, Failure> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut input = std::io::stdin();
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let mut secret = vec![0; u32::from_le_bytes(length) as usize];
        input.read_exact(&mut secret)?;
        Ok(secret)
    };
    let secret = read().map_err(Failure::io("cannot start the daemon"))?;
    Ok(String::from_utf8(secret).ok().filter(|secret| !secret.is_empty()))
}

/// Starts this command again as a daemon, hands it `secret`, which is not empty, and waits until it is ready. Gives what it
/// had to say.
pub(super) fn start(secret: Option<&str>) -> Result<String, Failure> {
    let failed = || Failure::io("cannot start the daemon");
    let program = std::env::current_exe().map_err(failed())?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .envs(ALLOCATOR)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed())?;
    if let Some(input) = &mut child.stdin {
        let secret = secret.unwrap_or_default().as_bytes();
        // If it has ended already, its exit code tells more.
        let _ = input.write_all(&[&(secret.len() as u32).to_le_bytes(), secret].concat());
    }
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line).map_err(failed())?;
    }
    if line.starts_with(READY) {
        return Ok(line.trim_end().to_owned());
    }
    let status = child.wait().map_err(failed())?;
    match status.code() {
        Some(code) if code != 0 => Err(Failure::Told(u8::try_from(code).unwrap_or(1))),
        _ => {
            let cause = format!("it ended before the mount was ready ({status})");
            Err(failed()(std::io::Error::other(cause)))
        }
    }
}

/// A daemon on its way to be ready.
pub(super) struct Starting {
    ready: Arc<AtomicBool>,
}

impl Starting {
    /// Leaves the terminal's session, and ends the process if the one that started it ends before all is ready.
    pub(super) fn new() -> Starting {
        // It fails only for the leader of a process group, which a child is not.
        let _ = nix::unistd::setsid();
        let ready = Arc::new(AtomicBool::new(false));
        let seen = ready.clone();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read(&mut [0]);
            if !seen.load(Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
        Starting { ready }
    }

    /// Says that the mount answers, and lets go of the terminal and of the directory it was started in.
    pub(super) fn ready(self, message: &str) {
        self.ready.store(true, Ordering::SeqCst);
        say_ready(message);
        let _ = std::env::set_current_dir("/");
        if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stdin(null.as_fd());
            let _ = nix::unistd::dup2_stdout(null.as_fd());
            let _ = nix::unistd::dup2_stderr(null.as_fd());
        }
    }
}

/// Says on standard output that the mount answers.
pub(super) fn say_ready(message: &str) {
    let mut output = std::io::stdout();
    let _ = writeln!(output, "{READY} {message}");
    let _ = output.flush();
}

/// Says on standard output where a server listens.
pub(super) fn say_serving(url: &str) {
    let mut output = std::io::stdout();
    let _ = writeln!(output, "peelfs: serving on {url}");
    let _ = output.flush();
}
