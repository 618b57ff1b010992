//! An HTTP proxy as companies have one: it alone knows where names lead.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A running proxy; it takes no more connections when dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    names: BTreeMap<String, SocketAddr>,
    asked: Mutex<Vec<String>>,
    seen: Mutex<Vec<u8>>,
    over: AtomicBool,
}

impl Proxy {
    /// One that knows these names, each with its port, and nothing else.
    pub fn knowing<const N: usize>(names: [(&str, SocketAddr); N]) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            names: names.map(|(name, address)| (name.to_string(), address)).into(),
            asked: Mutex::default(),
            seen: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if serving.over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = serving.clone();
                // A connection that breaks is the end of it, and the client's to complain of.
                thread::spawn(move || shared.serve(client));
            }
        });
        Proxy { address, shared }
    }

    /// Its URL, for `HTTP_PROXY` and `HTTPS_PROXY`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The first line of what each connection began with.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this text was in what clients sent.
    pub fn has_seen(&self, text: &str) -> bool {
        let seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.windows(text.len())
            .any(|window| window.eq_ignore_ascii_case(text.as_bytes()))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // It wakes for one more connection, and then ends.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> Option<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            client.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        self.note(&head);
        let line = String::from_utf8_lossy(&head).lines().next()?.to_string();
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line.clone());
        let mut words = line.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        // Either `HOST:PORT`, or a whole URL, which every server has to understand as well.
        let name = target.strip_prefix("http://").unwrap_or(target).split('/').next()?;
        let upstream = self
            .names
            .get(name)
            .and_then(|address| TcpStream::connect(address).ok());
        let Some(mut upstream) = upstream else {
            client
                .write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .ok()?;
            return None;
        };
        match method {
            "CONNECT" => client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?,
            _ => upstream.write_all(&head).ok()?,
        }
        let (mut from, mut to) = (upstream.try_clone().ok()?, client.try_clone().ok()?);
        let back = thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
        let mut piece = [0; 4096];
        while let Ok(len @ 1..) = client.read(&mut piece) {
            self.note(&piece[..len]);
            if upstream.write_all(&piece[..len]).is_err() {
                break;
            }
        }
        let _ = upstream.shutdown(Shutdown::Both);
        back.join().ok()
    }

    fn note(&self, bytes: &[u8]) {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
    }
}
