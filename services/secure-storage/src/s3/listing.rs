//! Listings: pages of keys, rolled up at a delimiter.

use std::ops::Bound::{self, Excluded, Included, Unbounded};

use mesh_proto::{Event as _, object::ObjectStored};
use s3s::{S3Result, dto, s3_error};

use crate::objects::{
    Error, ObjectStore,
    catalogue::{Entry, Listing},
};

/// Lines of a listing at most, as in S3.
pub(crate) const LIST_MAX: i32 = 1_000;

/// A time as S3 writes it.
pub(crate) fn time(at: mesh_proto::Timestamp) -> dto::Timestamp {
    let nanos = u64::try_from(at.as_nanos().max(0)).unwrap_or_default();
    (std::time::UNIX_EPOCH + std::time::Duration::from_nanos(nanos)).into()
}

/// A version in a listing.
pub(crate) struct Item<'a> {
    pub(crate) key: &'a str,
    pub(crate) entry: &'a Entry,
    pub(crate) is_latest: bool,
}

/// One page of a listing.
pub(crate) struct Page<T> {
    pub(crate) contents: Vec<T>,
    pub(crate) prefixes: Vec<dto::CommonPrefix>,
    /// Key, and version if it is not a prefix, after which the next page begins; `None` at the end.
    pub(crate) next: Option<(String, Option<String>)>,
}

impl<T> Page<T> {
    fn empty() -> Self {
        Self { contents: vec![], prefixes: vec![], next: None }
    }
}

/// What a page is of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) delimiter: &'a str,
    /// The key after which it begins.
    pub(crate) after: &'a str,
    /// The version of that key after which it begins, if not after all of them.
    pub(crate) after_version: Option<&'a str>,
    pub(crate) max: usize,
}

/// One page of a listing: items with this prefix, rolled up at the delimiter.
fn page<'a, T>(
    items: impl Iterator<Item = Item<'a>>,
    wanted: Wanted<'_>,
    line: Line<'_>,
    show: impl Fn(Item<'a>) -> T,
) -> Page<T> {
    let Wanted { prefix, delimiter, after, max, .. } = wanted;
    let mut page = Page::empty();
    let (mut last, mut rolled) = ((String::new(), None), None::<String>);
    for item in items {
        let key = item.key;
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
                last = (group.to_owned(), None);
            }
            None => {
                last = (key.to_owned(), Some(item.entry.version.clone()));
                page.contents.push(show(item));
            }
        }
    }
    page
}

/// The visible objects of a listing.
fn visible<'a>(listing: &'a Listing, wanted: Wanted<'_>) -> impl Iterator<Item = Item<'a>> {
    let keys = listing.range((wanted.start(), Unbounded));
    keys.filter_map(|(key, versions)| Some(Item { key, entry: versions.visible()?, is_latest: true }))
}

/// All versions of a listing.
fn versions<'a>(listing: &'a Listing, wanted: Wanted<'_>) -> impl Iterator<Item = Item<'a>> {
    let (after, after_version) = (wanted.after.to_owned(), wanted.after_version.map(ToOwned::to_owned));
    listing.range((wanted.start(), Unbounded)).flat_map(move |(key, versions)| {
        // A version that was deleted since hides none.
        let seen = after_version.as_deref().filter(|_| *key == after);
        let seen = seen.and_then(|seen| versions.all().position(|entry| entry.version == seen));
        let all = versions.all().enumerate().skip(seen.map_or(0, |at| at + 1));
        all.map(move |(index, entry)| Item { key, entry, is_latest: index == 0 })
    })
}

