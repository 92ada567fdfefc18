//! Learning without I/O, clock or chance: what a policy sees, its network, its training, its evaluation, how updates of
//! several members are joined, what a round is, and the advice for a live mesh.

pub mod aggregate;
pub mod dqn;
pub mod evaluate;
pub mod features;
pub mod federation;
pub mod live;
pub mod network;
pub mod policy;
pub mod study;
