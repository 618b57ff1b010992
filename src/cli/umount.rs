//! `peelfs umount`.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Failure;
use crate::mount::{self, MountError, Unmount};

/// How long to wait for the daemon to answer, and to end after its mount has.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Let it vanish at once, even if it is in use, and end when nobody uses it any more
    #[arg(short, long)]
    lazy: bool,
    /// End it at once, even if its daemon does not answer: whoever uses it gets errors
    #[arg(short, long, conflicts_with = "lazy")]
    force: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.force {
        // Nothing is asked of it, which might wait for ever.
        return Ok(mount::unmount(&arguments.mountpoint, Unmount::ByForce)?);
    }
    // A daemon that died has nothing to report, but something to unmount.
    let daemon = ask(arguments.mountpoint.clone())?;
    let how = match arguments.lazy {
        true => Unmount::Lazily,
        false => Unmount::Unused,
    };
    mount::unmount(&arguments.mountpoint, how)?;
    if let Some(pid) = daemon.filter(|_| !arguments.lazy) {
        wait_for(pid);
    }
    Ok(())
}

/// Which process is the daemon, if there is one.
fn ask(mountpoint: PathBuf) -> Result<Option<u32>, Failure> {
    let (sender, answer) = mpsc::channel();
    let path = mountpoint.clone();
    std::thread::spawn(move || sender.send(mount::report(&path).ok().map(|report| report.pid)));
    answer.recv_timeout(PATIENCE).map_err(|_| {
        let reason = "its daemon does not answer; --force ends it all the same".into();
        let path = mountpoint;
        MountError::Unmount { path, reason }.into()
    })
}

/// Waits until a process has ended, so that whoever unmounts finds nothing left of the mount.
fn wait_for(pid: u32) {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let since = Instant::now();
    let mut pause = Duration::from_millis(1);
    while is_peelfs(&process) && since.elapsed() < PATIENCE {
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether the process is there, alive, and still the daemon rather than another one with its number.
fn is_peelfs(process: &Path) -> bool {
    let Ok(stat) = std::fs::read_to_string(process.join("stat")) else {
        return false;
    };
    let Some((_, rest)) = stat.split_once("(peelfs) ") else {
        return false;
    };
    !rest.starts_with('Z')
}
