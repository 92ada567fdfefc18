//! The decision about one object: which versions a key has, which one is visible, and what may replace, remove or move one.
//!
//! An entity is one key of one life of a bucket (`[bucket, object]`). [`crate::objects::ObjectStore`] calls these
//! functions itself, without a decider's shell: a durable command before each put would cost a second synced write.
//! Each decision is at most one fact, written on the condition that the entity has not moved. If it has, the store
//! folds the facts that it missed and decides again.
//!
//! A bucket that never kept versions has the null version of each key only, whose name is empty. Facts of releases without
//! versions are all about it.
//!
//! Invariants, which the property tests hold:
//!
//! - a condition is decided against the object that is visible when the fact is written;
//! - a completed upload becomes visible at most once, or is dropped, and never both;
//! - the fragments that any version needs are never garbage.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::Key;
use mesh_proto::{
    Timestamp,
    deciders::stream_object::Event as Fact,
    object::{MarkerStored, ObjectDeleted, ObjectMoved, ObjectStored, ObjectTagged, Part, UploadDropped},
};

use super::storages::Versioning;
use crate::blob::seal;

/// What a request requires of the object that is visible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Only if there is one with any of these etags; `*` for any etag. Empty: whatever there is.
    pub if_match: Vec<String>,
    /// Only if there is none.
    pub if_none: bool,
}

impl Condition {
    /// Does it hold for what is visible now?
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self, now: Option<&ObjectStored>) -> Result<(), Refused> {
        let named = |now: &ObjectStored| self.if_match.iter().any(|etag| etag == "*" || *etag == now.etag);
        match now {
            None if !self.if_match.is_empty() => Err(Refused::NoObject),
            Some(_) if self.if_none => Err(Refused::Precondition),
            Some(now) if !self.if_match.is_empty() && !named(now) => Err(Refused::Precondition),
            _ => Ok(()),
        }
    }
}

/// One question about an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Make new bytes visible.
    Put {
        /// The object as it will be.
        object: ObjectStored,
        /// Of the request.
        condition: Condition,
        /// Of the bucket.
        versioning: Versioning,
    },
    /// Make a completed upload visible, for the request that completed it.
    Complete {
        /// The object that the upload becomes.
        object: ObjectStored,
        /// Of the request.
        condition: Condition,
        /// Of the bucket.
        versioning: Versioning,
    },
    /// Make a completed upload visible, for a request whose gateway stopped in between.
    Finish {
        /// The object that the upload becomes.
        object: ObjectStored,
        /// The write that was visible when the upload ended ([`write_id`]); what came later is not overwritten.
        replaces: String,
        /// Of the bucket.
        versioning: Versioning,
    },
    /// Drop a completed upload that is not visible yet.
    Drop {
        /// Bucket.
        bucket: String,
        /// Object that it would have become.
        object: String,
        /// The upload.
        upload: String,
    },
    /// Remove the object: for good if its bucket never kept versions, and else by a delete marker.
    Delete {
        /// The marker, which is stored only where versions are kept.
        marker: MarkerStored,
        /// Of the request.
        condition: Condition,
        /// Of the bucket.
        versioning: Versioning,
    },
    /// Remove one version for good.
    DeleteVersion {
        /// The fact of it.
        fact: ObjectDeleted,
        /// Of the request, on the object that is visible.
        condition: Condition,
    },
    /// Give a version other tags.
    Tag {
        /// Bucket.
        bucket: String,
        /// Object.
        object: String,
        /// The version; the visible one if absent.
        version: Option<String>,
        /// All of its tags.
        tags: BTreeMap<String, String>,
    },
    /// Change where its fragments rest or how its key is wrapped; its bytes stay.
    Move {
        /// The version as it was read.
        before: ObjectStored,
        /// The version as it is now.
        after: ObjectStored,
        /// Why.
        reason: String,
    },
}

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The condition of the request does not hold.
    #[error("the object does not meet the conditions of the request")]
    Precondition,
    /// The upload became an object, or was dropped, before.
    #[error("the upload was completed or aborted before")]
    NoUpload,
    /// Nothing is visible.
    #[error("the object does not exist")]
    NoObject,
    /// A delete marker is the latest version.
    #[error("the object was deleted; its older versions are there")]
    Hidden {
        /// The marker's name.
        marker: String,
    },
    /// There is no such version.
    #[error("the object has no such version")]
    NoVersion,
    /// The version is a delete marker.
    #[error("the version is a delete marker, which has no bytes and no tags; it can only be deleted")]
    Marker {
        /// Its name.
        marker: String,
        /// When it was stored.
        modified: Timestamp,
    },
}

