//! Between the signature and the operation. `s3s` checks the signature of a request as it came, and hands it over here; it goes
//! on to a second `s3s` service, which finds and answers the operation, in the form that one reads: without `/s3/` before the
//! bucket and the parameters of the signature, XML in its plain form, and headers that are read here taken out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use md5::{Digest as _, Md5};
use s3s::{Body, S3ErrorCode, S3Request, S3Response, S3Result, route::S3Route, s3_error, service::S3Service};

use super::{
    asked::{Asked, Caller, is_hidden},
    body::Expected,
    caller::owner,
    cors, digests,
    errors::{body_error, failed},
    form::{self, Border},
    handler::{BareEtag, Status},
    paths::{decoded, path},
    routes::{self, Routes},
    xml,
};
use crate::{
    domain::checksums::Hasher,
    objects::{Announced, BodyError, ObjectStore},
};

/// Seconds that a presigned URL may be valid, as in S3.
const PRESIGNED_MAX_SECONDS: u64 = 7 * 24 * 3_600;
/// Bytes of a body in XML: ten thousand parts with their checksums.
const XML_MAX: usize = 4 << 20;
/// It must come within this time.
const XML_LIMIT: Duration = Duration::from_secs(60);

/// Every request.
pub(super) struct Front {
    pub(super) store: ObjectStore,
    pub(super) routes: Routes,
    pub(super) operations: S3Service,
}

/// Is this path one of the policy API?
fn is_route(uri: &Uri) -> bool {
    routes::is_route(uri.path().trim_matches('/').split('/').next().unwrap_or_default())
}

/// The parameters of a query without those of a signature, as they are written; headers that a presigned URL carries go to
/// the headers.
fn parameters(query: &str, headers: &mut HeaderMap) -> S3Result<String> {
    let mut kept = vec![];
    let is_v2 = query.split('&').any(|pair| pair.starts_with("AWSAccessKeyId="));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decoded(name);
        match name.as_str() {
            "X-Amz-Algorithm"
            | "X-Amz-Credential"
            | "X-Amz-Date"
            | "X-Amz-Expires"
            | "X-Amz-Signature"
            | "X-Amz-SignedHeaders" => {}
            "AWSAccessKeyId" | "Signature" | "Expires" if is_v2 => {}
            _ if name.to_ascii_lowercase().starts_with("x-amz-") => {
                let header = HeaderName::try_from(name.to_ascii_lowercase());
                let (Ok(header), Ok(value)) = (header, HeaderValue::from_str(&decoded(value))) else {
                    return Err(s3_error!(InvalidArgument, "the parameter {name} is not a header"));
                };
                if headers.get(&header).is_none_or(|there| *there != value) {
                    headers.append(header, value);
                }
            }
            _ => kept.push(pair),
        }
    }
    Ok(kept.join("&"))
}

/// Seconds for which a presigned URL is valid; `None` if the request is not presigned.
fn valid_for(query: &str, now: u64) -> Option<u64> {
    let value = |wanted: &str| {
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(name, _)| *name == wanted).map(|(_, value)| decoded(value))
    };
    if value("X-Amz-Signature").is_some() {
        return Some(value("X-Amz-Expires")?.parse().unwrap_or(u64::MAX));
    }
    value("AWSAccessKeyId")?;
    let until: u64 = value("Expires")?.parse().unwrap_or(u64::MAX);
    Some(until.saturating_sub(now))
}

/// The root of the XML that a request takes, if it takes any.
fn root(method: &Method, path: &str, query: &str) -> Option<&'static str> {
    let has = |wanted: &str| query.split('&').any(|pair| pair.split('=').next() == Some(wanted));
    let is_bucket = path != "/" && !path.trim_start_matches('/').trim_end_matches('/').contains('/');
    match *method {
        Method::POST if has("delete") => Some("Delete"),
        Method::POST if has("uploadId") => Some("CompleteMultipartUpload"),
        Method::PUT if has("versioning") => Some("VersioningConfiguration"),
        Method::PUT if has("tagging") => Some("Tagging"),
        Method::PUT if has("cors") => Some("CORSConfiguration"),
        Method::PUT if has("acl") => Some("AccessControlPolicy"),
        Method::PUT if is_bucket && query.split('&').all(|pair| pair.is_empty() || pair.starts_with("x-id=")) => {
            Some("CreateBucketConfiguration")
        }
        _ => None,
    }
}