impl Wanted<'_> {
    fn start(&self) -> Bound<String> {
        match self.after >= self.prefix && !self.after.is_empty() {
            true if self.after_version.is_some() => Included(self.after.to_owned()),
            true => Excluded(self.after.to_owned()),
            false => Included(self.prefix.to_owned()),
        }
    }
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
    /// One page of a bucket, of its visible objects or of all versions.
    pub(crate) async fn list<T>(
        &self,
        owner: &str,
        bucket: &str,
        of_versions: bool,
        wanted: Wanted<'_>,
        line: Line<'_>,
        show: impl Fn(Item<'_>) -> T,
    ) -> S3Result<Page<T>> {
        let (token, of) = self.bucket(owner, bucket).await?;
        self.catch_up(ObjectStored::STREAM).await?;
        Ok(self.view.read(|view| match view.listing(&token, of.epoch) {
            None => Page::empty(),
            Some(listing) if of_versions => page(versions(listing, wanted), wanted, line, show),
            Some(listing) => page(visible(listing, wanted), wanted, line, show),
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

/// An owner as S3 shows it.
pub(crate) fn owner(name: &str) -> dto::Owner {
    dto::Owner { id: Some(name.to_owned()), display_name: Some(name.to_owned()) }
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
    pub(crate) owner: Option<&'a str>,
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

    /// An object as it is shown.
    pub(crate) fn object(&self, item: Item<'_>) -> dto::Object {
        dto::Object {
            key: Some(self.show(item.key)),
            e_tag: Some(dto::ETag::Strong(item.entry.etag.clone())),
            size: Some(item.entry.size as i64),
            last_modified: Some(time(item.entry.modified)),
            storage_class: Some(dto::ObjectStorageClass::from_static(dto::ObjectStorageClass::STANDARD)),
            owner: self.owner.map(owner),
            ..dto::Object::default()
        }
    }

    /// A text as it is shown.
    pub(crate) fn show(&self, text: &str) -> String {
        if self.encoded { url_encoded(text) } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::catalogue::Versions;

    /// A listing of keys, each with a number of versions; without any, a delete marker.
    fn listing(keys: &[(&str, usize)]) -> Listing {
        let entry = |version: usize| Entry { version: version.to_string(), ..Entry::default() };
        let versions = |count: usize| Versions {
            latest: Entry { is_marker: count == 0, ..entry(0) },
            older: (1..count).map(entry).collect(),
        };
        keys.iter().map(|(key, count)| ((*key).to_owned(), versions(*count))).collect()
    }

    /// Walks all pages of `max` lines and gives every line once.
    fn walk(all: &Listing, of_versions: bool, prefix: &str, delimiter: &str, max: usize) -> Vec<String> {
        let (mut after, mut lines) = ((String::new(), None), vec![]);
        loop {
            let wanted = Wanted { prefix, delimiter, after: &after.0, after_version: after.1.as_deref(), max };
            let show = |item: Item<'_>| match of_versions {
                true => format!("{}:{}{}", item.key, item.entry.version, if item.is_latest { "!" } else { "" }),
                false => item.key.to_owned(),
            };
            let found = match of_versions {
                true => page(versions(all, wanted), wanted, Line::default(), show),
                false => page(visible(all, wanted), wanted, Line::default(), show),
            };
            assert!(found.contents.len() + found.prefixes.len() <= max);
            lines.extend(found.contents);
            lines.extend(found.prefixes.into_iter().filter_map(|p| p.prefix));
            match found.next {
                Some((key, version)) => after = (key, version.filter(|_| of_versions)),
                None => break,
            }
        }
        lines.sort();
        lines
    }

    #[test]
    fn pages_of_versions_give_every_version_once() {
        let all = listing(&[("a", 3), ("b/1", 2), ("b/2", 0), ("c", 1)]);
        for max in 1..8 {
            assert_eq!(walk(&all, true, "", "", max), ["a:0!", "a:1", "a:2", "b/1:0!", "b/1:1", "b/2:0!", "c:0!"]);
            assert_eq!(walk(&all, true, "", "/", max), ["a:0!", "a:1", "a:2", "b/", "c:0!"], "{max}");
            assert_eq!(walk(&all, false, "", "", max), ["a", "b/1", "c"], "{max}");
            assert_eq!(walk(&all, false, "b/2", "", max), Vec::<String>::new(), "{max}");
        }
        // Of a version that was deleted since, all others of the key follow.
        let wanted = Wanted { after: "a", after_version: Some("gone"), max: 9, ..Wanted::default() };
        assert_eq!(versions(&all, wanted).count(), 7);
        let wanted = Wanted { after: "a", after_version: Some("2"), max: 9, ..Wanted::default() };
        assert_eq!(versions(&all, wanted).count(), 4);
    }

    #[test]
    fn pages_of_any_size_give_every_line_once() {
        let keys = ["a", "b/1", "b/2", "b/3", "c", "d/e/1", "d/f", "d0", "é"];
        let all = listing(&keys.map(|key| (key, 1)));
        for max in 1..12 {
            assert_eq!(walk(&all, false, "", "", max), keys, "{max}");
            assert_eq!(walk(&all, false, "", "/", max), ["a", "b/", "c", "d/", "d0", "é"], "{max}");
            assert_eq!(walk(&all, false, "d/", "/", max), ["d/e/", "d/f"], "{max}");
            assert_eq!(walk(&all, false, "b/", "", max), ["b/1", "b/2", "b/3"], "{max}");
            assert!(walk(&all, false, "x", "/", max).is_empty());
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
