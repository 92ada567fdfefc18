//! The S3 face: what the protocol says, in the gateway's terms. Signatures, XML and error bodies are those of `s3s`.

use std::{collections::BTreeMap, ops::Range};

use futures::{StreamExt as _, TryStreamExt as _};
use mesh_proto::{
    Refusal, RefusalCode, derived_id,
    object::ObjectStored,
    storage::{CreateBucket, DeleteBucket},
};
use s3s::{
    S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    auth::{S3Auth, SecretKey},
    dto, s3_error,
};

use crate::{
    catalogue::Entry,
    domain::BUCKET_REALM,
    gateway::{Condition, Error, Gateway, Head, bucket_token},
    multipart::At,
};

/// Policy of buckets that name none.
pub const DEFAULT_POLICY: &str = "default";
/// Bytes of a refused body that are taken in.
const DRAIN_MAX: usize = 1 << 20;
/// How long the next of them may take.
const DRAIN_LIMIT: std::time::Duration = std::time::Duration::from_millis(500);
/// Lines of a listing at most, as in S3.
const LIST_MAX: i32 = 1_000;

impl From<Error> for S3Error {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let code = match &error {
            Error::NoBucket(_) => S3ErrorCode::NoSuchBucket,
            Error::Denied(_) => S3ErrorCode::AccessDenied,
            Error::NoKey(_) => S3ErrorCode::NoSuchKey,
            Error::NoUpload(_) => S3ErrorCode::NoSuchUpload,
            Error::Precondition => S3ErrorCode::PreconditionFailed,
            Error::Invalid(text) if text.starts_with("InvalidPartOrder") => S3ErrorCode::InvalidPartOrder,
            Error::Invalid(text) if text.starts_with("InvalidPart") => S3ErrorCode::InvalidPart,
            Error::Invalid(text) if text.starts_with("EntityTooSmall") => S3ErrorCode::EntityTooSmall,
            Error::Invalid(_) => S3ErrorCode::InvalidArgument,
            Error::Refused(_) => S3ErrorCode::InvalidRequest,
            Error::Unavailable(_) | Error::Lost(_) => S3ErrorCode::ServiceUnavailable,
            Error::Body(_) => return from_body(text),
            Error::Key(_) | Error::Internal(_) => S3ErrorCode::InternalError,
        };
        if matches!(code, S3ErrorCode::InternalError) {
            tracing::error!(error = text, "S3 request");
        }
        S3Error::with_message(code, text)
    }
}

/// A body that broke off says why in its text: a signature or digest that does not fit, or a lost connection.
fn from_body(text: String) -> S3Error {
    let lower = text.to_lowercase();
    if lower.contains("sha256") {
        let mut error = S3Error::with_message(S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()), text);
        error.set_status_code(http::StatusCode::BAD_REQUEST);
        return error;
    }
    let code = if lower.contains("signature") {
        S3ErrorCode::SignatureDoesNotMatch
    } else if lower.contains("checksum") || lower.contains("digest") || lower.contains("mismatch") {
        S3ErrorCode::BadDigest
    } else {
        S3ErrorCode::IncompleteBody
    };
    S3Error::with_message(code, text)
}

/// Secrets by access key.
pub(crate) struct Auth(pub(crate) Gateway);

#[async_trait::async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match self.0.keys.access.get(access_key) {
            Some((_, credentials)) => Ok(SecretKey::from(credentials.secret.as_str())),
            None => Err(s3_error!(InvalidAccessKeyId, "there is no access key {access_key}")),
        }
    }
}

/// The face.
#[derive(Clone)]
pub(crate) struct Face(pub(crate) Gateway);

/// The owner whose access key signed a request.
pub(crate) fn owner<T>(gateway: &Gateway, request: &S3Request<T>) -> S3Result<String> {
    let signed = request.credentials.as_ref().and_then(|c| gateway.keys.access.get(&c.access_key));
    signed.map(|(owner, _)| owner.clone()).ok_or_else(|| s3_error!(AccessDenied, "sign the request"))
}

