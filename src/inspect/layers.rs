//! What the layers are, and what made them.

use serde::{Deserialize, Serialize};

use super::Inspector;
use crate::layer::IndexState;

/// One layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerSummary {
    /// Its number; 0 is the base.
    pub number: usize,
    /// The digest of the blob.
    pub digest: String,
    /// The digest of the tar in it.
    pub diff_id: Option<String>,
    /// The size of the blob.
    pub size: u64,
    /// The media type as the manifest has it.
    pub media_type: String,
    /// How far it is indexed.
    pub index: IndexState,
    /// How many entries it has, if it is completely indexed.
    pub entries: Option<u32>,
    /// The command that made it, as the config has it.
    pub created_by: Option<String>,
    /// When that was.
    pub created: Option<String>,
}

#[derive(Deserialize)]
struct Config {
    history: Option<Vec<Line>>,
}

#[derive(Default, Deserialize)]
struct Line {
    created: Option<String>,
    created_by: Option<String>,
    empty_layer: Option<bool>,
}

impl Inspector {
    /// The layers, base first, as far as they are known: nothing is fetched.
    pub fn summaries(&self) -> Vec<LayerSummary> {
        let count = self.layers().len();
        let mut history = history(&self.image().config, count).into_iter();
        let summary = |(number, layer): (usize, &std::sync::Arc<crate::layer::Layer>)| {
            let (descriptor, status) = (layer.descriptor(), layer.status());
            let made = history.next().unwrap_or_default();
            LayerSummary {
                number,
                digest: descriptor.digest.to_string(),
                diff_id: descriptor.diff_id.map(|digest| digest.to_string()),
                size: descriptor.size,
                media_type: descriptor.media_type.clone(),
                index: status.index,
                entries: (status.index == IndexState::Complete).then_some(status.entries),
                created_by: made.created_by,
                created: made.created,
            }
        };
        self.layers().iter().enumerate().map(summary).collect()
    }
}

/// The lines of the config's history that made layers. None if they are not as many as there are layers: then it cannot
/// be told which made which.
fn history(config: &[u8], layers: usize) -> Vec<Line> {
    let lines = serde_json::from_slice::<Config>(config)
        .ok()
        .and_then(|config| config.history);
    let mut lines = lines.unwrap_or_default();
    lines.retain(|line| line.empty_layer != Some(true));
    match lines.len() == layers {
        true => lines,
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::history;

    #[test]
    fn lines_without_a_layer_are_left_out_and_too_few_tell_nothing() {
        let config = br#"{"history":[{"created_by":"a"},{"created_by":"b","empty_layer":true},{"created_by":"c"}]}"#;
        let made = |layers| {
            let lines = history(config, layers).into_iter();
            lines.map(|line| line.created_by.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(made(2), ["a", "c"]);
        assert!(made(3).is_empty() && made(1).is_empty());
        assert!(history(b"{}", 0).is_empty() && history(b"no json", 1).is_empty());
    }
}
