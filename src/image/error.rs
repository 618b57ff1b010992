//! What can go wrong until an image is known.

use std::io;

use crate::digest::Digest;
use crate::registry::RegistryError;
use crate::registry::hosts::HostsError;

/// Why an image cannot be mounted: one sentence that names the image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The registry did not give what was asked for.
    #[error("{image}: {source}")]
    Registry {
        /// The reference.
        image: String,
        /// What the registry did.
        #[source]
        source: Box<RegistryError>,
    },
    /// A file that says how registries are to be reached cannot be used.
    #[error("{image}: {source}")]
    Hosts {
        /// The reference.
        image: String,
        /// What is wrong with it.
        #[source]
        source: Box<HostsError>,
    },
    /// The registry has the repository perhaps, but not this image in it.
    #[error("{image}: there is no such {what}")]
    NoSuchImage {
        /// The reference.
        image: String,
        /// `tag` or `manifest`, and where.
        what: String,
        /// What the registry did.
        #[source]
        source: Box<RegistryError>,
    },
    /// A directory or file holds several images, or none of the name.
    #[error("{image}: {reason}")]
    Choose {
        /// The reference.
        image: String,
        /// What was looked for, and what there is.
        reason: String,
    },
    /// The image is not there for the platform.
    #[error("{image} is not there for {wanted}; choose with --platform from: {available}")]
    NoPlatform {
        /// The reference.
        image: String,
        /// The platform that was looked for.
        wanted: String,
        /// The platforms that there are, separated by commas.
        available: String,
    },
    /// A manifest in the format of before 2016.
    #[error(
        "{image} has a manifest of schema version 1, which is not supported; \
         push it again with a current docker, podman or skopeo"
    )]
    Schema1 {
        /// The reference.
        image: String,
    },
    /// Something else than an image: a chart, a signature, a module.
    #[error("{image} is not a container image but an artifact of type {kind}; it has no file system to mount")]
    Artifact {
        /// The reference.
        image: String,
        /// Its media type.
        kind: String,
    },
    /// A document that does not say what it must.
    #[error("{image}: its {what} is unusable: {reason}")]
    Malformed {
        /// The reference.
        image: String,
        /// Which document.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A document that does not have the digest it was named by.
    #[error("{image}: the {what} that was read does not have the digest {digest}; it is damaged or was tampered with")]
    WrongDigest {
        /// The reference.
        image: String,
        /// Which document.
        what: String,
        /// The digest it should have.
        digest: Digest,
    },
    /// Offline, and never seen.
    #[error(
        "{image} was not mounted before on this machine, so it is not known in offline mode; mount it once without"
    )]
    NeverSeen {
        /// The reference.
        image: String,
    },
    /// A directory or file on this machine cannot be read.
    #[error("{image}: cannot read {what}: {source}")]
    Io {
        /// The reference.
        image: String,
        /// The file.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// Whether the image was had, but is not what it should be.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, ImageError::Malformed { .. } | ImageError::WrongDigest { .. })
    }
}
