//! Images made in code: layers from tables of entries, written as OCI layout directories.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use peelfs::digest::{Digest, Hasher};
use serde_json::{Value, json};
use tar::{EntryType, Header};

/// The bytes of a file.
#[derive(Clone, Debug)]
pub enum Content {
    /// These.
    Bytes(Vec<u8>),
    /// That many bytes of reproducible text that gzip makes about half of.
    Noise {
        /// Different numbers, different bytes.
        seed: u64,
        /// How many.
        size: u64,
    },
}

impl Content {
    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Noise { size, .. } => *size,
        }
    }

    /// Bytes that hardly compress.
    pub fn noise(seed: u64, size: u64) -> Content {
        Content::Noise { seed, size }
    }

    /// All of the bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes).expect("memory");
        bytes
    }

    /// The bytes, from the first.
    pub fn reader(&self) -> Box<dyn Read + '_> {
        match self {
            Content::Bytes(bytes) => Box::new(bytes.as_slice()),
            Content::Noise { seed, size } => Box::new(
                Noise {
                    state: seed.wrapping_mul(2) + 1,
                    buffer: Vec::new(),
                    taken: 0,
                }
                .take(*size),
            ),
        }
    }
}

impl<T: AsRef<[u8]>> From<T> for Content {
    fn from(bytes: T) -> Content {
        Content::Bytes(bytes.as_ref().to_vec())
    }
}

/// An endless stream of 16 different letters from a xorshift generator.
struct Noise {
    state: u64,
    buffer: Vec<u8>,
    taken: usize,
}

impl Read for Noise {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
            for _ in 0..4096 {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                // Each nibble becomes a byte of its own, in 0x40..0x50: letters mostly.
                let spread = |nibbles: u64| {
                    let nibbles = (nibbles | nibbles << 16) & 0x0000_ffff_0000_ffff;
                    let nibbles = (nibbles | nibbles << 8) & 0x00ff_00ff_00ff_00ff;
                    let nibbles = (nibbles | nibbles << 4) & 0x0f0f_0f0f_0f0f_0f0f;
                    (nibbles | 0x4040_4040_4040_4040).to_le_bytes()
                };
                self.buffer.extend_from_slice(&spread(self.state & 0xffff_ffff));
                self.buffer.extend_from_slice(&spread(self.state >> 32));
            }
        }
        let length = out.len().min(self.buffer.len() - self.taken);
        out[..length].copy_from_slice(&self.buffer[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}

/// One member of a layer's tar. Its names are bytes and go into the tar as they are given.
#[derive(Clone, Debug)]
pub struct Entry {
    path: Vec<u8>,
    kind: EntryType,
    content: Content,
    link: Vec<u8>,
    device: (u32, u32),
    mode: u32,
    owner: (u64, u64),
    mtime: (u64, u32),
    xattrs: Vec<(String, Vec<u8>)>,
}

/// The mtime of an entry that was not given another: 2024-01-02 03:04:05 UTC.
pub const MTIME: u64 = 1_704_164_645;

impl Entry {
    fn new(path: impl AsRef<[u8]>, kind: EntryType, mode: u32) -> Entry {
        Entry {
            path: path.as_ref().to_vec(),
            kind,
            content: Content::Bytes(Vec::new()),
            link: Vec::new(),
            device: (0, 0),
            mode,
            owner: (0, 0),
            mtime: (MTIME, 0),
            xattrs: Vec::new(),
        }
    }

    /// A file, 0644.
    pub fn file(path: impl AsRef<[u8]>, content: impl Into<Content>) -> Entry {
        Entry {
            content: content.into(),
            ..Entry::new(path, EntryType::Regular, 0o644)
        }
    }

    /// A directory, 0755.
    pub fn dir(path: impl AsRef<[u8]>) -> Entry {
        Entry::new(path, EntryType::Directory, 0o755)
    }

    /// A symlink.
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
        Entry {
            link: target.as_ref().to_vec(),
            ..Entry::new(path, EntryType::Symlink, 0o777)
        }
    }

    /// A hardlink to the path `target`.
    pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
        Entry {
            link: target.as_ref().to_vec(),
            ..Entry::new(path, EntryType::Link, 0o644)
        }
    }

    /// A named pipe.
    pub fn fifo(path: impl AsRef<[u8]>) -> Entry {
        Entry::new(path, EntryType::Fifo, 0o644)
    }

    /// A character device.
    pub fn char_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Entry {
        Entry {
            device: (major, minor),
            ..Entry::new(path, EntryType::Char, 0o600)
        }
    }

    /// The whiteout of `path`: an empty file `.wh.NAME` beside it.
    pub fn whiteout(path: &str) -> Entry {
        match path.rsplit_once('/') {
            Some((parent, name)) => Entry::file(format!("{parent}/.wh.{name}"), ""),
            None => Entry::file(format!(".wh.{path}"), ""),
        }
    }

    /// The mark that makes the directory `path` opaque.
    pub fn opaque(path: &str) -> Entry {
        Entry::file(format!("{path}/.wh..wh..opq"), "")
    }

    /// With these permission bits.
    pub fn mode(self, mode: u32) -> Entry {
        Entry { mode, ..self }
    }

    /// With this user and group.
    pub fn owner(self, uid: u64, gid: u64) -> Entry {
        Entry {
            owner: (uid, gid),
            ..self
        }
    }

    /// With this modification time.
    pub fn mtime(self, seconds: u64, nanoseconds: u32) -> Entry {
        Entry {
            mtime: (seconds, nanoseconds),
            ..self
        }
    }

    /// With this extended attribute too.
    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Entry {
        self.xattrs.push((name.to_string(), value.as_ref().to_vec()));
        self
    }

    fn append<W: Write>(&self, tar: &mut tar::Builder<W>) -> io::Result<()> {
        let mut records: Vec<(String, Vec<u8>)> = self
            .xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone()))
            .collect();
        if self.mtime.1 != 0 {
            records.push((
                "mtime".into(),
                format!("{}.{:09}", self.mtime.0, self.mtime.1).into_bytes(),
            ));
        }
        let mut header = Header::new_ustar();
        // The crate's own setters mend what they deem wrong; what a test writes must get through as it is.
        let raw = header.as_old_mut();
        match raw.name.get_mut(..self.path.len()) {
            Some(name) => name.copy_from_slice(&self.path),
            None => records.push(("path".into(), self.path.clone())),
        }
        match raw.linkname.get_mut(..self.link.len()) {
            Some(link) => link.copy_from_slice(&self.link),
            None => records.push(("linkpath".into(), self.link.clone())),
        }
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(self.mtime.0);
        header.set_size(self.content.size());
        header.set_device_major(self.device.0)?;
        header.set_device_minor(self.device.1)?;
        header.set_cksum();
        tar.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        tar.append(&header, self.content.reader())
    }
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug)]
pub enum Compression {
    /// Not at all.
    None,
    /// One gzip member.
    Gzip,
    /// A gzip member for each so many bytes of tar.
    GzipMembers(usize),
    /// One zstd frame.
    Zstd,
    /// A zstd frame for each so many bytes of tar.
    ZstdFrames(usize),
}

