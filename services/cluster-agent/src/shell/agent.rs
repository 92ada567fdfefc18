//! The agent's loop: assignments in, actions to the driver, facts and samples out.
//!
//! One task owns everything, so nothing is locked. When the bus is away it goes on: what runs is restarted, measured and
//! ended as last assigned, and what there is to say waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mesh_bus::{About, LogError, Samples, SamplesError, Tail, WriteError};
use mesh_core::Stored;
use mesh_kit::{Condition, Mesh};
use mesh_proto::{
    AnyEvent as _, DecodeError, Event as _, PACKED_SIGNAL, Timestamp,
    assignment::AssignmentChanged,
    cluster::ClusterRegistered,
    derived_id,
    telemetry::{InstanceSample, Packed, Provenance},
};
use prost::Message;
use tokio::sync::{Notify, watch};

use crate::{
    config::Config,
    domain::{
        Action, Cluster, Limits, Measured, Outcome,
        measure::{Entity, Running, Value, Watched, pack::Packer, plan::Plan, settings::Settings},
        meter::Meter,
    },
    shell::{
        driver::{self, Driver, Event, Reading},
        measure,
        publisher::{Known, Publisher},
        state::Folder,
    },
};

/// Samples sent at once.
const SEND_MAX: usize = 256;
/// Samples are spread over this share of the time between two measurements,
const SPREAD_SHARE: u64 = 5;
/// and at most this many milliseconds: well within what the collector waits for late ones.
const SPREAD_MS: u64 = 200;
/// Between two writes of the state, while it changes.
const SAVE_MS: i64 = 2_000;
/// The probe of the samples of instances and of the cluster, as settings select it.
const USAGE: &str = "usage";
/// Longest time between two looks of the driver, so that others know which processes belong to whom, milliseconds.
const LOOK_MS: i64 = 5_000;
/// Between two times that this probe is named for every instance, milliseconds.
const STATUS_MS: i64 = 60_000;
/// Longest pause of the loop.
const IDLE_MS: i64 = 10_000;
/// Messages of history read at once.
const PAGE: usize = 1_000;
/// Before a read of the history is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// How long what there is to say is waited for when stopping.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Grace for processes when the agent itself ends.
const END_GRACE_MS: u64 = 1_500;
const CLUSTER_SAMPLE: &str = "continuum.telemetry.v1.ClusterSample";

