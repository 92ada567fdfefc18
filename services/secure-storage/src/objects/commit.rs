//! The commit protocol: loads an entity of `OBJECT`, asks its decider ([`crate::domain`]), and writes the fact on the
//! condition that the entity has not moved.

use std::collections::BTreeMap;

use mesh_bus::Written;
use mesh_core::{Decision, Key, Outgoing, Stored};
use mesh_proto::{
    Event as _,
    deciders::stream_object::Event as Fact,
    derived_id,
    object::{MarkerStored, ObjectDeleted, ObjectMoved, ObjectStored, ObjectTagged, Part, PartStored},
};

use super::{Error, ObjectStore};
use crate::domain::{
    event,
    objects::{self, Need, Outcome},
    storages::Versioning,
    uploads,
};

/// Attempts at a write whose entity moves each time.
const ATTEMPTS_MAX: usize = 64;
/// Facts of one entity that are read at once, at most.
const FACTS_MAX: usize = 100 * uploads::PARTS_MAX as usize;

/// What became of a command about an object.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    /// The fact that was stored; `None` if nothing had to change.
    pub(crate) fact: Option<Fact>,
    /// The version whose fragments nothing needs any more.
    pub(crate) garbage: Option<ObjectStored>,
    /// How the upload of the command came out, whoever decided it.
    pub(crate) outcome: Option<Outcome>,
}

/// Which parts of an upload are to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parts<'a> {
    None,
    Number(&'a str),
    All,
}

/// An entity and the sequence of its last fact, 0 if it has none.
struct Folded<S> {
    state: S,
    last: u64,
    /// Of all of its facts.
    is_whole: bool,
}

impl ObjectStore {
    /// The facts under a filter from a sequence on.
    async fn facts(&self, filter: &str, from: u64) -> Result<Vec<(Stored, Fact)>, Error> {
        let log = self.mesh.bus().log(ObjectStored::STREAM);
        let stored = log.read(filter, from.max(1), FACTS_MAX).await.map_err(Error::internal)?;
        if stored.len() >= FACTS_MAX {
            return Err(Error::Unavailable(format!(
                "{filter} has {FACTS_MAX} facts or more; use another key or upload"
            )));
        }
        stored.into_iter().map(readable).collect()
    }

    /// The last fact of an entity.
    pub(crate) async fn last_fact(&self, key: &Key) -> Result<Option<(Stored, Fact)>, Error> {
        let log = self.mesh.bus().log(ObjectStored::STREAM);
        let last = log.last(&key.entity(ObjectStored::AREA)).await.map_err(Error::internal)?;
        last.map(readable).transpose()
    }

    /// Writes one fact on the condition that the entity's last fact is still this one; `false` if it has moved.
    pub(crate) async fn write_fact(&self, key: &Key, fact: &Fact, expected: u64, id: String) -> Result<bool, Error> {
        let outgoing = Outgoing::new(any(fact), id, self.mesh.now()).map_err(Error::internal)?;
        let decision = Decision { entity: key.entity(ObjectStored::AREA), expected, messages: vec![outgoing] };
        let written = self.mesh.bus().writer(ObjectStored::STREAM).write(decision).await.map_err(Error::internal)?;
        Ok(matches!(written, Written::Stored { .. }))
    }

    /// The last fact about versions: one about an upload that was dropped is not.
    async fn last_visible(&self, key: &Key) -> Result<Option<Fact>, Error> {
        let log = self.mesh.bus().log(ObjectStored::STREAM);
        let mut last = None;
        for filter in [
            subject::<ObjectStored>(key),
            subject::<ObjectMoved>(key),
            subject::<ObjectTagged>(key),
            subject::<MarkerStored>(key),
            subject::<ObjectDeleted>(key),
        ] {
            let found = log.last(&filter).await.map_err(Error::internal)?.map(readable).transpose()?;
            last = last.into_iter().chain(found).max_by_key(|(stored, _): &(Stored, Fact)| stored.sequence);
        }
        Ok(last.map(|(_, fact)| fact))
    }

    /// Are versions kept in a bucket, as far as this gateway knows?
    pub(crate) fn versioning(&self, bucket: &str) -> Versioning {
        self.view.read(|view| view.known.buckets.get(bucket).map(|bucket| bucket.versioning).unwrap_or_default())
    }

