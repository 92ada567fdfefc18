//! Requests of pages of other origins: which rule of a bucket fits one, what a browser is told, and which rules there may be.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};
use mesh_proto::storage::CorsRule;
use s3s::{Body, S3ErrorCode, S3Response, S3Result, dto, s3_error};

use super::{errors::failed, paths};
use crate::{
    domain::{bucket_token, storages::CORS_RULES_MAX as RULES_MAX},
    objects::ObjectStore,
};

/// Methods that a rule may name.
const METHODS: [&str; 5] = ["GET", "PUT", "POST", "DELETE", "HEAD"];

/// Does a pattern with one `*` at most fit?
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => {
            text.len() >= before.len() + after.len() && text.starts_with(before) && text.ends_with(after)
        }
    }
}

/// Names of headers in a list.
fn names(list: &str) -> impl Iterator<Item = String> + '_ {
    list.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty())
}

/// A request of a page, as a browser describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    bucket: String,
    origin: String,
    method: String,
    /// Headers that the request is to have, as they were listed.
    headers: String,
    is_preflight: bool,
}

impl Asked {
    /// Of a request with an Origin.
    pub(super) fn of(parts: &Parts) -> Option<Self> {
        let text = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let origin = text(header::ORIGIN)?.to_owned();
        let is_preflight = parts.method == Method::OPTIONS;
        let method = match is_preflight {
            true => text(header::ACCESS_CONTROL_REQUEST_METHOD).unwrap_or_default(),
            false => parts.method.as_str(),
        };
        let headers = text(header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|_| is_preflight).unwrap_or_default();
        let path = paths::path(parts.uri.path()).trim_start_matches('/');
        let bucket = path.split('/').next().unwrap_or_default();
        Some(Self {
            bucket: paths::decoded_path(bucket),
            origin,
            method: method.to_owned(),
            headers: headers.to_owned(),
            is_preflight,
        })
    }

    /// The first rule that fits.
    fn rule<'a>(&self, rules: &'a [CorsRule]) -> Option<(&'a CorsRule, &'a str)> {
        rules.iter().find_map(|rule| {
            let origin = rule.allowed_origins.iter().find(|origin| fits(origin, &self.origin))?;
            let has_method = rule.allowed_methods.contains(&self.method);
            let allows =
                |name: String| rule.allowed_headers.iter().any(|allowed| fits(&allowed.to_ascii_lowercase(), &name));
            (has_method && names(&self.headers).all(allows)).then_some((rule, origin.as_str()))
        })
    }

    /// What the browser is told, if a rule fits.
    fn told(&self, rules: &[CorsRule]) -> Option<HeaderMap> {
        let (rule, origin) = self.rule(rules)?;
        let mut told = HeaderMap::new();
        let mut tell = |name: HeaderName, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                told.insert(name, value);
            }
        };
        if origin == "*" {
            tell(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*".into());
        } else {
            tell(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.origin.clone());
            tell(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true".into());
        }
        tell(header::ACCESS_CONTROL_ALLOW_METHODS, rule.allowed_methods.join(", "));
        if !self.headers.is_empty() {
            let asked: Vec<String> = names(&self.headers).collect();
            tell(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.join(", "));
        }
        if !rule.expose_headers.is_empty() {
            tell(header::ACCESS_CONTROL_EXPOSE_HEADERS, rule.expose_headers.join(", "));
        }
        if let Some(seconds) = rule.max_age_seconds {
            tell(header::ACCESS_CONTROL_MAX_AGE, seconds.to_string());
        }
        tell(header::VARY, "Origin, Access-Control-Request-Headers, Access-Control-Request-Method".into());
        Some(told)
    }

    fn rules(&self, store: &ObjectStore) -> Option<Vec<CorsRule>> {
        let token = bucket_token(&self.bucket);
        store.view.read(|view| view.known.buckets.get(&token).map(|bucket| bucket.cors.clone()))
    }

    /// Adds what the browser is told to the answer of a request, whatever the answer is.
    pub(super) fn tell(&self, store: &ObjectStore, headers: &mut HeaderMap) {
        if !self.is_preflight
            && let Some(told) = self.rules(store).and_then(|rules| self.told(&rules))
        {
            headers.extend(told);
        }
    }
}

