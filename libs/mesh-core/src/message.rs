//! What travels: a body with its CloudEvents attributes and its cause.

use bytes::Bytes;
use mesh_proto::{AnyEvent, DecodeError, Event, EventSet, Timestamp, json, rights, wire, wording};

/// The message that caused another: an address by which it can be read again, and its id.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Cause {
    /// Stream; empty when time itself was the cause.
    pub stream: String,
    /// Sequence in the stream.
    pub sequence: u64,
    /// Its id; `due:<RFC 3339>` when time was the cause.
    pub id: String,
}

/// A message to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// CloudEvents id; also `Nats-Msg-Id`, unless it is written on a condition.
    pub id: String,
    /// Full protobuf name.
    pub message: String,
    /// Stream that stores it.
    pub stream: String,
    /// Subject that readers see (without `w.`).
    pub subject: String,
    /// When what it says happened (`ce-time`).
    pub time: Timestamp,
    /// What caused it.
    pub cause: Option<Cause>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Stream positions that the decision's read model was folded to.
    pub world: Vec<(String, u64)>,
    /// Protobuf bytes.
    pub body: Bytes,
}

impl Outgoing {
    /// An event with its id and time. Fails if a key does not fit its subject.
    pub fn new(event: &dyn AnyEvent, id: impl Into<String>, time: Timestamp) -> Result<Self, DecodeError> {
        Ok(Self {
            id: id.into(),
            message: event.message().to_owned(),
            stream: event.stream().to_owned(),
            subject: event.subject()?,
            time,
            cause: None,
            traceparent: None,
            world: vec![],
            body: if event.is_command() { event.body() } else { wording::body(event.message(), event.body()) },
        })
    }

    /// As readers see it once it is stored: published by `source`, at this sequence, at this time.
    pub fn stored(&self, source: &str, sequence: u64, at: Timestamp) -> Stored {
        Stored {
            stream: self.stream.clone(),
            sequence,
            subject: self.subject.clone(),
            id: self.id.clone(),
            message: self.message.clone(),
            time: self.time,
            stored: at,
            cause: self.cause.clone(),
            traceparent: self.traceparent.clone(),
            world: self.world.clone(),
            content_type: None,
            source: Some(source.to_owned()),
            previous_on_subject: None,
            delivered: 1,
            body: self.body.clone(),
        }
    }

    /// With its cause.
    pub fn caused_by(mut self, cause: Cause) -> Self {
        self.cause = Some(cause);
        self
    }
}

/// A stored message, as read.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Stream it is in.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// Subject it is stored under.
    pub subject: String,
    /// CloudEvents id; `<stream>:<sequence>` when it came without.
    pub id: String,
    /// Full protobuf name, from the header or else from the subject; empty if no event travels there.
    pub message: String,
    /// When what it says happened (`ce-time`), else when it was stored.
    pub time: Timestamp,
    /// When the server stored it.
    pub stored: Timestamp,
    /// What caused it.
    pub cause: Option<Cause>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Stream positions that the decision's read model was folded to.
    pub world: Vec<(String, u64)>,
    /// `ce-datacontenttype`, if given.
    pub content_type: Option<String>,
    /// Who published it (`ce-source`), if given.
    pub source: Option<String>,
    /// Sequence of the message before it on its subject, when known (republished or read directly).
    pub previous_on_subject: Option<u64>,
    /// How often the durable delivered it; 1 when read otherwise.
    pub delivered: u64,
    /// Body as it came.
    pub body: Bytes,
}

impl Stored {
    /// The body as protobuf: as it is, or transcoded from JSON. JSON is assumed without a content type if the body starts
    /// with `{`, which no protobuf message of ours does: it would open a group. With blanks or a byte order mark before it,
    /// which may also begin a protobuf message, it is what it can be read as.
    pub fn protobuf(&self) -> Result<Bytes, DecodeError> {
        let from_json = || Ok(json::to_protobuf(&self.message, &self.body)?.into());
        match self.content_type.as_deref().map(|t| t.split(';').next().unwrap_or(t).trim().to_ascii_lowercase()) {
            Some(kind) if kind == "application/json" => return from_json(),
            Some(kind) if matches!(kind.as_str(), "application/protobuf" | "application/x-protobuf") => {}
            Some(_) => return Err(DecodeError::ContentType(self.content_type.clone().unwrap_or_default())),
            None if self.body.first() == Some(&b'{') => return from_json(),
            None => {
                let text = self.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.body).trim_ascii_start();
                if text.starts_with(b"{")
                    && (serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
                        || !json::is_protobuf(&self.message, &self.body))
                {
                    return from_json();
                }
            }
        }
        Ok(self.body.clone())
    }

    /// The body as this event, with its keys made those of the subject; `None` if it is another event.
    /// An error if it should be this one and is not.
    pub fn event<E: Event>(&self) -> Result<Option<E>, DecodeError> {
        if self.message != E::MESSAGE {
            return Ok(None);
        }
        let mut event = E::decode(self.protobuf()?)?;
        event.adopt_keys(&self.subject)?;
        Ok(Some(event))
    }

    /// The body as one of a decider's inputs, with its keys made those of the subject, and its bytes as they came in. Facts
    /// of a newer service are taken as far as they are known; what a person asks for is taken whole or not at all.
    ///
    /// # Errors
    /// When it is another message, says another entity than its subject, or is a command of people with a field that is not
    /// known.
    pub fn input<I: EventSet>(&self) -> Result<(Bytes, I), DecodeError> {
        let body = self.protobuf()?;
        let mut input = I::decode(&self.message, &body)?;
        if rights::is_peoples(&self.message)
            && let Some(field) = wire::unknown(&json::descriptor(&self.message)?, &body)
        {
            return Err(DecodeError::Unknown(field));
        }
        input.any_mut().adopt_keys(&self.subject)?;
        Ok((body, input))
    }

    /// Its address, as a cause of others.
    pub fn cause_of(&self) -> Cause {
        Cause { stream: self.stream.clone(), sequence: self.sequence, id: self.id.clone() }
    }
}

