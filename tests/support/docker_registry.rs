//! Debian's `docker-registry`, the registry that most people run.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{BuiltImage, eventually, run};

/// A running docker-registry; it stops when dropped.
pub struct DockerRegistry {
    address: SocketAddr,
    child: Child,
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
        // Between our look for a free port and its bind somebody else can take it: then it exits, and we look again.
        for _ in 0..5 {
            if let Some(registry) = DockerRegistry::try_start(storage, &dir, more) {
                let (address, child) = registry;
                return DockerRegistry {
                    address,
                    child,
                    _dir: dir,
                };
            }
        }
        panic!(
            "docker-registry: {}",
            fs::read_to_string(dir.path().join("log")).unwrap_or_default()
        );
    }

    fn try_start(storage: &Path, dir: &TempDir, more: &str) -> Option<(SocketAddr, Child)> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|free| free.local_addr())
            .expect("a port");
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n{more}\n",
            storage.display()
        );
        fs::write(&config, text).expect("a file");
        let log = fs::File::create(dir.path().join("log")).expect("a file");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .env("OTEL_TRACES_EXPORTER", "none")
            .spawn()
            .expect("docker-registry, which scripts/test installs");
        let answers = eventually("docker-registry answers", Duration::from_secs(30), || {
            if matches!(child.try_wait(), Ok(Some(_))) {
                return Some(false);
            }
            TcpStream::connect(address).is_ok().then_some(true)
        });
        // Whoever took the port may be who answered.
        (answers && matches!(child.try_wait(), Ok(None))).then_some((address, child))
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
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
                format!("docker://{}/{name}", self.address),
            ],
        );
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