/// How a completed upload came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It became this version of the object, which may have been replaced since.
    Visible {
        /// Its name.
        version: String,
    },
    /// It became nothing.
    Dropped,
}

/// A version of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Version {
    /// Bytes.
    Object(ObjectStored),
    /// A delete marker.
    Marker(MarkerStored),
}

impl Version {
    /// Its name, empty for the null version.
    pub fn name(&self) -> &str {
        match self {
            Self::Object(m) => &m.version,
            Self::Marker(m) => &m.version,
        }
    }

    /// What it holds, if it is no marker.
    pub fn object(&self) -> Option<&ObjectStored> {
        match self {
            Self::Object(object) => Some(object),
            Self::Marker(_) => None,
        }
    }
}

/// An object, folded from its facts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Its versions, the latest last; the facts that were folded may not tell all of them.
    pub versions: Vec<Version>,
    /// Uploads that came out, of the facts that were folded.
    pub uploads: BTreeMap<String, Outcome>,
    /// Were versions ever kept under this key? Each fact says so from then on.
    pub versioned: bool,
}

impl State {
    /// The object that is visible.
    pub fn now(&self) -> Option<&ObjectStored> {
        self.versions.last().and_then(Version::object)
    }

    /// A version by its name.
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name() == name)
    }

    /// The object that a request is about: the visible one, or a version by its name.
    ///
    /// # Errors
    /// When there is none, or it is a delete marker.
    pub fn find(&self, version: Option<&str>) -> Result<&ObjectStored, Refused> {
        match (version, self.versions.last()) {
            (None, None) => Err(Refused::NoObject),
            (None, Some(Version::Object(object))) => Ok(object),
            (None, Some(Version::Marker(m))) => Err(Refused::Hidden { marker: m.version.clone() }),
            (Some(name), _) => match self.version(name) {
                None => Err(Refused::NoVersion),
                Some(Version::Object(object)) => Ok(object),
                Some(Version::Marker(m)) => {
                    Err(Refused::Marker { marker: m.version.clone(), modified: m.modified.unwrap_or_default() })
                }
            },
        }
    }

    /// A version that is stored now: the latest, instead of one of the same name.
    fn store(&mut self, version: Version) {
        self.versions.retain(|other| other.name() != version.name());
        self.versions.push(version);
    }

    /// A version that stays in its place.
    fn change(&mut self, now: &ObjectStored) {
        match self.versions.iter_mut().find(|version| version.name() == now.version) {
            Some(version) => *version = Version::Object(now.clone()),
            None => self.versions.push(Version::Object(now.clone())),
        }
    }
}

/// How much of an object's history a decision needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Its latest version.
    Latest,
    /// All of its versions.
    All,
}

/// What a command is decided on.
pub fn needs(command: &Command) -> Need {
    match command {
        Command::Put { versioning, .. }
        | Command::Complete { versioning, .. }
        | Command::Finish { versioning, .. }
        | Command::Delete { versioning, .. }
            if *versioning == Versioning::Enabled =>
        {
            // A new version replaces none.
            Need::Latest
        }
        Command::Tag { version: None, .. } => Need::Latest,
        Command::Drop { .. } => Need::Latest,
        _ => Need::All,
    }
}

/// Was the fact written when versions were kept, or later?
fn is_versioned(fact: &Fact) -> bool {
    match fact {
        Fact::ObjectStored(m) => m.versioned,
        Fact::ObjectMoved(ObjectMoved { now: Some(now), .. })
        | Fact::ObjectTagged(ObjectTagged { now: Some(now), .. }) => now.versioned,
        Fact::ObjectDeleted(m) => m.versioned,
        Fact::MarkerStored(_) => true,
        _ => false,
    }
}