fn etag(text: &str) -> dto::ETag {
    dto::ETag::Strong(text.to_owned())
}

fn time(at: mesh_proto::Timestamp) -> dto::Timestamp {
    let nanos = u64::try_from(at.as_nanos().max(0)).unwrap_or_default();
    (std::time::UNIX_EPOCH + std::time::Duration::from_nanos(nanos)).into()
}

/// Standard headers that are kept with an object.
fn headers(pairs: [(&str, Option<String>); 4]) -> BTreeMap<String, String> {
    pairs.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_owned(), value))).collect()
}

fn condition(if_match: Option<dto::ETagCondition>, if_none_match: Option<dto::ETagCondition>) -> S3Result<Condition> {
    let text = |condition: dto::ETagCondition| {
        condition.as_etag().map_or_else(|| "*".to_owned(), |etag| etag.value().to_owned())
    };
    let if_none = match if_none_match {
        None => false,
        Some(condition) if condition.is_any() => true,
        Some(_) => return Err(s3_error!(NotImplemented, "If-None-Match of a write takes only *")),
    };
    Ok(Condition { if_match: if_match.map(text), if_none })
}

/// Does a read's condition let it through?
fn let_through(
    object: &ObjectStored,
    if_match: Option<&dto::ETagCondition>,
    if_none_match: Option<&dto::ETagCondition>,
    if_modified_since: Option<&dto::Timestamp>,
    if_unmodified_since: Option<&dto::Timestamp>,
) -> S3Result<()> {
    let is = |condition: &dto::ETagCondition| {
        condition.as_etag().map_or_else(|| condition.is_any(), |etag| etag.value() == object.etag)
    };
    // Dates of HTTP have whole seconds.
    let modified = time(mesh_proto::Timestamp { nanos: 0, ..object.modified.unwrap_or_default() });
    let failed = match if_match {
        Some(condition) => !is(condition),
        None => if_unmodified_since.is_some_and(|since| modified > *since),
    };
    if failed {
        return Err(s3_error!(PreconditionFailed, "the object is another"));
    }
    let same = match if_none_match {
        Some(condition) => is(condition),
        None => if_modified_since.is_some_and(|since| modified <= *since),
    };
    if same {
        return Err(s3_error!(NotModified, "the object is the same"));
    }
    Ok(())
}

/// The range of a read, and whether it is one.
fn range(object: &ObjectStored, asked: Option<dto::Range>) -> S3Result<(Range<u64>, Option<String>)> {
    let Some(asked) = asked else { return Ok((0..object.size, None)) };
    let range =
        asked.check(object.size).map_err(|_| s3_error!(InvalidRange, "the object has {} bytes", object.size))?;
    let text = format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), object.size);
    Ok((range, Some(text)))
}

fn number(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

/// What a listing gives of a bucket.
struct Page {
    contents: Vec<dto::Object>,
    prefixes: Vec<dto::CommonPrefix>,
    /// Where the next page begins; `None` at the end.
    next: Option<String>,
}

/// One page of a listing: keys after `after` with this prefix, rolled up at the delimiter.
fn page<'a>(
    listing: impl Iterator<Item = (&'a String, &'a Entry)>,
    prefix: &str,
    delimiter: &str,
    after: &str,
    max: usize,
    encode: &dyn Fn(&str) -> String,
) -> Page {
    let mut page = Page { contents: vec![], prefixes: vec![], next: None };
    let (mut last, mut rolled) = (String::new(), None::<String>);
    for (key, entry) in listing {
        if !key.starts_with(prefix) {
            break;
        }
        let rest = key.get(prefix.len()..).unwrap_or_default();
        let group = (!delimiter.is_empty()).then(|| rest.find(delimiter)).flatten();
        let group = group.and_then(|at| key.get(..prefix.len() + at + delimiter.len()));
        match group {
            // One line for all below; a page that ended with it goes on behind it.
            Some(group) if rolled.as_deref() == Some(group) || after.starts_with(group) && after >= group => continue,
            _ => {}
        }
        if page.contents.len() + page.prefixes.len() >= max {
            // Of a page of no lines there is no next one.
            page.next = (max > 0).then_some(last);
            break;
        }
        match group {
            Some(group) => {
                page.prefixes.push(dto::CommonPrefix { prefix: Some(encode(group)) });
                rolled = Some(group.to_owned());
                last = group.to_owned();
            }
            None => {
                page.contents.push(dto::Object {
                    key: Some(encode(key)),
                    e_tag: Some(etag(&entry.etag)),
                    size: Some(entry.size as i64),
                    last_modified: Some(time(entry.modified)),
                    storage_class: Some(dto::ObjectStorageClass::from_static(dto::ObjectStorageClass::STANDARD)),
                    ..dto::Object::default()
                });
                last.clone_from(key);
            }
        }
    }
    page
}