    /// An object, with as much of its history as is needed: of its last fact alone if that suffices, else of all. The facts
    /// from `from` on, if any, say how uploads came out.
    async fn object_folded(&self, key: &Key, need: Need, from: Option<u64>) -> Result<Folded<objects::State>, Error> {
        let Some((stored, fact)) = self.last_fact(key).await? else {
            return Ok(Folded { state: objects::initial(), last: 0, is_whole: true });
        };
        let mut folded = Folded { state: objects::initial(), last: stored.sequence, is_whole: false };
        let visible = match fact {
            Fact::UploadDropped(_) => self.last_visible(key).await?,
            fact => Some(fact),
        };
        if visible.as_ref().is_some_and(|fact| !objects::suffices(fact, need)) {
            folded.is_whole = true;
            for (stored, fact) in self.facts(&key.entity(ObjectStored::AREA), 1).await? {
                folded.state = objects::evolve(folded.state, &fact);
                folded.last = stored.sequence;
            }
            return Ok(folded);
        }
        folded.state = visible.iter().fold(folded.state, objects::evolve);
        if let Some(from) = from.filter(|from| *from <= folded.last) {
            for (stored, fact) in self.facts(&key.entity(ObjectStored::AREA), from).await? {
                folded.state = objects::evolve(folded.state, &fact);
                folded.last = stored.sequence;
            }
        }
        Ok(folded)
    }

    /// The visible object, or the delete marker over it.
    pub(crate) async fn latest(&self, key: &Key) -> Result<objects::State, Error> {
        Ok(self.object_folded(key, Need::Latest, None).await?.state)
    }

    /// All versions.
    pub(crate) async fn versions(&self, key: &Key) -> Result<objects::State, Error> {
        Ok(self.object_folded(key, Need::All, None).await?.state)
    }

    /// The object that is visible.
    pub(crate) async fn visible(&self, key: &Key) -> Result<Option<ObjectStored>, Error> {
        Ok(self.latest(key).await?.now().cloned())
    }

    /// Decides about an object and stores what was decided. An upload came out after `from`, if at all.
    pub(crate) async fn decide(&self, command: &objects::Command, from: Option<u64>) -> Result<Decided, Error> {
        let (key, need) = (objects::concerns(command), objects::needs(command));
        let outcome = |state: &objects::State| match command {
            objects::Command::Complete { object, .. } | objects::Command::Finish { object, .. } => {
                state.uploads.get(&object.upload).cloned()
            }
            objects::Command::Drop { upload, .. } => state.uploads.get(upload).cloned(),
            _ => None,
        };
        let mut folded = self.object_folded(&key, need, from).await?;
        for _ in 0..ATTEMPTS_MAX {
            let Some(fact) = objects::decide(&folded.state, command)? else {
                return Ok(Decided { outcome: outcome(&folded.state), ..Decided::default() });
            };
            let id = self.fact_id(&key, &fact, folded.last)?;
            let mut stored = self.write_fact(&key, &fact, folded.last, id.clone()).await?;
            if !stored {
                let missed = self.facts(&key.entity(ObjectStored::AREA), folded.last + 1).await?;
                // Ours, and its acknowledgement was lost on its way.
                stored = missed.iter().any(|(found, _)| found.id == id);
                if !stored && !folded.is_whole {
                    // What became visible may be of a fact that was not folded.
                    folded = self.object_folded(&key, need, from).await?;
                    continue;
                }
                if !stored {
                    for (found, fact) in missed {
                        folded.state = objects::evolve(folded.state, &fact);
                        folded.last = found.sequence;
                    }
                }
            }
            if stored {
                let garbage = objects::garbage(&folded.state, &fact);
                let outcome = outcome(&objects::evolve(folded.state, &fact));
                return Ok(Decided { garbage, outcome, fact: Some(fact) });
            }
        }
        Err(Error::Unavailable("the object changes faster than it can be written; try again".into()))
    }

    /// An upload with these parts, and the sequence of its last fact about begin or end.
    async fn upload_folded(&self, key: &Key, parts: Parts<'_>) -> Result<Folded<uploads::State>, Error> {
        let mut facts = BTreeMap::new();
        let number = match parts {
            Parts::None => None,
            Parts::Number(number) => Some(number),
            Parts::All => Some("*"),
        };
        // Parts first: none of these can be older than an end that is not there yet when the upload is read.
        if let Some(number) = number {
            let of_parts = Key::new(key.0.iter().map(String::as_str).chain([number]));
            let read = self.facts(&of_parts.entity(PartStored::AREA), 1).await?;
            facts.extend(read.into_iter().map(|(stored, fact)| (stored.sequence, (stored, fact))));
        }
        let life = self.facts(&key.entity(ObjectStored::AREA), 1).await?;
        let last = life.last().map_or(0, |(stored, _)| stored.sequence);
        facts.extend(life.into_iter().map(|(stored, fact)| (stored.sequence, (stored, fact))));
        let state = facts
            .into_values()
            .fold(uploads::initial(), |state, (stored, fact)| uploads::evolve(state, &fact, stored.time));
        Ok(Folded { state, last, is_whole: true })
    }

