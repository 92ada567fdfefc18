//! The decision about one multipart upload: which parts it holds, and what it becomes.
//!
//! An entity is an upload (`[bucket, upload]`). Its facts, folded in the order of the stream, are all that counts: a
//! part whose fact comes after the end of the upload is not a part of it, however early its body began. Completing
//! takes two facts: `UploadEnded` fixes the parts, then a fact of the object makes it visible
//! ([`super::objects`]). A gateway that stops between the two leaves the rest to another one, which [`due`] wakes.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::Key;
use mesh_proto::{
    Timestamp,
    deciders::stream_object::Event as Fact,
    object::{Checksum, ObjectStored, Part, PartLabel, PartStored, UploadEnded, UploadStarted},
};

use super::{
    checksums::{Algorithm, of_parts},
    object_token,
};
use crate::blob::seal;

/// Parts of an upload at most, as in S3.
pub const PARTS_MAX: u32 = 10_000;
/// Bytes of every part but the last at least, as in S3.
pub const PART_MIN_BYTES: u64 = 5 << 20;
/// A completed upload that is not visible after this time lost its gateway, and another one finishes it.
pub const FINISH_AFTER_MS: i64 = 60_000;

/// A part that is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPart {
    /// Its blob.
    pub part: Part,
    /// MD5 in hexadecimal digits.
    pub etag: String,
    /// What its sender gave, or the upload asks for.
    pub checksum: Option<Checksum>,
    /// When it was stored.
    pub at: Timestamp,
}

/// What a request says of the object that it completes, beside the list of its parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    /// Checksums of parts, by number.
    pub parts: BTreeMap<u32, Checksum>,
    /// Of the object: algorithm and value.
    pub checksum: Option<(Algorithm, String)>,
    /// Its kind: of the checksums of the parts, or of the bytes.
    pub composite: Option<bool>,
    /// Bytes of the object.
    pub size: Option<u64>,
}

/// One question about an upload.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Begin it.
    Begin(UploadStarted),
    /// Add a part; a part of the same number is replaced.
    AddPart(PartStored),
    /// Make the object of these parts.
    Complete {
        /// Bucket of the upload.
        bucket: String,
        /// The upload.
        upload: String,
        /// Number and etag of each part, as the request names them.
        named: Vec<(u32, String)>,
        /// What else it says of the object.
        claims: Claims,
        /// The write that the key shows now ([`super::objects::write_id`]).
        replaces: String,
        /// When it is completed.
        at: Timestamp,
    },
    /// End it without an object.
    Abort {
        /// Bucket of the upload.
        bucket: String,
        /// The upload.
        upload: String,
    },
}

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It never began, or it is over.
    #[error("the upload does not exist; it was completed or aborted, or it never began")]
    NoUpload,
    /// A number that no part has.
    #[error("{0} is not a part number; use 1 to {PARTS_MAX}")]
    PartNumber(String),
    /// No part is named, or too many are.
    #[error("the request names {0} parts; name 1 to {PARTS_MAX}")]
    PartCount(usize),
    /// The numbers do not rise.
    #[error("the parts are not in ascending order of their numbers")]
    PartOrder,
    /// A part that is named is not stored, or has another etag.
    #[error("part {number} with etag {etag} is not stored")]
    PartUnknown {
        /// Its number.
        number: u32,
        /// The etag that the request names.
        etag: String,
    },
    /// A part that is named has another checksum.
    #[error("part {number} does not have the checksum that the request names")]
    PartChecksum {
        /// Its number.
        number: u32,
    },
    /// The object would have another checksum.
    #[error("the parts do not have the checksum that the request names for the object")]
    ObjectChecksum,
    /// The upload has checksums of another algorithm or kind.
    #[error("the upload was begun with checksums {begun}, and the request has {asked}")]
    ChecksumKind {
        /// Of the upload.
        begun: String,
        /// Of the request.
        asked: String,
    },
    /// The object would have another size.
    #[error("the parts have {bytes} bytes, and the request says {claimed}")]
    Size {
        /// That it would have.
        bytes: u64,
        /// That it should have.
        claimed: u64,
    },
    /// A part before the last is too small.
    #[error("part {number} has {bytes} bytes; every part but the last needs at least {PART_MIN_BYTES}")]
    PartTooSmall {
        /// Its number.
        number: u32,
        /// Its size.
        bytes: u64,
    },
}

/// An upload, folded from its facts in the order of the stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// How it began; `None` if it never did.
    pub started: Option<UploadStarted>,
    /// Its parts by number.
    pub parts: BTreeMap<u32, StoredPart>,
    /// Parts that were replaced before the end.
    pub replaced: Vec<Part>,
    /// Parts that came after the end.
    pub late: Vec<Part>,
    /// How it ended, and when.
    pub ended: Option<(UploadEnded, Timestamp)>,
}