fn url_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

impl Gateway {
    /// Sends a command in a person's name, and waits for its answer.
    pub(crate) async fn ask(&self, command: &dyn mesh_proto::AnyEvent) -> Result<(), Error> {
        let unique = crate::seal::to_hex(&crate::keys::random::<16>().map_err(|e| Error::Internal(e.to_string()))?);
        let id = derived_id(&["command", &unique]);
        let internal = |error: &dyn std::error::Error| Error::Internal(error.to_string());
        let outgoing = mesh_core::Outgoing::new(command, id.clone(), self.mesh.now()).map_err(|e| internal(&e))?;
        self.mesh.bus().publish(&outgoing).await.map_err(|e| internal(&e))?;
        let mut changes = self.view.changes();
        let answered = async {
            loop {
                if let Some(answer) = self.view.read(|view| view.answer(&id)) {
                    return answer;
                }
                if changes.changed().await.is_err() {
                    return Err(Refusal::unavailable("the gateway stops", "ask another"));
                }
            }
        };
        match tokio::time::timeout(std::time::Duration::from_secs(15), answered).await {
            Ok(answer) => answer.map_err(Error::Refused),
            Err(_) => Err(Error::Unavailable("no answer within 15 s; the command is stored and will be done".into())),
        }
    }

    async fn list(
        &self,
        owner: &str,
        bucket: &str,
        (prefix, delimiter, after): (&str, &str, &str),
        max: usize,
        encoded: bool,
    ) -> S3Result<Page> {
        let (token, of) = self.bucket(owner, bucket).await?;
        self.catch_up("OBJECT").await?;
        let encode: &dyn Fn(&str) -> String = if encoded { &url_encoded } else { &str::to_owned };
        Ok(self.view.read(|view| {
            let Some(listing) = view.listing(&token, of.epoch) else {
                return Page { contents: vec![], prefixes: vec![], next: None };
            };
            use std::ops::Bound::{Excluded, Included, Unbounded};
            let start = if after >= prefix && !after.is_empty() {
                Excluded(after.to_owned())
            } else {
                Included(prefix.to_owned())
            };
            page(listing.range((start, Unbounded)), prefix, delimiter, after, max, encode)
        }))
    }

    async fn is_empty(&self, owner: &str, bucket: &str) -> Result<bool, Error> {
        let (token, of) = self.bucket(owner, bucket).await?;
        self.catch_up("OBJECT").await?;
        Ok(self.view.read(|view| {
            let objects = view.listing(&token, of.epoch).is_some_and(|listing| !listing.is_empty());
            let uploads = view.uploads.iter().any(|((b, _), u)| *b == token && u.started.epoch == of.epoch);
            !objects && !uploads
        }))
    }
}

/// Lines asked for, within bounds.
fn lines(max: Option<i32>) -> S3Result<usize> {
    match max.unwrap_or(LIST_MAX) {
        max if max < 0 => Err(s3_error!(InvalidArgument, "max-keys is negative")),
        max => Ok(max.min(LIST_MAX) as usize),
    }
}

