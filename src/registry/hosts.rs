//! `hosts.toml`: where else a registry's images can be had, and how its hosts are to be talked to.
//!
//! The format and where it is looked for are containerd's (its `docs/hosts.md`); a directory with certificates and no
//! `hosts.toml` is Docker's (`certs.d`). This is also how peer-to-peer caches are plugged in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};

use super::transport::host_of;

/// Where containerd and Docker look.
const DIRECTORIES: [&str; 2] = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];

/// A `hosts.toml` is some lines.
const MAX_FILE: u64 = 1 << 20;

/// How to talk to one host, as far as it is told.
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// `https` or `http`; if it is not told, it is found out.
    pub scheme: Option<&'static str>,
    /// The path that stands for `/v2` in its URLs.
    pub root: Option<String>,
    /// Of a mirror: the registry that it is asked for, in the query as `ns`.
    pub namespace: Option<String>,
    /// Sent with each request to this host, and to no other.
    pub headers: HeaderMap,
    /// Files with certificates, in PEM, that are trusted besides those of the system.
    pub ca: Vec<PathBuf>,
    /// Files with a certificate of ours and its key, in PEM. Without a second file both are in the first.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Its certificate is not verified.
    pub skip_verify: bool,
    /// The longest wait for a connection.
    pub dial_timeout: Option<Duration>,
}

/// One host of a registry.
#[derive(Debug, Clone)]
pub struct Host {
    /// Name and port, as in a URL.
    pub host: String,
    /// It may be asked for manifests and blobs by digest.
    pub pull: bool,
    /// It is trusted to say what a tag stands for.
    pub resolve: bool,
    /// How to talk to it.
    pub route: Route,
}

/// A file that cannot be used: what it says cannot be followed, and ignoring it would ask other hosts than it names.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}: {reason}; correct it, or name another directory with --hosts-dir", file.display())]
pub struct HostsError {
    file: PathBuf,
    reason: String,
}

/// The hosts to ask for images of `registry` (`docker.io` for Docker Hub), best first. The last is the registry itself,
/// at `api_host`, or what a file names as its `server`. `directories` are looked through in order; those of containerd
/// and Docker if there are none.
pub fn hosts_of(registry: &str, api_host: &str, directories: &[PathBuf]) -> Result<Vec<Host>, HostsError> {
    let usual: Vec<PathBuf> = DIRECTORIES.iter().map(PathBuf::from).collect();
    let directories = if directories.is_empty() { &usual } else { directories };
    let names = [
        registry.replace(':', "_") + "_",
        registry.to_owned(),
        "_default".to_owned(),
    ];
    // `HOST_PORT_` is only written for a host with a port.
    let names = if registry.contains(':') {
        &names[..]
    } else {
        &names[1..]
    };
    for directory in directories
        .iter()
        .flat_map(|dir| names.iter().map(|name| dir.join(name)))
    {
        let file = directory.join("hosts.toml");
        match read(&file) {
            Ok(text) => {
                let parsed = text.parse::<Table>().map_err(|error| error.message().to_owned());
                let hosts = parsed.and_then(|table| hosts_in(&table, &directory, registry, api_host));
                return hosts.map_err(|reason| HostsError { file, reason });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let route = docker_certificates(&directory);
                if !route.ca.is_empty() || !route.client.is_empty() {
                    return Ok(vec![itself(api_host, route)]);
                }
            }
            Err(error) => tracing::warn!("{} is passed over: {error}", file.display()),
        }
    }
    Ok(vec![itself(api_host, Route::default())])
}

fn itself(api_host: &str, route: Route) -> Host {
    Host {
        host: api_host.to_owned(),
        pull: true,
        resolve: true,
        route,
    }
}

fn read(file: &Path) -> io::Result<String> {
    let length = fs::metadata(file)?.len();
    if length > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
    }
    fs::read_to_string(file)
}

/// Docker's pattern: `NAME.crt` is an authority, `NAME.cert` a certificate of ours, `NAME.key` its key.
fn docker_certificates(directory: &Path) -> Route {
    let mut route = Route::default();
    let Ok(entries) = fs::read_dir(directory) else {
        return route;
    };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => route.ca.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                route.client.push((file, Some(key)));
            }
            _ => {}
        }
    }
    route
}

/// The hosts of a `hosts.toml`, in its order, its server last.
fn hosts_in(table: &Table, directory: &Path, registry: &str, api_host: &str) -> Result<Vec<Host>, String> {
    let mut hosts = Vec::new();
    let mirrors = match table.get("host") {
        Some(Value::Table(mirrors)) => mirrors.clone(),
        Some(_) => return Err("'host' is not a table".to_owned()),
        None => Table::new(),
    };
    for (url, settings) in &mirrors {
        let Value::Table(settings) = settings else {
            return Err(format!("host '{url}' is not a table"));
        };
        hosts.push(host(url, settings, directory, registry, api_host)?);
    }
    let server = match table.get("server") {
        // As containerd has it, and as its documentation writes it.
        Some(Value::String(url)) if url.trim_end_matches('/') == "https://docker.io" => {
            host("https://registry-1.docker.io", table, directory, registry, api_host)?
        }
        Some(Value::String(url)) => host(url, table, directory, registry, api_host)?,
        Some(_) => return Err("'server' is not a text".to_owned()),
        None => {
            let mut server = host(api_host, table, directory, registry, api_host)?;
            server.route.scheme = None;
            server
        }
    };
    // The server is the last resort, whatever it says that it can do.
    hosts.push(Host {
        pull: true,
        resolve: true,
        ..server
    });
    Ok(hosts)
}

