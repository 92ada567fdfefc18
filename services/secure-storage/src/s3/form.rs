//! Objects posted by a form of a web page: a policy that an owner signed says what the form may hold. `s3s` has forms too, with
//! the file in memory and with fields that it drops; here the file is stored as it comes, and each field is acted on, allowed by
//! the policy, or refused.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use multer::{Constraints, Field, Multipart, SizeLimit};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use quick_xml::escape::escape;
use s3s::{
    Body, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto, s3_error,
    xml::{self as xml_of_s3, Deserializer},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    asked::Asked,
    digests,
    errors::failed,
    region::{self, Scope},
    rules, tags, versions, xml,
};
use crate::{
    domain::{bucket_token, objects::Condition},
    objects::{Error, Head, ObjectStore},
};

/// Bytes of all fields before the file at most, as in S3.
const FIELDS_MAX: u64 = 20 << 10;
/// The next field must come within this time.
const FIELD_LIMIT: Duration = Duration::from_secs(60);
/// What stands for the name of the file.
const FILENAME: &str = "${filename}";

/// Marks a request as a form, and keeps its border from `s3s`.
#[derive(Clone, Debug)]
pub(super) struct Border(String);

/// Takes a form out of the hands of `s3s`.
pub(super) fn adopt(parts: &mut Parts) {
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if parts.method != Method::POST || !kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data") {
        return;
    }
    let border = multer::parse_boundary(kind).unwrap_or_default();
    parts.headers.remove(header::CONTENT_TYPE);
    parts.extensions.insert(Border(border));
}

/// The fields before the file, by their names in small letters.
type Fields = BTreeMap<String, String>;

fn malformed(why: impl std::fmt::Display) -> S3Error {
    failed(S3ErrorCode::MalformedPOSTRequest, format!("the form is not multipart/form-data: {why}"))
}

fn denied(why: impl std::fmt::Display) -> S3Error {
    s3_error!(AccessDenied, "Invalid according to Policy: {why}")
}

/// What a policy says, in JSON.
#[derive(Deserialize)]
struct Document {
    expiration: String,
    conditions: Vec<Value>,
}

/// A condition on a field, or on the size of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Clause {
    Is(String, String),
    Begins(String, String),
    Bytes(u64, u64),
}

fn clauses(conditions: &[Value]) -> S3Result<Vec<Clause>> {
    let wrong = |condition: &Value| s3_error!(InvalidPolicyDocument, "{condition} is not a condition of a policy");
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    let mut clauses = vec![];
    for condition in conditions {
        match condition {
            Value::Object(pairs) => {
                for (name, value) in pairs {
                    let value = value.as_str().ok_or_else(|| wrong(condition))?;
                    clauses.push(Clause::Is(name.to_ascii_lowercase(), value.to_owned()));
                }
            }
            Value::Array(words) => {
                let [kind, first, second] = &**words else { return Err(wrong(condition)) };
                let kind = kind.as_str().unwrap_or_default().to_ascii_lowercase();
                if kind == "content-length-range" {
                    let (Some(least), Some(most)) = (number(first), number(second)) else {
                        return Err(wrong(condition));
                    };
                    clauses.push(Clause::Bytes(least, most));
                    continue;
                }
                let name = first.as_str().and_then(|name| name.strip_prefix('$')).ok_or_else(|| wrong(condition))?;
                let (name, value) =
                    (name.to_ascii_lowercase(), second.as_str().ok_or_else(|| wrong(condition))?.to_owned());
                clauses.push(match kind.as_str() {
                    "eq" => Clause::Is(name, value),
                    "starts-with" => Clause::Begins(name, value),
                    _ => return Err(wrong(condition)),
                });
            }
            _ => return Err(wrong(condition)),
        }
    }
    Ok(clauses)
}

/// Fields that no policy has to name.
fn needs_no_clause(name: &str) -> bool {
    matches!(name, "awsaccesskeyid" | "file" | "policy" | "signature" | "submit" | "x-amz-signature")
        || name.starts_with("x-ignore-")
}