fn is_url(encoding: Option<&dto::EncodingType>) -> bool {
    encoding.is_some_and(|encoding| encoding.as_str() == "url")
}

#[async_trait::async_trait]
impl S3 for Face {
    async fn create_bucket(
        &self,
        request: S3Request<dto::CreateBucketInput>,
    ) -> S3Result<S3Response<dto::CreateBucketOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let constraint = input.create_bucket_configuration.and_then(|c| c.location_constraint);
        let policy = constraint.map(|c| c.as_str().to_owned()).filter(|p| !p.is_empty() && p != "local");
        let policy = policy.unwrap_or_else(|| DEFAULT_POLICY.into());
        let bucket = bucket_token(&input.bucket);
        let made = self.0.ask(&CreateBucket { realm: BUCKET_REALM.into(), bucket, owner, policy }).await;
        match made {
            Err(Error::Refused(r)) if r.code == RefusalCode::AlreadyOwned => {
                return Err(s3_error!(BucketAlreadyOwnedByYou, "{}", r.reason));
            }
            Err(Error::Refused(r)) if r.code == RefusalCode::AlreadyExists => {
                return Err(s3_error!(BucketAlreadyExists, "{}", r.reason));
            }
            Err(Error::Refused(r)) if r.code == RefusalCode::NotFound => {
                return Err(s3_error!(InvalidLocationConstraint, "{}: {}", r.reason, r.hint));
            }
            made => made?,
        }
        let location = Some(format!("/{}", input.bucket));
        Ok(S3Response::new(dto::CreateBucketOutput { location }))
    }

    async fn delete_bucket(
        &self,
        request: S3Request<dto::DeleteBucketInput>,
    ) -> S3Result<S3Response<dto::DeleteBucketOutput>> {
        let owner = owner(&self.0, &request)?;
        let name = request.input.bucket;
        if !self.0.is_empty(&owner, &name).await? {
            return Err(s3_error!(BucketNotEmpty, "delete its objects and abort its uploads first"));
        }
        let bucket = bucket_token(&name);
        self.0.ask(&DeleteBucket { realm: BUCKET_REALM.into(), bucket, owner }).await?;
        Ok(S3Response::new(dto::DeleteBucketOutput::default()))
    }

    async fn head_bucket(
        &self,
        request: S3Request<dto::HeadBucketInput>,
    ) -> S3Result<S3Response<dto::HeadBucketOutput>> {
        let owner = owner(&self.0, &request)?;
        self.0.bucket(&owner, &request.input.bucket).await?;
        Ok(S3Response::new(dto::HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<dto::GetBucketLocationInput>,
    ) -> S3Result<S3Response<dto::GetBucketLocationOutput>> {
        let owner = owner(&self.0, &request)?;
        let (_, bucket) = self.0.bucket(&owner, &request.input.bucket).await?;
        let location_constraint = Some(dto::BucketLocationConstraint::from(bucket.policy));
        Ok(S3Response::new(dto::GetBucketLocationOutput { location_constraint }))
    }

    async fn list_buckets(
        &self,
        request: S3Request<dto::ListBucketsInput>,
    ) -> S3Result<S3Response<dto::ListBucketsOutput>> {
        let owner = owner(&self.0, &request)?;
        self.0.catch_up("STORAGE").await?;
        let buckets = self.0.view.read(|view| {
            let of_owner = view.known.buckets.iter().filter(|(_, bucket)| bucket.owner == owner);
            let bucket = |(token, _): (&String, _)| dto::Bucket {
                name: Some(token.replace('_', ".")),
                creation_date: view.made.get(token).map(|at| time(*at)),
                ..Default::default()
            };
            of_owner.map(bucket).collect()
        });
        let owner = Some(dto::Owner { id: Some(owner.clone()), display_name: Some(owner) });
        Ok(S3Response::new(dto::ListBucketsOutput { buckets: Some(buckets), owner, ..Default::default() }))
    }

    async fn put_object(&self, request: S3Request<dto::PutObjectInput>) -> S3Result<S3Response<dto::PutObjectOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let head = Head {
            content_type: input.content_type.unwrap_or_else(|| "binary/octet-stream".into()),
            metadata: input.metadata.unwrap_or_default().into_iter().collect(),
            headers: headers([
                ("cache-control", input.cache_control),
                ("content-disposition", input.content_disposition),
                ("content-encoding", input.content_encoding),
                ("content-language", input.content_language),
            ]),
        };
        let condition = condition(input.if_match, input.if_none_match)?;
        let mut body = body(input.body);
        let stored = self.0.put(&owner, &input.bucket, &input.key, head, &condition, &mut body).await;
        let stored = heard(stored, &mut body).await?;
        Ok(S3Response::new(dto::PutObjectOutput { e_tag: Some(etag(&stored.etag)), ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<dto::GetObjectInput>) -> S3Result<S3Response<dto::GetObjectOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let object = self.0.object(&owner, &input.bucket, &input.key).await?;
        let_through(
            &object,
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
            input.if_modified_since.as_ref(),
            input.if_unmodified_since.as_ref(),
        )?;
        let (range, content_range) = range(&object, input.range)?;
        let length = range.end - range.start;
        let mut chunks = Box::pin(self.0.read(&object, range)?);
        // The first bytes before the status: what cannot be read is an error, not an answer that breaks off.
        let first = chunks.next().await.transpose()?;
        let chunks = futures::stream::iter(first.map(Ok)).chain(chunks);
        let chunks = chunks.map_err(|error| std::io::Error::other(error.to_string()));
        let body = dto::StreamingBlob::wrap(sync_wrapper(chunks));
        let header = |name: &str| object.headers.get(name).cloned();
        let metadata = (!object.metadata.is_empty()).then(|| object.metadata.clone().into_iter().collect());
        let output = dto::GetObjectOutput {
            body: Some(body),
            accept_ranges: Some("bytes".into()),
            content_length: Some(length as i64),
            content_range,
            content_type: input.response_content_type.or(Some(object.content_type.clone())),
            cache_control: input.response_cache_control.or(header("cache-control")),
            content_disposition: input.response_content_disposition.or(header("content-disposition")),
            content_encoding: input.response_content_encoding.or(header("content-encoding")),
            content_language: input.response_content_language.or(header("content-language")),
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(time(object.modified.unwrap_or_default())),
            metadata,
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_object(
        &self,
        request: S3Request<dto::HeadObjectInput>,
    ) -> S3Result<S3Response<dto::HeadObjectOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let object = self.0.object(&owner, &input.bucket, &input.key).await?;
        let_through(
            &object,
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
            input.if_modified_since.as_ref(),
            input.if_unmodified_since.as_ref(),
        )?;
        let (range, content_range) = range(&object, input.range)?;
        let header = |name: &str| object.headers.get(name).cloned();
        let metadata = (!object.metadata.is_empty()).then(|| object.metadata.clone().into_iter().collect());
        let output = dto::HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: Some((range.end - range.start) as i64),
            content_range,
            content_type: Some(object.content_type.clone()),
            cache_control: header("cache-control"),
            content_disposition: header("content-disposition"),
            content_encoding: header("content-encoding"),
            content_language: header("content-language"),
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(time(object.modified.unwrap_or_default())),
            metadata,
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn delete_object(
        &self,
        request: S3Request<dto::DeleteObjectInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectOutput>> {
        let owner = owner(&self.0, &request)?;
        self.0.delete(&owner, &request.input.bucket, &request.input.key).await?;
        Ok(S3Response::new(dto::DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<dto::DeleteObjectsInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectsOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        if input.delete.objects.len() > LIST_MAX as usize {
            return Err(s3_error!(MalformedXML, "name at most {LIST_MAX} objects"));
        }
        let quiet = input.delete.quiet.unwrap_or_default();
        let (mut deleted, mut errors) = (vec![], vec![]);
        for object in input.delete.objects {
            match self.0.delete(&owner, &input.bucket, &object.key).await {
                Ok(_) if quiet => {}
                Ok(_) => deleted.push(dto::DeletedObject { key: Some(object.key), ..Default::default() }),
                Err(error @ (Error::NoBucket(_) | Error::Denied(_))) => return Err(error.into()),
                Err(error) => {
                    let error = S3Error::from(error);
                    errors.push(dto::Error {
                        key: Some(object.key),
                        code: Some(error.code().as_str().to_owned()),
                        message: error.message().map(ToOwned::to_owned),
                        ..Default::default()
                    });
                }
            }
        }
        let output = dto::DeleteObjectsOutput { deleted: Some(deleted), errors: Some(errors), ..Default::default() };
        Ok(S3Response::new(output))
    }

    async fn copy_object(
        &self,
        request: S3Request<dto::CopyObjectInput>,
    ) -> S3Result<S3Response<dto::CopyObjectOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let dto::CopySource::Bucket { bucket, key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented, "copy from a bucket and key"));
        };
        let from = self.0.object(&owner, bucket, key).await?;
        let replace = input.metadata_directive.as_ref().is_some_and(|d| d.as_str() == "REPLACE");
        let head = match replace {
            false => Head {
                content_type: from.content_type.clone(),
                metadata: from.metadata.clone(),
                headers: from.headers.clone(),
            },
            true => Head {
                content_type: input.content_type.unwrap_or_else(|| "binary/octet-stream".into()),
                metadata: input.metadata.unwrap_or_default().into_iter().collect(),
                headers: headers([
                    ("cache-control", input.cache_control),
                    ("content-disposition", input.content_disposition),
                    ("content-encoding", input.content_encoding),
                    ("content-language", input.content_language),
                ]),
            },
        };
        let body = self.0.read(&from, 0..from.size)?;
        let stored = self.0.put(&owner, &input.bucket, &input.key, head, &Condition::default(), body).await?;
        let result = dto::CopyObjectResult {
            e_tag: Some(etag(&stored.etag)),
            last_modified: stored.modified.map(time),
            ..Default::default()
        };
        Ok(S3Response::new(dto::CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
    }

    async fn list_objects(
        &self,
        request: S3Request<dto::ListObjectsInput>,
    ) -> S3Result<S3Response<dto::ListObjectsOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        let (prefix, delimiter, marker) = (text(&input.prefix), text(&input.delimiter), text(&input.marker));
        let (max, encoded) = (lines(input.max_keys)?, is_url(input.encoding_type.as_ref()));
        let page = self.0.list(&owner, &input.bucket, (&prefix, &delimiter, &marker), max, encoded).await?;
        let output = dto::ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(prefix),
            marker: Some(marker),
            max_keys: Some(max as i32),
            is_truncated: Some(page.next.is_some()),
            next_marker: page.next.map(|next| if encoded { url_encoded(&next) } else { next }),
            contents: Some(page.contents),
            common_prefixes: Some(page.prefixes),
            delimiter: input.delimiter,
            encoding_type: input.encoding_type,
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<dto::ListObjectsV2Input>,
    ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
        use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        let (prefix, delimiter) = (text(&input.prefix), text(&input.delimiter));
        let after = match &input.continuation_token {
            Some(token) => BASE64_URL_SAFE_NO_PAD
                .decode(token)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| s3_error!(InvalidArgument, "the continuation token is not one of ours"))?,
            None => text(&input.start_after),
        };
        let (max, encoded) = (lines(input.max_keys)?, is_url(input.encoding_type.as_ref()));
        let page = self.0.list(&owner, &input.bucket, (&prefix, &delimiter, &after), max, encoded).await?;
        let output = dto::ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(prefix),
            max_keys: Some(max as i32),
            key_count: Some((page.contents.len() + page.prefixes.len()) as i32),
            continuation_token: input.continuation_token,
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|next| BASE64_URL_SAFE_NO_PAD.encode(next)),
            contents: Some(page.contents),
            common_prefixes: Some(page.prefixes),
            delimiter: input.delimiter,
            encoding_type: input.encoding_type,
            start_after: input.start_after,
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<dto::CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CreateMultipartUploadOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let head = Head {
            content_type: input.content_type.unwrap_or_else(|| "binary/octet-stream".into()),
            metadata: input.metadata.unwrap_or_default().into_iter().collect(),
            headers: headers([
                ("cache-control", input.cache_control),
                ("content-disposition", input.content_disposition),
                ("content-encoding", input.content_encoding),
                ("content-language", input.content_language),
            ]),
        };
        let upload = self.0.begin(&owner, &input.bucket, &input.key, head).await?;
        Ok(S3Response::new(dto::CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(upload),
            ..Default::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<dto::UploadPartInput>,
    ) -> S3Result<S3Response<dto::UploadPartOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let at = At { bucket: input.bucket, key: input.key, upload: input.upload_id };
        let mut body = body(input.body);
        let tag = self.0.put_part(&owner, &at, number(input.part_number), &mut body).await;
        let tag = heard(tag, &mut body).await?;
        Ok(S3Response::new(dto::UploadPartOutput { e_tag: Some(etag(&tag)), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<dto::CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CompleteMultipartUploadOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let parts = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let named: Vec<(u32, String)> = parts
            .into_iter()
            .map(|part| {
                let etag = part.e_tag.map(dto::ETag::into_value).unwrap_or_default();
                (number(part.part_number.unwrap_or_default()), etag)
            })
            .collect();
        let condition = condition(input.if_match, input.if_none_match)?;
        let at = At { bucket: input.bucket.clone(), key: input.key.clone(), upload: input.upload_id };
        let stored = self.0.complete(&owner, &at, &named, &condition).await?;
        Ok(S3Response::new(dto::CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&stored.etag)),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<dto::AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::AbortMultipartUploadOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        self.0.abort(&owner, &input.bucket, &input.key, &input.upload_id).await?;
        Ok(S3Response::new(dto::AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(&self, request: S3Request<dto::ListPartsInput>) -> S3Result<S3Response<dto::ListPartsOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let max = lines(input.max_parts)?;
        let marker = input.part_number_marker.unwrap_or_default();
        let stored = self.0.parts(&owner, &input.bucket, &input.key, &input.upload_id).await?;
        let mut parts: Vec<dto::Part> = stored
            .range(number(marker).saturating_add(1)..)
            .map(|(number, stored)| dto::Part {
                part_number: Some(*number as i32),
                e_tag: Some(etag(&stored.etag)),
                size: Some(stored.part.size as i64),
                last_modified: Some(time(stored.at)),
                ..Default::default()
            })
            .take(max + 1)
            .collect();
        let truncated = parts.len() > max;
        parts.truncate(max);
        Ok(S3Response::new(dto::ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            max_parts: Some(max as i32),
            part_number_marker: Some(marker),
            next_part_number_marker: parts.last().and_then(|part| part.part_number),
            is_truncated: Some(truncated),
            parts: Some(parts),
            ..Default::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<dto::ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<dto::ListMultipartUploadsOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let max = lines(input.max_uploads)?;
        let prefix = input.prefix.unwrap_or_default();
        let (key_marker, upload_marker) =
            (input.key_marker.unwrap_or_default(), input.upload_id_marker.unwrap_or_default());
        let mut uploads: Vec<dto::MultipartUpload> = self
            .0
            .uploads(&owner, &input.bucket)
            .await?
            .into_iter()
            .filter(|u| u.started.key.starts_with(&prefix))
            .filter(|u| {
                u.started.key > key_marker
                    || (u.started.key == key_marker && !upload_marker.is_empty() && u.started.upload > upload_marker)
            })
            .map(|u| dto::MultipartUpload {
                key: Some(u.started.key),
                upload_id: Some(u.started.upload),
                initiated: Some(time(u.at)),
                ..Default::default()
            })
            .take(max + 1)
            .collect();
        let truncated = uploads.len() > max;
        uploads.truncate(max);
        let last = uploads.last().filter(|_| truncated);
        Ok(S3Response::new(dto::ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: Some(prefix),
            key_marker: Some(key_marker),
            upload_id_marker: Some(upload_marker),
            max_uploads: Some(max as i32),
            next_key_marker: last.and_then(|u| u.key.clone()),
            next_upload_id_marker: last.and_then(|u| u.upload_id.clone()),
            is_truncated: Some(truncated),
            uploads: Some(uploads),
            ..Default::default()
        }))
    }
}

/// A refusal is heard only by a caller who is not still sending: a little of the rest is taken in first.
async fn heard<T>(done: Result<T, Error>, body: &mut dto::StreamingBlob) -> Result<T, Error> {
    let mut left = DRAIN_MAX;
    while done.is_err()
        && left > 0
        && let Ok(Some(Ok(bytes))) = tokio::time::timeout(DRAIN_LIMIT, body.next()).await
    {
        left = left.saturating_sub(bytes.len());
    }
    done
}

/// A request's body; nothing for none.
fn body(body: Option<dto::StreamingBlob>) -> dto::StreamingBlob {
    body.unwrap_or_else(|| dto::StreamingBlob::from(s3s::Body::empty()))
}

/// What `s3s` sends must be `Sync`; the stream is polled by one task only, behind this lock that is never contended.
fn sync_wrapper<S>(stream: S) -> impl futures::Stream<Item = Result<bytes::Bytes, std::io::Error>> + Send + Sync
where
    S: futures::Stream<Item = Result<bytes::Bytes, std::io::Error>> + Send + Unpin + 'static,
{
    let locked = std::sync::Mutex::new(stream);
    futures::stream::poll_fn(move |context| {
        locked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).poll_next_unpin(context)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(keys: &[&str]) -> BTreeMap<String, Entry> {
        let entry = Entry {
            size: 1,
            etag: "e".into(),
            modified: mesh_proto::Timestamp::from_millis(0),
            object: "o".into(),
            master_key: "m".into(),
        };
        keys.iter().map(|key| ((*key).to_owned(), entry.clone())).collect()
    }

    /// Walks all pages of `max` lines and gives every line once.
    fn walk(keys: &[&str], prefix: &str, delimiter: &str, max: usize) -> Vec<String> {
        let (all, mut after, mut lines) = (listing(keys), String::new(), vec![]);
        loop {
            use std::ops::Bound::{Excluded, Included, Unbounded};
            let start = if after.as_str() >= prefix && !after.is_empty() {
                Excluded(after.clone())
            } else {
                Included(prefix.to_owned())
            };
            let found = page(all.range((start, Unbounded)), prefix, delimiter, &after, max, &str::to_owned);
            assert!(found.contents.len() + found.prefixes.len() <= max);
            lines.extend(found.contents.into_iter().filter_map(|o| o.key));
            lines.extend(found.prefixes.into_iter().filter_map(|p| p.prefix));
            match found.next {
                Some(next) => after = next,
                None => break,
            }
        }
        lines.sort();
        lines
    }

    #[test]
    fn pages_of_any_size_give_every_line_once() {
        let keys = ["a", "b/1", "b/2", "b/3", "c", "d/e/1", "d/f", "d0", "é"];
        for max in 1..12 {
            assert_eq!(walk(&keys, "", "", max), keys, "{max}");
            assert_eq!(walk(&keys, "", "/", max), ["a", "b/", "c", "d/", "d0", "é"], "{max}");
            assert_eq!(walk(&keys, "d/", "/", max), ["d/e/", "d/f"], "{max}");
            assert_eq!(walk(&keys, "b/", "", max), ["b/1", "b/2", "b/3"], "{max}");
            assert!(walk(&keys, "x", "/", max).is_empty());
        }
    }
}
