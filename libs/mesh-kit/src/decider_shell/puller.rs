//! Brings a decider its inputs of one stream: pulls a durable like a log, rescues what a vanished replica left, and acks
//! what is done; or follows the stream, in a process that alone runs the decider.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::FutureExt as _;
use mesh_bus::{Bucket, Bus};
use mesh_core::Stored;
use mesh_proto::contract::{DurableSpec, matches};
use tokio::sync::{mpsc, watch};

use super::{ACK_EVERY, Arrival, READ_MAX, RESCUE_EVERY};
use crate::{
    dead_letter::dead_letter,
    http::Condition,
    mesh::Mesh,
    metrics::Consumer,
    poison::{self, Note},
};

/// Brings a decider the inputs of one durable.
pub(super) struct Puller {
    pub(super) name: &'static str,
    pub(super) bus: Bus,
    /// The stream of the decider's own facts.
    pub(super) own: String,
    /// Holds what is noted of inputs that may have ended the process.
    pub(super) bucket: Bucket,
    pub(super) durable: DurableSpec,
    /// Everything up to here is done, by the decider's index.
    pub(super) mark: u64,
    pub(super) sender: mpsc::Sender<Arrival>,
    pub(super) done: watch::Receiver<u64>,
    pub(super) mesh: Mesh,
}

