//! Requests on one key in any interleaving, with gateways that stop anywhere: what was answered is true, and no fragment
//! of a visible object is removed. The steps are those of the shell in `objects/commit.rs` and `objects/multipart.rs`.

use std::collections::BTreeSet;

use mesh_proto::{
    EventSet as _, Timestamp,
    deciders::stream_object::Event as Fact,
    object::{Layout, ObjectDeleted, ObjectStored, Part, PartStored, UploadStarted},
};
use proptest::prelude::*;

use super::{
    object_token,
    objects::{self, Command, Condition},
    uploads,
};

const BUCKET: &str = "b";
const UPLOADS: [&str; 2] = ["u0", "u1"];

#[derive(Clone, Debug)]
enum Request {
    Put {
        condition: Condition,
    },
    Delete {
        condition: Condition,
    },
    Part {
        upload: usize,
        number: u32,
        content: u8,
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
}

/// A request on its way through a gateway.
struct Running {
    request: Request,
    step: u32,
    part: Part,
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
    /// Blobs whose fragments are in the locations.
    blobs: BTreeSet<Vec<u8>>,
    names: u8,
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

    fn upload(&self, upload: &str) -> (uploads::State, u64) {
        let of_upload = self.log.iter().filter(|fact| keys(fact).get(1).is_some_and(|key| key == upload));
        let evolve = |state, fact: &Fact| uploads::evolve(state, fact, Timestamp::from_millis(1));
        (of_upload.fold(uploads::initial(), evolve), self.last(&[BUCKET, upload]))
    }

    fn write(&mut self) -> Part {
        self.names += 1;
        let blob = vec![self.names; 16];
        self.blobs.insert(blob.clone());
        Part { blob: blob.into(), size: uploads::PART_MIN_BYTES }
    }

    fn remove(&mut self, parts: &[Part]) {
        for part in parts {
            self.blobs.remove(&*part.blob);
        }
    }

