//! The S3 handler: requests in the terms of the object store. Signatures, XML and the form of errors come from `s3s`.

use std::{collections::BTreeMap, ops::Range};

use futures::{StreamExt as _, TryStreamExt as _};
use mesh_proto::{
    Event as _, RefusalCode,
    object::{Checksum, Layout, ObjectStored},
    storage::{BucketCreated, CreateBucket, DeleteBucket},
};
use s3s::{S3, S3ErrorCode, S3Request, S3Response, S3Result, dto, s3_error};

use super::{
    asked::Asked,
    body::{Expected, content, sync_stream},
    bucket::{access_list, grants},
    caller::{Handler, owner},
    conditions::{self, Span, Verdict},
    digests,
    errors::{answer, failed},
    listing::{self, Item, LIST_MAX, Line, Wanted, lines, time},
    tags, versions,
};
use crate::{
    domain::{
        bucket_token,
        checksums::Algorithm,
        objects::{Condition, Refused},
        storages::{BUCKET_REALM, Versioning},
        uploads::Claims,
    },
    objects::{Announced, Deleted, Error, Head, multipart::At},
};

/// Policy of buckets that name none.
pub const DEFAULT_POLICY: &str = "default";
/// Buckets of a listing at most, as in S3.
const BUCKETS_MAX: i32 = 10_000;
/// Parts of an answer about an object's attributes at most, as in S3.
const PARTS_SHOWN_MAX: i32 = 1_000;

fn etag(text: &str) -> dto::ETag {
    dto::ETag::Strong(text.to_owned())
}

/// The metadata that a request gives an object.
macro_rules! head {
    ($input:ident, $asked:ident) => {
        Head {
            encrypted: $asked.get("x-amz-server-side-encryption").is_some(),
            content_type: $input.content_type.unwrap_or_else(|| "binary/octet-stream".into()),
            metadata: $input.metadata.unwrap_or_default().into_iter().collect(),
            headers: headers([
                ("cache-control", $input.cache_control),
                ("content-disposition", $input.content_disposition),
                ("content-encoding", $input.content_encoding.and_then(|encoding| content_encoding(&encoding))),
                ("content-language", $input.content_language),
                ("expires", $asked.get("expires")),
            ]),
            tags: tags::of_header(&$asked)?,
        }
    };
}

/// The fields of a checksum in an answer.
macro_rules! checksum {
    ($output:expr, $checksum:expr) => {{
        let checksum = $checksum;
        let value = |algorithm| digests::value(checksum, algorithm);
        $output.checksum_crc32 = value(Algorithm::Crc32);
        $output.checksum_crc32c = value(Algorithm::Crc32c);
        $output.checksum_crc64nvme = value(Algorithm::Crc64Nvme);
        $output.checksum_sha1 = value(Algorithm::Sha1);
        $output.checksum_sha256 = value(Algorithm::Sha256);
    }};
}

/// What a write tells of the object that it stored.
macro_rules! stored {
    ($kind:ident, $stored:ident, $version:expr) => {{
        let mut output = dto::$kind {
            e_tag: Some(etag(&$stored.etag)),
            server_side_encryption: encryption($stored.layout.as_ref()),
            checksum_type: $stored.checksum.as_ref().map(checksum_type),
            version_id: $version,
            ..Default::default()
        };
        checksum!(output, $stored.checksum.as_ref());
        output
    }};
}

/// What a read tells of an object, with or without its bytes.
macro_rules! described {
    ($kind:ident, $object:ident, $found:ident, $input:ident, $version:expr) => {{
        let header = |name: &str| $object.headers.get(name).cloned();
        let mut output = dto::$kind {
            accept_ranges: Some("bytes".into()),
            content_length: Some(($found.bytes.end - $found.bytes.start) as i64),
            content_range: $found.content_range.clone(),
            content_type: $input.response_content_type.or(Some($object.content_type.clone())),
            cache_control: $input.response_cache_control.or(header("cache-control")),
            content_disposition: $input.response_content_disposition.or(header("content-disposition")),
            content_encoding: $input.response_content_encoding.or(header("content-encoding")),
            content_language: $input.response_content_language.or(header("content-language")),
            e_tag: Some(etag(&$object.etag)),
            last_modified: Some(time($object.modified.unwrap_or_default())),
            metadata: (!$object.metadata.is_empty()).then(|| $object.metadata.clone().into_iter().collect()),
            parts_count: $found.parts_count,
            server_side_encryption: encryption($object.layout.as_ref()),
            version_id: $version,
            ..Default::default()
        };
        if $found.with_checksum {
            checksum!(output, $object.checksum.as_ref());
            output.checksum_type = $object.checksum.as_ref().map(checksum_type);
        }
        output
    }};
}

/// Standard headers that are kept with an object.
fn headers(pairs: [(&str, Option<String>); 5]) -> BTreeMap<String, String> {
    pairs.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_owned(), value))).collect()
}

