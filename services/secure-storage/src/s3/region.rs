//! Regions with names that `s3s` does not take, as `US`, which s3cmd signs with when nobody tells it otherwise. A gateway has no
//! region: whichever a request names, its signature holds if it is over that name. Such a signature is checked here, and made
//! again for a region that `s3s` takes.

use aws_lc_rs::{digest, hmac};
use http::{HeaderValue, header, request::Parts};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use s3s::region::Region;

/// The region that stands in for one that `s3s` does not take.
const INSTEAD: &str = "local";
/// A signature of nothing.
const NONE: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// What is written as it is in what is signed.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The scope of a credential: `<key>/<day>/<region>/<service>/aws4_request`.
pub(super) struct Scope<'a> {
    pub(super) key: &'a str,
    pub(super) day: &'a str,
    pub(super) region: &'a str,
    service: &'a str,
}

impl<'a> Scope<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.rsplitn(5, '/');
        let (end, service, region, day, key) =
            (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
        (end == "aws4_request").then_some(Self { key, day, region, service })
    }

    fn with_region(&self, region: &str) -> String {
        format!("{}/{}/{region}/{}/aws4_request", self.key, self.day, self.service)
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// The signature of a text within a scope.
pub(super) fn sign(secret: &str, scope: &Scope<'_>, region: &str, text: &str) -> String {
    let first = format!("AWS4{secret}").into_bytes();
    let key = [scope.day, region, scope.service, "aws4_request"].iter().fold(first, |key, part| mac(&key, part));
    hex::encode(mac(&key, text))
}

fn signature(secret: &str, scope: &Scope<'_>, region: &str, time: &str, canonical: &str) -> String {
    let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let of = format!("{}/{region}/{}/aws4_request", scope.day, scope.service);
    sign(secret, scope, region, &format!("{ALGORITHM}\n{time}\n{of}\n{hash}"))
}

/// Decoded and encoded again: clients differ in what they encode on the wire.
fn encoded(text: &str) -> String {
    utf8_percent_encode(&percent_decode_str(text).decode_utf8_lossy(), ENCODED).to_string()
}

fn canonical(parts: &Parts, query: &str, signed: &str, payload: &str) -> String {
    let path: Vec<String> = parts.uri.path().split('/').map(encoded).collect();
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (encoded(&name.replace('+', " ")), encoded(&value.replace('+', " "))))
        .filter(|(name, _)| name != "X-Amz-Signature")
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let headers: String = signed
        .split(';')
        .map(|name| {
            let values: Vec<String> = parts
                .headers
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()).split_whitespace().collect::<Vec<_>>().join(" "))
                .collect();
            format!("{name}:{}\n", values.join(","))
        })
        .collect();
    format!("{}\n{}\n{}\n{headers}\n{signed}\n{payload}", parts.method, path.join("/"), pairs.join("&"))
}

/// The parameters of a signature in the Authorization header.
fn parameter<'a>(authorization: &'a str, name: &str) -> Option<&'a str> {
    let words = authorization.strip_prefix(ALGORITHM)?.split(',').map(str::trim);
    words.filter_map(|word| word.split_once('=')).find(|(found, _)| *found == name).map(|(_, value)| value)
}