/// The answer to a browser that asks before it sends a request.
///
/// # Errors
/// When no rule of the bucket allows the request.
pub(super) fn preflight(store: &ObjectStore, asked: Option<&Asked>) -> S3Result<S3Response<Body>> {
    let Some(asked) = asked.filter(|asked| !asked.method.is_empty()) else {
        return Err(failed(
            S3ErrorCode::Custom("BadRequest".into()),
            "the headers Origin and Access-Control-Request-Method say what is asked; send both".into(),
        ));
    };
    let Some(rules) = asked.rules(store) else {
        return Err(s3_error!(NoSuchBucket, "bucket {} does not exist", asked.bucket));
    };
    let Some(told) = asked.told(&rules) else {
        let why =
            if rules.is_empty() { "the bucket has no CORS rules" } else { "no CORS rule of the bucket allows it" };
        let mut error = failed(S3ErrorCode::Custom("AccessForbidden".into()), format!("CORSResponse: {why}"));
        error.set_status_code(http::StatusCode::FORBIDDEN);
        return Err(error);
    };
    let mut response = S3Response::with_status(Body::empty(), http::StatusCode::OK);
    response.headers = told;
    Ok(response)
}

/// Rules that a bucket may have.
///
/// # Errors
/// When there are none or too many, or one is malformed.
pub(super) fn taken(rules: Vec<dto::CORSRule>) -> S3Result<Vec<CorsRule>> {
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(s3_error!(MalformedXML, "there are {} rules; send 1 to {RULES_MAX}", rules.len()));
    }
    rules.into_iter().map(rule).collect()
}

fn rule(rule: dto::CORSRule) -> S3Result<CorsRule> {
    if rule.allowed_origins.is_empty() || rule.allowed_methods.is_empty() {
        return Err(s3_error!(MalformedXML, "a rule has one AllowedOrigin and one AllowedMethod at least"));
    }
    if let Some(other) = rule.allowed_methods.iter().find(|method| !METHODS.contains(&method.as_str())) {
        return Err(s3_error!(InvalidRequest, "{other:?} is not one of the methods {}", METHODS.join(", ")));
    }
    let allowed_headers = rule.allowed_headers.unwrap_or_default();
    for pattern in rule.allowed_origins.iter().chain(&allowed_headers) {
        if pattern.matches('*').count() > 1 {
            return Err(s3_error!(InvalidRequest, "{pattern:?} has more than one *; use one at most"));
        }
    }
    let expose_headers = rule.expose_headers.unwrap_or_default();
    if let Some(wrong) =
        expose_headers.iter().find(|name| HeaderName::try_from(name.as_str()).is_err() || name.contains('*'))
    {
        return Err(s3_error!(InvalidRequest, "{wrong:?} is not the name of a header"));
    }
    let max_age_seconds = match rule.max_age_seconds.map(u32::try_from) {
        None => None,
        Some(Ok(seconds)) => Some(seconds),
        Some(Err(_)) => return Err(s3_error!(InvalidRequest, "MaxAgeSeconds is negative")),
    };
    Ok(CorsRule {
        id: rule.id.unwrap_or_default(),
        allowed_origins: rule.allowed_origins,
        allowed_methods: rule.allowed_methods,
        allowed_headers,
        expose_headers,
        max_age_seconds,
    })
}