/// Does the last fact about an object's versions tell all that is needed? If not, the entity is folded from its first one.
pub fn suffices(last: &Fact, need: Need) -> bool {
    let is_latest = matches!(last, Fact::ObjectStored(_) | Fact::MarkerStored(_));
    // Where versions were never kept, there is no other than the null version.
    (need == Need::Latest && is_latest) || !is_versioned(last)
}

/// Names the write that made an object visible: its upload, or the random id of its data key.
pub fn write_id(object: &ObjectStored) -> String {
    match object.upload.as_str() {
        "" => object.layout.as_ref().map(|layout| hex::encode(&layout.key_id)).unwrap_or_default(),
        upload => upload.to_owned(),
    }
}

/// The name of the version that a write becomes: the same for every attempt at it, and empty where no versions are kept.
fn version_of(write: &str, versioning: Versioning) -> String {
    match versioning {
        Versioning::Enabled => hex::encode(&seal::sha256(format!("version\0{write}").as_bytes())[..16]),
        Versioning::Off | Versioning::Suspended => String::new(),
    }
}

/// An object without facts.
pub fn initial() -> State {
    State::default()
}

/// The object that a command is about.
pub fn concerns(command: &Command) -> Key {
    match command {
        Command::Put { object, .. } | Command::Complete { object, .. } | Command::Finish { object, .. } => {
            Key::new([&object.bucket, &object.object])
        }
        Command::Drop { bucket, object, .. } | Command::Tag { bucket, object, .. } => Key::new([bucket, object]),
        Command::Delete { marker, .. } => Key::new([&marker.bucket, &marker.object]),
        Command::DeleteVersion { fact, .. } => Key::new([&fact.bucket, &fact.object]),
        Command::Move { before, .. } => Key::new([&before.bucket, &before.object]),
    }
}

/// What is known of the bucket: not that it never kept versions, where a fact of the key says otherwise. A gateway that did not
/// hear of it yet keeps what there is.
fn known(state: &State, versioning: Versioning) -> Versioning {
    if versioning == Versioning::Off && state.versioned { Versioning::Enabled } else { versioning }
}

fn stored(state: &State, object: &ObjectStored, versioning: Versioning) -> Fact {
    let versioning = known(state, versioning);
    let version = version_of(&write_id(object), versioning);
    ObjectStored { version, versioned: versioning != Versioning::Off, ..object.clone() }.into()
}

