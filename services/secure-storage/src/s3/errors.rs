//! Which S3 error answers what. Codes follow from variants and from the class of a refusal, never from a text.

use futures::StreamExt as _;
use s3s::{S3Error, S3ErrorCode, dto::StreamingBlob};

use super::{body::Expected, versions};
use crate::{
    domain::{objects, uploads},
    objects::{BodyError, Error},
};

/// Bytes of a refused body that are read at most.
const DRAIN_BYTES_MAX: usize = 1 << 20;
/// How long the next of them may take.
const DRAIN_LIMIT: std::time::Duration = std::time::Duration::from_millis(500);

/// The S3 code of an error; that of a body is [`Expected::failure`] where the request is known.
fn code(error: &Error) -> S3ErrorCode {
    match error {
        Error::NoBucket(_) => S3ErrorCode::NoSuchBucket,
        Error::Denied(_) => S3ErrorCode::AccessDenied,
        Error::Object(refused) => match refused {
            objects::Refused::Precondition => S3ErrorCode::PreconditionFailed,
            objects::Refused::NoUpload => S3ErrorCode::NoSuchUpload,
            objects::Refused::NoObject | objects::Refused::Hidden { .. } => S3ErrorCode::NoSuchKey,
            objects::Refused::NoVersion => S3ErrorCode::NoSuchVersion,
            objects::Refused::Marker { .. } => S3ErrorCode::MethodNotAllowed,
        },
        Error::Conflict => S3ErrorCode::ConditionalRequestConflict,
        Error::Upload(refused) => match refused {
            uploads::Refused::NoUpload => S3ErrorCode::NoSuchUpload,
            uploads::Refused::PartNumber(_) => S3ErrorCode::InvalidArgument,
            uploads::Refused::PartCount(_) => S3ErrorCode::MalformedXML,
            uploads::Refused::PartOrder => S3ErrorCode::InvalidPartOrder,
            uploads::Refused::PartUnknown { .. } | uploads::Refused::PartChecksum { .. } => S3ErrorCode::InvalidPart,
            uploads::Refused::ObjectChecksum => S3ErrorCode::BadDigest,
            uploads::Refused::ChecksumKind { .. } | uploads::Refused::Size { .. } => S3ErrorCode::InvalidRequest,
            uploads::Refused::PartTooSmall { .. } => S3ErrorCode::EntityTooSmall,
        },
        Error::Invalid(_) => S3ErrorCode::InvalidArgument,
        Error::Refused(refusal) => {
            S3ErrorCode::from_bytes(refusal.code.s3().as_bytes()).unwrap_or(S3ErrorCode::InvalidRequest)
        }
        Error::Busy(_) => S3ErrorCode::SlowDown,
        Error::Unavailable(_) | Error::Lost(_) => S3ErrorCode::ServiceUnavailable,
        Error::Body(error) => of_body(error),
        Error::Key(_) | Error::Internal(_) => S3ErrorCode::InternalError,
    }
}

/// The S3 code of a body that did not arrive.
fn of_body(error: &BodyError) -> S3ErrorCode {
    match error {
        BodyError::Slow { .. } | BodyError::Short { .. } | BodyError::Broken { .. } => S3ErrorCode::IncompleteBody,
        BodyError::Digest(_) => S3ErrorCode::BadDigest,
        BodyError::Trailer(_) => S3ErrorCode::Custom("MalformedTrailerError".into()),
    }
}

/// The answer to a body that did not arrive.
pub(super) fn body_error(error: &BodyError) -> S3Error {
    failed(of_body(error), error.to_string())
}

/// An S3 error; one with a code of our own is the caller's fault.
pub(super) fn failed(code: S3ErrorCode, text: String) -> S3Error {
    let own = matches!(code, S3ErrorCode::Custom(_));
    let mut error = S3Error::with_message(code, text);
    if own {
        error.set_status_code(http::StatusCode::BAD_REQUEST);
    }
    error
}

impl From<Error> for S3Error {
    fn from(error: Error) -> Self {
        let code = code(&error);
        if matches!(code, S3ErrorCode::InternalError) {
            tracing::error!(error = &error as &dyn std::error::Error, "an S3 request failed");
        }
        let mut answer = failed(code, error.to_string());
        if let Error::Object(refused) = &error
            && let Some(headers) = of_marker(refused)
        {
            answer.set_headers(headers);
        }
        answer
    }
}

/// The headers of an answer about a delete marker.
fn of_marker(refused: &objects::Refused) -> Option<http::HeaderMap> {
    let (marker, modified) = match refused {
        objects::Refused::Hidden { marker } => (marker, None),
        objects::Refused::Marker { marker, modified } => (marker, Some(*modified)),
        _ => return None,
    };
    let mut headers = http::HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
    headers.insert("x-amz-delete-marker", http::HeaderValue::from_static("true"));
    if let Ok(value) = versions::shown(marker).try_into() {
        headers.insert("x-amz-version-id", value);
    }
    if let Some(modified) = modified {
        headers.insert(http::header::ALLOW, http::HeaderValue::from_static("DELETE"));
        let seconds = u64::try_from(modified.as_millis().div_euclid(1_000)).unwrap_or_default();
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        if let Ok(value) = httpdate::fmt_http_date(at).try_into() {
            headers.insert(http::header::LAST_MODIFIED, value);
        }
    }
    Some(headers)
}

/// The answer to a request with a body. A caller that still sends does not read a refusal, so that a little of the rest
/// is read first.
pub(crate) async fn answer<T>(
    done: Result<T, Error>,
    expected: &Expected,
    body: &mut StreamingBlob,
) -> Result<T, S3Error> {
    let error = match done {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    let code = match &error {
        Error::Body(BodyError::Broken { received, .. }) => expected.failure(*received),
        error => code(error),
    };
    let mut left = DRAIN_BYTES_MAX;
    while left > 0
        && let Ok(Some(Ok(bytes))) = tokio::time::timeout(DRAIN_LIMIT, body.next()).await
    {
        left = left.saturating_sub(bytes.len());
    }
    if matches!(code, S3ErrorCode::InternalError) {
        return Err(error.into());
    }
    Err(failed(code, error.to_string()))
}

#[cfg(test)]
mod tests {
    use mesh_proto::{Refusal, RefusalCode};

    use super::*;

    #[test]
    fn every_class_of_refusal_has_an_s3_code_whatever_its_text() {
        for row in mesh_proto::refusal::MAPPINGS {
            let error = Error::Refused(Refusal::new(row.code, "7f3a", "c01d"));
            assert_eq!(code(&error).as_str(), row.s3, "{:?}", row.code);
        }
        assert_eq!(RefusalCode::AlreadyOwned.s3(), "BucketAlreadyOwnedByYou");
    }
}
