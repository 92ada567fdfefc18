//! What a round of learning is, and the advice for a live mesh. The learning itself is the library [`learning`].

pub mod federation;
pub mod live;

pub use learning::{aggregate, dqn, evaluate, features, network, policy, study};
