//! A server of `peelfs serve`, and a client of it that sees every byte.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::mount::{Memory, lines};
use super::{eventually, peelfs};

/// How long a client waits for a byte; far more than it should.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; it is killed when dropped.
pub struct Serve {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
    _dir: TempDir,
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Headers behind a body in chunks.
    pub trailers: Vec<(String, String)>,
    /// Whether all of the body came.
    pub whole: bool,
}

impl Serve {
    /// Starts on a free port of loopback, with this cache directory and these arguments; the last `--listen` of several
    /// counts.
    #[track_caller]
    pub fn with(cache: &Path, arguments: &[&str]) -> Serve {
        Serve::logged_in(cache, arguments, None)
    }

    /// The same, with the logins in this directory of Docker's.
    #[track_caller]
    pub fn logged_in(cache: &Path, arguments: &[&str], logins: Option<&Path>) -> Serve {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        let listen: &[&str] = match arguments.contains(&"--listen") {
            true => &[],
            false => &["--listen", "127.0.0.1:0"],
        };
        let mut child = peelfs()
            .arg("serve")
            .args(listen)
            .args(arguments)
            .env("PEELFS_CACHE_DIR", cache)
            .envs(logins.map(|logins| ("DOCKER_CONFIG", logins)))
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .expect("peelfs");
        let said = lines(&mut child);
        let mut serve = Serve {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            log,
            _dir: dir,
        };
        let url = eventually("the server listens", PATIENCE, || {
            let ended = serve.child.try_wait().expect("a child");
            assert!(ended.is_none(), "the server ended: {}", serve.log());
            said.try_iter()
                .find_map(|line| line.strip_prefix("peelfs: serving on http://").map(str::to_owned))
        });
        let bound: SocketAddr = url.trim_end_matches('/').parse().expect("an address");
        serve.address = SocketAddr::from(([127, 0, 0, 1], bound.port()));
        serve
    }

    /// Where it listens, on loopback.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of its root.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Its memory.
    pub fn memory(&self) -> Memory {
        Memory::of(self.pid())
    }

    /// Ends it as its user would, and waits.
    #[track_caller]
    pub fn end(mut self) -> ExitStatus {
        kill(self.pid(), Signal::SIGTERM).expect("a running server");
        let child = &mut self.child;
        eventually("the server ends", PATIENCE, || child.try_wait().expect("a child"))
    }

    /// Sends a request, and gives the connection on which the answer comes.
    #[track_caller]
    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut head = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).expect("the server reads");
        BufReader::new(stream)
    }

    /// The answer to a request.
    #[track_caller]
    pub fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        Answer::read(self.send(method, target, headers), method == "HEAD")
    }

    /// The answer to a `GET`.
    #[track_caller]
    pub fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[])
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes as a value in a query.
pub fn encoded(bytes: impl AsRef<[u8]>) -> String {
    let letter = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b':' => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    bytes.as_ref().iter().map(letter).collect()
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// A trailer's value.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        find(&self.trailers, name)
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The body as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The body of an answer that must be whole and no error.
    #[track_caller]
    pub fn ok(self) -> Vec<u8> {
        assert!(
            matches!(self.status, 200 | 206) && self.whole,
            "{} {:?} {}",
            self.status,
            self.headers,
            String::from_utf8_lossy(&self.body)
        );
        self.body
    }

    fn read(mut from: BufReader<TcpStream>, is_head: bool) -> Answer {
        let (status, headers) = read_head(&mut from);
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
            trailers: Vec::new(),
            whole: true,
        };
        let length = answer
            .header("content-length")
            .map(|length| length.parse::<usize>().expect("a length"));
        if is_head || status == 304 {
        } else if answer.header("transfer-encoding") == Some("chunked") {
            answer.whole = answer.read_chunks(&mut from).is_some();
        } else {
            let _ = from.read_to_end(&mut answer.body);
            answer.whole = length == Some(answer.body.len());
        }
        answer
    }

    fn read_chunks(&mut self, from: &mut impl BufRead) -> Option<()> {
        loop {
            let size = usize::from_str_radix(&read_line(from)?, 16).ok()?;
            if size == 0 {
                self.trailers = read_headers(from)?;
                return Some(());
            }
            let start = self.body.len();
            self.body.resize(start + size, 0);
            from.read_exact(&mut self.body[start..]).ok()?;
            read_line(from)?;
        }
    }
}

/// Status and headers of the answer that comes on a connection.
#[track_caller]
pub fn read_head(from: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let line = read_line(from).expect("a status line");
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), read_headers(from).expect("headers"))
}

fn read_headers(from: &mut impl BufRead) -> Option<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = read_line(from)?;
        if line.is_empty() {
            return Some(headers);
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_line(from: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    from.read_line(&mut line).ok()?;
    line.ends_with("\r\n").then(|| line.trim_end().to_owned())
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}
