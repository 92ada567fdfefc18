//! What `libs/fuzzing` tries: the readers of what clients write, with what must hold of what they read.

use std::ops::Range;

use http::HeaderMap;
use mesh_proto::object::ObjectStored;

use super::{
    asked::Asked,
    conditions::{Span, of_copy, of_range, of_read, of_write},
    xml,
};

/// A body of XML as it is read, if its root may have this name.
pub fn plain(body: &[u8], root: &str) -> Option<String> {
    xml::plain(body, root).ok()
}

/// Holds the conditions and ranges of these headers against an object of this size; the bytes that are sent, if some are.
pub fn ranges(headers: HeaderMap, size: u64) -> Option<Range<u64>> {
    let (asked, object) = (Asked::new(headers), ObjectStored { size, etag: "a".into(), ..ObjectStored::default() });
    let _ = (of_write(&asked).is_ok(), of_read(&asked, "x-amz-copy-source-", &object).is_ok());
    let _ = of_read(&asked, "", &object).is_ok();
    let copied = of_copy(&asked, size).ok().filter(|range| *range != (0..size));
    match of_range(&asked, &object) {
        Span::Part(range) => Some(range),
        Span::Whole | Span::Unsatisfiable => copied,
    }
}
