//! Messages that travel.

use bytes::Bytes;

use crate::{Refusal, contract::matches, id::is_key};

/// A message that travels on the bus; implemented for every message with the `event` option.
pub trait Event: prost::Message + Default + Clone + Send + Sync + 'static {
    /// Full protobuf name; the CloudEvents type.
    const MESSAGE: &'static str;
    /// Stream that stores it.
    const STREAM: &'static str;
    /// Subject with braced key fields.
    const SUBJECT: &'static str;
    /// First subject token.
    const AREA: &'static str;
    /// Is it a command?
    const COMMAND: bool;
    /// Key fields in subject order.
    fn keys(&self) -> Vec<&str>;
    /// The key field at a position.
    fn key_mut(&mut self, position: usize) -> Option<&mut String>;
    /// Id of the refused command and why it was refused, if this is its area's refusal.
    fn refusal(&self) -> Option<(&str, Refusal)> {
        None
    }
    /// Subject of those with these keys, in subject order; a key that is not given stands for any.
    fn filter(keys: &[&str]) -> String {
        let mut keys = keys.iter();
        let token = |token| if str::starts_with(token, '{') { keys.next().copied().unwrap_or("*") } else { token };
        Self::SUBJECT.split('.').map(token).collect::<Vec<_>>().join(".")
    }
}

/// A stream of the contract: one of [`streams`](crate::streams).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Its name.
    pub name: &'static str,
    /// Everything in it, as readers see it.
    pub all: &'static str,
}

impl Stream {
    /// Every event with these keys, whatever its message: all that is known of an entity.
    pub fn entity(&self, keys: &[&str]) -> String {
        format!("{}*.*.{}", self.all.trim_end_matches('>'), keys.join("."))
    }
}

/// An event whose type is not known statically.
pub trait AnyEvent: Send + Sync {
    /// Full protobuf name.
    fn message(&self) -> &'static str;
    /// Stream that stores it.
    fn stream(&self) -> &'static str;
    /// First subject token.
    fn area(&self) -> &'static str;
    /// Is it a command?
    fn is_command(&self) -> bool;
    /// Key fields in subject order.
    fn keys(&self) -> Vec<&str>;
    /// Subject that readers see. Fails if a key is not one token of `[A-Za-z0-9_-]{1,64}`.
    fn subject(&self) -> Result<String, DecodeError>;
    /// Encoded body.
    fn body(&self) -> Bytes;
    /// Makes the key fields those of a subject: fills empty ones, refuses different ones.
    fn adopt_keys(&mut self, subject: &str) -> Result<(), DecodeError>;
    /// Id of the refused command and why it was refused, if this is its area's refusal.
    fn refusal(&self) -> Option<(&str, Refusal)>;
}

impl<E: Event> AnyEvent for E {
    fn message(&self) -> &'static str {
        E::MESSAGE
    }

    fn stream(&self) -> &'static str {
        E::STREAM
    }

    fn area(&self) -> &'static str {
        E::AREA
    }

    fn is_command(&self) -> bool {
        E::COMMAND
    }

    fn keys(&self) -> Vec<&str> {
        Event::keys(self)
    }

    fn subject(&self) -> Result<String, DecodeError> {
        let mut keys = Event::keys(self).into_iter();
        let mut subject = String::with_capacity(E::SUBJECT.len() + 40);
        for token in E::SUBJECT.split('.') {
            if !subject.is_empty() {
                subject.push('.');
            }
            if token.starts_with('{') {
                let key = keys.next().unwrap_or_default();
                if !is_key(key) {
                    return Err(DecodeError::Key {
                        field: token.trim_matches(['{', '}']).to_owned(),
                        value: key.to_owned(),
                    });
                }
                subject.push_str(key);
            } else {
                subject.push_str(token);
            }
        }
        Ok(subject)
    }

    fn body(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    fn refusal(&self) -> Option<(&str, Refusal)> {
        Event::refusal(self)
    }

    fn adopt_keys(&mut self, subject: &str) -> Result<(), DecodeError> {
        let keys: Vec<String> = subject_keys(E::SUBJECT, subject)
            .ok_or_else(|| DecodeError::Subject { subject: subject.to_owned(), expected: E::SUBJECT })?;
        for (position, key) in keys.into_iter().enumerate() {
            if !is_key(&key) {
                return Err(DecodeError::Key { field: format!("key {}", position + 1), value: key });
            }
            let Some(field) = self.key_mut(position) else { continue };
            if field.is_empty() {
                *field = key;
            } else if *field != key {
                return Err(DecodeError::KeyMismatch { subject: key, body: field.clone() });
            }
        }
        Ok(())
    }
}

