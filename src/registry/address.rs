//! Which addresses anybody can reach, and names that lead to no other.
//!
//! A registry out on the network can send us anywhere by a redirect, or for a token. Services that trust whoever reaches
//! them, such as the metadata services of clouds, live at private and link-local addresses: nobody from outside may have
//! them asked.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Whether an address is one of the public network; the registries of special addresses are RFC 6890's.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            let shared = a == 100 && b & 0xc0 == 64;
            let special =
                a == 0 || a >= 240 || (a == 192 && address.octets()[1..3] == [0, 0]) || (a == 198 && b & 0xfe == 18);
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || shared
                || special)
        }
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => is_public(inner),
            None => {
                !(address.is_loopback()
                    || address.is_unspecified()
                    || address.is_multicast()
                    || address.is_unique_local()
                    || matches!(address.segments(), [0x64, 0xff9b, 1, ..] | [0x100, 0, 0, 0, ..])
                    || address.segments()[0] & 0xffc0 == 0xfec0
                    || address.segments()[..6] == [0; 6]
                    || address.is_unicast_link_local())
            }
        },
    }
}

/// The IPv4 address that an IPv6 one stands for: mapped (`::ffff:0:0/96`), NAT64 (`64:ff9b::/96`) or 6to4 (`2002::/16`).
fn embedded(address: Ipv6Addr) -> Option<IpAddr> {
    let parts = address.segments();
    let last = [parts[6], parts[7]];
    let [high, low] = match parts {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => last,
        [0x2002, high, low, ..] => [high, low],
        _ => return None,
    };
    Some(IpAddr::V4((u32::from(high) << 16 | u32::from(low)).into()))
}

/// Whether the host of a URL is, as it is written, an address that is not public, or this machine.
pub(super) fn names_private_address(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return true;
    }
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    bare.parse().is_ok_and(|address: IpAddr| !is_public(address))
}

/// Finds the public addresses of names, and no others; except of the proxies, which are not the registry's choice.
pub(super) struct PublicOnly {
    proxies: Vec<String>,
    /// How a refusal ends.
    why: &'static str,
}

impl PublicOnly {
    pub(super) fn but_for_proxies(why: &'static str) -> PublicOnly {
        PublicOnly {
            why,
            proxies: proxies().collect(),
        }
    }
}

/// The hosts of the proxies that the environment names.
fn proxies() -> impl Iterator<Item = String> {
    let variables = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"].into_iter();
    let values = variables.flat_map(|name| [std::env::var(name), std::env::var(name.to_lowercase())]);
    values.flatten().filter_map(|value| proxy_host(&value))
}

/// Whether the environment names a proxy.
pub(crate) fn has_proxy() -> bool {
    proxies().next().is_some()
}

/// Whether a URL's host is that of a proxy, which [`PublicOnly`] finds wherever it is. A registry has nothing there.
pub(super) fn names_proxy(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    proxies().any(|proxy| proxy.eq_ignore_ascii_case(host))
}

/// Whether a proxy is asked for what is at a URL.
pub(super) fn is_proxied(url: &Url) -> bool {
    static PROXIES: LazyLock<Matcher> = LazyLock::new(Matcher::from_system);
    let uri = url.as_str().parse::<hyper::Uri>();
    uri.is_ok_and(|uri| PROXIES.intercept(&uri).is_some())
}

/// The host in the value of a variable such as `HTTPS_PROXY`.
fn proxy_host(value: &str) -> Option<String> {
    let url = match value.contains("://") {
        true => Url::parse(value),
        false => Url::parse(&format!("http://{value}")),
    };
    Some(url.ok()?.host_str()?.to_owned())
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let any = self
            .proxies
            .iter()
            .any(|proxy| proxy.eq_ignore_ascii_case(name.as_str()));
        let why = self.why;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| any || is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(format!("{} is at a private address, {why}", name.as_str()).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// How a refusal to go to a private address ends.
pub(super) const ALLOW: &str = "where a public registry must not send us (if it may, try --allow-private-redirects)";

/// How a refusal to ask a registry at a private address ends.
pub(super) const NOT_ASKED: &str =
    "and strangers choose the registries here (if such may be asked, try --allow-private)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        for address in [
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "fc00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::a00:1",
            "fec0::1",
            "100::1",
            "::10.0.0.1",
            "2002:7f00:1::",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "8.8.8.8",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn only_written_addresses_are_told_from_the_url() {
        for (url, private) in [
            ("https://10.0.0.1/x", true),
            ("https://[fd00::1]:8443/", true),
            ("https://0x7f000001/", true),
            ("http://localhost:9200/", true),
            ("https://api.LocalHost./", true),
            ("https://localhost.example/", false),
            ("https://8.8.8.8/", false),
            ("https://ten.example/", false),
        ] {
            assert_eq!(names_private_address(&Url::parse(url).unwrap()), private, "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_with_private_addresses_only_is_not_found() {
        let none = PublicOnly {
            proxies: Vec::new(),
            why: ALLOW,
        };
        let Err(error) = none.resolve("localhost".parse().unwrap()).await else {
            panic!("localhost is public")
        };
        assert!(error.to_string().contains("--allow-private-redirects"), "{error}");
        let proxies = vec![proxy_host("user:secret@LOCALHOST:3128").unwrap()];
        assert!(
            PublicOnly { proxies, why: ALLOW }
                .resolve("localhost".parse().unwrap())
                .await
                .is_ok()
        );
    }

    #[test]
    fn proxies_are_told_from_their_variables() {
        for (value, host) in [
            ("http://proxy.corp:3128", Some("proxy.corp")),
            ("proxy.corp:3128/", Some("proxy.corp")),
            ("http://10.0.0.1", Some("10.0.0.1")),
            ("", None),
        ] {
            assert_eq!(proxy_host(value).as_deref(), host, "{value}");
        }
    }
}