impl State {
    /// How it began, while it takes parts.
    ///
    /// # Errors
    /// When it never began or is over.
    pub fn open(&self) -> Result<&UploadStarted, Refused> {
        self.started.as_ref().filter(|_| self.ended.is_none()).ok_or(Refused::NoUpload)
    }

    /// The object that it becomes, if it was completed.
    pub fn object(&self) -> Option<&ObjectStored> {
        self.ended.as_ref().and_then(|(ended, _)| ended.object.as_ref())
    }

    /// Was the blob taken as a part, even if another one replaced it since?
    pub fn took(&self, blob: &[u8]) -> bool {
        self.parts.values().map(|stored| &stored.part).chain(&self.replaced).any(|part| part.blob == blob)
    }

    /// Parts that nothing needs once the upload is over: all but those of the object that it became.
    pub fn garbage(&self) -> Vec<Part> {
        let kept: BTreeSet<&[u8]> = self.object().into_iter().flat_map(|o| &o.parts).map(|part| &*part.blob).collect();
        self.all().into_iter().filter(|part| !kept.contains(&*part.blob)).collect()
    }

    /// Every part that was ever stored for it.
    pub fn all(&self) -> Vec<Part> {
        let parts = self.parts.values().map(|stored| &stored.part);
        parts.chain(&self.replaced).chain(&self.late).cloned().collect()
    }
}

/// An upload without facts.
pub fn initial() -> State {
    State::default()
}

/// The upload that a command is about.
pub fn concerns(command: &Command) -> Key {
    match command {
        Command::Begin(m) => Key::new([&m.bucket, &m.upload]),
        Command::AddPart(m) => Key::new([&m.bucket, &m.upload]),
        Command::Complete { bucket, upload, .. } | Command::Abort { bucket, upload } => Key::new([bucket, upload]),
    }
}

/// The fact that follows; `None` if what the command asks for was decided before: the same list of parts completed the
/// upload, or a completed one is to be dropped, which its object decides.
///
/// # Errors
/// When the command must not be carried out.
pub fn decide(state: &State, command: &Command) -> Result<Option<Fact>, Refused> {
    match command {
        Command::Begin(_) if state.started.is_some() => Ok(None),
        Command::Begin(m) => Ok(Some(m.clone().into())),
        Command::AddPart(m) => {
            state.open()?;
            part_number(&m.number)?;
            Ok(Some(m.clone().into()))
        }
        Command::Complete { named, claims, replaces, at, .. } => complete(state, named, claims, replaces, *at),
        Command::Abort { bucket, upload } => match &state.ended {
            None => {
                state.open()?;
                let (bucket, upload) = (bucket.clone(), upload.clone());
                Ok(Some(UploadEnded { bucket, upload, ..UploadEnded::default() }.into()))
            }
            Some((ended, _)) if ended.object.is_some() => Ok(None),
            Some(_) => Err(Refused::NoUpload),
        },
    }
}

/// The number of a part.
///
/// # Errors
/// When it is not one of 1 to [`PARTS_MAX`].
pub fn part_number(text: &str) -> Result<u32, Refused> {
    let number = text.parse().ok().filter(|number| (1..=PARTS_MAX).contains(number));
    number.ok_or_else(|| Refused::PartNumber(text.to_owned()))
}

/// The etag of an object of parts: the MD5 of their MD5s, and how many there are.
fn etag(etags: &[&str]) -> String {
    let digests: Vec<u8> = etags.iter().flat_map(|etag| hex::decode(etag).unwrap_or_default()).collect();
    format!("{}-{}", hex::encode(seal::md5(&digests)), etags.len())
}

/// The checksum of the object, which must be what the request claims.
fn checksum(
    begun: Option<&Checksum>,
    claims: &Claims,
    parts: &[(Option<&Checksum>, u64)],
) -> Result<Option<Checksum>, Refused> {
    let kind = |composite| if composite { "COMPOSITE" } else { "FULL_OBJECT" };
    let algorithm = begun.and_then(|begun| Algorithm::named(&begun.algorithm));
    let is_composite = begun.is_some_and(|begun| begun.composite);
    let other = |asked: String| {
        let begun = algorithm.map_or("of no algorithm".into(), |a| format!("{} {}", a.name(), kind(is_composite)));
        Refused::ChecksumKind { begun, asked }
    };
    if let Some(composite) = claims.composite.filter(|composite| algorithm.is_some() && *composite != is_composite) {
        return Err(other(kind(composite).into()));
    }
    let (algorithm, composite) = match (algorithm, &claims.checksum) {
        (Some(algorithm), Some((asked, _))) if algorithm != *asked => return Err(other(asked.name().into())),
        (Some(algorithm), _) => (algorithm, is_composite),
        // Nothing was agreed: what is claimed can be checked if the parts carry it.
        (None, Some((asked, _))) => (*asked, claims.composite.unwrap_or(asked.is_composite())),
        (None, None) => return Ok(None),
    };
    let found = of_parts(algorithm, composite, parts);
    match &claims.checksum {
        None => Ok(found),
        Some((asked, value)) => match &found {
            None => Err(other(asked.name().into())),
            Some(found) => {
                // The number of parts may be left out.
                let bare = found.value.split('-').next();
                if *value == found.value || (composite && bare == Some(value.as_str())) {
                    Ok(Some(found.clone()))
                } else {
                    Err(Refused::ObjectChecksum)
                }
            }
        },
    }
}

