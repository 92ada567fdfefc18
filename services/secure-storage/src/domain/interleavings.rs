//! The life of objects and uploads in seeded runs: puts with slow bodies, copies, deletes, parts, Complete, Abort, conditions,
//! versions that are kept, suspended, tagged and deleted, on two gateways that stop anywhere and learn late that versions are
//! kept, with writes whose acknowledgement is lost. What was answered is true, each version is whole, and each one that was
//! answered is there with its bytes until it is deleted or replaced. The steps are those of the shell in `objects/commit.rs` and `objects/multipart.rs`.

use std::collections::BTreeMap;

use super::{
    object_token,
    objects::{self, Command, Condition, Need, Version},
    storages::Versioning,
    uploads,
};
use mesh_proto::{
    EventSet as _, Timestamp,
    deciders::stream_object::Event as Fact,
    object::{Layout, MarkerStored, ObjectDeleted, ObjectStored, Part, PartStored, UploadStarted},
};

const BUCKET: &str = "b";
const UPLOADS: [&str; 2] = ["u0", "u1"];

#[derive(Clone, Debug)]
enum Request {
    Put {
        condition: Condition,
        /// Steps that its body takes.
        body: u32,
    },
    /// Reads what is visible, and puts it again.
    Copy {
        condition: Condition,
    },
    Delete {
        condition: Condition,
    },
    /// Deletes one of the versions for good.
    DeleteVersion {
        which: usize,
        /// Steps that pass before.
        wait: u32,
    },
    /// Gives the visible version a tag.
    Tag {
        value: u8,
    },
    /// Versions are kept from now on, or no longer.
    Configure {
        versioning: Versioning,
    },
    Part {
        upload: usize,
        number: u32,
        content: u8,
        /// Steps that its body takes.
        body: u32,
    },
    Complete {
        upload: usize,
        named: Vec<(u32, u8)>,
        condition: Condition,
    },
    Abort {
        upload: usize,
    },
    /// What another gateway does for one that stopped.
    Finish {
        upload: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Refused,
    /// The bus did not say whether the fact is stored, or the bytes to copy are gone: an error of the server.
    Failed,
}

/// Faults that are put in on purpose: those that once lost objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// A part removes the one that it replaces when its body has ended.
    PartRemovesReplaced,
    /// A Complete takes the end of the upload for its own, whichever list ended it, and removes the other parts.
    CompleteTakesAnother,
    /// A condition is decided before the body, and not with the fact.
    ConditionBefore,
    /// A put removes what was visible, though it is a version that stays.
    PutRemovesVersion,
    /// A delete by name is decided on the last fact alone.
    LatestForAll,
}

/// A request on its way through a gateway.
struct Running {
    request: Request,
    step: u32,
    part: Part,
    /// What its body holds.
    content: u8,
    /// Parts that it read or found.
    source: Vec<Part>,
    /// What its gateway knows of the bucket.
    versioning: Versioning,
    /// The fact that carried it out.
    fact: Option<Fact>,
    /// The end of the upload that it decided.
    ended: Option<Fact>,
    state: objects::State,
    last: u64,
    upload: uploads::State,
    upload_last: u64,
    command: Option<Command>,
    answer: Option<Answer>,
}

#[derive(Default)]
struct World {
    log: Vec<Fact>,
    /// Blobs whose fragments are in the locations, with their contents.
    blobs: BTreeMap<Vec<u8>, u8>,
    /// Every blob that was ever written.
    written: BTreeMap<Vec<u8>, u8>,
    names: u16,
    /// Does the next write lose its acknowledgement?
    lossy: bool,
    fault: Fault,
    versioning: Versioning,
}

fn keys(fact: &Fact) -> Vec<String> {
    fact.any().keys().into_iter().map(Into::into).collect()
}

fn etag(content: u8) -> String {
    hex::encode([content; 16])
}

