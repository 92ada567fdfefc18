//! Names of versions as S3 shows them: the null version has one, too.

use s3s::{S3Result, s3_error};

use crate::domain::storages::Versioning;

/// The null version.
const NULL: &str = "null";

/// The version that a request names.
///
/// # Errors
/// When no version can have this name.
pub(super) fn named(text: Option<&str>) -> S3Result<Option<String>> {
    let is_name = |text: &str| text.len() == 32 && text.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
    match text {
        None => Ok(None),
        Some(NULL) => Ok(Some(String::new())),
        Some(text) if is_name(text) => Ok(Some(text.to_owned())),
        Some("") => {
            Err(s3_error!(InvalidArgument, "the version id is empty; leave it out, or send one that was answered"))
        }
        Some(text) => Err(s3_error!(InvalidArgument, "no version has the id {text}; send one that was answered")),
    }
}

/// A version as it is shown.
pub(super) fn shown(name: &str) -> String {
    if name.is_empty() { NULL.to_owned() } else { name.to_owned() }
}

/// A version as an answer about an object shows it: not at all where versions were never kept.
pub(super) fn told(name: &str, versioning: Versioning) -> Option<String> {
    (versioning != Versioning::Off || !name.is_empty()).then(|| shown(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_names_and_no_others_are_taken() {
        let name = "0123456789abcdef0123456789abcdef";
        assert_eq!(named(None).unwrap(), None);
        assert_eq!(named(Some("null")).unwrap(), Some(String::new()));
        assert_eq!(named(Some(name)).unwrap().as_deref(), Some(name));
        for wrong in ["", "abc", "Null", "0123456789ABCDEF0123456789ABCDEF"] {
            assert_eq!(named(Some(wrong)).unwrap_err().code().as_str(), "InvalidArgument", "{wrong}");
        }
        assert_eq!(shown(""), NULL);
        assert_eq!(told("", Versioning::Off), None);
        assert_eq!(told("", Versioning::Suspended).as_deref(), Some(NULL));
        assert_eq!(told(name, Versioning::Enabled).as_deref(), Some(name));
    }
}