fn host(url: &str, settings: &Table, directory: &Path, registry: &str, api_host: &str) -> Result<Host, String> {
    let full = if url.contains("://") {
        url.to_owned()
    } else {
        format!("https://{url}")
    };
    let parsed = Url::parse(&full).map_err(|_| format!("'{url}' is not a URL"))?;
    let scheme = match parsed.scheme() {
        "https" => "https",
        "http" => "http",
        _ => return Err(format!("'{url}' is neither https nor http")),
    };
    let host = host_of(&parsed);
    let path = parsed.path().trim_end_matches('/');
    let root = match flag(settings, "override_path")? {
        true => path.to_owned(),
        false if path.is_empty() || path == "/v2" => "/v2".to_owned(),
        false => format!("{}/v2", path.trim_end_matches("/v2")),
    };
    let (pull, resolve) = match settings.get("capabilities") {
        None => (true, true),
        Some(value) => {
            let capabilities = texts(value).ok_or("'capabilities' is not a list of texts")?;
            let has = |wanted| capabilities.iter().any(|capability| capability == wanted);
            (has("pull"), has("resolve"))
        }
    };
    let route = Route {
        scheme: Some(scheme),
        root: (root != "/v2").then_some(root),
        namespace: (host != registry && host != api_host).then(|| registry.to_owned()),
        headers: headers(settings)?,
        ca: match settings.get("ca") {
            None => Vec::new(),
            Some(value) => texts(value)
                .ok_or("'ca' is neither a path nor a list of paths")?
                .iter()
                .map(|path| directory.join(path))
                .collect(),
        },
        client: client(settings, directory)?,
        skip_verify: flag(settings, "skip_verify")?,
        dial_timeout: match settings.get("dial_timeout") {
            None => None,
            Some(value) => Some(duration(value).ok_or("'dial_timeout' is not a time such as \"5s\"")?),
        },
    };
    Ok(Host {
        host,
        pull,
        resolve,
        route,
    })
}

fn flag(settings: &Table, name: &str) -> Result<bool, String> {
    match settings.get(name) {
        None => Ok(false),
        Some(Value::Boolean(flag)) => Ok(*flag),
        Some(_) => Err(format!("'{name}' is neither true nor false")),
    }
}

/// A text, or a list of texts.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|text| Some(text.as_str()?.to_owned())).collect(),
        _ => None,
    }
}

