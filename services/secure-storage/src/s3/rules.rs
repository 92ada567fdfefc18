//! What each operation acts on. A header of S3 or a parameter that is in no list is refused, known or not: nothing that is
//! asked for is dropped silently.

use std::collections::BTreeSet;

use s3s::{
    S3Result,
    access::{S3Access, S3AccessContext},
    s3_error,
};

use super::asked::{Asked, Caller};

/// Headers and parameters of an operation.
struct Rule {
    operation: &'static str,
    query: &'static [&'static str],
    headers: &'static [&'static [&'static str]],
}

/// A digest of the body, and how it comes.
const BODY: &[&str] = &[
    "content-md5",
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
    "x-amz-decoded-content-length",
    "x-amz-sdk-checksum-algorithm",
    "x-amz-trailer",
];
/// What a new object is to be.
const OBJECT: &[&str] =
    &["expires", "x-amz-acl", "x-amz-meta-*", "x-amz-server-side-encryption", "x-amz-storage-class", "x-amz-tagging"];
/// Access lists, of which only one is taken.
const GRANTS: &[&str] = &[
    "x-amz-acl",
    "x-amz-grant-full-control",
    "x-amz-grant-read",
    "x-amz-grant-read-acp",
    "x-amz-grant-write",
    "x-amz-grant-write-acp",
];
/// Conditions of a write.
const WRITE: &[&str] = &["if-match", "if-none-match"];
/// Conditions of a read.
const READ: &[&str] = &[
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
    "x-amz-checksum-mode",
];
const READ_QUERY: &[&str] = &[
    "partNumber",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "versionId",
];
/// The source of a copy.
const SOURCE: &[&str] = &[
    "x-amz-copy-source",
    "x-amz-copy-source-if-match",
    "x-amz-copy-source-if-modified-since",
    "x-amz-copy-source-if-none-match",
    "x-amz-copy-source-if-unmodified-since",
    "x-amz-source-expected-bucket-owner",
];

const fn rule(
    operation: &'static str,
    query: &'static [&'static str],
    headers: &'static [&'static [&'static str]],
) -> Rule {
    Rule { operation, query, headers }
}

