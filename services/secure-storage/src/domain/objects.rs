//! The decision about one object: what is visible under a key, and what may replace, remove or move it.
//!
//! An entity is one key of one life of a bucket (`[bucket, object]`). [`crate::objects::ObjectStore`] calls these
//! functions itself, without a decider's shell: a durable command before each put would cost a second synced write.
//! Each decision is at most one fact, written on the condition that the entity has not moved. If it has, the store
//! folds the facts that it missed and decides again.
//!
//! Invariants, which the property tests hold:
//!
//! - a condition is decided against the object that the fact replaces;
//! - a completed upload becomes visible at most once, or is dropped, and never both;
//! - the fragments that a visible object needs are never garbage.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::Key;
use mesh_proto::{
    Timestamp,
    deciders::stream_object::Event as Fact,
    object::{ObjectDeleted, ObjectMoved, ObjectStored, Part, UploadDropped},
};

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
    pub fn holds(&self, now: Option<&ObjectStored>) -> bool {
        let named = |now: &ObjectStored| self.if_match.iter().any(|etag| etag == "*" || *etag == now.etag);
        let matches = self.if_match.is_empty() || now.is_some_and(named);
        matches && !(self.if_none && now.is_some())
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
    },
    /// Make a completed upload visible, for the request that completed it.
    Complete {
        /// The object that the upload becomes.
        object: ObjectStored,
        /// Of the request.
        condition: Condition,
    },
    /// Make a completed upload visible, for a request whose gateway stopped in between.
    Finish {
        /// The object that the upload becomes.
        object: ObjectStored,
        /// The write that was visible when the upload ended ([`write_id`]); what came later is not overwritten.
        replaces: String,
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
    /// Remove the object.
    Delete {
        /// The fact of it.
        fact: ObjectDeleted,
        /// Of the request.
        condition: Condition,
    },
    /// Change where its fragments rest or how its key is wrapped; its bytes stay.
    Move {
        /// The object as it was read.
        before: ObjectStored,
        /// The object as it is now.
        after: ObjectStored,
        /// Why.
        reason: String,
    },
}

/// Why a command is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The condition of the request does not hold.
    #[error("the object does not meet the conditions of the request")]
    Precondition,
    /// The upload became an object, or was dropped, before.
    #[error("the upload was completed or aborted before")]
    NoUpload,
}

/// How a completed upload came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It became the object, which may have been replaced since.
    Visible,
    /// It became nothing.
    Dropped,
}

/// An object, folded from its facts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// The object that is visible.
    pub now: Option<ObjectStored>,
    /// Uploads that came out, of the facts that were folded.
    pub uploads: BTreeMap<String, Outcome>,
}

/// Names the write that made an object visible: its upload, or the random id of its data key.
pub fn write_id(object: &ObjectStored) -> String {
    match object.upload.as_str() {
        "" => object.layout.as_ref().map(|layout| hex::encode(&layout.key_id)).unwrap_or_default(),
        upload => upload.to_owned(),
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
        Command::Drop { bucket, object, .. } => Key::new([bucket, object]),
        Command::Delete { fact, .. } => Key::new([&fact.bucket, &fact.object]),
        Command::Move { before, .. } => Key::new([&before.bucket, &before.object]),
    }
}

/// The fact that follows; `None` if nothing changes: what the command asks for holds already.
///
/// # Errors
/// When the command must not be carried out.
pub fn decide(state: &State, command: &Command) -> Result<Option<Fact>, Refused> {
    let now = state.now.as_ref();
    Ok(match command {
        Command::Put { condition, .. } if !condition.holds(now) => return Err(Refused::Precondition),
        Command::Put { object, .. } => Some(object.clone().into()),
        Command::Complete { object, condition } => match state.uploads.get(&object.upload) {
            Some(Outcome::Visible) => None,
            Some(Outcome::Dropped) => return Err(Refused::NoUpload),
            None if condition.holds(now) => Some(object.clone().into()),
            None => Some(dropped(object)),
        },
        Command::Finish { object, replaces } => match state.uploads.get(&object.upload) {
            Some(_) => None,
            None if now.map(write_id).unwrap_or_default() == *replaces => Some(object.clone().into()),
            None => Some(dropped(object)),
        },
        Command::Drop { bucket, object, upload } => match state.uploads.get(upload) {
            Some(Outcome::Visible) => return Err(Refused::NoUpload),
            Some(Outcome::Dropped) => None,
            None => {
                let (bucket, object, upload) = (bucket.clone(), object.clone(), upload.clone());
                Some(UploadDropped { bucket, object, upload }.into())
            }
        },
        Command::Delete { condition, .. } if !condition.holds(now) => return Err(Refused::Precondition),
        Command::Delete { fact, .. } => now.map(|_| fact.clone().into()),
        Command::Move { before, after, reason } => (now == Some(before)).then(|| {
            let (bucket, object, reason) = (before.bucket.clone(), before.object.clone(), reason.clone());
            ObjectMoved { bucket, object, now: Some(after.clone()), reason }.into()
        }),
    })
}

fn dropped(object: &ObjectStored) -> Fact {
    let (bucket, upload) = (object.bucket.clone(), object.upload.clone());
    UploadDropped { bucket, object: object.object.clone(), upload }.into()
}

/// The state after a fact. Facts of other entities change nothing.
pub fn evolve(mut state: State, fact: &Fact) -> State {
    match fact {
        Fact::ObjectStored(m) => {
            if !m.upload.is_empty() {
                state.uploads.insert(m.upload.clone(), Outcome::Visible);
            }
            state.now = Some(m.clone());
        }
        Fact::ObjectMoved(m) => {
            let (bucket, object) = (m.bucket.clone(), m.object.clone());
            state.now = m.now.clone().map(|now| ObjectStored { bucket, object, ..now });
        }
        Fact::ObjectDeleted(_) => state.now = None,
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

/// The object whose fragments nothing needs once a fact is stored, with only the parts that are to be removed.
pub fn garbage(before: &State, fact: &Fact) -> Option<ObjectStored> {
    let mut replaced = before.now.clone()?;
    let kept: BTreeSet<&[u8]> = match fact {
        Fact::ObjectStored(m) => m.parts.iter().map(|part| &*part.blob).collect(),
        Fact::ObjectDeleted(_) => BTreeSet::new(),
        _ => return None,
    };
    replaced.parts.retain(|part: &Part| !kept.contains(&*part.blob));
    (!replaced.parts.is_empty()).then_some(replaced)
}

#[cfg(test)]
mod tests;
