//! The distribution protocol: manifests, configs and ranges of blobs from one repository of one registry.
//!
//! A [`Repository`] is a name on a registry and all that must be remembered to talk to it: connections, the token, the
//! scheme that works. It gives documents (whole, small, retried here) and [`BlobSource`]s (ranges, one attempt each;
//! whoever reads a blob decides about retries).
//!
//! | file | what it is |
//! |---|---|
//! | `repository` | requests to a repository: authorisation, redirects, retries of documents |
//! | `blob` | a blob as a [`BlobSource`] |
//! | `transport` | HTTP clients, hosts, schemes, and how an HTTP failure is classed |
//! | `auth` | the token of a repository, shared by all its requests |
//! | `challenge` | `WWW-Authenticate` |
//! | `hosts` | `hosts.toml`: mirrors, and how to talk to a host |
//! | `mirrored` | a repository at several hosts |
//! | `address` | which addresses are public |
//! | `credentials` | what `docker login` and `podman login` left behind |
//!
//! [`BlobSource`]: crate::image::source::BlobSource

mod address;
mod auth;
mod blob;
mod challenge;
pub mod credentials;
mod error;
pub mod hosts;
mod mirrored;
mod repository;
mod transport;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

pub(crate) use address::has_proxy;
#[cfg(fuzzing)]
pub use blob::fuzz as fuzz_content_range;
#[cfg(fuzzing)]
pub use challenge::fuzz as fuzz_challenges;
pub use error::RegistryError;
pub use mirrored::Mirrored;
pub use repository::{Endpoint, FetchedManifest, Repository};

/// The media types of the manifests that can be mounted, as one `Accept` header.
pub const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// The largest manifest or index that is accepted, in bytes; the distribution-spec lets registries refuse larger ones.
pub const MAX_MANIFEST: usize = 4 << 20;
