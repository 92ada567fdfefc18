//! JetStream's answer to a write.

use async_nats::Message;

#[derive(serde::Deserialize)]
struct Body {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<BodyError>,
}

#[derive(serde::Deserialize)]
struct BodyError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// JetStream's answer to a write.
pub(crate) enum Answer {
    /// It is stored; the last message of a batch has this sequence.
    Stored {
        /// Where.
        sequence: u64,
        /// By an earlier attempt, or by another message with its id.
        is_known: bool,
    },
    /// It is not stored.
    Refused { code: u64, description: String },
}

impl Answer {
    /// Parses a message; `None` if it does not answer a write.
    pub(crate) fn parse(message: &Message) -> Option<Self> {
        let body: Body = serde_json::from_slice(&message.payload).ok()?;
        match body.error {
            Some(error) => Some(Self::Refused { code: error.err_code, description: error.description }),
            None if body.seq > 0 => Some(Self::Stored { sequence: body.seq, is_known: body.duplicate }),
            None => None,
        }
    }
}

/// JetStream error codes that the bus acts on.
pub(crate) mod code {
    /// A limit of the stream with `discard: new`, or its disk.
    const STORE_FAILED: u64 = 10077;
    /// A limit of the account.
    const ACCOUNT_RESOURCES: u64 = 10002;
    /// A limit of the server.
    const INSUFFICIENT_RESOURCES: u64 = 10023;
    /// A limit of the server's storage.
    const STORAGE_RESOURCES: u64 = 10047;
    /// Larger than the stream takes.
    const MESSAGE_TOO_LARGE: u64 = 10054;
    /// Headers larger than the server takes.
    const HEADER_TOO_LARGE: u64 = 10097;
    /// The entity moved; the number in the text is its last sequence.
    const STALE: u64 = 10071;
    /// The entity moved, or another write of it is in flight.
    const STALE_OR_IN_FLIGHT: u64 = 10164;
    /// The batch was lost, incomplete, or refused for its size or rights.
    const BATCH_INCOMPLETE: u64 = 10176;
    /// A message of the batch is stored already.
    const BATCH_KNOWN: u64 = 10201;
    /// Too many batches are open.
    const BATCHES_OPEN: u64 = 10210;
    /// A message with this id is in flight.
    const KNOWN_IN_FLIGHT: u64 = 10158;
    /// Unavailable for a moment: starting, stepping down, without a leader.
    const PASSING: [u64; 4] = [10008, 10009, 10015, 10118];

    pub(crate) fn is_full(code: u64) -> bool {
        matches!(code, STORE_FAILED | ACCOUNT_RESOURCES | INSUFFICIENT_RESOURCES | STORAGE_RESOURCES)
    }

    pub(crate) fn is_too_large(code: u64) -> bool {
        matches!(code, MESSAGE_TOO_LARGE | HEADER_TOO_LARGE)
    }

    /// Is the reason outside of the message, and passing? The message is accepted later.
    pub(crate) fn is_passing(code: u64) -> bool {
        code == BATCHES_OPEN || PASSING.contains(&code)
    }

    /// Undecided: the message may be stored already, or be accepted when it is sent again unchanged.
    pub(crate) fn is_open(code: u64) -> bool {
        matches!(code, STALE | STALE_OR_IN_FLIGHT | BATCH_INCOMPLETE | BATCH_KNOWN | KNOWN_IN_FLIGHT)
    }
}
