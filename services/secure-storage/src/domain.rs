//! The decisions of storage, without I/O: names (policies, locations, buckets, scrubs), objects, and uploads.

pub mod checksums;
pub mod choose;
pub mod objects;
pub mod policy;
pub mod scrubs;
pub mod storages;
pub mod uploads;

#[cfg(test)]
mod interleavings;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mesh_core::Stored;

/// The token of a bucket: `.` separates the tokens of a subject, and no bucket name holds `_`.
pub fn bucket_token(name: &str) -> String {
    name.replace('.', "_")
}

/// The token of an object: a hash, for a key may hold any character.
pub fn object_token(bucket: &str, epoch: u64, key: &str) -> String {
    let digest = crate::blob::seal::sha256(format!("{bucket}\0{epoch}\0{key}").as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(digest)
}

/// The event of a stored message, with its keys made those of its subject; `None` if it is not of this set.
pub(crate) fn event<E: mesh_proto::EventSet>(stored: &Stored) -> Option<E> {
    let mut event = E::decode(&stored.message, &stored.protobuf().ok()?).ok()?;
    event.any_mut().adopt_keys(&stored.subject).ok()?;
    Some(event)
}
