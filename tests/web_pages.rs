//! Pages of other sites get nothing done here, be it by a name that resolves to this machine, by requests that need no
//! preflight, or by a WebSocket; and programs, probes, the server's own pages, pages of `--cors-origin` and callers by a
//! name of `--allowed-host` are served.

use hearth::{
    config::Settings,
    http::{AllowedHosts, HttpSettings},
    providers::scripted::ScriptedChat,
    service::callers::CallerSettings,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{running_server::Running, scripted_server::ScriptedServer};

const CHAT: &str = "POST /v1/chat/completions HTTP/1.1";
const EVIL: (&str, &str) = ("origin", "https://evil.example");
const JSON: (&str, &str) = ("content-type", "application/json");
const UPGRADE: [(&str, &str); 4] = [
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// An answer as it came off the wire.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    /// The code of the contract's error, and its message.
    #[track_caller]
    fn error(&self) -> (String, String) {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        let text = |name: &str| body["error"][name].as_str().unwrap_or_else(|| panic!("{name}: {self:?}")).to_owned();
        (text("code"), text("message"))
    }

    #[track_caller]
    fn is_refused(&self, status: u16, code: &str, advice: &str) {
        let (found, message) = self.error();
        assert_eq!((self.status, &found[..]), (status, code), "{self:?}");
        assert!(message.contains(advice), "{message}");
    }
}

/// A server with its socket, which is sent exactly these lines.
struct Wire {
    server: Running,
    address: String,
}

impl Wire {
    async fn with(settings: Settings) -> Self {
        let server = Running::start(settings).await;
        let address = server.url.trim_start_matches("http://").to_owned();
        Self { server, address }
    }

    async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    async fn send(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        exchange(&self.address, line, headers, body).await
    }

    /// As a browser or a program that calls the server by its address does.
    async fn ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let headers: Vec<_> = [("host", &self.address[..])].into_iter().chain(headers.iter().copied()).collect();
        self.send(line, &headers, body).await
    }

    fn own_origin(&self) -> &str {
        &self.server.url
    }
}

async fn exchange(address: &str, line: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut request = format!("{line}\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    if !headers.iter().any(|(name, _)| *name == "connection") {
        request += "connection: close\r\n";
    }
    request += &format!("content-length: {}\r\n\r\n{body}", body.len());
    let mut socket = TcpStream::connect(address).await.expect("the server listens");
    socket.write_all(request.as_bytes()).await.expect("the server reads");
    let mut answer = Vec::new();
    loop {
        let read = socket.read_buf(&mut answer).await.expect("an answer");
        let text = String::from_utf8_lossy(&answer).into_owned();
        // A connection that is kept open has said all once the body is whole.
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && (read == 0 || content_length(head).is_some_and(|length| body.len() >= length))
        {
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
            return Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() };
        }
        assert!(read > 0, "the connection ended before the answer: {text:?}");
    }
}

fn content_length(head: &str) -> Option<usize> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).find_map(|(_, value)| value.parse().ok())
}