/// Does the form hold what the policy says? Returns the least and most bytes of the file.
fn check_policy(clauses: &[Clause], fields: &Fields, filename: &str, bucket: &str) -> S3Result<(u64, u64)> {
    let (mut least, mut most) = (0, u64::MAX);
    let value = |name: &str| match name {
        "bucket" => Some(bucket),
        name => fields.get(name).map(String::as_str),
    };
    for clause in clauses {
        match clause {
            Clause::Bytes(from, to) => (least, most) = (least.max(*from), most.min(*to)),
            Clause::Is(name, wanted) => {
                let found = value(name).unwrap_or_default();
                if found != wanted && found.replace(FILENAME, filename) != *wanted {
                    return Err(denied(format_args!("[\"eq\", \"${name}\", {wanted:?}] does not hold")));
                }
            }
            Clause::Begins(name, wanted) => {
                let found = value(name).unwrap_or_default().replace(FILENAME, filename);
                // A list of kinds of content, as S3 takes it.
                let all = match name.as_str() {
                    "content-type" => found.split(',').all(|kind| kind.trim().starts_with(wanted)),
                    _ => found.starts_with(wanted),
                };
                if !all {
                    return Err(denied(format_args!("[\"starts-with\", \"${name}\", {wanted:?}] does not hold")));
                }
            }
        }
    }
    let named = |field: &str| {
        clauses.iter().any(|clause| match clause {
            Clause::Is(name, _) | Clause::Begins(name, _) => name == field,
            Clause::Bytes(..) => false,
        })
    };
    if let Some(extra) = fields.keys().find(|name| !needs_no_clause(name) && !named(name)) {
        return Err(denied(format_args!("Extra input fields: {extra}")));
    }
    if fields.get("bucket").is_some_and(|field| field != bucket) {
        return Err(denied("the field bucket is not the bucket of the path"));
    }
    Ok((least, most))
}

/// The owner whose key signed the policy.
fn signer(store: &ObjectStore, fields: &Fields, policy: &str) -> S3Result<String> {
    let field = |name: &str| fields.get(name).map(String::as_str);
    let secret_of = |key: &str| match store.keys.access.get(key) {
        Some((owner, credentials)) => Ok((owner.clone(), credentials.secret.clone())),
        None => Err(s3_error!(InvalidAccessKeyId, "access key {key} does not exist")),
    };
    let (owner, holds) = match (field("x-amz-credential"), field("awsaccesskeyid")) {
        (Some(credential), _) => {
            if field("x-amz-algorithm") != Some("AWS4-HMAC-SHA256") {
                return Err(s3_error!(InvalidArgument, "x-amz-algorithm is AWS4-HMAC-SHA256"));
            }
            let Some(scope) = Scope::parse(credential) else {
                return Err(s3_error!(InvalidArgument, "x-amz-credential is not key/day/region/s3/aws4_request"));
            };
            if !field("x-amz-date").is_some_and(|date| date.starts_with(scope.day)) {
                return Err(s3_error!(InvalidArgument, "x-amz-date is not of the day that x-amz-credential names"));
            }
            let (owner, secret) = secret_of(scope.key)?;
            let right = region::sign(&secret, &scope, scope.region, policy);
            (owner, region::same(&right, field("x-amz-signature").unwrap_or_default()))
        }
        (None, Some(key)) => {
            let (owner, secret) = secret_of(key)?;
            let signing = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
            let right = BASE64_STANDARD.encode(hmac::sign(&signing, policy.as_bytes()).as_ref());
            (owner, region::same(&right, field("signature").unwrap_or_default()))
        }
        (None, None) => return Err(s3_error!(AccessDenied, "the form is not signed")),
    };
    match holds {
        true => Ok(owner),
        false => Err(s3_error!(SignatureDoesNotMatch, "the signature is not that of the policy with this key")),
    }
}

/// The fields before the file, and the file.
async fn fields(form: &mut Multipart<'static>) -> S3Result<(Fields, Field<'static>)> {
    let (mut fields, mut bytes) = (Fields::new(), 0);
    loop {
        let next = tokio::time::timeout(FIELD_LIMIT, form.next_field()).await;
        let next = next.map_err(|_| {
            s3_error!(RequestTimeout, "no field came for {} s; send the form again", FIELD_LIMIT.as_secs())
        })?;
        let Some(field) = next.map_err(malformed)? else {
            return Err(s3_error!(InvalidArgument, "POST requires exactly one file upload per request"));
        };
        let name = field.name().unwrap_or_default().to_ascii_lowercase();
        if name == "file" {
            return Ok((fields, field));
        }
        let value = tokio::time::timeout(FIELD_LIMIT, field.text()).await;
        let value = value.map_err(|_| s3_error!(RequestTimeout, "the field {name} stopped; send the form again"))?;
        let value = value.map_err(|error| match error {
            multer::Error::FieldSizeExceeded { .. } => too_long(),
            other => malformed(other),
        })?;
        bytes += (name.len() + value.len()) as u64;
        if bytes > FIELDS_MAX {
            return Err(too_long());
        }
        if name.is_empty() || fields.insert(name.clone(), value).is_some() {
            return Err(s3_error!(InvalidArgument, "the field {name:?} has no name, or is there twice"));
        }
    }
}