impl World {
    fn of(&self, key: &[&str]) -> Vec<(u64, &Fact)> {
        let numbered = self.log.iter().enumerate().map(|(index, fact)| (index as u64 + 1, fact));
        numbered.filter(|(_, fact)| keys(fact) == key).collect()
    }

    fn last(&self, key: &[&str]) -> u64 {
        self.of(key).last().map_or(0, |(sequence, _)| *sequence)
    }

    /// Appends a fact if its entity has not moved.
    fn append(&mut self, fact: Fact, expected: u64) -> bool {
        let key = keys(&fact);
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        let fits = self.last(&key) == expected;
        if fits {
            self.log.push(fact);
        }
        fits
    }

    fn object(&self) -> (objects::State, u64) {
        let token = object_token(BUCKET, 1, "k");
        let facts = self.of(&[BUCKET, &token]);
        let state = facts.iter().fold(objects::initial(), |state, (_, fact)| objects::evolve(state, fact));
        (state, facts.last().map_or(0, |(sequence, _)| *sequence))
    }

    /// The object as a gateway reads it: from its last fact alone, if that suffices.
    fn read(&self, need: Need) -> (objects::State, u64) {
        let token = object_token(BUCKET, 1, "k");
        let facts = self.of(&[BUCKET, &token]);
        let about = facts.iter().rev().find(|(_, fact)| !matches!(fact, Fact::UploadDropped(_)));
        let (mut state, last) = self.object();
        if let Some((_, fact)) = about.filter(|(_, fact)| objects::suffices(fact, need)) {
            state.versions = objects::evolve(objects::initial(), fact).versions;
        }
        (state, last)
    }

    fn upload(&self, upload: &str) -> (uploads::State, u64) {
        let of_upload = self.log.iter().filter(|fact| keys(fact).get(1).is_some_and(|key| key == upload));
        let evolve = |state, fact: &Fact| uploads::evolve(state, fact, Timestamp::from_millis(1));
        (of_upload.fold(uploads::initial(), evolve), self.last(&[BUCKET, upload]))
    }

    fn write(&mut self, content: u8) -> Part {
        self.names += 1;
        let blob = self.names.to_be_bytes().repeat(8);
        self.blobs.insert(blob.clone(), content);
        self.written.insert(blob.clone(), content);
        Part { blob: blob.into(), size: uploads::PART_MIN_BYTES }
    }

    /// What was written as these parts.
    fn contents(&self, parts: &[Part]) -> Vec<u8> {
        parts.iter().filter_map(|part| self.written.get(&*part.blob).copied()).collect()
    }

    fn remove(&mut self, parts: &[Part]) {
        for part in parts {
            self.blobs.remove(&*part.blob);
        }
    }

    /// Decides about the object on what the request knows; `false` if it has to look again.
    fn decide(&mut self, running: &mut Running) -> bool {
        let Some(mut command) = running.command.clone() else { return true };
        if let (Fault::ConditionBefore, Command::Put { condition, .. }) = (self.fault, &mut command) {
            *condition = Condition::default();
        }
        let fact = match objects::decide(&running.state, &command) {
            Ok(Some(fact)) => fact,
            Ok(None) => {
                running.answer = Some(Answer::Done);
                return true;
            }
            Err(_) => {
                running.answer = Some(Answer::Refused);
                if matches!(command, Command::Put { .. }) {
                    self.remove(std::slice::from_ref(&running.part));
                }
                return true;
            }
        };
        if !self.append(fact.clone(), running.last) {
            return false;
        }
        if std::mem::take(&mut self.lossy) {
            // Nothing is removed: a scrub finds what belongs to nothing.
            running.answer = Some(Answer::Failed);
            return true;
        }
        if let Some(garbage) = objects::garbage(&running.state, &fact) {
            self.remove(&garbage.parts);
        }
        if let (Fault::PutRemovesVersion, Fact::ObjectStored(_), Some(now)) = (self.fault, &fact, running.state.now()) {
            let parts = now.parts.clone();
            self.remove(&parts);
        }
        running.fact = Some(fact.clone());
        match (&fact, &command) {
            (Fact::UploadDropped(_), Command::Drop { .. }) => self.remove(&running.upload.all()),
            (Fact::UploadDropped(_), _) => {
                self.remove(&running.upload.all());
                running.answer = Some(Answer::Refused);
                return true;
            }
            (Fact::ObjectStored(m), _) if !m.upload.is_empty() => self.remove(&running.upload.garbage()),
            _ => {}
        }
        running.answer = Some(Answer::Done);
        true
    }

