//! Other people's servers, on ports of their own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
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
            let answers = eventually("the server answers", Duration::from_secs(30), || {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    return Some(false);
                }
                TcpStream::connect(address).is_ok().then_some(true)
            });
            // Whoever took the port may be who answered.
            if answers && matches!(child.try_wait(), Ok(None)) {
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

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