impl Compression {
    fn suffix(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip | Compression::GzipMembers(_) => "gzip",
            Compression::Zstd | Compression::ZstdFrames(_) => "zstd",
        }
    }
}

/// A layer in the making.
#[derive(Clone, Debug)]
pub struct Layer {
    source: LayerSource,
    compression: Compression,
    media_type: Option<String>,
}

/// What a layer is made of.
#[derive(Clone, Debug)]
enum LayerSource {
    Entries(Vec<Entry>),
    /// A tar that somebody made, byte by byte.
    Tar(Vec<u8>),
    /// A blob that somebody made, and the digest of the tar that its config shall claim is in it.
    Blob(Vec<u8>, Digest),
}

impl Layer {
    fn new(source: LayerSource) -> Layer {
        Layer {
            source,
            compression: Compression::Gzip,
            media_type: None,
        }
    }

    /// A gzip layer of these entries, in this order.
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Layer {
        Layer::new(LayerSource::Entries(entries.into_iter().collect()))
    }

    /// A gzip layer of a tar made by hand, which need not be one.
    pub fn tar(tar: impl Into<Vec<u8>>) -> Layer {
        Layer::new(LayerSource::Tar(tar.into()))
    }

    /// A layer of these very bytes, which hold, or claim to hold, `tar`.
    pub fn blob(blob: impl Into<Vec<u8>>, tar: &[u8]) -> Layer {
        Layer::blob_of(blob, Digest::sha256(tar))
    }

    /// A layer of these very bytes, which hold a tar of this digest.
    pub fn blob_of(blob: impl Into<Vec<u8>>, diff_id: Digest) -> Layer {
        Layer::new(LayerSource::Blob(blob.into(), diff_id))
    }

