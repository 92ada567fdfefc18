//! Questions asked over Zenoh, and their answers.

use bytes::Bytes;
use zenoh::{
    bytes::Encoding,
    handlers::RingChannelHandler,
    key_expr::KeyExpr,
    query::{Query, Queryable},
};

use super::{SamplesError, refused};

/// Questions on one key expression, oldest first. One that finds no room ends without an answer.
pub struct QuestionStream {
    pub(super) queryable: Queryable<RingChannelHandler<Query>>,
}

impl QuestionStream {
    /// The next question; `None` once the session is closed.
    pub async fn next(&mut self) -> Option<Question> {
        self.queryable.recv_async().await.ok().map(|query| Question { query })
    }
}

/// How an answer is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// Protobuf.
    Protobuf,
    /// JSON.
    Json,
}

/// A question. Its asker waits until it is dropped.
pub struct Question {
    query: Query,
}

impl Question {
    /// The key expression that is asked for.
    pub fn key(&self) -> &str {
        self.query.key_expr().as_str()
    }

    /// Its parameters but for Zenoh's own, whose names begin with `_`.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.query.parameters().iter().filter(|(name, _)| !name.starts_with('_'))
    }

    /// Does it ask for this key, too?
    pub fn asks_for(&self, key: &str) -> bool {
        KeyExpr::try_from(key).is_ok_and(|key| self.query.key_expr().intersects(&key))
    }

    /// Answers for one key.
    ///
    /// # Errors
    /// When the key is not asked for, or the session is closed.
    pub async fn answer(&self, key: &str, body: Bytes, encoded: Encoded) -> Result<(), SamplesError> {
        let encoding = match encoded {
            Encoded::Protobuf => Encoding::APPLICATION_PROTOBUF,
            Encoded::Json => Encoding::APPLICATION_JSON,
        };
        let reply = self.query.reply(key, body).encoding(encoding);
        reply.await.map_err(|source| refused("answer for", key, source))
    }

    /// Says why there is no answer.
    ///
    /// # Errors
    /// When the session is closed.
    pub async fn refuse(&self, why: &str) -> Result<(), SamplesError> {
        let reply = self.query.reply_err(why).encoding(Encoding::TEXT_PLAIN);
        reply.await.map_err(|source| refused("refuse", self.key(), source))
    }
}