/// Is a small body what its digests say?
fn check(announced: &Announced, body: &[u8]) -> Result<(), BodyError> {
    let md5: [u8; 16] = Md5::digest(body).into();
    let sum = announced.algorithm.map(|algorithm| {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(body);
        hasher.finish()
    });
    announced.check(body.len() as u64, &md5, sum.as_deref()).map(|_| ())
}

impl Front {
    /// The body of a request in XML, in the form that `s3s` reads.
    async fn xml(&self, request: &mut S3Request<Body>, root: &str) -> S3Result<Body> {
        let expected = Expected::of(request);
        let mut asked = Asked::of(request);
        if root == "CompleteMultipartUpload" {
            // Its checksums are those of the object, and not of the body.
            asked = asked.without("x-amz-checksum-");
        }
        let announced = digests::announced(&asked, &request.extensions)?;
        let size = request.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if size.is_some_and(|size| size > XML_MAX) {
            return Err(s3_error!(MaxMessageLengthExceeded, "the body has more than {XML_MAX} bytes"));
        }
        let mut body = std::mem::take(&mut request.input);
        let stored = tokio::time::timeout(XML_LIMIT, body.store_all_limited(XML_MAX)).await;
        let Ok(stored) = stored else {
            let seconds = XML_LIMIT.as_secs();
            return Err(s3_error!(RequestTimeout, "the body did not come within {seconds} s; send it again"));
        };
        let bytes = match stored {
            Ok(bytes) => bytes,
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return Err(s3_error!(MaxMessageLengthExceeded, "the body has more than {XML_MAX} bytes"));
            }
            Err(error) => return Err(failed(expected.failure(size.unwrap_or_default() as u64), error.to_string())),
        };
        check(&announced, &bytes).map_err(|error| body_error(&error))?;
        if let Some(signed) = asked.get("x-amz-content-sha256").filter(|value| value.len() == 64)
            && signed != hex::encode(digest::digest(&digest::SHA256, &bytes).as_ref())
        {
            return Err(failed(
                S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()),
                "the body is not what was signed".into(),
            ));
        }
        if bytes.is_empty() {
            return Ok(Body::empty());
        }
        xml::plain(&bytes, root).map(Body::from)
    }
}

#[async_trait::async_trait]
impl S3Route for Front {
    fn is_match(&self, _: &Method, _: &Uri, _: &HeaderMap, _: &mut Extensions) -> bool {
        true
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        if is_route(&request.uri) {
            return self.routes.check_access(request).await;
        }
        // A browser that asks what it may send signs nothing, and of a form the policy in it is signed.
        if request.method == Method::OPTIONS || request.extensions.get::<Border>().is_some() {
            return Ok(());
        }
        owner(&self.store, request).map(|_| ())
    }

