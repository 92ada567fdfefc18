//! `dead`: letters that could not be decoded or handled: list, show, replay.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use mesh_client::{Client, now};
use mesh_core::{Outgoing, Stored};
use mesh_proto::{derived_id, rights::API_PREFIX, subject_keys};
use mesh_why::{address, body, describe::describe};
use serde_json::{Value as Json, json};

use crate::{
    context::{Context, Waiting, show},
    outcome::{Outcome, conclude},
    output::{Shown, date, fields},
};

/// Subcommands of `dead`.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// The newest dead letters.
    List {
        /// Newest letters shown.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// One letter: headers, reason and body.
    Show {
        /// Its number.
        number: u64,
    },
    /// Sends the body of a letter again where it came from, and shows what came of it.
    Replay {
        /// Its number.
        number: u64,
        /// Whether and how long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
}

const STREAM: &str = "DEAD";
const PREFIX: &str = "dead.";
const READS: usize = 16;
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Runs a subcommand of `dead`.
pub async fn run(context: &Context<'_>, command: DeadCommand) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    match command {
        DeadCommand::List { limit } => show(context, false, async || Ok(shown(&newest(&client, limit).await?))).await,
        DeadCommand::Show { number } => {
            let letter = read(&client, number).await?;
            show(context, false, async || {
                let value = letter.to_json();
                let rows = fields(&value);
                Ok(Shown::table(value, &["field", "value"], rows))
            })
            .await
        }
        DeadCommand::Replay { number, waiting } => {
            let outcome = replay(&client, &read(&client, number).await?, &waiting).await?;
            Ok(conclude(context.format, "letter", &[outcome]))
        }
    }
}

/// A dead letter.
pub struct Letter {
    stored: Stored,
    headers: BTreeMap<String, String>,
}

impl Letter {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.stored.sequence
    }

    /// When it was given up.
    pub fn given_up_at(&self) -> mesh_proto::Timestamp {
        self.stored.stored
    }

    fn subject(&self) -> &str {
        self.stored.subject.strip_prefix(PREFIX).unwrap_or(&self.stored.subject)
    }

    /// Why it could not be handled.
    pub fn reason(&self) -> &str {
        self.headers.get("mesh-dead-reason").map_or("no reason given", String::as_str)
    }

    /// Which service gave it up.
    fn by(&self) -> &str {
        self.stored.source.as_deref().unwrap_or("somebody")
    }

    /// The address of the message that it was.
    fn was(&self) -> String {
        self.stored.cause.as_ref().map(|c| format!("{}:{}", c.stream, c.sequence)).unwrap_or_default()
    }

    /// Id of the command that it was.
    fn command_id(&self) -> String {
        match &self.stored.cause {
            Some(cause) if !cause.id.is_empty() => cause.id.clone(),
            _ => self.stored.id.clone(),
        }
    }

    /// Id of its replay, where the first id cannot be used again; the same for every replay of this letter.
    fn replay_id(&self) -> String {
        derived_id(&["replay", &self.command_id(), &self.number().to_string()])
    }

    /// The message as it was, at its first place.
    fn message(&self) -> Stored {
        let mut message = self.stored.clone();
        message.subject = self.subject().to_owned();
        // An empty header stands for none: the content type was unknown.
        message.content_type = message.content_type.filter(|t| !t.is_empty());
        if message.message.is_empty() {
            let event = mesh_proto::contract().event_on(&message.subject);
            message.message = event.map(|e| e.message.clone()).unwrap_or_default();
        }
        message
    }

    fn to_json(&self) -> Json {
        json!({
            "number": self.number(),
            "time": self.given_up_at().to_string(),
            "by": self.by(),
            "subject": self.subject(),
            "reason": self.reason(),
            "was": self.was(),
            "trace": self.stored.traceparent,
            "headers": self.headers,
            "data": body(&self.message()),
        })
    }
}

