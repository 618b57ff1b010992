//! Debian's `docker-registry`, the registry that most people run.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::server::Server;
use super::{BuiltImage, run};

/// A running docker-registry; it stops when dropped.
pub struct DockerRegistry {
    server: Server,
    _dir: TempDir,
}

impl DockerRegistry {
    /// Starts one over the storage in `storage`, which is made where it does not exist.
    pub fn start(storage: &Path) -> DockerRegistry {
        DockerRegistry::configured(storage, "")
    }

    /// The same with `more` at the end of its configuration, in YAML.
    pub fn configured(storage: &Path, more: &str) -> DockerRegistry {
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("config.yml");
        let server = Server::start(dir.path(), |address| {
            let text = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n{more}\n",
                storage.display()
            );
            fs::write(&config, text).expect("a file");
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
            command
        });
        DockerRegistry { server, _dir: dir }
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Pushes an image with skopeo as `name`, such as `debian:latest`.
    pub fn push(&self, image: &BuiltImage, name: &str) {
        run(
            "skopeo",
            &[
                "copy".to_string(),
                "--quiet".to_string(),
                "--dest-tls-verify=false".to_string(),
                "--preserve-digests".to_string(),
                format!("oci:{}:{}", image.layout.display(), image.tag),
                format!("docker://{}/{name}", self.address()),
            ],
        );
    }
}
