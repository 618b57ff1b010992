//! Callers that are killed while they wait.
//!
//! Linux lets a process that waits for an answer die only when that comes. It says that someone wants to die by an
//! interrupt, which the library under us does not hand on (fuser 0.18 refuses it as unknown); so whoever waits for long
//! is looked at. A signal that ends a process is pending as SIGKILL in each of its threads from then on. Signals that a
//! process handles by itself are not looked for: few programs expect EINTR of a file.

use std::time::Duration;

use nix::sys::signal::Signal;

/// How often a caller is looked at.
const EVERY: Duration = Duration::from_millis(200);

/// Ends when the thread `pid` is being killed; never if that cannot be known, as of one in another namespace, which is 0.
pub(super) async fn killed(pid: u32) {
    loop {
        tokio::time::sleep(EVERY).await;
        if pid != 0 && is_killed(pid) {
            return;
        }
    }
}

fn is_killed(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| has_kill_pending(&status))
}

/// Whether the text of `/proc/PID/status` says that SIGKILL waits for the thread.
fn has_kill_pending(status: &str) -> bool {
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    pending.is_some_and(|pending| pending & 1 << (Signal::SIGKILL as u32 - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_is_seen() {
        let status =
            |pending: &str| format!("Name:\tcat\nSigQ:\t1/95\nSigPnd:\t{pending}\nShdPnd:\t0000000000000002\n");
        assert!(has_kill_pending(&status("0000000000000100")));
        assert!(has_kill_pending(&status("0000000000000102")));
        assert!(!has_kill_pending(&status("0000000000000002")));
        assert!(!has_kill_pending(&status("none")));
        assert!(!has_kill_pending(""));
        assert!(!is_killed(std::process::id()));
    }
}
