//! Sites: whether a request was made by the page of another web site, in a browser that reaches this node.
//!
//! ```text
//! tokens are asked for ──────────────────────────> in: a page of another site has none to show
//! Host is no name of ours (a rebound name) ──────> 403, reads too
//! a write, Sec-Fetch-Site: same-origin or none ──> in
//!          Sec-Fetch-Site: anything else ────────> 403
//!          Origin, whose host is that of Host ───> in           (older browsers, and nodes without TLS)
//!          Origin, of a name that is listed ─────> in           (a proxy that names another Host)
//!          Origin, any other ────────────────────> 403
//!          neither: no browser ──────────────────> in
//! ```
//!
//! A node without tokens trusts whoever reaches its port, and a browser on the same machine does, whatever page it shows.
//! It asks nobody before it sends a form, so the request itself has to tell. Reads by other sites' pages need no check of
//! their own: browsers do not show a page what it may not read.

use hyper::Request;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};

use super::access::Access;
use super::head::Head;
use super::status::Fault;
use crate::util::hosts::Hosts;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Says whether a request, for which no token was asked, may come in.
///
/// # Errors
/// [`Fault::UnknownHost`] or [`Fault::CrossSite`].
pub fn check<B>(hosts: &Hosts, access: Access, head: &Head, request: &Request<B>) -> Result<(), Fault> {
    if matches!(access, Access::Open | Access::Peers) {
        return Ok(());
    }
    // A target that names its host overrides the field (RFC 9112, section 3.2.2).
    let host = match request.uri().authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => request.headers().get(HOST).map_or(&b""[..], |host| host.as_bytes()),
    };
    if !hosts.allow(host) {
        return Err(Fault::UnknownHost(host.escape_ascii().to_string()));
    }
    let writes = matches!(access, Access::Write | Access::AdminWrite);
    if writes && head.has_site && is_cross_site(hosts, host, request.headers()) {
        return Err(Fault::CrossSite);
    }
    Ok(())
}

fn is_cross_site(hosts: &Hosts, host: &[u8], headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all(SEC_FETCH_SITE).iter().map(HeaderValue::as_bytes).peekable();
    if sites.peek().is_some() {
        return sites.any(|site| site != b"same-origin" && site != b"none");
    }
    headers.get_all(ORIGIN).iter().any(|origin| {
        // What has no host, as "null", is of nobody that we know.
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        origin.is_none_or(|(scheme, origin)| {
            !same_host(scheme, origin.as_bytes(), host) && !hosts.lists(origin.as_bytes())
        })
    })
}

/// Whether two name the same host and port; that of the scheme may be left out.
fn same_host(scheme: &str, origin: &[u8], host: &[u8]) -> bool {
    let port: &[u8] = if scheme == "https" { b":443" } else { b":80" };
    let bare = |host: &'_ [u8]| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    bare(origin) == bare(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a request with these fields.
    fn asked(access: Access, target: &str, fields: &[(&str, &str)]) -> Result<(), u16> {
        let mut request = Request::builder().uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let mut hosts = Hosts::parse("kv.example.com").unwrap();
        hosts.know("node1.example.net:8081");
        check(&hosts, access, &Head::of(request.headers()), &request).map_err(|fault| fault.code().as_u16())
    }

    #[test]
    fn programs_and_the_nodes_own_page_may_write_and_other_sites_may_not() {
        let may: [&[(&str, &str)]; 9] = [
            &[("host", "127.0.0.1:8081")],
            &[
                ("host", "127.0.0.1:8081"),
                ("origin", "http://127.0.0.1:8081"),
                ("sec-fetch-site", "same-origin"),
            ],
            &[("host", "localhost:8081"), ("origin", "http://localhost:8081")],
            &[("host", "LOCALHOST"), ("origin", "http://localhost:80")],
            &[("host", "localhost:443"), ("origin", "https://localhost")],
            &[("host", "node1.example.net:8081"), ("sec-fetch-site", "none")],
            &[("host", "backend:8081"), ("origin", "https://kv.example.com")],
            &[
                ("host", "backend:8081"),
                ("origin", "https://front.example"),
                ("sec-fetch-site", "same-origin"),
            ],
            &[],
        ];
        for fields in may {
            assert_eq!(asked(Access::Write, "/put", fields), Ok(()), "{fields:?}");
            assert_eq!(asked(Access::AdminWrite, "/put", fields), Ok(()), "{fields:?}");
        }
        let may_not: [&[(&str, &str)]; 10] = [
            &[("host", "localhost:8081"), ("origin", "https://evil.test"), ("sec-fetch-site", "cross-site")],
            &[("host", "localhost:8081"), ("sec-fetch-site", "cross-site")],
            &[
                ("host", "localhost:8081"),
                ("sec-fetch-site", "same-site"),
                ("origin", "http://localhost:3000"),
            ],
            &[("host", "localhost:8081"), ("sec-fetch-site", "")],
            &[("host", "localhost:8081"), ("origin", "https://evil.test")],
            &[("host", "localhost:8081"), ("origin", "null")],
            &[("host", "localhost:8081"), ("origin", "http://localhost:3000")],
            &[("host", "node1.example.net:8081"), ("origin", "http://node1.example.net:3000")],
            &[
                ("host", "localhost:8081"),
                ("origin", "http://localhost:8081"),
                ("origin", "https://evil.test"),
            ],
            &[
                ("host", "localhost:8081"),
                ("sec-fetch-site", "same-origin"),
                ("sec-fetch-site", "cross-site"),
            ],
        ];
        for fields in may_not {
            assert_eq!(asked(Access::Write, "/put", fields), Err(403), "{fields:?}");
            assert_eq!(asked(Access::AdminWrite, "/put", fields), Err(403), "{fields:?}");
            assert_eq!(asked(Access::Read, "/get", fields), Ok(()), "{fields:?}");
        }
    }

    #[test]
    fn a_rebound_name_reads_nothing_and_probes_and_peers_are_let_through() {
        let rebound = &[
            ("host", "evil.test:8081"),
            ("origin", "http://evil.test:8081"),
            ("sec-fetch-site", "same-origin"),
        ];
        for access in [Access::Read, Access::Write, Access::Admin, Access::AdminWrite] {
            assert_eq!(asked(access, "/get", rebound), Err(403), "{access:?}");
        }
        assert_eq!(asked(Access::Open, "/livez", rebound), Ok(()));
        assert_eq!(asked(Access::Peers, "/internal/rpc", rebound), Ok(()));
        assert_eq!(asked(Access::Read, "http://evil.test/get", &[("host", "localhost")]), Err(403));
        assert_eq!(asked(Access::Read, "http://localhost/get", &[("host", "evil.test")]), Ok(()));
    }
}