/// The fact that follows; `None` if nothing changes: what the command asks for holds already.
///
/// # Errors
/// When the command must not be carried out.
pub fn decide(state: &State, command: &Command) -> Result<Option<Fact>, Refused> {
    let now = state.now();
    Ok(match command {
        Command::Put { object, condition, versioning } => {
            condition.check(now)?;
            Some(stored(state, object, *versioning))
        }
        Command::Complete { object, condition, versioning } => match state.uploads.get(&object.upload) {
            Some(Outcome::Visible { .. }) => None,
            Some(Outcome::Dropped) => return Err(Refused::NoUpload),
            None if condition.check(now).is_ok() => Some(stored(state, object, *versioning)),
            None => Some(dropped(object)),
        },
        Command::Finish { object, replaces, versioning } => match state.uploads.get(&object.upload) {
            Some(_) => None,
            None if now.map(write_id).unwrap_or_default() == *replaces => Some(stored(state, object, *versioning)),
            None => Some(dropped(object)),
        },
        Command::Drop { bucket, object, upload } => match state.uploads.get(upload) {
            Some(Outcome::Visible { .. }) => return Err(Refused::NoUpload),
            Some(Outcome::Dropped) => None,
            None => {
                let (bucket, object, upload) = (bucket.clone(), object.clone(), upload.clone());
                Some(UploadDropped { bucket, object, upload }.into())
            }
        },
        Command::Delete { marker, condition, versioning } => {
            condition.check(now)?;
            match known(state, *versioning) {
                Versioning::Off => now.map(|_| {
                    ObjectDeleted {
                        bucket: marker.bucket.clone(),
                        object: marker.object.clone(),
                        key: marker.key.clone(),
                        epoch: marker.epoch,
                        ..ObjectDeleted::default()
                    }
                    .into()
                }),
                Versioning::Enabled => Some(marker.clone().into()),
                Versioning::Suspended => Some(MarkerStored { version: String::new(), ..marker.clone() }.into()),
            }
        }
        Command::DeleteVersion { fact, condition } => {
            condition.check(now)?;
            state.version(&fact.version).map(|version| {
                let (marker, versioned) = (version.object().is_none(), state.versioned);
                ObjectDeleted { marker, versioned, ..fact.clone() }.into()
            })
        }
        Command::Tag { bucket, object, version, tags } => {
            let found = state.find(version.as_deref())?;
            let now = ObjectStored { tags: tags.clone(), ..found.clone() };
            (now != *found).then(|| {
                let now = Some(ObjectStored { versioned: state.versioned, ..now });
                ObjectTagged { bucket: bucket.clone(), object: object.clone(), now }.into()
            })
        }
        Command::Move { before, after, reason } => {
            let is_there = state.version(&before.version).and_then(Version::object) == Some(before);
            is_there.then(|| {
                let (bucket, object, reason) = (before.bucket.clone(), before.object.clone(), reason.clone());
                let now = Some(ObjectStored { versioned: state.versioned, ..after.clone() });
                ObjectMoved { bucket, object, now, reason }.into()
            })
        }
    })
}

fn dropped(object: &ObjectStored) -> Fact {
    let (bucket, upload) = (object.bucket.clone(), object.upload.clone());
    UploadDropped { bucket, object: object.object.clone(), upload }.into()
}

/// The state after a fact. Facts of other entities change nothing.
pub fn evolve(mut state: State, fact: &Fact) -> State {
    state.versioned |= is_versioned(fact);
    match fact {
        Fact::ObjectStored(m) => {
            if !m.upload.is_empty() {
                state.uploads.insert(m.upload.clone(), Outcome::Visible { version: m.version.clone() });
            }
            state.store(Version::Object(m.clone()));
        }
        Fact::MarkerStored(m) => state.store(Version::Marker(m.clone())),
        Fact::ObjectMoved(ObjectMoved { bucket, object, now, .. })
        | Fact::ObjectTagged(ObjectTagged { bucket, object, now }) => {
            if let Some(now) = now.clone() {
                state.change(&ObjectStored { bucket: bucket.clone(), object: object.clone(), ..now });
            }
        }
        Fact::ObjectDeleted(m) => state.versions.retain(|version| version.name() != m.version),
        Fact::UploadDropped(m) => {
            state.uploads.insert(m.upload.clone(), Outcome::Dropped);
        }
        Fact::UploadStarted(_)
        | Fact::PartStored(_)
        | Fact::UploadEnded(_)
        | Fact::ScrubClaimed(_)
        | Fact::ScrubEnded(_) => {}
    }
    state
}

/// An object waits for nothing: what is due is decided by requests and by [`super::uploads::due`].
pub fn due(_: &State) -> Option<Timestamp> {
    None
}

/// The version whose fragments nothing needs once a fact is stored, with only the parts that are to be removed.
pub fn garbage(before: &State, fact: &Fact) -> Option<ObjectStored> {
    let name = match fact {
        Fact::ObjectStored(m) => &m.version,
        Fact::MarkerStored(m) => &m.version,
        Fact::ObjectDeleted(m) => &m.version,
        _ => return None,
    };
    let mut removed = before.version(name)?.object()?.clone();
    let after = evolve(before.clone(), fact);
    let kept: BTreeSet<&[u8]> =
        after.versions.iter().filter_map(Version::object).flat_map(|o| &o.parts).map(|part| &*part.blob).collect();
    removed.parts.retain(|part: &Part| !kept.contains(&*part.blob));
    (!removed.parts.is_empty()).then_some(removed)
}

#[cfg(test)]
mod tests;
