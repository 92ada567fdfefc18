//! Headers that ask for something. HTTP has unknown ones ignored (RFC 9110 §5.1), and so are they here; what is known and
//! cannot be done is refused.

use http::{HeaderMap, HeaderName, header};
use mesh_rest::problem::{Kind, Problem};

use super::table::{Route, conditional, writes};

/// Headers that may be there once.
const ONCE: [HeaderName; 3] =
    [header::CONTENT_TYPE, header::CONTENT_LENGTH, HeaderName::from_static("idempotency-key")];

/// Refuses what a request asks for by headers that it cannot have.
///
/// # Errors
/// When a header is there twice that may be there once; when the body is coded, or a part of one; when a change that shows
/// no tags is to rest on one.
pub fn check(route: &Route, headers: &HeaderMap) -> Result<(), Problem> {
    if let Some(name) = ONCE.iter().find(|name| headers.get_all(*name).iter().nth(1).is_some()) {
        return Err(Problem::malformed(format!("{name} is there twice"), "send it once"));
    }
    let given = |name: HeaderName| {
        let all = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        all.map(str::trim).filter(|value| !value.is_empty()).collect::<Vec<_>>().join(", ")
    };
    let coded = given(header::CONTENT_ENCODING);
    if !coded.is_empty() && !coded.eq_ignore_ascii_case("identity") {
        let detail = format!("the body is coded as {:?}", coded.chars().take(64).collect::<String>());
        return Err(Problem::new(Kind::MediaType, detail, "send it without Content-Encoding"));
    }
    if headers.contains_key(header::CONTENT_RANGE) {
        let detail = "the body is a part, by its Content-Range, and parts are not put together here";
        return Err(Problem::malformed(detail, "send all of it, without Content-Range"));
    }
    if writes(route) && !conditional(route.op) {
        // No tag can be the one of what shows none; and what is made or changed here may be there already.
        let (is, is_not) = (given(header::IF_MATCH), given(header::IF_NONE_MATCH));
        let name = match (is.as_str(), is_not.as_str()) {
            ("" | "*", "*") => Some("If-None-Match"),
            ("" | "*", _) => None,
            _ => Some("If-Match"),
        };
        if let Some(name) = name {
            let detail = format!("this request shows no tags, so {name} cannot hold; nothing was done");
            return Err(Problem::new(Kind::Precondition, detail, "leave the condition out"));
        }
    }
    Ok(())
}

/// Refuses a body where none is read; an empty object says nothing.
///
/// # Errors
/// When it says something.
pub fn no_body(body: &[u8]) -> Result<(), Problem> {
    match body.trim_ascii() {
        b"" | b"{}" => Ok(()),
        _ => Err(Problem::field("body", "is not read by this request", "leave it out")),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::domain::table::{Op, ROUTES};

    fn status(op: Op, given: &[(&'static str, &'static str)]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let route = ROUTES.iter().find(|route| route.op == op).unwrap();
        check(route, &headers).map_or_else(|problem| problem.status(), |()| 200)
    }

    #[test]
    fn what_a_header_asks_for_is_done_or_refused() {
        for route in ROUTES {
            let op = route.op;
            assert_eq!(
                status(op, &[("x-not-known", "1"), ("range", "bytes=0-1"), ("content-encoding", "identity")]),
                200
            );
            assert_eq!(status(op, &[("content-encoding", "gzip")]), 415, "{op:?}");
            assert_eq!(status(op, &[("content-range", "bytes 0-1/2")]), 400, "{op:?}");
            assert_eq!(status(op, &[("idempotency-key", "a"), ("idempotency-key", "a")]), 400, "{op:?}");
            let refused = if writes(route) && !conditional(op) { 412 } else { 200 };
            assert_eq!(status(op, &[("if-match", "\"a\"")]), refused, "{op:?}");
            assert_eq!(status(op, &[("if-none-match", "*")]), refused, "{op:?}");
            assert_eq!(status(op, &[("if-match", "*"), ("if-none-match", "\"a\"")]), 200, "{op:?}");
        }
        assert!(no_body(b" {} ").is_ok() && no_body(b"").is_ok() && no_body(b"{\"a\": 1}").is_err());
    }
}
