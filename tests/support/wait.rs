//! Waiting for a condition, with a deadline.

use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How often a condition is asked that nothing announces.
const INTERVAL: Duration = Duration::from_millis(10);

/// Asks until `ask` gives something and returns that; panics with `what` where it does not `within` that time.
#[track_caller]
pub fn eventually<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    let (_quiet, tick) = mpsc::channel::<()>();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {within:?} in vain: {what}");
        let _ = tick.recv_timeout(INTERVAL);
    }
}
