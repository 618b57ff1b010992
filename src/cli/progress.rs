//! How far scans are: bars on a terminal; for whoever indexes ahead of time a line for each finished layer elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Failure, size};
use crate::layer::{IndexState, Layer};
use crate::tree::Opened;

/// How often the bars are brought up to date.
const TICK: Duration = Duration::from_millis(100);

/// Indexes all layers and shows how it goes.
pub(super) async fn index(opened: &Opened, quiet: bool) -> Result<(), Failure> {
    let layers = opened.tree.layers();
    let mut lines = Lines {
        layers: layers.iter().filter(|layer| layer.index().is_none()).cloned().collect(),
        wanted: !quiet && !std::io::stderr().is_terminal(),
    };
    let told = || lines.tell();
    Ok(watch(layers, quiet, told, opened.tree.index_all()).await?)
}

/// Shows how far the layers are, on a terminal, while `work` is done that may scan some of them.
pub(super) async fn during<R>(layers: &[Arc<Layer>], quiet: bool, work: impl Future<Output = R>) -> R {
    watch(layers, quiet, || {}, work).await
}

/// Does `work`; calls `told` now and then, and at the end.
async fn watch<R>(layers: &[Arc<Layer>], quiet: bool, mut told: impl FnMut(), work: impl Future<Output = R>) -> R {
    let mut bars = Bars::new(layers, quiet);
    tokio::pin!(work);
    let mut tick = tokio::time::interval(TICK);
    loop {
        let done = tokio::select! {
            result = &mut work => Some(result),
            _ = tick.tick() => None,
        };
        bars.draw();
        told();
        if let Some(result) = done {
            bars.clear();
            return result;
        }
    }
}

/// A bar for each layer whose scan gets on.
struct Bars {
    all: MultiProgress,
    layers: Vec<(Arc<Layer>, u64, Option<ProgressBar>)>,
}

impl Bars {
    fn new(layers: &[Arc<Layer>], quiet: bool) -> Bars {
        let target = match std::io::stderr().is_terminal() && !quiet {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let growing = layers.iter().filter(|layer| layer.index().is_none());
        Bars {
            all: MultiProgress::with_draw_target(target),
            layers: growing
                .map(|layer| (layer.clone(), layer.status().indexed_bytes, None))
                .collect(),
        }
    }

    fn draw(&mut self) {
        if self.all.is_hidden() {
            return;
        }
        for (layer, before, bar) in &mut self.layers {
            let position = layer.status().indexed_bytes;
            if position > *before {
                let bar = bar.get_or_insert_with(|| {
                    let bar = self.all.add(ProgressBar::new(layer.descriptor().size));
                    bar.set_style(style());
                    bar.set_prefix(format!("layer {}", layer.number()));
                    bar
                });
                bar.set_position(position);
            }
        }
    }

    fn clear(&self) {
        for (_, _, bar) in &self.layers {
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        }
    }
}

/// A line for each layer that is complete, where there is no terminal.
struct Lines {
    layers: Vec<Arc<Layer>>,
    wanted: bool,
}

impl Lines {
    fn tell(&mut self) {
        let wanted = self.wanted;
        self.layers.retain(|layer| {
            let status = layer.status();
            if status.index != IndexState::Complete {
                return true;
            }
            if wanted {
                let bytes = size::human(layer.descriptor().size);
                let (number, entries) = (layer.number(), status.entries);
                eprintln!("peelfs: indexed layer {number}: {bytes}, {entries} entries");
            }
            false
        });
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