/// The newest letters, oldest of them first.
pub async fn newest(client: &Client, limit: usize) -> anyhow::Result<Vec<Letter>> {
    let log = client.bus().log(STREAM);
    let mut found: Vec<Stored> = vec![];
    loop {
        let from = found.last().map_or(1, |m| m.sequence + 1);
        let page = log.read(&format!("{PREFIX}>"), from, 1_000).await.context("read the dead letters")?;
        if page.is_empty() {
            break;
        }
        found.extend(page);
        found.drain(..found.len().saturating_sub(limit.max(1)));
    }
    found.drain(..found.len().saturating_sub(limit));
    stream::iter(found).map(|stored| with_headers(client, stored)).buffered(READS).try_collect().await
}

/// Why a letter of the stream could not be handled.
pub async fn reason(client: &Client, stored: &Stored) -> anyhow::Result<String> {
    Ok(with_headers(client, stored.clone()).await?.reason().to_owned())
}

/// Was the command of a letter answered after all, by a replay?
pub async fn is_settled(client: &Client, letter: &Letter) -> anyhow::Result<bool> {
    let Some(event) = mesh_proto::contract().event_on(letter.subject()).filter(|e| e.command) else { return Ok(false) };
    let Some(keys) = subject_keys(&event.subject, letter.subject()) else { return Ok(false) };
    let entity = format!("{}.*.*.{}", event.area, keys.join("."));
    let facts = mesh_why::facts(client.bus(), &event.area.to_uppercase(), &entity).await.context("read the answers")?;
    let ids = [letter.command_id(), letter.replay_id()];
    Ok(facts.iter().filter_map(|f| f.cause.as_ref()).any(|cause| ids.contains(&cause.id)))
}

async fn read(client: &Client, number: u64) -> anyhow::Result<Letter> {
    let stored = client.bus().log(STREAM).get(number).await.context("read the letter")?;
    let stored = stored.with_context(|| format!("no dead letter has number {number}; see `continuum dead list`"))?;
    with_headers(client, stored).await
}

/// A letter with all headers that its publisher gave it.
async fn with_headers(client: &Client, stored: Stored) -> anyhow::Result<Letter> {
    let subject = format!("{API_PREFIX}.DIRECT.GET.{STREAM}");
    let question = serde_json::to_vec(&json!({"seq": stored.sequence}))?;
    let answer =
        client.bus().request(&subject, question.into(), READ_LIMIT).await.context("read the letter's headers")?;
    Ok(Letter { stored, headers: answer.headers })
}

fn shown(letters: &[Letter]) -> Shown {
    let row = |l: &Letter| {
        vec![
            l.number().to_string(),
            date(l.given_up_at()),
            l.by().to_owned(),
            l.was(),
            l.subject().to_owned(),
            l.reason().to_owned(),
        ]
    };
    let value = letters.iter().map(Letter::to_json).collect();
    Shown::table(
        value,
        &["number", "time", "given up by", "was", "subject", "reason"],
        letters.iter().map(row).collect(),
    )
}

