//! When which probe reads, and how what it reads is sent.
//!
//! A reading runs in a thread that may wait; a probe that is still at it after its limit is said to fail, and is not asked
//! again before it is back. Probes that may wait take one thread each, and hold up no other; those that only read accounts
//! of the kernel share one.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use mesh_bus::{About, Samples};
use mesh_kit::Mesh;
use mesh_proto::{Event as _, READINGS_SIGNAL, Timestamp, derived_id, telemetry::Readings};
use prost::Message as _;
use tokio::sync::{mpsc, watch};

use super::{Entity, Probe, Reading, Used};
use crate::{
    config::Config,
    domain::measure::{budget::Budget, pack::Packer, plan::Plan, settings::Settings},
};

/// How long a probe may read before it is said to fail, milliseconds.
const READ_LIMIT_MS: i64 = 5_000;
/// Between two packs, milliseconds.
const SEND_MS: i64 = 1_000;
/// What was just read waits so long for what is read at the same time, milliseconds.
const GATHER_MS: i64 = 50;
/// Between two times that every probe is named, milliseconds.
const STATUS_MS: i64 = 60_000;
/// Longest pause, milliseconds.
const IDLE_MS: i64 = 10_000;
/// How long a pack may take to be sent.
const SEND_LIMIT: Duration = Duration::from_secs(1);

/// What a probe is to do.
struct Turn {
    number: usize,
    probe: Box<dyn Probe>,
    due: Vec<Entity>,
}

/// What one turn of a probe gave.
struct Done {
    number: usize,
    /// `None` if it panicked.
    probe: Option<Box<dyn Probe>>,
    at: Timestamp,
    entities: Vec<Entity>,
    due: Vec<Entity>,
    read: Vec<Reading>,
}

enum State {
    Here(Box<dyn Probe>),
    Reading { since: Timestamp },
    Lost,
}

struct Registered {
    name: &'static str,
    interval_ms: u32,
    look_ms: u32,
    look_at: Timestamp,
    waits: bool,
    state: State,
    /// What it can read, of all probes of its name.
    entities: BTreeSet<Entity>,
}

/// Runs the probes of one agent.
pub struct Measurer {
    mesh: Mesh,
    samples: Samples,
    config: Config,
    plan: Plan,
    settings: watch::Receiver<Settings>,
    budget: Budget,
    packer: Packer,
    probes: Vec<Registered>,
    done: mpsc::UnboundedReceiver<Done>,
    tell: mpsc::UnboundedSender<Done>,
    /// When what there is to say is sent.
    send_at: Option<Timestamp>,
    sent_at: Timestamp,
    all_at: Timestamp,
}

impl Measurer {
    /// Nothing is read yet.
    pub fn new(
        mesh: Mesh,
        samples: Samples,
        config: Config,
        settings: watch::Receiver<Settings>,
        probes: Vec<Used>,
    ) -> Self {
        let now = mesh.now();
        // A probe has one turn under way at most, so there are no more of these than probes.
        let (tell, done) = mpsc::unbounded_channel();
        let probes = probes.into_iter().map(|used| Registered {
            name: used.probe.name(),
            interval_ms: used.interval_ms,
            look_ms: used.look_ms,
            look_at: now,
            waits: used.waits,
            state: State::Here(used.probe),
            entities: BTreeSet::new(),
        });
        Self {
            plan: Plan::default(),
            budget: Budget::new(config.measure_limits(), now),
            packer: Packer::new(&config.cluster_id, config.node()),
            probes: probes.collect(),
            send_at: None,
            sent_at: now.plus_millis(-SEND_MS),
            all_at: now.plus_millis(STATUS_MS),
            mesh,
            samples,
            config,
            settings,
            done,
            tell,
        }
    }

