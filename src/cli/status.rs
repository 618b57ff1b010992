//! `peelfs status`.

use std::io::Write;
use std::path::PathBuf;

use super::{Failure, size};
use crate::mount::{self, LayerReport, MountReport, StatusReport};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where it is mounted [default: all that can be seen]
    mountpoint: Option<PathBuf>,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mounts = match &arguments.mountpoint {
        Some(mountpoint) => vec![mount::report(mountpoint)?],
        None => {
            let mut reports = Vec::new();
            for mountpoint in mount::mounts().map_err(Failure::io("cannot list the mounts"))? {
                match mount::report(&mountpoint) {
                    Ok(report) => reports.push(report),
                    Err(error) => eprintln!("peelfs: {error}"),
                }
            }
            reports
        }
    };
    let mut output = std::io::stdout().lock();
    let written = match arguments.json {
        true => serde_json::to_writer_pretty(&mut output, &StatusReport { mounts })
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(output)),
        false if mounts.is_empty() => writeln!(output, "Nothing is mounted."),
        false => mounts.iter().try_for_each(|report| write(&mut output, report)),
    };
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(Failure::io("cannot write")),
    }
}

/// One mount, for a person.
fn write(output: &mut impl Write, report: &MountReport) -> std::io::Result<()> {
    writeln!(
        output,
        "{} on {} ({})",
        report.image, report.mountpoint, report.platform
    )?;
    writeln!(output, "  digest      {}", report.digest)?;
    writeln!(
        output,
        "  downloaded  {} of {} ({:.2} %), {} requests, {} reads from the cache",
        size::human(report.bytes_fetched),
        size::human(report.compressed_size),
        report.downloaded_pct,
        report.requests,
        report.cache_hits
    )?;
    if report.retries > 0 || report.throttled > 0 {
        writeln!(
            output,
            "  retried     {} requests; {} were answered with 429, too many requests",
            report.retries, report.throttled
        )?;
    }
    writeln!(
        output,
        "  layer       size      indexed  entries    fetched  requests     stored  digest"
    )?;
    for layer in &report.layers {
        writeln!(
            output,
            "  {:>5} {:>10} {:>12} {:>8} {:>10} {:>9} {:>10}  {}",
            layer.number,
            size::human(layer.size),
            indexed(layer),
            layer.entries,
            size::human(layer.bytes_fetched),
            layer.requests,
            size::human(layer.stored_bytes),
            layer.digest.get(..19).unwrap_or(&layer.digest)
        )?;
    }
    for layer in &report.layers {
        if let Some(error) = &layer.last_error {
            writeln!(output, "  last error  {error}")?;
        }
    }
    match &report.log {
        Some(log) => writeln!(output, "  daemon      pid {}, log in {log}", report.pid),
        None => writeln!(output, "  daemon      pid {}", report.pid),
    }
}

fn indexed(layer: &LayerReport) -> String {
    match layer.index.as_str() {
        "partial" if layer.size > 0 => format!("{:.1} %", layer.indexed_bytes as f64 * 100.0 / layer.size as f64),
        state => state.to_owned(),
    }
}
