//! The playground: `GraphiQL`, served whole from the binary. `playground/` holds its sources, `playground/dist/` what is embedded here.

use std::io::Read;
use std::sync::OnceLock;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, VARY,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flate2::read::GzDecoder;

use super::media_type::listed;

/// What the page may load: its own files, and nothing from another host.
///
/// - `script-src` and `worker-src` name this host alone: no inline script, no `eval`, no blob.
/// - `style-src` needs `'unsafe-inline'`: the editor writes style elements and attributes as it runs, and has no way to give them a nonce.
/// - `font-src` and `img-src` allow `data:` for the editor's icons, which are inside its style sheet.
/// - `connect-src` is the API. `form-action` is `'none'`, so that a sign-in form that lost its script can't put a password in an address.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; worker-src 'self'; \
     style-src 'self' 'unsafe-inline'; font-src data:; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const PAGE: &str = include_str!("../../playground/dist/index.html");

/// A hash of all files, part of their address: what stands at one address never changes.
const BUILD: &str = include_str!("../../playground/dist/build.txt");

struct Asset {
    name: &'static str,
    content_type: &'static str,
    gzip: &'static [u8],
    /// Unpacked when somebody first asks for it so: anybody may ask, as often as they like.
    plain: OnceLock<Bytes>,
}

impl Asset {
    const fn new(name: &'static str, content_type: &'static str, gzip: &'static [u8]) -> Self {
        Self { name, content_type, gzip, plain: OnceLock::new() }
    }

    fn plain(&self) -> Bytes {
        self.plain.get_or_init(|| unpacked(self.gzip).into()).clone()
    }
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

static ASSETS: [Asset; 6] = [
    Asset::new("app.js", JAVASCRIPT, include_bytes!("../../playground/dist/app.js.gz")),
    Asset::new("app.css", "text/css; charset=utf-8", include_bytes!("../../playground/dist/app.css.gz")),
    Asset::new("editor.worker.js", JAVASCRIPT, include_bytes!("../../playground/dist/editor.worker.js.gz")),
    Asset::new("graphql.worker.js", JAVASCRIPT, include_bytes!("../../playground/dist/graphql.worker.js.gz")),
    Asset::new("json.worker.js", JAVASCRIPT, include_bytes!("../../playground/dist/json.worker.js.gz")),
    Asset::new(
        "THIRD-PARTY-LICENSES.txt",
        "text/plain; charset=utf-8",
        include_bytes!("../../playground/dist/THIRD-PARTY-LICENSES.txt.gz"),
    ),
];

/// The routes `/` and `/playground/…`, all public. What is large is packed already: nothing here is to be compressed again.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(page)).route("/playground/{*file}", get(asset))
}

/// The page, also for a browser's `GET /graphql`. It names the current build's files, so it is asked for anew each time.
#[allow(clippy::unused_async, reason = "axum takes handlers that are async")]
pub(super) async fn page() -> Response {
    (
        [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CACHE_CONTROL, "no-cache"),
            (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        ],
        PAGE,
    )
        .into_response()
}

/// One file of the page, by `<build>/<name>`; 404 for any other path.
#[allow(clippy::unused_async, reason = "axum takes handlers that are async")]
async fn asset(Path(file): Path<String>, headers: HeaderMap) -> Response {
    let name = file.strip_prefix(BUILD).and_then(|rest| rest.strip_prefix('/'));
    let Some(asset) = ASSETS.iter().find(|asset| name == Some(asset.name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut response = Response::new(Body::empty());
    let answer = response.headers_mut();
    answer.insert(CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
    answer.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    answer.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if accepts_gzip(&headers) {
        answer.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        *response.body_mut() = Body::from(asset.gzip);
    } else {
        *response.body_mut() = Body::from(asset.plain());
    }
    response
}

/// RFC 9110, 12.5.3: without the header any coding will do; with it, one that it lists with a weight above zero.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let codings = listed(headers, ACCEPT_ENCODING);
    let named = |names: &[&str]| codings.iter().find(|coding| names.contains(&coding.name.as_str()));
    match named(&["gzip", "x-gzip"]).or_else(|| named(&["*"])) {
        Some(coding) => coding.is_wanted(),
        None => !headers.contains_key(ACCEPT_ENCODING),
    }
}

fn unpacked(gzip: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(gzip)
        .read_to_end(&mut plain)
        .expect("the embedded files are whole gzip streams, which a test unpacks");
    plain
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn get(path: &str, accept_encoding: Option<&str>) -> (Response<()>, Vec<u8>) {
        let mut request = Request::get(path);
        if let Some(codings) = accept_encoding {
            request = request.header(ACCEPT_ENCODING, codings);
        }
        let request = request.body(Body::empty()).expect("the paths of these tests are valid");
        let response = routes::<()>().oneshot(request).await.expect("a router answers everything");
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("the bodies are in memory").to_bytes().to_vec();
        (Response::from_parts(head, ()), body)
    }

    #[tokio::test]
    async fn each_file_unpacks_to_what_a_client_without_gzip_gets() {
        for asset in &ASSETS {
            let path = format!("/playground/{BUILD}/{}", asset.name);
            let (packed, gzip) = get(&path, Some("br, gzip")).await;
            assert_eq!(packed.headers()[CONTENT_ENCODING], "gzip", "{path}");
            assert_eq!(packed.headers()[CONTENT_TYPE], asset.content_type, "{path}");
            assert_eq!(packed.headers()[CACHE_CONTROL], "public, max-age=31536000, immutable", "{path}");
            for codings in ["identity", "gzip;q=0", "br", ""] {
                let (plain, text) = get(&path, Some(codings)).await;
                assert!(!plain.headers().contains_key(CONTENT_ENCODING), "{path} for {codings:?}");
                assert_eq!(text, unpacked(&gzip), "{path} for {codings:?}");
            }
            for codings in [None, Some("*"), Some("GZIP; q=0.5")] {
                let (packed, _) = get(&path, codings).await;
                assert_eq!(packed.headers()[CONTENT_ENCODING], "gzip", "{path} for {codings:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_page_names_only_files_that_are_there() {
        let (head, body) = get("/", None).await;
        assert_eq!(head.headers()[CONTENT_SECURITY_POLICY], PAGE_POLICY);
        assert_eq!(head.headers()[CACHE_CONTROL], "no-cache");
        let html = String::from_utf8(body).expect("the page is UTF-8");
        let addresses: Vec<&str> = html.split('"').filter(|part| part.starts_with("/playground/")).collect();
        assert_eq!(addresses.len(), 2, "a script and a style sheet: {addresses:?}");
        for address in addresses {
            assert_eq!(get(address, None).await.0.status(), StatusCode::OK, "{address}");
        }
    }

    #[tokio::test]
    async fn another_path_is_not_found() {
        for path in ["app.js", "0000000000000000/app.js", &format!("{BUILD}/../build.txt"), &format!("{BUILD}/")] {
            let (head, _) = get(&format!("/playground/{path}"), None).await;
            assert_eq!(head.status(), StatusCode::NOT_FOUND, "{path}");
        }
    }
}