impl Puller {
    /// Follows the stream. How far it is done is in the decider's index; the durable is only looked at for what was done
    /// while it was pulled.
    pub(super) async fn follow(mut self) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        let stream = self.durable.stream.clone();
        let info = tokio::select! {
            info = self.bus.durable(&stream, &self.durable.name) => info.context("read durable")?,
            () = stopping.cancelled() => return Ok(()),
        };
        let floor = info.ack_floor.max(self.mark);
        let end = self.bus.log(&stream).last_sequence().await.context("read the end of the inputs")?;
        if self.sender.send(Arrival::Skip(stream.clone(), floor)).await.is_err() {
            return Ok(());
        }
        let note = self.note(floor, end).await?;
        let mut fed = floor;
        if note.is_careful() {
            self.one_by_one(note, floor, end).await?;
            fed = end;
        }
        let follower = self.mesh.follow(&stream, fed + 1);
        let head = follower.head();
        if self.sender.send(Arrival::Follow(follower)).await.is_err() {
            return Ok(());
        }
        let mut look = tokio::time::interval(RESCUE_EVERY);
        let (lag, lag_max, meter) = self.lag();
        loop {
            tokio::select! {
                _ = look.tick() => {
                    let floor = (*self.done.borrow()).max(floor);
                    let behind = head().saturating_sub(floor);
                    lag.behind(behind, lag_max);
                    meter.lag(behind);
                    meter.follows(floor);
                }
                () = stopping.cancelled() => return Ok(()),
            }
        }
    }

    fn lag(&self) -> (Condition, u64, Consumer) {
        let of = format!("{} from {}", self.name, self.durable.stream);
        (self.mesh.condition(&format!("inputs of {of}")), self.mesh.settings().ready_lag_max, self.mesh.consumer(&of))
    }

    pub(super) async fn pull(mut self) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        let mut pull = tokio::select! {
            pull = self.bus.pull(&self.durable.stream, &self.durable.name) => pull.context("join durable")?,
            () = stopping.cancelled() => return Ok(()),
        };
        // What lies between the ack floor and the last delivery may be in nobody's hands: read it in order.
        // If another replica has it, the conditions of the writes tell.
        let info = pull.info().await.context("read durable")?;
        let mut floor = info.ack_floor.max(self.mark);
        if self.sender.send(Arrival::Skip(self.durable.stream.clone(), floor)).await.is_err() {
            return Ok(());
        }
        if !self.take_over().await? {
            return Ok(());
        }
        let note = self.note(floor, info.delivered).await?;
        if note.is_careful() {
            self.one_by_one(note, floor, info.delivered).await?;
        } else {
            self.rescue(floor, info.delivered).await?;
        }
        let mut pin = pull.pin();
        let mut rescue = tokio::time::interval(RESCUE_EVERY);
        let (lag, lag_max, meter) = self.lag();
        let mut batch = Vec::with_capacity(256);
        let (mut acked, mut ack_at) = (0, tokio::time::Instant::now());
        loop {
            let done = *self.done.borrow_and_update();
            tokio::select! {
                stored = pull.next() => {
                    batch.push(Arc::new(stored.context("pull")?));
                    while batch.len() < 256 {
                        match pull.next().now_or_never() {
                            Some(stored) => batch.push(Arc::new(stored.context("pull")?)),
                            None => break,
                        }
                    }
                    if pull.pin() != pin {
                        // Another replica was served in between: what it decided is read, and what it left comes first.
                        pin = pull.pin();
                        if !self.take_over().await? {
                            return Ok(());
                        }
                        let first = batch.iter().map(|stored| stored.sequence).min().unwrap_or_default();
                        let info = pull.info().await.context("read durable")?;
                        self.rescue(info.ack_floor, first.saturating_sub(1)).await?;
                    }
                    if self.sender.send(Arrival::Inputs(std::mem::take(&mut batch))).await.is_err() {
                        return Ok(());
                    }
                }
                changed = self.done.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep_until(ack_at), if done > acked => {
                    pull.ack_through(done);
                    (acked, ack_at) = (done, tokio::time::Instant::now() + ACK_EVERY);
                }
                _ = rescue.tick() => {
                    let Ok(info) = pull.info().await else { continue };
                    lag.behind(info.pending, lag_max);
                    meter.lag(info.pending);
                    let stuck = info.ack_floor == floor && info.delivered > info.ack_floor;
                    floor = info.ack_floor;
                    if stuck && *self.done.borrow() < info.delivered {
                        self.rescue(info.ack_floor, info.delivered).await?;
                    }
                }
                () = stopping.cancelled() => break,
            }
        }
        // The last acks: of what was done and not acked yet, and of the decisions in hand, once they are written.
        let done = *self.done.borrow_and_update();
        if done > acked {
            pull.ack_through(done);
        }
        while self.done.changed().await.is_ok() {
            pull.ack_through(*self.done.borrow_and_update());
        }
        Ok(())
    }

    /// Tells where the own facts end; false once nobody listens any more.
    async fn take_over(&self) -> anyhow::Result<bool> {
        let own_end = self.bus.log(&self.own).last_sequence().await.context("read the end of the own facts")?;
        Ok(self.sender.send(Arrival::TakeOver(own_end)).await.is_ok())
    }

    fn note_key(&self) -> String {
        format!("hand.{}", self.durable.stream)
    }

    /// Reads what the last start noted of inputs that were in hand, and notes this start.
    async fn note(&self, floor: u64, delivered: u64) -> anyhow::Result<Note> {
        let before = self.bucket.get(&self.note_key()).await.context("read what was in hand")?;
        let known = before.is_some();
        // A note that cannot be read is of another version: it only costs some starts.
        let before = before.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let note = Note::start(before, floor, delivered);
        if known || !note.is_empty() {
            self.keep(&note).await?;
        }
        Ok(note)
    }

    async fn keep(&self, note: &Note) -> anyhow::Result<()> {
        let bytes = if note.is_empty() { vec![] } else { serde_json::to_vec(note).context("write what is in hand")? };
        self.bucket.put_all(vec![(self.note_key(), bytes.into())]).await.context("note what is in hand")
    }

    /// Takes in the inputs after `floor` up to `end` one by one: one of them may have ended the process before.
    async fn one_by_one(&mut self, mut note: Note, floor: u64, end: u64) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        // Whatever this process runs: only one of all suspects is in hand.
        let _turn = tokio::select! {
            turn = poison::TURN.lock() => turn,
            () = stopping.cancelled() => return Ok(()),
        };
        tracing::warn!(
            decider = self.name,
            stream = self.durable.stream,
            after = floor,
            through = end,
            starts = note.starts,
            "the process ended with these inputs in hand: they are taken in one by one"
        );
        let state = self.bus.state();
        let mut from = floor + 1;
        while let Some(input) = self.suspect(from, end).await? {
            from = input.sequence + 1;
            let sequence = input.sequence;
            match note.next(sequence) {
                poison::Verdict::Take => {}
                verdict => {
                    if verdict == poison::Verdict::Bury {
                        let reason = format!("it ended the process {} times", note.deaths(sequence));
                        dead_letter(&self.mesh, &input, &reason).await;
                        note.buried(sequence);
                        self.keep(&note).await?;
                    }
                    let skip = Arrival::Skip(self.durable.stream.clone(), sequence);
                    if self.sender.send(skip).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
            }
            self.keep(&note).await?;
            if self.sender.send(Arrival::Inputs(vec![Arc::new(input)])).await.is_err() {
                return Ok(());
            }
            loop {
                let done = tokio::select! {
                    changed = self.done.changed() => match changed {
                        Ok(()) if *self.done.borrow() < sequence => continue,
                        changed => changed.is_ok(),
                    },
                    () = tokio::time::sleep(Duration::from_millis(250)) => {
                        let waits = { let now = state.borrow(); now.connected && now.full.is_some() };
                        if waits && note.hand != 0 {
                            // It waits for room: whoever ends the process now does not do so for its sake.
                            note.put_down();
                            self.keep(&note).await?;
                        }
                        if *self.done.borrow() < sequence {
                            continue;
                        }
                        true
                    }
                    () = stopping.cancelled() => false,
                };
                if !done {
                    // Stopped in order: nothing is charged, if the bus can still be told.
                    note.put_down();
                    if let Err(error) = self.keep(&note).await {
                        tracing::debug!(error = %error, "what was in hand stays noted");
                    }
                    return Ok(());
                }
                break;
            }
        }
        note.put_down();
        self.keep(&note).await
    }

    /// The first input from a sequence up to `end`.
    async fn suspect(&self, from: u64, end: u64) -> anyhow::Result<Option<Stored>> {
        let log = self.bus.log(&self.durable.stream);
        let subject =
            mesh_proto::contract().stream(&self.durable.stream).map(|s| s.subject.clone()).unwrap_or_default();
        let mut from = from;
        while from <= end {
            let read = log.read(&subject, from, 1).await.context("read inputs in hand")?;
            let Some(stored) = read.into_iter().next().filter(|stored| stored.sequence <= end) else { return Ok(None) };
            if self.durable.filters.iter().any(|f| matches(f, &stored.subject)) {
                return Ok(Some(stored));
            }
            from = stored.sequence + 1;
        }
        Ok(None)
    }

    /// Reads the inputs after `floor` up to `end` in order; those that were fed before are ignored there.
    async fn rescue(&self, floor: u64, end: u64) -> anyhow::Result<()> {
        let log = self.bus.log(&self.durable.stream);
        let subject =
            mesh_proto::contract().stream(&self.durable.stream).map(|s| s.subject.clone()).unwrap_or_default();
        let mut from = floor + 1;
        while from <= end {
            let read = log.read(&subject, from, READ_MAX).await.context("read inputs in hand")?;
            let Some(last) = read.last().map(|stored| stored.sequence) else { return Ok(()) };
            let inputs: Vec<Arc<Stored>> = read
                .into_iter()
                .filter(|s| s.sequence <= end && self.durable.filters.iter().any(|f| matches(f, &s.subject)))
                .map(Arc::new)
                .collect();
            if !inputs.is_empty() && self.sender.send(Arrival::Inputs(inputs)).await.is_err() {
                return Ok(());
            }
            from = last + 1;
        }
        Ok(())
    }
}