    /// One step of a request.
    fn advance(&mut self, running: &mut Running) {
        if running.answer.is_some() {
            return;
        }
        let step = running.step;
        running.step += 1;
        let fault = self.fault;
        let look = move |world: &Self, running: &mut Running| {
            let need = running.command.as_ref().map_or(Need::Latest, objects::needs);
            let need = if fault == Fault::LatestForAll { Need::Latest } else { need };
            (running.state, running.last) = world.read(need);
        };
        if step == 0 {
            running.versioning = self.versioning;
        }
        let versioning = running.versioning;
        match running.request.clone() {
            Request::Put { condition, body } => match step {
                0 => {
                    look(self, running);
                    if condition.check(running.state.now()).is_err() {
                        running.answer = Some(Answer::Refused);
                    }
                }
                step if step <= body => {}
                step if step == body + 1 => {
                    running.part = self.write(running.content);
                    let object = object(vec![running.part.clone()]);
                    running.command = Some(Command::Put { object, condition, versioning });
                }
                step if step == body + 2 => look(self, running),
                _ if self.decide(running) => {}
                _ => running.step = body + 2,
            },
            Request::Copy { condition } => match step {
                0 => {
                    look(self, running);
                    running.source = running.state.now().map(|now| now.parts.clone()).unwrap_or_default();
                    if running.source.is_empty() {
                        running.answer = Some(Answer::Refused);
                    }
                }
                1 => {
                    let read: Option<Vec<u8>> =
                        running.source.iter().map(|part| self.blobs.get(&*part.blob).copied()).collect();
                    match read {
                        // Replaced while it was read: an error, and never other bytes.
                        None => running.answer = Some(Answer::Failed),
                        Some(read) => {
                            running.content = read[0];
                            running.part = self.write(read[0]);
                            let object = object(vec![running.part.clone()]);
                            running.command = Some(Command::Put { object, condition, versioning });
                        }
                    }
                }
                2 => look(self, running),
                _ if self.decide(running) => {}
                _ => running.step = 2,
            },
            Request::Delete { condition } => match step {
                0 => {
                    self.names += 1;
                    let (object, version) = (object_token(BUCKET, 1, "k"), format!("marker-{}", self.names));
                    let marker = MarkerStored {
                        bucket: BUCKET.into(),
                        object,
                        key: "k".into(),
                        epoch: 1,
                        version,
                        ..MarkerStored::default()
                    };
                    running.command = Some(Command::Delete { marker, condition, versioning });
                    look(self, running);
                }
                _ if self.decide(running) => {}
                _ => running.step = 0,
            },
            Request::DeleteVersion { which, wait } => match step {
                step if step < wait => {}
                step if step == wait => {
                    let versions = self.object().0.versions;
                    let Some(version) = versions.get(which % versions.len().max(1)) else {
                        running.answer = Some(Answer::Refused);
                        return;
                    };
                    let (object, version) = (object_token(BUCKET, 1, "k"), version.name().to_owned());
                    let fact = ObjectDeleted {
                        bucket: BUCKET.into(),
                        object,
                        key: "k".into(),
                        epoch: 1,
                        version,
                        ..ObjectDeleted::default()
                    };
                    running.command = Some(Command::DeleteVersion { fact, condition: Condition::default() });
                }
                step if step == wait + 1 => look(self, running),
                _ if self.decide(running) => {}
                _ => running.step = wait + 1,
            },
            Request::Tag { value } => match step {
                0 => {
                    let tags = BTreeMap::from([("tag".to_owned(), value.to_string())]);
                    let (bucket, object) = (BUCKET.to_owned(), object_token(BUCKET, 1, "k"));
                    running.command = Some(Command::Tag { bucket, object, version: None, tags });
                }
                1 => look(self, running),
                _ if self.decide(running) => {}
                _ => running.step = 1,
            },
            Request::Configure { versioning } => {
                self.versioning = versioning;
                running.answer = Some(Answer::Done);
            }
            Request::Part { upload, number, content, body } => match step {
                0 => {
                    if self.upload(UPLOADS[upload]).0.open().is_err() {
                        running.answer = Some(Answer::Refused);
                    }
                    let state = self.upload(UPLOADS[upload]).0;
                    running.source = state.parts.get(&number).map(|stored| stored.part.clone()).into_iter().collect();
                }
                step if step <= body => {}
                step if step == body + 1 => running.part = self.write(content),
                step if step == body + 2 => (running.upload, _) = self.upload(UPLOADS[upload]),
                step if step == body + 3 => {
                    let fact = PartStored {
                        bucket: BUCKET.into(),
                        upload: UPLOADS[upload].into(),
                        number: number.to_string(),
                        part: Some(running.part.clone()),
                        etag: etag(content),
                        ..PartStored::default()
                    };
                    match uploads::decide(&running.upload, &uploads::Command::AddPart(fact)) {
                        Ok(Some(fact)) => {
                            self.log.push(fact);
                            if std::mem::take(&mut self.lossy) {
                                running.answer = Some(Answer::Failed);
                            }
                        }
                        _ => {
                            self.remove(std::slice::from_ref(&running.part));
                            running.answer = Some(Answer::Refused);
                        }
                    }
                }
                _ => {
                    let taken = self.upload(UPLOADS[upload]).0.took(&running.part.blob);
                    if !taken {
                        self.remove(std::slice::from_ref(&running.part));
                    }
                    if self.fault == Fault::PartRemovesReplaced {
                        let replaced = running.source.clone();
                        self.remove(&replaced);
                    }
                    running.answer = Some(if taken { Answer::Done } else { Answer::Refused });
                }
            },
            Request::Complete { upload, named, condition } => match step {
                0 => {
                    look(self, running);
                    (running.upload, running.upload_last) = self.upload(UPLOADS[upload]);
                    if running.upload.ended.is_none() && condition.check(running.state.now()).is_err() {
                        running.answer = Some(Answer::Refused);
                    }
                }
                1 => {
                    let command = uploads::Command::Complete {
                        bucket: BUCKET.into(),
                        upload: UPLOADS[upload].into(),
                        named: named.iter().map(|(number, content)| (*number, etag(*content))).collect(),
                        claims: uploads::Claims::default(),
                        replaces: running.state.now().map(objects::write_id).unwrap_or_default(),
                        at: Timestamp::from_millis(2),
                    };
                    match uploads::decide(&running.upload, &command) {
                        Err(_) => running.answer = Some(Answer::Refused),
                        Ok(Some(fact)) => {
                            let appended = self.append(fact.clone(), running.upload_last);
                            if appended && std::mem::take(&mut self.lossy) {
                                running.answer = Some(Answer::Failed);
                            } else if !appended && self.fault != Fault::CompleteTakesAnother {
                                running.step = 0;
                            }
                            running.ended = Some(fact);
                        }
                        Ok(None) => {}
                    }
                }
                2 => {
                    (running.upload, _) = self.upload(UPLOADS[upload]);
                    if let (Fault::CompleteTakesAnother, Some(Fact::UploadEnded(own))) = (self.fault, &running.ended) {
                        running.upload.ended = Some((own.clone(), Timestamp::from_millis(2)));
                    }
                    match running.upload.object().cloned() {
                        Some(object) => running.command = Some(Command::Complete { object, condition, versioning }),
                        None => running.answer = Some(Answer::Refused),
                    }
                }
                3 => look(self, running),
                _ if self.decide(running) => {}
                _ => running.step = 3,
            },
            Request::Abort { upload } => match step {
                0 => (running.upload, running.upload_last) = self.upload(UPLOADS[upload]),
                1 => {
                    let (bucket, name) = (BUCKET.to_owned(), UPLOADS[upload].to_owned());
                    let abort = uploads::Command::Abort { bucket: bucket.clone(), upload: name.clone() };
                    match uploads::decide(&running.upload, &abort) {
                        Err(_) => running.answer = Some(Answer::Refused),
                        Ok(Some(fact)) => match self.append(fact, running.upload_last) {
                            true => {
                                let (upload, _) = self.upload(UPLOADS[upload]);
                                self.remove(&upload.garbage());
                                running.answer = Some(Answer::Done);
                            }
                            false => running.step = 0,
                        },
                        Ok(None) => {
                            let object = object_token(BUCKET, 1, "k");
                            running.command = Some(Command::Drop { bucket, object, upload: name });
                        }
                    }
                }
                2 => look(self, running),
                _ if self.decide(running) => {}
                _ => running.step = 2,
            },
            Request::Finish { upload } => match step {
                0 => {
                    (running.upload, _) = self.upload(UPLOADS[upload]);
                    match &running.upload.ended {
                        Some((ended, _)) if ended.object.is_some() => {
                            let (object, replaces) = (ended.object.clone().unwrap(), ended.replaces.clone());
                            running.command = Some(Command::Finish { object, replaces, versioning });
                        }
                        _ => running.answer = Some(Answer::Refused),
                    }
                }
                1 => look(self, running),
                _ if self.decide(running) => {}
                _ => running.step = 1,
            },
        }
    }