/// Rules as an answer shows them.
pub(super) fn shown(rules: &[CorsRule]) -> Vec<dto::CORSRule> {
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    rules
        .iter()
        .map(|rule| dto::CORSRule {
            id: (!rule.id.is_empty()).then(|| rule.id.clone()),
            allowed_origins: rule.allowed_origins.clone(),
            allowed_methods: rule.allowed_methods.clone(),
            allowed_headers: some(&rule.allowed_headers),
            expose_headers: some(&rule.expose_headers),
            max_age_seconds: rule.max_age_seconds.and_then(|seconds| i32::try_from(seconds).ok()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Vec<CorsRule> {
        let some = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        vec![
            CorsRule {
                allowed_origins: some(&["http://*.example.com", "https://a.org"]),
                allowed_methods: some(&["PUT", "GET"]),
                allowed_headers: some(&["x-amz-*", "Content-Type"]),
                expose_headers: some(&["ETag"]),
                max_age_seconds: Some(60),
                ..CorsRule::default()
            },
            CorsRule { allowed_origins: some(&["*"]), allowed_methods: some(&["GET"]), ..CorsRule::default() },
        ]
    }

    fn asked(origin: &str, method: &str, headers: &str) -> Asked {
        let [bucket, origin, method, headers] = ["b", origin, method, headers].map(ToOwned::to_owned);
        Asked { bucket, origin, method, headers, is_preflight: true }
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        for (origin, method, headers, expected) in [
            ("http://www.example.com", "PUT", "", Some("http://www.example.com")),
            ("http://www.example.com", "PUT", "X-Amz-Meta-A, content-type", Some("http://www.example.com")),
            ("http://www.example.com", "PUT", "authorization", None),
            ("http://example.com", "PUT", "", None),
            ("https://a.org", "GET", "", Some("https://a.org")),
            ("https://a.org", "DELETE", "", None),
            ("https://a.org", "get", "", None),
            ("https://else.org", "GET", "", Some("*")),
            ("https://else.org", "GET", "x-amz-date", None),
            ("https://else.org", "PUT", "", None),
        ] {
            let told = asked(origin, method, headers).told(&rules());
            let allowed = told.as_ref().map(|told| told["access-control-allow-origin"].to_str().unwrap());
            assert_eq!(allowed, expected, "{origin} {method} {headers}");
        }
        let told = asked("https://a.org", "PUT", "X-Amz-Date").told(&rules()).unwrap();
        for (name, value) in [
            ("access-control-allow-methods", "PUT, GET"),
            ("access-control-allow-headers", "x-amz-date"),
            ("access-control-expose-headers", "ETag"),
            ("access-control-max-age", "60"),
            ("access-control-allow-credentials", "true"),
        ] {
            assert_eq!(told[name], value, "{name}");
        }
        assert!(
            !asked("https://b.org", "GET", "").told(&rules()).unwrap().contains_key("access-control-allow-credentials")
        );
    }

    #[test]
    fn rules_that_s3_refuses_are_refused() {
        let good = shown(&rules());
        assert_eq!(taken(good.clone()).unwrap(), rules());
        type Change = fn(&mut dto::CORSRule);
        let changes: [(Change, &str); 7] = [
            (|rule| rule.allowed_methods = vec!["PATCH".into()], "InvalidRequest"),
            (|rule| rule.allowed_methods = vec![], "MalformedXML"),
            (|rule| rule.allowed_origins = vec![], "MalformedXML"),
            (|rule| rule.allowed_origins = vec!["http://*.a.*".into()], "InvalidRequest"),
            (|rule| rule.allowed_headers = Some(vec!["**".into()]), "InvalidRequest"),
            (|rule| rule.expose_headers = Some(vec!["x-*".into()]), "InvalidRequest"),
            (|rule| rule.max_age_seconds = Some(-1), "InvalidRequest"),
        ];
        for (change, expected) in changes {
            let mut wrong = good.clone();
            change(&mut wrong[0]);
            assert_eq!(taken(wrong).unwrap_err().code().as_str(), expected);
        }
        assert!(taken(vec![]).is_err() && taken(vec![good[0].clone(); RULES_MAX + 1]).is_err());
    }
}
