//! What a request says of its body: digests in headers and trailers, lengths, and the last chunk.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{Extensions, HeaderMap};
use mesh_proto::object::Checksum;
use s3s::{S3Result, TrailingHeaders, s3_error};

use super::{
    asked::Asked,
    body::{Arrival, CHUNK_MAX},
};
use crate::{
    domain::checksums::Algorithm,
    objects::{Announced, BodyError, Ending},
};

/// Is the body in chunks of its own, beside those of HTTP?
fn is_chunked(asked: &Asked) -> bool {
    asked.get("x-amz-content-sha256").is_some_and(|value| value.starts_with("STREAMING-"))
}

/// The algorithm and value of the one checksum that headers give.
fn given(asked: &Asked) -> S3Result<Option<(Algorithm, Vec<u8>)>> {
    let mut found = None;
    for algorithm in Algorithm::ALL {
        let Some(text) = asked.get(algorithm.header()) else { continue };
        let Some(value) = algorithm.value(&text) else {
            let (name, bytes) = (algorithm.header(), algorithm.bytes());
            return Err(s3_error!(InvalidRequest, "{name} is not the base64 text of {bytes} bytes"));
        };
        if found.replace((algorithm, value)).is_some() {
            return Err(s3_error!(InvalidRequest, "the request has several x-amz-checksum headers; send one"));
        }
    }
    Ok(found)
}

/// The algorithm whose value the trailer brings.
fn trailing(asked: &Asked) -> S3Result<Option<Algorithm>> {
    let Some(name) = asked.get("x-amz-trailer") else { return Ok(None) };
    let name = name.to_ascii_lowercase();
    let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.header() == name);
    if algorithm.is_none() || !is_chunked(asked) {
        return Err(s3_error!(
            InvalidRequest,
            "x-amz-trailer names one x-amz-checksum header, of a body with x-amz-content-sha256: STREAMING-…-TRAILER"
        ));
    }
    Ok(algorithm)
}

/// The algorithm that a header names.
pub(super) fn named(asked: &Asked, header: &str) -> S3Result<Option<Algorithm>> {
    let Some(text) = asked.get(header) else { return Ok(None) };
    match Algorithm::named(&text.to_ascii_uppercase()) {
        Some(algorithm) => Ok(Some(algorithm)),
        None => Err(s3_error!(InvalidRequest, "{header} may be CRC32, CRC32C, CRC64NVME, SHA1 or SHA256")),
    }
}

/// The kind of checksum that a request names: is it one of the checksums of the parts?
pub(super) fn is_composite(asked: &Asked) -> S3Result<Option<bool>> {
    match asked.get("x-amz-checksum-type").as_deref() {
        None => Ok(None),
        Some("COMPOSITE") => Ok(Some(true)),
        Some("FULL_OBJECT") => Ok(Some(false)),
        Some(_) => Err(s3_error!(InvalidRequest, "x-amz-checksum-type is neither COMPOSITE nor FULL_OBJECT")),
    }
}

/// What follows the body of a request.
struct Trailers {
    algorithm: Option<Algorithm>,
    headers: Option<TrailingHeaders>,
    chunks: Option<Arrival>,
}

impl Ending for Trailers {
    fn is_whole(&self) -> bool {
        self.chunks.as_ref().is_none_or(Arrival::has_last_chunk)
    }

    fn trailer(&self, algorithm: Algorithm) -> Result<Option<Vec<u8>>, BodyError> {
        if self.algorithm != Some(algorithm) {
            return Ok(None);
        }
        let value = |headers: &HeaderMap| {
            headers.get(algorithm.header()).and_then(|v| v.to_str().ok()).and_then(|text| algorithm.value(text.trim()))
        };
        let value = self.headers.as_ref().and_then(|headers| headers.read(value)).flatten();
        value.map(Some).ok_or(BodyError::Trailer(algorithm.header()))
    }
}

/// What a request announces of its body.
pub(super) fn announced(asked: &Asked, extensions: &Extensions) -> S3Result<Announced> {
    let md5 = match asked.get("content-md5") {
        None => None,
        Some(text) => match BASE64_STANDARD.decode(text).ok().and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()) {
            Some(md5) => Some(md5),
            None => return Err(s3_error!(InvalidDigest, "Content-MD5 is not the base64 text of 16 bytes")),
        },
    };
    let (given, trailing) = (given(asked)?, trailing(asked)?);
    let announced = given.as_ref().map(|(algorithm, _)| *algorithm).or(trailing);
    if given.is_some() && trailing.is_some() {
        return Err(s3_error!(InvalidRequest, "the request has a checksum in a header and one in a trailer; send one"));
    }
    if let Some(sdk) = named(asked, "x-amz-sdk-checksum-algorithm")?
        && announced != Some(sdk)
    {
        let name = sdk.header();
        return Err(s3_error!(InvalidRequest, "x-amz-sdk-checksum-algorithm is {}, without {name}", sdk.name()));
    }
    let chunked = is_chunked(asked);
    if !chunked && asked.get("x-amz-decoded-content-length").is_some() {
        return Err(s3_error!(
            InvalidRequest,
            "x-amz-decoded-content-length is for a body in chunks, which x-amz-content-sha256: STREAMING-… announces"
        ));
    }
    let length = if chunked { "x-amz-decoded-content-length" } else { "content-length" };
    let bytes = match asked.get(length) {
        None => None,
        Some(text) => match text.parse() {
            Ok(bytes) => Some(bytes),
            Err(_) => return Err(s3_error!(InvalidArgument, "{length} is not a number of bytes")),
        },
    };
    let chunks = extensions.get::<Arrival>().cloned().filter(|_| chunked);
    let headers = extensions.get::<TrailingHeaders>().cloned();
    Ok(Announced {
        bytes,
        md5,
        algorithm: announced,
        value: given.map(|(_, value)| value),
        chunk_bytes: if chunked { CHUNK_MAX } else { 0 },
        ending: Some(Arc::new(Trailers { algorithm: trailing, headers, chunks })),
    })
}

/// The checksum of a whole object that Complete claims.
pub(super) fn claimed(asked: &Asked) -> S3Result<Option<(Algorithm, String)>> {
    let mut found = None;
    for algorithm in Algorithm::ALL {
        let Some(text) = asked.get(algorithm.header()) else { continue };
        let value = text.split('-').next().unwrap_or_default();
        if algorithm.value(value).is_none() {
            return Err(s3_error!(InvalidRequest, "{} is not a value of its algorithm", algorithm.header()));
        }
        if found.replace((algorithm, text)).is_some() {
            return Err(s3_error!(InvalidRequest, "the request has several x-amz-checksum headers; send one"));
        }
    }
    Ok(found)
}

/// The value of a checksum, if it is of this algorithm.
pub(super) fn value(checksum: Option<&Checksum>, algorithm: Algorithm) -> Option<String> {
    checksum.filter(|checksum| checksum.algorithm == algorithm.name()).map(|checksum| checksum.value.clone())
}