    /// What must hold at any time.
    fn check(&self) {
        let versions = self.object().0.versions;
        for part in versions.iter().filter_map(Version::object).flat_map(|object| &object.parts) {
            assert!(self.blobs.contains_key(&*part.blob), "a fragment of a version was removed: {:?}", self.log);
        }
        for upload in UPLOADS {
            let outcomes = self.log.iter().filter(|fact| match fact {
                Fact::ObjectStored(m) => m.upload == upload,
                Fact::UploadDropped(m) => m.upload == upload,
                _ => false,
            });
            assert!(outcomes.count() <= 1, "{upload} came out twice: {:?}", self.log);
        }
    }
}

/// An object of these parts, as a put writes it.
fn object(parts: Vec<Part>) -> ObjectStored {
    let key_id = parts.first().map(|part| part.blob.clone()).unwrap_or_default();
    ObjectStored {
        bucket: BUCKET.into(),
        object: object_token(BUCKET, 1, "k"),
        etag: hex::encode(&key_id),
        layout: Some(Layout { key_id, ..Layout::default() }),
        parts,
        ..ObjectStored::default()
    }
}

/// The name of the version that a fact stores or removes.
fn names_version(fact: &Fact) -> Option<&str> {
    match fact {
        Fact::ObjectStored(m) => Some(&m.version),
        Fact::MarkerStored(m) => Some(&m.version),
        Fact::ObjectDeleted(m) => Some(&m.version),
        _ => None,
    }
}