fn headers(settings: &Table) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let table = match settings.get("header") {
        None => return Ok(headers),
        Some(Value::Table(table)) => table,
        Some(_) => return Err("'header' is not a table".to_owned()),
    };
    for (name, value) in table {
        // What a value is may be a secret: only the name is said.
        let wrong = || format!("the header '{name}' cannot be sent");
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        for text in texts(value).ok_or_else(wrong)? {
            let mut value = HeaderValue::try_from(text).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// A path, a list of paths, or a list of pairs of paths.
fn client(settings: &Table, directory: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    let pair = |value: &Value| {
        let paths = texts(value)?;
        let path = |text: &String| (!text.is_empty()).then(|| directory.join(text));
        match paths.as_slice() {
            [both] => Some((path(both)?, None)),
            [certificate, key] => Some((path(certificate)?, path(key))),
            _ => None,
        }
    };
    let found: Option<Vec<_>> = match settings.get("client") {
        None => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(pair).collect(),
        Some(value) => pair(value).map(|pair| vec![pair]),
    };
    found.ok_or_else(|| "'client' is neither a path nor a list of paths or of pairs of them".to_owned())
}

/// A duration as Go writes it, of one unit: `500ms`, `5s`, `1m`.
fn duration(value: &Value) -> Option<Duration> {
    let text = value.as_str()?;
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().ok()?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        _ => return None,
    };
    unit.checked_mul(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hosts of `registry` with these files below the directory.
    fn hosts(registry: &str, files: &[(&str, &str)]) -> Result<Vec<Host>, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        hosts_of(registry, registry, &[dir.path().to_owned()]).map_err(|error| error.reason)
    }

    fn line(host: &Host) -> String {
        let Route {
            scheme,
            root,
            namespace,
            ..
        } = &host.route;
        let may = match (host.pull, host.resolve) {
            (true, true) => "",
            (true, false) => " pull",
            (false, true) => " resolve",
            (false, false) => " nothing",
        };
        let scheme = scheme.unwrap_or("?");
        let root = root.as_deref().unwrap_or("/v2");
        let namespace = namespace.as_ref().map_or(String::new(), |name| format!(" ns={name}"));
        format!("{scheme}://{}{root}{may}{namespace}", host.host)
    }

    #[track_caller]
    fn check(registry: &str, files: &[(&str, &str)], expected: &[&str]) {
        let found: Vec<String> = hosts(registry, files).unwrap().iter().map(line).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn without_a_file_there_is_the_registry_alone() {
        check("r.example", &[], &["?://r.example/v2"]);
        check(
            "r.example",
            &[("other/hosts.toml", "server = \"https://x\"")],
            &["?://r.example/v2"],
        );
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        let file = "server = \"https://s.example\"\n[host.\"https://z.example\"]\n[host.\"http://a.example:5000\"]\ncapabilities = [\"pull\"]";
        check(
            "r.example",
            &[("r.example/hosts.toml", file)],
            &[
                "https://z.example/v2 ns=r.example",
                "http://a.example:5000/v2 pull ns=r.example",
                "https://s.example/v2 ns=r.example",
            ],
        );
        check("r.example", &[("r.example/hosts.toml", "")], &["?://r.example/v2"]);
    }

    #[test]
    fn paths_are_put_before_v2_or_stand_for_it() {
        let file = "[host.\"https://a/x\"]\n[host.\"https://b/x/v2/\"]\n[host.\"https://c/x\"]\noverride_path = true\n[host.\"https://d/v2\"]";
        check(
            "r",
            &[("_default/hosts.toml", file)],
            &[
                "https://a/x/v2 ns=r",
                "https://b/x/v2 ns=r",
                "https://c/x ns=r",
                "https://d/v2 ns=r",
                "?://r/v2",
            ],
        );
    }

    #[test]
    fn a_port_can_be_written_in_two_ways_and_the_default_comes_last() {
        let server = |name: &str| format!("server = \"https://{name}\"");
        let (one, two, three) = (server("one"), server("two"), server("three"));
        let files = [
            ("_default/hosts.toml", three.as_str()),
            ("r:5000/hosts.toml", two.as_str()),
            ("r_5000_/hosts.toml", one.as_str()),
        ];
        check("r:5000", &files, &["https://one/v2 ns=r:5000"]);
        check("r:5000", &files[..2], &["https://two/v2 ns=r:5000"]);
        check("r:5000", &files[..1], &["https://three/v2 ns=r:5000"]);
    }

    #[test]
    fn certificates_headers_and_times_are_taken() {
        let file = "[host.\"https://m\"]\nca = [\"a.pem\", \"/b.pem\"]\nclient = [[\"c.cert\", \"c.key\"], [\"d.pem\", \"\"]]\nskip_verify = true\ndial_timeout = \"250ms\"\n[host.\"https://m\".header]\nx-a = \"1\"\nx-b = [\"2\", \"3\"]";
        let hosts = hosts("r", &[("r/hosts.toml", file)]).unwrap();
        let route = &hosts[0].route;
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(route.ca.iter().map(name).collect::<Vec<_>>(), ["a.pem", "b.pem"]);
        assert_eq!(route.ca[1], Path::new("/b.pem"));
        assert_eq!(name(route.client[0].1.as_ref().unwrap()), "c.key");
        assert_eq!(route.client[1].1, None);
        assert!(route.skip_verify && !hosts[1].route.skip_verify);
        assert_eq!(route.dial_timeout, Some(Duration::from_millis(250)));
        assert_eq!(route.headers.get_all("x-b").iter().count(), 2);
        assert!(!format!("{route:?}").contains("\"2\""), "a header may be a secret");
    }

    #[test]
    fn certificates_alone_are_dockers_way() {
        let files = [("r/ca.crt", ""), ("r/me.cert", ""), ("r/me.key", "")];
        let hosts = hosts("r", &files).unwrap();
        assert_eq!(line(&hosts[0]), "?://r/v2");
        assert_eq!((hosts[0].route.ca.len(), hosts[0].route.client.len()), (1, 1));
    }

    #[test]
    fn what_cannot_be_followed_is_an_error_that_says_what() {
        for (file, reason) in [
            ("server = 1", "'server' is not a text"),
            ("[host.\"ftp://x\"]", "'ftp://x' is neither https nor http"),
            (
                "[host.\"https://x\"]\nca = 1",
                "'ca' is neither a path nor a list of paths",
            ),
            (
                "[host.\"https://x\"]\nskip_verify = \"yes\"",
                "'skip_verify' is neither true nor false",
            ),
            (
                "[host.\"https://x\".header]\n\"a b\" = \"1\"",
                "the header 'a b' cannot be sent",
            ),
        ] {
            assert_eq!(hosts("r", &[("r/hosts.toml", file)]).unwrap_err(), reason);
        }
        assert!(hosts("r", &[("r/hosts.toml", "server = ")]).is_err());
    }
}
