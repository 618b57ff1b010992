//! `peelfs mount`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::daemon::{self, Starting};
use super::log::{self, Log};
use super::{Failure, access, progress, size};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::mount::{self, MountOptions};
use crate::tree::{self, Opened, Settings};

/// Threads that block on the disk or inflate. Inflaters are limited to the number of cores besides.
const BLOCKING_THREADS: usize = 24;

/// How long the daemon lets its tasks end after the unmount.
const GRACE: Duration = Duration::from_secs(2);

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
    /// The platform wanted, if the image has several [default: the host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// Where fetched bytes and indexes are kept [default: $XDG_CACHE_HOME/peelfs or ~/.cache/peelfs]
    #[arg(long, value_name = "DIR", env = "PEELFS_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// The most bytes of layers kept there; the least recently used go first
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = size::parse, env = "PEELFS_CACHE_SIZE")]
    cache_size: u64,
    /// The most decompressed bytes kept in memory
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = size::parse)]
    memory: u64,
    /// Make no request: use only what is in the cache
    #[arg(long)]
    offline: bool,
    /// Talk to the registry without TLS, or with a certificate that cannot be verified. Loopback needs no such leave
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    access: access::Arguments,
    /// The name of the directory that shows each layer
    #[arg(long, value_name = "NAME", default_value = "layers", conflicts_with = "no_layers")]
    layers_dir: String,
    /// Show no layers: the mount is the root file system and nothing else
    #[arg(long)]
    no_layers: bool,
    /// Index all layers before mounting
    #[arg(long)]
    index: bool,
    /// When the bytes of a layer that is not completely indexed are served: as they come, or only when the whole layer
    /// has been verified
    #[arg(long, value_name = "WHEN", default_value = "index", value_parser = ["index", "full"])]
    verify: String,
    /// After how many seconds without progress a file operation fails
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: u64,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
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
        let cache_dir = match &self.cache_dir {
            Some(dir) => dir.clone(),
            None => default_cache_dir(),
        };
        Ok(Settings {
            cache_dir: std::path::absolute(&cache_dir).map_err(Failure::io("cannot tell where the cache is"))?,
            cache_size: self.cache_size,
            memory: usize::try_from(self.memory).unwrap_or(usize::MAX),
            platform: self.platform.clone(),
            insecure: self.insecure,
            offline: self.offline,
            timeout: Duration::from_secs(self.timeout),
            access: self.access.access(password)?,
            verify_first: self.verify == "full",
            layers_dir,
        })
    }
}

/// Where the cache is if nobody says: as the XDG base directory specification has it.
fn default_cache_dir() -> PathBuf {
    let dir = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    dir("XDG_CACHE_HOME")
        .or_else(|| dir("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"))
        .join("peelfs")
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.foreground {
        daemon::set_allocator();
        let password = arguments.access.password()?;
        let log = Log::start(false);
        return serve(arguments, password, &log, None);
    }
    if daemon::is_daemon() {
        let password = daemon::secret()?;
        let log = Log::start(true);
        return serve(arguments, password, &log, Some(Starting::new()));
    }
    let ready = daemon::start(arguments.access.password()?.as_deref())?;
    if !arguments.quiet {
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("peelfs")
        .enable_all()
        .build()
        .map_err(Failure::io("cannot start threads"))?;
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
        runtime.block_on(progress::index(&opened, arguments.quiet))?;
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