/// Why an agent ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver cannot go on.
    #[error("run workloads")]
    Driver(#[from] driver::Error),
    /// Assignments cannot be read.
    #[error("read assignments")]
    Read(#[from] LogError),
    /// Facts cannot be written.
    #[error("write facts")]
    Write(#[from] WriteError),
    /// A fact does not fit its subject.
    #[error("address a fact")]
    Address(#[from] DecodeError),
    /// Samples cannot be sent at all.
    #[error("declare the cluster alive")]
    Samples(#[from] SamplesError),
}

/// One cluster's agent.
pub struct Agent {
    mesh: Mesh,
    config: Config,
    limits: Limits,
    cluster: Cluster,
    /// Instances whose assignment is read but not acted on yet.
    learned: BTreeSet<String>,
    driver: Box<dyn Driver>,
    happened: Arc<Notify>,
    publisher: Publisher,
    meter: Meter,
    samples: Samples,
    folder: Folder,
    current: Condition,
    /// Were all assignments read once? Before, an instance may be there that is not known yet.
    complete: bool,
    /// What the driver was told to keep last.
    kept: BTreeSet<String>,
    /// When which instance, and the cluster, is sampled.
    plan: Plan,
    settings: watch::Receiver<Settings>,
    /// Sampled at the measurement under way.
    due: BTreeSet<Entity>,
    looked_at: Timestamp,
    status_at: Timestamp,
    running: watch::Sender<Running>,
    packer: Packer,
    save_at: Option<Timestamp>,
}

/// What is needed to make one.
pub struct Parts {
    /// Configuration, checked.
    pub config: Config,
    /// Runs replicas; has ended what an earlier agent left.
    pub driver: Box<dyn Driver>,
    /// Where measurements go.
    pub samples: Samples,
    /// Where the state is kept.
    pub folder: Folder,
    /// The cluster as it declares itself.
    pub registration: ClusterRegistered,
    /// How it is to be measured.
    pub settings: watch::Receiver<Settings>,
    /// Where it says what runs.
    pub running: watch::Sender<Running>,
}

/// Where a driver's readings come from: the kernel's accounts of processes, or a model of them.
fn provenance_of(driver: &str) -> Provenance {
    if driver == "simulated" { Provenance::Modelled } else { Provenance::Measured }
}

impl Agent {
    /// An agent with what it has kept, its registration on its way.
    ///
    /// # Errors
    /// If the cluster's id does not fit a subject.
    pub fn new(mesh: Mesh, parts: Parts) -> Result<Self, Error> {
        let Parts { config, driver, samples, folder, registration, settings, running } = parts;
        let now = mesh.now();
        let cluster_id = &config.cluster_id;
        let mut publisher = Publisher::new(mesh.bus().clone(), cluster_id, registration.incarnation);
        publisher.register(&registration, now)?;
        let cluster = folder.load(cluster_id).unwrap_or_else(|| Cluster::new(cluster_id));
        let current = mesh.condition(&format!("assignments of {cluster_id}"));
        current.unmet("reading assignments");
        Ok(Self {
            limits: config.limits(),
            meter: Meter::new(cluster_id, config.cpu_milli, provenance_of(&registration.driver)),
            happened: driver.notify(),
            complete: false,
            kept: BTreeSet::new(),
            plan: Plan::default(),
            due: BTreeSet::new(),
            looked_at: now.plus_millis(-LOOK_MS),
            status_at: now.plus_millis(STATUS_MS),
            packer: Packer::new(cluster_id, config.node()),
            settings,
            running,
            save_at: None,
            mesh,
            cluster,
            learned: BTreeSet::new(),
            driver,
            publisher,
            samples,
            folder,
            current,
            config,
        })
    }

    /// Works until the process is to stop.
    ///
    /// # Errors
    /// If it cannot go on; a bus or a router that is away is waited for.
    pub async fn run(mut self) -> Result<(), Error> {
        let stopping = self.mesh.stopping();
        let worked = tokio::select! {
            () = stopping.cancelled() => Ok(()),
            worked = self.work() => worked,
        };
        let ended = self.end().await;
        worked.and(ended)
    }

    async fn work(&mut self) -> Result<(), Error> {
        let mut tail = self.catch_up().await?;
        let token = self.config.key("alive", &self.config.cluster_id);
        let _alive = self.samples.declare_alive(&token).await?;
        let now = self.mesh.now();
        let outcome = self.cluster.reconcile_all(now, &self.limits);
        self.follow(outcome, now)?;
        let settings = self.settings.borrow_and_update().clone();
        self.plan.apply(settings, now);
        self.present(now);
        loop {
            self.step().await?;
            let happened = self.happened.clone();
            let wait = self.wait();
            tokio::select! {
                () = happened.notified() => {}
                message = tail.next() => self.assigned(&message?),
                known = self.publisher.next() => self.is_known(&known?),
                Ok(()) = self.settings.changed() => {
                    let settings = self.settings.borrow_and_update().clone();
                    self.plan.apply(settings, self.mesh.now());
                }
                () = tokio::time::sleep(wait) => {}
            }
            // Not before: what is further on in the stream may undo it.
            if tail.is_caught_up() {
                self.current.met();
                self.complete = true;
                self.act()?;
            }
        }
    }

    /// Folds what was assigned since the position kept, without acting. If the bus does not answer in time, what was
    /// kept is acted on, and the rest follows.
    async fn catch_up(&mut self) -> Result<Tail, Error> {
        let subject = AssignmentChanged { cluster_id: self.config.cluster_id.clone(), ..Default::default() };
        let subject = subject.subject()?;
        let log = self.mesh.bus().log(AssignmentChanged::STREAM);
        let deadline =
            self.mesh.now().plus_millis(i64::try_from(self.config.catch_up_ms).unwrap_or(i64::MAX / 2_000_000));
        loop {
            let left = u64::try_from(deadline.millis_since(self.mesh.now())).unwrap_or(0);
            let read = log.read(&subject, self.cluster.position() + 1, PAGE);
            let page = match tokio::time::timeout(Duration::from_millis(left), read).await {
                Ok(Ok(page)) => page,
                Ok(Err(LogError::Unanswered { .. })) => {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    tracing::warn!(cluster = self.config.cluster_id, "bus does not answer; going on as last assigned");
                    break;
                }
            };
            for message in &page {
                if let Some(assignment) = assignment(message) {
                    self.cluster.learn(&assignment, &message.cause_of(), &self.limits);
                }
            }
            if page.len() < PAGE {
                self.current.met();
                break;
            }
        }
        Ok(log.tail(&subject, self.cluster.position() + 1))
    }

    fn assigned(&mut self, message: &Stored) {
        let Some(assignment) = assignment(message) else { return };
        if self.cluster.learn(&assignment, &message.cause_of(), &self.limits) {
            self.learned.insert(assignment.instance_id);
        }
        self.changed(self.mesh.now());
    }

    /// Acts on what was read.
    fn act(&mut self) -> Result<(), Error> {
        let now = self.mesh.now();
        while let Some(instance_id) = self.learned.pop_first() {
            let outcome = self.cluster.reconcile(&instance_id, now, &self.limits);
            self.follow(outcome, now)?;
        }
        Ok(())
    }

    fn is_known(&mut self, known: &Known) {
        match known {
            Known::Stopped { instance_id, generation } => self.cluster.stopped_is_known(instance_id, *generation),
            Known::Rejected { instance_id, generation } => self.cluster.rejection_is_known(instance_id, *generation),
            Known::Other => return,
        }
        self.changed(self.mesh.now());
    }

    /// Does what is due.
    async fn step(&mut self) -> Result<(), Error> {
        self.driver.check()?;
        let now = self.mesh.now();
        self.plan.elapse(now);
        if self.plan.next(|_| true).is_some_and(|at| at <= now) || now.millis_since(self.looked_at) >= LOOK_MS {
            self.looked_at = now;
            self.present(now);
            self.due.extend(self.plan.take_due(USAGE, now, |_| true));
            self.driver.measure(now);
            self.keep();
        }
        for event in self.driver.take(now) {
            if let Event::Measured { at, readings } = event {
                self.publish(at, &readings);
            } else {
                let outcome = self.cluster.happened(&event, now, &self.limits);
                self.changed(now);
                self.follow(outcome, now)?;
            }
        }
        let outcome = self.cluster.elapse(now, &self.limits);
        self.follow(outcome, now)?;
        if self.save_at.is_some_and(|at| at <= now) {
            self.save();
        }
        Ok(())
    }

    /// Lets the driver release what instances had that are gone.
    fn keep(&mut self) {
        let there: BTreeSet<String> = self.cluster.instances().map(str::to_owned).collect();
        if self.complete && there != self.kept {
            self.driver.keep(&there);
            self.kept = there;
        }
    }

    /// How long there is nothing to do.
    fn wait(&self) -> Duration {
        let now = self.mesh.now();
        let look = Some(self.looked_at.plus_millis(LOOK_MS));
        let next = [self.plan.next(|_| true), look, self.save_at, self.cluster.due(), self.driver.due()];
        let next = next.into_iter().flatten().min().unwrap_or(now.plus_millis(IDLE_MS)).min(now.plus_millis(IDLE_MS));
        Duration::from_nanos(u64::try_from(next.as_nanos() - now.as_nanos()).unwrap_or(0))
    }

    /// Does and says what was decided.
    fn follow(&mut self, outcome: Outcome, now: Timestamp) -> Result<(), Error> {
        for action in outcome.actions {
            match action {
                Action::Start(replica) => self.driver.start(*replica),
                Action::Stop { instance_id, up_to_generation, force } => {
                    self.driver.stop(&instance_id, up_to_generation, force);
                }
            }
        }
        for said in &outcome.said {
            self.publisher.publish(said, now)?;
        }
        Ok(())
    }

    /// What is there to be sampled: the cluster, and its instances.
    fn present(&mut self, now: Timestamp) -> BTreeMap<String, Measured> {
        let measured = self.cluster.measured(now, &self.limits);
        let mut entities = vec![Entity::of("cluster", &self.config.cluster_id)];
        entities.extend(measured.iter().map(|(id, one)| instance(id, &one.owner)));
        let sample_ms = u32::try_from(self.config.sample_ms).unwrap_or(u32::MAX);
        self.plan.present(USAGE, sample_ms, &entities, now);
        measured
    }

    /// Sends samples of what is due; those that cannot be sent are dropped and counted by the session. Those of many
    /// instances are spread, so that whoever reads them is not kept from all else once a second.
    fn publish(&mut self, at: Timestamp, readings: &[Reading]) {
        let measured = self.present(at);
        let mut due = std::mem::take(&mut self.due);
        let (mut instances, cluster) = self.meter.sample(at, readings, &measured, |id| {
            measured.get(id).is_some_and(|one| due.contains(&instance(id, &one.owner)))
        });
        instances.retain(|sample| {
            self.said(instance(&sample.instance_id, &sample.owner), at, &of_instance(sample), &mut due)
        });
        let load_milli = cluster.cpu_percent * f64::from(self.config.cpu_milli) / 100.0;
        let whole = Entity::of("cluster", &self.config.cluster_id);
        let of_cluster =
            [Value::leading("cpu", cluster.cpu_percent), Value::leading("memory", cluster.memory_bytes as f64)];
        let cluster = due.contains(&whole).then_some(cluster).filter(|_| self.said(whole, at, &of_cluster, &mut due));
        self.show(&measured, load_milli);
        let all = self.status_at <= at;
        if all {
            self.status_at = at.plus_millis(STATUS_MS);
        }
        for (entity, status) in self.plan.statuses(all) {
            self.packer.status(&entity, status);
        }
        let statuses = self.packer.take(self.mesh.now());
        if instances.is_empty() && cluster.is_none() && statuses.is_empty() {
            return;
        }
        let (samples, source, config) = (self.samples.clone(), self.mesh.name().to_owned(), self.config.clone());
        let chunks = instances.len().div_ceil(SEND_MAX).max(1);
        let pause = Duration::from_millis((config.sample_ms / SPREAD_SHARE).min(SPREAD_MS)) / chunks as u32;
        self.mesh.spawn("samples", async move {
            for (number, chunk) in instances.chunks(SEND_MAX).enumerate() {
                let pack = Packed { cluster_id: config.cluster_id.clone(), samples: chunk.to_vec() };
                let key = config.key(PACKED_SIGNAL, &config.cluster_id);
                send(&samples, key, Packed::MESSAGE, &pack, &source, (at, number)).await;
                if chunk.len() == SEND_MAX {
                    tokio::time::sleep(pause).await;
                }
            }
            if let Some(cluster) = cluster {
                let key = config.key("cluster", &cluster.cluster_id);
                send(&samples, key, CLUSTER_SAMPLE, &cluster, &source, (at, 0)).await;
            }
            measure::send(&samples, &config, (&source, USAGE), statuses).await;
            Ok(())
        });
    }

    /// Something was sampled. Is it to be sent?
    fn said(&mut self, entity: Entity, at: Timestamp, values: &[Value], due: &mut BTreeSet<Entity>) -> bool {
        due.remove(&entity);
        self.plan.follow(USAGE, &entity, at, values);
        self.plan.count(USAGE, &entity, at, true, None);
        self.plan.is_said(USAGE, &entity)
    }

    /// Says what runs, for those who measure it otherwise.
    fn show(&self, measured: &BTreeMap<String, Measured>, load_milli: f64) {
        let watched = |one: &Measured| Watched { owner: one.owner.clone(), scraped: one.scraped.clone() };
        let instances = measured.iter().map(|(id, one)| (id.clone(), watched(one))).collect();
        let running = Running { instances, load_milli };
        self.running.send_if_modified(|known| {
            let is_new = *known != running;
            *known = running;
            is_new
        });
    }

    fn changed(&mut self, now: Timestamp) {
        self.save_at.get_or_insert(now.plus_millis(SAVE_MS));
    }

    /// The stream is the truth, so an agent that cannot write its state works on and reads more when it starts.
    fn save(&mut self) {
        self.save_at = None;
        if let Err(error) = self.folder.save(&self.cluster) {
            tracing::warn!(error = &error as &dyn std::error::Error, "state not kept");
        }
    }

    /// Ends what runs, says what is left to say, keeps the state.
    async fn end(self) -> Result<(), Error> {
        let Self { driver, mut publisher, mut cluster, folder, .. } = self;
        let ended = tokio::task::spawn_blocking(move || driver.shutdown(END_GRACE_MS));
        let last_words = async {
            while publisher.unsaid() > 0 {
                match publisher.next().await? {
                    Known::Stopped { instance_id, generation } => cluster.stopped_is_known(&instance_id, generation),
                    Known::Rejected { instance_id, generation } => cluster.rejection_is_known(&instance_id, generation),
                    Known::Other => {}
                }
            }
            Ok::<(), WriteError>(())
        };
        if !matches!(tokio::time::timeout(LAST_WORDS, last_words).await, Ok(Ok(()))) {
            tracing::warn!("the bus does not take the last facts; they are said again at the next start");
        }
        if let Err(error) = folder.save(&cluster) {
            tracing::warn!(error = &error as &dyn std::error::Error, "state not kept");
        }
        if ended.await.is_err() {
            return Err(driver::Error::Ended.into());
        }
        Ok(())
    }
}

fn instance(id: &str, owner: &str) -> Entity {
    Entity { kind: "instance", id: id.to_owned(), owner: owner.to_owned() }
}

/// What an adaptive rate follows of an instance.
fn of_instance(sample: &InstanceSample) -> [Value; 2] {
    [Value::leading("cpu", sample.cpu_milli), Value::leading("memory", sample.memory_bytes as f64)]
}

/// Sends what was measured at a time; `number` tells several messages of one key and time apart.
async fn send(
    samples: &Samples,
    key: String,
    message: &str,
    sample: &impl Message,
    source: &str,
    (at, number): (Timestamp, usize),
) {
    let about = About {
        id: derived_id(&["sample", &key, &at.as_nanos().to_string(), &number.to_string()]),
        message: message.to_owned(),
        source: source.to_owned(),
        time: at,
        traceparent: None,
    };
    if let Err(error) = samples.publish(&key, sample.encode_to_vec(), &about).await {
        tracing::debug!(key, error = &error as &dyn std::error::Error, "sample dropped");
    }
}

/// The assignment in a message; what cannot be read is left out, for the writer's fold left it out too.
fn assignment(message: &Stored) -> Option<AssignmentChanged> {
    match message.event::<AssignmentChanged>() {
        Ok(assignment) => assignment,
        Err(error) => {
            tracing::error!(
                sequence = message.sequence,
                error = &error as &dyn std::error::Error,
                "assignment not read"
            );
            None
        }
    }
}
