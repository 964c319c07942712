//! Webhook messages to a caller's address: signed, to the public internet only, and only to the address that was
//! checked.
//!
//! A caller must not be able to use the server to reach what only the server can reach: its own ports, other machines
//! of its network, a cloud's metadata. So a host is resolved once, every resulting address is checked against the
//! non-public ranges, and the connection goes to exactly those addresses: a name that resolves differently a moment
//! later gains nothing. Redirects are not followed and no proxy is used, as both would connect elsewhere.
//!
//! Signatures are those of the Standard Webhooks specification (`standard-webhooks.md`, "Signature scheme"):
//! HMAC-SHA256 over `id.timestamp.body`. When to send and retry is left to the jobs.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use url::{Host, Url};

use super::jobs::Failure;
use hearth_domain::error::{Error, Result};

/// Covers the look-up, the connection, the request and the response head.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(15);
const URL_CHARS_MAX: usize = 2048;
/// The prefix of a secret in the specification's own form; the rest is the key in base64.
const SECRET_PREFIX: &str = "whsec_";

/// The key by which receivers verify messages.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret(Vec<u8>);

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(..)")
    }
}

impl std::str::FromStr for WebhookSecret {
    type Err = &'static str;

    /// `whsec_` and base64, or any other text, whose bytes are then the key.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key = match text.strip_prefix(SECRET_PREFIX) {
            Some(encoded) => BASE64_STANDARD.decode(encoded).map_err(|_| "after `whsec_` it must be base64")?,
            None => text.as_bytes().to_vec(),
        };
        if key.is_empty() { Err("it must not be empty") } else { Ok(Self(key)) }
    }
}

impl WebhookSecret {
    /// The header `webhook-signature` for a message; `timestamp` in Unix seconds.
    pub fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// Whether and where messages may be sent.
#[derive(Clone, Debug, Default)]
pub struct WebhookSettings {
    /// Without a secret no message is sent: its receiver could not tell it from a forgery.
    pub secret: Option<WebhookSecret>,
    /// Also send to addresses that are not public.
    pub allow_private: bool,
    /// Make no outgoing connection.
    pub offline: bool,
}

impl WebhookSettings {
    /// The address that a message may be sent to, as far as can be checked without a look-up.
    ///
    /// # Errors
    /// If it is not a valid address, or this server sends no messages.
    pub fn check(&self, url: &str) -> Result<Url, String> {
        if self.offline {
            return Err("This server makes no outgoing connection (--offline), so it cannot tell anybody.".to_owned());
        }
        if self.secret.is_none() {
            let message = "Messages are signed, and this server has nothing to sign with: start it with \
                           --webhook-secret or HEARTH_WEBHOOK_SECRET.";
            return Err(message.to_owned());
        }
        if url.chars().count() > URL_CHARS_MAX {
            return Err(format!("It must have at most {URL_CHARS_MAX} characters."));
        }
        let url = Url::parse(url)
            .map_err(|error| format!("It must be an address such as https://example.com/hook, but {error}."))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("It must begin with https:// or http://.".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("It must not hold a user or a password; the signature says whom a message is from.".to_owned());
        }
        let is_refused = match url.host() {
            None => return Err("It must name a host.".to_owned()),
            Some(Host::Ipv4(address)) => self.refuses(address.into()),
            Some(Host::Ipv6(address)) => self.refuses(address.into()),
            Some(Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                !self.allow_private && (name == "localhost" || name.ends_with(".localhost"))
            }
        };
        if is_refused { Err(not_public(&url)) } else { Ok(url) }
    }

    fn refuses(&self, address: IpAddr) -> bool {
        !self.allow_private && !is_public(address)
    }

    /// Sends one message. `id` is the same at every attempt, so that a receiver can recognize a repetition.
    ///
    /// # Errors
    /// If it was not delivered; the failure says whether a retry may help.
    pub async fn send(&self, url: &str, id: &str, timestamp: i64, body: String) -> Result<(), Failure> {
        let url = self.check(url).map_err(Failure::Lasting)?;
        let secret = self.secret.as_ref().ok_or_else(|| Failure::Lasting("there is no --webhook-secret".to_owned()))?;
        let send = async {
            let client = self.client_for(&url).await?;
            let request = client
                .post(url.clone())
                .header("content-type", "application/json")
                .header("webhook-id", id)
                .header("webhook-timestamp", timestamp.to_string())
                .header("webhook-signature", secret.sign(id, timestamp, &body))
                .body(body);
            let answer = request.send().await.map_err(|error| {
                // The address may itself be a secret; the caller who gave it knows it.
                Failure::Passing(format!("no answer: {:#}", anyhow::Error::new(error.without_url())))
            })?;
            let status = answer.status();
            match status.as_u16() {
                200..=299 => Ok(()),
                300..=399 => Err(Failure::Lasting(format!("answered {status}, and redirects are not followed"))),
                410 => Err(Failure::Lasting(format!("answered {status}"))),
                _ => Err(Failure::Passing(format!("answered {status}"))),
            }
        };
        let late = |_| Failure::Passing(format!("no answer within {} seconds", DELIVERY_TIMEOUT.as_secs()));
        tokio::time::timeout(DELIVERY_TIMEOUT, send).await.map_err(late)?
    }