    /// Compressed another way; of a blob, told to be so.
    pub fn compressed(self, compression: Compression) -> Layer {
        Layer { compression, ..self }
    }

    /// With this media type in the manifest, right or wrong.
    pub fn media_type(self, media_type: &str) -> Layer {
        Layer {
            media_type: Some(media_type.to_string()),
            ..self
        }
    }

    fn write(&self, layout: &Path) -> io::Result<BuiltLayer> {
        let mut blob = Hashed::new(tempfile::NamedTempFile::new_in(layout.join("blobs/sha256"))?);
        let (blob, diff_id) = match &self.source {
            LayerSource::Blob(bytes, diff_id) => {
                blob.write_all(bytes)?;
                (blob, *diff_id)
            }
            LayerSource::Tar(bytes) => {
                let mut tar = Hashed::new(Compressor::new(self.compression, blob)?);
                tar.write_all(bytes)?;
                let (compressor, diff_id, _) = tar.finish();
                (compressor.finish()?, diff_id)
            }
            LayerSource::Entries(entries) => {
                let tar = Hashed::new(Compressor::new(self.compression, blob)?);
                let mut builder = tar::Builder::new(tar);
                for entry in entries {
                    entry.append(&mut builder)?;
                }
                let (compressor, diff_id, _) = builder.into_inner()?.finish();
                (compressor.finish()?, diff_id)
            }
        };
        let (file, digest, size) = blob.finish();
        let path = blob_path(layout, &digest);
        file.persist(&path)?;
        Ok(BuiltLayer {
            path,
            digest,
            diff_id,
            size,
            compression: self.compression,
            media_type: self.media_type.clone(),
        })
    }
}

/// Hashes and counts what is written through it.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Hashed<W> {
        Hashed {
            inner,
            hasher: Digest::sha256(b"").hasher(),
            size: 0,
        }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.size)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Compresses what is written through it; a new member or frame begins after each `every` bytes.
enum Compressor<W: Write> {
    None(W),
    Gzip {
        encoder: Option<GzEncoder<W>>,
        every: usize,
        left: usize,
    },
    Zstd {
        encoder: Option<zstd::stream::write::Encoder<'static, W>>,
        every: usize,
        left: usize,
    },
}

impl<W: Write> Compressor<W> {
    fn new(compression: Compression, inner: W) -> io::Result<Compressor<W>> {
        let gzip = |inner, every| Compressor::Gzip {
            encoder: Some(gzip(inner)),
            every,
            left: every,
        };
        Ok(match compression {
            Compression::None => Compressor::None(inner),
            Compression::Gzip => gzip(inner, usize::MAX),
            Compression::GzipMembers(every) => gzip(inner, every),
            Compression::Zstd => Compressor::Zstd {
                encoder: Some(zstd(inner)?),
                every: usize::MAX,
                left: usize::MAX,
            },
            Compression::ZstdFrames(every) => Compressor::Zstd {
                encoder: Some(zstd(inner)?),
                every,
                left: every,
            },
        })
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Compressor::None(inner) => Ok(inner),
            Compressor::Gzip { encoder, .. } => encoder.ok_or_else(broken)?.finish(),
            Compressor::Zstd { encoder, .. } => encoder.ok_or_else(broken)?.finish(),
        }
    }
}

fn gzip<W: Write>(inner: W) -> GzEncoder<W> {
    GzEncoder::new(inner, flate2::Compression::new(6))
}

fn zstd<W: Write>(inner: W) -> io::Result<zstd::stream::write::Encoder<'static, W>> {
    zstd::stream::write::Encoder::new(inner, 3)
}

