//! Learning without I/O, clock or chance: what a policy sees ([`features`]), its [`network`], its training ([`dqn`]), its
//! evaluation ([`evaluate`]), the file it is kept in ([`policy`]), how updates of several members are joined ([`aggregate`])
//! and how the joining rules stand up to hostile members ([`study`]).
//!
//! The service `cfdrl-agent` advises with it; `continuum learn` trains and evaluates with it.

pub mod aggregate;
pub mod dqn;
pub mod evaluate;
pub mod features;
pub mod network;
pub mod policy;
pub mod study;

/// The policy that a new site begins with, as `continuum learn train --seed 1 --episodes 240` wrote it.
pub const BUILT_IN: &str = include_str!("../policies/base.json");
