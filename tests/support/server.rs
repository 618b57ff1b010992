//! Other people's servers, on ports of their own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::eventually;

/// A running server; it is killed when dropped.
pub struct Server {
    address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts what `command` makes for an address that is free. What it says goes to a file `log` in `dir`.
    #[track_caller]
    pub fn start(dir: &Path, command: impl Fn(SocketAddr) -> Command) -> Server {
        let log = dir.join("log");
        // Between our look for a free port and its bind somebody else can take it: then it exits, and we look again.
        for _ in 0..5 {
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .and_then(|free| free.local_addr())
                .expect("a port");
            let output = fs::File::create(&log).expect("a file");
            let mut child = command(address)
                .stdin(Stdio::null())
                .stdout(output.try_clone().expect("a file"))
                .stderr(output)
                .spawn()
                .expect("a server, which scripts/test installs");
            // Whoever took the port would answer as well, and may be another test's.
            let listens = eventually("the server listens", Duration::from_secs(30), || {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    return Some(false);
                }
                listens(child.id(), address.port()).then_some(true)
            });
            if listens {
                return Server { address, child };
            }
        }
        panic!("the server: {}", fs::read_to_string(log).unwrap_or_default());
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Whether a process has a socket that listens on this port of IPv4.
fn listens(pid: u32, port: u16) -> bool {
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let mut listening = sockets.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&format!(":{port:04X}")) && *fields.get(3)? == "0A";
        is_it.then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
    });
    let held: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .collect();
    listening.any(|socket| held.contains(&PathBuf::from(socket)))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