fn too_long() -> S3Error {
    failed(
        S3ErrorCode::Custom("MaxPostPreDataLengthExceededError".into()),
        format!("the fields before the file have more than {FIELDS_MAX} bytes"),
    )
}

/// The fields as headers of a put; those that are about the form, or that only the policy knows, are no headers.
fn headers(fields: &Fields) -> S3Result<Asked> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let header = match name.as_str() {
            "acl" => "x-amz-acl",
            "cache-control"
            | "content-disposition"
            | "content-encoding"
            | "content-language"
            | "content-type"
            | "content-md5"
            | "expires" => name,
            "x-amz-algorithm" | "x-amz-credential" | "x-amz-date" | "x-amz-signature" => continue,
            name if name.starts_with("x-amz-") => name,
            _ => continue,
        };
        let (Ok(name), Ok(value)) = (HeaderName::try_from(header), HeaderValue::try_from(value.as_bytes())) else {
            return Err(s3_error!(InvalidArgument, "the field {name} is not the value of a header"));
        };
        headers.insert(name, value);
    }
    Ok(Asked::new(headers))
}

/// The tags that a form gives: in XML, or as a header has them.
fn tags_of(fields: &Fields, asked: &Asked) -> S3Result<BTreeMap<String, String>> {
    let Some(text) = fields.get("tagging") else { return tags::of_header(asked) };
    if asked.get("x-amz-tagging").is_some() {
        return Err(s3_error!(InvalidArgument, "the form has the fields tagging and x-amz-tagging; send one"));
    }
    let plain = xml::plain(text.as_bytes(), "Tagging")?;
    let tagging = <dto::Tagging as xml_of_s3::Deserialize>::deserialize(&mut Deserializer::new(plain.as_bytes()));
    let tagging = tagging.map_err(|error| s3_error!(MalformedXML, "the field tagging is not tags in XML: {error}"))?;
    tags::of_body(tagging, tags::OF_OBJECT_MAX)
}

fn head(fields: &Fields, asked: &Asked) -> S3Result<Head> {
    let kept = ["cache-control", "content-disposition", "content-encoding", "content-language", "expires"];
    let field = |name: &str| fields.get(name).map(|value| (name.to_owned(), value.clone()));
    let metadata = fields
        .iter()
        .filter_map(|(name, value)| name.strip_prefix("x-amz-meta-").map(|name| (name.to_owned(), value.clone())));
    Ok(Head {
        encrypted: fields.contains_key("x-amz-server-side-encryption"),
        content_type: asked.get("content-type").unwrap_or_else(|| "binary/octet-stream".into()),
        metadata: metadata.collect(),
        headers: kept.into_iter().filter_map(field).collect(),
        tags: tags_of(fields, asked)?,
    })
}

/// The size of a file while it comes.
#[derive(Clone, Default)]
struct Size {
    bytes: Arc<AtomicU64>,
    is_wrong: Arc<AtomicBool>,
}