/// Every operation that is supported.
const RULES: &[Rule] = &[
    rule("AbortMultipartUpload", &["uploadId"], &[]),
    rule("CompleteMultipartUpload", &["uploadId"], &[BODY, WRITE, &["x-amz-checksum-type", "x-amz-mp-object-size"]]),
    rule(
        "CopyObject",
        &[],
        &[OBJECT, SOURCE, WRITE, &["x-amz-checksum-algorithm", "x-amz-metadata-directive", "x-amz-tagging-directive"]],
    ),
    rule("CreateBucket", &[], &[BODY, &["x-amz-acl", "x-amz-bucket-object-lock-enabled", "x-amz-object-ownership"]]),
    rule("CreateMultipartUpload", &["uploads"], &[OBJECT, &["x-amz-checksum-algorithm", "x-amz-checksum-type"]]),
    rule("DeleteBucket", &[], &[]),
    rule("DeleteBucketCors", &["cors"], &[]),
    rule("DeleteBucketLifecycle", &["lifecycle"], &[]),
    rule("DeleteBucketPolicy", &["policy"], &[]),
    rule("DeleteBucketReplication", &["replication"], &[]),
    rule("DeleteBucketTagging", &["tagging"], &[]),
    rule("DeleteBucketWebsite", &["website"], &[]),
    rule("DeleteObject", &["versionId"], &[&["if-match"]]),
    rule("DeleteObjectTagging", &["tagging", "versionId"], &[]),
    rule("DeleteObjects", &["delete"], &[BODY]),
    rule("GetBucketAccelerateConfiguration", &["accelerate"], &[]),
    rule("GetBucketAcl", &["acl"], &[]),
    rule("GetBucketCors", &["cors"], &[]),
    rule("GetBucketEncryption", &["encryption"], &[]),
    rule("GetBucketLifecycleConfiguration", &["lifecycle"], &[]),
    rule("GetBucketLocation", &["location"], &[]),
    rule("GetBucketLogging", &["logging"], &[]),
    rule("GetBucketNotificationConfiguration", &["notification"], &[]),
    rule("GetBucketOwnershipControls", &["ownershipControls"], &[]),
    rule("GetBucketPolicy", &["policy"], &[]),
    rule("GetBucketPolicyStatus", &["policyStatus"], &[]),
    rule("GetBucketReplication", &["replication"], &[]),
    rule("GetBucketRequestPayment", &["requestPayment"], &[]),
    rule("GetBucketTagging", &["tagging"], &[]),
    rule("GetBucketVersioning", &["versioning"], &[]),
    rule("GetBucketWebsite", &["website"], &[]),
    rule("GetObject", READ_QUERY, &[READ]),
    rule("GetObjectAcl", &["acl", "versionId"], &[]),
    rule(
        "GetObjectAttributes",
        &["attributes", "versionId"],
        &[&["x-amz-max-parts", "x-amz-object-attributes", "x-amz-part-number-marker"]],
    ),
    rule("GetObjectLockConfiguration", &["object-lock"], &[]),
    rule("GetObjectTagging", &["tagging", "versionId"], &[]),
    rule("GetPublicAccessBlock", &["publicAccessBlock"], &[]),
    rule("HeadBucket", &[], &[]),
    rule("HeadObject", READ_QUERY, &[READ]),
    rule("ListBuckets", &["continuation-token", "max-buckets", "prefix"], &[]),
    rule(
        "ListMultipartUploads",
        &["encoding-type", "key-marker", "max-uploads", "prefix", "upload-id-marker", "uploads"],
        &[],
    ),
    rule(
        "ListObjectVersions",
        &["delimiter", "encoding-type", "key-marker", "max-keys", "prefix", "version-id-marker", "versions"],
        &[],
    ),
    rule("ListObjects", &["delimiter", "encoding-type", "marker", "max-keys", "prefix"], &[]),
    rule(
        "ListObjectsV2",
        &[
            "continuation-token",
            "delimiter",
            "encoding-type",
            "fetch-owner",
            "list-type",
            "max-keys",
            "prefix",
            "start-after",
        ],
        &[],
    ),
    rule("ListParts", &["max-parts", "part-number-marker", "uploadId"], &[]),
    rule("PostObject", &[], &[BODY, OBJECT]),
    rule("PutBucketAcl", &["acl"], &[BODY, GRANTS]),
    rule("PutBucketCors", &["cors"], &[BODY]),
    rule("PutBucketTagging", &["tagging"], &[BODY]),
    rule("PutBucketVersioning", &["versioning"], &[BODY]),
    rule("PutObject", &[], &[BODY, OBJECT, WRITE]),
    rule("PutObjectAcl", &["acl", "versionId"], &[BODY, GRANTS]),
    rule("PutObjectTagging", &["tagging", "versionId"], &[BODY]),
    rule("UploadPart", &["partNumber", "uploadId"], &[BODY]),
    rule("UploadPartCopy", &["partNumber", "uploadId"], &[SOURCE, &["x-amz-copy-source-range"]]),
];

/// Headers and parameters of every request: of its signature, its owner, and the program that sends it.
const EVERYWHERE: &[&str] =
    &["x-amz-content-sha256", "x-amz-date", "x-amz-expected-bucket-owner", "x-amz-user-agent", "x-id"];

/// Does a header ask for something? Others are for the connection or for logs. A part of an object cannot be put, so that a
/// Content-Range must not put all of it.
fn asks(header: &str) -> bool {
    let conditions =
        ["content-md5", "expires", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"];
    let ranges = ["content-range", "if-range", "range"];
    header.starts_with("x-amz-") || conditions.contains(&header) || ranges.contains(&header)
}

fn covers(listed: &str, name: &str) -> bool {
    listed.strip_suffix('*').map_or(listed == name, |prefix| name.starts_with(prefix))
}

/// Is there anything in a request that the operation does not act on? `query` has names as they are after decoding.
fn check<'a>(
    operation: &str,
    headers: impl Iterator<Item = &'a str>,
    query: impl Iterator<Item = String>,
) -> S3Result<()> {
    let Some(rule) = RULES.iter().find(|rule| rule.operation == operation) else {
        return Err(s3_error!(NotImplemented, "{operation} is not supported"));
    };
    let mut seen = BTreeSet::new();
    for header in headers.filter(|header| asks(header)) {
        let listed = rule.headers.iter().copied().flatten().chain(EVERYWHERE).any(|listed| covers(listed, header));
        if !listed {
            return Err(s3_error!(NotImplemented, "{operation} does not support the header {header}; leave it out"));
        }
        if !seen.insert(header) && !header.starts_with("if-") && header != "range" {
            return Err(s3_error!(InvalidArgument, "the header {header} is there twice; send it once"));
        }
    }
    let mut seen = BTreeSet::new();
    for name in query {
        if !rule.query.iter().chain(EVERYWHERE).any(|listed| *listed == name) {
            return Err(s3_error!(NotImplemented, "{operation} does not support the parameter {name}; leave it out"));
        }
        if !seen.insert(name.clone()) {
            return Err(s3_error!(InvalidArgument, "the parameter {name} is there twice; send it once"));
        }
    }
    Ok(())
}

