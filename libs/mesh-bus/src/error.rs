//! Why a connection, a publication, a request or a subscription failed.

use std::time::Duration;

/// The connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address could not be parsed.
    #[error("read bus address {url:?}")]
    Address {
        /// What was given.
        url: String,
        /// Why it could not be parsed.
        #[source]
        source: std::io::Error,
    },
    /// The server does not know this identity.
    #[error(
        "sign in to the bus at {url} as {service:?}: the server does not know this identity; \
         use the seed that was rendered with the server's configuration"
    )]
    Identity {
        /// Where.
        url: String,
        /// As whom.
        service: String,
        /// The client's error.
        #[source]
        source: async_nats::ConnectError,
    },
    /// No server answered within the limit.
    #[error("reach the bus at {url} within {limit_ms} ms: is nats-server running there?")]
    Unreachable {
        /// Where.
        url: String,
        /// How long it was tried, milliseconds.
        limit_ms: u64,
        /// The last attempt's failure.
        #[source]
        source: Option<async_nats::ConnectError>,
    },
}

/// Messages that are not known to be stored.
#[derive(Debug, thiserror::Error)]
#[error("{count} messages not stored")]
pub struct Unstored {
    /// How many.
    pub count: u64,
    /// Why the first of them is not.
    #[source]
    pub first: PublishError,
}

/// A message without condition was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The stream, or its disk, is full, and stayed so.
    #[error("publish to {subject}: stream {stream} is full; raise its limit or free disk space")]
    Full {
        /// The full stream.
        stream: String,
        /// Where it was published.
        subject: String,
    },
    /// Too many commands wait already, and none of them was stored in time.
    #[error("publish to {subject}: {limit} commands to {stream} are waiting, and none finished within {waited_ms} ms")]
    Busy {
        /// The stream.
        stream: String,
        /// Where it was to be published.
        subject: String,
        /// Commands that may wait.
        limit: usize,
        /// How long it waited for room, milliseconds.
        waited_ms: u64,
    },
    /// The message is larger than the server takes.
    #[error("publish to {subject}: the message has {size} bytes; the server takes at most {limit}")]
    TooLarge {
        /// Where it was published.
        subject: String,
        /// Its size in bytes, headers included; 0 if the server did not say.
        size: usize,
        /// The limit in bytes; 0 if the server did not say.
        limit: usize,
    },
    /// This service has no right to publish there.
    #[error("publish to {subject}: not permitted to this identity")]
    Denied {
        /// Where it was published.
        subject: String,
    },
    /// The stream refuses it, and will again.
    #[error("publish to {subject}: refused with code {code}: {description}")]
    Refused {
        /// Where it was published.
        subject: String,
        /// JetStream's error code.
        code: u64,
        /// JetStream's description.
        description: String,
    },
    /// No stream answered within the limit.
    #[error("publish to {subject}: no answer within {limit_ms} ms")]
    Unanswered {
        /// Where it was published.
        subject: String,
        /// The limit, milliseconds.
        limit_ms: u64,
    },
    /// The subject is invalid.
    #[error("publish to {subject:?}: invalid subject")]
    Subject {
        /// What was given.
        subject: String,
    },
    /// The bus was closed.
    #[error("publish: the bus is closed")]
    Closed,
}

/// A request brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody listens there.
    #[error("ask {subject}: nobody listens there")]
    Nobody {
        /// Where it was asked.
        subject: String,
    },
    /// No answer in time, or the connection broke.
    #[error("ask {subject}: no answer within {limit_ms} ms")]
    Unanswered {
        /// Where it was asked.
        subject: String,
        /// The limit, milliseconds.
        limit_ms: u64,
    },
    /// This service has no right to ask there.
    #[error("ask {subject}: not permitted to this identity")]
    Denied {
        /// Where it was asked.
        subject: String,
    },
    /// The subject is invalid, or the body too large.
    #[error("ask {subject}: invalid subject, or a body too large")]
    Unacceptable {
        /// Where it was asked.
        subject: String,
    },
    /// The bus was closed.
    #[error("ask: the bus is closed")]
    Closed,
}

/// A subscription was not made.
#[derive(Debug, thiserror::Error)]
#[error("subscribe to {subject}")]
pub struct SubscribeError {
    pub(crate) subject: String,
    #[source]
    pub(crate) source: async_nats::SubscribeError,
}

/// Why a request brought no answer, inside this crate.
#[derive(Debug)]
pub(crate) enum AskError {
    /// The connection broke: whether it was done is unknown.
    Lost,
    /// No answer in time: whether it was done is unknown.
    TimedOut,
    /// The server knows nobody who listens there.
    NoResponders,
    /// No right to ask there.
    Denied,
    /// Larger than the server takes.
    TooLarge { size: usize, limit: usize },
    /// The subject is invalid.
    Subject,
    /// The bus is closed.
    Closed,
}

pub(crate) fn publish_error(error: AskError, subject: &str, length: usize) -> PublishError {
    let subject = subject.to_owned();
    match error {
        AskError::TooLarge { size, limit } => PublishError::TooLarge { subject, size: size.max(length), limit },
        AskError::Denied => PublishError::Denied { subject },
        AskError::Subject => PublishError::Subject { subject },
        AskError::Closed => PublishError::Closed,
        AskError::Lost | AskError::TimedOut | AskError::NoResponders => {
            PublishError::Unanswered { subject, limit_ms: 0 }
        }
    }
}

pub(crate) fn request_error(error: AskError, subject: &str, limit: Duration) -> RequestError {
    let subject = subject.to_owned();
    match error {
        AskError::NoResponders => RequestError::Nobody { subject },
        AskError::Lost | AskError::TimedOut => RequestError::Unanswered { subject, limit_ms: limit.as_millis() as u64 },
        AskError::Denied => RequestError::Denied { subject },
        AskError::TooLarge { .. } | AskError::Subject => RequestError::Unacceptable { subject },
        AskError::Closed => RequestError::Closed,
    }
}
