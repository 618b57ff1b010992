//! `mount --index`: bars on a terminal, a line for each finished layer elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Failure, size};
use crate::layer::IndexState;
use crate::tree::Opened;

/// How often the bars are brought up to date.
const TICK: Duration = Duration::from_millis(100);

/// Indexes all layers and shows how it goes.
pub(super) async fn index(opened: &Opened, quiet: bool) -> Result<(), Failure> {
    let terminal = std::io::stderr().is_terminal();
    let target = match terminal && !quiet {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bars = MultiProgress::with_draw_target(target);
    let mut layers = Vec::new();
    for layer in opened.tree.layers().iter().filter(|layer| layer.index().is_none()) {
        let bar = bars.add(ProgressBar::new(layer.descriptor().size));
        bar.set_style(style());
        bar.set_prefix(format!("layer {}", layer.number()));
        layers.push((layer.clone(), bar));
    }
    let work = opened.tree.index_all();
    tokio::pin!(work);
    let mut tick = tokio::time::interval(TICK);
    loop {
        let done = tokio::select! {
            result = &mut work => Some(result),
            _ = tick.tick() => None,
        };
        layers.retain(|(layer, bar)| {
            let status = layer.status();
            bar.set_position(status.indexed_bytes);
            if status.index != IndexState::Complete {
                return true;
            }
            bar.finish();
            if !terminal && !quiet {
                let bytes = size::human(layer.descriptor().size);
                eprintln!(
                    "peelfs: indexed layer {}: {bytes}, {} entries",
                    layer.number(),
                    status.entries
                );
            }
            false
        });
        if let Some(result) = done {
            return Ok(result?);
        }
    }
}

fn style() -> ProgressStyle {
    let template =
        "{prefix:>9} {bar:30} {decimal_bytes:>9} of {decimal_total_bytes:>9} {decimal_bytes_per_sec:>11} {eta:>4}";
    // The template is fixed, so that it is known to be sound; the test below sees to it.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_bytes_rate_and_time_left() {
        let bar = ProgressBar::hidden();
        bar.set_style(style());
        let template = "{decimal_bytes} {decimal_bytes_per_sec} {eta}";
        assert!(ProgressStyle::with_template(template).is_ok());
    }
}
