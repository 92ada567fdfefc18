//! Values larger than one message: cut into parts, described by a head.
//!
//! A head is the value of the key itself: [`MARK`], then JSON with the number of parts, their slot, and length and
//! FNV-1a hash of the whole. Two slots alternate, so that the parts of a value that was not written to its end never
//! overwrite those of the one that the head still describes.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// First bytes of a head. Neither JSON nor protobuf begins with a zero.
const MARK: &[u8] = b"\0parts:";
/// Bytes of a part, at most.
pub(crate) const PART_BYTES: usize = 512 << 10;
/// Bytes of a whole value, at most: what a reader is ready to hold.
pub(crate) const WHOLE_BYTES_MAX: usize = 256 << 20;

/// What a head describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    parts: usize,
    pub(crate) slot: u8,
    bytes: usize,
    hash: u64,
}

impl Head {
    /// The head that a value is, if it is one.
    pub(crate) fn of(value: &[u8]) -> Option<Self> {
        let head: Self = serde_json::from_slice(value.strip_prefix(MARK)?).ok()?;
        (head.bytes <= WHOLE_BYTES_MAX && head.parts == head.bytes.div_ceil(PART_BYTES)).then_some(head)
    }

    fn value(&self) -> Bytes {
        let mut value = MARK.to_vec();
        // A struct of numbers has no way to fail.
        value.extend(serde_json::to_vec(self).unwrap_or_default());
        value.into()
    }

    /// Keys of the parts, in order. A key of people or services has no `=`.
    pub(crate) fn keys<'a>(&'a self, key: &'a str) -> impl Iterator<Item = String> + 'a {
        (0..self.parts).map(move |part| format!("{key}.part={}={part}", self.slot))
    }

    /// The value made of its parts again; `None` if they are not its own.
    pub(crate) fn join(&self, parts: &[Bytes]) -> Option<Bytes> {
        let mut whole = BytesMut::with_capacity(self.bytes);
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        (whole.len() == self.bytes && fnv1a(&whole) == self.hash).then(|| whole.freeze())
    }
}

/// Must this value be cut?
pub(crate) fn is_large(value: &[u8]) -> bool {
    value.len() > PART_BYTES || value.starts_with(MARK)
}

/// Is this the key of a part?
pub(crate) fn is_part(key: &str) -> bool {
    key.rsplit('.').next().is_some_and(|token| token.starts_with("part="))
}

/// A head and its parts with their keys.
pub(crate) fn cut(key: &str, value: &Bytes, slot: u8) -> (Bytes, Vec<(String, Bytes)>) {
    let head = Head { parts: value.len().div_ceil(PART_BYTES), slot, bytes: value.len(), hash: fnv1a(value) };
    let parts = (0..head.parts).map(|i| value.slice(i * PART_BYTES..value.len().min((i + 1) * PART_BYTES)));
    (head.value(), head.keys(key).zip(parts).collect())
}

/// FNV-1a, 64 bits: detects a torn value, not a forged one.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_value_is_cut_and_joined_and_a_torn_one_is_noticed() {
        let value: Bytes = (0..3 * PART_BYTES + 17).map(|i| (i / 7) as u8).collect();
        let (head, parts) = cut("e.local.a", &value, 1);
        let head_read = Head::of(&head).unwrap();
        assert_eq!((parts.len(), head_read.slot), (4, 1));
        assert!(parts.iter().all(|(key, _)| is_part(key)) && !is_part("e.local.a"));
        let mut bodies: Vec<Bytes> = parts.into_iter().map(|(_, body)| body).collect();
        assert_eq!(head_read.join(&bodies).unwrap(), value);
        bodies.swap(0, 1);
        assert_eq!(head_read.join(&bodies), None);
        assert_eq!(head_read.join(&bodies[..3]), None);
    }

    #[test]
    fn a_value_that_looks_like_a_head_is_kept_apart_from_one() {
        let looks = cut("k", &Bytes::from_static(b"x"), 0).0;
        assert!(is_large(&looks));
        let (head, parts) = cut("k", &looks, 0);
        assert_eq!(Head::of(&head).unwrap().join(&[parts[0].1.clone()]).unwrap(), looks);
        assert_eq!(Head::of(b"\0parts:{\"parts\":9,\"slot\":0,\"bytes\":1,\"hash\":0}"), None);
    }
}