    /// Decides about the object on what the request knows; `false` if it has to look again.
    fn decide(&mut self, running: &mut Running) -> bool {
        let Some(command) = running.command.clone() else { return true };
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
        if let Some(garbage) = objects::garbage(&running.state, &fact) {
            self.remove(&garbage.parts);
        }
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
        let look = |world: &Self, running: &mut Running| (running.state, running.last) = world.object();
        match running.request.clone() {
            Request::Put { condition } => match step {
                0 => {
                    running.part = self.write();
                    let layout = Layout { key_id: running.part.blob.clone(), ..Layout::default() };
                    let object = ObjectStored {
                        bucket: BUCKET.into(),
                        object: object_token(BUCKET, 1, "k"),
                        etag: hex::encode(&running.part.blob),
                        layout: Some(layout),
                        parts: vec![running.part.clone()],
                        ..ObjectStored::default()
                    };
                    running.command = Some(Command::Put { object, condition });
                }
                1 => look(self, running),
                _ if self.decide(running) => {}
                _ => running.step = 1,
            },
            Request::Delete { condition } => match step {
                0 => {
                    let object = object_token(BUCKET, 1, "k");
                    let fact = ObjectDeleted { bucket: BUCKET.into(), object, key: "k".into(), epoch: 1 };
                    running.command = Some(Command::Delete { fact, condition });
                    look(self, running);
                }
                _ if self.decide(running) => {}
                _ => running.step = 0,
            },
            Request::Part { upload, number, content } => match step {
                0 => {
                    if self.upload(UPLOADS[upload]).0.open().is_err() {
                        running.answer = Some(Answer::Refused);
                    }
                }
                1 => running.part = self.write(),
                2 => (running.upload, _) = self.upload(UPLOADS[upload]),
                3 => {
                    let fact = PartStored {
                        bucket: BUCKET.into(),
                        upload: UPLOADS[upload].into(),
                        number: number.to_string(),
                        part: Some(running.part.clone()),
                        etag: etag(content),
                    };
                    match uploads::decide(&running.upload, &uploads::Command::AddPart(fact)) {
                        Ok(Some(fact)) => self.log.push(fact),
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
                    running.answer = Some(if taken { Answer::Done } else { Answer::Refused });
                }
            },
            Request::Complete { upload, named, condition } => match step {
                0 => {
                    look(self, running);
                    (running.upload, running.upload_last) = self.upload(UPLOADS[upload]);
                    if running.upload.ended.is_none() && !condition.holds(running.state.now.as_ref()) {
                        running.answer = Some(Answer::Refused);
                    }
                }
                1 => {
                    let command = uploads::Command::Complete {
                        bucket: BUCKET.into(),
                        upload: UPLOADS[upload].into(),
                        named: named.iter().map(|(number, content)| (*number, etag(*content))).collect(),
                        replaces: running.state.now.as_ref().map(objects::write_id).unwrap_or_default(),
                        at: Timestamp::from_millis(2),
                    };
                    match uploads::decide(&running.upload, &command) {
                        Err(_) => running.answer = Some(Answer::Refused),
                        Ok(Some(fact)) => {
                            if !self.append(fact, running.upload_last) {
                                running.step = 0;
                            }
                        }
                        Ok(None) => {}
                    }
                }
                2 => {
                    (running.upload, _) = self.upload(UPLOADS[upload]);
                    let object = running.upload.object().cloned().unwrap();
                    running.command = Some(Command::Complete { object, condition });
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
                            running.command = Some(Command::Finish { object, replaces });
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
        let visible = self.object().0.now;
        for part in visible.iter().flat_map(|object| &object.parts) {
            assert!(self.blobs.contains(&*part.blob), "a fragment of the visible object was removed: {:?}", self.log);
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

/// What must hold of an answer, given all that was stored.
fn answer_is_true(world: &World, running: &Running) {
    if running.answer != Some(Answer::Done) {
        return;
    }
    let stored = |is: &dyn Fn(&ObjectStored) -> bool| {
        world.log.iter().filter_map(|f| if let Fact::ObjectStored(m) = f { Some(m) } else { None }).find(|m| is(m))
    };
    match &running.request {
        Request::Put { .. } => {
            assert!(stored(&|m| m.parts == [running.part.clone()]).is_some());
        }
        Request::Part { upload, .. } => {
            let end = world.log.iter().position(|f| matches!(f, Fact::UploadEnded(m) if m.upload == UPLOADS[*upload]));
            let own = |f: &Fact| matches!(f, Fact::PartStored(m) if m.part.as_ref() == Some(&running.part));
            let part = world.log.iter().position(own).unwrap();
            assert!(end.is_none_or(|end| part < end));
        }
        Request::Complete { upload, named, .. } => {
            let object = stored(&|m| m.upload == UPLOADS[*upload]).expect("200, and the object was visible");
            let etags: Vec<String> = object
                .parts
                .iter()
                .map(|part| {
                    let of = world.log.iter().find_map(|f| match f {
                        Fact::PartStored(m) if m.part.as_ref() == Some(part) => Some(m.etag.clone()),
                        _ => None,
                    });
                    of.unwrap()
                })
                .collect();
            assert_eq!(etags, named.iter().map(|(_, content)| etag(*content)).collect::<Vec<_>>());
        }
        Request::Delete { .. } | Request::Abort { .. } | Request::Finish { .. } => {}
    }
}

/// Runs requests by a schedule. A request that the schedule does not end is one whose gateway stopped.
fn run(requests: &[Request], schedule: &[usize]) -> (World, Vec<Running>) {
    let mut world = World::default();
    for upload in UPLOADS {
        let (bucket, key) = (BUCKET.to_owned(), "k".to_owned());
        world.log.push(UploadStarted { bucket, upload: upload.into(), key, epoch: 1, ..Default::default() }.into());
        for number in 1..=2 {
            let (bucket, upload, part) = (BUCKET.to_owned(), upload.to_owned(), Some(world.write()));
            let fact = PartStored { bucket, upload, number: number.to_string(), part, etag: etag(number as u8) };
            world.log.push(fact.into());
        }
    }
    let start = |request: &Request| Running {
        request: request.clone(),
        step: 0,
        part: Part::default(),
        state: objects::initial(),
        last: 0,
        upload: uploads::initial(),
        upload_last: 0,
        command: None,
        answer: None,
    };
    let mut running: Vec<Running> = requests.iter().map(start).collect();
    for &turn in schedule {
        let index = turn % running.len();
        world.advance(&mut running[index]);
        world.check();
    }
    running.iter().for_each(|running| answer_is_true(&world, running));
    (world, running)
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        4 => Just(Condition::default()),
        1 => Just(Condition { if_match: None, if_none: true }),
        1 => Just(Condition { if_match: Some("*".into()), if_none: false }),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let lists = prop_oneof![Just(vec![(1, 1), (2, 2)]), Just(vec![(1, 1)]), Just(vec![(2, 2)]), Just(vec![(1, 7)])];
    prop_oneof![
        condition().prop_map(|condition| Request::Put { condition }),
        condition().prop_map(|condition| Request::Delete { condition }),
        (0..2usize, 1..3u32, prop_oneof![Just(1u8), Just(2), Just(7)])
            .prop_map(|(upload, number, content)| Request::Part { upload, number, content }),
        (0..2usize, lists, condition()).prop_map(|(upload, named, condition)| Request::Complete {
            upload,
            named,
            condition
        }),
        (0..2usize).prop_map(|upload| Request::Abort { upload }),
        (0..2usize).prop_map(|upload| Request::Finish { upload }),
    ]
}

#[test]
fn a_slow_part_that_ends_after_complete_removes_nothing() {
    let part = Request::Part { upload: 0, number: 1, content: 1 };
    let complete = Request::Complete { upload: 0, named: vec![(1, 1)], condition: Condition::default() };
    for before in 0..5 {
        let mut schedule = vec![0; before];
        schedule.extend([1; 6]);
        schedule.extend([0; 6]);
        let (world, running) = run(&[part.clone(), complete.clone()], &schedule);
        assert_eq!(running[1].answer, Some(Answer::Done));
        assert_eq!(running[0].answer, Some(if before == 4 { Answer::Done } else { Answer::Refused }), "{before}");
        assert_eq!(world.object().0.now.unwrap().upload, UPLOADS[0]);
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
            let (_, running) = run(&[complete(&[(1, 1), (2, 2)]), complete(&other)], &turns);
            let done = running.iter().filter(|running| running.answer == Some(Answer::Done)).count();
            assert_eq!(done, if other.len() == 2 { 2 } else { 1 });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_happens_at_once_answers_are_true_and_visible_objects_whole(
        requests in proptest::collection::vec(request(), 1..6),
        schedule in proptest::collection::vec(0..60usize, 0..80),
    ) {
        run(&requests, &schedule);
    }
}