/// The facts that follow from one question to one entity: written all or none.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The entity's condition, for example `intent.*.*.local.my-intent`: one text per entity, always the same.
    pub entity: String,
    /// Sequence of the entity's last fact that the decision knew; 0 for none.
    pub expected: u64,
    /// Its facts: at least one, all of this entity and one stream, with their ids.
    pub messages: Vec<Outgoing>,
}

#[cfg(test)]
mod tests {
    use mesh_proto::{intent::SubmitIntent, storage::CreateBucket};

    use super::*;

    fn stored(event: &dyn AnyEvent, body: impl Into<Bytes>, content_type: Option<&str>) -> Stored {
        let outgoing = Outgoing::new(event, "c", Timestamp::default()).unwrap();
        let stored = outgoing.stored("person", 1, Timestamp::default());
        Stored { body: body.into(), content_type: content_type.map(str::to_owned), ..stored }
    }

    fn bucket() -> CreateBucket {
        let [owner, bucket, policy, realm] = ["local", "b", "p", "r"].map(Into::into);
        CreateBucket { owner, bucket, policy, realm, ..CreateBucket::default() }
    }

    #[test]
    fn json_is_told_from_protobuf_whatever_blanks_are_before_it() {
        let right = bucket();
        let json = r#"{"owner": "local", "bucket": "b", "policy": "p", "realm": "r"}"#;
        for before in ["", " ", "\n", "\r\n", "\t  \n\n", "\u{feff}", "\u{feff}\n "] {
            for content_type in [None, Some("application/json"), Some("Application/JSON; charset=utf-8")] {
                let stored = stored(&right, format!("{before}{json}\n"), content_type);
                assert_eq!(stored.event().unwrap(), Some(right.clone()), "{before:?} {content_type:?}");
            }
        }
        let stored = stored(&right, right.body(), None);
        assert_eq!(stored.event().unwrap(), Some(right));
    }

    #[test]
    fn a_protobuf_body_that_begins_like_json_stays_protobuf() {
        // Field 1 with 123 bytes: a line feed and an opening brace.
        let command = SubmitIntent { owner: "a".repeat(123), ..SubmitIntent::default() };
        let body = command.body();
        assert!(body.starts_with(b"\n{"));
        let key = SubmitIntent { owner: "local".into(), intent_id: "i".into(), ..SubmitIntent::default() };
        assert_eq!(stored(&key, body.clone(), None).protobuf().unwrap(), body);
    }

    #[test]
    fn unknown_fields_are_refused_of_people_and_passed_over_of_services() {
        use mesh_proto::{deciders::intents::Input, validation::IntentAccepted};
        let extra = [0xf8, 0x3f, 7]; // field 1023, varint 7
        let command = SubmitIntent { owner: "local".into(), intent_id: "i".into(), ..SubmitIntent::default() };
        let more = [&command.body()[..], &extra].concat();
        let refused = stored(&command, more, None).input::<Input>().unwrap_err();
        assert!(matches!(&refused, DecodeError::Unknown(field) if field == "1023"), "{refused}");
        assert!(stored(&command, command.body(), None).input::<Input>().is_ok());
        let fact = IntentAccepted { owner: "local".into(), intent_id: "i".into(), ..Default::default() };
        let more = [&fact.body()[..], &extra].concat();
        let (body, read) = stored(&fact, more.clone(), None).input::<Input>().unwrap();
        assert_eq!((&body[..], read.any().body()), (&more[..], fact.body()));
    }

    #[test]
    fn what_was_meant_as_json_is_refused_as_json() {
        let refused = |body: &str| stored(&bucket(), body.to_owned(), None).protobuf().unwrap_err().to_string();
        assert!(refused("\n{\"owner\": \"local\",").contains("JSON"));
        assert!(refused(" {\"owner\": \"a\", \"owner\": \"b\"}").contains("twice"));
        let kind = stored(&bucket(), "{}", Some("text/plain")).protobuf().unwrap_err();
        assert!(matches!(kind, DecodeError::ContentType(kind) if kind == "text/plain"));
    }
}
