//! What is wrong with a registry, switched by a test while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use peelfs::digest::Digest;
use tokio::sync::watch;

use super::heads::Head;
use super::log::Target;

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

/// Which requests a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    Everything,
    /// Those for manifests and indexes.
    Manifests,
    /// Those for layers and configs.
    Blobs,
    /// Those for tokens.
    Tokens,
}

impl Part {
    fn has(self, target: &Target) -> bool {
        match self {
            Part::Everything => true,
            Part::Manifests => matches!(target, Target::Manifest { .. }),
            Part::Blobs => matches!(target, Target::Blob { .. }),
            Part::Tokens => *target == Target::Token,
        }
    }
}

/// What `Retry-After` says; RFC 9110, 10.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// Seconds.
    Seconds(u64),
    /// The date that is so far away when the answer is made. Dates have whole seconds: up to one of them is lost.
    Date(Duration),
}

impl RetryAfter {
    fn text(self) -> String {
        match self {
            RetryAfter::Seconds(seconds) => seconds.to_string(),
            RetryAfter::Date(away) => httpdate::fmt_http_date(SystemTime::now() + away),
        }
    }
}

#[derive(Debug, Default)]
struct Settings {
    line: Line,
    /// How many more bytes of blobs pass before answers stall.
    allowance: Option<u64>,
    flips: BTreeMap<String, BTreeSet<u64>>,
    truncate: Option<u64>,
    refusal: Option<(Part, u16)>,
    retry_after: Option<RetryAfter>,
    held: Option<Part>,
    delay: Option<Duration>,
    drip: Option<u64>,
    reset: Option<u64>,
    head: Option<Head>,
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
        self.refuse(Part::Everything, status);
    }

    /// Answers a part of the requests with this status.
    pub fn refuse(&self, part: Part, status: Option<u16>) {
        self.0
            .send_modify(|settings| settings.refusal = status.map(|status| (part, status)));
    }

    /// Says `Retry-After` with each such status.
    pub fn retry_after(&self, retry_after: Option<RetryAfter>) {
        self.0.send_modify(|settings| settings.retry_after = retry_after);
    }

    /// Keeps a part of the requests waiting until this is called with something else.
    pub fn hold(&self, part: Option<Part>) {
        self.0.send_modify(|settings| settings.held = part);
    }

    /// Answers so much later, but at once when this ends.
    pub fn delay(&self, delay: Option<Duration>) {
        self.0.send_modify(|settings| settings.delay = delay);
    }

    /// Lets so many bytes a second pass of the body of a blob's answer, one by one.
    pub fn drip(&self, bytes: Option<u64>) {
        self.0.send_modify(|settings| settings.drip = bytes);
    }

    /// Resets the connection after so many bytes of the body of a blob's answer.
    pub fn reset_after(&self, bytes: Option<u64>) {
        self.0.send_modify(|settings| settings.reset = bytes);
    }

    /// Makes the head of answers wrong or unusual.
    pub fn head(&self, head: Option<Head>) {
        self.0.send_modify(|settings| settings.head = head);
    }

    /// Answers 200 with the whole blob where a range was asked for.
    pub fn ignore_ranges(&self, ignore: bool) {
        self.0.send_modify(|settings| settings.no_ranges = ignore);
    }

    /// Every fault gone.
    pub fn clear(&self) {
        self.0.send_modify(|settings| *settings = Settings::default());
    }

    /// The status that a request is refused with, and its `Retry-After`.
    pub(super) fn refusal_of(&self, target: &Target) -> Option<(u16, Option<String>)> {
        let settings = self.0.borrow();
        let (_, status) = settings.refusal.filter(|(part, _)| part.has(target))?;
        Some((status, settings.retry_after.map(RetryAfter::text)))
    }

    pub(super) fn head_fault(&self) -> Option<Head> {
        self.0.borrow().head
    }

    pub(super) fn ignores_ranges(&self) -> bool {
        self.0.borrow().no_ranges
    }

    /// How many bytes of a blob's answer pass at all.
    pub(super) fn body_limit(&self) -> u64 {
        let settings = self.0.borrow();
        settings.truncate.or(settings.reset).unwrap_or(u64::MAX)
    }

    /// Whether what goes beyond that is answered with a reset.
    pub(super) fn resets(&self) -> bool {
        self.0.borrow().reset.is_some()
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

    /// Waits while requests for `target` are held, and for as long as answers are delayed.
    pub(super) async fn due(&self, target: &Target) {
        let mut changes = self.0.subscribe();
        let _ = changes
            .wait_for(|settings| !settings.held.is_some_and(|part| part.has(target)))
            .await;
        let delay = self.0.borrow().delay;
        if let Some(delay) = delay {
            let _ = tokio::time::timeout(delay, changes.wait_for(|settings| settings.delay.is_none())).await;
        }
    }

    /// Waits until bytes of a blob may pass, and says how many of the `wanted` ones.
    pub(super) async fn admit(&self, wanted: usize) -> usize {
        let mut changes = self.0.subscribe();
        let drip = self.0.borrow().drip;
        let wanted = match drip {
            None => wanted,
            Some(rate) => {
                let _ = tokio::time::timeout(
                    Duration::from_secs(1).div_f64(rate as f64),
                    changes.wait_for(|settings| settings.drip.is_none()),
                )
                .await;
                wanted.min(1)
            }
        };
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
