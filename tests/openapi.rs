//! `openapi.json`: that it is well formed, that it and the router's table name the same doors, and how it is served.
//! `scripts/test_api.sh` has schemathesis compare it with what a ring answers.

mod http_support;

use std::collections::{BTreeMap, BTreeSet};

use http_support::Server;
use kvstore::http::ApiSettings;
use kvstore::http::access::Access;
use kvstore::http::openapi::DOCUMENT;
use kvstore::http::router::{Parameters, Pattern, Route};
use kvstore::util::tokens::Tokens;
use serde_json::Value;

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// An operation may say this of itself while its route is not in the table yet: the tests then see to it that it is not.
const NOT_YET: &str = "x-not-yet";

fn document() -> Value {
    serde_json::from_str(DOCUMENT).unwrap()
}

/// Method and path of each operation, as the table words them, and the operation.
fn operations(document: &Value) -> BTreeMap<(String, String), &Value> {
    let mut found = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (name, operation) in item.as_object().unwrap() {
            if METHODS.contains(&name.as_str()) {
                found.insert((name.to_uppercase(), path.clone()), operation);
            } else {
                assert_eq!(name, "parameters", "{path}");
            }
        }
    }
    found
}

/// Method and path of each request that the table knows, and the route.
fn routed() -> BTreeMap<(String, String), Route> {
    let of = |route: Route| {
        let path = match route.row().pattern {
            Pattern::Is(path) => path.to_owned(),
            Pattern::Under(prefix) => format!("{prefix}{{key}}"),
            Pattern::Other => String::new(),
        };
        let methods = route.row().methods.iter();
        methods.map(move |method| (((*method).to_owned(), path.clone()), route)).collect::<Vec<_>>()
    };
    Route::ALL.into_iter().flat_map(of).collect()
}

/// What stands at a `$ref`.
fn pointed<'d>(document: &'d Value, reference: &str) -> Option<&'d Value> {
    document.pointer(reference.strip_prefix('#')?)
}

/// Calls `visit` with every object of a document, and where it stands.
fn walk(value: &Value, place: &str, visit: &mut dyn FnMut(&serde_json::Map<String, Value>, &str)) {
    match value {
        Value::Object(object) => {
            visit(object, place);
            for (name, member) in object {
                walk(member, &format!("{place}/{name}"), visit);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(item, &format!("{place}/{index}"), visit);
            }
        }
        _ => {}
    }
}

#[test]
fn the_document_and_the_table_name_the_same_methods_and_paths() {
    let document = document();
    let (described, routed) = (operations(&document), routed());
    for (request, operation) in &described {
        let is_awaited = operation.get(NOT_YET).is_some();
        assert_ne!(
            routed.contains_key(request),
            is_awaited,
            "{request:?}: in the table and described, or {NOT_YET}"
        );
    }
    let undescribed: Vec<_> = routed.keys().filter(|request| !described.contains_key(*request)).collect();
    assert!(undescribed.is_empty(), "{undescribed:?}");
}

#[test]
fn an_operation_has_its_routes_name_and_asks_for_its_scope() {
    let (document, routed) = (document(), routed());
    for (request, operation) in operations(&document) {
        let Some(route) = routed.get(&request) else { continue };
        let id = operation["operationId"].as_str().unwrap();
        let method = request.0.to_lowercase();
        assert!(id == route.name() || id == format!("{}_{method}", route.name()), "{request:?}: {id}");
        let security = operation["security"].as_array().expect("said of each operation");
        let access = route.row().access;
        if [Access::Open, Access::Peers].contains(&access) {
            assert!(security.is_empty(), "{request:?}");
            continue;
        }
        let scope = if access == Access::Read {
            "ro"
        } else if access == Access::Write {
            "rw"
        } else {
            "admin"
        };
        let expected = serde_json::json!([{}, {"token": [scope]}]); // without, where the node asks for none
        assert_eq!(operation["security"], expected, "{request:?}");
    }
}

#[test]
fn every_reference_leads_somewhere_and_everything_is_referred_to() {
    let document = document();
    let mut referred = BTreeSet::new();
    walk(&document, "#", &mut |object, place| {
        if let Some(reference) = object.get("$ref") {
            let reference = reference.as_str().unwrap();
            assert!(pointed(&document, reference).is_some(), "{place}: {reference}");
            referred.insert(reference.to_owned());
        }
    });
    for kind in ["parameters", "headers", "responses", "schemas"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            // What a stream of events sends has no place in the format; it is described all the same.
            let is_used = referred.contains(&format!("#/components/{kind}/{name}")) || name == "Event";
            assert!(is_used, "nobody refers to {kind}/{name}");
        }
    }
}

