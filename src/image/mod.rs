//! An image: which one a reference means, what it consists of, and where its layers' bytes are.
//!
//! [`resolve`] goes from a [`Reference`] to an [`Image`]: it finds the manifest, for an index the
//! one for the [`Platform`], verifies it and the config, and gives each layer an origin. Layers are not touched.
//!
//! | file | what it is |
//! |---|---|
//! | `reference` | names of images |
//! | `platform` | which image of an index fits |
//! | `manifest` | the documents: index, manifest, config, checked |
//! | `walk` | from the first document to the image, wherever documents come from |
//! | `remote`, `layout`, `archive` | where they come from: a registry, an OCI layout, a `docker save` file |
//! | `documents` | those that were seen before, on disk |
//! | `source` | where the bytes of a blob come from |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

mod archive;
mod documents;
mod error;
mod layout;
mod manifest;
pub mod platform;
pub mod reference;
mod remote;
pub mod source;
mod walk;

pub use documents::{Documents, Tag};
pub use error::ImageError;
#[cfg(fuzzing)]
pub use manifest::fuzz as fuzz_documents;

use crate::digest::Digest;
use crate::registry::credentials::Credential;
use platform::Platform;
use reference::Reference;
use source::BlobOrigin;

/// How to look for an image.
#[derive(Debug, Clone)]
pub struct Options {
    /// The platform to choose from an index; this machine's if not given. An image for one platform only is refused if
    /// this is given and another.
    pub platform: Option<Platform>,
    /// Certificates are not checked, and plain http is used where there is no https.
    pub insecure: bool,
    /// No request is made: what is not on this machine is an error.
    pub offline: bool,
    /// Longest wait for an answer's head, for each piece of a body, and for a document with all retries.
    pub timeout: Duration,
    /// How to reach the registry.
    pub access: Access,
}

/// How to reach a registry, and as whom.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Who asks, if not who the files of `docker login` and `podman login` say. For the registry alone, not its mirrors.
    pub credential: Option<Credential>,
    /// Where directories with `hosts.toml` are; containerd's and Docker's places if empty.
    pub hosts_dirs: Vec<PathBuf>,
    /// Files with certificates, in PEM, that are trusted besides those of the system.
    pub tls_ca: Vec<PathBuf>,
    /// A registry at a public address may send us to private ones.
    pub allow_private: bool,
    /// Only registries at public addresses are asked: strangers say which. Mirrors are not theirs to choose.
    pub public_only: bool,
    /// The files of `docker login` and `podman login` are not looked at: strangers say what is asked for.
    pub no_logins: bool,
    /// How long ago a tag must have been looked up at most to be taken as it was then.
    pub tag_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            platform: None,
            insecure: false,
            offline: false,
            timeout: Duration::from_secs(30),
            access: Access::default(),
        }
    }
}

/// An image for one platform, verified but for the layers.
#[derive(Debug, Clone)]
pub struct Image {
    /// The reference in full.
    pub reference: String,
    /// The digest of `manifest`. For a `docker save` file, which has no manifest, of one made up from its content.
    pub resolved: Digest,
    /// The manifest's JSON, byte for byte.
    pub manifest: Bytes,
    /// The config's JSON, byte for byte.
    pub config: Bytes,
    /// What the config says it is for.
    pub platform: Platform,
    /// The layers, base first.
    pub layers: Vec<LayerDescriptor>,
}

/// A layer as the manifest and the config describe it.
#[derive(Debug, Clone)]
pub struct LayerDescriptor {
    /// The digest of the blob.
    pub digest: Digest,
    /// The size of the blob in bytes.
    pub size: u64,
    /// The media type, as a hint: what the blob is, its first bytes tell.
    pub media_type: String,
    /// The digest of the decompressed stream.
    pub diff_id: Option<Digest>,
    /// The descriptor's annotations, such as where an eStargz layer has its TOC.
    pub annotations: BTreeMap<String, String>,
    /// Where the blob's bytes are.
    pub origin: BlobOrigin,
}

/// Finds the image that `reference` means.
///
/// For a registry: of an image that was never seen, three requests if there is an index, two if not (tokens and
/// redirects aside). With what `documents` has kept: one `HEAD` for a tag that has not moved, none for a digest.
pub async fn resolve(reference: &Reference, options: &Options, documents: &Documents) -> Result<Image, ImageError> {
    match reference {
        Reference::Registry(reference) => remote::resolve(reference, options, documents).await,
        Reference::OciLayout { dir, tag } => {
            layout::resolve(reference.to_string(), dir, tag.as_deref(), options.platform.as_ref()).await
        }
        Reference::DockerArchive { file, tag } => {
            archive::resolve(reference.to_string(), file, tag.as_deref(), options.platform.as_ref()).await
        }
    }
}
