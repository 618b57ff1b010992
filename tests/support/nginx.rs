//! nginx with TLS in front of a registry, as many people run one, with a certificate of an authority of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::run;
use super::server::Server;

/// A running nginx; it stops when dropped.
pub struct Nginx {
    server: Server,
    dir: TempDir,
}

impl Nginx {
    /// Starts one in front of `upstream`.
    pub fn in_front_of(upstream: SocketAddr) -> Nginx {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        run(
            "openssl",
            &[
                "req".to_owned(),
                "-x509".to_owned(),
                "-newkey".to_owned(),
                "rsa:2048".to_owned(),
                "-nodes".to_owned(),
                "-days".to_owned(),
                "2".to_owned(),
                "-subj".to_owned(),
                "/CN=registry".to_owned(),
                "-addext".to_owned(),
                "subjectAltName=IP:127.0.0.1,DNS:registry.test".to_owned(),
                "-addext".to_owned(),
                "basicConstraints=critical,CA:FALSE".to_owned(),
                "-keyout".to_owned(),
                path("key.pem"),
                "-out".to_owned(),
                path("certificate.pem"),
            ],
        );
        let config = dir.path().join("nginx.conf");
        let server = Server::start(dir.path(), |address| {
            fs::write(&config, configuration(dir.path(), address, upstream)).expect("a file");
            let mut command = Command::new("nginx");
            command.arg("-c").arg(&config);
            command
        });
        Nginx { server, dir }
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Its certificate, which nobody trusts who is not told to.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }
}

/// Of a server at `address` that passes everything on to `upstream`, with all its files in `dir`.
fn configuration(dir: &Path, address: SocketAddr, upstream: SocketAddr) -> String {
    let base = dir.display();
    format!(
        "daemon off; master_process off; pid {base}/pid; error_log {base}/log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {base}/body; proxy_temp_path {base}/proxy; fastcgi_temp_path {base}/fastcgi;
    uwsgi_temp_path {base}/uwsgi; scgi_temp_path {base}/scgi;
    server {{
        listen {address} ssl;
        ssl_certificate {base}/certificate.pem;
        ssl_certificate_key {base}/key.pem;
        location / {{
            proxy_pass http://{upstream};
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto https;
        }}
    }}
}}
"
    )
}