/// Values of headers that name something we do, or something that we do not.
fn check_values(asked: &Asked, owner: &str) -> S3Result<()> {
    let get = |name: &str| asked.get(name);
    match get("x-amz-acl").as_deref() {
        None | Some("private" | "bucket-owner-full-control") => {}
        Some(_) => {
            return Err(s3_error!(
                AccessControlListNotSupported,
                "the owner of a bucket owns its objects; x-amz-acl may be private or bucket-owner-full-control"
            ));
        }
    }
    match get("x-amz-storage-class").as_deref() {
        None | Some("STANDARD") => {}
        Some(
            "DEEP_ARCHIVE"
            | "EXPRESS_ONEZONE"
            | "FSX_ONTAP"
            | "FSX_OPENZFS"
            | "GLACIER"
            | "GLACIER_IR"
            | "INTELLIGENT_TIERING"
            | "ONEZONE_IA"
            | "OUTPOSTS"
            | "REDUCED_REDUNDANCY"
            | "SNOW"
            | "STANDARD_IA",
        ) => return Err(s3_error!(NotImplemented, "the storage class is STANDARD; a bucket's policy says the rest")),
        Some(_) => return Err(s3_error!(InvalidStorageClass, "there is no such storage class; use STANDARD")),
    }
    match get("x-amz-server-side-encryption").as_deref() {
        None | Some("AES256") => {}
        Some("aws:kms" | "aws:kms:dsse" | "aws:fsx") => {
            return Err(s3_error!(
                NotImplemented,
                "keys of others are not supported; x-amz-server-side-encryption is AES256"
            ));
        }
        Some(_) => return Err(s3_error!(InvalidArgument, "x-amz-server-side-encryption may be AES256")),
    }
    let one_of = |name: &str, values: &[&str]| match get(name) {
        Some(value) if !values.contains(&value.as_str()) => {
            Err(s3_error!(InvalidArgument, "{name} is {value:?}, and none of {}", values.join(", ")))
        }
        _ => Ok(()),
    };
    one_of("x-amz-metadata-directive", &["COPY", "REPLACE"])?;
    one_of("x-amz-tagging-directive", &["COPY", "REPLACE"])?;
    one_of("x-amz-checksum-mode", &["ENABLED"])?;
    one_of("x-amz-bucket-object-lock-enabled", &["true", "false"])?;
    one_of("x-amz-object-ownership", &["BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter"])?;
    for (name, only) in
        [("x-amz-bucket-object-lock-enabled", "false"), ("x-amz-object-ownership", "BucketOwnerEnforced")]
    {
        if get(name).is_some_and(|value| value != only) {
            return Err(s3_error!(NotImplemented, "{name} may be {only} only"));
        }
    }
    // Without a source there are no tags to choose from.
    if get("x-amz-copy-source").is_some()
        && get("x-amz-tagging").is_some()
        && get("x-amz-tagging-directive").as_deref() != Some("REPLACE")
    {
        return Err(s3_error!(InvalidRequest, "x-amz-tagging needs x-amz-tagging-directive: REPLACE beside it"));
    }
    for name in ["x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"] {
        if get(name).is_some_and(|expected| expected != owner) {
            return Err(s3_error!(AccessDenied, "the bucket is not of the owner that {name} says"));
        }
    }
    Ok(())
}

/// Names of the parameters of a query.
fn names(query: &str) -> impl Iterator<Item = String> + '_ {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| super::paths::decoded(pair.split('=').next().unwrap_or_default()))
}

/// Lets through what is signed and acted on in all its parts.
pub(super) struct Rules;

#[async_trait::async_trait]
impl S3Access for Rules {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(Caller(owner)) = context.extensions_mut().get::<Caller>().cloned() else {
            return Err(s3_error!(AccessDenied, "the request is not signed"));
        };
        let asked = context.extensions_mut().get::<Asked>().cloned().unwrap_or_default();
        let query = context.uri().query().unwrap_or_default().to_owned();
        check(context.s3_op().name(), asked.names(), names(&query))?;
        check_values(&asked, &owner)
    }
}

