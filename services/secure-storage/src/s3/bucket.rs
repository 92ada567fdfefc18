//! Settings of buckets, and what a bucket answers that belongs to its owner alone: access lists that cannot be changed, no public
//! access, and configurations that it does not have.

use mesh_proto::storage::{BucketSettings, ConfigureBucket, CorsRules, Tag, TagSet};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto, s3_error};

use super::{
    asked::Asked,
    caller::{Handler, owner},
    cors,
    errors::failed,
    listing, tags,
};
use crate::{
    domain::{
        bucket_token,
        storages::{self, BUCKET_REALM, Bucket, Versioning},
    },
    objects::Error,
};

/// The error of a configuration that a bucket does not have, with the code that S3 has for it.
fn absent(code: &'static str, what: &str) -> S3Error {
    let mut error = failed(S3ErrorCode::Custom(code.into()), format!("the bucket has no {what}"));
    error.set_status_code(http::StatusCode::NOT_FOUND);
    error
}

fn no_lists() -> S3Error {
    s3_error!(
        AccessControlListNotSupported,
        "the owner of a bucket owns its objects, and nobody else has access; an access list may give the owner full control \
         only"
    )
}

/// The grants of anything in a bucket of this owner.
pub(super) fn grants(owner: &str) -> (dto::Owner, dto::Grants) {
    let grantee = dto::Grantee {
        id: Some(owner.to_owned()),
        display_name: Some(owner.to_owned()),
        email_address: None,
        type_: dto::Type::from_static(dto::Type::CANONICAL_USER),
        uri: None,
    };
    let permission = Some(dto::Permission::from_static(dto::Permission::FULL_CONTROL));
    (listing::owner(owner), vec![dto::Grant { grantee: Some(grantee), permission }])
}

/// Takes an access list that says what holds anyway, and refuses any other.
pub(super) fn access_list(
    asked: &Asked,
    canned: Option<&str>,
    list: Option<&dto::AccessControlPolicy>,
    owner: &str,
) -> S3Result<()> {
    if asked.names().any(|name| name.starts_with("x-amz-grant-")) {
        return Err(no_lists());
    }
    let is_full = |grant: &dto::Grant| {
        let is_owner = grant.grantee.as_ref().is_some_and(|grantee| grantee.id.as_deref() == Some(owner));
        is_owner && grant.permission.as_ref().is_some_and(|p| p.as_str() == dto::Permission::FULL_CONTROL)
    };
    match (canned, list) {
        (Some("bucket-owner-full-control"), None) => Ok(()),
        (None, Some(list)) if list.grants.as_ref().is_some_and(|grants| matches!(&**grants, [one] if is_full(one))) => {
            Ok(())
        }
        (None, None) => Err(s3_error!(MissingSecurityHeader, "the request has no access list; send one")),
        _ => Err(no_lists()),
    }
}

impl Handler {
    /// The bucket of a request, of whoever sent it.
    pub(super) async fn of<T>(&self, request: &S3Request<T>, name: &str) -> S3Result<(String, Bucket)> {
        let owner = owner(&self.0, request)?;
        let (_, bucket) = self.0.bucket(&owner, name).await?;
        Ok((owner, bucket))
    }

