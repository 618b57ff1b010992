//! What is wrong with a registry, switched by a test while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use peelfs::digest::Digest;
use tokio::sync::watch;

/// The state of the line to the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Line {
    /// Everything passes.
    #[default]
    Plugged,
    /// Open connections are cut, new ones closed at once.
    Unplugged,
    /// Connections are taken and stay, but no answer moves until the line changes.
    Stalled,
}

#[derive(Debug, Default)]
struct Settings {
    line: Line,
    /// How many more bytes of blobs pass before answers stall.
    allowance: Option<u64>,
    flips: BTreeMap<String, BTreeSet<u64>>,
    truncate: Option<u64>,
    status: Option<u16>,
    no_ranges: bool,
}

/// The faults of one registry. Clones switch the same ones.
#[derive(Clone, Debug)]
pub struct Faults(Arc<watch::Sender<Settings>>);

impl Default for Faults {
    fn default() -> Faults {
        Faults(Arc::new(watch::Sender::new(Settings::default())))
    }
}

impl Faults {
    /// Sets the state of the line, for answers under way too. Plugging in lifts [`Faults::stall_after`].
    pub fn line(&self, line: Line) {
        self.0.send_modify(|settings| {
            settings.line = line;
            settings.allowance = None;
        });
    }

    /// Lets `bytes` more bytes of blobs pass, then stalls until [`Faults::line`] is called.
    pub fn stall_after(&self, bytes: u64) {
        self.0.send_modify(|settings| settings.allowance = Some(bytes));
    }

    /// Serves the byte at `offset` of the blob `digest` wrongly.
    pub fn flip(&self, digest: &Digest, offset: u64) {
        self.0.send_modify(|settings| {
            settings.flips.entry(digest.to_string()).or_default().insert(offset);
        });
    }

    /// Ends the body of every blob's answer after `bytes`, whatever its length was said to be; `None` ends that.
    pub fn truncate(&self, bytes: Option<u64>) {
        self.0.send_modify(|settings| settings.truncate = bytes);
    }

    /// Answers everything with this status, such as 500; `None` ends that.
    pub fn status(&self, status: Option<u16>) {
        self.0.send_modify(|settings| settings.status = status);
    }

    /// Answers 200 with the whole blob where a range was asked for.
    pub fn ignore_ranges(&self, ignore: bool) {
        self.0.send_modify(|settings| settings.no_ranges = ignore);
    }

    /// Every fault gone.
    pub fn clear(&self) {
        self.0.send_modify(|settings| *settings = Settings::default());
    }

    pub(super) fn forced_status(&self) -> Option<u16> {
        self.0.borrow().status
    }

    pub(super) fn ignores_ranges(&self) -> bool {
        self.0.borrow().no_ranges
    }

    /// How many bytes of a blob's answer pass at all.
    pub(super) fn body_limit(&self) -> u64 {
        self.0.borrow().truncate.unwrap_or(u64::MAX)
    }

    pub(super) fn is_unplugged(&self) -> bool {
        self.0.borrow().line == Line::Unplugged
    }

    /// Returns when the line is cut.
    pub(super) async fn unplugged(&self) {
        // The sender lives as long as `self`: this cannot fail.
        let _ = self
            .0
            .subscribe()
            .wait_for(|settings| settings.line == Line::Unplugged)
            .await;
    }

    /// Waits while the line is stalled.
    pub(super) async fn moving(&self) {
        let _ = self
            .0
            .subscribe()
            .wait_for(|settings| settings.line != Line::Stalled)
            .await;
    }

    /// Waits until bytes of a blob may pass, and says how many of the `wanted` ones.
    pub(super) async fn admit(&self, wanted: usize) -> usize {
        let mut changes = self.0.subscribe();
        loop {
            changes.mark_unchanged();
            let mut admitted = 0;
            self.0.send_if_modified(|settings| {
                if settings.line != Line::Stalled {
                    admitted = match &mut settings.allowance {
                        None => wanted,
                        Some(left) => {
                            let taken = wanted.min(usize::try_from(*left).unwrap_or(usize::MAX));
                            *left -= taken as u64;
                            taken
                        }
                    };
                }
                false
            });
            if admitted > 0 {
                return admitted;
            }
            let _ = changes.changed().await;
        }
    }

    /// Flips what is to be flipped in `bytes`, which stand at `start` in the blob `digest`.
    pub(super) fn spoil(&self, digest: &str, start: u64, bytes: &mut [u8]) {
        if let Some(offsets) = self.0.borrow().flips.get(digest) {
            for offset in offsets.range(start..start + bytes.len() as u64) {
                bytes[(offset - start) as usize] ^= 0xff;
            }
        }
    }
}
