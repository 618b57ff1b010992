//! What can go wrong between this machine and a registry.

use std::sync::Arc;
use std::time::Duration;

use crate::image::source::FetchError;

/// Why a registry did not give what it was asked for.
///
/// Never holds a secret: URLs are named without their query, tokens and passwords not at all. It can be cloned because
/// one failed request for a token is the answer to every request that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// No connection, a reset connection, or no answer in time.
    #[error("cannot reach {host}: {reason}")]
    Unreachable {
        /// The host that was asked.
        host: String,
        /// What the connection died of.
        reason: String,
        /// The client's own error, without its URL.
        #[source]
        source: Option<Arc<reqwest::Error>>,
    },
    /// The server has a problem that may pass: 408, 425, 429, 5xx.
    #[error("{host} answered {status} for {what}{detail}; try again later")]
    Busy {
        /// The host that was asked.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// What the server said about it, after a colon, or nothing.
        detail: String,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Who asks may not read this repository, or it does not exist; registries do not tell which.
    #[error(
        "{registry} denies access to repository {repository}{detail}; if it exists, log in with `docker login {registry}` \
         or `podman login {registry}`{}",
         if *.with_credentials { " as somebody who may read it" } else { "" }
    )]
    Denied {
        /// The registry as a user names it.
        registry: String,
        /// The repository's name.
        repository: String,
        /// What the server said about it, after a colon, or nothing.
        detail: String,
        /// Whether credentials were sent.
        with_credentials: bool,
    },
    /// The registry does not have it.
    #[error("{host} has no {what}{detail}")]
    NotFound {
        /// The host that was asked.
        host: String,
        /// What was asked for.
        what: String,
        /// What the server said about it, after a colon, or nothing.
        detail: String,
    },
    /// A status that asking again will not change.
    #[error("{host} answered {status} for {what}{detail}")]
    Refused {
        /// The host that was asked.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// What the server said about it, after a colon, or nothing.
        detail: String,
    },
    /// An answer that breaks the protocol, or that is not what was asked for.
    #[error("the answer of {host} for {what} is unusable: {reason}")]
    Protocol {
        /// The host that was asked.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A host that must not be asked, since its address is not one of the public network.
    #[error("{host} is a private address, {why}")]
    Private {
        /// The host that was not asked.
        host: String,
        /// For whom that is closed, and what opens it.
        why: &'static str,
    },
    /// Bytes that do not have the digest they were asked for by.
    #[error("{host} gave bytes for {what} that have another digest; they are not used")]
    WrongDigest {
        /// The host that was asked.
        host: String,
        /// What was asked for.
        what: String,
        /// The bytes, for whoever can tell more about them.
        bytes: bytes::Bytes,
    },
    /// No request is made in offline mode.
    #[error("{what} is not kept on this machine, and {host} is not asked in offline mode")]
    Offline {
        /// The host that was not asked.
        host: String,
        /// What is needed.
        what: String,
    },
    /// The HTTP client cannot be made, for example because the system has no certificates.
    #[error("cannot set up HTTPS: {reason}")]
    Setup {
        /// What is missing.
        reason: String,
    },
}

impl RegistryError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, RegistryError::Unreachable { .. } | RegistryError::Busy { .. })
    }

    /// Whether the server says that it is asked too often.
    pub(super) fn is_throttled(&self) -> bool {
        matches!(self, RegistryError::Busy { status: 429, .. })
    }

    /// How long the server wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            RegistryError::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<RegistryError> for FetchError {
    fn from(error: RegistryError) -> Self {
        let reason = error.to_string();
        if error.is_transient() {
            FetchError::Transient {
                reason,
                retry_after: error.retry_after(),
            }
        } else {
            FetchError::Permanent { reason }
        }
    }
}
