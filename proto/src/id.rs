//! Ids: keys that fit one subject token, and ids derived from what caused them.

use std::fmt;

use uuid::Uuid;

/// What a key looks like, for messages: `use …`.
pub const KEY_FORMAT: &str = "1 to 64 letters, digits, `_` and `-`";

/// Is this one subject token of `[A-Za-z0-9_-]{1,64}`?
pub fn is_key(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// A key that is known to fit one subject token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(String);

/// Not a key.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an id: use {KEY_FORMAT}")]
pub struct IdError(String);

impl Id {
    /// Parses an id.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        if is_key(&text) { Ok(Self(text)) } else { Err(IdError(text)) }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A UUIDv5 over parts, so that the same cause gives the same id (RFC 9562 §5.5).
pub fn derived_id(parts: &[&str]) -> String {
    /// `continuum` as a namespace of its own.
    const NAMESPACE: Uuid = Uuid::from_u128(0x636f_6e74_696e_7575_6d00_0000_0000_0001);
    Uuid::new_v5(&NAMESPACE, parts.join("\u{1f}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_id_depends_on_every_part_and_on_nothing_else() {
        assert_eq!(derived_id(&["a", "b"]), derived_id(&["a", "b"]));
        assert_ne!(derived_id(&["a", "b"]), derived_id(&["ab"]));
        assert!(is_key(&derived_id(&["a"])));
    }

    #[test]
    fn a_key_is_one_subject_token() {
        for bad in ["", "a.b", "a b", "*", ">", &"x".repeat(65)] {
            assert!(Id::new(bad).is_err(), "{bad:?}");
        }
        assert!(Id::new("edge-1_A").is_ok());
    }
}
