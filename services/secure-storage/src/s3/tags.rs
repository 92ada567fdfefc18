//! Tags of objects and buckets, within the limits of S3.

use std::collections::BTreeMap;

use s3s::{S3Result, dto, s3_error};

use super::{asked::Asked, paths::decoded};

/// Tags of an object at most.
pub(super) const OF_OBJECT_MAX: usize = 10;
/// Characters of a tag's name at most.
const KEY_MAX: usize = 128;
/// Characters of a tag's value at most.
const VALUE_MAX: usize = 256;

/// Letters, digits and blanks of any script, and a few marks.
fn is_allowed(character: char) -> bool {
    character.is_alphanumeric() || character == ' ' || "+-=._:/@".contains(character)
}

/// Tags that S3 takes.
///
/// # Errors
/// When there are too many, one is there twice, or one is too long or holds other characters.
pub(super) fn checked(
    pairs: impl IntoIterator<Item = (String, String)>,
    max: usize,
) -> S3Result<BTreeMap<String, String>> {
    let mut tags = BTreeMap::new();
    for (key, value) in pairs {
        let (of_key, of_value) = (key.chars().count(), value.chars().count());
        if of_key == 0 || of_key > KEY_MAX || !key.chars().all(is_allowed) || key.starts_with("aws:") {
            return Err(s3_error!(
                InvalidTag,
                "the tag key {key:?} is not 1 to {KEY_MAX} letters, digits, blanks and + - = . _ : / @, or begins with aws:"
            ));
        }
        if of_value > VALUE_MAX || !value.chars().all(is_allowed) {
            return Err(s3_error!(
                InvalidTag,
                "the value of the tag {key:?} is not up to {VALUE_MAX} letters, digits, blanks and + - = . _ : / @"
            ));
        }
        if tags.insert(key.clone(), value).is_some() {
            return Err(s3_error!(InvalidTag, "the tag {key:?} is there twice; send it once"));
        }
    }
    match tags.len() {
        len if len > max => Err(super::errors::failed(
            s3s::S3ErrorCode::Custom("BadRequest".into()),
            format!("there are {len} tags; at most {max} are kept"),
        )),
        _ => Ok(tags),
    }
}

/// The tags of a header: `key=value&key=value`, encoded as a query.
pub(super) fn of_header(asked: &Asked) -> S3Result<BTreeMap<String, String>> {
    let text = asked.get("x-amz-tagging").unwrap_or_default();
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key), decoded(value))
    };
    checked(pairs.map(pair), OF_OBJECT_MAX)
}

/// The tags of a body.
pub(super) fn of_body(tagging: dto::Tagging, max: usize) -> S3Result<BTreeMap<String, String>> {
    let pair = |tag: dto::Tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default());
    checked(tagging.tag_set.into_iter().map(pair), max)
}

/// Tags as an answer shows them.
pub(super) fn shown<'a>(tags: impl IntoIterator<Item = (&'a String, &'a String)>) -> dto::TagSet {
    tags.into_iter().map(|(key, value)| dto::Tag { key: Some(key.clone()), value: Some(value.clone()) }).collect()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn code(pairs: &[(&str, &str)]) -> String {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        checked(pairs, OF_OBJECT_MAX).map_or_else(|error| error.code().as_str().to_owned(), |_| "ok".into())
    }

    #[test]
    fn tags_have_the_limits_of_s3() {
        let (long, longer) = ("ä".repeat(KEY_MAX), "ä".repeat(VALUE_MAX));
        for (pairs, expected) in [
            (vec![], "ok"),
            (vec![("a b+-=._:/@", "")], "ok"),
            (vec![(long.as_str(), longer.as_str())], "ok"),
            (vec![("", "x")], "InvalidTag"),
            (vec![(longer.as_str(), "x")], "InvalidTag"),
            (vec![("a", "b"), ("a", "c")], "InvalidTag"),
            (vec![("a?", "b")], "InvalidTag"),
            (vec![("a", "b\n")], "InvalidTag"),
            (vec![("aws:a", "b")], "InvalidTag"),
        ] {
            assert_eq!(code(&pairs), expected, "{pairs:?}");
        }
        let names: Vec<String> = (0..11).map(|n| n.to_string()).collect();
        let pairs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
        assert_eq!((code(&pairs[..10]).as_str(), code(&pairs).as_str()), ("ok", "BadRequest"));
        let too_long = "x".repeat(VALUE_MAX + 1);
        assert_eq!(code(&[("a", &too_long)]), "InvalidTag");
    }

    #[test]
    fn a_header_has_tags_as_a_query_has_them() {
        let asked = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-amz-tagging", HeaderValue::from_static(text));
            of_header(&Asked::new(headers)).map(|tags| tags.into_iter().collect::<Vec<_>>())
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(asked("a=b&c%20d=e+f%3D&g").unwrap(), [pair("a", "b"), pair("c d", "e f="), pair("g", "")]);
        assert_eq!(asked("").unwrap(), []);
        assert!(asked("a=1&a=2").is_err());
    }
}
