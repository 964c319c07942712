//! The hosts under which the server may be reached, and the layer that checks requests against them.
//!
//! A page of another site can make its own name resolve to this machine (DNS rebinding). The browser then treats the
//! page and this server as one origin and lets the page read every answer, including those of `/health` and `/docs`:
//! the check has no exceptions and wraps everything that answers. The attack needs a name, which the browser sends in
//! `Host` or HTTP/2's `:authority`. An address cannot be rebound, so a probe that calls an open server by its address
//! is let in. [`super::origin`] decides which pages may change something.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use axum::{
    extract::{Request, State},
    http::{Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use url::Host;

use super::{error::ApiError, state::AppState};
use hearth_domain::error::{Error, ErrorKind};

/// Characters shown of a refused host.
const SHOWN_CHARS: usize = 100;

/// The hosts that requests may name.
#[derive(Clone, Debug)]
pub struct AllowedHosts {
    /// The listen address.
    address: IpAddr,
    /// Hosts given with `--allowed-host`.
    named: Vec<Host>,
    /// `--allowed-host *`.
    any: bool,
    /// Names of this machine itself.
    machine: Vec<Host>,
}

impl AllowedHosts {
    /// `named` lists the operator's allowed hosts, each a name, an address or `*`; `machine` is this machine's own
    /// name.
    ///
    /// # Errors
    /// If one of `named` is not a bare host.
    pub fn new(address: IpAddr, named: &[String], machine: Option<&str>) -> anyhow::Result<Self> {
        let any = named.iter().any(|name| name == "*");
        let named = named.iter().filter(|name| *name != "*").map(|name| named_host(name)).collect::<Result<_, _>>()?;
        // The second is the machine's multicast DNS name in its own network.
        let own = machine.and_then(|name| Some([name.to_owned(), format!("{}.local", name.split('.').next()?)]));
        let machine = own.into_iter().flatten().filter_map(|name| parse_host(&name)).collect();
        Ok(Self { address: address.to_canonical(), named, any, machine })
    }

    /// Whether the operator named this host.
    pub(super) fn is_named(&self, host: &Host) -> bool {
        self.named.contains(host)
    }

    /// `asks_for_keys` says whether a caller needs a key, which no page of another site has.
    fn allows(&self, host: &Host, asks_for_keys: impl FnOnce() -> bool) -> bool {
        if self.any || self.is_named(host) {
            return true;
        }
        let is_local = self.address.is_loopback();
        let ip = match host {
            Host::Domain(name) if name == "localhost" => return true,
            Host::Domain(_) if is_local => return false,
            Host::Domain(_) => return self.machine.contains(host) || (self.named.is_empty() && asks_for_keys()),
            Host::Ipv4(ip) => IpAddr::from(*ip),
            Host::Ipv6(ip) => IpAddr::from(*ip).to_canonical(),
        };
        !is_local || ip.is_loopback()
    }
}

impl Default for AllowedHosts {
    /// The hosts of a server that listens on this machine only.
    fn default() -> Self {
        Self { address: IpAddr::from([127, 0, 0, 1]), named: Vec::new(), any: false, machine: Vec::new() }
    }
}

fn named_host(name: &str) -> anyhow::Result<Host> {
    let advice = || {
        format!(
            "--allowed-host {name:?} is not a host: write the name or the address alone, without scheme, port or path, \
             such as hearth.example.com; or * for all"
        )
    };
    let host = match name.parse() {
        Ok(IpAddr::V4(ip)) => Some(Host::Ipv4(ip)),
        Ok(IpAddr::V6(ip)) => Some(Host::Ipv6(ip)),
        Err(_) => parse_host(name),
    };
    let host = host.with_context(advice)?;
    ensure!(!matches!(&host, Host::Domain(name) if name.contains('*')), advice());
    Ok(host)
}

/// As browsers read the host of a URL: lower case, international names in their ASCII form, and no trailing dot.
fn parse_host(text: &str) -> Option<Host> {
    Host::parse(text.strip_suffix('.').unwrap_or(text)).ok()
}

/// A host with its port, as written in `Host` and `Origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) host: Host,
    /// `None`: the scheme's default port.
    pub(super) port: Option<u16>,
}

impl Authority {
    pub(super) fn parse(text: &str) -> Option<Self> {
        // A colon within brackets belongs to an IPv6 address.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (text, ""),
        };
        let port = if port.is_empty() {
            None
        } else {
            Some(port.parse().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()))?)
        };
        Some(Self { host: parse_host(host)?, port })
    }
}

/// The host that a request calls; absent for an HTTP/1.0 request that names none.
#[derive(Clone, Debug)]
pub(super) struct CalledHost(pub(super) Option<Authority>);

/// The layer itself.
pub(super) async fn require_allowed_host(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    match called(&request) {
        Ok(Some(called)) if !state.settings.hosts.allows(&called.host, || state.callers.asks_for_keys()) => {
            ApiError(not_allowed(&called.host)).into_response()
        }
        Ok(called) => {
            request.extensions_mut().insert(CalledHost(called));
            next.run(request).await
        }
        Err(error) => ApiError(error).into_response(),
    }
}