/// The fields of a form that are about the object, as headers of a put.
pub(super) fn check_form(asked: &Asked, owner: &str) -> S3Result<()> {
    check("PostObject", asked.names(), std::iter::empty())?;
    check_values(asked, owner)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    fn code(operation: &str, headers: &[&str], query: &str) -> String {
        let checked = check(operation, headers.iter().copied(), names(query));
        checked.map_or_else(|error| error.code().as_str().to_owned(), |()| "ok".into())
    }

    /// Documented headers that nothing here acts on.
    const UNSUPPORTED: &[&str] = &[
        "content-range",
        "x-amz-bypass-governance-retention",
        "x-amz-expected-nothing",
        "x-amz-if-match-last-modified-time",
        "x-amz-if-match-size",
        "x-amz-mfa",
        "x-amz-object-lock-legal-hold",
        "x-amz-object-lock-mode",
        "x-amz-object-lock-retain-until-date",
        "x-amz-optional-object-attributes",
        "x-amz-request-payer",
        "x-amz-security-token",
        "x-amz-server-side-encryption-aws-kms-key-id",
        "x-amz-server-side-encryption-bucket-key-enabled",
        "x-amz-server-side-encryption-context",
        "x-amz-server-side-encryption-customer-algorithm",
        "x-amz-server-side-encryption-customer-key",
        "x-amz-server-side-encryption-customer-key-md5",
        "x-amz-website-redirect-location",
        "x-amz-write-offset-bytes",
    ];

    #[test]
    fn every_operation_refuses_what_it_does_not_act_on() {
        let mut asked = 0;
        for rule in RULES {
            let name = rule.operation;
            for header in UNSUPPORTED {
                assert_eq!(code(name, &[header], ""), "NotImplemented", "{name}: {header}");
            }
            for query in ["unknown", "unknown=1", "torrent", "%74orrent", "retention=x", "x-amz-unknown=1"] {
                assert_eq!(code(name, &[], query), "NotImplemented", "{name}: {query}");
            }
            // What one operation acts on, another one refuses.
            let all: BTreeSet<&str> =
                RULES.iter().flat_map(|rule| rule.headers.iter().copied().flatten().copied()).collect();
            for header in all {
                let listed = rule.headers.iter().copied().flatten().any(|listed| *listed == header);
                let header = header.replace('*', "a");
                let expected = if listed { "ok" } else { "NotImplemented" };
                assert_eq!(code(name, &[&header], ""), expected, "{name}: {header}");
                asked += 1;
            }
            for query in rule.query {
                assert_eq!(code(name, &["user-agent", "x-amz-date"], query), "ok", "{name}: {query}");
                assert_eq!(code(name, &[], &format!("{query}=1&{query}=2")), "InvalidArgument", "{name}: {query}");
            }
        }
        assert!(asked > 500, "{asked}");
        assert_eq!(code("PutObject", &["x-amz-acl", "x-amz-acl"], ""), "InvalidArgument");
        assert_eq!(code("PutBucketPolicy", &[], "policy"), "NotImplemented");
        assert_eq!(code("GetObject", &[], "acl"), "NotImplemented");
    }

    #[test]
    fn values_are_honoured_or_refused() {
        for (name, value, expected) in [
            ("x-amz-acl", "private", "ok"),
            ("x-amz-acl", "public-read", "AccessControlListNotSupported"),
            ("x-amz-storage-class", "STANDARD", "ok"),
            ("x-amz-storage-class", "GLACIER", "NotImplemented"),
            ("x-amz-storage-class", "BOGUS", "InvalidStorageClass"),
            ("x-amz-server-side-encryption", "AES256", "ok"),
            ("x-amz-server-side-encryption", "aws:kms", "NotImplemented"),
            ("x-amz-server-side-encryption", "BOGUS", "InvalidArgument"),
            ("x-amz-metadata-directive", "REPLACE", "ok"),
            ("x-amz-metadata-directive", "BOGUS", "InvalidArgument"),
            ("x-amz-tagging-directive", "REPLACE", "ok"),
            ("x-amz-tagging-directive", "BOGUS", "InvalidArgument"),
            ("x-amz-bucket-object-lock-enabled", "true", "NotImplemented"),
            ("x-amz-object-ownership", "ObjectWriter", "NotImplemented"),
            ("x-amz-expected-bucket-owner", "local", "ok"),
            ("x-amz-expected-bucket-owner", "other", "AccessDenied"),
            ("x-amz-source-expected-bucket-owner", "other", "AccessDenied"),
            ("x-amz-checksum-mode", "DISABLED", "InvalidArgument"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            let checked = check_values(&Asked::new(headers), "local");
            let code = checked.map_or_else(|error| error.code().as_str().to_owned(), |()| "ok".into());
            assert_eq!(code, expected, "{name}: {value}");
        }
    }
}
