//! The documents of an image: OCI index and Docker manifest list, OCI manifest and Docker schema 2, config.
//!
//! They are hostile input, and more varied than the specifications: Docker's lack fields that OCI demands, Go programs
//! write `null` for an empty list. What is read is what is needed, and that is checked.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::platform::Platform;
use crate::digest::Digest;
pub(super) use crate::registry::MAX_MANIFEST;

/// The largest config.
pub(super) const MAX_CONFIG: usize = 16 << 20;

/// More layers than images have: Docker stops at 127. To look through one layer may take a look through those below it,
/// each on top of the other's stack.
const MAX_LAYERS: usize = 128;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Why a document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unusable {
    Schema1,
    /// Not an image, but something of this type.
    Artifact(String),
    /// For this reason.
    Malformed(String),
}

/// A document that a reference or an index can point to.
#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Entry>),
    Manifest(Manifest),
}

/// A manifest, with what is needed of it.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) config: Blob,
    pub(super) layers: Vec<Blob>,
}

/// A descriptor whose digest can be used.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) media_type: String,
    pub(super) annotations: BTreeMap<String, String>,
}

/// A config, with what is needed of it.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) platform: Platform,
    pub(super) diff_ids: Vec<Digest>,
}

/// A descriptor in an index: unlike in a manifest, one that cannot be used is no harm.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    media_type: Option<String>,
    digest: String,
    size: u64,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<RawPlatform>,
}

#[derive(Debug, Clone, Deserialize)]
struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    #[serde(rename = "os.features")]
    os_features: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Entry>,
    layers: Option<Vec<Entry>>,
    manifests: Option<Vec<Entry>>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct RawConfig {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

/// Reads an index or manifest. Its kind is told by what is in it, and what it says it is must agree: a document that
/// could be both would be an index to one reader and a manifest to another (CVE-2021-41190).
pub(super) fn parse(bytes: &[u8]) -> Result<Document, Unusable> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
    let kind = raw.media_type.as_deref().unwrap_or_default();
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() || kind.starts_with(DOCKER_SCHEMA1) {
        return Err(Unusable::Schema1);
    }
    if !matches!(kind, "" | OCI_INDEX | DOCKER_INDEX | OCI_MANIFEST | DOCKER_MANIFEST) {
        return Err(Unusable::Artifact(printable(kind)));
    }
    let says_index = matches!(kind, OCI_INDEX | DOCKER_INDEX);
    match (raw.manifests, raw.config) {
        (Some(_), Some(_)) => refuse("it is an index and a manifest at once"),
        (Some(_), None) if raw.layers.is_some() => refuse("it is an index and a manifest at once"),
        (Some(manifests), None) if says_index || kind.is_empty() => Ok(Document::Index(manifests)),
        (None, Some(config)) if !says_index => {
            Ok(Document::Manifest(manifest(config, raw.layers.unwrap_or_default())?))
        }
        (None, None) if says_index => Ok(Document::Index(Vec::new())),
        _ => refuse("it is neither an image manifest nor an index"),
    }
}

fn manifest(config: Entry, layers: Vec<Entry>) -> Result<Manifest, Unusable> {
    // Docker wrote octet-stream before it had a type of its own.
    match config.media_type.as_deref().unwrap_or_default() {
        "" | OCI_CONFIG | DOCKER_CONFIG | "application/octet-stream" => {}
        other => return Err(Unusable::Artifact(printable(other))),
    }
    if config.size > MAX_CONFIG as u64 {
        return refuse(&format!(
            "its config has {} bytes; {MAX_CONFIG} are the limit",
            config.size
        ));
    }
    if layers.len() > MAX_LAYERS {
        return refuse(&format!("it has {} layers; {MAX_LAYERS} are the limit", layers.len()));
    }
    let layers: Vec<Blob> = layers.into_iter().map(blob).collect::<Result<_, _>>()?;
    if let Some(at) = layers.iter().position(|layer| layer.media_type.ends_with("+encrypted")) {
        return refuse(&format!("layer {at} is encrypted, which is not supported"));
    }
    Ok(Manifest {
        config: blob(config)?,
        layers,
    })
}

fn blob(entry: Entry) -> Result<Blob, Unusable> {
    Ok(Blob {
        digest: entry.digest()?,
        size: entry.size,
        media_type: entry.media_type.unwrap_or_default(),
        annotations: entry.annotations.unwrap_or_default(),
    })
}

