//! simple-kv's door: `/set`, `/del`, and the `/get` it shares.

mod http_support;

use http_support::{Server, limits};

#[test]
fn the_endpoints_of_its_readme_do_what_is_said_there() {
    let server = Server::start();
    let set = server.post("/set", r#"{"key":"keyName","value":"a value"}"#);
    assert_eq!((set.code, set.text()), (200, "OK"));
    assert!(set.header("x-kv-timestamp").is_some() && set.header("x-kv-acks").is_some());
    assert_eq!(server.get("/get?key=keyName").text(), "a value");
    let deleted = server.ask("DELETE", "/del?key=keyName", b"");
    assert_eq!((deleted.code, deleted.text()), (200, "a value"));
    assert_eq!(deleted.header("x-kv-acks"), Some("durable=1 hinted=0 failed=0 pending=0"));
    let gone = server.get("/get?key=keyName");
    assert_eq!((gone.code, gone.text()), (404, "Not Found"));
    assert_eq!(
        deleted.header("x-kv-timestamp"),
        gone.header("x-kv-timestamp"),
        "the deletion's, not the value's"
    );
    let again = server.ask("DELETE", "/del?key=keyName", b"");
    assert_eq!((again.code, again.text()), (404, "Not Found"));
    assert_eq!(again.header("x-kv-timestamp"), gone.header("x-kv-timestamp"), "nothing was written");
}

#[test]
fn an_object_without_both_names_is_one_pair() {
    let server = Server::start();
    assert_eq!(server.post("/set", r#"{"colour":"blue"}"#).text(), "OK");
    assert_eq!(server.get("/get?key=colour").text(), "blue");
    assert_eq!(server.post("/set", r#"{"key":"a name alone"}"#).text(), "OK");
    assert_eq!(server.get("/get?key=key").text(), "a name alone");
    assert_eq!(server.post("/set", r#"{"key":"k","value":"v","colour":"red"}"#).text(), "OK");
    assert_eq!(server.get("/get?key=k").text(), "v");
    assert_eq!(server.get("/get?key=colour").text(), "blue", "with both names, others are ignored");
}

#[test]
fn what_is_wrong_is_said_in_one_line_of_text() {
    let server = Server::start();
    for (method, target, body, code, expected) in [
        ("POST", "/set", "", 400, "body is empty"),
        ("POST", "/set", "{}", 400, "missing field `key`"),
        ("POST", "/set", r#"{"a":"1","b":"2"}"#, 400, "missing field `key`"),
        ("POST", "/set", r#"{"a":1}"#, 400, "must be a string"),
        ("POST", "/set", r#"{"":"v"}"#, 400, "key is empty"),
        ("POST", "/set?w=9", r#"{"a":"1"}"#, 400, "\"w\""),
        ("DELETE", "/del", "", 400, "\"key\" is missing"),
        ("DELETE", "/del?key=", "", 400, "key is empty"),
        ("DELETE", "/del?key=a&r=9", "", 400, "\"r\""),
        ("GET", "/set", "", 405, "use POST, OPTIONS"),
        ("POST", "/del?key=a", "", 405, "use DELETE, OPTIONS"),
    ] {
        let answer = server.ask(method, target, body.as_bytes());
        assert_eq!(answer.code, code, "{method} {target} {body}: {}", answer.text());
        assert!(answer.text().contains(expected), "{method} {target} {body}: {}", answer.text());
        assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
    }
    let (server, api) = limits();
    let unready = Server::start_unready(server, api);
    assert_eq!(unready.post("/set", "{}").text(), "not ready: the node is starting");
    assert_eq!(unready.ask("DELETE", "/del?key=a", b"").code, 503);
    let lonely = Server::start_lonely();
    assert_eq!(lonely.post("/set", r#"{"a":"1"}"#).code, 503);
    assert_eq!(lonely.ask("DELETE", "/del?key=a", b"").code, 503);
}