/// Sends a letter's body again where it came from, with the id that it had.
async fn replay(client: &Client, letter: &Letter, waiting: &Waiting) -> anyhow::Result<Outcome> {
    let message = letter.message();
    let contract = mesh_proto::contract();
    let Some(event) = contract.event_on(&message.subject) else {
        bail!("{} is not a subject of the contract: no service would read it", message.subject);
    };
    if !event.command {
        bail!(
            "{} is a fact, and only its own service may publish it: it is still at {}; \
             what `{}` could not do with it is in the reason: {}",
            event.message,
            letter.was(),
            letter.by(),
            letter.reason()
        );
    }
    let decoded = message.protobuf().and_then(|body| mesh_proto::json::to_value(&event.message, &body).map(|_| body));
    let body = match decoded {
        Ok(body) => body,
        Err(error) => bail!("its body is not a {}: {error}; correct it and send it as a new command", event.message),
    };
    let cause = message.cause.clone().unwrap_or_default();
    let mut id = letter.command_id();
    let mut outgoing = Outgoing {
        id: id.clone(),
        message: event.message.clone(),
        stream: event.stream.clone(),
        subject: message.subject.clone(),
        time: now(),
        cause: None,
        traceparent: message.traceparent.clone(),
        world: vec![],
        body,
    };
    let mut outcome = Outcome { id: letter.number().to_string(), ..Outcome::default() };
    let facts = client.bus().log(&event.area.to_uppercase());
    let begun = facts.last_sequence().await.context("read the bus")? + 1;
    let stored = client.bus().publish(&outgoing).await.context("send it again")?;
    if stored <= cause.sequence {
        // The bus still remembers the id of the first sending, and takes this for the same.
        id = letter.replay_id();
        outgoing.id.clone_from(&id);
        client.bus().publish(&outgoing).await.context("send it again")?;
    }
    if waiting.no_wait {
        return Ok(Outcome { ok: true, result: "sent again".into(), ..outcome });
    }
    let deadline = tokio::time::Instant::now() + waiting.limit();
    let mut tail = facts.tail(&format!("{}.>", event.area), begun);
    let mut deaths = client.bus().log(STREAM).tail(&format!("{PREFIX}{}", message.subject), letter.number() + 1);
    loop {
        tokio::select! {
            fact = tail.next() => {
                let fact = fact.context("wait for the answer")?;
                if fact.cause.as_ref().is_some_and(|c| c.id == id) {
                    let refused = mesh_client::refusal(&fact);
                    outcome.ok = refused.is_none();
                    outcome.result = if outcome.ok { "answered" } else { "refused" }.into();
                    (outcome.reason, outcome.hint) = match refused {
                        Some(refusal) => (refusal.reason, refusal.hint),
                        None => (format!("{}: {}", address(&fact), describe(&fact)), String::new()),
                    };
                    return Ok(outcome);
                }
            }
            dead = deaths.next() => {
                let dead = with_headers(client, dead.context("wait for the answer")?).await?;
                if dead.stored.cause.as_ref().is_some_and(|c| c.id == id) {
                    outcome.result = "dead again".into();
                    outcome.reason = format!("letter {}: {}", dead.number(), dead.reason());
                    return Ok(outcome);
                }
            }
            () = tokio::time::sleep_until(deadline) => {
                outcome.result = format!("timed out after {} s waiting for the answer", waiting.timeout);
                outcome.hint = "it may have been answered before, or its service does not run: see `continuum status`".into();
                return Ok(outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::Timestamp;

    use super::*;

    fn letter(subject: &str, bytes: &'static [u8]) -> Letter {
        let stored = Stored {
            stream: STREAM.into(),
            sequence: 7,
            subject: format!("{PREFIX}{subject}"),
            id: "letter".into(),
            message: String::new(),
            time: Timestamp::default(),
            stored: Timestamp::default(),
            cause: Some(mesh_core::Cause { stream: "INTENT_ASK".into(), sequence: 3, id: "command".into() }),
            traceparent: None,
            world: vec![],
            content_type: Some(String::new()),
            source: Some("intent-manager".into()),
            previous_on_subject: None,
            delivered: 1,
            body: bytes.into(),
        };
        Letter { stored, headers: BTreeMap::from([("mesh-dead-reason".into(), "not a message".into())]) }
    }

    #[test]
    fn a_letter_is_listed_with_its_first_subject_and_its_reason() {
        let shown = shown(&[letter("intent.ask.suspend.v1.local.a", b"{}")]);
        let row = shown.text.lines().nth(1).unwrap_or_default();
        for part in ["7", "intent-manager", "INTENT_ASK:3", " intent.ask.suspend.v1.local.a", "not a message"] {
            assert!(row.contains(part), "{row}");
        }
    }

    #[test]
    fn a_letter_is_decoded_by_its_first_subject_or_marked_undecodable() {
        let good = letter("intent.ask.suspend.v1.local.a", br#"{"intentId": "a"}"#);
        assert_eq!(good.to_json()["data"]["intentId"], "a");
        let bad = letter("intent.ask.suspend.v1.local.a", &[0xff, 0xff]);
        assert!(bad.to_json()["data"]["undecodable"].is_string());
    }
}