/// Reads a config, whose layers must be as many as the manifest's.
pub(super) fn parse_config(bytes: &[u8], layers: usize) -> Result<Config, Unusable> {
    let raw: RawConfig = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
    let Some(rootfs) = raw.rootfs else {
        return refuse("it does not say what its layers are (rootfs)");
    };
    let diff_ids = rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != layers {
        return refuse(&format!(
            "it has {} layers, but the manifest has {layers}",
            diff_ids.len()
        ));
    }
    let diff_ids = diff_ids.iter().map(|text| digest(text)).collect::<Result<_, _>>()?;
    let word = |word: Option<String>, default: &str| match word {
        Some(word) if !word.is_empty() => printable(&word),
        _ => default.to_owned(),
    };
    Ok(Config {
        platform: Platform {
            os: word(raw.os, "linux"),
            architecture: word(raw.architecture, "unknown"),
            variant: raw.variant.filter(|variant| !variant.is_empty()).map(|v| printable(&v)),
        },
        diff_ids,
    })
}

impl Entry {
    pub(super) fn digest(&self) -> Result<Digest, Unusable> {
        digest(&self.digest)
    }

    /// The value of an annotation.
    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether it can be an image: neither an attestation about one nor an artifact beside one.
    pub(super) fn is_image(&self) -> bool {
        let kind = self.media_type.as_deref().unwrap_or_default();
        let artifact = self.artifact_type.as_deref().unwrap_or_default();
        matches!(kind, "" | OCI_INDEX | DOCKER_INDEX | OCI_MANIFEST | DOCKER_MANIFEST)
            && matches!(artifact, "" | OCI_CONFIG | DOCKER_CONFIG)
            && self.annotation("vnd.docker.reference.type").is_none()
            && self.platform.as_ref().is_none_or(|platform| {
                // Features of an operating system that only some runtimes have, such as a format of layers.
                let known = |feature: &String| feature == "win32k";
                platform.os.as_deref() != Some("unknown") && platform.os_features.iter().flatten().all(known)
            })
    }

    fn platform(&self) -> Option<Platform> {
        let raw = self.platform.as_ref()?;
        let word = |word: &Option<String>| word.as_deref().filter(|word| !word.is_empty()).map(printable);
        Some(Platform {
            os: word(&raw.os)?,
            architecture: word(&raw.architecture)?,
            variant: word(&raw.variant),
        })
    }
}

/// All that reads a document, for the fuzz targets: none of it may panic, and what it accepts keeps its limits.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    match parse(bytes) {
        Ok(Document::Index(entries)) => {
            let _ = choose(&entries, &Platform::host());
            entries.iter().for_each(|entry| drop(entry.digest()));
        }
        Ok(Document::Manifest(manifest)) => assert!(manifest.layers.len() <= MAX_LAYERS),
        Err(_) => {}
    }
    for layers in 0..3 {
        if let Ok(config) = parse_config(bytes, layers) {
            assert_eq!(config.diff_ids.len(), layers);
        }
    }
}

/// The image for `wanted`, or the platforms that there are, for a message.
pub(super) fn choose<'a>(entries: &'a [Entry], wanted: &Platform) -> Result<&'a Entry, String> {
    let images: Vec<(&Entry, Option<Platform>)> = entries
        .iter()
        .filter(|entry| entry.is_image())
        .map(|entry| (entry, entry.platform()))
        .collect();
    let fits = images
        .iter()
        .filter_map(|(entry, platform)| Some((wanted.fit(platform.as_ref()?)?, *entry)));
    if let Some((_, entry)) = fits.min_by_key(|(fit, _)| *fit) {
        return Ok(entry);
    }
    // An image whose platform only its config tells; if it is the only one, that is no question of choice.
    let mut untold = images.iter().filter(|(_, platform)| platform.is_none());
    if let (Some((entry, _)), None) = (untold.next(), untold.next()) {
        return Ok(entry);
    }
    let mut there: Vec<String> = images
        .iter()
        .filter_map(|(_, platform)| Some(platform.as_ref()?.to_string()))
        .collect();
    there.sort();
    there.dedup();
    there.truncate(50);
    Err(if there.is_empty() {
        "(none)".to_owned()
    } else {
        there.join(", ")
    })
}

fn digest(text: &str) -> Result<Digest, Unusable> {
    text.parse::<Digest>()
        .map_err(|error| Unusable::Malformed(printable(&error.to_string())))
}

fn malformed(error: &serde_json::Error) -> Unusable {
    Unusable::Malformed(printable(&error.to_string()))
}

fn refuse<T>(reason: &str) -> Result<T, Unusable> {
    Err(Unusable::Malformed(reason.to_owned()))
}

