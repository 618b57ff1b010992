//! `peelfs carve`.

mod archive;
mod files;

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::output::Output;
use super::{Failure, code, opening, progress};
use crate::image::reference::Reference;
use crate::inspect::{Content, Follow, Inspector, Meter, Node, Report, View, Walk};
use archive::Archive;
use files::{NewFile, Target};

#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Arguments {
    /// The image, as for mount
    image: Reference,
    /// Files in it, or with -o or --tar directories; a symlink is followed inside of the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
    /// Look only into this layer; 0 is the base
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// Where to write: a file, a directory, or - for standard output
    #[arg(short, long, value_name = "FILE|DIR|-")]
    output: Option<PathBuf>,
    /// Write a tar of what is at the paths
    #[arg(long)]
    tar: bool,
    /// Keep the setuid and setgid bits of files
    #[arg(long)]
    setuid: bool,
    /// Tell on standard error, as a line of JSON for each path, what was found and what it cost
    #[arg(long)]
    json: bool,
    /// Write that to a file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    opening: opening::Arguments,
}

/// Where the bytes go.
enum Sink {
    Stdout(Output),
    /// A tar, to standard output or a file.
    Tar(Box<Archive>),
    File(PathBuf),
    Directory(Target),
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let mut reports = Vec::new();
    let result = arguments.opening.with_image(&arguments.image, async |inspector| {
        carve(arguments, inspector, &mut reports).await
    });
    if let Err(failure) = &result
        && reports.is_empty()
        && !matches!(failure, Failure::Closed)
    {
        let image = arguments.image.to_string();
        let paths = arguments.paths.iter();
        reports.extend(paths.map(|path| Report::failed(&image, path.as_bytes(), Some(failure.to_string()))));
    }
    // What went wrong first is the news.
    let told = tell(arguments, &reports);
    result.and_then(|code| told.map(|()| code))
}

/// Writes the reports where they are wanted.
fn tell(arguments: &Arguments, reports: &[Report]) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for report in reports {
        serde_json::to_writer(&mut lines, report)
            .map_err(|error| Failure::io("cannot tell the costs")(error.into()))?;
        lines.push(b'\n');
    }
    if let Some(path) = &arguments.report {
        std::fs::write(path, &lines).map_err(Failure::io(format!("cannot write {}", path.display())))?;
    }
    if arguments.json {
        // Nobody who does not listen has to hear it.
        let _ = std::io::stderr().write_all(&lines);
    }
    Ok(())
}

async fn carve(arguments: &Arguments, inspector: &Inspector, reports: &mut Vec<Report>) -> Result<u8, Failure> {
    // Before anything is fetched.
    inspector.view(arguments.layer)?;
    let mut sink = arguments.sink()?;
    if let Sink::Tar(_) | Sink::Directory(_) = sink {
        check_names(&arguments.paths)?;
    }
    let mut worst = 0;
    for path in &arguments.paths {
        let path = path.as_bytes();
        let meter = Meter::start(inspector);
        let result = arguments.one(inspector, path, &mut sink).await;
        let result = match (arguments.json || arguments.report.is_some(), result) {
            (true, Ok(found)) => {
                opening::rest(inspector).await;
                opening::sound(inspector).map(|()| found)
            }
            (_, result) => result,
        };
        let told = match &result {
            Ok((from, size)) => Ok((*from, *size)),
            Err(Failure::Inspect(error)) => Err(error.to_string()),
            // The reader had enough: there is nothing to complain about, and no size to tell.
            Err(Failure::Closed) => return Err(Failure::Closed),
            Err(other) => Err(other.to_string()),
        };
        reports.push(meter.report(inspector, path, arguments.layer, told));
        match result {
            Ok(_) => {}
            Err(Failure::Inspect(error)) if error.is_not_found() => {
                super::say(&error.to_string());
                worst = code::NOT_FOUND;
            }
            Err(other) => return Err(other),
        }
    }
    match sink {
        Sink::Tar(archive) if worst == 0 => archive.finish().await?,
        Sink::Directory(target) => target.finish()?,
        _ => {}
    }
    Ok(worst)
}

impl Arguments {
    /// Where things go that are to be carved.
    fn sink(&self) -> Result<Sink, Failure> {
        let to = self.output.as_deref().filter(|path| *path != Path::new("-"));
        match to {
            _ if self.tar => Ok(Sink::Tar(Box::new(Archive::new(to)?))),
            None => Ok(Sink::Stdout(Output::new())),
            Some(path) => {
                let named = path.as_os_str().as_bytes().ends_with(b"/");
                match path.is_dir() || named || self.paths.len() > 1 {
                    true => Ok(Sink::Directory(Target::open(path, self.setuid)?)),
                    false => Ok(Sink::File(path.to_owned())),
                }
            }
        }
    }