fn broken() -> io::Error {
    io::Error::other("the compressor failed before")
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::None(inner) => inner.write(bytes),
            Compressor::Gzip { encoder, every, left } => {
                if *left == 0 {
                    *encoder = Some(gzip(encoder.take().ok_or_else(broken)?.finish()?));
                    *left = *every;
                }
                let written = encoder
                    .as_mut()
                    .ok_or_else(broken)?
                    .write(&bytes[..bytes.len().min(*left)])?;
                *left -= written;
                Ok(written)
            }
            Compressor::Zstd { encoder, every, left } => {
                if *left == 0 {
                    *encoder = Some(zstd(encoder.take().ok_or_else(broken)?.finish()?)?);
                    *left = *every;
                }
                let written = encoder
                    .as_mut()
                    .ok_or_else(broken)?
                    .write(&bytes[..bytes.len().min(*left)])?;
                *left -= written;
                Ok(written)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An image in the making.
#[derive(Clone, Debug, Default)]
pub struct ImageBuilder {
    layers: Vec<Layer>,
    docker: bool,
    indexed: bool,
    wrong_diff_ids: Vec<usize>,
}

impl ImageBuilder {
    /// An image of these layers, base first.
    pub fn of(layers: impl IntoIterator<Item = Layer>) -> ImageBuilder {
        ImageBuilder {
            layers: layers.into_iter().collect(),
            ..ImageBuilder::default()
        }
    }

    /// With Docker's media types (schema 2) in place of OCI's.
    pub fn docker(self) -> ImageBuilder {
        ImageBuilder { docker: true, ..self }
    }

    /// Behind an index, beside an image for a platform that nobody has.
    pub fn indexed(self) -> ImageBuilder {
        ImageBuilder { indexed: true, ..self }
    }

    /// With a config that says another DiffID of this layer than its stream has.
    pub fn wrong_diff_id(mut self, layer: usize) -> ImageBuilder {
        self.wrong_diff_ids.push(layer);
        self
    }

    /// Writes the image into the OCI layout `layout`, which may hold others, under `tag`.
    pub fn write(&self, layout: &Path, tag: &str) -> io::Result<BuiltImage> {
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        fs::write(layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let layers: Vec<BuiltLayer> = self
            .layers
            .iter()
            .map(|layer| layer.write(layout))
            .collect::<io::Result<_>>()?;
        let diff_ids: Vec<String> = layers
            .iter()
            .enumerate()
            .map(|(number, layer)| match self.wrong_diff_ids.contains(&number) {
                true => Digest::sha256(b"something else").to_string(),
                false => layer.diff_id.to_string(),
            })
            .collect();
        let config = self.document(
            layout,
            self.media_type(
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.docker.container.image.v1+json",
            ),
            &json!({
                "architecture": architecture(), "os": "linux", "config": {"Cmd": ["/bin/sh"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
                "history": vec![json!({"created_by": "tests"}); layers.len()],
            }),
        )?;
        let manifest_type = self.media_type(
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        );
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let media_type = layer.media_type.clone();
                let media_type = media_type.unwrap_or_else(|| self.layer_media_type(layer.compression));
                json!({"mediaType": media_type, "digest": layer.digest.to_string(), "size": layer.size})
            })
            .collect();
        let manifest = self.document(
            layout,
            manifest_type,
            &json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": descriptors}),
        )?;
        let digest = manifest["digest"]
            .as_str()
            .and_then(|digest| digest.parse().ok())
            .ok_or_else(broken)?;
        let mut top = manifest.clone();
        if self.indexed {
            let mut here = manifest.clone();
            here["platform"] = json!({"os": "linux", "architecture": architecture()});
            let mut elsewhere = manifest;
            elsewhere["platform"] = json!({"os": "plan9", "architecture": "mips"});
            let index_type = self.media_type(
                "application/vnd.oci.image.index.v1+json",
                "application/vnd.docker.distribution.manifest.list.v2+json",
            );
            let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [elsewhere, here]});
            top = self.document(layout, index_type, &index)?;
        }
        top["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        add_to_index(layout, top)?;
        Ok(BuiltImage {
            layout: layout.to_path_buf(),
            tag: tag.to_string(),
            manifest: digest,
            layers,
        })
    }

    fn media_type(&self, oci: &'static str, docker: &'static str) -> &'static str {
        if self.docker { docker } else { oci }
    }

    fn layer_media_type(&self, compression: Compression) -> String {
        let (base, separator) = match self.docker {
            true => ("application/vnd.docker.image.rootfs.diff.tar", "."),
            false => ("application/vnd.oci.image.layer.v1.tar", "+"),
        };
        match compression.suffix() {
            "" => base.to_string(),
            suffix => format!("{base}{separator}{suffix}"),
        }
    }

    /// Writes a JSON document as a blob and returns its descriptor.
    fn document(&self, layout: &Path, media_type: &str, document: &Value) -> io::Result<Value> {
        let bytes = serde_json::to_vec(document)?;
        let digest = Digest::sha256(&bytes);
        fs::write(blob_path(layout, &digest), &bytes)?;
        Ok(json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()}))
    }
}

