//! Replicas that exist only in a model: for thousands of instances, harnesses, benchmarks and seeded worlds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_proto::Timestamp;
use tokio::sync::Notify;

use super::{
    Driver, Error, Event, Fails, Journal, Reading, ReplicaId, ReplicaSpec,
    journal::{Output, Running},
    model::{Behaviour, Model, share},
};

/// How limits are enforced: the model shares the capacity out.
const ENFORCEMENT: &str = "none";

#[derive(Clone, Debug)]
enum Life {
    Starting,
    Up {
        since: Timestamp,
    },
    Ending,
    /// Ended; what it has used is remembered for its next start.
    Ended,
}

#[derive(Debug)]
struct Simulated {
    life: Life,
    behaviour: Behaviour,
    cpu_limit_milli: f64,
    starts: u64,
    cpu_nanos: f64,
    /// When something happens to it by itself.
    due: Option<Timestamp>,
}

/// Runs replicas in a model.
pub struct SimulatedDriver {
    model: Model,
    cpu_milli: u32,
    replicas: BTreeMap<ReplicaId, Simulated>,
    timers: BTreeSet<(Timestamp, ReplicaId)>,
    events: Vec<Event>,
    /// Starts and stops asked for since the time was last known.
    asked: Vec<Asked>,
    measured: Option<Timestamp>,
    journal: Arc<Journal>,
    notify: Arc<Notify>,
}

#[derive(Debug)]
enum Asked {
    Start(Box<ReplicaSpec>),
    Stop { instance_id: String, up_to_generation: u64, force: bool },
}

impl SimulatedDriver {
    /// A cluster with this capacity in thousandths of a core.
    pub fn new(model: Model, cpu_milli: u32) -> Self {
        Self {
            model,
            cpu_milli,
            replicas: BTreeMap::new(),
            timers: BTreeSet::new(),
            events: vec![],
            asked: vec![],
            measured: None,
            journal: Arc::default(),
            notify: Arc::default(),
        }
    }

    fn started(&mut self, spec: ReplicaSpec, now: Timestamp) {
        let id = spec.id;
        let (starts, cpu_nanos) = match self.replicas.get(&id) {
            Some(Simulated { life: Life::Ended, starts, cpu_nanos, .. }) => (starts + 1, *cpu_nanos),
            Some(_) => {
                let reason = "it runs already".to_owned();
                self.events.push(Event::StartFailed { id, reason, fails: Fails::Now });
                return;
            }
            None => (1, 0.0),
        };
        let behaviour = self.model.behaviour(&id, starts, &spec.process, &spec.resources);
        if let Some(reason) = behaviour.start_error {
            self.events.push(Event::StartFailed { id, reason, fails: Fails::Anywhere });
            return;
        }
        let due = now.plus_millis(behaviour.start_ms);
        self.timers.insert((due, id.clone()));
        let limit = spec.resources.cpu_limit_milli;
        let cpu_limit_milli = if limit == 0 { f64::INFINITY } else { f64::from(limit) };
        let life = Life::Starting;
        self.replicas.insert(id, Simulated { life, behaviour, cpu_limit_milli, starts, cpu_nanos, due: Some(due) });
    }

    fn stopped(&mut self, instance_id: &str, up_to_generation: u64, force: bool, now: Timestamp) {
        let first = ReplicaId { instance_id: instance_id.to_owned(), generation: 0, replica: 0 };
        let concerned: Vec<ReplicaId> = self
            .replicas
            .range(first..)
            .map(|(id, _)| id)
            .take_while(|id| id.instance_id == instance_id && id.generation <= up_to_generation)
            .cloned()
            .collect();
        for id in concerned {
            let Some(replica) = self.replicas.get_mut(&id) else { continue };
            match replica.life {
                Life::Ended => {
                    self.replicas.remove(&id);
                }
                Life::Ending if !force => {}
                Life::Starting | Life::Up { .. } | Life::Ending => {
                    if matches!(replica.life, Life::Starting) {
                        self.events.push(Event::Started { id: id.clone() });
                    }
                    let ends = now.plus_millis(if force { 0 } else { replica.behaviour.stop_ms });
                    replica.life = Life::Ending;
                    if let Some(due) = replica.due.replace(ends) {
                        self.timers.remove(&(due, id.clone()));
                    }
                    self.timers.insert((ends, id));
                }
            }
        }
    }