/// The bytes of the file; an error as soon as they are too many, or at the end if they are too few.
fn bounded(
    file: Field<'static>,
    (least, most): (u64, u64),
    size: Size,
) -> impl Stream<Item = Result<Bytes, String>> + Send {
    let ending = size.clone();
    let bytes = file.map(move |next| {
        let bytes = next.map_err(|error| error.to_string())?;
        let so_far = size.bytes.fetch_add(bytes.len() as u64, Relaxed) + bytes.len() as u64;
        match so_far > most {
            true => {
                size.is_wrong.store(true, Relaxed);
                Err(format!("the file has more than {most} bytes"))
            }
            false => Ok(bytes),
        }
    });
    let end = futures::stream::once(async move {
        let too_few = ending.bytes.load(Relaxed) < least;
        ending.is_wrong.fetch_or(too_few, Relaxed);
        too_few.then(|| Err(format!("the file has less than {least} bytes")))
    });
    bytes.chain(end.filter_map(std::future::ready))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Where a browser is sent, if it is to be sent anywhere.
fn redirect(fields: &Fields, (bucket, key, etag): (&str, &str, &str)) -> Option<HeaderValue> {
    let to = fields.get("success_action_redirect").or_else(|| fields.get("redirect"))?;
    let is_http = to.starts_with("http://") || to.starts_with("https://");
    let uri: http::Uri = to.parse().ok().filter(|_| is_http)?;
    let mark = if uri.query().is_some() { '&' } else { '?' };
    let etag = encoded(&format!("\"{etag}\""));
    format!("{to}{mark}bucket={}&key={}&etag={etag}", encoded(bucket), encoded(key)).try_into().ok()
}

/// Stores the file of a form.
///
/// # Errors
/// When the form is not signed, is not what its policy says, or the file cannot be stored.
pub(super) async fn post(
    store: &ObjectStore,
    request: S3Request<Body>,
    border: &Border,
    path: &str,
) -> S3Result<S3Response<Body>> {
    let bucket = super::paths::decoded_path(path.trim_matches('/'));
    if bucket.is_empty() || bucket.contains('/') {
        return Err(s3_error!(MethodNotAllowed, "a form is posted to a bucket; the field key names the object"));
    }
    if request.uri.query().is_some_and(|query| !query.is_empty()) {
        return Err(s3_error!(InvalidArgument, "a form is posted without a query"));
    }
    let limits = SizeLimit::new().per_field(FIELDS_MAX).for_field("file", u64::MAX);
    let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let mut form = Multipart::with_constraints(request.input, border.0.as_str(), Constraints::new().size_limit(limits));
    let (fields, file) = fields(&mut form).await?;
    let Some(policy) = fields.get("policy") else {
        return Err(s3_error!(AccessDenied, "the form has no policy, and nobody may post without one"));
    };
    let owner = signer(store, &fields, policy)?;
    let document = BASE64_STANDARD.decode(policy).ok();
    let document: Document = document
        .and_then(|document| serde_json::from_slice(&document).ok())
        .ok_or_else(|| s3_error!(InvalidPolicyDocument, "the policy is not the base64 text of a policy in JSON"))?;
    let Ok(until) = dto::Timestamp::parse(dto::TimestampFormat::DateTime, &document.expiration) else {
        return Err(s3_error!(InvalidPolicyDocument, "{:?} is not a time", document.expiration));
    };
    if until <= dto::Timestamp::from(SystemTime::now()) {
        return Err(denied("Policy expired"));
    }
    let filename = file.file_name().unwrap_or_default();
    let filename = filename.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    let bounds = check_policy(&clauses(&document.conditions)?, &fields, &filename, &bucket)?;
    let Some(key) = fields.get("key").map(|key| key.replace(FILENAME, &filename)) else {
        return Err(s3_error!(InvalidArgument, "the form has no field key"));
    };
    let asked = headers(&fields)?;
    rules::check_form(&asked, &owner)?;
    let announced = digests::announced(&asked, &http::Extensions::new())?;
    let (head, size) = (head(&fields, &asked)?, Size::default());
    let body = bounded(file, bounds, size.clone());
    let at = (bucket.as_str(), key.as_str());
    let stored = match store.put(&owner, at, head, &Condition::default(), &announced, body).await {
        Err(Error::Body(error)) if size.is_wrong.load(Relaxed) => {
            let is_large = size.bytes.load(Relaxed) > bounds.1;
            let code = if is_large { S3ErrorCode::EntityTooLarge } else { S3ErrorCode::EntityTooSmall };
            return Err(failed(code, error.to_string()));
        }
        stored => stored?,
    };
    let mut response = S3Response::with_status(Body::empty(), StatusCode::NO_CONTENT);
    let mut set = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers.insert(name, value);
        }
    };
    let place = format!("http://{host}/{bucket}/{}", encoded(&key));
    set(header::ETAG, format!("\"{}\"", stored.etag));
    set(header::LOCATION, place.clone());
    if let Some(version) = versions::told(&stored.version, store.versioning(&bucket_token(&bucket))) {
        set(HeaderName::from_static("x-amz-version-id"), version);
    }
    if let Some(to) = redirect(&fields, (&bucket, &key, &stored.etag)) {
        response.headers.insert(header::LOCATION, to);
        response.status = Some(StatusCode::SEE_OTHER);
        return Ok(response);
    }
    match fields.get("success_action_status").map(|status| status.trim()) {
        Some("200") => response.status = Some(StatusCode::OK),
        Some("201") => {
            let text = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<PostResponse><Location>{}</Location><Bucket>{}</Bucket>\
                 <Key>{}</Key><ETag>&quot;{}&quot;</ETag></PostResponse>",
                escape(place.as_str()),
                escape(bucket.as_str()),
                escape(key.as_str()),
                stored.etag,
            );
            response.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
            response.status = Some(StatusCode::CREATED);
            response.output = Body::from(text);
        }
        _ => {}
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn form(pairs: &[(&str, &str)]) -> Fields {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn checked(conditions: Value, pairs: &[(&str, &str)]) -> Result<(u64, u64), String> {
        let code = |error: S3Error| error.code().as_str().to_owned();
        let clauses = clauses(conditions.as_array().unwrap()).map_err(code)?;
        check_policy(&clauses, &form(pairs), "photo.png", "b").map_err(code)
    }

    #[test]
    fn a_form_holds_what_its_policy_says_and_nothing_else() {
        let denied = Err("AccessDenied".to_owned());
        let all = Ok((0, u64::MAX));
        for (conditions, fields, expected) in [
            (json!([{"key": "a"}]), vec![("key", "a")], all.clone()),
            (json!([["eq", "$KEY", "a"]]), vec![("key", "a")], all.clone()),
            (json!([{"key": "a"}]), vec![("key", "b")], denied.clone()),
            (json!([["starts-with", "$key", "up/"]]), vec![("key", "up/${filename}")], all.clone()),
            (json!([["starts-with", "$key", "up/photo"]]), vec![("key", "up/${filename}")], all.clone()),
            (json!([["eq", "$key", "up/${filename}"]]), vec![("key", "up/${filename}")], all.clone()),
            (json!([["starts-with", "$key", "up/"]]), vec![("key", "down/x")], denied.clone()),
            (json!([["starts-with", "$key", ""]]), vec![("key", "any"), ("x-amz-meta-a", "1")], denied.clone()),
            (
                json!([["starts-with", "$key", ""]]),
                vec![("key", "any"), ("x-ignore-a", "1"), ("policy", "p")],
                all.clone(),
            ),
            (json!([{"bucket": "b"}, {"key": "a"}]), vec![("key", "a")], all.clone()),
            (json!([{"bucket": "other"}, {"key": "a"}]), vec![("key", "a")], denied.clone()),
            (
                json!([["starts-with", "$bucket", ""], {"key": "a"}]),
                vec![("key", "a"), ("bucket", "c")],
                denied.clone(),
            ),
            (json!([["content-length-range", 3, "10"], {"key": "a"}]), vec![("key", "a")], Ok((3, 10))),
            (
                json!([["starts-with", "$Content-Type", "image/"]]),
                vec![("content-type", "image/a,image/b")],
                all.clone(),
            ),
            (json!([["starts-with", "$Content-Type", "image/"]]), vec![("content-type", "image/a, text/b")], denied),
            (json!([["like", "$key", "a"]]), vec![], Err("InvalidPolicyDocument".into())),
            (json!([["eq", "key", "a"]]), vec![], Err("InvalidPolicyDocument".into())),
            (json!([["content-length-range", "x", 1]]), vec![], Err("InvalidPolicyDocument".into())),
            (json!([{"key": 1}]), vec![], Err("InvalidPolicyDocument".into())),
            (json!(["key"]), vec![], Err("InvalidPolicyDocument".into())),
        ] {
            assert_eq!(checked(conditions.clone(), &fields), expected, "{conditions} {fields:?}");
        }
    }

    #[test]
    fn a_browser_is_sent_on_with_what_was_stored() {
        let to = |field: &str, url: &str| redirect(&form(&[(field, url)]), ("b", "a b&c", "e"));
        let tail = "bucket=b&key=a%20b%26c&etag=%22e%22";
        assert_eq!(to("success_action_redirect", "http://a/?x=1").unwrap(), format!("http://a/?x=1&{tail}"));
        assert_eq!(to("redirect", "https://a/b").unwrap(), format!("https://a/b?{tail}"));
        for ignored in ["javascript:alert(1)", "//a/b", "nonsense", "http://a/\r\nb: c"] {
            assert_eq!(to("redirect", ignored), None, "{ignored}");
        }
    }

    #[test]
    fn tags_of_a_form_are_in_xml() {
        let text = "<Tagging><TagSet><Tag><Key>a</Key><Value>b c</Value></Tag></TagSet></Tagging>";
        let of = |fields: &[(&str, &str)]| tags_of(&form(fields), &headers(&form(fields)).unwrap());
        assert_eq!(of(&[("tagging", text)]).unwrap(), form(&[("a", "b c")]));
        assert_eq!(of(&[("x-amz-tagging", "a=b+c")]).unwrap(), form(&[("a", "b c")]));
        assert!(of(&[("tagging", "a=b")]).is_err() && of(&[("tagging", text), ("x-amz-tagging", "a=b")]).is_err());
        assert!(of(&[]).unwrap().is_empty());
    }
}
