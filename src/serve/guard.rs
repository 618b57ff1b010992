//! Which hosts a request may be for, and which images may be asked about.
//!
//! Any program that reaches us may ask, but no page of a stranger's: one whose name was made to lead to us (DNS rebinding)
//! is told by the `Host` that its browser sends, which must be an address or a name that we were told, and one that has
//! its browser ask us by our own name by `Sec-Fetch-Site`. Off loopback only registries that were allowed are asked, so
//! that nobody uses us to reach what only we can.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri};

use super::problem::Problem;
use crate::image::reference::Reference;

/// Which registries may be asked.
#[derive(Debug, Clone)]
pub enum Allowed {
    /// All.
    Any,
    /// Those of these names, `HOST[:PORT]`.
    Only(Vec<String>),
}

/// What may be asked, and for whom.
#[derive(Debug)]
pub(super) struct Guard {
    address: SocketAddr,
    hosts: Vec<String>,
    allowed: Allowed,
    local: bool,
}

impl Guard {
    /// For a server that listens at `address`, and is called by the names `hosts` too.
    pub(super) fn new(address: SocketAddr, hosts: Vec<String>, allowed: Allowed, local: bool) -> Guard {
        Guard {
            address,
            hosts,
            allowed,
            local,
        }
    }

    /// Fails if a browser asks for a page of another site, which would have us ask registries in its stead, or show our
    /// pages within its own. To follow a link from there is no harm.
    pub(super) fn check_site(headers: &HeaderMap) -> Result<(), Problem> {
        let is = |name: &str, value: &str| headers.get(name).is_some_and(|there| there == value);
        let is_followed = is("sec-fetch-mode", "navigate") && is("sec-fetch-dest", "document");
        if is("sec-fetch-site", "cross-site") && !is_followed {
            let sentence = "pages of other sites cannot ask this server";
            return Err(Problem::new(StatusCode::FORBIDDEN, "cross_site", sentence));
        }
        Ok(())
    }

    /// Fails if the request is for another host than this one.
    pub(super) fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let mut hosts = headers.get_all(HOST).iter();
        let (host, other) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next());
        // A URL in full comes first; RFC 9112, 3.2.2.
        let host = uri.authority().map(Authority::as_str).or(host);
        let authority = match (host.map(str::parse::<Authority>), other) {
            (Some(Ok(authority)), None) => authority,
            _ => {
                let sentence = "the request does not say by one header Host which host it is for";
                return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_host", sentence));
            }
        };
        if self.is_ours(authority.host()) {
            return Ok(());
        }
        let sentence = match self.address.ip().is_loopback() {
            true => {
                "this server answers by the names of this machine only, such as localhost, and by those that it is started with: --host NAME"
            }
            false => "this server answers by its address, and by the names that it is started with: --host NAME",
        };
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "bad_host", sentence))
    }

    fn is_ours(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match bare.unwrap_or(host).parse::<IpAddr>() {
            // By an address nobody is led astray. On loopback no other is ours.
            Ok(address) => address.is_loopback() || !self.address.ip().is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost") || has(&self.hosts, host),
        }
    }

    /// The image that `text` names, if it may be asked about.
    pub(super) fn image(&self, text: &str) -> Result<Reference, Problem> {
        // Before anything is said of it: what is on this machine is nobody's business.
        let is_local = ["oci:", "docker-archive:"]
            .iter()
            .any(|scheme| text.starts_with(scheme));
        if is_local && !self.local {
            let sentence = "images on this machine are not served; start the server with --allow-local for that";
            return Err(Problem::new(StatusCode::FORBIDDEN, "local_image", sentence));
        }
        let reference: Reference = text.parse().map_err(|error| Problem::query(format!("{error}")))?;
        match (&reference, &self.allowed) {
            (Reference::Registry(registry), Allowed::Only(names)) if !has(names, registry.registry()) => {
                let sentence = format!("images from {} are not served here", registry.registry());
                Err(Problem::new(StatusCode::FORBIDDEN, "registry_not_allowed", sentence))
            }
            _ => Ok(reference),
        }
    }
}

fn has(names: &[String], wanted: &str) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(address: &str, names: &[&str]) -> Guard {
        let allowed = match names {
            [] => Allowed::Any,
            names => Allowed::Only(names.iter().map(|name| (*name).to_owned()).collect()),
        };
        Guard::new(
            address.parse().unwrap(),
            vec!["images.example".to_owned()],
            allowed,
            false,
        )
    }

    #[test]
    fn only_its_own_names_and_addresses_are_answered() {
        let status = |address: &str, host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            let checked = guard(address, &[]).check_host(&"/".parse().unwrap(), &headers);
            checked.map_or_else(|problem| problem.status.as_u16(), |()| 200)
        };
        for host in [
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1:7335",
            "[::1]:80",
            "127.8.8.8",
            "Images.example:80",
        ] {
            assert_eq!(status("127.0.0.1:1", host), 200, "{host}");
            assert_eq!(status("0.0.0.0:1", host), 200, "{host}");
        }
        for host in ["10.0.0.1", "[fd00::1]:7335"] {
            assert_eq!(status("127.0.0.1:1", host), 421, "{host}");
            assert_eq!(status("0.0.0.0:1", host), 200, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:7335",
            "images.example.evil.example",
            "0x7f000001",
        ] {
            assert_eq!(status("127.0.0.1:1", host), 421, "{host}");
            assert_eq!(status("0.0.0.0:1", host), 421, "{host}");
        }
        assert_eq!(status("127.0.0.1:1", ""), 400);
        let none = guard("127.0.0.1:1", &[]).check_host(&"/".parse().unwrap(), &HeaderMap::new());
        assert_eq!(none.unwrap_err().status, 400);
        let full = guard("127.0.0.1:1", &[]).check_host(&"http://evil.example/".parse().unwrap(), &HeaderMap::new());
        assert_eq!(full.unwrap_err().status, 421);
    }

    #[test]
    fn only_images_that_are_allowed_are_asked_about() {
        let status = |names: &[&str], image: &str| {
            let image = guard("127.0.0.1:1", names).image(image);
            image.map_or_else(|problem| problem.status.as_u16(), |_| 200)
        };
        assert_eq!(status(&[], "ghcr.io/a/b"), 200);
        assert_eq!(status(&["ghcr.io"], "GHCR.io/a/b"), 200);
        assert_eq!(status(&["ghcr.io"], "alpine"), 403);
        assert_eq!(status(&["ghcr.io"], "ghcr.io:5000/a/b"), 403);
        assert_eq!(status(&["docker.io"], "alpine"), 200);
        assert_eq!(status(&[], "oci:/etc"), 403);
        assert_eq!(status(&[], "docker-archive:/etc/shadow"), 403);
        assert_eq!(status(&[], "A B"), 400);
    }
}