/// # Errors
/// If the request names no host, several, or an invalid one: RFC 9112, section 3.2, and RFC 9113, section 8.3.1.
fn called(request: &Request) -> Result<Option<Authority>, Error> {
    let (uri, headers) = (request.uri(), request.headers());
    let count = headers.get_all(header::HOST).iter().count();
    if count > 1 {
        return Err(invalid_host(format!("The request names its host in {count} `Host` headers; send one.")));
    }
    let target = uri.authority().map(|authority| parsed(authority.as_str())).transpose()?;
    let header = headers.get(header::HOST).map(|value| parsed(value.to_str().unwrap_or_default())).transpose()?;
    match (target, header) {
        (Some(target), Some(header)) if target != header => {
            Err(invalid_host("The request's target and its `Host` header name two different hosts.".to_owned()))
        }
        (Some(named), _) | (None, Some(named)) => Ok(Some(named)),
        // Browsers no longer speak HTTP/1.0, and some proxies probe with it.
        (None, None) if request.version() < Version::HTTP_11 => Ok(None),
        (None, None) => Err(invalid_host("The request has no `Host` header; every request must have one.".to_owned())),
    }
}

fn parsed(text: &str) -> Result<Authority, Error> {
    Authority::parse(text).ok_or_else(|| {
        let shown: String = text.chars().take(SHOWN_CHARS).collect();
        invalid_host(format!("The request's host {shown:?} is neither a name nor an address, with or without a port."))
    })
}

fn invalid_host(message: String) -> Error {
    Error::new(ErrorKind::InvalidRequest, message).with_code("invalid_host")
}

fn not_allowed(host: &Host) -> Error {
    let shown: String = host.to_string().chars().take(SHOWN_CHARS).collect();
    let message = format!(
        "{shown} is not a host of this server. Other hosts are refused, since a web page could otherwise reach the server \
         under a name of its own (DNS rebinding). Call it localhost or by the address that it listens on; if it is to be \
         reached as {shown}, directly or through a reverse proxy, start it with --allowed-host {shown} (HEARTH_ALLOWED_HOST)."
    );
    Error::new(ErrorKind::Forbidden, message).with_code("host_not_allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(address: &str, named: &[&str]) -> AllowedHosts {
        let named: Vec<String> = named.iter().map(|&name| name.to_owned()).collect();
        AllowedHosts::new(address.parse().unwrap(), &named, Some("box.corp.example")).unwrap()
    }

    fn allows(hosts: &AllowedHosts, asks_for_keys: bool, called: &str) -> bool {
        hosts.allows(&Authority::parse(called).expect(called).host, || asks_for_keys)
    }

    #[test]
    fn a_loopback_address_is_reached_by_its_own_hosts_only() {
        let hosts = hosts("127.0.0.1", &[]);
        for called in
            ["localhost", "LOCALHOST:8080", "localhost.:1", "127.0.0.1:80", "127.9.8.7", "[::1]:8080", "[::1]"]
        {
            assert!(allows(&hosts, false, called), "{called}");
        }
        assert!(allows(&hosts, false, "[::ffff:127.0.0.1]:8080"), "the same address, written in IPv6");
        for called in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.localhost",
            "192.168.0.7:8080",
            "0.0.0.0:8080",
            "[::]",
            "box.corp.example",
        ] {
            assert!(!allows(&hosts, false, called) && !allows(&hosts, true, called), "{called}");
        }
    }

    #[test]
    fn an_open_address_without_keys_takes_addresses_and_its_own_names() {
        let open = hosts("0.0.0.0", &[]);
        for called in
            ["192.168.0.7:8080", "[fe80::1]", "0.0.0.0", "127.0.0.1", "localhost", "box.local", "BOX.corp.example"]
        {
            assert!(allows(&open, false, called), "{called}");
        }
        assert!(!allows(&open, false, "hearth:8080"));
        assert!(allows(&open, true, "hearth:8080"), "a page of another site has no key");
        let named = hosts("::", &["hearth"]);
        assert!(allows(&named, false, "Hearth:8080") && allows(&named, true, "10.0.0.1"));
        assert!(!allows(&named, true, "other"), "a list of hosts is the whole list");
    }

    #[test]
    fn named_hosts_are_read_as_browsers_write_them() {
        let named = hosts("127.0.0.1", &["Hearth.Example.", "bücher.example", "192.168.0.7", "fd00::1", "[fd00::2]"]);
        for called in ["hearth.example:443", "xn--bcher-kva.example", "192.168.0.7:1", "[fd00::1]", "[FD00:0::2]:8"] {
            assert!(allows(&named, false, called), "{called}");
        }
        assert!(!allows(&named, false, "sub.hearth.example"));
        assert!(allows(&hosts("127.0.0.1", &["*"]), false, "evil.example"));
        for wrong in ["", "https://a.example", "a.example:80", "a.example/x", "*.example", "a b", "user@a.example"] {
            let error = AllowedHosts::new(IpAddr::from([127, 0, 0, 1]), &[wrong.to_owned()], None).expect_err(wrong);
            assert!(error.to_string().contains("--allowed-host"), "{error}");
        }
    }

    #[test]
    fn what_is_no_host_is_not_read_as_one() {
        for text in
            ["", ":80", "a:port", "a:+80", "a:65536", "::1", "[::1", "a@localhost", "local host", "a/b", "[::1]x:80"]
        {
            assert_eq!(Authority::parse(text), None, "{text:?}");
        }
        let port = |text: &str| Authority::parse(text).expect(text).port;
        assert_eq!((port("a:80"), port("a:"), port("[::1]"), port("[::1]:9")), (Some(80), None, None, Some(9)));
    }
}