    /// Measures until the process stops.
    ///
    /// # Errors
    /// Never: what cannot be read or sent is said, or counted by the session.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        let settings = self.settings.borrow_and_update().clone();
        self.plan.apply(settings, self.mesh.now());
        loop {
            let now = self.mesh.now();
            self.plan.elapse(now);
            self.start(now);
            self.say(now);
            if self.send_at.is_some_and(|at| at <= now) {
                self.send(now).await;
            }
            let wait = self.wait();
            tokio::select! {
                Some(done) = self.done.recv() => self.take(done),
                Ok(()) = self.settings.changed() => {
                    let settings = self.settings.borrow_and_update().clone();
                    self.plan.apply(settings, self.mesh.now());
                }
                () = tokio::time::sleep(wait) => {}
                () = stopping.cancelled() => return Ok(()),
            }
        }
    }

    /// Sends probes off that have something to read or to look for.
    fn start(&mut self, now: Timestamp) {
        let mut quick = vec![];
        for number in 0..self.probes.len() {
            let Some(one) = self.probes.get_mut(number) else { continue };
            match &one.state {
                State::Here(_) => {}
                State::Reading { since } if now.millis_since(*since) < READ_LIMIT_MS => continue,
                late => {
                    let why = match late {
                        State::Lost => "it broke down; see the agent's log".to_owned(),
                        _ => format!("it has not read for {} s", READ_LIMIT_MS / 1_000),
                    };
                    let mine = &one.entities;
                    for entity in self.plan.take_due(one.name, now, |entity| mine.contains(entity)) {
                        self.plan.count(one.name, &entity, now, false, Some(&why));
                    }
                    continue;
                }
            }
            let mine = &one.entities;
            let due = self.plan.take_due(one.name, now, |entity| mine.contains(entity));
            if due.is_empty() && one.look_at > now {
                continue;
            }
            one.look_at = now.plus_millis(i64::from(one.look_ms));
            let State::Here(probe) = std::mem::replace(&mut one.state, State::Reading { since: now }) else { continue };
            if one.waits {
                self.turn(vec![Turn { number, probe, due }]);
            } else {
                quick.push(Turn { number, probe, due });
            }
        }
        if !quick.is_empty() {
            self.turn(quick);
        }
    }

    /// Has probes read one after the other, in a thread that may wait.
    fn turn(&self, all: Vec<Turn>) {
        let (mesh, tell) = (self.mesh.clone(), self.tell.clone());
        // Not waited for when the process ends: a disk may never answer.
        drop(tokio::task::spawn_blocking(move || {
            for Turn { number, mut probe, due } in all {
                let at = mesh.now();
                let turn = AssertUnwindSafe(|| (probe.entities(), probe.read(&due, at)));
                let (probe, entities, read) = match catch_unwind(turn) {
                    Ok((entities, read)) => (Some(probe), entities, read),
                    Err(_) => (None, vec![], vec![]),
                };
                // Nobody listens any more when the process ends.
                let _ended = tell.send(Done { number, probe, at, entities, due, read });
            }
        }));
    }

    /// Takes in what a probe gave.
    fn take(&mut self, done: Done) {
        let now = self.mesh.now();
        let Some(one) = self.probes.get_mut(done.number) else { return };
        let name = one.name;
        let Some(probe) = done.probe else {
            tracing::error!(probe = name, "a probe panicked; it is not asked again");
            one.state = State::Lost;
            return;
        };
        one.state = State::Here(probe);
        one.entities = done.entities.into_iter().collect();
        let interval_ms = one.interval_ms;
        let all: Vec<Entity> =
            self.probes.iter().filter(|one| one.name == name).flat_map(|one| one.entities.iter().cloned()).collect();
        self.plan.present(name, interval_ms, &all, now);
        for (entity, reading) in done.due.iter().zip(done.read) {
            let Reading { mut values, mut failure } = reading;
            self.plan.follow(name, entity, done.at, &values);
            let has_values = !values.is_empty();
            if self.plan.is_said(name, entity) {
                if let Some(why) = self.budget.cut(name, entity, &mut values, now) {
                    failure = Some(failure.map_or(why.clone(), |other| format!("{other}; {why}")));
                }
                self.packer.add(name, entity, done.at, values);
            }
            self.plan.count(name, entity, done.at, has_values, failure.as_deref());
        }
    }

    /// Puts what has changed of probes to what is to be sent.
    fn say(&mut self, now: Timestamp) {
        let all = self.all_at <= now;
        if all {
            self.all_at = now.plus_millis(STATUS_MS);
        }
        for (entity, status) in self.plan.statuses(all) {
            self.packer.status(&entity, status);
        }
        if self.send_at.is_none() && !self.packer.is_empty() {
            self.send_at = Some(now.plus_millis(GATHER_MS).max(self.sent_at.plus_millis(SEND_MS)));
        }
    }

    async fn send(&mut self, now: Timestamp) {
        self.send_at = None;
        self.sent_at = now;
        let packs = self.packer.take(now);
        send(&self.samples, &self.config, (self.mesh.name(), "probes"), packs).await;
    }

    fn wait(&self) -> Duration {
        let now = self.mesh.now();
        let mut next = vec![self.send_at, Some(self.all_at), Some(now.plus_millis(IDLE_MS))];
        let mut waiting = BTreeSet::new();
        for one in &self.probes {
            match one.state {
                State::Here(_) => next.push(Some(one.look_at)),
                State::Reading { since } => {
                    let late = since.plus_millis(READ_LIMIT_MS);
                    next.push(Some(late).filter(|late| *late > now));
                    if late > now {
                        waiting.insert(one.name);
                    }
                }
                State::Lost => {}
            }
        }
        next.push(self.plan.next(|probe| !waiting.contains(probe)));
        let next = next.into_iter().flatten().min().unwrap_or(now);
        Duration::from_nanos(u64::try_from(next.as_nanos() - now.as_nanos()).unwrap_or(0))
    }
}

/// Sends packs; what cannot be sent in time is dropped: the next one says where things stand.
/// Packs of one time are told apart by `what` they are of.
pub(crate) async fn send(samples: &Samples, config: &Config, (source, what): (&str, &str), packs: Vec<Readings>) {
    let key = config.key(READINGS_SIGNAL, &config.cluster_id);
    for (number, pack) in packs.iter().enumerate() {
        let at = pack.at.unwrap_or_default();
        let about = About {
            id: derived_id(&["readings", &key, what, &at.as_nanos().to_string(), &number.to_string()]),
            message: Readings::MESSAGE.to_owned(),
            source: source.to_owned(),
            time: at,
            traceparent: None,
        };
        let sent = tokio::time::timeout(SEND_LIMIT, samples.publish(&key, pack.encode_to_vec(), &about)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::debug!(key, "readings dropped");
        }
    }
}