fn complete(
    state: &State,
    named: &[(u32, String)],
    claims: &Claims,
    replaces: &str,
    at: Timestamp,
) -> Result<Option<Fact>, Refused> {
    let etags: Vec<&str> = named.iter().map(|(_, etag)| etag.as_str()).collect();
    if let Some(object) = state.object() {
        // The same list again: the answer was lost on its way, or two requests complete it at once.
        return if object.etag == etag(&etags) { Ok(None) } else { Err(Refused::NoUpload) };
    }
    let started = state.open()?;
    if named.is_empty() || named.len() > PARTS_MAX as usize {
        return Err(Refused::PartCount(named.len()));
    }
    if named.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
        return Err(Refused::PartOrder);
    }
    let (mut parts, mut checksums): (Vec<Part>, Vec<_>) = (vec![], vec![]);
    for (number, etag) in named {
        match state.parts.get(number) {
            Some(stored) if stored.etag == *etag => {
                if claims.parts.get(number).is_some_and(|claimed| stored.checksum.as_ref() != Some(claimed)) {
                    return Err(Refused::PartChecksum { number: *number });
                }
                parts.push(stored.part.clone());
                checksums.push((stored.checksum.as_ref(), stored.part.size));
            }
            _ => return Err(Refused::PartUnknown { number: *number, etag: etag.clone() }),
        }
    }
    let but_last = parts.iter().zip(named).take(parts.len().saturating_sub(1));
    if let Some((part, (number, _))) = but_last.into_iter().find(|(part, _)| part.size < PART_MIN_BYTES) {
        return Err(Refused::PartTooSmall { number: *number, bytes: part.size });
    }
    let bytes = parts.iter().map(|part| part.size).sum();
    if let Some(claimed) = claims.size.filter(|claimed| *claimed != bytes) {
        return Err(Refused::Size { bytes, claimed });
    }
    let label = |((number, _), (checksum, _)): (&(u32, String), &(Option<&Checksum>, u64))| PartLabel {
        number: *number,
        checksum: checksum.cloned(),
    };
    let labels = named.iter().zip(&checksums).map(label).collect();
    let checksum = checksum(started.checksum.as_ref(), claims, &checksums)?;
    let object = ObjectStored {
        bucket: started.bucket.clone(),
        object: object_token(&started.bucket, started.epoch, &started.key),
        key: started.key.clone(),
        epoch: started.epoch,
        owner: started.owner.clone(),
        size: bytes,
        etag: etag(&etags),
        content_type: started.content_type.clone(),
        metadata: started.metadata.clone(),
        headers: started.headers.clone(),
        layout: started.layout.clone(),
        parts,
        upload: started.upload.clone(),
        modified: Some(at),
        checksum,
        // Its object decides.
        version: String::new(),
        tags: started.tags.clone(),
        labels,
        versioned: false,
    };
    let (bucket, upload, replaces) = (started.bucket.clone(), started.upload.clone(), replaces.to_owned());
    Ok(Some(UploadEnded { bucket, upload, completed: true, object: Some(object), replaces }.into()))
}

/// The state after a fact that was stored at a time. Facts of other entities change nothing.
pub fn evolve(mut state: State, fact: &Fact, at: Timestamp) -> State {
    match fact {
        Fact::UploadStarted(m) if state.started.is_none() => state.started = Some(m.clone()),
        Fact::UploadEnded(m) if state.ended.is_none() => state.ended = Some((m.clone(), at)),
        Fact::PartStored(m) => {
            let (Some(part), Ok(number)) = (m.part.clone(), part_number(&m.number)) else { return state };
            if state.ended.is_some() {
                state.late.push(part);
            } else {
                let replaced = state
                    .parts
                    .insert(number, StoredPart { part, etag: m.etag.clone(), checksum: m.checksum.clone(), at });
                state.replaced.extend(replaced.map(|stored| stored.part));
            }
        }
        _ => {}
    }
    state
}

/// When another gateway is to finish what the one that completed the upload left. Whoever knows that the object was
/// decided need not ask.
pub fn due(ended: &UploadEnded, at: Timestamp) -> Option<Timestamp> {
    ended.object.as_ref().map(|_| Timestamp::from_millis(at.as_millis().saturating_add(FINISH_AFTER_MS)))
}

#[cfg(test)]
mod tests;
