//! What workloads have sent by OTLP since the last reading.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_proto::Timestamp;
use tokio::sync::watch;

use super::{Entity, Probe, Reading, Running};
use crate::{domain::measure::otlp::Inbox, shell::otlp::Door};

/// Reads the inbox.
pub struct Received {
    inbox: Arc<Mutex<Inbox>>,
    door: Arc<Door>,
    running: watch::Receiver<Running>,
}

impl Received {
    /// Of an agent that receives into this inbox.
    pub fn new(inbox: Arc<Mutex<Inbox>>, door: Arc<Door>, running: watch::Receiver<Running>) -> Self {
        Self { inbox, door, running }
    }

    /// Instances that may have sent something, with their owners. One is let in before it is measured for the first time,
    /// and what it sent as it ended is read after its end.
    fn senders(&self) -> BTreeMap<String, String> {
        let mut all = self.door.instances();
        let running = self.running.borrow();
        all.extend(running.instances.iter().map(|(id, watched)| (id.clone(), watched.owner.clone())));
        all
    }
}

impl Probe for Received {
    fn name(&self) -> &'static str {
        "otlp"
    }

    fn entities(&mut self) -> Vec<Entity> {
        let senders = self.senders();
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.retain(|instance| senders.contains_key(instance));
        let entity = |id: &str| Entity {
            kind: "application",
            id: id.to_owned(),
            owner: senders.get(id).cloned().unwrap_or_default(),
        };
        inbox.instances().map(entity).collect()
    }

    fn read(&mut self, due: &[Entity], _now: Timestamp) -> Vec<Reading> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        due.iter().map(|entity| inbox.take(&entity.id)).collect()
    }
}