/// Text of a stranger, fit for a terminal and a line.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hex(byte: u8) -> String {
        Digest::Sha256([byte; 32]).to_string()
    }

    fn image() -> serde_json::Value {
        json!({
            "schemaVersion": 2,
            "config": {"mediaType": OCI_CONFIG, "digest": hex(1), "size": 7},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": hex(2), "size": 9,
                        "annotations": {"a": "b"}}],
        })
    }

    fn refused(value: &serde_json::Value) -> Unusable {
        parse(value.to_string().as_bytes()).map(|_| ()).unwrap_err()
    }

    #[test]
    fn a_manifest() {
        let Ok(Document::Manifest(manifest)) = parse(image().to_string().as_bytes()) else {
            panic!()
        };
        assert_eq!(manifest.config.digest.to_string(), hex(1));
        assert_eq!(
            (manifest.layers[0].size, manifest.layers[0].annotations["a"].as_str()),
            (9, "b")
        );
        let mut empty = image();
        empty["layers"] = json!(null);
        let Ok(Document::Manifest(manifest)) = parse(empty.to_string().as_bytes()) else {
            panic!()
        };
        assert!(manifest.layers.is_empty());
    }

    #[test]
    fn what_is_no_image() {
        let with = |key: &str, value: serde_json::Value| {
            let mut image = image();
            image[key] = value;
            refused(&image)
        };
        assert_eq!(with("schemaVersion", json!(1)), Unusable::Schema1);
        assert_eq!(refused(&json!({"schemaVersion": 1, "fsLayers": []})), Unusable::Schema1);
        assert!(matches!(with("manifests", json!([])), Unusable::Malformed(_)));
        assert!(matches!(with("mediaType", json!(OCI_INDEX)), Unusable::Malformed(_)));
        assert_eq!(with("mediaType", json!("x/y")), Unusable::Artifact("x/y".to_owned()));
        let chart = json!({"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": hex(1), "size": 7});
        assert!(matches!(with("config", chart), Unusable::Artifact(_)));
        for layer in [
            json!({"digest": hex(2), "size": -1}),
            json!({"digest": hex(2), "size": 1.5}),
            json!({"digest": hex(2)}),
            json!({"digest": "sha256:../../x", "size": 1}),
            json!({"digest": hex(2), "size": 1, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"}),
        ] {
            assert!(
                matches!(with("layers", json!([layer])), Unusable::Malformed(_)),
                "{layer}"
            );
        }
        let layer = json!({"digest": hex(2), "size": 1});
        assert!(matches!(
            with("layers", json!(vec![layer; 1001])),
            Unusable::Malformed(_)
        ));
        for text in ["", "null", "[]", "{}", "7", "{\"schemaVersion\":2}", "{\"layers\":[]}"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn a_config_has_as_many_layers_as_the_manifest() {
        let config = json!({"os": "linux", "architecture": "arm", "variant": "v7", "rootfs": {"type": "layers", "diff_ids": [hex(3)]}});
        let config = config.to_string();
        let parsed = parse_config(config.as_bytes(), 1).unwrap();
        assert_eq!(parsed.platform.to_string(), "linux/arm/v7");
        assert_eq!(parsed.diff_ids[0].to_string(), hex(3));
        assert!(parse_config(config.as_bytes(), 2).is_err());
        assert!(parse_config(b"{}", 0).is_err());
        assert!(parse_config(br#"{"rootfs":{"diff_ids":null}}"#, 0).is_ok());
    }

    #[test]
    fn attestations_and_artifacts_are_never_chosen() {
        let entry = |digest: u8, platform: serde_json::Value| json!({"mediaType": OCI_MANIFEST, "digest": hex(digest), "size": 1, "platform": platform});
        let (amd64, unknown) = (
            json!({"os": "linux", "architecture": "amd64"}),
            json!({"os": "unknown", "architecture": "unknown"}),
        );
        let mut nydus = entry(8, amd64.clone());
        nydus["platform"]["os.features"] = json!(["nydus.remoteimage.v1"]);
        let mut soci = entry(9, amd64.clone());
        soci["artifactType"] = json!("application/vnd.amazon.soci.index.v2+json");
        let index = json!({"manifests": [nydus, soci, entry(1, amd64.clone()), entry(2, unknown.clone())]});
        let Ok(Document::Index(entries)) = parse(index.to_string().as_bytes()) else {
            panic!()
        };
        let chosen = choose(&entries, &"linux/amd64".parse().unwrap()).unwrap();
        assert_eq!(chosen.digest, hex(1));
        let there = choose(&entries, &"linux/s390x".parse().unwrap()).unwrap_err();
        assert_eq!(there, "linux/amd64");

        let index = json!({"manifests": [entry(1, json!(null)), entry(2, unknown)]});
        let Ok(Document::Index(entries)) = parse(index.to_string().as_bytes()) else {
            panic!()
        };
        assert_eq!(
            choose(&entries, &"linux/amd64".parse().unwrap()).unwrap().digest,
            hex(1)
        );
    }
}
