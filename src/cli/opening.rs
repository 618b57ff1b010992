//! Opening an image: the options that all commands which do it share, and the runtime that it needs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::log::Log;
use super::{Failure, access, daemon, size};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::inspect::Inspector;
use crate::tree::{self, Settings, TreeError};

/// Threads that block on the disk or inflate. Inflaters are limited to the number of cores besides.
const BLOCKING_THREADS: usize = 24;

/// How long tasks may take to end when the process does.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// How long a command waits, with its answer given, for fetches under way: what they bring is kept if they end.
const REST: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[group(id = "opening")]
pub(super) struct Arguments {
    /// The platform wanted, if the image has several [default: the host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    #[command(flatten)]
    pub(super) cache: Cache,
    /// The most decompressed bytes kept in memory, and compressed ones that the disk cannot keep
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = size::parse)]
    memory: u64,
    /// Make no request: use only what is in the cache
    #[arg(long)]
    offline: bool,
    /// Talk to the registry without TLS, or with a certificate that cannot be verified. Loopback needs no such leave
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    pub(super) access: access::Arguments,
    /// When the bytes of a layer that is not completely indexed are served: as they come, or only when the whole layer
    /// has been verified
    #[arg(long, value_name = "WHEN", default_value = "index", value_parser = ["index", "full"])]
    verify: String,
    /// After how many seconds without progress a file operation fails
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: u64,
    /// Say nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// Where the cache is, and how large it may be.
#[derive(Debug, clap::Args)]
#[group(id = "cache")]
pub(super) struct Cache {
    /// Where fetched bytes and indexes are kept [default: $XDG_CACHE_HOME/peelfs or ~/.cache/peelfs]
    #[arg(long, value_name = "DIR", env = "PEELFS_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// The most bytes of layers kept there; the least recently used go first
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = size::parse, env = "PEELFS_CACHE_SIZE")]
    pub(super) cache_size: u64,
}

impl Cache {
    /// The directory as an absolute path.
    pub(super) fn dir(&self) -> Result<PathBuf, Failure> {
        let dir = match &self.cache_dir {
            Some(dir) => dir.clone(),
            None => default_cache_dir(),
        };
        std::path::absolute(&dir).map_err(Failure::io("cannot tell where the cache is"))
    }
}

impl Arguments {
    /// What they say; `password` is what was read from standard input, `layers_dir` what a mount calls the layers.
    pub(super) fn settings(&self, password: Option<String>, layers_dir: Option<Vec<u8>>) -> Result<Settings, Failure> {
        Ok(Settings {
            cache_dir: self.cache.dir()?,
            cache_size: self.cache.cache_size,
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

    /// Opens `image` and does `work` with it.
    pub(super) fn with_image(
        &self,
        image: &Reference,
        work: impl AsyncFnOnce(&Arc<Inspector>) -> Result<u8, Failure>,
    ) -> Result<u8, Failure> {
        self.work(async |settings| {
            let opened = tree::open(image, settings).await?;
            let inspector = Inspector::new(&opened);
            let code = work(&inspector).await?;
            rest(&inspector).await;
            // Bytes that were told while a layer was being scanned are worth nothing if the layer is not what it should be.
            sound(&inspector)?;
            Ok(code)
        })
    }

    /// Does `work` until it is done, or somebody ends the process.
    pub(super) fn work(&self, work: impl AsyncFnOnce(&Settings) -> Result<u8, Failure>) -> Result<u8, Failure> {
        daemon::set_allocator();
        let password = self.access.password()?;
        Log::start_briefly(self.quiet);
        let settings = self.settings(password, None)?;
        let runtime = runtime()?;
        let result = runtime.block_on(async {
            tokio::select! {
                result = work(&settings) => result,
                ended = interrupted() => Err(ended),
            }
        });
        runtime.shutdown_timeout(GRACE);
        result
    }
}

/// Lets what is under way come to its end, so that nobody has to fetch it again.
pub(super) async fn rest(inspector: &Inspector) {
    let _ = tokio::time::timeout(REST, inspector.rest()).await;
}

/// Fails if a layer has turned out to be corrupt.
pub(super) fn sound(inspector: &Inspector) -> Result<(), Failure> {
    for layer in inspector.layers() {
        layer.glance(|_| ()).map_err(TreeError::from)?;
    }
    Ok(())
}

/// Waits for a signal that ends the process. Whoever holds a temporary file can then still remove it.
async fn interrupted() -> Failure {
    let wait = |kind: SignalKind| async move {
        match signal(kind) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
        Failure::Interrupted(u8::try_from(kind.as_raw_value()).unwrap_or_default())
    };
    tokio::select! {
        ended = wait(SignalKind::interrupt()) => ended,
        ended = wait(SignalKind::terminate()) => ended,
        ended = wait(SignalKind::hangup()) => ended,
    }
}

/// The threads that everything runs on.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("peelfs")
        .enable_all()
        .build()
        .map_err(Failure::io("cannot start threads"))
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