fn blob_path(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs").join(digest.algorithm()).join(digest.hex())
}

fn add_to_index(layout: &Path, descriptor: Value) -> io::Result<()> {
    let path = layout.join("index.json");
    let mut index = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => json!({"schemaVersion": 2, "manifests": []}),
    };
    let manifests = index["manifests"].as_array_mut().ok_or_else(broken)?;
    manifests.retain(|other| other["annotations"] != descriptor["annotations"]);
    manifests.push(descriptor);
    fs::write(path, serde_json::to_vec(&index)?)
}

/// The host's architecture as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An image in a layout.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// The layout's directory.
    pub layout: PathBuf,
    /// The image's tag there.
    pub tag: String,
    /// The digest of its manifest (not of an index before it).
    pub manifest: Digest,
    /// Its layers, base first.
    pub layers: Vec<BuiltLayer>,
}

impl BuiltImage {
    /// The image that another tool wrote to `layout` as `tag`, with gzip layers.
    pub fn open(layout: &Path, tag: &str) -> io::Result<BuiltImage> {
        let read = |path: PathBuf| -> io::Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
        let digest_of = |descriptor: &Value| -> io::Result<Digest> {
            descriptor
                .as_str()
                .and_then(|digest| digest.parse().ok())
                .ok_or_else(|| io::Error::other("no digest"))
        };
        let index = read(layout.join("index.json"))?;
        let tagged = |descriptor: &&Value| descriptor["annotations"]["org.opencontainers.image.ref.name"] == tag;
        let top = index["manifests"].as_array().and_then(|all| all.iter().find(tagged));
        let manifest_digest = digest_of(&top.ok_or_else(|| io::Error::other("no such tag"))?["digest"])?;
        let manifest = read(blob_path(layout, &manifest_digest))?;
        let config = read(blob_path(layout, &digest_of(&manifest["config"]["digest"])?))?;
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        let layers = layers
            .iter()
            .enumerate()
            .map(|(number, layer)| {
                let digest = digest_of(&layer["digest"])?;
                Ok(BuiltLayer {
                    path: blob_path(layout, &digest),
                    digest,
                    diff_id: digest_of(&config["rootfs"]["diff_ids"][number])?,
                    size: layer["size"].as_u64().unwrap_or_default(),
                    compression: Compression::Gzip,
                    media_type: None,
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(BuiltImage {
            layout: layout.to_path_buf(),
            tag: tag.to_string(),
            manifest: manifest_digest,
            layers,
        })
    }

    /// The size of all layers as they are in the registry.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// A layer in a layout.
#[derive(Clone, Debug)]
pub struct BuiltLayer {
    /// The blob's file.
    pub path: PathBuf,
    /// The blob's digest.
    pub digest: Digest,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// The blob's size.
    pub size: u64,
    compression: Compression,
    media_type: Option<String>,
}

impl BuiltLayer {
    /// The layer's tar.
    pub fn tar(&self) -> io::Result<Box<dyn Read>> {
        self.tar_over(File::open(&self.path)?)
    }

    /// Where in the blob the part begins and ends that a reader from the front needs for the content of `path`.
    pub fn compressed_range_of(&self, path: &str) -> io::Result<(u64, u64)> {
        let position = std::rc::Rc::new(std::cell::Cell::new(0));
        let mut archive = tar::Archive::new(self.tar_over(Counting {
            inner: File::open(&self.path)?,
            position: position.clone(),
        })?);
        for entry in archive.entries()? {
            let mut entry = entry?;
            if entry.path_bytes().trim_ascii() == path.as_bytes() {
                let start = position.get();
                io::copy(&mut entry, &mut io::sink())?;
                return Ok((start, position.get()));
            }
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no {path} in layer {}", self.digest),
        ))
    }

    fn tar_over(&self, blob: impl Read + 'static) -> io::Result<Box<dyn Read>> {
        // Small pieces, so that what was consumed says what was needed.
        let blob = io::BufReader::with_capacity(512, blob);
        Ok(match self.compression {
            Compression::None => Box::new(blob),
            Compression::Gzip | Compression::GzipMembers(_) => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
            Compression::Zstd | Compression::ZstdFrames(_) => Box::new(zstd::stream::read::Decoder::with_buffer(blob)?),
        })
    }
}

struct Counting<R> {
    inner: R,
    position: std::rc::Rc<std::cell::Cell<u64>>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.position.set(self.position.get() + read as u64);
        Ok(read)
    }
}