    /// An upload with these parts.
    pub(crate) async fn upload(&self, key: &Key, parts: Parts<'_>) -> Result<uploads::State, Error> {
        Ok(self.upload_folded(key, parts).await?.state)
    }

    /// Decides about the begin or end of an upload, and stores what was decided; returns the upload as it is then.
    pub(crate) async fn decide_upload(&self, command: &uploads::Command) -> Result<uploads::State, Error> {
        let key = uploads::concerns(command);
        for _ in 0..ATTEMPTS_MAX {
            let folded = self.upload_folded(&key, Parts::All).await?;
            let Some(fact) = uploads::decide(&folded.state, command)? else { return Ok(folded.state) };
            let id = self.fact_id(&key, &fact, folded.last)?;
            let mut stored = self.write_fact(&key, &fact, folded.last, id.clone()).await?;
            if !stored {
                let since = self.facts(&key.entity(ObjectStored::AREA), folded.last + 1).await?;
                stored = since.iter().any(|(found, _)| found.id == id);
            }
            if stored {
                return self.upload(&key, Parts::All).await;
            }
        }
        Err(Error::Unavailable("the upload changes faster than it can be decided; try again".into()))
    }

    /// Stores a part whose bytes are written. It counts only if its fact precedes the end of the upload.
    pub(crate) async fn add_part(&self, fact: PartStored) -> Result<(), Error> {
        let upload = Key::new([&fact.bucket, &fact.upload]);
        let part_key = Key::new([&fact.bucket, &fact.upload, &fact.number]);
        let (blob, number) = (fact.part.clone().unwrap_or_default().blob, fact.number.clone());
        let command = uploads::Command::AddPart(fact);
        for _ in 0..ATTEMPTS_MAX {
            let before = self.upload(&upload, Parts::Number(&number)).await?;
            // Ours, and its acknowledgement was lost on its way: its bytes must stay, whatever became of the upload.
            if before.took(&blob) {
                return Ok(());
            }
            let Some(fact) = uploads::decide(&before, &command)? else { return Ok(()) };
            let last = self.last_fact(&part_key).await?.map_or(0, |(stored, _)| stored.sequence);
            let id = derived_id(&["part", &hex::encode(&blob), &last.to_string()]);
            if self.write_fact(&part_key, &fact, last, id).await? {
                let after = self.upload(&upload, Parts::Number(&number)).await?;
                return if after.took(&blob) { Ok(()) } else { Err(uploads::Refused::NoUpload.into()) };
            }
        }
        Err(Error::Unavailable("the part changes faster than it can be written; try again".into()))
    }

    /// The same for the same write at the same point, so that sending it twice stores it once.
    fn fact_id(&self, key: &Key, fact: &Fact, last: u64) -> Result<String, Error> {
        let unique = match fact {
            // Decided alike by every gateway and every attempt of the same request, and by no other request.
            Fact::ObjectStored(m) if m.version.is_empty() => format!("stored {}", objects::write_id(m)),
            // Another gateway may not know yet that versions are kept.
            Fact::ObjectStored(m) => format!("stored {} as {}", objects::write_id(m), m.version),
            Fact::UploadStarted(m) => format!("started {}", m.upload),
            // Two requests may decide the same here; only the one that is stored may take it for its own.
            _ => hex::encode(crate::keys::random::<16>().map_err(Error::internal)?),
        };
        Ok(derived_id(&["object", &key.to_string(), &unique, &last.to_string()]))
    }
}

/// The fact of a stored message. One that cannot be read must not be passed over: the decision would be wrong.
fn readable(stored: Stored) -> Result<(Stored, Fact), Error> {
    match event::<Fact>(&stored) {
        Some(fact) => Ok((stored, fact)),
        None => Err(Error::Internal(format!(
            "cannot read fact {} of {}, a {}; is it of a later release?",
            stored.sequence, stored.stream, stored.message
        ))),
    }
}

/// The subject of an event of an entity.
fn subject<E: mesh_proto::Event>(key: &Key) -> String {
    let mut keys = key.0.iter().map(String::as_str);
    let token = |token| if str::starts_with(token, '{') { keys.next().unwrap_or("*") } else { token };
    E::SUBJECT.split('.').map(token).collect::<Vec<_>>().join(".")
}

fn any(fact: &Fact) -> &dyn mesh_proto::AnyEvent {
    use mesh_proto::EventSet as _;
    fact.any()
}

/// The parts of objects, by blob.
pub(crate) fn blobs(parts: &[Part]) -> impl Iterator<Item = bytes::Bytes> + '_ {
    parts.iter().map(|part| part.blob.clone())
}