/// A version that was answered is there with its bytes, unless a later fact replaced or deleted that very version.
fn version_is_kept(world: &World, running: &Running) {
    let Some(Fact::ObjectStored(stored)) = &running.fact else { return };
    let at = world.log.iter().position(|fact| matches!(fact, Fact::ObjectStored(m) if m == stored)).unwrap();
    if world.log[at + 1..].iter().any(|fact| names_version(fact) == Some(&stored.version)) {
        return;
    }
    let (state, _) = world.object();
    let kept = state.find(Some(&stored.version)).expect("a version that was answered is gone");
    assert_eq!(kept.parts, stored.parts, "a version has other bytes than were answered: {:?}", world.log);
}

/// What must hold of an answer, given all that was stored.
fn answer_is_true(world: &World, running: &Running) {
    if running.answer != Some(Answer::Done) {
        return;
    }
    version_is_kept(world, running);
    let position = |is: &dyn Fn(&ObjectStored) -> bool| {
        world.log.iter().position(|fact| matches!(fact, Fact::ObjectStored(m) if is(m)))
    };
    let at = |index: usize| match &world.log[index] {
        Fact::ObjectStored(m) => m.clone(),
        _ => unreachable!(),
    };
    match &running.request {
        Request::Put { condition, .. } | Request::Copy { condition } => {
            let index = position(&|m| m.parts == [running.part.clone()]).expect("200, and the object was visible");
            assert_eq!(world.contents(&at(index).parts), [running.content], "other bytes than were put");
            // What was visible just before met the condition.
            let before = world.log[..index].iter().fold(objects::initial(), objects::evolve);
            assert!(condition.check(before.now()).is_ok(), "the condition did not hold: {:?}", world.log);
        }
        Request::Part { upload, .. } => {
            let end = world.log.iter().position(|f| matches!(f, Fact::UploadEnded(m) if m.upload == UPLOADS[*upload]));
            let own = |f: &Fact| matches!(f, Fact::PartStored(m) if m.part.as_ref() == Some(&running.part));
            let part = world.log.iter().position(own).unwrap();
            assert!(end.is_none_or(|end| part < end));
        }
        Request::Complete { upload, named, .. } => {
            let index = position(&|m| m.upload == UPLOADS[*upload]).expect("200, and the object was visible");
            let contents: Vec<u8> = named.iter().map(|(_, content)| *content).collect();
            assert_eq!(world.contents(&at(index).parts), contents, "other bytes than the list named");
        }
        Request::Delete { .. } if running.versioning != Versioning::Off => {
            assert!(matches!(running.fact, Some(Fact::MarkerStored(_))), "204, and there was no marker");
        }
        Request::DeleteVersion { .. } => {
            let Some(Command::DeleteVersion { fact, .. }) = &running.command else { unreachable!() };
            let gone = |found: &Fact| matches!(found, Fact::ObjectDeleted(m) if m.version == fact.version);
            assert!(running.fact.is_none() || world.log.iter().any(gone), "204, and nothing was deleted");
            // Only the null version comes back.
            let there = world.object().0.version(&fact.version).is_some();
            assert!(fact.version.is_empty() || !there, "204, and the version is there: {:?}", world.log);
        }
        Request::Delete { .. }
        | Request::Tag { .. }
        | Request::Configure { .. }
        | Request::Abort { .. }
        | Request::Finish { .. } => {}
    }
}

