//! Entries as lines of text, as `ls -l` has them with their layer, or as JSON.

use serde::Serialize;

use super::Failure;
use super::output::{Output, Style};
use crate::inspect::Entry;

/// A listing on its way out.
pub(super) struct Listing {
    pub(super) output: Output,
    /// The number of JSON values so far; none for text.
    json: Option<usize>,
}

impl Listing {
    /// To standard output, as text or as one JSON array with a value in each line.
    pub(super) fn new(json: bool) -> Listing {
        Listing {
            output: Output::new(),
            json: json.then_some(0),
        }
    }

    /// Whether it is JSON.
    pub(super) fn is_json(&self) -> bool {
        self.json.is_some()
    }

    /// Adds a value to the array.
    pub(super) async fn value(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let Some(count) = &mut self.json else { return Ok(()) };
        self.output.put(if *count == 0 { "[\n" } else { ",\n" });
        *count += 1;
        let text = serde_json::to_vec(value).map_err(|error| Failure::io("cannot tell it as JSON")(error.into()))?;
        self.output.put(text);
        self.output.flush_if_full().await
    }

    /// Adds an entry, by its last name or its whole path.
    pub(super) async fn entry(&mut self, entry: &Entry, whole_path: bool) -> Result<(), Failure> {
        if self.is_json() {
            return self.value(entry).await;
        }
        self.attributes(entry);
        self.name(entry, whole_path);
        self.marks(entry);
        self.output.end_line().await
    }

    /// Mode, owner, size and time.
    pub(super) fn attributes(&mut self, entry: &Entry) {
        self.output.put(entry.attributes());
    }

    /// The name, and where a symlink points.
    pub(super) fn name(&mut self, entry: &Entry, whole_path: bool) {
        let path = [b"/", entry.path.as_slice()].concat();
        let name = match whole_path || entry.path.is_empty() {
            true => path.as_slice(),
            false => entry.name(),
        };
        let style = Style::of(entry.kind, entry.mode, entry.hidden.is_some());
        self.output.put_name(name, style);
        if let Some(target) = &entry.target {
            self.output.put(" -> ");
            self.output.put_name(target, Style::Plain);
        }
    }

    /// The layer, and why the entry is not to be seen.
    pub(super) fn marks(&mut self, entry: &Entry) {
        self.output.put(entry.marks());
    }

    /// Ends it.
    pub(super) async fn finish(mut self) -> Result<(), Failure> {
        match self.json {
            None => {}
            Some(0) => self.output.put("[]\n"),
            Some(_) => self.output.put("\n]\n"),
        }
        self.output.flush().await
    }
}
