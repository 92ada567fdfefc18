//! The S3 handler: requests in the terms of the object store. Signatures, XML and the form of errors come from `s3s`.

use std::{collections::BTreeMap, ops::Range};

use futures::{StreamExt as _, TryStreamExt as _};
use mesh_proto::{
    Event as _, RefusalCode,
    object::ObjectStored,
    storage::{BucketCreated, CreateBucket, DeleteBucket},
};
use s3s::{
    S3, S3ErrorCode, S3Request, S3Response, S3Result,
    auth::{S3Auth, SecretKey},
    dto, s3_error,
};

use super::{
    body::{Expected, content, sync_stream},
    errors::answer,
    listing::{LIST_MAX, is_url, lines, time, url_encoded},
};
use crate::{
    domain::{bucket_token, objects::Condition, storages::BUCKET_REALM},
    objects::{Error, Head, ObjectStore, multipart::At},
};

/// Policy of buckets that name none.
pub const DEFAULT_POLICY: &str = "default";
/// The only version that an object has: no bucket keeps others.
const ONLY_VERSION: &str = "null";

/// Secrets by access key.
pub(crate) struct Auth(pub(crate) ObjectStore);

#[async_trait::async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match self.0.keys.access.get(access_key) {
            Some((_, credentials)) => Ok(SecretKey::from(credentials.secret.as_str())),
            None => Err(s3_error!(InvalidAccessKeyId, "access key {access_key} does not exist")),
        }
    }
}

/// Answers S3 requests.
#[derive(Clone)]
pub(crate) struct Handler(pub(crate) ObjectStore);

/// The owner whose access key signed a request.
pub(crate) fn owner<T>(store: &ObjectStore, request: &S3Request<T>) -> S3Result<String> {
    let signed = request.credentials.as_ref().and_then(|c| store.keys.access.get(&c.access_key));
    signed.map(|(owner, _)| owner.clone()).ok_or_else(|| s3_error!(AccessDenied, "the request is not signed"))
}

fn etag(text: &str) -> dto::ETag {
    dto::ETag::Strong(text.to_owned())
}

/// The metadata that a request gives an object.
macro_rules! head {
    ($input:ident) => {
        Head {
            content_type: $input.content_type.unwrap_or_else(|| "binary/octet-stream".into()),
            metadata: $input.metadata.unwrap_or_default().into_iter().collect(),
            headers: headers([
                ("cache-control", $input.cache_control),
                ("content-disposition", $input.content_disposition),
                ("content-encoding", $input.content_encoding),
                ("content-language", $input.content_language),
            ]),
        }
    };
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
        Some(_) => return Err(s3_error!(NotImplemented, "a write takes no etag in If-None-Match, only *")),
    };
    Ok(Condition { if_match: if_match.map(text), if_none })
}

/// The conditions of a copy on its destination, which `s3s` does not read.
fn condition_of_headers(headers: &http::HeaderMap) -> S3Result<Condition> {
    let of = |name: http::HeaderName| match headers.get(&name).map(|value| value.to_str().unwrap_or_default().parse()) {
        None => Ok(None),
        Some(Ok(condition)) => Ok(Some(condition)),
        Some(Err(_)) => Err(s3_error!(InvalidArgument, "{name} is neither * nor an etag")),
    };
    condition(of(http::header::IF_MATCH)?, of(http::header::IF_NONE_MATCH)?)
}

/// Refuses a version that no object has.
fn only_version(version: Option<&str>) -> S3Result<()> {
    match version {
        None | Some(ONLY_VERSION) => Ok(()),
        Some(version) => {
            Err(s3_error!(InvalidArgument, "version {version} does not exist; the bucket keeps no versions"))
        }
    }
}

impl Handler {
    /// One object of DeleteObjects.
    async fn delete_one(&self, owner: &str, bucket: &str, object: &dto::ObjectIdentifier) -> S3Result<bool> {
        only_version(object.version_id.as_deref())?;
        if object.size.is_some() || object.last_modified_time.is_some() {
            return Err(s3_error!(NotImplemented, "a delete takes the condition ETag only"));
        }
        let condition =
            Condition { if_match: object.e_tag.as_ref().map(|etag| etag.value().to_owned()), ..Condition::default() };
        Ok(self.0.delete(owner, bucket, &object.key, &condition).await?)
    }
}