    /// Carves what is at `path`. Gives the layer that it is from, and its size.
    async fn one(&self, inspector: &Inspector, path: &[u8], sink: &mut Sink) -> Result<(Option<usize>, u64), Failure> {
        let (layers, quiet) = (inspector.layers(), self.opening.quiet);
        let found = inspector.find(self.layer, path, Follow::Last);
        let (view, node) = progress::during(layers, quiet, found).await?;
        let node = Arc::new(node);
        let quiet = quiet || matches!(sink, Sink::Stdout(output) if output.is_terminal());
        let put = async {
            let node = view.settled(node).await?;
            let size = self.put(&view, &node, path, sink).await?;
            Ok((node.layer(), size))
        };
        progress::during(layers, quiet, put).await
    }

    /// Puts a file, or a whole directory, where it belongs; gives how many bytes of content that was.
    async fn put(&self, view: &View, node: &Arc<Node>, path: &[u8], sink: &mut Sink) -> Result<u64, Failure> {
        let name = last_name(path, node);
        match sink {
            Sink::Stdout(_) if node.is_directory() => Err(Failure::Usage(format!(
                "/{} is a directory: say where it is to go with -o DIR, or add --tar",
                crate::inspect::escaped(&node.path)
            ))),
            Sink::Stdout(output) => pour(view, node, async |bytes| output.write(bytes).await).await,
            Sink::Tar(archive) => archive.add(view, node, &name).await,
            Sink::File(path) if node.is_directory() => {
                let mut target = Target::open(path, self.setuid)?;
                let size = everything(view, node, b"", &mut target).await?;
                target.finish()?;
                Ok(size)
            }
            Sink::File(path) => {
                let mut file = NewFile::beside(path)?;
                let size = pour(view, node, async |bytes| file.write(&bytes)).await?;
                file.finish(&node.attr, self.setuid)?;
                Ok(size)
            }
            Sink::Directory(target) => everything(view, node, &name, target).await,
        }
    }
}

/// Fails if two of the paths would have the same name where they go.
fn check_names(paths: &[OsString]) -> Result<(), Failure> {
    let mut names = HashSet::new();
    for path in paths {
        let mut parts = path.as_bytes().rsplit(|byte| *byte == b'/');
        let name = parts.find(|name| !name.is_empty() && *name != b".");
        if let Some(name) = name.filter(|name| *name != b"..")
            && !names.insert(name)
        {
            let name = crate::inspect::escaped(name);
            let reason =
                format!("two of the paths end in '{name}', and both cannot have that name: carve them one by one");
            return Err(Failure::Usage(reason));
        }
    }
    Ok(())
}

/// What a path is called where it goes: its last name as it was given, the root nothing.
fn last_name(path: &[u8], node: &Node) -> Vec<u8> {
    let named = path
        .rsplit(|byte| *byte == b'/')
        .find(|name| !name.is_empty() && *name != b".");
    match named {
        Some(name) if name != b".." => name.to_vec(),
        _ => node
            .path
            .rsplit(|byte| *byte == b'/')
            .next()
            .unwrap_or_default()
            .to_vec(),
    }
}

/// Writes `node`, and all that is below it, as `name` in `target`.
async fn everything(view: &View, node: &Arc<Node>, name: &[u8], target: &mut Target) -> Result<u64, Failure> {
    let mut size = target.add(view, node, name).await?;
    if !node.is_directory() {
        return Ok(size);
    }
    let mut walk = Walk::of(view, node.clone(), true);
    while let Some(child) = walk.next().await? {
        size += target.add(view, &child, &below(node, &child, name)).await?;
    }
    Ok(size)
}

/// The path of `child`, which is below `node`, when that is called `name`.
fn below(node: &Node, child: &Node, name: &[u8]) -> Vec<u8> {
    let rest = child.path.get(node.path.len()..).unwrap_or_default();
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    match name.is_empty() {
        true => rest.to_vec(),
        false => [name, rest].join(&b'/'),
    }
}

/// All of a file's bytes, one piece after another, given to `take`.
async fn pour(
    view: &View,
    node: &Arc<Node>,
    mut take: impl AsyncFnMut(Bytes) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut content = Content::all(view, node.clone())?;
    let size = content.remaining();
    while let Some(bytes) = content.next().await? {
        take(bytes).await?;
    }
    Ok(size)
}

/// A path of the image as one of this machine, for a message.
fn os(path: &[u8]) -> PathBuf {
    OsString::from_vec(path.to_vec()).into()
}
