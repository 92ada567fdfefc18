//! The headers of a request as its sender wrote them. `s3s` reads some of them in its own way, or refuses what S3 and RFC 9110
//! take; those are read here, by [`super::conditions`] and [`super::digests`], and are hidden from it.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use s3s::S3Request;

/// The owner whose key signed a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) String);

/// All headers of a request, those that were in the query of a presigned URL too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked(Arc<HeaderMap>);

impl Asked {
    /// Of these headers.
    pub(crate) fn new(headers: HeaderMap) -> Self {
        Self(Arc::new(headers))
    }

    /// Of a request.
    pub(crate) fn of<T>(request: &S3Request<T>) -> Self {
        request.extensions.get::<Self>().cloned().unwrap_or_else(|| Self::new(request.headers.clone()))
    }

    /// All but those whose names begin with this.
    pub(crate) fn without(&self, prefix: &str) -> Self {
        let kept = self.0.iter().filter(|(name, _)| !name.as_str().starts_with(prefix));
        let mut headers = HeaderMap::new();
        kept.for_each(|(name, value)| {
            headers.append(name, value.clone());
        });
        Self::new(headers)
    }

    /// The name of each header, once for each line.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// A header; lines of the same name are one list, as RFC 9110 says.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        let lines: Vec<String> = self
            .0
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
            .collect();
        (!lines.is_empty()).then(|| lines.join(", "))
    }
}

/// Is a header hidden from `s3s`?
pub(crate) fn is_hidden(name: &HeaderName) -> bool {
    let name = name.as_str();
    let read_here = [
        "authorization",
        "content-md5",
        "expires",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "range",
        "x-amz-content-sha256",
        "x-amz-decoded-content-length",
        "x-amz-mp-object-size",
        "x-amz-sdk-checksum-algorithm",
        "x-amz-server-side-encryption",
        "x-amz-storage-class",
        "x-amz-trailer",
    ];
    read_here.contains(&name)
        || name.starts_with("x-amz-checksum-")
        || name.starts_with("x-amz-copy-source-if-")
        || name == "x-amz-copy-source-range"
}