    /// What was due for a replica at `at` happens.
    fn happens(&mut self, id: ReplicaId, at: Timestamp) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.due = None;
        match replica.life {
            Life::Starting => {
                replica.life = Life::Up { since: at };
                if let Some(after_ms) = replica.behaviour.fails_after_ms {
                    let due = at.plus_millis(after_ms);
                    replica.due = Some(due);
                    self.timers.insert((due, id.clone()));
                }
                let restarts = u32::try_from(replica.starts - 1).unwrap_or(u32::MAX);
                self.journal.runs(Running { id: id.clone(), pid: 0, restarts, enforcement: ENFORCEMENT.to_owned() });
                self.journal.write(&id, Output::Stdout, at, "simulated: started");
                self.events.push(Event::Started { id });
            }
            Life::Up { .. } => {
                replica.life = Life::Ended;
                self.journal.ended(&id);
                self.journal.write(&id, Output::Stderr, at, "simulated: failed");
                self.events.push(Event::Exited { id, reason: "exited with code 1: simulated: failed".to_owned() });
            }
            Life::Ending => {
                self.replicas.remove(&id);
                self.journal.ended(&id);
                self.events.push(Event::Exited { id, reason: "ended by SIGTERM".to_owned() });
            }
            Life::Ended => {}
        }
    }

    /// Everything up to `now`.
    fn advance(&mut self, now: Timestamp) {
        for asked in std::mem::take(&mut self.asked) {
            match asked {
                Asked::Start(spec) => self.started(*spec, now),
                Asked::Stop { instance_id, up_to_generation, force } => {
                    self.stopped(&instance_id, up_to_generation, force, now);
                }
            }
        }
        while let Some((at, _)) = self.timers.first().filter(|(at, _)| *at <= now).cloned() {
            if let Some((_, id)) = self.timers.pop_first() {
                self.happens(id, at);
            }
        }
    }
}

impl Driver for SimulatedDriver {
    fn enforcement(&self) -> String {
        ENFORCEMENT.to_owned()
    }

    fn start(&mut self, replica: ReplicaSpec) {
        self.asked.push(Asked::Start(Box::new(replica)));
        self.notify.notify_one();
    }

    fn stop(&mut self, instance_id: &str, up_to_generation: u64, force: bool) {
        self.asked.push(Asked::Stop { instance_id: instance_id.to_owned(), up_to_generation, force });
        self.notify.notify_one();
    }

    fn keep(&mut self, _instances: &BTreeSet<String>) {}

    fn measure(&mut self, now: Timestamp) {
        self.advance(now);
        let since = self.measured.replace(now).unwrap_or(now);
        let wanted = |replica: &Simulated| match replica.life {
            Life::Up { since } => replica.behaviour.load_milli(now.millis_since(since)).min(replica.cpu_limit_milli),
            _ => 0.0,
        };
        let all: f64 = self.replicas.values().map(wanted).sum();
        let capacity = f64::from(self.cpu_milli);
        let mut readings = Vec::with_capacity(self.replicas.len());
        for (id, replica) in &mut self.replicas {
            let up_ms = match replica.life {
                Life::Up { since: up } => now.millis_since(up.max(since)).max(0),
                _ => 0,
            };
            // Thousandths of a core for milliseconds are microseconds of CPU time; a thousand of them nanoseconds.
            replica.cpu_nanos += share(capacity, wanted(replica), all) * up_ms as f64 * 1e3;
            let up = matches!(replica.life, Life::Up { .. });
            readings.push(Reading {
                id: id.clone(),
                cpu_nanos: replica.cpu_nanos as u64,
                memory_bytes: if up { replica.behaviour.memory_bytes } else { 0 },
                io_read_bytes: 0,
                io_write_bytes: 0,
            });
        }
        self.events.push(Event::Measured { at: now, readings });
        self.notify.notify_one();
    }