/// One turn of a schedule.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// A request takes a step.
    Step(usize),
    /// The same, and the acknowledgement of what it writes is lost.
    Lossy(usize),
    /// A gateway stops, with all its requests.
    Crash(usize),
}

/// Runs requests by a schedule, each on the gateway of its number modulo two. A request that the schedule does not end is one
/// whose gateway stopped.
fn run(requests: &[Request], schedule: &[Turn], fault: Fault) -> (World, Vec<Running>) {
    let mut world = World { fault, ..World::default() };
    for upload in UPLOADS {
        let (bucket, key) = (BUCKET.to_owned(), "k".to_owned());
        world.log.push(UploadStarted { bucket, upload: upload.into(), key, epoch: 1, ..Default::default() }.into());
        for number in 1..=2u8 {
            let (bucket, upload, part) = (BUCKET.to_owned(), upload.to_owned(), Some(world.write(number)));
            let etag = etag(number);
            let fact = PartStored { bucket, upload, number: number.to_string(), part, etag, ..Default::default() };
            world.log.push(fact.into());
        }
    }
    if requests.iter().any(|request| matches!(request, Request::Copy { .. })) {
        let part = world.write(99);
        world.log.push(object(vec![part]).into());
    }
    let start = |(index, request): (usize, &Request)| Running {
        request: request.clone(),
        step: 0,
        part: Part::default(),
        content: 100 + index as u8,
        source: vec![],
        versioning: Versioning::Off,
        fact: None,
        ended: None,
        state: objects::initial(),
        last: 0,
        upload: uploads::initial(),
        upload_last: 0,
        command: None,
        answer: None,
    };
    let mut running: Vec<Running> = requests.iter().enumerate().map(start).collect();
    let mut stopped = vec![false; requests.len()];
    for &turn in schedule {
        match turn {
            Turn::Step(index) | Turn::Lossy(index) if !stopped[index] => {
                world.lossy = matches!(turn, Turn::Lossy(_));
                world.advance(&mut running[index]);
                world.lossy = false;
            }
            Turn::Crash(gateway) => stopped.iter_mut().skip(gateway).step_by(2).for_each(|stopped| *stopped = true),
            _ => {}
        }
        world.check();
    }
    running.iter().for_each(|running| answer_is_true(&world, running));
    (world, running)
}