#[test]
fn operations_are_told_apart_and_say_what_they_answer() {
    let document = document();
    let tags: BTreeSet<_> =
        document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    let mut ids = BTreeSet::new();
    for ((method, path), operation) in operations(&document) {
        let place = format!("{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{place}: a name of its own");
        assert!(operation["tags"].as_array().unwrap().iter().all(|tag| tags.contains(tag.as_str().unwrap())));
        assert!(!operation["summary"].as_str().unwrap().is_empty(), "{place}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|code| code.starts_with(['1', '2'])), "{place}: it can succeed");
        for (code, response) in responses {
            assert!(code.parse::<u16>().is_ok_and(|code| (100..600).contains(&code)), "{place}: {code}");
            let response =
                response.get("$ref").map_or(response, |to| pointed(&document, to.as_str().unwrap()).unwrap());
            assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{place} {code}");
        }
        let has_body = operation.get("requestBody").is_some();
        assert!(!has_body || responses.contains_key("408"), "{place}: a body may come too slowly");
        assert!(!has_body || responses.contains_key("413"), "{place}: a body may be too long");
    }
}

#[test]
fn the_key_in_a_path_is_a_parameter_of_that_path() {
    let document = document();
    for (path, item) in document["paths"].as_object().unwrap() {
        let shared = item.get("parameters").and_then(Value::as_array).cloned().unwrap_or_default();
        let names: Vec<_> = shared
            .iter()
            .map(|parameter| {
                parameter
                    .get("$ref")
                    .map_or(parameter, |to| pointed(&document, to.as_str().unwrap()).unwrap())
            })
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| (parameter["name"].clone(), parameter["required"].clone()))
            .collect();
        let expected = if path.contains("{key}") { vec![("key".into(), true.into())] } else { vec![] };
        assert_eq!(names, expected, "{path}");
    }
}

#[test]
fn the_query_parameters_described_are_those_that_are_known() {
    let (document, routed) = (document(), routed());
    for (request, operation) in operations(&document) {
        let Some(route) = routed.get(&request) else { continue };
        let Parameters::Only(known) = route.row().parameters else { continue };
        let shared = &document["paths"][&request.1]["parameters"];
        let listed = [shared, &operation["parameters"]].into_iter().filter_map(Value::as_array).flatten();
        let described: BTreeSet<_> = listed
            .map(|parameter| {
                let reference = parameter.get("$ref");
                reference.map_or(parameter, |to| pointed(&document, to.as_str().unwrap()).unwrap())
            })
            .filter(|parameter| parameter["in"] == "query")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        let known: BTreeSet<_> = known.iter().copied().flatten().copied().collect();
        assert!(described.is_subset(&known), "{request:?}: {described:?}, known are {known:?}");
        // These every data request may say; they are described where they have an effect.
        let everywhere = BTreeSet::from(["w", "r", "sloppy", "ttl"]);
        let rest: Vec<_> = known.difference(&described).filter(|name| !everywhere.contains(*name)).collect();
        assert!(rest.is_empty(), "{request:?} knows {rest:?}");
    }
}

#[test]
fn it_is_of_this_version() {
    assert_eq!(document()["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn it_is_served_to_everyone_and_known_again_by_its_name() {
    let tokens = Tokens::parse("administrator").unwrap();
    let server = Server::start_with_settings(ApiSettings { tokens, ..ApiSettings::default() });
    let served = server.get("/openapi.json");
    assert_eq!((served.code, served.header("content-type")), (200, Some("application/json")));
    assert_eq!(served.text(), DOCUMENT);
    let name = served.header("etag").unwrap();
    assert!(name.len() == 18 && name.starts_with('"') && name.ends_with('"'), "{name}");
    let again = server.connect().ask("GET", "/openapi.json", &[("If-None-Match", name)], b"");
    assert_eq!((again.code, again.body.len(), again.header("etag")), (304, 0, Some(name)));
    let other = server.connect().ask("GET", "/openapi.json", &[("If-None-Match", "\"other\"")], b"");
    assert_eq!(other.code, 200);
    let head = server.ask("HEAD", "/openapi.json", b"");
    assert_eq!(head.header("content-length"), Some(DOCUMENT.len().to_string().as_str()));
}

#[test]
fn it_is_there_before_the_node_is() {
    let (server, api) = http_support::limits();
    assert_eq!(Server::start_unready(server, api).get("/openapi.json").code, 200);
}
