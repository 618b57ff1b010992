//! Names of images, as everybody writes them.
//!
//! `[docker://][HOST[:PORT]/]NAME[:TAG][@DIGEST]`, `oci:DIR[:TAG]`, `docker-archive:FILE[:TAG]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::digest::Digest;

/// The longest repository name, as Docker and the distribution-spec's registries have it.
const MAX_NAME: usize = 255;

/// Where an image is to be found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// In a repository of a registry.
    Registry(RegistryReference),
    /// In an OCI image layout, a directory on this machine.
    OciLayout {
        /// The directory that `index.json` lies in.
        dir: PathBuf,
        /// The name that the image has in `index.json`; without one, the only image.
        tag: Option<String>,
    },
    /// In a file that `docker save` or `podman save` made.
    DockerArchive {
        /// The tar.
        file: PathBuf,
        /// One of the image's names; without one, the only image.
        tag: Option<String>,
    },
}

/// A repository of a registry, and which of its images: by tag, by digest, or both (then the digest decides).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an image reference: {reason}")]
pub struct ParseReferenceError {
    text: String,
    reason: String,
}

impl RegistryReference {
    /// The registry, `HOST[:PORT]`; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host that speaks the distribution protocol for the registry: another one only for Docker Hub.
    pub fn api_host(&self) -> &str {
        match self.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        }
    }

    /// The repository, such as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if neither tag nor digest was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    fn parse(text: &str) -> Result<RegistryReference, String> {
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?)),
        };
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if is_host(first) => (first, path),
            _ => ("docker.io", rest),
        };
        // Behind the host, a colon can only begin the tag.
        let (name, tag) = match path.split_once(':') {
            None => (path, None),
            Some((name, tag)) => (name, Some(tag)),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(format!(
                "'{tag}' cannot be a tag (letters, digits, '_', '.', '-', at most 128)"
            ));
        }
        // One that only its capitals make a host keeps them, or it would be none when it is read again.
        let registry = match registry.to_ascii_lowercase() {
            lower if is_host(&lower) => lower,
            _ => registry.to_owned(),
        };
        check_host(&registry)?;
        let registry = match registry.as_str() {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
            _ => registry,
        };
        check_name(name)?;
        let repository = if registry == "docker.io" && !name.contains('/') {
            format!("library/{name}")
        } else {
            name.to_owned()
        };
        if repository.len() > MAX_NAME {
            return Err(format!("its name is longer than {MAX_NAME} characters"));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(RegistryReference {
            registry,
            repository,
            tag,
            digest,
        })
    }
}

impl FromStr for RegistryReference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        RegistryReference::parse(text).map_err(|reason| ParseReferenceError {
            text: text.chars().take(300).collect(),
            reason,
        })
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason: &str| {
            Err(ParseReferenceError {
                text: text.chars().take(300).collect(),
                reason: reason.to_owned(),
            })
        };
        // As with skopeo, a path ends at the first colon, because a tag may hold more of them.
        let path_and_tag = |rest: &str| {
            let (path, tag) = match rest.split_once(':') {
                None => (rest, None),
                Some((path, tag)) => (path, Some(tag.to_owned())),
            };
            (PathBuf::from(path), tag)
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, tag) = path_and_tag(rest);
            if dir.as_os_str().is_empty() || tag.as_ref().is_some_and(String::is_empty) {
                return refuse("expected oci:DIR or oci:DIR:TAG");
            }
            return Ok(Reference::OciLayout { dir, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, tag) = path_and_tag(rest);
            if file.as_os_str().is_empty() || tag.as_ref().is_some_and(String::is_empty) {
                return refuse("expected docker-archive:FILE or docker-archive:FILE:TAG");
            }
            return Ok(Reference::DockerArchive { file, tag });
        }
        for prefix in [
            "oci-archive:",
            "docker-daemon:",
            "containers-storage:",
            "dir:/",
            "http://",
            "https://",
        ] {
            // A host is shown in small letters, and must not become one of these by it.
            if text.to_ascii_lowercase().starts_with(prefix) {
                return refuse("only registries, oci:DIR[:TAG] and docker-archive:FILE[:TAG] can be read");
            }
        }
        let name = text.strip_prefix("docker://").unwrap_or(text);
        match RegistryReference::parse(name) {
            Ok(reference) => Ok(Reference::Registry(reference)),
            Err(reason) => refuse(&reason),
        }
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path, tag) = match self {
            Reference::Registry(reference) => return reference.fmt(f),
            Reference::OciLayout { dir, tag } => ("oci", dir, tag),
            Reference::DockerArchive { file, tag } => ("docker-archive", file, tag),
        };
        write!(f, "{kind}:{}", path.display())?;
        match tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

