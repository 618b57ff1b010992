//! Where log lines go: to the terminal until the mount answers, then to the daemon's own file.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{DefaultFields, Format};
use tracing_subscriber::fmt::{MakeWriter, SubscriberBuilder};

/// Logs of daemons that ended are kept this long.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the log file may grow to; then nothing more is written but that.
const MOST: u64 = 16 << 20;

/// The place where log lines go.
#[derive(Clone, Default)]
pub(super) struct Log {
    file: Arc<Mutex<Option<(File, u64)>>>,
    /// Until there is a file, only warnings and errors are for the terminal.
    terse: bool,
}

impl Log {
    /// Begins to log to standard error, for a daemon only what is worth a person's while; `PEELFS_LOG` tells what, as in
    /// `debug` or `peelfs::layer=trace`.
    pub(super) fn start(daemon: bool) -> Log {
        let log = Log {
            terse: daemon,
            ..Log::default()
        };
        let filter = EnvFilter::try_from_env("PEELFS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
        // It fails only if there is a subscriber already.
        let _ = subscriber(filter).with_writer(log.clone()).try_init();
        log
    }

    /// For a command that answers and ends: warnings for whoever sits before it, and with `quiet` only errors.
    pub(super) fn start_briefly(quiet: bool) {
        let level = if quiet { "error" } else { "warn" };
        let filter = EnvFilter::try_from_env("PEELFS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
        let _ = subscriber(filter).without_time().with_writer(io::stderr).try_init();
    }

    /// Sends further lines to a file of this process in `dir`, and removes those of long ago.
    pub(super) fn to_file(&self, path: &Path) -> io::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
            remove_old(dir);
        }
        // One of an earlier process with this number is of no use any more.
        let _ = std::fs::remove_file(path);
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        *self.file.lock() = Some((file, 0));
        Ok(())
    }
}

/// What writes the lines that `filter` lets through.
fn subscriber(filter: EnvFilter) -> SubscriberBuilder<DefaultFields, Format, EnvFilter> {
    // What fuser says of requests that it does not know is no news to a user.
    let filter = match "fuser=off".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let terminal = io::IsTerminal::is_terminal(&io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(terminal)
}

/// The file that this process logs to when it is a daemon.
pub(super) fn path(cache_dir: &Path) -> PathBuf {
    cache_dir.join("log").join(format!("{}.log", std::process::id()))
}

/// Whether the process whose log it is may still write to it.
pub(super) fn is_in_use(log: &Path) -> bool {
    let process = log.file_stem().map(|pid| Path::new("/proc").join(pid));
    process.is_some_and(|process| process.exists())
}

/// Whether it has the name of a log: the process, and what it is.
pub(super) fn is_log(path: &Path) -> bool {
    let pid = path.file_stem().and_then(|pid| pid.to_str());
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    pid.is_some_and(is_number) && path.extension().is_some_and(|ending| ending == "log")
}

fn remove_old(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        if is_log(&entry.path()) && !is_in_use(&entry.path()) && age.is_ok_and(|age| age > KEPT) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Log {
        Log {
            terse: self.terse && *line.level() > Level::WARN,
            ..self.clone()
        }
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *self.file.lock() {
            Some((_, written)) if *written > MOST => {}
            Some((file, written)) => {
                *written += line.len() as u64;
                file.write_all(line)?;
                if *written > MOST {
                    file.write_all(b"This log is full. Nothing more is written to it.\n")?;
                }
            }
            None if self.terse => {}
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
