//! Paths and queries of requests, as they are after decoding.

use percent_encoding::percent_decode_str;

/// A name or value of a query.
pub(super) fn decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// A part of a path.
pub(super) fn decoded_path(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The path without `/s3` before the bucket; no bucket has so short a name.
pub(super) fn path(path: &str) -> &str {
    match path.strip_prefix("/s3") {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}