/// Numbers below a bound, the same for a seed everywhere (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn condition(&mut self) -> Condition {
        match self.below(6) {
            0 => Condition { if_none: true, ..Condition::default() },
            1 => Condition { if_match: vec!["*".into()], ..Condition::default() },
            _ => Condition::default(),
        }
    }

    fn request(&mut self) -> Request {
        let upload = self.below(2) as usize;
        match self.below(20) {
            14 => Request::DeleteVersion { which: self.below(4) as usize, wait: self.below(12) as u32 },
            15 => Request::Tag { value: self.below(3) as u8 },
            16 => Request::Configure { versioning: Versioning::Enabled },
            17 => Request::Configure { versioning: Versioning::Suspended },
            18 => Request::Delete { condition: self.condition() },
            0 | 1 | 19 => Request::Put { condition: self.condition(), body: self.below(6) as u32 },
            2 => Request::Copy { condition: self.condition() },
            3 => Request::Delete { condition: self.condition() },
            4..=6 => {
                let number = 1 + self.below(2) as u32;
                // Often the same bytes again.
                let content = if self.below(3) > 0 { number as u8 } else { 7 };
                Request::Part { upload, number, content, body: self.below(6) as u32 }
            }
            7..=9 => {
                let lists = [vec![(1, 1), (2, 2)], vec![(1, 1)], vec![(2, 2)], vec![(1, 7)], vec![(1, 1), (2, 7)]];
                let named = lists[self.below(5) as usize].clone();
                Request::Complete { upload, named, condition: self.condition() }
            }
            10 => Request::Abort { upload },
            11..=13 => Request::Finish { upload },
            _ => Request::Copy { condition: self.condition() },
        }
    }

    fn turn(&mut self, requests: usize) -> Turn {
        let index = self.below(requests as u64) as usize;
        match self.below(60) {
            0 => Turn::Crash(index % 2),
            1..=3 => Turn::Lossy(index),
            _ => Turn::Step(index),
        }
    }
}

fn simulate(seed: u64, fault: Fault) -> Vec<Running> {
    let mut draw = Draw(seed);
    let mut requests: Vec<Request> = (0..2 + draw.below(7)).map(|_| draw.request()).collect();
    if draw.below(2) == 0 {
        requests.insert(0, Request::Configure { versioning: Versioning::Enabled });
    }
    let schedule: Vec<Turn> = (0..20 + draw.below(100)).map(|_| draw.turn(requests.len())).collect();
    run(&requests, &schedule, fault).1
}

