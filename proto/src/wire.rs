//! Reading protobuf bytes without losing what this version does not know.

use bytes::{Bytes, BytesMut};

/// The bytes of a length-delimited field, as they came in; several occurrences are merged, as protobuf does.
/// `None` if the field is absent or the body is not protobuf.
pub fn field(body: &[u8], number: u64) -> Option<Bytes> {
    let mut rest = body;
    let mut found: Option<BytesMut> = None;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match tag & 7 {
            0 => {
                varint(&mut rest)?;
            }
            1 => rest = rest.get(8..)?,
            5 => rest = rest.get(4..)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (value, tail) = (rest.get(..length)?, rest.get(length..)?);
                if tag >> 3 == number {
                    found.get_or_insert_default().extend_from_slice(value);
                }
                rest = tail;
            }
            _ => return None,
        }
    }
    found.map(BytesMut::freeze)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Bytes as base64 text in snapshots (RFC 4648 §4).
pub mod as_base64 {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes bytes as base64 text.
    ///
    /// # Errors
    /// What the serializer says.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    /// Reads base64 text as bytes.
    ///
    /// # Errors
    /// When it is not base64.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes::from).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::intent::{Intent, SubmitIntent};

    #[test]
    fn a_field_is_read_as_it_came_with_fields_nobody_here_knows() {
        let intent = Intent { user_label: "x".into(), ..Default::default() };
        let mut inner = intent.encode_to_vec();
        inner.extend([0xf8, 0x3f, 0x07]); // field 1023, varint 7
        let mut body = SubmitIntent { owner: "o".into(), ..Default::default() }.encode_to_vec();
        body.push(3 << 3 | 2);
        body.push(inner.len() as u8);
        body.extend(&inner);
        assert_eq!(field(&body, 3).as_deref(), Some(inner.as_slice()));
        assert_eq!(field(&body, 9), None);
        assert_eq!(field(&body[..body.len() - 1], 3), None);
    }
}