fn question() -> String {
    json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_was_made_to_resolve_here_reaches_nothing() {
    let wire = Wire::start().await;
    let rebound = [("host", "evil.example:8080"), ("origin", "http://evil.example:8080"), JSON];
    for line in [
        "GET /v1/files HTTP/1.1",
        "GET /v1/models HTTP/1.1",
        "GET /health HTTP/1.1",
        "GET /docs/ HTTP/1.1",
        "GET /openapi.json HTTP/1.1",
        "GET /nowhere HTTP/1.1",
        "OPTIONS /v1/files HTTP/1.1",
        "DELETE /api/v1/collections/default HTTP/1.1",
        CHAT,
    ] {
        wire.send(line, &rebound, &question()).await.is_refused(403, "host_not_allowed", "--allowed-host evil.example");
    }
    let upgrade: Vec<_> = rebound[..2].iter().copied().chain(UPGRADE).collect();
    let followed = wire.send("GET /analysis/job_1 HTTP/1.1", &upgrade, "").await;
    followed.is_refused(403, "host_not_allowed", "--allowed-host evil.example");
    let absolute = wire.send("GET http://evil.example/v1/files HTTP/1.1", &[("host", "evil.example")], "").await;
    absolute.is_refused(403, "host_not_allowed", "--allowed-host");
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_s_own_hosts_are_let_in_however_they_are_written() {
    let wire = Wire::start().await;
    let port = wire.address.rsplit(':').next().expect("a port").to_owned();
    for host in ["localhost", "LocalHost", "localhost.", "127.0.0.1", "127.1.2.3", "[::1]", "[0:0:0:0:0:0:0:1]"] {
        for host in [host.to_owned(), format!("{host}:{port}"), format!("{host}:80")] {
            let reply = wire.send("GET /v1/models HTTP/1.1", &[("host", &host)], "").await;
            assert_eq!(reply.status, 200, "{host}: {reply:?}");
        }
    }
    for host in
        ["evil.localhost", "localhost.evil.example", "192.168.0.7", "[fe80::1]", "0.0.0.0", "127.0.0.1.evil.example"]
    {
        let reply = wire.send("GET /v1/models HTTP/1.1", &[("host", host)], "").await;
        reply.is_refused(403, "host_not_allowed", host);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_names_one_host() {
    let wire = Wire::start().await;
    let line = "GET /v1/models HTTP/1.1";
    wire.send(line, &[], "").await.is_refused(400, "invalid_host", "Host");
    wire.send(line, &[("host", "localhost"), ("host", "localhost")], "").await.is_refused(400, "invalid_host", "2");
    wire.send(CHAT, &[("host", "localhost"), ("host", "evil.example")], "{}").await.is_refused(
        400,
        "invalid_host",
        "2",
    );
    for host in ["", "localhost:port", "local host", "user@localhost", "::1", "a/b"] {
        wire.send(line, &[("host", host)], "").await.is_refused(400, "invalid_host", host);
    }
    let differing = wire.send("GET http://localhost/v1/models HTTP/1.1", &[("host", "evil.example")], "").await;
    differing.is_refused(400, "invalid_host", "two different hosts");
    let same = wire.send("GET http://localhost:1/v1/models HTTP/1.1", &[("host", "localhost:1")], "").await;
    assert_eq!(same.status, 200, "{same:?}");
    let old = wire.send("GET /health HTTP/1.0", &[], "").await;
    assert_eq!(old.status, 200, "probes of some proxies: {old:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_names_its_host_elsewhere() {
    let wire = Wire::start().await;
    let address: std::net::SocketAddr = wire.address.parse().expect("an address");
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy();
    let client = client.resolve("evil.example", address).resolve("localhost", address).build().expect("a client");
    let get = async |host: &str| {
        let answer = client.get(format!("http://{host}:{}/v1/models", address.port())).send().await.expect("an answer");
        (answer.version(), answer.status().as_u16(), answer.text().await.expect("a text"))
    };
    let (version, status, said) = get("evil.example").await;
    assert_eq!((version, status), (reqwest::Version::HTTP_2, 403));
    assert!(said.contains("host_not_allowed"), "{said}");
    assert_eq!(get("localhost").await.1, 200);
    let two = client.get(format!("http://localhost:{}/v1/models", address.port())).header("host", "evil.example");
    assert_eq!(two.send().await.expect("an answer").status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_has_nothing_done_here() {
    let wire = Wire::start().await;
    let body = question();
    let another = ("sec-fetch-site", "cross-site");
    for headers in [
        &[EVIL][..],
        &[EVIL, another],
        &[EVIL, JSON],
        &[EVIL, ("content-type", "text/plain")],
        &[another],
        &[another, JSON],
        &[("sec-fetch-site", "same-site"), JSON],
        &[("origin", "null"), JSON],
        &[("origin", "http://localhost:1"), JSON],
        &[("origin", wire.own_origin()), EVIL, JSON],
    ] {
        wire.ask(CHAT, headers, &body).await.is_refused(403, "origin_not_allowed", "--cors-origin");
    }
    for line in [
        "POST /api/v1/collections/default/reindex HTTP/1.1",
        "POST /analysis HTTP/1.1",
        "DELETE /api/v1/collections/default HTTP/1.1",
        "PUT /nowhere HTTP/1.1",
    ] {
        let reply = wire.ask(line, &[EVIL], "").await;
        reply.is_refused(403, "origin_not_allowed", "--cors-origin https://evil.example");
    }
    let form = "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nassistants\r\n--b\r\ncontent-disposition: \
                form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\nThe account number is EVIL-1234.\r\n--b--\r\n";
    let multipart = ("content-type", "multipart/form-data; boundary=b");
    for path in ["/v1/files", "/api/v1/documents/upload"] {
        for headers in [&[EVIL, multipart, another][..], &[EVIL, multipart], &[multipart, another]] {
            let reply = wire.ask(&format!("POST {path} HTTP/1.1"), headers, form).await;
            reply.is_refused(403, "origin_not_allowed", "--cors-origin");
        }
    }
    let files = wire.ask("GET /v1/files HTTP/1.1", &[], "").await;
    assert_eq!(serde_json::from_str::<Value>(&files.body).expect("JSON")["data"], json!([]), "nothing was stored");
    let own = wire.ask("POST /v1/files HTTP/1.1", &[("origin", wire.own_origin()), multipart], form).await;
    assert_eq!(own.status, 200, "the same form, from the server's own page: {own:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_and_own_pages_are_let_in() {
    let wire = Wire::start().await;
    let body = question();
    let own = ("origin", wire.own_origin());
    for headers in [
        &[][..],
        &[JSON],
        &[own, JSON],
        &[own, ("sec-fetch-site", "same-origin"), JSON],
        &[("sec-fetch-site", "none"), JSON],
        // Node's fetch.
        &[("sec-fetch-mode", "cors"), JSON],
    ] {
        let reply = wire.ask(CHAT, headers, &body).await;
        assert_eq!(reply.status, 200, "{headers:?}: {reply:?}");
    }
    // A page may send bytes of no type anywhere; JSON it may not.
    for headers in [&[own][..], &[own, ("sec-fetch-site", "same-origin")], &[("sec-fetch-mode", "cors")]] {
        wire.ask(CHAT, headers, &body).await.is_refused(415, "unsupported_media_type", "application/json");
    }
    let reading = wire.ask("GET /v1/models HTTP/1.1", &[EVIL], "").await;
    assert_eq!(reading.status, 200, "what changes nothing is done");
    assert!(!reading.head.contains("access-control-allow-origin"), "but not to be read: {reading:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_opened_by_the_server_s_own_pages() {
    let wire = Wire::start().await;
    let follow = async |headers: &[(&'static str, &str)]| {
        let headers: Vec<_> = headers.iter().copied().chain(UPGRADE).collect();
        wire.ask("GET /analysis/job_1 HTTP/1.1", &headers, "").await
    };
    for headers in
        [&[EVIL][..], &[("origin", "null")], &[("sec-fetch-site", "cross-site")], &[("origin", "http://localhost:1")]]
    {
        follow(headers).await.is_refused(403, "origin_not_allowed", "--cors-origin");
    }
    // There is no such job; only a caller who was let in is told so.
    for headers in [&[][..], &[("origin", wire.own_origin())]] {
        follow(headers).await.is_refused(404, "not_found", "job_1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_allowed_host_are_the_server_s_own() {
    let named = vec!["Hearth.Example".to_owned(), "hearth".to_owned()];
    let wire = Wire::with(Settings { allowed_host: Some(named), ..Settings::default() }).await;
    for host in ["hearth.example", "HEARTH.example.:443", "hearth:8080", "localhost", "127.0.0.1"] {
        let reply = wire.send("GET /v1/models HTTP/1.1", &[("host", host)], "").await;
        assert_eq!(reply.status, 200, "{host}: {reply:?}");
    }
    let reply = wire.send("GET /v1/models HTTP/1.1", &[("host", "other.example")], "").await;
    reply.is_refused(403, "host_not_allowed", "--allowed-host other.example");
    let body = question();
    // A reverse proxy passes the name on, or puts its own address in its place.
    let public = ("origin", "https://hearth.example");
    for host in ["hearth.example", "127.0.0.1:8080"] {
        let reply = wire.send(CHAT, &[("host", host), public, JSON], &body).await;
        assert_eq!(reply.status, 200, "{host}: {reply:?}");
    }
    let other_port = [("host", "hearth.example"), ("origin", "https://hearth.example:8443"), JSON];
    wire.send(CHAT, &other_port, &body).await.is_refused(403, "origin_not_allowed", "--cors-origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_cors_origin_chats() {
    let origins = vec!["https://app.example".to_owned()];
    let wire = Wire::with(Settings { cors_origin: Some(origins), ..Settings::default() }).await;
    let page = [("origin", "https://app.example"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "cors")];
    let asked = [
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type,x-stainless-lang"),
    ];
    let preflight: Vec<_> = page.into_iter().chain(asked).collect();
    let granted = wire.ask("OPTIONS /v1/chat/completions HTTP/1.1", &preflight, "").await;
    assert_eq!(granted.status, 200, "{granted:?}");
    for header in [
        "access-control-allow-origin: https://app.example",
        "access-control-allow-headers: authorization,content-type,x-stainless-lang",
    ] {
        assert!(granted.head.contains(header), "{granted:?}");
    }
    let sdk: Vec<_> =
        page.into_iter().chain([JSON, ("authorization", "Bearer none"), ("x-stainless-lang", "js")]).collect();
    let chat = wire.ask(CHAT, &sdk, &question()).await;
    assert_eq!(chat.status, 200, "{chat:?}");
    assert!(chat.head.contains("access-control-allow-origin: https://app.example"), "{chat:?}");
    let untyped = wire.ask(CHAT, &page, &question()).await;
    untyped.is_refused(415, "unsupported_media_type", "application/json");
    assert!(untyped.head.contains("access-control-allow-origin"), "the page may read why: {untyped:?}");
    wire.ask(CHAT, &[EVIL, JSON], &question()).await.is_refused(403, "origin_not_allowed", "--cors-origin");
}

#[tokio::test]
async fn an_address_that_others_reach_takes_addresses_and_where_keys_are_asked_for_any_name() {
    let status = async |api_keys: &[&str], named: &[&str], host: &'static str| {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let hosts = AllowedHosts::new("0.0.0.0".parse().expect("an address"), &texts(named), Some("machine"));
        let settings = HttpSettings { hosts: hosts.expect("hosts"), ..HttpSettings::default() };
        let callers = CallerSettings { api_keys: texts(api_keys), ..CallerSettings::default() };
        let server = ScriptedServer::with_all(ScriptedChat::saying("tiny", "Hi"), settings, callers, false);
        let listening = server.listen();
        let address = listening.address.to_string();
        exchange(&address, "GET /health/ready HTTP/1.1", &[("host", host)], "").await.status
    };
    for host in ["10.0.0.5:8080", "[fd00::5]:8080", "localhost:8080", "machine:8080", "machine.local"] {
        assert_eq!(status(&[], &[], host).await, 200, "{host}");
    }
    assert_eq!(status(&[], &[], "hearth:8080").await, 403, "no key is asked for");
    assert_eq!(status(&[], &["hearth"], "hearth:8080").await, 200);
    assert_eq!(status(&["key"], &[], "hearth:8080").await, 200);
    assert_eq!(status(&["key"], &["other"], "hearth:8080").await, 403);
    assert_eq!(status(&["key"], &["other"], "10.0.0.5:8080").await, 200, "a probe");
    assert_eq!(status(&[], &["*"], "evil.example").await, 200, "asked for");
}

#[tokio::test]
async fn no_answer_is_a_page_but_the_pages() {
    let wire = Wire::start().await;
    for (path, policy) in [
        ("/docs/", "script-src 'self'"),
        ("/", "frame-ancestors 'none'"),
        ("/v1/models", "default-src 'none'; frame-ancestors 'none'"),
        ("/no/such/route", "default-src 'none'; frame-ancestors 'none'"),
    ] {
        let reply = wire.ask(&format!("GET {path} HTTP/1.1"), &[("accept", "text/html")], "").await;
        let head = reply.head.to_lowercase();
        for header in ["x-content-type-options: nosniff", "x-frame-options: deny", "referrer-policy: no-referrer"] {
            assert!(head.contains(header), "{path}: {head}");
        }
        assert!(head.contains("content-security-policy: ") && head.contains(policy), "{path}: {head}");
    }
}