/// The encoding of the content, without that of the request: `aws-chunked` is undone when the body is read.
fn content_encoding(text: &str) -> Option<String> {
    let kept: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

/// How the bytes of a layout are encrypted, as S3 says it.
fn encryption(layout: Option<&Layout>) -> Option<dto::ServerSideEncryption> {
    layout.filter(|layout| layout.encrypted).map(|_| dto::ServerSideEncryption::from_static("AES256"))
}

fn checksum_type(checksum: &Checksum) -> dto::ChecksumType {
    dto::ChecksumType::from_static(if checksum.composite { "COMPOSITE" } else { "FULL_OBJECT" })
}

fn checksum_algorithm(checksum: &Checksum) -> dto::ChecksumAlgorithm {
    dto::ChecksumAlgorithm::from(checksum.algorithm.clone())
}

/// A member of DeleteObjects, and what became of it.
fn deleted(key: String, version: Option<String>, done: Deleted) -> dto::DeletedObject {
    dto::DeletedObject {
        key: Some(key),
        version_id: version.as_deref().map(versions::shown),
        delete_marker: done.marker.as_ref().map(|_| true),
        delete_marker_version_id: done.marker.as_deref().map(versions::shown),
    }
}

impl Handler {
    /// Are versions kept in a bucket?
    fn versioning(&self, bucket: &str) -> Versioning {
        self.0.versioning(&bucket_token(bucket))
    }

    /// A version, as an answer about an object of a bucket shows it.
    fn told(&self, bucket: &str, version: &str) -> Option<String> {
        versions::told(version, self.versioning(bucket))
    }

    /// The source of a copy, whose conditions hold, and its version as the answer shows it.
    async fn source(
        &self,
        owner: &str,
        source: &dto::CopySource,
        asked: &Asked,
    ) -> S3Result<(ObjectStored, Option<String>)> {
        let dto::CopySource::Bucket { bucket, key, version_id } = source else {
            return Err(s3_error!(NotImplemented, "access points are not supported; copy from a bucket and key"));
        };
        let version = versions::named(version_id.as_deref())?;
        let from = match self.0.object(owner, bucket, key, version.as_deref()).await {
            Err(Error::Object(Refused::Marker { .. })) => {
                return Err(s3_error!(InvalidRequest, "the source is a delete marker; copy from a version with bytes"));
            }
            from => from?,
        };
        let told = self.told(bucket, &from.version);
        match conditions::of_read(asked, "x-amz-copy-source-", &from)? {
            Verdict::Through => Ok((from, told)),
            _ => Err(s3_error!(PreconditionFailed, "the source does not meet the conditions of the request")),
        }
    }

    /// One object of DeleteObjects.
    async fn delete_one(
        &self,
        owner: &str,
        bucket: &str,
        object: &dto::ObjectIdentifier,
    ) -> S3Result<dto::DeletedObject> {
        let version = versions::named(object.version_id.as_deref())?;
        let if_match = object.e_tag.iter().map(|etag| etag.value().to_owned()).collect();
        let condition = Condition { if_match, ..Condition::default() };
        let done = self.0.delete(owner, bucket, &object.key, version.as_deref(), &condition).await?;
        Ok(deleted(object.key.clone(), version, done))
    }

    /// The object of a request with `tagging`, `acl` or the like.
    async fn subject<T>(
        &self,
        request: &S3Request<T>,
        (bucket, key, version): (&str, &str, Option<&str>),
    ) -> S3Result<ObjectStored> {
        let owner = owner(&self.0, request)?;
        let version = versions::named(version)?;
        Ok(self.0.object(&owner, bucket, key, version.as_deref()).await?)
    }
}

/// The bytes that a read of an object asks for.
struct Found {
    bytes: Range<u64>,
    content_range: Option<String>,
    parts_count: Option<i32>,
    with_checksum: bool,
}

impl Found {
    /// 206 for a part, 200 for all.
    fn status(&self) -> Option<http::StatusCode> {
        self.content_range.as_ref().map(|_| http::StatusCode::PARTIAL_CONTENT)
    }
}

/// What a read finds: `None` if the object has not changed.
fn find(object: &ObjectStored, asked: &Asked, part: Option<i32>) -> S3Result<Option<Found>> {
    match conditions::of_read(asked, "", object)? {
        Verdict::Failed => {
            return Err(s3_error!(PreconditionFailed, "the object does not meet the conditions of the request"));
        }
        Verdict::NotModified => return Ok(None),
        Verdict::Through => {}
    }
    let is_multipart = !object.upload.is_empty();
    let mut parts_count = None;
    let span = match part {
        None => conditions::of_range(asked, object),
        Some(_) if asked.get("range").is_some() => {
            return Err(s3_error!(InvalidRequest, "a request has a range or a part number, and not both"));
        }
        Some(wanted) => {
            let count = if is_multipart { object.parts.len() } else { 1 };
            parts_count = is_multipart.then_some(count as i32);
            let Some(index) = usize::try_from(wanted).ok().and_then(|wanted| wanted.checked_sub(1)) else {
                return Err(s3_error!(InvalidArgument, "part numbers are 1 to 10,000"));
            };
            if index >= count {
                let mut error =
                    failed(S3ErrorCode::Custom("InvalidPartNumber".into()), format!("the object has {count} parts"));
                error.set_status_code(http::StatusCode::RANGE_NOT_SATISFIABLE);
                return Err(error);
            }
            let start: u64 = object.parts.iter().take(index).map(|part| part.size).sum();
            let size = if is_multipart { object.parts.get(index).map_or(0, |part| part.size) } else { object.size };
            if size == 0 { Span::Whole } else { Span::Part(start..start + size) }
        }
    };
    let (bytes, is_part) = match span {
        Span::Whole => (0..object.size, false),
        Span::Part(bytes) => (bytes, true),
        Span::Unsatisfiable => {
            let mut error =
                s3_error!(InvalidRange, "the object has {} bytes, and none of them is in the range", object.size);
            let mut headers = http::HeaderMap::new();
            if let Ok(value) = format!("bytes */{}", object.size).try_into() {
                headers.insert(http::header::CONTENT_RANGE, value);
            }
            headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
            error.set_headers(headers);
            return Err(error);
        }
    };
    let content_range =
        is_part.then(|| format!("bytes {}-{}/{}", bytes.start, bytes.end.saturating_sub(1), object.size));
    // The checksum is of all bytes.
    let with_checksum = asked.get("x-amz-checksum-mode").is_some() && bytes == (0..object.size);
    Ok(Some(Found { bytes, content_range, parts_count, with_checksum }))
}

/// The answer that an object has not changed, with what RFC 9110 wants in it.
fn not_modified<T: Default>(object: &ObjectStored) -> S3Response<T> {
    let mut headers = http::HeaderMap::new();
    let mut set = |name: http::HeaderName, value: Option<String>| {
        if let Some(value) = value.and_then(|value| http::HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    };
    set(http::header::ETAG, Some(format!("\"{}\"", object.etag)));
    set(http::header::CACHE_CONTROL, object.headers.get("cache-control").cloned());
    set(http::header::EXPIRES, object.headers.get("expires").cloned());
    with_status(S3Response { headers, ..S3Response::new(T::default()) }, Some(http::StatusCode::NOT_MODIFIED))
}

/// The status of an answer, which `s3s` leaves to [`super::front`] where it has no other for the operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status(pub(crate) http::StatusCode);

/// An answer in XML whose ETag is without quotation marks, as in S3.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BareEtag;

fn with_status<T>(mut response: S3Response<T>, status: Option<http::StatusCode>) -> S3Response<T> {
    if let Some(status) = status {
        response.extensions.insert(Status(status));
    }
    response
}

/// The headers of a read that `s3s` does not have for every read: those given back as they came, and the number of tags.
fn kept(object: &ObjectStored, overridden: bool) -> http::HeaderMap {
    let expires = object.headers.get("expires").filter(|_| !overridden);
    let value = expires.and_then(|expires| http::HeaderValue::try_from(expires).ok());
    let mut headers: http::HeaderMap = value.map(|value| (http::header::EXPIRES, value)).into_iter().collect();
    if !object.tags.is_empty() {
        headers.insert("x-amz-tagging-count", object.tags.len().into());
    }
    headers
}

/// The parts of an object that was completed from an upload, as far as they are known: with their checksums.
fn parts_of(object: &ObjectStored, max: Option<i32>, marker: Option<i32>) -> S3Result<dto::GetObjectAttributesParts> {
    let (max, marker) = (max.unwrap_or(PARTS_SHOWN_MAX), marker.unwrap_or_default());
    if max < 0 || marker < 0 {
        return Err(s3_error!(InvalidArgument, "x-amz-max-parts and x-amz-part-number-marker are 0 or more"));
    }
    let max = max.min(PARTS_SHOWN_MAX);
    let with_checksums = object.labels.iter().any(|label| label.checksum.is_some());
    let labelled = object.labels.iter().zip(&object.parts).filter(|(label, _)| label.number > number(marker));
    let mut parts: Vec<dto::ObjectPart> = labelled
        .map(|(label, part)| {
            let mut shown = dto::ObjectPart {
                part_number: Some(label.number as i32),
                size: Some(part.size as i64),
                ..Default::default()
            };
            checksum!(shown, label.checksum.as_ref());
            shown
        })
        .collect();
    let is_truncated = parts.len() > max as usize;
    parts.truncate(max as usize);
    let next = parts.last().and_then(|part| part.part_number);
    Ok(dto::GetObjectAttributesParts {
        total_parts_count: Some(object.parts.len() as i32),
        // As in S3, which names parts only if they have checksums.
        is_truncated: with_checksums.then_some(is_truncated),
        max_parts: with_checksums.then_some(max),
        next_part_number_marker: next.filter(|_| with_checksums),
        part_number_marker: with_checksums.then_some(marker),
        parts: with_checksums.then_some(parts),
    })
}

/// A version in a listing.
enum Shown {
    Version(dto::ObjectVersion),
    Marker(dto::DeleteMarkerEntry),
}

fn version(item: Item<'_>, line: Line<'_>) -> Shown {
    let (is_latest, version_id) = (Some(item.is_latest), Some(versions::shown(&item.entry.version)));
    if item.entry.is_marker {
        return Shown::Marker(dto::DeleteMarkerEntry {
            is_latest,
            key: Some(line.show(item.key)),
            last_modified: Some(time(item.entry.modified)),
            owner: line.owner.map(listing::owner),
            version_id,
        });
    }
    let object = line.object(item);
    Shown::Version(dto::ObjectVersion {
        key: object.key,
        e_tag: object.e_tag,
        size: object.size,
        last_modified: object.last_modified,
        owner: object.owner,
        is_latest,
        version_id,
        storage_class: Some(dto::ObjectVersionStorageClass::from_static("STANDARD")),
        ..Default::default()
    })
}

fn number(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

#[async_trait::async_trait]
impl S3 for Handler {
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
        let policy_owner = self.provider(&owner, &policy).await?;
        let made = self.0.ask(&CreateBucket { realm: BUCKET_REALM.into(), bucket, owner, policy, policy_owner }).await;
        match made {
            // The bucket names a policy as its location constraint, and nothing else that could be missing.
            Err(Error::Refused(refusal)) if refusal.code == RefusalCode::NotFound => {
                return Err(s3_error!(InvalidLocationConstraint, "{refusal}"));
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
            return Err(s3_error!(
                BucketNotEmpty,
                "the bucket is not empty; delete its objects and abort its uploads first"
            ));
        }
        let bucket = bucket_token(&name);
        match self.0.ask(&DeleteBucket { realm: BUCKET_REALM.into(), bucket, owner }).await {
            Err(Error::Refused(refusal)) if refusal.code == RefusalCode::NotFound => {
                return Err(s3_error!(NoSuchBucket, "{refusal}"));
            }
            deleted => deleted?,
        }
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

    /// A bucket that never kept versions has an empty configuration.
    async fn get_bucket_versioning(
        &self,
        request: S3Request<dto::GetBucketVersioningInput>,
    ) -> S3Result<S3Response<dto::GetBucketVersioningOutput>> {
        let (_, bucket) = self.of(&request, &request.input.bucket).await?;
        let status = bucket.versioning.word().map(dto::BucketVersioningStatus::from_static);
        Ok(S3Response::new(dto::GetBucketVersioningOutput { status, ..Default::default() }))
    }

    async fn put_bucket_versioning(
        &self,
        request: S3Request<dto::PutBucketVersioningInput>,
    ) -> S3Result<S3Response<dto::PutBucketVersioningOutput>> {
        self.set_versioning(request).await?;
        Ok(S3Response::new(dto::PutBucketVersioningOutput::default()))
    }

    async fn get_bucket_tagging(
        &self,
        request: S3Request<dto::GetBucketTaggingInput>,
    ) -> S3Result<S3Response<dto::GetBucketTaggingOutput>> {
        Ok(S3Response::new(dto::GetBucketTaggingOutput { tag_set: self.tags(&request).await? }))
    }

    async fn put_bucket_tagging(
        &self,
        request: S3Request<dto::PutBucketTaggingInput>,
    ) -> S3Result<S3Response<dto::PutBucketTaggingOutput>> {
        let (owner, input) = (owner(&self.0, &request)?, request.input);
        self.set_tags(owner, &input.bucket, Some(input.tagging)).await?;
        Ok(with_status(S3Response::new(dto::PutBucketTaggingOutput::default()), Some(http::StatusCode::NO_CONTENT)))
    }

    async fn delete_bucket_tagging(
        &self,
        request: S3Request<dto::DeleteBucketTaggingInput>,
    ) -> S3Result<S3Response<dto::DeleteBucketTaggingOutput>> {
        let owner = owner(&self.0, &request)?;
        self.set_tags(owner, &request.input.bucket, None).await?;
        Ok(S3Response::new(dto::DeleteBucketTaggingOutput::default()))
    }

    async fn get_bucket_cors(
        &self,
        request: S3Request<dto::GetBucketCorsInput>,
    ) -> S3Result<S3Response<dto::GetBucketCorsOutput>> {
        Ok(S3Response::new(dto::GetBucketCorsOutput { cors_rules: Some(self.cors(&request).await?) }))
    }

    async fn put_bucket_cors(
        &self,
        request: S3Request<dto::PutBucketCorsInput>,
    ) -> S3Result<S3Response<dto::PutBucketCorsOutput>> {
        let (owner, input) = (owner(&self.0, &request)?, request.input);
        self.set_cors(owner, &input.bucket, Some(input.cors_configuration.cors_rules)).await?;
        Ok(S3Response::new(dto::PutBucketCorsOutput::default()))
    }

    async fn delete_bucket_cors(
        &self,
        request: S3Request<dto::DeleteBucketCorsInput>,
    ) -> S3Result<S3Response<dto::DeleteBucketCorsOutput>> {
        let owner = owner(&self.0, &request)?;
        self.set_cors(owner, &request.input.bucket, None).await?;
        Ok(S3Response::new(dto::DeleteBucketCorsOutput::default()))
    }

    async fn get_bucket_encryption(
        &self,
        request: S3Request<dto::GetBucketEncryptionInput>,
    ) -> S3Result<S3Response<dto::GetBucketEncryptionOutput>> {
        let server_side_encryption_configuration = Some(self.encryption(&request).await?);
        Ok(S3Response::new(dto::GetBucketEncryptionOutput { server_side_encryption_configuration }))
    }

    async fn get_bucket_acl(
        &self,
        request: S3Request<dto::GetBucketAclInput>,
    ) -> S3Result<S3Response<dto::GetBucketAclOutput>> {
        let (owner, _) = self.of(&request, &request.input.bucket).await?;
        let (owner, grants) = grants(&owner);
        Ok(S3Response::new(dto::GetBucketAclOutput { grants: Some(grants), owner: Some(owner) }))
    }

    async fn put_bucket_acl(
        &self,
        request: S3Request<dto::PutBucketAclInput>,
    ) -> S3Result<S3Response<dto::PutBucketAclOutput>> {
        let (owner, _) = self.of(&request, &request.input.bucket).await?;
        let canned = request.input.acl.as_ref().map(|acl| acl.as_str());
        access_list(&Asked::of(&request), canned, request.input.access_control_policy.as_ref(), &owner)?;
        Ok(S3Response::new(dto::PutBucketAclOutput::default()))
    }

    async fn get_object_acl(
        &self,
        request: S3Request<dto::GetObjectAclInput>,
    ) -> S3Result<S3Response<dto::GetObjectAclOutput>> {
        let input = &request.input;
        let object = self.subject(&request, (&input.bucket, &input.key, input.version_id.as_deref())).await?;
        let (owner, grants) = grants(&object.owner);
        let output = dto::GetObjectAclOutput { grants: Some(grants), owner: Some(owner), ..Default::default() };
        Ok(S3Response::new(output))
    }

    async fn put_object_acl(
        &self,
        request: S3Request<dto::PutObjectAclInput>,
    ) -> S3Result<S3Response<dto::PutObjectAclOutput>> {
        let input = &request.input;
        let object = self.subject(&request, (&input.bucket, &input.key, input.version_id.as_deref())).await?;
        let canned = input.acl.as_ref().map(|acl| acl.as_str());
        access_list(&Asked::of(&request), canned, input.access_control_policy.as_ref(), &object.owner)?;
        Ok(S3Response::new(dto::PutObjectAclOutput::default()))
    }

    async fn get_bucket_ownership_controls(
        &self,
        request: S3Request<dto::GetBucketOwnershipControlsInput>,
    ) -> S3Result<S3Response<dto::GetBucketOwnershipControlsOutput>> {
        let object_ownership = dto::ObjectOwnership::from_static(dto::ObjectOwnership::BUCKET_OWNER_ENFORCED);
        let rules = vec![dto::OwnershipControlsRule { object_ownership }];
        let ownership_controls = Some(dto::OwnershipControls { rules });
        let output = dto::GetBucketOwnershipControlsOutput { ownership_controls };
        self.always(&request, &request.input.bucket, output).await
    }

    async fn get_public_access_block(
        &self,
        request: S3Request<dto::GetPublicAccessBlockInput>,
    ) -> S3Result<S3Response<dto::GetPublicAccessBlockOutput>> {
        let all = dto::PublicAccessBlockConfiguration {
            block_public_acls: Some(true),
            block_public_policy: Some(true),
            ignore_public_acls: Some(true),
            restrict_public_buckets: Some(true),
        };
        let output = dto::GetPublicAccessBlockOutput { public_access_block_configuration: Some(all) };
        self.always(&request, &request.input.bucket, output).await
    }

    async fn get_bucket_policy(
        &self,
        request: S3Request<dto::GetBucketPolicyInput>,
    ) -> S3Result<S3Response<dto::GetBucketPolicyOutput>> {
        self.without(&request, &request.input.bucket, ("NoSuchBucketPolicy", "policy")).await
    }

    async fn get_bucket_policy_status(
        &self,
        request: S3Request<dto::GetBucketPolicyStatusInput>,
    ) -> S3Result<S3Response<dto::GetBucketPolicyStatusOutput>> {
        self.without(&request, &request.input.bucket, ("NoSuchBucketPolicy", "policy")).await
    }

    async fn get_bucket_lifecycle_configuration(
        &self,
        request: S3Request<dto::GetBucketLifecycleConfigurationInput>,
    ) -> S3Result<S3Response<dto::GetBucketLifecycleConfigurationOutput>> {
        let what = ("NoSuchLifecycleConfiguration", "lifecycle rules");
        self.without(&request, &request.input.bucket, what).await
    }

    async fn get_bucket_website(
        &self,
        request: S3Request<dto::GetBucketWebsiteInput>,
    ) -> S3Result<S3Response<dto::GetBucketWebsiteOutput>> {
        self.without(&request, &request.input.bucket, ("NoSuchWebsiteConfiguration", "website")).await
    }

    async fn get_bucket_replication(
        &self,
        request: S3Request<dto::GetBucketReplicationInput>,
    ) -> S3Result<S3Response<dto::GetBucketReplicationOutput>> {
        let what = ("ReplicationConfigurationNotFoundError", "replication");
        self.without(&request, &request.input.bucket, what).await
    }

    async fn get_object_lock_configuration(
        &self,
        request: S3Request<dto::GetObjectLockConfigurationInput>,
    ) -> S3Result<S3Response<dto::GetObjectLockConfigurationOutput>> {
        let what = ("ObjectLockConfigurationNotFoundError", "object lock");
        self.without(&request, &request.input.bucket, what).await
    }

    async fn get_bucket_notification_configuration(
        &self,
        request: S3Request<dto::GetBucketNotificationConfigurationInput>,
    ) -> S3Result<S3Response<dto::GetBucketNotificationConfigurationOutput>> {
        self.always(&request, &request.input.bucket, Default::default()).await
    }

    async fn get_bucket_logging(
        &self,
        request: S3Request<dto::GetBucketLoggingInput>,
    ) -> S3Result<S3Response<dto::GetBucketLoggingOutput>> {
        self.always(&request, &request.input.bucket, Default::default()).await
    }

    async fn get_bucket_accelerate_configuration(
        &self,
        request: S3Request<dto::GetBucketAccelerateConfigurationInput>,
    ) -> S3Result<S3Response<dto::GetBucketAccelerateConfigurationOutput>> {
        self.always(&request, &request.input.bucket, Default::default()).await
    }

    async fn get_bucket_request_payment(
        &self,
        request: S3Request<dto::GetBucketRequestPaymentInput>,
    ) -> S3Result<S3Response<dto::GetBucketRequestPaymentOutput>> {
        let payer = Some(dto::Payer::from_static(dto::Payer::BUCKET_OWNER));
        self.always(&request, &request.input.bucket, dto::GetBucketRequestPaymentOutput { payer }).await
    }

    async fn delete_bucket_policy(
        &self,
        request: S3Request<dto::DeleteBucketPolicyInput>,
    ) -> S3Result<S3Response<dto::DeleteBucketPolicyOutput>> {
        self.always(&request, &request.input.bucket, Default::default()).await
    }

    async fn delete_bucket_lifecycle(
        &self,
        request: S3Request<dto::DeleteBucketLifecycleInput>,
    ) -> S3Result<S3Response<dto::DeleteBucketLifecycleOutput>> {
        self.always(&request, &request.input.bucket, Default::default()).await
    }

    async fn delete_bucket_website(
        &self,
        request: S3Request<dto::DeleteBucketWebsiteInput>,
    ) -> S3Result<S3Response<dto::DeleteBucketWebsiteOutput>> {
        self.always(&request, &request.input.bucket, Default::default()).await
    }

    async fn delete_bucket_replication(
        &self,
        request: S3Request<dto::DeleteBucketReplicationInput>,
    ) -> S3Result<S3Response<dto::DeleteBucketReplicationOutput>> {
        self.always(&request, &request.input.bucket, Default::default()).await
    }

    async fn get_object_tagging(
        &self,
        request: S3Request<dto::GetObjectTaggingInput>,
    ) -> S3Result<S3Response<dto::GetObjectTaggingOutput>> {
        let input = &request.input;
        let object = self.subject(&request, (&input.bucket, &input.key, input.version_id.as_deref())).await?;
        let version_id = self.told(&input.bucket, &object.version);
        Ok(S3Response::new(dto::GetObjectTaggingOutput { tag_set: tags::shown(&object.tags), version_id }))
    }

    async fn put_object_tagging(
        &self,
        request: S3Request<dto::PutObjectTaggingInput>,
    ) -> S3Result<S3Response<dto::PutObjectTaggingOutput>> {
        let (owner, input) = (owner(&self.0, &request)?, request.input);
        let tags = tags::of_body(input.tagging, tags::OF_OBJECT_MAX)?;
        let version = versions::named(input.version_id.as_deref())?;
        let tagged = self.0.tag(&owner, &input.bucket, &input.key, version.as_deref(), tags).await?;
        let version_id = self.told(&input.bucket, &tagged);
        Ok(S3Response::new(dto::PutObjectTaggingOutput { version_id }))
    }

    async fn delete_object_tagging(
        &self,
        request: S3Request<dto::DeleteObjectTaggingInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectTaggingOutput>> {
        let (owner, input) = (owner(&self.0, &request)?, request.input);
        let version = versions::named(input.version_id.as_deref())?;
        let tagged = self.0.tag(&owner, &input.bucket, &input.key, version.as_deref(), BTreeMap::new()).await?;
        let version_id = self.told(&input.bucket, &tagged);
        Ok(S3Response::new(dto::DeleteObjectTaggingOutput { version_id }))
    }

    async fn get_object_attributes(
        &self,
        request: S3Request<dto::GetObjectAttributesInput>,
    ) -> S3Result<S3Response<dto::GetObjectAttributesOutput>> {
        let input = &request.input;
        let object = self.subject(&request, (&input.bucket, &input.key, input.version_id.as_deref())).await?;
        let known = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];
        let lists = input.object_attributes.iter().map(|attributes| attributes.as_str());
        let wanted: Vec<&str> = lists.flat_map(|list| list.split(',').map(str::trim)).collect();
        if wanted.is_empty() || wanted.iter().any(|name| !known.contains(name)) {
            return Err(s3_error!(InvalidArgument, "x-amz-object-attributes holds none but {}", known.join(", ")));
        }
        let wants = |name: &str| wanted.contains(&name);
        let checksum = object.checksum.as_ref().filter(|_| wants("Checksum")).map(|found| {
            let mut checksum = dto::Checksum { checksum_type: Some(checksum_type(found)), ..Default::default() };
            checksum!(checksum, Some(found));
            checksum
        });
        let object_parts = match wants("ObjectParts") && !object.upload.is_empty() {
            true => Some(parts_of(&object, input.max_parts, input.part_number_marker)?),
            false => None,
        };
        let mut response = S3Response::new(dto::GetObjectAttributesOutput {
            checksum,
            e_tag: wants("ETag").then(|| etag(&object.etag)),
            last_modified: Some(time(object.modified.unwrap_or_default())),
            object_parts,
            object_size: wants("ObjectSize").then_some(object.size as i64),
            storage_class: wants("StorageClass").then(|| dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
            version_id: self.told(&input.bucket, &object.version),
            ..Default::default()
        });
        response.extensions.insert(BareEtag);
        Ok(response)
    }

    async fn list_buckets(
        &self,
        request: S3Request<dto::ListBucketsInput>,
    ) -> S3Result<S3Response<dto::ListBucketsOutput>> {
        let owner = owner(&self.0, &request)?;
        self.0.catch_up(BucketCreated::STREAM).await?;
        let input = request.input;
        let max = match input.max_buckets.unwrap_or(BUCKETS_MAX) {
            max @ 1..=BUCKETS_MAX => max as usize,
            _ => return Err(s3_error!(InvalidArgument, "max-buckets is 1 to {BUCKETS_MAX}")),
        };
        let (prefix, after) = (input.prefix.unwrap_or_default(), input.continuation_token);
        let mut buckets: Vec<dto::Bucket> = self.0.view.read(|view| {
            let of_owner = view.known.buckets.iter().filter(|(_, bucket)| bucket.owner == owner);
            let bucket = |(token, _): (&String, _)| dto::Bucket {
                name: Some(token.replace('_', ".")),
                creation_date: view.made.get(token).map(|at| time(*at)),
                ..Default::default()
            };
            of_owner.map(bucket).collect()
        });
        buckets.retain(|bucket| {
            let name = bucket.name.as_deref().unwrap_or_default();
            name.starts_with(&prefix) && after.as_deref().is_none_or(|after| name > after)
        });
        buckets.sort_by(|a, b| a.name.cmp(&b.name));
        let truncated = buckets.len() > max;
        buckets.truncate(max);
        let continuation_token = buckets.last().filter(|_| truncated).and_then(|bucket| bucket.name.clone());
        let owner = Some(listing::owner(&owner));
        let prefix = (!prefix.is_empty()).then_some(prefix);
        Ok(S3Response::new(dto::ListBucketsOutput { buckets: Some(buckets), owner, continuation_token, prefix }))
    }

    async fn put_object(&self, request: S3Request<dto::PutObjectInput>) -> S3Result<S3Response<dto::PutObjectOutput>> {
        let owner = owner(&self.0, &request)?;
        let (asked, expected) = (Asked::of(&request), Expected::of(&request));
        let announced = digests::announced(&asked, &request.extensions)?;
        let condition = conditions::of_write(&asked)?;
        let input = request.input;
        let head = head!(input, asked);
        let mut body = content(input.body);
        let at = (input.bucket.as_str(), input.key.as_str());
        let stored = self.0.put(&owner, at, head, &condition, &announced, &mut body).await;
        let stored = answer(stored, &expected, &mut body).await?;
        let version = self.told(&input.bucket, &stored.version);
        Ok(S3Response::new(stored!(PutObjectOutput, stored, version)))
    }

    async fn get_object(&self, request: S3Request<dto::GetObjectInput>) -> S3Result<S3Response<dto::GetObjectOutput>> {
        let (owner, asked) = (owner(&self.0, &request)?, Asked::of(&request));
        let input = request.input;
        let version = versions::named(input.version_id.as_deref())?;
        let object = self.0.object(&owner, &input.bucket, &input.key, version.as_deref()).await?;
        let told = self.told(&input.bucket, &object.version);
        let Some(found) = find(&object, &asked, input.part_number)? else { return Ok(not_modified(&object)) };
        let mut chunks = Box::pin(self.0.read(&object, found.bytes.clone())?);
        // Read the first bytes before sending the status, so that an unreadable object is an error and not an answer that
        // breaks off.
        let first = chunks.next().await.transpose()?;
        let chunks = futures::stream::iter(first.map(Ok)).chain(chunks);
        let chunks = chunks.map_err(|error| std::io::Error::other(error.to_string()));
        let body = dto::StreamingBlob::wrap(sync_stream(chunks));
        let headers = kept(&object, input.response_expires.is_some());
        let mut output = described!(GetObjectOutput, object, found, input, told);
        output.body = Some(body);
        Ok(with_status(S3Response { headers, ..S3Response::new(output) }, found.status()))
    }

    async fn head_object(
        &self,
        request: S3Request<dto::HeadObjectInput>,
    ) -> S3Result<S3Response<dto::HeadObjectOutput>> {
        let (owner, asked) = (owner(&self.0, &request)?, Asked::of(&request));
        let input = request.input;
        let version = versions::named(input.version_id.as_deref())?;
        let object = self.0.object(&owner, &input.bucket, &input.key, version.as_deref()).await?;
        let told = self.told(&input.bucket, &object.version);
        let Some(found) = find(&object, &asked, input.part_number)? else { return Ok(not_modified(&object)) };
        let headers = kept(&object, input.response_expires.is_some());
        let mut output = described!(HeadObjectOutput, object, found, input, told);
        output.expires = input.response_expires;
        Ok(with_status(S3Response { headers, ..S3Response::new(output) }, found.status()))
    }

    async fn delete_object(
        &self,
        request: S3Request<dto::DeleteObjectInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectOutput>> {
        let (owner, asked) = (owner(&self.0, &request)?, Asked::of(&request));
        let input = request.input;
        let version = versions::named(input.version_id.as_deref())?;
        let condition = conditions::of_write(&asked)?;
        let done = self.0.delete(&owner, &input.bucket, &input.key, version.as_deref(), &condition).await?;
        Ok(S3Response::new(dto::DeleteObjectOutput {
            delete_marker: done.marker.as_ref().map(|_| true),
            version_id: version.or(done.marker).as_deref().map(versions::shown),
            ..Default::default()
        }))
    }

    async fn delete_objects(
        &self,
        request: S3Request<dto::DeleteObjectsInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectsOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        if input.delete.objects.len() > LIST_MAX as usize {
            return Err(s3_error!(
                MalformedXML,
                "the request names more than {LIST_MAX} objects; send several requests"
            ));
        }
        let quiet = input.delete.quiet.unwrap_or_default();
        let (mut deleted, mut errors) = (vec![], vec![]);
        for object in input.delete.objects {
            match self.delete_one(&owner, &input.bucket, &object).await {
                Ok(_) if quiet => {}
                Ok(done) => deleted.push(done),
                Err(error) if matches!(error.code(), S3ErrorCode::NoSuchBucket | S3ErrorCode::AccessDenied) => {
                    return Err(error);
                }
                Err(error) => {
                    errors.push(dto::Error {
                        key: Some(object.key),
                        version_id: object.version_id,
                        code: Some(error.code().as_str().to_owned()),
                        message: error.message().map(ToOwned::to_owned),
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
        let asked = Asked::of(&request);
        let condition = conditions::of_write(&asked)?;
        let algorithm = digests::named(&asked, "x-amz-checksum-algorithm")?;
        let input = request.input;
        let (from, of_source) = self.source(&owner, &input.copy_source, &asked).await?;
        let replace_tags = asked.get("x-amz-tagging-directive").is_some_and(|directive| directive == "REPLACE");
        let replace = asked.get("x-amz-metadata-directive").is_some_and(|directive| directive == "REPLACE");
        // An older version that is copied becomes the latest again.
        let is_itself = matches!(&input.copy_source, dto::CopySource::Bucket { bucket, key, version_id: None }
            if **bucket == *input.bucket && **key == *input.key);
        if is_itself && !replace && !replace_tags {
            return Err(s3_error!(
                InvalidRequest,
                "the copy would change nothing; copy to another key, or with x-amz-metadata-directive: REPLACE"
            ));
        }
        let mut head = match replace {
            false => Head {
                encrypted: asked.get("x-amz-server-side-encryption").is_some(),
                content_type: from.content_type.clone(),
                metadata: from.metadata.clone(),
                headers: from.headers.clone(),
                tags: tags::of_header(&asked)?,
            },
            true => head!(input, asked),
        };
        if !replace_tags {
            head.tags.clone_from(&from.tags);
        }
        let body = self.0.read(&from, 0..from.size)?;
        // The copy has a checksum if it is asked for, or the source has one.
        let had = from.checksum.as_ref().and_then(|checksum| Algorithm::named(&checksum.algorithm));
        let announced = Announced { bytes: Some(from.size), ..Announced::only(algorithm.or(had)) };
        let at = (input.bucket.as_str(), input.key.as_str());
        let stored = self.0.put(&owner, at, head, &condition, &announced, body).await?;
        let mut result = dto::CopyObjectResult {
            e_tag: Some(etag(&stored.etag)),
            last_modified: stored.modified.map(time),
            checksum_type: stored.checksum.as_ref().map(checksum_type),
            ..Default::default()
        };
        checksum!(result, stored.checksum.as_ref());
        Ok(S3Response::new(dto::CopyObjectOutput {
            copy_object_result: Some(result),
            copy_source_version_id: of_source,
            server_side_encryption: encryption(stored.layout.as_ref()),
            version_id: self.told(&input.bucket, &stored.version),
            ..Default::default()
        }))
    }

    async fn list_objects(
        &self,
        request: S3Request<dto::ListObjectsInput>,
    ) -> S3Result<S3Response<dto::ListObjectsOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        let (prefix, delimiter, marker) = (text(&input.prefix), text(&input.delimiter), text(&input.marker));
        let max = lines(input.max_keys)?;
        let line = Line::new(input.encoding_type.as_ref(), Some(&owner))?;
        let wanted = Wanted { prefix: &prefix, delimiter: &delimiter, after: &marker, max, ..Wanted::default() };
        let page = self.0.list(&owner, &input.bucket, false, wanted, line, |item| line.object(item)).await?;
        let output = dto::ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(line.show(&prefix)),
            marker: Some(line.show(&marker)),
            max_keys: Some(max as i32),
            is_truncated: Some(page.next.is_some()),
            next_marker: page.next.map(|(next, _)| line.show(&next)),
            contents: Some(page.contents),
            common_prefixes: Some(page.prefixes),
            delimiter: input.delimiter.map(|delimiter| line.show(&delimiter)),
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
            Some(token) => {
                BASE64_URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(
                    || s3_error!(InvalidArgument, "invalid continuation token; use the one of the page before"),
                )?
            }
            None => text(&input.start_after),
        };
        let max = lines(input.max_keys)?;
        let line = Line::new(input.encoding_type.as_ref(), input.fetch_owner.unwrap_or_default().then_some(&owner))?;
        let wanted = Wanted { prefix: &prefix, delimiter: &delimiter, after: &after, max, ..Wanted::default() };
        let page = self.0.list(&owner, &input.bucket, false, wanted, line, |item| line.object(item)).await?;
        let output = dto::ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(line.show(&prefix)),
            max_keys: Some(max as i32),
            key_count: Some((page.contents.len() + page.prefixes.len()) as i32),
            continuation_token: input.continuation_token,
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|(next, _)| BASE64_URL_SAFE_NO_PAD.encode(next)),
            contents: Some(page.contents),
            common_prefixes: Some(page.prefixes),
            delimiter: input.delimiter.map(|delimiter| line.show(&delimiter)),
            encoding_type: input.encoding_type,
            start_after: input.start_after.map(|after| line.show(&after)),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_object_versions(
        &self,
        request: S3Request<dto::ListObjectVersionsInput>,
    ) -> S3Result<S3Response<dto::ListObjectVersionsOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        let (prefix, delimiter, marker) = (text(&input.prefix), text(&input.delimiter), text(&input.key_marker));
        let after_version = versions::named(input.version_id_marker.as_deref().filter(|marker| !marker.is_empty()))?;
        if after_version.is_some() && marker.is_empty() {
            return Err(s3_error!(InvalidArgument, "version-id-marker needs key-marker beside it"));
        }
        let max = lines(input.max_keys)?;
        let line = Line::new(input.encoding_type.as_ref(), Some(&owner))?;
        let (prefix_, delimiter_, after) = (prefix.as_str(), delimiter.as_str(), marker.as_str());
        let wanted =
            Wanted { prefix: prefix_, delimiter: delimiter_, after, after_version: after_version.as_deref(), max };
        let page = self.0.list(&owner, &input.bucket, true, wanted, line, |item| version(item, line)).await?;
        let (mut shown, mut markers) = (vec![], vec![]);
        for version in page.contents {
            match version {
                Shown::Version(version) => shown.push(version),
                Shown::Marker(marker) => markers.push(marker),
            }
        }
        let (next_key, next_version) = page.next.unzip();
        let output = dto::ListObjectVersionsOutput {
            name: Some(input.bucket),
            prefix: Some(line.show(&prefix)),
            key_marker: Some(line.show(&marker)),
            version_id_marker: Some(text(&input.version_id_marker)),
            max_keys: Some(max as i32),
            is_truncated: Some(next_key.is_some()),
            next_version_id_marker: next_version.flatten().as_deref().map(versions::shown),
            next_key_marker: next_key.map(|next| line.show(&next)),
            versions: Some(shown),
            delete_markers: Some(markers),
            common_prefixes: Some(page.prefixes),
            delimiter: input.delimiter.map(|delimiter| line.show(&delimiter)),
            encoding_type: input.encoding_type,
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<dto::CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CreateMultipartUploadOutput>> {
        let (owner, asked) = (owner(&self.0, &request)?, Asked::of(&request));
        let algorithm = digests::named(&asked, "x-amz-checksum-algorithm")?;
        let checksum = match (algorithm, digests::is_composite(&asked)?) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(s3_error!(InvalidRequest, "x-amz-checksum-type needs x-amz-checksum-algorithm beside it"));
            }
            (Some(algorithm), composite) => {
                let composite = composite.unwrap_or(algorithm.is_composite());
                if !algorithm.allows(composite) {
                    let name = algorithm.name();
                    return Err(s3_error!(
                        InvalidRequest,
                        "{name} is not for this x-amz-checksum-type; use the other one"
                    ));
                }
                Some((algorithm, composite))
            }
        };
        let input = request.input;
        let head = head!(input, asked);
        let started = self.0.begin(&owner, &input.bucket, &input.key, head, checksum).await?;
        Ok(S3Response::new(dto::CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(started.upload),
            server_side_encryption: encryption(started.layout.as_ref()),
            checksum_algorithm: started.checksum.as_ref().map(checksum_algorithm),
            checksum_type: started.checksum.as_ref().map(checksum_type),
            ..Default::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<dto::UploadPartInput>,
    ) -> S3Result<S3Response<dto::UploadPartOutput>> {
        let owner = owner(&self.0, &request)?;
        let (asked, expected) = (Asked::of(&request), Expected::of(&request));
        let announced = digests::announced(&asked, &request.extensions)?;
        let input = request.input;
        let at = At { bucket: input.bucket, key: input.key, upload: input.upload_id };
        let mut body = content(input.body);
        let part = self.0.put_part(&owner, &at, number(input.part_number), &announced, &mut body).await;
        let part = answer(part, &expected, &mut body).await?;
        let mut output = dto::UploadPartOutput { e_tag: Some(etag(&part.etag)), ..Default::default() };
        checksum!(output, part.checksum.as_ref());
        Ok(S3Response::new(output))
    }

    async fn upload_part_copy(
        &self,
        request: S3Request<dto::UploadPartCopyInput>,
    ) -> S3Result<S3Response<dto::UploadPartCopyOutput>> {
        let (owner, asked) = (owner(&self.0, &request)?, Asked::of(&request));
        let input = request.input;
        let (from, copy_source_version_id) = self.source(&owner, &input.copy_source, &asked).await?;
        let range = conditions::of_copy(&asked, from.size)?;
        let at = At { bucket: input.bucket, key: input.key, upload: input.upload_id };
        let announced = Announced { bytes: Some(range.end - range.start), ..Announced::default() };
        let body = self.0.read(&from, range)?;
        let part = self.0.put_part(&owner, &at, number(input.part_number), &announced, body).await?;
        let last_modified = Some(time(self.0.mesh.now()));
        let mut result = dto::CopyPartResult { e_tag: Some(etag(&part.etag)), last_modified, ..Default::default() };
        checksum!(result, part.checksum.as_ref());
        Ok(S3Response::new(dto::UploadPartCopyOutput {
            copy_part_result: Some(result),
            copy_source_version_id,
            server_side_encryption: encryption(from.layout.as_ref()),
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<dto::CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CompleteMultipartUploadOutput>> {
        let (owner, asked) = (owner(&self.0, &request)?, Asked::of(&request));
        let condition = conditions::of_write(&asked)?;
        let size = match asked.get("x-amz-mp-object-size").map(|text| text.parse()) {
            None => None,
            Some(Ok(size)) => Some(size),
            Some(Err(_)) => return Err(s3_error!(InvalidArgument, "x-amz-mp-object-size is not a number of bytes")),
        };
        let mut claims = Claims {
            checksum: digests::claimed(&asked)?,
            composite: digests::is_composite(&asked)?,
            size,
            ..Claims::default()
        };
        let input = request.input;
        let mut named = vec![];
        for part in input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default() {
            let number = number(part.part_number.unwrap_or_default());
            let given = [
                (Algorithm::Crc32, part.checksum_crc32),
                (Algorithm::Crc32c, part.checksum_crc32c),
                (Algorithm::Crc64Nvme, part.checksum_crc64nvme),
                (Algorithm::Sha1, part.checksum_sha1),
                (Algorithm::Sha256, part.checksum_sha256),
            ];
            for (algorithm, text) in given {
                let Some(text) = text else { continue };
                let Some(value) = algorithm.value(&text) else {
                    return Err(s3_error!(InvalidRequest, "the checksum of part {number} is no {}", algorithm.name()));
                };
                if claims.parts.insert(number, algorithm.checksum(&value)).is_some() {
                    return Err(s3_error!(InvalidRequest, "part {number} is there with several checksums; send one"));
                }
            }
            named.push((number, part.e_tag.map(dto::ETag::into_value).unwrap_or_default()));
        }
        let at = At { bucket: input.bucket.clone(), key: input.key.clone(), upload: input.upload_id };
        let stored = self.0.complete(&owner, &at, &named, &claims, &condition).await?;
        let version = self.told(&input.bucket, &stored.version);
        let mut output = stored!(CompleteMultipartUploadOutput, stored, version);
        output.location = Some(format!("/{}/{}", input.bucket, input.key));
        (output.bucket, output.key) = (Some(input.bucket), Some(input.key));
        Ok(S3Response::new(output))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<dto::AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::AbortMultipartUploadOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let at = At { bucket: input.bucket, key: input.key, upload: input.upload_id };
        self.0.abort(&owner, &at).await?;
        Ok(S3Response::new(dto::AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(&self, request: S3Request<dto::ListPartsInput>) -> S3Result<S3Response<dto::ListPartsOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let max = lines(input.max_parts)?;
        let marker = input.part_number_marker.unwrap_or_default();
        let at = At { bucket: input.bucket.clone(), key: input.key.clone(), upload: input.upload_id.clone() };
        let (started, stored) = self.0.parts(&owner, &at).await?;
        let mut parts: Vec<dto::Part> = stored
            .range(number(marker).saturating_add(1)..)
            .map(|(number, stored)| {
                let mut part = dto::Part {
                    part_number: Some(*number as i32),
                    e_tag: Some(etag(&stored.etag)),
                    size: Some(stored.part.size as i64),
                    last_modified: Some(time(stored.at)),
                    ..Default::default()
                };
                checksum!(part, stored.checksum.as_ref());
                part
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
            storage_class: Some(dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
            checksum_algorithm: started.checksum.as_ref().map(checksum_algorithm),
            checksum_type: started.checksum.as_ref().map(checksum_type),
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
        let line = Line::new(input.encoding_type.as_ref(), None)?;
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
                storage_class: Some(dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
                checksum_algorithm: u.started.checksum.as_ref().map(checksum_algorithm),
                checksum_type: u.started.checksum.as_ref().map(checksum_type),
                initiated: Some(time(u.at)),
                ..Default::default()
            })
            .take(max + 1)
            .collect();
        let truncated = uploads.len() > max;
        uploads.truncate(max);
        for upload in &mut uploads {
            upload.key = upload.key.as_deref().map(|key| line.show(key));
        }
        let last = uploads.last().filter(|_| truncated);
        Ok(S3Response::new(dto::ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: Some(line.show(&prefix)),
            key_marker: Some(line.show(&key_marker)),
            encoding_type: input.encoding_type,
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
