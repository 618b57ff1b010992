//! What the tests of layers and of the tree share: tars written in a line per entry, and blobs in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{IndexDir, Layer, Workshop};
use crate::blob::{Blob, ExtentKind, Store};
use crate::digest::Digest;
use crate::image::platform::Platform;
use crate::image::source::{BlobOrigin, BlobSource, FetchError, Fetched};
use crate::image::{Image, LayerDescriptor};
use crate::range::ByteRange;

/// Bytes that come with one step of a response.
const STEP: u64 = 8 << 10;

/// One member of a tar. Its owner is the layer's number and its mode the line's, so that it can be told from others of
/// the same name.
#[derive(Clone)]
pub(crate) struct Line {
    pub path: String,
    pub what: What,
    pub dress: Dress,
}

/// As [`lines`] reads it: what a test has found is to be read.
impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.what {
            What::Directory => write!(f, "d {path}"),
            What::File(size) => write!(f, "f {path} {size}"),
            What::Symlink(to) => write!(f, "l {path} {to}"),
            What::Hardlink(to) => write!(f, "h {path} {to}"),
            What::Fifo => write!(f, "p {path}"),
            What::Device => write!(f, "c {path}"),
        }
    }
}

/// What a member says besides what it is, and how it says it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dress {
    pub gid: u32,
    pub mtime: (i64, u32),
    /// Sorted by name.
    pub xattrs: Vec<(String, Vec<u8>)>,
    pub name: NameIn,
    /// Of a file: the flag in its header.
    pub flag: Option<u8>,
    /// Of a file: every other [`PIECE`] of it is a hole.
    pub sparse: bool,
}

/// Where the name of a member stands.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum NameIn {
    #[default]
    Header,
    Pax,
    Gnu,
}

/// The unit of everything in a tar.
pub(crate) const BLOCK: usize = 512;

/// Bytes of the pieces and of the holes of sparse files.
const PIECE: usize = 300;

#[derive(Debug, Clone)]
pub(crate) enum What {
    Directory,
    /// With so many bytes of [`content`].
    File(usize),
    Symlink(String),
    Hardlink(String),
    Fifo,
    Device,
}

/// `d PATH`, `f PATH [SIZE]`, `l PATH TARGET`, `h PATH TARGET`, `p PATH`, `c PATH`, one a line.
pub(crate) fn lines(text: &str) -> Vec<Line> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let rest = words.get(2).copied().unwrap_or_default().to_owned();
        Line {
            dress: Dress::default(),
            path: words[1].to_owned(),
            what: match words[0] {
                "d" => What::Directory,
                "f" => What::File(rest.parse().unwrap_or(10)),
                "l" => What::Symlink(rest),
                "h" => What::Hardlink(rest),
                "p" => What::Fifo,
                "c" => What::Device,
                other => panic!("no such kind: {other}"),
            },
        }
    };
    lines.map(line).collect()
}

/// What the file of line `line` in layer `layer` holds: bytes that do not compress, and that no other file has.
pub(crate) fn content(layer: usize, line: usize, len: usize) -> Vec<u8> {
    let mut state = (layer as u64 + 1) << 32 | (line as u64 + 1);
    let mut next = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(len);
    bytes
}

/// What a reader of the file of line `number` in layer `layer` gets: [`content`], with zeros where the file has holes.
pub(crate) fn shown_content(layer: usize, number: usize, line: &Line) -> Vec<u8> {
    let What::File(len) = line.what else { return Vec::new() };
    let mut bytes = content(layer, number, len);
    let holes = bytes.chunks_mut(PIECE).skip(1).step_by(2);
    holes.filter(|_| line.dress.sparse).for_each(|hole| hole.fill(0));
    bytes
}

/// The PAX records of a sparse file of `len` bytes.
fn sparse_records(len: usize) -> Vec<(String, Vec<u8>)> {
    let pieces = (0..len)
        .step_by(2 * PIECE)
        .map(|at| format!("{at},{}", PIECE.min(len - at)));
    let map: Vec<String> = pieces.chain([format!("{len},0")]).collect();
    vec![
        ("GNU.sparse.size".into(), len.to_string().into()),
        ("GNU.sparse.numblocks".into(), map.len().to_string().into()),
        ("GNU.sparse.map".into(), map.join(",").into()),
    ]
}