    /// A client that connects only to the host's current addresses, if those are allowed.
    async fn client_for(&self, url: &Url) -> Result<reqwest::Client, Failure> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(DELIVERY_TIMEOUT);
        // The earlier check covers literal addresses.
        if let Some(Host::Domain(name)) = url.host() {
            let port = url.port_or_known_default().unwrap_or(443);
            let found = tokio::net::lookup_host((name, port)).await;
            let found = found.map_err(|error| Failure::Passing(format!("`{name}` is not found: {error}")))?;
            let allowed: Vec<SocketAddr> = found.filter(|address| !self.refuses(address.ip())).collect();
            if allowed.is_empty() {
                return Err(Failure::Lasting(not_public(url)));
            }
            builder = builder.resolve_to_addrs(name, &allowed);
        }
        builder.build().map_err(|error| Failure::Lasting(Error::internal(error).to_string()))
    }
}

fn not_public(url: &Url) -> String {
    format!(
        "`{}` is not a public address. Where messages within your own network are wanted, start the server with \
         --webhook-allow-private.",
        url.host_str().unwrap_or_default()
    )
}

/// Whether an address is publicly reachable, by the special-purpose address registries (RFC 6890 and its updates).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        // This network; carrier-grade NAT; protocol assignments; 6to4 relays; benchmarks.
        || a == 0
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
        // Multicast, reserved and broadcast.
        || a >= 224;
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(mapped) = address.to_ipv4_mapped() {
        return is_public_v4(mapped);
    }
    let segments = address.segments();
    let embedded = |high: u16, low: u16| is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match segments {
        // NAT64 maps to the IPv4 address at its end, 6to4 to the one after its prefix.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Protocol assignments, Teredo among them; documentation.
        [0x2001, second, ..] => second >= 0x200 && second != 0xdb8,
        [0x3fff, second, ..] => second >= 0x1000,
        // Everything else in the global unicast range; not local, multicast, loopback or unspecified addresses.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(allow_private: bool) -> WebhookSettings {
        WebhookSettings { secret: Some("secret".parse().unwrap()), allow_private, offline: false }
    }

    #[test]
    fn a_signature_is_that_of_the_specification() {
        // The example of the specification's reference libraries.
        let secret: WebhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_ne!("plain".parse::<WebhookSecret>().unwrap().sign("a", 1, ""), secret.sign("a", 1, ""));
        for wrong in ["", "whsec_", "whsec_?"] {
            assert!(wrong.parse::<WebhookSecret>().is_err(), "{wrong}");
        }
        assert!(!format!("{secret:?}").contains("31"));
    }

    #[test]
    fn only_public_addresses_are_sent_to() {
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "203.0.113.5",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd12:3456::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:c0a8:101::1",
            "2001::1",
            "2001:db8::1",
            "100::1",
            "4000::1",
        ] {
            let address: IpAddr = private.parse().unwrap();
            assert!(!is_public(address), "{private}");
            let url = if address.is_ipv6() { format!("http://[{private}]/x") } else { format!("http://{private}/x") };
            assert!(settings(false).check(&url).is_err(), "{private}");
            assert!(settings(true).check(&url).is_ok(), "{private}");
        }
        for public in [
            "1.1.1.1",
            "93.184.216.34",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "2001:4860::8888",
            "2002:101:101::1",
            "::ffff:1.1.1.1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn an_address_is_a_web_address_of_a_host_and_nothing_more() {
        for good in ["https://example.com/hook?x=1", "http://example.com:8080", "https://93.184.216.34/"] {
            assert!(settings(false).check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "example.com/hook",
            "ftp://example.com/",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "https://",
            "https://user@example.com/",
            "https://user:word@example.com/",
            "http://localhost/",
            "http://a.localhost./",
            // Other spellings of 127.0.0.1.
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://[::ffff:7f00:1]/",
        ] {
            assert!(settings(false).check(bad).is_err(), "{bad}");
        }
        assert!(settings(false).check(&format!("https://example.com/{}", "a".repeat(2048))).is_err());
        let said = WebhookSettings::default().check("https://example.com").unwrap_err();
        assert!(said.contains("--webhook-secret"), "{said}");
        let said = WebhookSettings { offline: true, ..settings(true) }.check("https://example.com").unwrap_err();
        assert!(said.contains("--offline"), "{said}");
    }

    #[tokio::test]
    async fn a_name_is_held_against_what_it_resolves_to() {
        let url = Url::parse("http://localhost:9/").unwrap();
        assert!(
            matches!(settings(false).client_for(&url).await, Err(Failure::Lasting(said)) if said.contains("public"))
        );
        assert!(settings(true).client_for(&url).await.is_ok());
    }
}
