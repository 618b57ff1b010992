//! Counters, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::images::{Images, Totals};

/// What was asked of the server, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    errors: Mutex<BTreeMap<&'static str, u64>>,
    served: AtomicU64,
}

impl Metrics {
    /// Counts an answer, by what was asked and its status, and if it is an error by its kind.
    pub(super) fn answered(&self, route: &'static str, status: u16, kind: Option<&'static str>) {
        *self.requests.lock().entry((route, status)).or_default() += 1;
        if let Some(kind) = kind {
            *self.errors.lock().entry(kind).or_default() += 1;
        }
    }

    /// Counts bytes of bodies.
    pub(super) fn served(&self, bytes: usize) {
        self.served.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// All counters as text; `carves` is how many questions are being answered.
    pub(super) fn text(&self, images: &Images, carves: usize) -> String {
        let mut text = String::new();
        head(
            &mut text,
            "peelfs_http_requests_total",
            "counter",
            "Answers, by what was asked and status.",
        );
        for ((route, status), count) in &*self.requests.lock() {
            let _ = writeln!(
                text,
                "peelfs_http_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}"
            );
        }
        head(
            &mut text,
            "peelfs_errors_total",
            "counter",
            "Answers that are errors, by kind.",
        );
        for (kind, count) in &*self.errors.lock() {
            let _ = writeln!(text, "peelfs_errors_total{{kind=\"{kind}\"}} {count}");
        }
        let (totals, open) = images.totals();
        let Totals {
            requests,
            bytes_fetched,
            bytes_from_store,
            hits,
            misses,
            retries,
            scanned,
        } = totals;
        for (name, help, value) in [
            (
                "served_bytes",
                "Bytes of answers sent.",
                self.served.load(Ordering::Relaxed),
            ),
            (
                "fetched_bytes",
                "Bytes of layers that came from registries.",
                bytes_fetched,
            ),
            (
                "store_bytes",
                "Bytes of layers that came from the store.",
                bytes_from_store,
            ),
            ("registry_requests", "Requests for bytes of layers.", requests),
            ("registry_retries", "Requests that were sent again.", retries),
            ("cache_hits", "Reads of layers that needed no registry.", hits),
            ("cache_misses", "Reads of layers that needed one.", misses),
            (
                "indexed_bytes",
                "Compressed bytes of layers that are indexed; how fast it grows is the rate of scanning.",
                scanned,
            ),
        ] {
            let name = format!("peelfs_{name}_total");
            head(&mut text, &name, "counter", help);
            let _ = writeln!(text, "{name} {value}");
        }
        for (name, help, value) in [
            ("peelfs_open_images", "Images that are kept open.", open),
            ("peelfs_carves", "Questions that are being answered.", carves),
        ] {
            head(&mut text, name, "gauge", help);
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
