//! Pages of other origins that may read answers in a browser (Fetch standard, CORS). No cookie is taken, so that a page acts
//! with the token that it has, and with nobody else's.

use http::{HeaderMap, HeaderValue, Method, header};

/// Methods that a page may use.
const METHODS: &str = "GET, POST, PUT, PATCH, DELETE";
/// Headers that a page may send.
const SENT: &str = "authorization, content-type, accept, if-match, if-none-match, idempotency-key, last-event-id";
/// Headers of an answer that a page may read, besides those that every page may.
const READ: &str = "etag, link, location, retry-after, www-authenticate, x-total-count, x-result-count";
/// How long a browser may remember what is allowed, seconds.
const REMEMBERED_S: &str = "600";

/// The origins that are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl Origins {
    /// Origins divided by commas, as a browser names them: `https://boards.example`, `http://127.0.0.1:8088`.
    ///
    /// # Errors
    /// The first that is invalid: `*`, a path, a scheme that is not of the web.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let fits = |part: &str| {
            let host = part.strip_prefix("https://").or_else(|| part.strip_prefix("http://"))?;
            let plain = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
            plain.then(|| part.to_owned())
        };
        parts.map(|part| fits(part).ok_or_else(|| part.to_owned())).collect::<Result<_, _>>().map(Self)
    }

    /// The origin of a request, if it is allowed.
    pub fn of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        self.0.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then_some(origin)
    }
}

/// Does a browser ask with this what a page may send?
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Adds to an answer that this origin may read it; to one of a preflight what the page may send.
pub fn allow(headers: &mut HeaderMap, origin: HeaderValue, preflight: bool) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(SENT));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(REMEMBERED_S));
    } else {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(READ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_origins_that_are_named_exactly_are_allowed() {
        let origins = Origins::parse("https://boards.example, http://127.0.0.1:8088,").unwrap();
        let asks = |origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            origins.of(&headers).is_some()
        };
        assert!(asks("https://boards.example") && asks("http://127.0.0.1:8088"));
        for other in ["http://boards.example", "https://boards.example.evil", "null", "https://boards.example/", "*"] {
            assert!(!asks(other), "{other}");
        }
        assert!(origins.of(&HeaderMap::new()).is_none());
        assert_eq!(Origins::parse(""), Ok(Origins::default()));
        for wrong in ["*", "boards.example", "https://a/b", "ftp://a", "null", "https://a@b"] {
            assert_eq!(Origins::parse(wrong), Err(wrong.to_owned()));
        }
    }
}
