//! `peelfs cache`.
//!
//! A cache directory may have been chosen badly, and hold other things: only what is ours is touched in it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::log::{self, Log};
use super::{Failure, code, opening, size};
use crate::blob::Store;
use crate::cache_dir;
use crate::digest::Digest;
use crate::image::Documents;
use crate::index::{Entries, LayerIndex};
use crate::inspect::time;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the images that were seen, and what is kept of layers
    Ls(Ls),
    /// Make it smaller: what was least recently used goes first
    Prune(Prune),
    /// Read all of it, and remove what is damaged; it is fetched anew when it is needed. Exit code 4 if there was any
    Verify(Common),
    /// Remove all of it. Mounts go on, and fetch anew what they need
    Clear(Common),
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    cache: opening::Cache,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
struct Ls {
    #[command(flatten)]
    common: Common,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Prune {
    #[command(flatten)]
    common: Common,
    /// How many bytes of layers to keep at most [default: the size of the cache]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    keep: Option<u64>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let common = match &arguments.command {
        Command::Ls(ls) => &ls.common,
        Command::Prune(prune) => &prune.common,
        Command::Verify(common) | Command::Clear(common) => common,
    };
    Log::start_briefly(common.quiet);
    let cache = CacheDir(common.cache.dir()?);
    let say = |sentence: String| {
        if !common.quiet {
            super::say(&sentence);
        }
    };
    match &arguments.command {
        Command::Ls(ls) => print(&cache.contents(), ls.json),
        Command::Prune(prune) => {
            let most = prune.keep.unwrap_or(common.cache.cache_size);
            let freed = cache.store().map_or(0, |store| store.prune(most)) + cache.remove_leftovers();
            say(format!("{} freed", size::human(freed)));
            Ok(code::FOUND)
        }
        Command::Verify(_) => {
            let (read, damaged) = cache.verify();
            for path in &damaged {
                let fate = match path.symlink_metadata() {
                    Ok(_) => "is damaged and cannot be removed",
                    Err(_) => "was damaged and is removed",
                };
                super::say(&format!("{} {fate}", path.display()));
            }
            say(format!("{read} files read, {} damaged", damaged.len()));
            Ok(if damaged.is_empty() { code::FOUND } else { code::CORRUPT })
        }
        Command::Clear(_) => {
            say(format!("{} freed", size::human(cache.clear())));
            Ok(code::FOUND)
        }
    }
}

/// What is in a cache.
#[derive(Debug, Serialize)]
struct Contents {
    dir: PathBuf,
    images: Vec<ImageLine>,
    layers: Vec<LayerLine>,
    /// All bytes, of indexes and documents too.
    total: u64,
}

#[derive(Debug, Serialize)]
struct ImageLine {
    image: String,
    platform: String,
    digest: String,
    /// Seconds from the epoch.
    seen: u64,
}

#[derive(Debug, Default, Serialize)]
struct LayerLine {
    digest: String,
    /// Bytes of the blob that are kept.
    stored: u64,
    /// Bytes decoded from it that are kept.
    decoded: u64,
    /// `complete`, `partial` or `none`.
    index: &'static str,
    /// Bytes of the index.
    index_size: u64,
    entries: Option<u32>,
    /// When stored bytes were last used, in seconds from the epoch.
    used: Option<u64>,
}

/// The directory of a cache, which need not be there.
struct CacheDir(PathBuf);

impl CacheDir {
    fn store(&self) -> Option<Store> {
        let dir = self.0.join("store");
        // Without a limit, so that looking at it changes nothing.
        dir.is_dir().then(|| Store::open(&dir, u64::MAX))
    }

    fn documents(&self) -> Documents {
        let dir = self.0.join("documents");
        match dir.is_dir() {
            true => Documents::open(&dir),
            false => Documents::none(),
        }
    }

