//! A model hub on this machine: revision, tree and resolve endpoints, with the failures that real ones have.
//!
//! Bytes are served by a second server, as the real hub redirects to a content network on another host.

use std::sync::{Arc, Mutex};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What goes wrong.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Fault {
    #[default]
    None,
    /// The connection breaks when this many bytes of the file are out, always.
    CutAt(usize),
    /// The same, but only at the first request for bytes.
    CutOnceAt(usize),
    /// The bytes are not those that the listing promises.
    WrongBytes,
    /// A page in place of the file, with status 200.
    ErrorPage,
    /// Requests for a range get the whole file.
    NoRanges,
    /// A chunked answer that goes on after the end of the file.
    TooLong,
    /// Every request for bytes gets this status.
    BytesStatus(u16),
    /// Every request for the description gets this status and error code.
    Refuse(u16, &'static str),
    /// The listing names a file outside of the repository.
    ClimbingPath,
    /// No word of the file's sha256.
    NoChecksum,
    /// Something else than JSON, with status 200.
    NoJson,
    /// Requests for the description are refused with this status, and a reason in the body.
    RefuseInTheBody(u16),
    /// The first request for the description gets status 503.
    FailOnce,
    /// The listing's next page is on another server.
    NextPageElsewhere,
    /// The listing's next page is given by its path.
    NextPageByPath,
    /// The repository's description has moved within the hub.
    Moved,
    /// The description redirects to another server.
    MovedAway,
}

/// A request for bytes, as it arrived at the content network.
#[derive(Clone, Debug, PartialEq)]
pub struct BytesRequest {
    pub range: Option<String>,
    pub authorization: Option<String>,
}

#[derive(Clone)]
pub struct FakeHub {
    pub endpoint: String,
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: String,
    content_network: String,
    files: Vec<(String, Bytes)>,
    fault: Mutex<Fault>,
    bytes_requests: Mutex<Vec<BytesRequest>>,
    hub_authorizations: Mutex<Vec<Option<String>>>,
}

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Files on one page of the listing.
const PAGE: usize = 3;
/// Files from this size on are large ones with a sha256, in bytes.
const LARGE: usize = 1000;

impl FakeHub {
    /// Serves one repository, `owner/name`.
    pub async fn start(files: &[(&str, &[u8])]) -> Self {
        let hub = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let network = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut files: Vec<_> =
            files.iter().map(|(path, bytes)| ((*path).to_owned(), Bytes::copy_from_slice(bytes))).collect();
        files.sort();
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let inner = Arc::new(Inner {
            endpoint: endpoint.clone(),
            content_network: format!("http://{}", network.local_addr().unwrap()),
            files,
            fault: Mutex::default(),
            bytes_requests: Mutex::default(),
            hub_authorizations: Mutex::default(),
        });
        let hub_routes = Router::new()
            .route("/api/models/owner/name/revision/{revision}", get(revision))
            .route("/api/models/owner/name/tree/{commit}", get(tree))
            .route("/api/models/new/name/revision/{revision}", get(revision))
            .route("/owner/name/resolve/{commit}/{*path}", get(resolve))
            .with_state(inner.clone());
        let network_routes = Router::new().route("/bytes/{*path}", get(bytes)).with_state(inner.clone());
        tokio::spawn(async move { axum::serve(hub, hub_routes).await });
        tokio::spawn(async move { axum::serve(network, network_routes).await });
        Self { endpoint, inner }
    }

    pub fn set_fault(&self, fault: Fault) {
        *self.inner.fault.lock().unwrap() = fault;
    }

    /// Requests for bytes since the last call.
    pub fn take_bytes_requests(&self) -> Vec<BytesRequest> {
        std::mem::take(&mut self.inner.bytes_requests.lock().unwrap())
    }

    /// What requests to the hub itself carried since the last call.
    pub fn take_hub_authorizations(&self) -> Vec<Option<String>> {
        std::mem::take(&mut self.inner.hub_authorizations.lock().unwrap())
    }
}

impl Inner {
    fn fault(&self) -> Fault {
        self.fault.lock().unwrap().clone()
    }

    /// Notes who asks, and refuses if that is the fault.
    #[expect(clippy::result_large_err, reason = "the refusal is the whole answer, and this is a test")]
    fn admit(&self, headers: &HeaderMap) -> Result<(), Response> {
        self.hub_authorizations.lock().unwrap().push(text(headers, header::AUTHORIZATION));
        match self.fault() {
            Fault::RefuseInTheBody(status) => {
                Err((StatusCode::from_u16(status).unwrap(), Json(json!({"error": "ask the librarian"})))
                    .into_response())
            }
            Fault::FailOnce => {
                *self.fault.lock().unwrap() = Fault::None;
                Err(StatusCode::SERVICE_UNAVAILABLE.into_response())
            }
            Fault::Refuse(status, code) => {
                let status = StatusCode::from_u16(status).unwrap();
                Err((status, [("x-error-code", code), ("x-error-message", "no")], "refused").into_response())
            }
            _ => Ok(()),
        }
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

async fn revision(
    State(hub): State<Arc<Inner>>,
    Path(revision): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<Value>, Response> {
    hub.admit(&headers)?;
    if hub.fault() == Fault::NoJson {
        return Err("<html>Welcome to the library's network</html>".into_response());
    }
    if hub.fault() == Fault::Moved && uri.path().starts_with("/api/models/owner/") {
        return Err(Redirect::temporary("/api/models/new/name/revision/main").into_response());
    }
    if hub.fault() == Fault::MovedAway {
        return Err(Redirect::temporary(&format!("{}/api", hub.content_network)).into_response());
    }
    match revision.as_str() {
        "main" | COMMIT => Ok(Json(json!({"id": "owner/name", "sha": COMMIT}))),
        _ => Err((StatusCode::NOT_FOUND, [("x-error-code", "RevisionNotFound")]).into_response()),
    }
}

async fn tree(
    State(hub): State<Arc<Inner>>,
    Query(query): Query<std::collections::HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Response, Response> {
    hub.admit(&headers)?;
    let start: usize = query.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
    let page = hub.files.iter().skip(start).take(PAGE).map(|(path, bytes)| {
        let path = if hub.fault() == Fault::ClimbingPath { format!("../../{path}") } else { path.clone() };
        let sha256 = sha256(bytes);
        let mut entry = json!({"type": "file", "path": path, "size": bytes.len(), "oid": &sha256[..40]});
        if bytes.len() >= LARGE {
            entry["lfs"] = json!({"oid": sha256, "size": bytes.len(), "pointerSize": 134});
        }
        entry
    });
    let mut entries: Vec<_> = page.collect();
    entries.push(json!({"type": "directory", "path": "some", "size": 0, "oid": "00"}));
    let mut response = Json(entries).into_response();
    if start + PAGE < hub.files.len() {
        let origin = match hub.fault() {
            Fault::NextPageElsewhere => &hub.content_network,
            Fault::NextPageByPath => "",
            _ => &hub.endpoint,
        };
        let next = format!(
            "<{origin}/api/models/owner/name/tree/{COMMIT}?recursive=true&cursor={}>; rel=\"next\"",
            start + PAGE
        );
        response.headers_mut().insert(header::LINK, next.parse().unwrap());
    }
    Ok(response)
}

async fn resolve(
    State(hub): State<Arc<Inner>>,
    Path((_, path)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Response> {
    hub.admit(&headers)?;
    let location = format!("{}/bytes/{path}", hub.content_network);
    let mut response = (StatusCode::FOUND, [(header::LOCATION, location)]).into_response();
    // As the hub does, the answer before the redirect says what is behind it.
    if let Some((_, bytes)) = hub.files.iter().find(|(name, bytes)| *name == path && bytes.len() >= LARGE)
        && hub.fault() != Fault::NoChecksum
    {
        response.headers_mut().insert("x-linked-etag", format!("\"{}\"", sha256(bytes)).parse().unwrap());
        response.headers_mut().insert("x-linked-size", bytes.len().into());
    }
    Ok(response)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn bytes(State(hub): State<Arc<Inner>>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    let fault = hub.fault();
    let range = text(&headers, header::RANGE);
    let authorization = text(&headers, header::AUTHORIZATION);
    let first = {
        let mut requests = hub.bytes_requests.lock().unwrap();
        requests.push(BytesRequest { range: range.clone(), authorization });
        requests.len() == 1
    };
    match fault {
        Fault::ErrorPage => return axum::response::Html("<html>Please sign in</html>").into_response(),
        Fault::BytesStatus(status) => return StatusCode::from_u16(status).unwrap().into_response(),
        _ => {}
    }
    let (_, file) = hub.files.iter().find(|(name, _)| *name == path).expect("only listed files are asked for");
    let file = if fault == Fault::WrongBytes { Bytes::from(vec![b'!'; file.len()]) } else { file.clone() };
    let asked = range.filter(|_| fault != Fault::NoRanges);
    let start = asked.as_ref().map_or(0, |range| {
        range.strip_prefix("bytes=").and_then(|rest| rest.strip_suffix('-')).unwrap().parse().unwrap()
    });
    let mut headers = HeaderMap::new();
    let status = if asked.is_some() {
        let range = format!("bytes {start}-{}/{}", file.len() - 1, file.len());
        headers.insert(header::CONTENT_RANGE, range.parse().unwrap());
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    let cut = match fault {
        Fault::CutAt(at) => Some(at),
        Fault::CutOnceAt(at) if first => Some(at),
        _ => None,
    };
    let rest = file.slice(start..);
    let body = match cut {
        Some(at) => {
            headers.insert(header::CONTENT_LENGTH, rest.len().into());
            let sent = rest.slice(..at.saturating_sub(start).min(rest.len()));
            // Between the bytes and the break the server gets to flush: it does when the body is not ready.
            let broken = stream::once(async {
                tokio::task::yield_now().await;
                Err(std::io::Error::other("cut"))
            });
            Body::from_stream(stream::iter([Ok(sent)]).chain(broken))
        }
        None if fault == Fault::TooLong => {
            Body::from_stream(stream::iter([Ok::<_, std::io::Error>(rest), Ok(Bytes::from_static(b"more"))]))
        }
        None => Body::from(rest),
    };
    (status, headers, body).into_response()
}