/// Does a seed hold?
fn holds(seed: u64, fault: Fault) -> Result<(), String> {
    std::panic::catch_unwind(|| simulate(seed, fault)).map(|_| ()).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

#[test]
fn what_was_answered_is_true_and_visible_objects_are_whole() {
    let seeds = if mesh_test::is_full() { 100_000 } else { 2_000 };
    let (mut done, mut failed) = ([0u64; 10], 0u64);
    for seed in 0..seeds {
        let running = simulate(seed, Fault::None);
        failed += running.iter().filter(|running| running.answer == Some(Answer::Failed)).count() as u64;
        for running in running.iter().filter(|running| running.answer == Some(Answer::Done)) {
            done[match running.request {
                Request::Put { .. } => 0,
                Request::Copy { .. } => 1,
                Request::Delete { .. } => 2,
                Request::Part { .. } => 3,
                Request::Complete { .. } => 4,
                Request::Abort { .. } => 5,
                Request::Finish { .. } => 6,
                Request::DeleteVersion { .. } => 7,
                Request::Tag { .. } => 8,
                Request::Configure { .. } => 9,
            }] += 1;
        }
    }
    // Each kind was carried out often, and the faults that this is about did happen.
    assert!(done.iter().all(|done| *done > seeds / 100) && failed > seeds / 50, "{done:?} {failed}");
}

#[test]
fn the_faults_that_lost_objects_are_found_when_put_back() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let faults = [
        Fault::PartRemovesReplaced,
        Fault::CompleteTakesAnother,
        Fault::ConditionBefore,
        Fault::PutRemovesVersion,
        Fault::LatestForAll,
    ];
    let found =
        faults.map(|fault| (fault, (0..1_000).find_map(|seed| holds(seed, fault).err().map(|why| (seed, why)))));
    std::panic::set_hook(quiet);
    for (fault, found) in found {
        assert!(found.is_some(), "{fault:?} was not seen in 1,000 seeds");
    }
}

/// A schedule of steps alone.
fn steps(turns: impl IntoIterator<Item = usize>) -> Vec<Turn> {
    turns.into_iter().map(Turn::Step).collect()
}

#[test]
fn a_slow_part_that_ends_after_complete_removes_nothing() {
    let part = Request::Part { upload: 0, number: 1, content: 1, body: 0 };
    let complete = Request::Complete { upload: 0, named: vec![(1, 1)], condition: Condition::default() };
    for before in 0..5 {
        let mut schedule = vec![0; before];
        schedule.extend([1; 6]);
        schedule.extend([0; 6]);
        let (world, running) = run(&[part.clone(), complete.clone()], &steps(schedule), Fault::None);
        assert_eq!(running[1].answer, Some(Answer::Done));
        assert_eq!(running[0].answer, Some(if before == 4 { Answer::Done } else { Answer::Refused }), "{before}");
        assert_eq!(world.object().0.now().unwrap().upload, UPLOADS[0]);
    }
}

#[test]
fn of_two_completes_at_once_each_answer_is_true() {
    let complete =
        |named: &[(u32, u8)]| Request::Complete { upload: 0, named: named.to_vec(), condition: Condition::default() };
    for other in [vec![(1, 1)], vec![(1, 1), (2, 2)]] {
        for schedule in 0u32..1 << 12 {
            let mut turns: Vec<usize> = (0..12).map(|bit| (schedule >> bit & 1) as usize).collect();
            turns.extend([0, 1].repeat(8));
            let (_, running) = run(&[complete(&[(1, 1), (2, 2)]), complete(&other)], &steps(turns), Fault::None);
            let done = running.iter().filter(|running| running.answer == Some(Answer::Done)).count();
            assert_eq!(done, if other.len() == 2 { 2 } else { 1 });
        }
    }
}