/// An event that came encoded, and is passed on with the same bytes.
#[derive(Clone, Debug)]
pub struct Encoded<E> {
    keys: E,
    body: Bytes,
}

impl<E: Event> Encoded<E> {
    /// The event of this body, of which the key fields are given: they make its subject.
    pub fn new(keys: E, body: Bytes) -> Self {
        Self { keys, body }
    }
}

impl<E: Event> AnyEvent for Encoded<E> {
    fn message(&self) -> &'static str {
        E::MESSAGE
    }

    fn stream(&self) -> &'static str {
        E::STREAM
    }

    fn area(&self) -> &'static str {
        E::AREA
    }

    fn is_command(&self) -> bool {
        E::COMMAND
    }

    fn keys(&self) -> Vec<&str> {
        Event::keys(&self.keys)
    }

    fn subject(&self) -> Result<String, DecodeError> {
        self.keys.subject()
    }

    fn body(&self) -> Bytes {
        self.body.clone()
    }

    fn adopt_keys(&mut self, subject: &str) -> Result<(), DecodeError> {
        self.keys.adopt_keys(subject)
    }

    fn refusal(&self) -> Option<(&str, Refusal)> {
        Event::refusal(&self.keys)
    }
}

/// The keys of a subject that fits a braced pattern, in order; `None` if it does not fit.
pub fn subject_keys(pattern: &str, subject: &str) -> Option<Vec<String>> {
    let filter = pattern.split('.').map(|t| if t.starts_with('{') { "*" } else { t }).collect::<Vec<_>>().join(".");
    matches(&filter, subject).then(|| {
        pattern
            .split('.')
            .zip(subject.split('.'))
            .filter(|(p, _)| p.starts_with('{'))
            .map(|(_, s)| s.to_owned())
            .collect()
    })
}

/// A closed set of events: a decider's inputs or facts, or all of a stream.
pub trait EventSet: Sized + Clone + Send + Sync + 'static {
    /// Decodes a body of the named message.
    fn decode(message: &str, body: &[u8]) -> Result<Self, DecodeError>;
    /// The event inside.
    fn any(&self) -> &dyn AnyEvent;
    /// The event inside, to change.
    fn any_mut(&mut self) -> &mut dyn AnyEvent;
    /// Full names of all members.
    fn messages() -> &'static [&'static str];
}

/// The facts of one decider: all of one area, with its refusal.
pub trait FactSet: EventSet {
    /// Area in the subject.
    const AREA: &'static str;
    /// The area's answer to a command that was not done; `None` if the area takes no refusable commands.
    fn refused(keys: &[String], command_id: &str, command: &str, refusal: &Refusal) -> Option<Self>;
}

/// Bytes that are not the event they should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not this protobuf message.
    #[error("decode protobuf body")]
    Protobuf(#[from] prost::DecodeError),
    /// The body is not JSON for this message.
    #[error("decode JSON body: {0}")]
    Json(String),
    /// A command says something that is not known here: nothing of it may be dropped silently.
    #[error("field {0} is not known here: leave it out, or update the services that read it")]
    Unknown(String),
    /// The content type is neither protobuf nor JSON.
    #[error("content type {0:?} is neither application/protobuf nor application/json")]
    ContentType(String),
    /// The message is not one that belongs here.
    #[error("event {0:?} does not belong here")]
    Unexpected(String),
    /// No event travels on this subject.
    #[error("no event of the contract travels on subject {0:?}")]
    UnknownSubject(String),
    /// The subject does not fit the event's pattern.
    #[error("subject {subject:?} does not fit {expected:?}")]
    Subject {
        /// What came.
        subject: String,
        /// What should have.
        expected: &'static str,
    },
    /// A key is not one token of `[A-Za-z0-9_-]{1,64}`.
    #[error("{field} {value:?} is not one token of [A-Za-z0-9_-]{{1,64}}")]
    Key {
        /// Which key.
        field: String,
        /// Its value.
        value: String,
    },
    /// The body names another entity than the subject.
    #[error("the subject says {subject:?}, the body {body:?}; leave the body's empty or make them equal")]
    KeyMismatch {
        /// Key in the subject.
        subject: String,
        /// Key in the body.
        body: String,
    },
}