    /// The indexes, complete and partial, by digest.
    fn indexes(&self) -> Vec<(PathBuf, Digest, bool)> {
        let read = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            let (digest, ending) = name.rsplit_once('.')?;
            let (algorithm, hex) = digest.split_once('-')?;
            let digest = format!("{algorithm}:{hex}").parse().ok()?;
            let complete = match ending {
                "index" => true,
                "partial" => false,
                _ => return None,
            };
            Some((path, digest, complete))
        };
        files(&self.0.join("index")).into_iter().filter_map(read).collect()
    }

    fn contents(&self) -> Contents {
        let images = self.documents().tags().into_iter().map(|tag| ImageLine {
            image: tag.reference,
            platform: tag.platform,
            digest: tag.digest.to_string(),
            seen: seconds(tag.seen),
        });
        let mut layers: BTreeMap<Digest, LayerLine> = BTreeMap::new();
        for (digest, kept) in self.store().map(|store| store.kept()).unwrap_or_default() {
            let line = layers.entry(digest).or_default();
            (line.stored, line.decoded) = (kept.compressed, kept.decoded);
            line.used = kept.used.map(seconds);
        }
        for (path, digest, complete) in self.indexes() {
            let line = layers.entry(digest).or_default();
            line.index = if complete { "complete" } else { "partial" };
            line.index_size += path.metadata().map_or(0, |metadata| metadata.len());
            line.entries = LayerIndex::open(&path, &digest).ok().map(|index| index.len());
        }
        let layers = layers.into_iter().map(|(digest, line)| LayerLine {
            digest: digest.to_string(),
            index: if line.index.is_empty() { "none" } else { line.index },
            ..line
        });
        Contents {
            dir: self.0.clone(),
            images: images.collect(),
            layers: layers.collect(),
            total: ["store", "index", "documents", "log"]
                .iter()
                .map(|part| size_of(&self.0.join(part)))
                .sum(),
        }
    }

    /// Reads everything; gives how many files that were, and those that were damaged and are removed.
    fn verify(&self) -> (u64, Vec<PathBuf>) {
        let (mut read, mut damaged) = self.store().map(|store| store.verify()).unwrap_or_default();
        let documents = self.documents().verify();
        read += documents.0;
        damaged.extend(documents.1);
        // Records of a partial one are checked when it is taken up, and whatever is wrong with it is left out then.
        for (path, digest, _) in self.indexes().into_iter().filter(|(.., complete)| *complete) {
            read += 1;
            if !is_sound(&path, &digest) {
                let _ = fs::remove_file(&path);
                damaged.push(path);
            }
        }
        (read, damaged)
    }

    /// The files beside the store that are ours: it may be a directory with others.
    fn files(&self) -> Vec<PathBuf> {
        let parts = ["index", "documents/sha256", "documents/sha512", "documents/tags"];
        let all = parts.into_iter().flat_map(|part| {
            let files = files(&self.0.join(part)).into_iter();
            files.filter(move |path| is_ours(part, path))
        });
        all.collect()
    }

    /// Removes what processes that were killed have left of files that they wrote.
    fn remove_leftovers(&self) -> u64 {
        let now = SystemTime::now();
        let is_left = |path: &PathBuf| {
            let written = path.metadata().and_then(|metadata| metadata.modified());
            is_temporary(path) && written.is_ok_and(|written| cache_dir::is_stale(written, now))
        };
        self.files()
            .iter()
            .filter(|path| is_left(path))
            .map(|path| remove(path))
            .sum()
    }

    /// Removes all that is ours.
    fn clear(&self) -> u64 {
        let stored = self.store().map_or(0, |store| store.prune(0));
        // The logs of daemons that run are theirs.
        let logs = files(&self.0.join("log")).into_iter();
        let logs = logs.filter(|path| log::is_log(path) && !log::is_in_use(path));
        let removed: u64 = self.files().into_iter().chain(logs).map(|path| remove(&path)).sum();
        stored + removed
    }
}

/// Whether a file in the part `part` of a cache has a name such as we give.
fn is_ours(part: &str, path: &Path) -> bool {
    let Some((stem, ending)) = path.file_name().and_then(|name| name.to_str()).map(split) else {
        return false;
    };
    let (digest, endings): (_, &[&str]) = match part.strip_prefix("documents/") {
        None => (stem.replacen('-', ":", 1), &["index", "partial"]),
        Some("tags") => (format!("sha256:{stem}"), &[""]),
        Some(algorithm) => (format!("{algorithm}:{stem}"), &[""]),
    };
    digest.parse::<Digest>().is_ok() && (endings.contains(&ending) || is_temporary(path))
}

/// A name without what begins with its first dot, and that.
fn split(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or((name, ""))
}

fn is_temporary(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "tmp")
}

/// Whether an index can be read, and all of its checkpoints.
fn is_sound(path: &Path, digest: &Digest) -> bool {
    LayerIndex::open(path, digest).is_ok_and(|index| (0..index.spans_len()).all(|i| index.checkpoint(i).is_some()))
}

/// Removes a file; gives how many bytes that freed.
fn remove(path: &Path) -> u64 {
    let size = path.symlink_metadata().map_or(0, |metadata| metadata.len());
    fs::remove_file(path).map_or(0, |()| size)
}

/// The regular files in a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.map(|entry| entry.path()).collect()
}

/// The bytes of all files below a directory.
fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => size_of(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |metadata| metadata.len()),
        _ => 0,
    };
    entries.map(size).sum()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn print(contents: &Contents, json: bool) -> Result<u8, Failure> {
    let mut output = std::io::stdout().lock();
    let written = match json {
        true => serde_json::to_writer_pretty(&mut output, contents)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(output)),
        false => write_text(&mut output, contents),
    };
    match written {
        Ok(()) => Ok(code::FOUND),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Closed),
        Err(error) => Err(Failure::io("cannot write to standard output")(error)),
    }
}

fn write_text(output: &mut impl Write, contents: &Contents) -> std::io::Result<()> {
    let short = |digest: &str| digest.get(..19).unwrap_or(digest).to_owned();
    if !contents.images.is_empty() {
        writeln!(output, "digest               last seen         image")?;
    }
    for image in &contents.images {
        let seen = time(image.seen as i64);
        let (digest, name, platform) = (short(&image.digest), &image.image, &image.platform);
        writeln!(output, "{digest}  {seen}  {name} ({platform})")?;
    }
    if !contents.layers.is_empty() {
        writeln!(
            output,
            "layer                    stored    decoded      index    entries  last used"
        )?;
    }
    for layer in &contents.layers {
        let human = size::human;
        let entries = layer
            .entries
            .map_or(layer.index.to_owned(), |entries| entries.to_string());
        let used = layer.used.map_or("-".to_owned(), |used| time(used as i64));
        writeln!(
            output,
            "{}  {:>10} {:>10} {:>10} {entries:>10}  {used}",
            short(&layer.digest),
            human(layer.stored),
            human(layer.decoded),
            human(layer.index_size),
        )?;
    }
    writeln!(output, "{} in {}", size::human(contents.total), contents.dir.display())
}
