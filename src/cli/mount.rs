//! `peelfs mount`.

use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::daemon::{self, Starting};
use super::log::{self, Log};
use super::opening::{self, GRACE};
use super::{Failure, progress, size};
use crate::image::reference::Reference;
use crate::mount::{self, MountOptions};
use crate::tree::{self, Opened, Settings};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The image: alpine, debian:12, ghcr.io/o/r@sha256:..., localhost:5000/x:y, oci:DIR[:TAG] or
    /// docker-archive:FILE[:TAG]
    image: Reference,
    /// An existing directory
    mountpoint: PathBuf,
    /// Stay in the foreground, logging to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Mount options: allow_other, default_permissions, suid, dev, noexec, noatime, fsname=NAME; ro, nosuid and nodev hold
    /// anyhow
    #[arg(short, long = "options", value_name = "OPTION,...")]
    o: Vec<String>,
    /// The name of the directory that shows each layer
    #[arg(long, value_name = "NAME", default_value = "layers", conflicts_with = "no_layers")]
    layers_dir: String,
    /// Show no layers: the mount is the root file system and nothing else
    #[arg(long)]
    no_layers: bool,
    /// Index all layers before mounting
    #[arg(long)]
    index: bool,
    #[command(flatten)]
    opening: opening::Arguments,
}

impl Arguments {
    fn settings(&self, password: Option<String>) -> Result<Settings, Failure> {
        let layers_dir = match (self.no_layers, self.layers_dir.as_str()) {
            (true, _) => None,
            (false, name) if matches!(name, "" | "." | "..") || name.contains('/') || name.len() > 255 => {
                return Err(Failure::Usage(format!("--layers-dir '{name}' is not a name")));
            }
            (false, name) => Some(name.as_bytes().to_vec()),
        };
        self.opening.settings(password, layers_dir)
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.foreground {
        daemon::set_allocator();
        let password = arguments.opening.access.password()?;
        let log = Log::start(false);
        return serve(arguments, password, &log, None);
    }
    if daemon::is_daemon() {
        let password = daemon::secret()?;
        let log = Log::start(true);
        return serve(arguments, password, &log, Some(Starting::new()));
    }
    let ready = daemon::start(arguments.opening.access.password()?.as_deref())?;
    if !arguments.opening.quiet {
        eprintln!("{ready}");
    }
    Ok(())
}

/// Mounts and serves until it is unmounted.
fn serve(
    arguments: &Arguments,
    password: Option<String>,
    log: &Log,
    starting: Option<Starting>,
) -> Result<(), Failure> {
    let settings = arguments.settings(password)?;
    check_cache_is_outside(&settings.cache_dir, &arguments.mountpoint)?;
    let runtime = opening::runtime()?;
    let result = serve_on(&runtime, arguments, &settings, log, starting);
    runtime.shutdown_timeout(GRACE);
    result
}

fn serve_on(
    runtime: &Runtime,
    arguments: &Arguments,
    settings: &Settings,
    log: &Log,
    starting: Option<Starting>,
) -> Result<(), Failure> {
    let opened = runtime.block_on(tree::open(&arguments.image, settings))?;
    if arguments.index {
        runtime.block_on(progress::index(&opened, arguments.opening.quiet))?;
    }
    let log_path = starting.as_ref().map(|_| log::path(&settings.cache_dir));
    let options = MountOptions {
        options: arguments.o.clone(),
    };
    // Before anybody can know of the mount, and end it.
    let mut signals = {
        let _runtime = runtime.enter();
        Signals::new().map_err(Failure::io("cannot listen to signals"))?
    };
    let mounted = mount::mount(
        &opened,
        &arguments.mountpoint,
        &options,
        log_path.clone(),
        runtime.handle().clone(),
    )?;
    let place = mounted.place().clone();
    let message = describe(&opened, &place.mountpoint.to_string_lossy());
    match starting {
        Some(starting) => {
            if let Some(path) = &log_path {
                // Without a place for a log the daemon works as well.
                let _ = log.to_file(path);
            }
            starting.ready(&message);
        }
        None => daemon::say_ready(&message),
    }
    drop(opened);
    runtime.block_on(async {
        let ended = tokio::task::spawn_blocking(move || mounted.wait());
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => {
                    return match ended {
                        Ok(result) => result.map_err(Failure::io("the kernel's requests cannot be read")),
                        Err(_) => Ok(()),
                    };
                }
                name = signals.next() => {
                    tracing::info!("{name}: unmounting {}", place.mountpoint.display());
                    let place = place.clone();
                    let unmounted = tokio::task::spawn_blocking(move || place.unmount());
                    if let Ok(Err(error)) = unmounted.await {
                        tracing::error!("{error}");
                        continue;
                    }
                    // Files that are still open keep a lazily unmounted session alive; the daemon was told to end.
                    return match tokio::time::timeout(GRACE, &mut ended).await {
                        Ok(Ok(result)) => result.map_err(Failure::io("the kernel's requests cannot be read")),
                        _ => Ok(()),
                    };
                }
            }
        }
    })
}

/// The daemon would wait for itself, with no way to end it, if it had to go through its own mount to its cache.
fn check_cache_is_outside(cache_dir: &Path, mountpoint: &Path) -> Result<(), Failure> {
    // The cache may still have to be made: then what counts is where.
    let existing = cache_dir.ancestors().find_map(|dir| dir.canonicalize().ok());
    let (Some(existing), Ok(place)) = (existing, mountpoint.canonicalize()) else {
        return Ok(());
    };
    if existing.starts_with(&place) {
        let (cache, place) = (cache_dir.display(), place.display());
        return Err(Failure::Usage(format!(
            "the cache {cache} is inside of the mountpoint {place}; choose another with --cache-dir"
        )));
    }
    Ok(())
}

/// The signals that end a daemon.
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = self.hup.recv() => "SIGHUP",
        }
    }
}

/// What is mounted where, in a line.
fn describe(opened: &Opened, mountpoint: &str) -> String {
    let layers = opened.tree.layers();
    let bytes = layers
        .iter()
        .map(|layer| layer.descriptor().size)
        .fold(0, u64::saturating_add);
    let indexed = layers.iter().filter(|layer| layer.index().is_some()).count();
    let indexed = match indexed {
        0 => String::new(),
        some if some == layers.len() => ", all indexed".into(),
        some => format!(", {some} indexed"),
    };
    let layers = match layers.len() {
        1 => "1 layer".into(),
        many => format!("{many} layers"),
    };
    format!(
        "{} on {mountpoint} ({layers}, {}{indexed})",
        opened.image.reference,
        size::human(bytes)
    )
}
