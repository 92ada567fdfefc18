//! Conditions and ranges of requests, by RFC 9110 and S3.

use std::{ops::Range, time::SystemTime};

use mesh_proto::object::ObjectStored;
use s3s::{S3Result, s3_error};

use super::asked::Asked;
use crate::domain::objects::Condition;

/// An entity tag of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tag {
    text: String,
    weak: bool,
}

/// The tags of If-Match or If-None-Match; `None` if the text is not a list of tags. A tag without quotation marks is taken as S3
/// does.
fn tags(text: &str) -> Option<Vec<Tag>> {
    let (mut tags, mut rest) = (vec![], text.trim());
    while !rest.is_empty() {
        let (weak, after) = match rest.strip_prefix("W/") {
            Some(after) => (true, after),
            None => (false, rest),
        };
        let (tag, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => {
                let end = after.find(',').unwrap_or(after.len());
                let (tag, after) = after.split_at(end);
                let tag = tag.trim();
                if tag.is_empty() || tag.contains(['"', ' ', '\t']) {
                    return None;
                }
                (tag, after)
            }
        };
        tags.push(Tag { text: tag.to_owned(), weak });
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start_matches([' ', '\t', ',']),
            None if after.is_empty() => "",
            None => return None,
        };
    }
    (!tags.is_empty()).then_some(tags)
}

fn tag_list(name: &str, asked: &Asked) -> S3Result<Option<Vec<Tag>>> {
    let Some(text) = asked.get(name) else { return Ok(None) };
    match tags(&text) {
        Some(tags) => Ok(Some(tags)),
        None => Err(s3_error!(InvalidArgument, "{name} holds neither * nor entity tags, as \"a\", \"b\"")),
    }
}

/// Is any of the tags that of the object? A weak tag is the same as a strong one only where the comparison is weak.
fn any(tags: &[Tag], etag: &str, weakly: bool) -> bool {
    tags.iter().any(|tag| (tag.text == "*" && !tag.weak) || (tag.text == etag && (weakly || !tag.weak)))
}

/// The condition of a write on what it replaces.
pub(super) fn of_write(asked: &Asked) -> S3Result<Condition> {
    let if_match = match tag_list("if-match", asked)? {
        None => vec![],
        // A weak tag matches nothing, and neither does this text any etag.
        Some(tags) => tags.into_iter().map(|tag| if tag.weak { "W/".into() } else { tag.text }).collect(),
    };
    let if_none = match tag_list("if-none-match", asked)? {
        None => false,
        Some(tags) if tags.iter().any(|tag| tag.text == "*") => true,
        Some(_) => return Err(s3_error!(NotImplemented, "a write takes no etag in If-None-Match, only *")),
    };
    Ok(Condition { if_match, if_none })
}

/// What the conditions of a read say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Through,
    NotModified,
    Failed,
}

/// A date in any form of RFC 9110; other text counts as absent.
fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

/// When an object was modified, in whole seconds, as dates of HTTP are.
fn modified(object: &ObjectStored) -> SystemTime {
    let seconds = object.modified.unwrap_or_default().as_millis().div_euclid(1_000);
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// The conditions of a read, or of the source of a copy, whose headers have a prefix.
pub(super) fn of_read(asked: &Asked, prefix: &str, object: &ObjectStored) -> S3Result<Verdict> {
    let name = |name: &str| format!("{prefix}{name}");
    let date_of = |header: &str| -> S3Result<Option<SystemTime>> {
        let Some(text) = asked.get(&name(header)) else { return Ok(None) };
        match date(&text) {
            // RFC 9110 ignores a condition whose date is invalid. A header of S3 says what it means or is refused.
            None if !prefix.is_empty() => Err(s3_error!(InvalidArgument, "{} is not a date of HTTP", name(header))),
            date => Ok(date),
        }
    };
    let modified = modified(object);
    let (unmodified_since, modified_since) = (date_of("if-unmodified-since")?, date_of("if-modified-since")?);
    let failed = match tag_list(&name("if-match"), asked)? {
        Some(tags) => !any(&tags, &object.etag, false),
        None => unmodified_since.is_some_and(|since| modified > since),
    };
    let same = match tag_list(&name("if-none-match"), asked)? {
        Some(tags) => any(&tags, &object.etag, true),
        None => modified_since.is_some_and(|since| modified <= since),
    };
    Ok(match (failed, same) {
        (true, _) => Verdict::Failed,
        (_, true) => Verdict::NotModified,
        _ => Verdict::Through,
    })
}

/// The bytes that a range asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// All: no range, or one that is to be ignored.
    Whole,
    Part(Range<u64>),
    Unsatisfiable,
}