/// The tar of layer `layer`.
pub(crate) fn tar(layer: usize, lines: &[Line]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (number, line) in lines.iter().enumerate() {
        let dress = &line.dress;
        let mut header = tar::Header::new_gnu();
        let (kind, link, data) = match &line.what {
            What::Directory => (tar::EntryType::Directory, "", Vec::new()),
            What::File(len) => (tar::EntryType::Regular, "", content(layer, number, *len)),
            What::Symlink(to) => (tar::EntryType::Symlink, to.as_str(), Vec::new()),
            What::Hardlink(to) => (tar::EntryType::Link, to.as_str(), Vec::new()),
            What::Fifo => (tar::EntryType::Fifo, "", Vec::new()),
            What::Device => (tar::EntryType::Char, "", Vec::new()),
        };
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let mut data = data;
        if let (What::File(len), true) = (&line.what, dress.sparse) {
            records.extend(sparse_records(*len));
            data = data.chunks(PIECE).step_by(2).flatten().copied().collect();
        }
        let name = |name: &String| format!("SCHILY.xattr.{name}");
        records.extend(dress.xattrs.iter().map(|(key, value)| (name(key), value.clone())));
        let (seconds, nanoseconds) = dress.mtime;
        match (seconds, nanoseconds) {
            (0.., 0) => {}
            (0.., nanoseconds) => records.push(("mtime".into(), format!("{seconds}.{nanoseconds:09}").into())),
            (_, 0) => records.push(("mtime".into(), seconds.to_string().into())),
            // Rounded down, as the index has it; PAX has it rounded to zero.
            (seconds, nanoseconds) => {
                let (seconds, nanoseconds) = (seconds + 1, 1_000_000_000 - nanoseconds);
                records.push(("mtime".into(), format!("-{}.{nanoseconds:09}", -seconds).into()));
            }
        }
        let mut path = line.path.clone().into_bytes();
        match dress.name {
            NameIn::Header => {}
            NameIn::Pax => records.push(("path".into(), std::mem::replace(&mut path, b"elsewhere".to_vec()))),
            NameIn::Gnu => {
                let mut long = tar::Header::new_gnu();
                let name = [&*std::mem::replace(&mut path, b"elsewhere".to_vec()), b"\0"].concat();
                long.set_path("././@LongLink").unwrap();
                long.set_entry_type(tar::EntryType::GNULongName);
                long.set_size(name.len() as u64);
                long.set_cksum();
                builder.append(&long, &name[..]).unwrap();
            }
        }
        if !records.is_empty() {
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            builder.append_pax_extensions(records).unwrap();
        }
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(&path);
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        if let (What::File(_), Some(flag)) = (&line.what, dress.flag) {
            header.as_old_mut().linkflag = [flag];
        }
        header.set_mode(number as u32 + 1);
        header.set_uid(layer as u64);
        header.set_gid(dress.gid.into());
        header.set_mtime(seconds.max(0) as u64);
        header.set_size(data.len() as u64);
        if let What::Device = line.what {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        builder.append(&header, &data[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    gzip_at(6, bytes)
}

/// At level 1 zlib-rs makes one block of everything.
pub(crate) fn gzip_at(level: u32, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Gzip of one member for each `chunk` bytes.
pub(crate) fn gzip_members(bytes: &[u8], chunk: usize) -> Vec<u8> {
    bytes.chunks(chunk).flat_map(gzip).collect()
}

/// Zstandard with one frame for each `chunk` bytes.
pub(crate) fn zstd_frames(bytes: &[u8], chunk: usize) -> Vec<u8> {
    let frames = bytes.chunks(chunk).map(|chunk| zstd::bulk::compress(chunk, 1).unwrap());
    frames.flatten().collect()
}

/// A blob in memory that counts what it is asked for, and misbehaves as it is told.
pub(crate) struct Source {
    bytes: Mutex<Bytes>,
    requests: AtomicU64,
    requested: AtomicU64,
    /// From here on there are only errors.
    broken_from: AtomicU64,
    /// No answer is given while this is so.
    held: watch::Sender<bool>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Source")
    }
}

impl Source {
    pub fn new(bytes: impl Into<Bytes>) -> Arc<Source> {
        Arc::new(Source {
            bytes: Mutex::new(bytes.into()),
            requests: AtomicU64::new(0),
            requested: AtomicU64::new(0),
            broken_from: AtomicU64::new(u64::MAX),
            held: watch::Sender::new(false),
        })
    }

    /// Requests made so far, and bytes that they asked for.
    pub fn cost(&self) -> (u64, u64) {
        (
            self.requests.load(Ordering::SeqCst),
            self.requested.load(Ordering::SeqCst),
        )
    }

    pub fn break_from(&self, offset: u64) {
        self.broken_from.store(offset, Ordering::SeqCst);
    }

    /// Takes requests without an answer from now on, or answers them all.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// From now on gives other bytes, of the same length.
    pub fn replace(&self, bytes: impl Into<Bytes>) {
        *self.bytes.lock() = bytes.into();
    }
}

impl BlobSource for Source {
    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        self.requested.fetch_add(range.len(), Ordering::SeqCst);
        let broken_from = self.broken_from.load(Ordering::SeqCst);
        let bytes = self.bytes.lock().clone();
        let steps = (range.start()..range.end()).step_by(STEP as usize).map(move |at| {
            let step = ByteRange::at(at, STEP).intersection(&range);
            if step.end() > broken_from {
                return Err(FetchError::Permanent {
                    reason: "the registry is broken".into(),
                });
            }
            Ok(bytes.slice(step.start() as usize..step.end() as usize))
        });
        // A pause now and then, so that others get their turn.
        let body = stream::iter(steps)
            .then(|step| async move {
                tokio::task::yield_now().await;
                step
            })
            .boxed();
        let mut held = self.held.subscribe();
        Box::pin(async move {
            // The sender lives as long as the source.
            let _ = held.wait_for(|held| !held).await;
            Ok(Fetched { range, body })
        })
    }
}

/// What a manifest would say of the blob.
pub(crate) fn descriptor(blob: &[u8], diff_id: Option<Digest>, source: Arc<Source>) -> LayerDescriptor {
    LayerDescriptor {
        digest: Digest::sha256(blob),
        size: blob.len() as u64,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        diff_id,
        annotations: BTreeMap::new(),
        origin: BlobOrigin::Remote(source),
    }
}

/// The layer with `number`, as a mount with its cache in `dir` has it.
pub(crate) fn layer(number: usize, descriptor: LayerDescriptor, dir: &Path, workshop: &Arc<Workshop>) -> Arc<Layer> {
    layer_in(number, descriptor, &store(dir), dir, workshop)
}

/// A store in `dir` that keeps much.
pub(crate) fn store(dir: &Path) -> Store {
    Store::open(&dir.join("store"), 1 << 30)
}

/// As [`layer`], with a store of its own.
pub(crate) fn layer_in(
    number: usize,
    descriptor: LayerDescriptor,
    store: &Store,
    dir: &Path,
    workshop: &Arc<Workshop>,
) -> Arc<Layer> {
    let index_dir = dir.join("index");
    std::fs::create_dir_all(&index_dir).unwrap();
    let deadline = Duration::from_secs(20);
    let blob = Blob::new(
        descriptor.digest,
        descriptor.size,
        descriptor.origin.clone(),
        store,
        deadline,
    );
    let decoded = store.extents(ExtentKind::Decoded, &descriptor.digest);
    Layer::open(
        number,
        descriptor,
        blob,
        decoded,
        IndexDir::Kept(index_dir),
        workshop.clone(),
    )
}

/// An image of nothing but layers.
pub(crate) fn image(layers: Vec<LayerDescriptor>) -> Image {
    Image {
        reference: "sample".into(),
        resolved: Digest::sha256(b"manifest"),
        manifest: Bytes::from_static(b"manifest"),
        config: Bytes::from_static(b"config"),
        platform: Platform::host(),
        layers,
    }
}
