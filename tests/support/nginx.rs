//! nginx with TLS in front of a registry, as many people run one, with a certificate of an authority of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{eventually, run};

/// A running nginx; it stops when dropped.
pub struct Nginx {
    address: SocketAddr,
    child: Child,
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
                "subjectAltName=IP:127.0.0.1".to_owned(),
                "-addext".to_owned(),
                "basicConstraints=critical,CA:FALSE".to_owned(),
                "-keyout".to_owned(),
                path("key.pem"),
                "-out".to_owned(),
                path("certificate.pem"),
            ],
        );
        // Between our look for a free port and its bind somebody else can take it: then it exits, and we look again.
        for _ in 0..5 {
            if let Some((address, child)) = try_start(&dir, upstream) {
                return Nginx { address, child, dir };
            }
        }
        panic!(
            "nginx: {}",
            fs::read_to_string(dir.path().join("log")).unwrap_or_default()
        );
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its certificate, which nobody trusts who is not told to.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }
}

fn try_start(dir: &TempDir, upstream: SocketAddr) -> Option<(SocketAddr, Child)> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|free| free.local_addr())
        .expect("a port");
    let base = dir.path().display();
    let config = format!(
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
    );
    let file = dir.path().join("nginx.conf");
    fs::write(&file, config).expect("a file");
    let log = fs::File::create(dir.path().join("log")).expect("a file");
    let mut child = Command::new("nginx")
        .arg("-c")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("nginx, which scripts/test installs");
    let answers = eventually("nginx answers", Duration::from_secs(30), || {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return Some(false);
        }
        TcpStream::connect(address).is_ok().then_some(true)
    });
    (answers && matches!(child.try_wait(), Ok(None))).then_some((address, child))
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