/// Signs a request again, if it names a region that `s3s` does not take and its signature holds. A request whose signature does
/// not hold gets one that holds for nothing, and is refused for it.
pub(super) fn adopt(parts: &mut Parts, secret_of: impl Fn(&str) -> Option<String>) {
    let odd = |scope: &Scope<'_>| Region::new(scope.region.into()).is_err();
    if let Some(authorization) =
        parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned)
    {
        let of = |name| parameter(&authorization, name);
        let (Some(credential), Some(signed), Some(given)) = (of("Credential"), of("SignedHeaders"), of("Signature"))
        else {
            return;
        };
        let Some(scope) = Scope::parse(credential).filter(odd) else { return };
        let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (time, payload) = (text("x-amz-date"), text("x-amz-content-sha256"));
        let canonical = canonical(parts, parts.uri.query().unwrap_or_default(), signed, payload);
        let mut signature_now = NONE.to_owned();
        if let Some(secret) = secret_of(scope.key) {
            let signed_for = |region| signature(&secret, &scope, region, time, &canonical);
            if same(&signed_for(scope.region), given) {
                signature_now = signed_for(INSTEAD);
            }
        }
        let credential = scope.with_region(INSTEAD);
        let text = format!("{ALGORITHM} Credential={credential}, SignedHeaders={signed}, Signature={signature_now}");
        if let Ok(value) = HeaderValue::try_from(text) {
            parts.headers.insert(header::AUTHORIZATION, value);
        }
        return;
    }
    let Some(query) = parts.uri.query().map(ToOwned::to_owned) else { return };
    let of = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(found, _)| *found == name)
            .map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
    };
    let (Some(credential), Some(signed), Some(given), Some(time)) =
        (of("X-Amz-Credential"), of("X-Amz-SignedHeaders"), of("X-Amz-Signature"), of("X-Amz-Date"))
    else {
        return;
    };
    let Some(scope) = Scope::parse(&credential).filter(odd) else { return };
    let adopted: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some(("X-Amz-Credential", _)) => format!("X-Amz-Credential={}", encoded(&scope.with_region(INSTEAD))),
            _ => pair.to_owned(),
        })
        .collect();
    let payload = match parts.headers.get("x-amz-content-sha256").and_then(|value| value.to_str().ok()) {
        Some(payload) => payload.to_owned(),
        None => "UNSIGNED-PAYLOAD".to_owned(),
    };
    let mut signature_now = NONE.to_owned();
    if let Some(secret) = secret_of(scope.key)
        && same(&signature(&secret, &scope, scope.region, &time, &canonical(parts, &query, &signed, &payload)), &given)
    {
        let canonical = canonical(parts, &adopted.join("&"), &signed, &payload);
        signature_now = signature(&secret, &scope, INSTEAD, &time, &canonical);
    }
    let adopted: Vec<String> = adopted
        .into_iter()
        .map(
            |pair| if pair.starts_with("X-Amz-Signature=") { format!("X-Amz-Signature={signature_now}") } else { pair },
        )
        .collect();
    if let Ok(uri) = format!("{}?{}", parts.uri.path(), adopted.join("&")).parse() {
        parts.uri = uri;
    }
}

/// Compares in a time that does not depend on where they differ.
pub(super) fn same(a: &str, b: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn request(region: &str) -> Parts {
        let request =
            Request::get("/bucket/a%20b?prefix=x%2By&acl").header("host", "h").header("x-amz-date", "20260101T000000Z");
        let (mut parts, ()) = request.header("x-amz-content-sha256", "UNSIGNED-PAYLOAD").body(()).unwrap().into_parts();
        sign_with(&mut parts, region);
        parts
    }

    fn sign_with(parts: &mut Parts, region: &str) {
        let text = format!("AK/20260101/{region}/s3/aws4_request");
        let (scope, signed) = (Scope::parse(&text).unwrap(), "host;x-amz-content-sha256;x-amz-date");
        let canonical = canonical(parts, parts.uri.query().unwrap_or_default(), signed, "UNSIGNED-PAYLOAD");
        let signature = signature("secret", &scope, region, "20260101T000000Z", &canonical);
        let text = format!("{ALGORITHM} Credential={text},SignedHeaders={signed},Signature={signature}");
        parts.headers.insert(header::AUTHORIZATION, HeaderValue::try_from(text).unwrap());
    }

    fn secret(key: &str) -> Option<String> {
        (key == "AK").then(|| "secret".to_owned())
    }

    #[test]
    fn a_request_is_signed_again_only_if_its_signature_holds() {
        let of = |parts: &Parts| parts.headers.get(header::AUTHORIZATION).unwrap().to_str().unwrap().to_owned();
        let mut usual = request("eu-west-1");
        let before = of(&usual);
        adopt(&mut usual, secret);
        assert_eq!(of(&usual), before);
        let signature_of = |parts: &Parts| parameter(&of(parts), "Signature").unwrap().to_owned();
        let right = signature_of(&request(INSTEAD));
        for region in ["US", "EU West", "x_y", "1.2"] {
            let mut odd = request(region);
            adopt(&mut odd, secret);
            assert_eq!(signature_of(&odd), right, "{region}");
            // A signature for the region that stands in does not hold for this one.
            let mut claimed = request(INSTEAD);
            let text = of(&claimed).replace("/local/", &format!("/{region}/"));
            claimed.headers.insert(header::AUTHORIZATION, HeaderValue::try_from(text).unwrap());
            adopt(&mut claimed, secret);
            assert_eq!(signature_of(&claimed), NONE, "{region}");
            // Another secret, or another request than the signed one.
            let mut odd = request(region);
            adopt(&mut odd, |_| Some("other".into()));
            assert_ne!(signature_of(&odd), right, "{region}");
            let mut odd = request(region);
            odd.headers.insert("x-amz-date", HeaderValue::from_static("20260101T000001Z"));
            adopt(&mut odd, secret);
            assert_ne!(signature_of(&odd), right, "{region}");
        }
    }
}
