//! The status page: one HTML file in the binary, which asks nobody but the node it came from.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use sha2::{Digest, Sha256};

use super::answer;
use super::body::Body;

const PAGE: &str = include_str!("page/index.html");

/// Nothing may run or be loaded but what is in the page itself, word for word.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let (script, style) = (hash_of("script"), hash_of("style"));
    let policy = format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    answer::ascii_header(policy)
});

/// The hash of what stands between an element's tags, as a policy names it.
fn hash_of(element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let inside =
        PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map(|(inside, _)| inside);
    let inside = inside.expect("the page has one script and one style, without attributes");
    format!("sha256-{}", STANDARD.encode(Sha256::digest(inside)))
}

/// `GET /`.
pub fn page() -> Response<Body> {
    const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
    let mut response = answer::with_type(StatusCode::OK, HTML, PAGE);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache")); // a new binary may have a new page
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_names_nothing_outside() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
        }
        // The name of the SVG namespace is no address that anybody asks.
        let page = PAGE.replace("http://www.w3.org/2000/svg", "");
        // Nor may it count on lying at the root: a proxy may serve it under a path of its own.
        for outside in
            ["=\"/", "(\"/", "https://", "src=", "@import", "url(", " style=", "onclick", "innerHTML"]
        {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
