//! Accept: which of two forms of an answer a client would rather have (RFC 9110, section 12.5.1).
//!
//! ```text
//! weight   q of the ranges that name the form; else of its type and any subtype; else of */*; else not acceptable
//! rather   the greater weight; of equals the one that is named more exactly; of those the one that is named first
//! ```
//!
//! The standard leaves equal weights to the server. How exactly a form is named, and then the order, is what other servers
//! go by, and what clients count on that name a form without a weight and `*/*` behind it.

use hyper::header::{ACCEPT, HeaderMap};
use mime::Mime;

/// How much a client wants a form. The greater is wanted more.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Wish {
    /// 0 to 1; 0: not at all.
    weight: f32,
    /// 2: named, 1: its type is, 0: it is as good as anything.
    exactness: u8,
    /// Minus the place in the list, so that the first is the greatest.
    place: i32,
}

/// Whether a client would rather have a form of one of the types `wanted` than one of `otherwise`, which it is given when it
/// has no preference, or wants neither.
///
/// Parameters of a range other than its weight are not looked at: a client that asks for another version of a form can do
/// more with the one there is than with another form.
pub fn prefers(headers: &HeaderMap, wanted: &[&str], otherwise: &[&str]) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<Mime> =
        values.flat_map(|value| value.split(',')).filter_map(|range| range.trim().parse().ok()).collect();
    match (wish(&ranges, wanted), wish(&ranges, otherwise)) {
        (Some(wanted), otherwise) if wanted.weight > 0.0 => otherwise.is_none_or(|other| wanted > other),
        _ => false,
    }
}

/// How much the most exact ranges that cover a form want it.
fn wish(ranges: &[Mime], names: &[&str]) -> Option<Wish> {
    let of = |(place, range): (usize, &Mime)| {
        let exactness = names.iter().filter_map(|name| exactness(range, name)).max()?;
        let weight = range.get_param("q").map_or(Some(1.0), |q| q.as_str().parse::<f32>().ok())?;
        (0.0..=1.0).contains(&weight).then_some(Wish { weight, exactness, place: -(place as i32) })
    };
    let wishes: Vec<Wish> = ranges.iter().enumerate().filter_map(of).collect();
    let exactness = wishes.iter().map(|wish| wish.exactness).max()?;
    wishes
        .into_iter()
        .filter(|wish| wish.exactness == exactness)
        .max_by(|a, b| a.partial_cmp(b).expect("weights are numbers from 0 to 1"))
}

/// How exactly a range names a type, if it covers it.
fn exactness(range: &Mime, name: &str) -> Option<u8> {
    let (kind, subtype) = name.split_once('/').expect("types are written with a slash");
    match (range.type_().as_str(), range.subtype().as_str(), range.suffix()) {
        ("*", "*", None) => Some(0),
        (of, "*", None) if of == kind => Some(1),
        (of, under, None) if of == kind && under == subtype => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn wants_text(accept: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        prefers(&headers, &["text/plain", "application/openmetrics-text"], &["application/json"])
    }

    #[test]
    fn the_greater_weight_decides_then_how_exactly_and_how_early_a_form_is_named() {
        let text = [
            "text/plain",
            "TEXT/Plain; q=0.5",
            "text/*",
            "text/plain, */*",
            "text/plain, application/json",
            "text/plain;q=0.9, application/json;q=0.8",
            "application/json;q=0, */*",
            "application/json;q=0.1, text/plain;q=0.2",
            "text/plain;version=1.0.0;q=0.3,text/plain;version=0.0.4;q=0,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0, text/plain;q=0",
        ];
        let json = [
            "*/*",
            "application/json",
            "application/json, text/plain, */*",
            "application/json, text/plain;q=0.9",
            "text/plain;q=0.5, */*",
            "text/plain;q=0",
            "text/plain;q=0, */*;q=0",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "text/*;q=0.5, application/*",
            "image/png",
            "text/plain;q=much",
            "text/plain;q=nan",
            "nonsense, ;;,, /, text",
            "",
        ];
        for accept in text {
            assert!(wants_text(accept), "{accept}");
        }
        for accept in json {
            assert!(!wants_text(accept), "{accept}");
        }
        assert!(!prefers(&HeaderMap::new(), &["text/plain"], &["application/json"]));
    }

    #[test]
    fn prometheus_2_and_3_get_text_and_axios_gets_json() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                            application/openmetrics-text;version=0.0.1;q=0.4,\
                            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,/;q=0.1";
        let with_protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
                             application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                             text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for prometheus in [prometheus_2, prometheus_3, with_protobuf] {
            assert!(wants_text(prometheus), "{prometheus}");
        }
        assert!(!wants_text("application/json, text/plain, */*"));
    }
}
