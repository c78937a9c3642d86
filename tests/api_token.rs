//! Tokens: that no route is left open, and what each scope lets in.

mod http_support;

use http_support::{Answer, Server};
use kvstore::http::ApiSettings;
use kvstore::http::access::Access;
use kvstore::http::router::{Pattern, Route};
use kvstore::util::tokens::Tokens;

const TOKENS: &str = "ro:read-only-token,rw:read-write-token,admin:administrator";

fn start() -> Server {
    let settings = ApiSettings { tokens: Tokens::parse(TOKENS).unwrap(), ..ApiSettings::default() };
    Server::start_with_settings(settings)
}

fn ask(server: &Server, method: &str, target: &str, token: Option<&str>) -> Answer {
    let shown = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = shown.iter().map(|shown| ("Authorization", shown.as_str())).collect();
    server.connect().ask(method, target, &headers, b"")
}

/// Every method of every route, and a path that leads to it.
fn requests() -> Vec<(Route, &'static str, String)> {
    let of = |route: Route| {
        let path = match route.row().pattern {
            Pattern::Is(path) => path.to_owned(),
            Pattern::Under(prefix) => format!("{prefix}a2V5"),
            Pattern::Other => "/nowhere".to_owned(),
        };
        let methods = if route == Route::Unknown { &["GET"][..] } else { route.row().methods };
        methods.iter().map(move |method| (route, *method, path.clone())).collect::<Vec<_>>()
    };
    Route::ALL.into_iter().flat_map(of).collect()
}

#[test]
fn no_route_is_open_but_those_that_are_meant_to_be() {
    let server = start();
    for (route, method, path) in requests() {
        for token in [None, Some("no-such-token"), Some("read-only-toke")] {
            let answer = ask(&server, method, &path, token);
            // The probes are for machines that hold no token; the description holds no data; peers prove their own secret.
            if [Route::Livez, Route::Readyz, Route::OpenApi, Route::Rpc, Route::Unknown].contains(&route) {
                assert_ne!(answer.code, 401, "{method} {path}");
                continue;
            }
            assert_eq!(answer.code, 401, "{method} {path} {token:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"kvstore\""));
            assert!(method == "HEAD" || !answer.body.is_empty());
        }
    }
    server.get("/livez");
    assert_eq!(ask(&server, "GET", "/scan", Some("read-only-token")).text(), "{}", "nothing was written");
}

#[test]
fn a_scope_lets_in_what_it_names_and_no_more() {
    let server = start();
    for (route, method, path) in requests() {
        let access = route.row().access;
        if (route, method) == (Route::Events, "GET") {
            continue; // its answer has no end; HEAD is asked in its place
        }
        let lets_in = |token: &str| {
            let answer = ask(&server, method, &path, Some(token));
            assert_ne!(answer.code, 401, "{method} {path} {token}");
            if answer.code == 403 {
                let challenge = answer.header("www-authenticate");
                assert_eq!(challenge, Some("Bearer realm=\"kvstore\", error=\"insufficient_scope\""));
            }
            answer.code != 403
        };
        let by_scope = [lets_in("read-only-token"), lets_in("read-write-token"), lets_in("administrator")];
        let expected = match access {
            Access::Open | Access::Read => [true, true, true],
            Access::Write => [false, true, true],
            Access::Admin | Access::AdminWrite => [false, false, true],
            Access::Peers => continue, // it has a door of its own, and the test's node has no peers
        };
        assert_eq!(by_scope, expected, "{method} {path}");
    }
}

#[test]
fn every_route_that_changes_data_asks_for_write_access() {
    for (route, method, path) in requests() {
        let reads = ["GET", "HEAD"].contains(&method)
            || [Route::VikdbRange, Route::OwnGetMany, Route::Unknown].contains(&route);
        let access = route.row().access;
        let changes = [Access::Write, Access::AdminWrite].contains(&access);
        assert!(reads || changes, "{method} {path}: {access:?}");
    }
}

#[test]
fn a_refusal_is_worded_by_the_door() {
    let server = start();
    let body = |target: &str| ask(&server, "GET", target, None);
    assert_eq!(body("/get?key=k").text(), "a bearer token is needed");
    assert_eq!(body("/kv/aw").json()["success"], false);
    assert_eq!(body("/blobs/k").text(), r#"{"error":"a bearer token is needed"}"#);
    assert_eq!(body("/v1/kv/k").json()["code"], "unauthorized");
    let denied = ask(&server, "DELETE", "/v1/kv/k", Some("read-only-token"));
    assert_eq!((denied.code, denied.json()["code"].as_str()), (403, Some("forbidden")));
    let wrong = ask(&server, "GET", "/get?key=k", Some("no-such-token"));
    assert_eq!(wrong.text(), "the bearer token is not known here");
}

#[test]
fn a_browser_is_asked_for_a_password_and_may_look_with_it() {
    let server = start();
    let refused = server.get("/");
    let challenges: Vec<_> = refused.headers.iter().filter(|(name, _)| name == "www-authenticate").collect();
    assert_eq!(challenges.last().unwrap().1, "Basic realm=\"kvstore\"");
    let with_password = |method: &str, target: &str| {
        let headers = [("Authorization", "Basic bWU6YWRtaW5pc3RyYXRvcg==")]; // me:administrator
        server.connect().ask(method, target, &headers, b"").code
    };
    assert_eq!((with_password("GET", "/"), with_password("GET", "/ring")), (200, 200));
    assert_eq!(with_password("POST", "/delete?key=k"), 403, "another site may have made the browser ask");
}

#[test]
fn without_tokens_everyone_may_do_everything() {
    let server = Server::start();
    assert_eq!(server.put("k", "v").code, 200);
    assert_eq!(ask(&server, "GET", "/get?key=k", Some("whatever-it-is")).text(), "v");
    assert_eq!(server.get("/ring").code, 200);
}
