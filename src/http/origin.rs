//! Which web pages may change something: the layer that checks a browser's request against the allowed pages.
//!
//! Any page can make the browser send a form, a file or a text without a preflight (CSRF), or open a WebSocket; CORS
//! only keeps the page from reading the answer. Browsers name the page in `Origin` and `Sec-Fetch-Site`, which scripts
//! cannot set. Other programs send neither and are let in. A plain GET changes nothing, and CORS decides who reads its
//! answer. [`super::host`] has already checked the host that the request calls.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    error::ApiError,
    host::{Authority, CalledHost},
    settings::HttpSettings,
    state::AppState,
};
use hearth_domain::error::{Error, ErrorKind};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Prefix of the headers in which browsers say how a request came about (Fetch Metadata).
const FETCH_METADATA: &str = "sec-fetch-";
/// Characters shown of a refused origin.
const SHOWN_CHARS: usize = 100;

/// Whether the request has a browser's headers.
pub(super) fn is_from_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.keys().any(|name| name.as_str().starts_with(FETCH_METADATA))
}

/// The layer itself.
pub(super) async fn require_allowed_origin(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let looks_only = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !looks_only || asks_for_websocket(request.headers()) {
        let called = request.extensions().get::<CalledHost>().and_then(|CalledHost(called)| called.as_ref());
        if let Err(error) = check(request.headers(), called, &state.settings) {
            return ApiError(error).into_response();
        }
    }
    next.run(request).await
}

fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let protocols = headers.get_all(header::UPGRADE).iter().filter_map(|value| value.to_str().ok());
    protocols.flat_map(|value| value.split(',')).any(|protocol| protocol.trim().eq_ignore_ascii_case("websocket"))
}

fn check(headers: &HeaderMap, called: Option<&Authority>, settings: &HttpSettings) -> Result<(), Error> {
    if settings.cors_origins.iter().any(|allowed| allowed == "*") {
        return Ok(());
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => {
            // `none`: the user's own action, such as a typed address.
            let is_own = |site: &[u8]| matches!(site, b"same-origin" | b"none");
            if headers.get_all(FETCH_SITE).iter().all(|site| is_own(site.as_bytes())) {
                return Ok(());
            }
            Err(not_allowed("a page that is not this server's own and does not say its origin", None))
        }
        (Some(origin), None) => {
            let origin = origin.to_str().unwrap_or_default();
            if settings.cors_origins.iter().any(|allowed| allowed == origin) || is_own(origin, called, settings) {
                return Ok(());
            }
            let shown: String = origin.chars().take(SHOWN_CHARS).collect();
            Err(not_allowed(&format!("a page of {shown}"), Some(&shown)))
        }
        (Some(_), Some(_)) => Err(not_allowed("a page of several origins", None)),
    }
}

/// Whether the origin is the server itself, by the host that the request calls or one that the operator named: a
/// reverse proxy may call the server by another name than the browser does.
fn is_own(origin: &str, called: Option<&Authority>, settings: &HttpSettings) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let usual_port = match scheme {
        "http" if settings.tls.is_none() => 80,
        "https" => 443,
        _ => return false,
    };
    let Some(origin) = Authority::parse(authority) else { return false };
    let port = |of: &Authority| of.port.unwrap_or(usual_port);
    let is_called = called.is_some_and(|called| called.host == origin.host && port(called) == port(&origin));
    is_called || (settings.hosts.is_named(&origin.host) && port(&origin) == usual_port)
}

fn not_allowed(page: &str, origin: Option<&str>) -> Error {
    let flag = origin.filter(|origin| *origin != "null").unwrap_or("ORIGIN");
    let message = format!(
        "The request comes from {page}, and pages of other sites may neither change anything here nor open a WebSocket. \
         If its pages are to call this server, start it with --cors-origin {flag} (HEARTH_CORS_ORIGIN); if they are this \
         server's own, behind a reverse proxy, with --allowed-host and the name under which browsers reach it."
    );
    Error::new(ErrorKind::Forbidden, message).with_code("origin_not_allowed")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::http::{AllowedHosts, TlsSettings};

    fn settings(named: &[&str], cors: &[&str]) -> HttpSettings {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        HttpSettings {
            hosts: AllowedHosts::new(IpAddr::from([127, 0, 0, 1]), &texts(named), None).unwrap(),
            cors_origins: texts(cors),
            ..HttpSettings::default()
        }
    }

    fn is_let_in(settings: &HttpSettings, headers: &[(&'static str, &str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        check(&headers.collect(), Authority::parse("localhost:8080").as_ref(), settings).is_ok()
    }

    #[test]
    fn a_page_is_known_by_its_origin() {
        let usual = settings(&["hearth.example"], &["https://app.example"]);
        for origin in [
            "http://localhost:8080",
            "https://localhost:8080",
            "http://LOCALHOST:8080",
            "https://app.example",
            "https://hearth.example",
            "http://hearth.example:80",
        ] {
            assert!(is_let_in(&usual, &[("origin", origin)]), "{origin}");
            assert!(is_let_in(&usual, &[("origin", origin), ("sec-fetch-site", "cross-site")]), "{origin}");
        }
        for origin in [
            "null",
            "",
            "https://evil.example",
            "http://localhost",
            "http://localhost:3000",
            "https://hearth.example:8443",
            "http://127.0.0.1:8080",
            "file://localhost:8080",
            "http://app.example",
        ] {
            assert!(!is_let_in(&usual, &[("origin", origin)]), "{origin}");
            assert!(!is_let_in(&usual, &[("origin", origin), ("sec-fetch-site", "same-origin")]), "{origin}");
        }
        assert!(!is_let_in(&usual, &[("origin", "https://app.example"), ("origin", "http://localhost:8080")]));
        assert!(is_let_in(&settings(&[], &["null"]), &[("origin", "null")]), "asked for");
        assert!(is_let_in(&settings(&[], &["*"]), &[("origin", "https://evil.example")]), "asked for");
        let tls = TlsSettings { certificate: "c".into(), private_key: "k".into() };
        let encrypted = HttpSettings { tls: Some(tls), ..settings(&[], &[]) };
        assert!(is_let_in(&encrypted, &[("origin", "https://localhost:8080")]));
        assert!(!is_let_in(&encrypted, &[("origin", "http://localhost:8080")]), "not what this server serves");
    }

    #[test]
    fn without_an_origin_the_browser_says_whether_it_is_another_site() {
        let usual = settings(&[], &["https://app.example"]);
        assert!(is_let_in(&usual, &[]), "no browser");
        for (site, is_own) in
            [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false), ("", false)]
        {
            assert_eq!(is_let_in(&usual, &[("sec-fetch-site", site)]), is_own, "{site}");
        }
    }

    #[test]
    fn an_upgrade_is_found_among_others() {
        let asks = |value: &str| asks_for_websocket(&[(header::UPGRADE, value.parse().unwrap())].into_iter().collect());
        assert!(asks("websocket") && asks("h2c, WebSocket") && !asks("h2c"));
    }
}