    /// Refuses what a bucket does not have, if there is the bucket.
    pub(super) async fn without<T, O>(
        &self,
        request: &S3Request<T>,
        name: &str,
        (code, what): (&'static str, &str),
    ) -> S3Result<S3Response<O>> {
        self.of(request, name).await?;
        Err(absent(code, what))
    }

    /// Answers with what every bucket has, if there is the bucket.
    pub(super) async fn always<T, O>(&self, request: &S3Request<T>, name: &str, output: O) -> S3Result<S3Response<O>> {
        self.of(request, name).await?;
        Ok(S3Response::new(output))
    }

    async fn configure(&self, owner: String, name: &str, settings: BucketSettings) -> S3Result<()> {
        // Of another owner, or absent: as for any other request.
        self.0.bucket(&owner, name).await?;
        let (realm, bucket) = (BUCKET_REALM.to_owned(), bucket_token(name));
        Ok(self.0.ask(&ConfigureBucket { realm, bucket, owner, settings: Some(settings) }).await?)
    }

    pub(super) async fn set_versioning(&self, request: S3Request<dto::PutBucketVersioningInput>) -> S3Result<()> {
        let owner = owner(&self.0, &request)?;
        let input = request.input;
        let wanted = input.versioning_configuration;
        if wanted.mfa_delete.is_some_and(|mfa| mfa.as_str() != "Disabled") {
            return Err(s3_error!(NotImplemented, "MfaDelete is not supported; leave it out"));
        }
        let status = wanted.status.map(|status| status.as_str().to_owned()).unwrap_or_default();
        let Some(versioning) = Versioning::named(&status) else {
            return Err(failed(
                S3ErrorCode::Custom("IllegalVersioningConfigurationException".into()),
                "Status is Enabled or Suspended".into(),
            ));
        };
        let versioning = versioning.word().unwrap_or_default().to_owned();
        self.configure(owner, &input.bucket, BucketSettings { versioning, ..BucketSettings::default() }).await
    }

    pub(super) async fn set_tags(&self, owner: String, bucket: &str, tagging: Option<dto::Tagging>) -> S3Result<()> {
        let tags = match tagging {
            Some(tagging) => tags::of_body(tagging, storages::TAGS_MAX)?,
            None => Default::default(),
        };
        let tags = Some(TagSet { tags: tags.into_iter().map(|(key, value)| Tag { key, value }).collect() });
        self.configure(owner, bucket, BucketSettings { tags, ..BucketSettings::default() }).await
    }

    pub(super) async fn tags(&self, request: &S3Request<dto::GetBucketTaggingInput>) -> S3Result<dto::TagSet> {
        let (_, bucket) = self.of(request, &request.input.bucket).await?;
        match bucket.tags.is_empty() {
            true => Err(absent("NoSuchTagSet", "tags")),
            false => Ok(tags::shown(bucket.tags.iter().map(|tag| (&tag.key, &tag.value)))),
        }
    }

    pub(super) async fn set_cors(
        &self,
        owner: String,
        bucket: &str,
        rules: Option<Vec<dto::CORSRule>>,
    ) -> S3Result<()> {
        let rules = rules.map(cors::taken).transpose()?.unwrap_or_default();
        self.configure(owner, bucket, BucketSettings { cors: Some(CorsRules { rules }), ..BucketSettings::default() })
            .await
    }

    pub(super) async fn cors(&self, request: &S3Request<dto::GetBucketCorsInput>) -> S3Result<Vec<dto::CORSRule>> {
        let (_, bucket) = self.of(request, &request.input.bucket).await?;
        match bucket.cors.is_empty() {
            true => Err(absent("NoSuchCORSConfiguration", "CORS rules")),
            false => Ok(cors::shown(&bucket.cors)),
        }
    }

    /// What the bucket's policy does to new objects.
    pub(super) async fn encryption(
        &self,
        request: &S3Request<dto::GetBucketEncryptionInput>,
    ) -> S3Result<dto::ServerSideEncryptionConfiguration> {
        let (_, bucket) = self.of(request, &request.input.bucket).await?;
        if !self.0.recipe(&bucket)?.encrypted {
            return Err(absent("ServerSideEncryptionConfigurationNotFoundError", "encryption; its policy says NONE"));
        }
        let by_default = dto::ServerSideEncryptionByDefault {
            kms_master_key_id: None,
            sse_algorithm: dto::ServerSideEncryption::from_static(dto::ServerSideEncryption::AES256),
        };
        let rule = dto::ServerSideEncryptionRule {
            apply_server_side_encryption_by_default: Some(by_default),
            bucket_key_enabled: Some(false),
        };
        Ok(dto::ServerSideEncryptionConfiguration { rules: vec![rule] })
    }

    /// Whose policy a new bucket uses: the owner's own of that name, or else the one that the site gives to all.
    pub(super) async fn provider(&self, owner: &str, policy: &str) -> Result<String, Error> {
        let of = |who: &str| (who.to_owned(), policy.to_owned());
        let shared = self.0.config.shared_owner.clone();
        let (own, theirs) = (of(owner), of(&shared));
        let look = || {
            self.0.view.read(|view| {
                let has = |key| view.known.policies.contains_key(key);
                (!has(&own) && has(&theirs)).then(|| shared.clone())
            })
        };
        if let Some(shared) = look() {
            return Ok(shared);
        }
        self.0.catch_up("STORAGE").await?;
        Ok(look().unwrap_or_default())
    }
}