/// Digits alone; a number that is too large is larger than any object.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().unwrap_or(u64::MAX))
}

/// The bytes of a Range header. Of several ranges S3 sends the whole.
pub(super) fn span(text: &str, size: u64) -> Span {
    let Some((unit, set)) = text.split_once('=') else { return Span::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Span::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else { return Span::Whole };
    match (first.is_empty(), number(first), last.is_empty(), number(last)) {
        (true, _, _, Some(suffix)) => {
            if suffix == 0 || size == 0 {
                return Span::Unsatisfiable;
            }
            Span::Part(size.saturating_sub(suffix)..size)
        }
        (_, Some(first), true, _) if first >= size => Span::Unsatisfiable,
        (_, Some(first), true, _) => Span::Part(first..size),
        (_, Some(first), _, Some(last)) if last < first => Span::Whole,
        (_, Some(first), _, Some(_)) if first >= size => Span::Unsatisfiable,
        (_, Some(first), _, Some(last)) => Span::Part(first..last.saturating_add(1).min(size)),
        _ => Span::Whole,
    }
}

/// The bytes that a read asks for, after its conditions hold.
pub(super) fn of_range(asked: &Asked, object: &ObjectStored) -> Span {
    let Some(range) = asked.get("range") else { return Span::Whole };
    let holds = asked.get("if-range").is_none_or(|text| match date(&text) {
        Some(date) => date == modified(object),
        None => tags(&text).is_some_and(|tags| matches!(&*tags, [tag] if !tag.weak && tag.text == object.etag)),
    });
    if holds { span(&range, object.size) } else { Span::Whole }
}

/// The bytes of `x-amz-copy-source-range`, which must be all there: `bytes=first-last`.
pub(super) fn of_copy(asked: &Asked, size: u64) -> S3Result<Range<u64>> {
    let Some(text) = asked.get("x-amz-copy-source-range") else { return Ok(0..size) };
    let parsed = text.strip_prefix("bytes=").and_then(|set| set.split_once('-'));
    match parsed.map(|(first, last)| (number(first), number(last))) {
        Some((Some(first), Some(last))) if first <= last => match last < size {
            true => Ok(first..last + 1),
            false => Err(s3_error!(InvalidRange, "the source has {size} bytes; {text} is not all in it")),
        },
        _ => Err(s3_error!(InvalidArgument, "x-amz-copy-source-range is not of the form bytes=first-last")),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use mesh_proto::Timestamp;

    use super::*;

    fn asked(pairs: &[(&str, &str)]) -> Asked {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        Asked::new(headers)
    }

    /// Modified on Sunday, 6 November 1994, 08:49:37.5.
    fn object() -> ObjectStored {
        let modified = Some(Timestamp::from_millis(784_111_777_500));
        ObjectStored { etag: "e".into(), size: 10, modified, ..ObjectStored::default() }
    }

    #[test]
    fn ranges_are_those_of_rfc_9110_and_s3() {
        for (text, size, expected) in [
            ("bytes=0-3", 10, Span::Part(0..4)),
            ("bytes=8-", 10, Span::Part(8..10)),
            ("bytes=-3", 10, Span::Part(7..10)),
            ("bytes=-30", 10, Span::Part(0..10)),
            ("Bytes=5-99999999999999999999999", 10, Span::Part(5..10)),
            ("bytes=0-0", 1, Span::Part(0..1)),
            ("bytes=10-", 10, Span::Unsatisfiable),
            ("bytes=10-12", 10, Span::Unsatisfiable),
            ("bytes=99999999999999999999999-", 10, Span::Unsatisfiable),
            ("bytes=-0", 10, Span::Unsatisfiable),
            ("bytes=-5", 0, Span::Unsatisfiable),
            ("bytes=0-", 0, Span::Unsatisfiable),
            ("bytes=5-2", 10, Span::Whole),
            ("items=0-1", 10, Span::Whole),
            ("bytes=0-1,3-4", 10, Span::Whole),
            ("bytes=a-b", 10, Span::Whole),
            ("bytes=+1-2", 10, Span::Whole),
            ("bytes=-", 10, Span::Whole),
            ("bytes", 10, Span::Whole),
        ] {
            assert_eq!(span(text, size), expected, "{text}");
        }
    }

    #[test]
    fn a_range_is_for_one_version_only() {
        for (if_range, whole) in [
            ("\"e\"", false),
            ("\"other\"", true),
            ("W/\"e\"", true),
            ("Sun, 06 Nov 1994 08:49:37 GMT", false),
            ("Sun, 06 Nov 1994 08:49:38 GMT", true),
            ("nonsense at all", true),
        ] {
            let found = of_range(&asked(&[("range", "bytes=0-0"), ("if-range", if_range)]), &object());
            assert_eq!(found == Span::Whole, whole, "{if_range}");
        }
    }

    #[test]
    fn reads_hold_lists_weak_tags_and_every_form_of_date() {
        for (name, value, expected) in [
            ("if-match", "\"x\", \"e\"", Verdict::Through),
            ("if-match", "\"x,y\" ,, e", Verdict::Through),
            ("if-match", "*", Verdict::Through),
            ("if-match", "W/\"e\"", Verdict::Failed),
            ("if-match", "\"x\"", Verdict::Failed),
            ("if-none-match", "W/\"e\"", Verdict::NotModified),
            ("if-none-match", "\"x\", \"y\"", Verdict::Through),
            ("if-none-match", "*", Verdict::NotModified),
            ("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT", Verdict::NotModified),
            ("if-modified-since", "Sun Nov  6 08:49:36 1994", Verdict::Through),
            ("if-modified-since", "yesterday", Verdict::Through),
            ("if-unmodified-since", "Sun, 06 Nov 1994 08:49:36 GMT", Verdict::Failed),
            ("if-unmodified-since", "Sun, 06 Nov 1994 08:49:37 GMT", Verdict::Through),
        ] {
            assert_eq!(of_read(&asked(&[(name, value)]), "", &object()).unwrap(), expected, "{name}: {value}");
        }
        // A tag decides before a date.
        let both = asked(&[("if-match", "e"), ("if-unmodified-since", "Sun, 06 Nov 1994 08:49:36 GMT")]);
        assert_eq!(of_read(&both, "", &object()).unwrap(), Verdict::Through);
        let both = asked(&[("if-none-match", "x"), ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        assert_eq!(of_read(&both, "", &object()).unwrap(), Verdict::Through);
        for wrong in ["\"x", "a b", "", "\"x\" \"y\""] {
            assert!(of_read(&asked(&[("if-match", wrong)]), "", &object()).is_err(), "{wrong}");
        }
        let source = "x-amz-copy-source-";
        assert!(of_read(&asked(&[("x-amz-copy-source-if-modified-since", "x")]), source, &object()).is_err());
        let failed = asked(&[("x-amz-copy-source-if-match", "\"x\"")]);
        assert_eq!(of_read(&failed, source, &object()).unwrap(), Verdict::Failed);
    }

    #[test]
    fn writes_hold_what_they_are_told() {
        let condition = |pairs: &[(&str, &str)]| of_write(&asked(pairs));
        assert_eq!(condition(&[]).unwrap(), Condition::default());
        assert!(condition(&[("if-none-match", "*")]).unwrap().if_none);
        assert!(condition(&[("if-none-match", "\"x\"")]).is_err());
        assert!(condition(&[("if-match", "\"x\", e")]).unwrap().check(Some(&object())).is_ok());
        assert!(condition(&[("if-match", "W/\"e\"")]).unwrap().check(Some(&object())).is_err());
        assert!(condition(&[("if-match", "*")]).unwrap().check(None).is_err());
    }

    #[test]
    fn a_range_of_a_copy_is_all_there_or_refused() {
        let range = |text| of_copy(&asked(&[("x-amz-copy-source-range", text)]), 10).map_err(|e| e.code().clone());
        assert_eq!(range("bytes=2-9"), Ok(2..10));
        assert_eq!(range("bytes=2-10").unwrap_err().as_str(), "InvalidRange");
        for wrong in ["bytes=2-", "bytes=-2", "2-3", "bytes=3-2", "bytes=0-1,3-4", "items=0-1"] {
            assert_eq!(range(wrong).unwrap_err().as_str(), "InvalidArgument", "{wrong}");
        }
        assert_eq!(of_copy(&asked(&[]), 10).unwrap(), 0..10);
    }
}