    async fn call(&self, mut request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let query = request.uri.query().unwrap_or_default().to_owned();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if valid_for(&query, now).is_some_and(|seconds| seconds > PRESIGNED_MAX_SECONDS) {
            return Err(s3_error!(
                AuthorizationQueryParametersError,
                "a presigned URL is valid for a week at most, {PRESIGNED_MAX_SECONDS} seconds"
            ));
        }
        if is_route(&request.uri) {
            return self.routes.call(request).await;
        }
        if request.method == Method::OPTIONS {
            return cors::preflight(&self.store, request.extensions.get::<cors::Asked>());
        }
        if let Some(border) = request.extensions.get::<Border>().cloned() {
            let path = path(request.uri.path()).to_owned();
            return form::post(&self.store, request, &border, &path).await;
        }
        let owner = owner(&self.store, &request)?;
        let mut headers = request.headers.clone();
        let query = parameters(&query, &mut headers)?;
        let path = path(request.uri.path()).to_owned();
        request.extensions.insert(Caller(owner));
        request.extensions.insert(Asked::new(headers.clone()));
        if let Some(trailers) = request.trailing_headers.clone() {
            request.extensions.insert(trailers);
        }
        let mut _room = None;
        let body = match root(&request.method, &path, &query) {
            Some(root) => {
                // As text, and as what is read from it.
                let bytes = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
                let bytes = 3 * bytes.unwrap_or(XML_MAX as u64).min(XML_MAX as u64);
                _room = Some(self.store.memory.answer(bytes, bytes).await?);
                let body = self.xml(&mut request, root).await?;
                let length = body.bytes().map_or(0, |bytes| bytes.len());
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
                headers.remove(header::TRANSFER_ENCODING);
                body
            }
            None => std::mem::take(&mut request.input),
        };
        let hidden: Vec<HeaderName> = headers.keys().filter(|name| is_hidden(name)).cloned().collect();
        hidden.iter().for_each(|name| {
            headers.remove(name);
        });
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        let uri: Uri = target.parse().map_err(|_| s3_error!(InvalidURI, "the path or query is malformed"))?;
        let mut inner = Request::new(body);
        *inner.method_mut() = request.method;
        *inner.uri_mut() = uri;
        *inner.headers_mut() = headers;
        *inner.extensions_mut() = request.extensions;
        let answer = match self.operations.call(inner).await {
            Ok(answer) => answer,
            Err(error) => return Err(s3_error!(InternalError, "the request could not be answered: {error:?}")),
        };
        let (mut parts, mut body) = answer.into_parts();
        let is_xml = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/xml");
        if is_xml
            && let Some(bytes) = body.bytes()
            && let Some(numbered) = xml::numbered(&bytes)
        {
            parts.headers.remove(header::CONTENT_LENGTH);
            body = Body::from(numbered);
        }
        if parts.extensions.get::<BareEtag>().is_some()
            && let Some(bytes) = body.bytes()
        {
            parts.headers.remove(header::CONTENT_LENGTH);
            let text = String::from_utf8_lossy(&bytes).replace("&quot;", "\"");
            body = Body::from(text.replace("<ETag>\"", "<ETag>").replace("\"</ETag>", "</ETag>"));
        }
        let status = parts.extensions.get::<Status>().map_or(parts.status, |Status(status)| *status);
        let mut response = S3Response::with_status(body, status);
        response.headers = parts.headers;
        response.extensions = parts.extensions;
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_and_the_signature_are_taken_out() {
        for (whole, expected) in
            [("/s3", "/"), ("/s3/", "/"), ("/s3/b/k", "/b/k"), ("/s3b/k", "/s3b/k"), ("/b/s3/k", "/b/s3/k"), ("/", "/")]
        {
            assert_eq!(path(whole), expected);
        }
        let mut headers = HeaderMap::new();
        let query =
            "X-Amz-Algorithm=A&X-Amz-Signature=1&prefix=a%2Bb&x-amz-checksum-crc32=AAAAAA%3D%3D&x-id=GetObject&";
        assert_eq!(parameters(query, &mut headers).unwrap(), "prefix=a%2Bb&x-id=GetObject");
        assert_eq!(headers.get("x-amz-checksum-crc32").unwrap(), "AAAAAA==");
        // Not of a signature, so a parameter that some operation takes or refuses.
        assert_eq!(parameters("Expires=1&uploads", &mut headers).unwrap(), "Expires=1&uploads");
    }

    #[test]
    fn a_presigned_url_says_how_long_it_is_valid() {
        assert_eq!(valid_for("X-Amz-Expires=691200&X-Amz-Signature=a", 0), Some(691_200));
        assert_eq!(valid_for("X-Amz-Expires=much&X-Amz-Signature=a", 0), Some(u64::MAX));
        assert_eq!(valid_for("AWSAccessKeyId=a&Expires=1691200&Signature=b", 1_000_000), Some(691_200));
        assert_eq!(valid_for("prefix=a", 0), None);
    }

    #[test]
    fn requests_with_xml_are_known_by_method_and_path() {
        assert_eq!(root(&Method::POST, "/b", "delete"), Some("Delete"));
        assert_eq!(root(&Method::POST, "/b/k", "uploadId=1"), Some("CompleteMultipartUpload"));
        assert_eq!(root(&Method::PUT, "/b/", ""), Some("CreateBucketConfiguration"));
        assert_eq!(root(&Method::PUT, "/b/k", "tagging&versionId=1"), Some("Tagging"));
        for (method, path, query) in [
            (Method::PUT, "/b/k", ""),
            (Method::PUT, "/b", "policy"),
            (Method::POST, "/b/k", "uploads"),
            (Method::PUT, "/b/k", "uploadId=1"),
            (Method::GET, "/b", "delete"),
        ] {
            assert_eq!(root(&method, path, query), None, "{method} {path} {query}");
        }
    }
}