/// Docker's rule for the first component: a host has a dot, a port, a capital letter, or is `localhost`.
fn is_host(component: &str) -> bool {
    component == "localhost" || component.contains(['.', ':']) || component.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), String> {
    let refuse = || Err(format!("'{host}' cannot be a registry (expected HOST or HOST:PORT)"));
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return refuse();
            }
            (
                "",
                port.strip_prefix(':')
                    .or(if port.is_empty() { None } else { Some("?") }),
            )
        }
        None => match host.split_once(':') {
            None => (host, None),
            Some((name, port)) => (name, Some(port)),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !host.starts_with('[') && !name.split('.').all(is_label) {
        return refuse();
    }
    match port {
        Some(port) if !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err() => refuse(),
        _ => Ok(()),
    }
}

/// Distribution-spec: components of lower-case letters and digits, joined inside by `.`, `_`, `__` or dashes.
fn check_name(name: &str) -> Result<(), String> {
    let is_component = |component: &str| {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends_well = |b: Option<&u8>| b.is_some_and(|b| word(*b));
        let bytes = component.as_bytes();
        ends_well(bytes.first())
            && ends_well(bytes.last())
            && bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'_' | b'-'))
            && component
                .split(|c: char| c.is_ascii_alphanumeric())
                .all(|join| matches!(join, "" | "." | "_" | "__") || join.bytes().all(|b| b == b'-'))
    };
    if name.is_empty() {
        return Err("it has no name".to_owned());
    }
    if name.split('/').all(is_component) {
        return Ok(());
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the name of a repository has lower-case letters only".to_owned());
    }
    Err(format!("'{name}' cannot be the name of a repository"))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128 && tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_and_their_full_form() {
        let by_digest = format!("ghcr.io/o/r@sha256:{HEX}");
        let both = format!("r:1.2@sha256:{HEX}");
        let both_full = format!("docker.io/library/r:1.2@sha256:{HEX}");
        let table = [
            ("alpine", "docker.io/library/alpine:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("library/debian", "docker.io/library/debian:latest"),
            ("o/r:t", "docker.io/o/r:t"),
            ("docker.io/x", "docker.io/library/x:latest"),
            ("index.docker.io/x:1", "docker.io/library/x:1"),
            ("registry-1.docker.io/o/x:1", "docker.io/o/x:1"),
            ("docker://quay.io/o/x", "quay.io/o/x:latest"),
            (&by_digest, &by_digest),
            (&both, &both_full),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("localhost/x", "localhost/x:latest"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("[::1]:5000/x:1", "[::1]:5000/x:1"),
            ("[::1]/x", "[::1]/x:latest"),
            ("GHCR.io/o/x", "ghcr.io/o/x:latest"),
            ("Mirror/o/x", "Mirror/o/x:latest"),
            ("LOCALHOST/x", "localhost/x:latest"),
            ("x.example/a/b/c/d:e", "x.example/a/b/c/d:e"),
            ("a__b/c--d/e.f_g", "docker.io/a__b/c--d/e.f_g:latest"),
            ("x:A_.-b", "docker.io/library/x:A_.-b"),
            ("oci:/a/b", "oci:/a/b"),
            ("oci:b:1", "oci:b:1"),
            ("oci:b:ghcr.io/x:1", "oci:b:ghcr.io/x:1"),
            ("docker-archive:x.tar", "docker-archive:x.tar"),
            ("docker-archive:/x.tar:debian:12", "docker-archive:/x.tar:debian:12"),
        ];
        for (text, full) in table {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(full.parse(), Ok(reference), "{full}");
        }
    }

    #[test]
    fn what_names_no_image() {
        let long = "a/".repeat(150) + "a";
        let long_tag = "x:".to_owned() + &"t".repeat(129);
        for text in [
            "",
            ":",
            "/",
            "x:",
            ":x",
            "x/",
            "/x",
            "x//y",
            "X",
            "o/X",
            "x y",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a._b",
            "x@",
            "x@sha256:00",
            "x@md5:00",
            "x:-t",
            "x:a/b",
            "x:a:b",
            "a.example/",
            "a_b.example/x",
            "x.example:port/x",
            "x.example:99999/x",
            "[::1/x",
            "[::1]5/x",
            "[zz]/x",
            "-a.example/x",
            "../x",
            "x/../y",
            "x?y",
            "x%2e",
            "Containers-storage:0/x",
            "oci:",
            "oci::x",
            "oci:x:",
            "docker-archive:",
            "oci-archive:x.tar",
            "https://x.example/y",
            "docker://",
            "ü",
            &long,
            &long_tag,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn docker_hub_has_another_host() {
        let hub: RegistryReference = "alpine".parse().unwrap();
        assert_eq!((hub.registry(), hub.api_host()), ("docker.io", "registry-1.docker.io"));
        let other: RegistryReference = "quay.io/x/y".parse().unwrap();
        assert_eq!(other.api_host(), "quay.io");
    }
}
