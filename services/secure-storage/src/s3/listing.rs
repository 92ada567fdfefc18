//! Listings: pages of keys, rolled up at a delimiter.

use mesh_proto::{Event as _, object::ObjectStored};
use s3s::{S3Result, dto, s3_error};

use crate::objects::{Error, ObjectStore, catalogue::Entry};

/// Lines of a listing at most, as in S3.
pub(crate) const LIST_MAX: i32 = 1_000;

/// A time as S3 writes it.
pub(crate) fn time(at: mesh_proto::Timestamp) -> dto::Timestamp {
    let nanos = u64::try_from(at.as_nanos().max(0)).unwrap_or_default();
    (std::time::UNIX_EPOCH + std::time::Duration::from_nanos(nanos)).into()
}

/// One page of a listing.
pub(crate) struct Page {
    pub(crate) contents: Vec<dto::Object>,
    pub(crate) prefixes: Vec<dto::CommonPrefix>,
    /// Where the next page begins; `None` at the end.
    pub(crate) next: Option<String>,
}

/// One page of a listing: keys after `after` with this prefix, rolled up at the delimiter.
fn page<'a>(
    listing: impl Iterator<Item = (&'a String, &'a Entry)>,
    prefix: &str,
    delimiter: &str,
    after: &str,
    max: usize,
    line: Line<'_>,
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
            // One line for all keys below; the page after it goes on behind them.
            Some(group) if rolled.as_deref() == Some(group) || after.starts_with(group) && after >= group => continue,
            _ => {}
        }
        if page.contents.len() + page.prefixes.len() >= max {
            // No page follows a page of no lines.
            page.next = (max > 0).then_some(last);
            break;
        }
        match group {
            Some(group) => {
                page.prefixes.push(dto::CommonPrefix { prefix: Some(line.show(group)) });
                rolled = Some(group.to_owned());
                last = group.to_owned();
            }
            None => {
                page.contents.push(dto::Object {
                    key: Some(line.show(key)),
                    e_tag: Some(dto::ETag::Strong(entry.etag.clone())),
                    size: Some(entry.size as i64),
                    last_modified: Some(time(entry.modified)),
                    storage_class: Some(dto::ObjectStorageClass::from_static(dto::ObjectStorageClass::STANDARD)),
                    owner: line
                        .owner
                        .map(|owner| dto::Owner { id: Some(owner.to_owned()), display_name: Some(owner.to_owned()) }),
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

impl ObjectStore {
    /// One page of a bucket: prefix, delimiter, and the key after which it begins.
    pub(crate) async fn list(
        &self,
        owner: &str,
        bucket: &str,
        (prefix, delimiter, after): (&str, &str, &str),
        max: usize,
        line: Line<'_>,
    ) -> S3Result<Page> {
        let (token, of) = self.bucket(owner, bucket).await?;
        self.catch_up(ObjectStored::STREAM).await?;
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
            page(listing.range((start, Unbounded)), prefix, delimiter, after, max, line)
        }))
    }

    /// Has a bucket neither objects nor uploads?
    pub(crate) async fn is_empty(&self, owner: &str, bucket: &str) -> Result<bool, Error> {
        let (token, of) = self.bucket(owner, bucket).await?;
        self.catch_up(ObjectStored::STREAM).await?;
        Ok(self.view.read(|view| {
            let objects = view.listing(&token, of.epoch).is_some_and(|listing| !listing.is_empty());
            let uploads = view.uploads.iter().any(|((b, _), u)| *b == token && u.started.epoch == of.epoch);
            let completing = view.completing.keys().any(|(b, _)| *b == token);
            !objects && !uploads && !completing
        }))
    }
}

/// The number of lines asked for, within bounds.
pub(crate) fn lines(max: Option<i32>) -> S3Result<usize> {
    match max.unwrap_or(LIST_MAX) {
        max if max < 0 => Err(s3_error!(InvalidArgument, "max-keys is negative")),
        max => Ok(max.min(LIST_MAX) as usize),
    }
}

/// How keys and other texts of a listing are shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Line<'a> {
    /// Are they percent-encoded?
    encoded: bool,
    /// The owner that each object is shown with.
    owner: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// As a request asks for.
    pub(crate) fn new(encoding: Option<&dto::EncodingType>, owner: Option<&'a str>) -> S3Result<Self> {
        match encoding.map(dto::EncodingType::as_str) {
            None => Ok(Self { encoded: false, owner }),
            Some("url") => Ok(Self { encoded: true, owner }),
            Some(_) => Err(s3_error!(InvalidArgument, "encoding-type may be url")),
        }
    }

    /// A text as it is shown.
    pub(crate) fn show(&self, text: &str) -> String {
        if self.encoded { url_encoded(text) } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
            let found = page(all.range((start, Unbounded)), prefix, delimiter, &after, max, Line::default());
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
    #[test]
    fn texts_are_shown_encoded_only_if_asked() {
        let line = |encoding: Option<&'static str>| {
            Line::new(encoding.map(dto::EncodingType::from_static).as_ref(), None)
                .map(|line| line.show("a%2B+ /ü\u{1}"))
        };
        assert_eq!(line(None).unwrap(), "a%2B+ /ü\u{1}");
        assert_eq!(line(Some("url")).unwrap(), "a%252B%2B%20/%C3%BC%01");
        assert_eq!(line(Some("bogus")).unwrap_err().code().as_str(), "InvalidArgument");
    }
}