/// Refuses a read whose conditions do not hold.
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
        return Err(s3_error!(PreconditionFailed, "the object does not meet the conditions of the request"));
    }
    let same = match if_none_match {
        Some(condition) => is(condition),
        None => if_modified_since.is_some_and(|since| modified <= *since),
    };
    if same {
        return Err(s3_error!(NotModified, "the object has not changed"));
    }
    Ok(())
}

/// The bytes of a read, and the Content-Range of a part.
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
        let made = self.0.ask(&CreateBucket { realm: BUCKET_REALM.into(), bucket, owner, policy }).await;
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

    async fn list_buckets(
        &self,
        request: S3Request<dto::ListBucketsInput>,
    ) -> S3Result<S3Response<dto::ListBucketsOutput>> {
        let owner = owner(&self.0, &request)?;
        self.0.catch_up(BucketCreated::STREAM).await?;
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
        let expected = Expected::of(&request);
        let input = request.input;
        let head = head!(input);
        let condition = condition(input.if_match, input.if_none_match)?;
        let mut body = content(input.body);
        let stored = self.0.put(&owner, &input.bucket, &input.key, head, &condition, &mut body).await;
        let stored = answer(stored, &expected, &mut body).await?;
        Ok(S3Response::new(dto::PutObjectOutput { e_tag: Some(etag(&stored.etag)), ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<dto::GetObjectInput>) -> S3Result<S3Response<dto::GetObjectOutput>> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        only_version(input.version_id.as_deref())?;
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
        // Read the first bytes before sending the status, so that an unreadable object is an error and not an answer that
        // breaks off.
        let first = chunks.next().await.transpose()?;
        let chunks = futures::stream::iter(first.map(Ok)).chain(chunks);
        let chunks = chunks.map_err(|error| std::io::Error::other(error.to_string()));
        let body = dto::StreamingBlob::wrap(sync_stream(chunks));
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
        only_version(input.version_id.as_deref())?;
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
        let input = request.input;
        only_version(input.version_id.as_deref())?;
        if input.if_match_size.is_some() || input.if_match_last_modified_time.is_some() {
            return Err(s3_error!(NotImplemented, "a delete takes the condition If-Match only"));
        }
        let condition = condition(input.if_match, None)?;
        self.0.delete(&owner, &input.bucket, &input.key, &condition).await?;
        Ok(S3Response::new(dto::DeleteObjectOutput::default()))
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
                Ok(_) => deleted.push(dto::DeletedObject { key: Some(object.key), ..Default::default() }),
                Err(error) if matches!(error.code(), S3ErrorCode::NoSuchBucket | S3ErrorCode::AccessDenied) => {
                    return Err(error);
                }
                Err(error) => {
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
        let condition = condition_of_headers(&request.headers)?;
        let input = request.input;
        let dto::CopySource::Bucket { bucket, key, version_id } = &input.copy_source else {
            return Err(s3_error!(NotImplemented, "access points are not supported; copy from a bucket and key"));
        };
        only_version(version_id.as_deref())?;
        let from = self.0.object(&owner, bucket, key).await?;
        let source = let_through(
            &from,
            input.copy_source_if_match.as_ref(),
            input.copy_source_if_none_match.as_ref(),
            input.copy_source_if_modified_since.as_ref(),
            input.copy_source_if_unmodified_since.as_ref(),
        );
        if source.is_err() {
            return Err(s3_error!(PreconditionFailed, "the source does not meet the conditions of the request"));
        }
        let replace = input.metadata_directive.as_ref().is_some_and(|d| d.as_str() == "REPLACE");
        let head = match replace {
            false => Head {
                content_type: from.content_type.clone(),
                metadata: from.metadata.clone(),
                headers: from.headers.clone(),
            },
            true => head!(input),
        };
        let body = self.0.read(&from, 0..from.size)?;
        let stored = self.0.put(&owner, &input.bucket, &input.key, head, &condition, body).await?;
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
            Some(token) => {
                BASE64_URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(
                    || s3_error!(InvalidArgument, "invalid continuation token; use the one of the page before"),
                )?
            }
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
        let head = head!(input);
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
        let expected = Expected::of(&request);
        let input = request.input;
        let at = At { bucket: input.bucket, key: input.key, upload: input.upload_id };
        let mut body = content(input.body);
        let tag = self.0.put_part(&owner, &at, number(input.part_number), &mut body).await;
        let tag = answer(tag, &expected, &mut body).await?;
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
        let stored = self.0.parts(&owner, &at).await?;
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