    fn due(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn take(&mut self, now: Timestamp) -> Vec<Event> {
        self.advance(now);
        std::mem::take(&mut self.events)
    }

    fn notify(&self) -> Arc<Notify> {
        self.notify.clone()
    }

    fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn shutdown(self: Box<Self>, _grace_ms: u64) {}
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mesh_proto::workload::{ProcessSpec, Resources};

    use super::*;

    const T0: Timestamp = Timestamp::from_millis(1_000_000);

    fn spec(instance: &str, environment: &[(&str, &str)]) -> ReplicaSpec {
        let environment =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
        ReplicaSpec {
            id: ReplicaId { instance_id: instance.into(), generation: 1, replica: 0 },
            owner: "local".into(),
            workload: "w".into(),
            process: ProcessSpec { command: "x".into(), environment, ..Default::default() },
            resources: Resources { cpu_milli: 100, memory_bytes: 1_000, ..Default::default() },
        }
    }

    fn readings(driver: &mut SimulatedDriver, now: Timestamp) -> Vec<Reading> {
        driver.measure(now);
        let events = driver.take(now);
        events
            .into_iter()
            .find_map(|e| if let Event::Measured { readings, .. } = e { Some(readings) } else { None })
            .unwrap()
    }

    #[test]
    fn a_replica_starts_fails_and_ends_at_its_times() {
        let mut driver = SimulatedDriver::new(Model::default(), 1_000);
        let spec = spec("a", &[("SIM_START_MS", "10"), ("SIM_FAIL_AFTER_MS", "100"), ("SIM_STOP_MS", "5")]);
        driver.start(spec.clone());
        assert_eq!(driver.take(T0), vec![]);
        assert_eq!(driver.due(), Some(T0.plus_millis(10)));
        assert_eq!(driver.take(T0.plus_millis(10)), vec![Event::Started { id: spec.id.clone() }]);
        let ended = driver.take(T0.plus_millis(110));
        assert!(matches!(&ended[..], [Event::Exited { reason, .. }] if reason.contains("code 1")), "{ended:?}");
        driver.start(spec.clone());
        driver.take(T0.plus_millis(120));
        driver.take(T0.plus_millis(130));
        driver.stop("a", 1, false);
        assert_eq!(driver.take(T0.plus_millis(140)), vec![]);
        assert!(matches!(&driver.take(T0.plus_millis(145))[..], [Event::Exited { .. }]));
        assert_eq!(driver.due(), None);
    }

    #[test]
    fn cpu_time_adds_up_to_the_load_and_never_beyond_the_capacity() {
        let mut driver = SimulatedDriver::new(Model::default(), 1_000);
        for instance in ["a", "b"] {
            driver.start(spec(instance, &[("SIM_LOAD_MILLI", "300,60000:900"), ("SIM_START_MS", "0")]));
        }
        driver.take(T0);
        let before = readings(&mut driver, T0.plus_millis(1_000));
        let after = readings(&mut driver, T0.plus_millis(11_000));
        let used = |i: usize| (after[i].cpu_nanos - before[i].cpu_nanos) as f64 / 1e7;
        assert!((280.0..320.0).contains(&used(0)), "{}", used(0));
        let before = readings(&mut driver, T0.plus_millis(61_000));
        let after = readings(&mut driver, T0.plus_millis(71_000));
        let all: u64 = (0..2).map(|i| after[i].cpu_nanos - before[i].cpu_nanos).sum();
        assert_eq!((all as f64 / 1e7).round(), 1_000.0);
    }

    #[test]
    fn a_start_error_is_hopeless() {
        let mut driver = SimulatedDriver::new(Model::default(), 1_000);
        driver.start(spec("a", &[("SIM_START_ERROR", "no such file or directory: x")]));
        assert!(matches!(&driver.take(T0)[..], [Event::StartFailed { fails: Fails::Anywhere, .. }]));
    }
}
