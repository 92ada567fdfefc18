//! What is said on the bus: every message, event, subject, stream, key and id, and the gRPC services.
//!
//! - The `.proto` files under `continuum/` are the only place where a subject is written; everything here
//!   is generated from them or reads them.
//! - Never: a connection, a clock, a task.

pub mod contract;
pub mod document;
mod event;
mod id;
pub mod json;
pub mod refusal;
pub mod rights;
mod time;
pub mod wire;

pub use contract::Contract;
pub use event::{AnyEvent, DecodeError, Event, EventSet, FactSet, subject_keys};
pub use id::{Id, IdError, derived_id, is_key};
pub use refusal::{Refusal, RefusalCode};
pub use time::Timestamp;

use std::sync::OnceLock;

use prost_reflect::DescriptorPool;

macro_rules! areas {
    ($($(#[$doc:meta])* $area:ident),* $(,)?) => {
        /// Packages nested as the generated code expects them.
        #[allow(missing_docs, clippy::all, unreachable_pub)]
        mod continuum {
            pub mod mesh {
                pub mod v1 {
                    include!(concat!(env!("OUT_DIR"), "/continuum.mesh.v1.rs"));
                }
            }
            $(
            pub mod $area {
                pub mod v1 {
                    include!(concat!(env!("OUT_DIR"), "/continuum.", stringify!($area), ".v1.rs"));
                }
            }
        )*}
        $($(#[$doc])* pub use continuum::$area::v1 as $area;)*
    };
}

areas! {
    /// Intents: documents, commands, facts.
    intent,
    /// Verdicts.
    validation,
    /// Workload documents and instances.
    workload,
    /// Archives of charts.
    chart,
    /// Plans.
    placement,
    /// What each cluster is to run.
    assignment,
    /// Clusters.
    cluster,
    /// What agents say of instances.
    instance,
    /// Measurements.
    telemetry,
    /// What targets achieved.
    observation,
    /// Learned policies, their advice, and rounds of federated learning.
    learning,
    /// Intent reports.
    report,
    /// Digital twins.
    twin,
    /// Storage policies, locations, buckets.
    storage,
    /// Objects, uploads and scrubs.
    object,
    /// Notices about services.
    lifecycle,
    /// What instances used.
    usage,
    /// The ledger.
    account,
    /// Signed heads of the ledger.
    account_head,
    /// Anomalies.
    anomaly,
    /// Remedies.
    remedy,
    /// Network costs.
    cost,
    /// Network intents.
    network,
    /// The link-layer network manager's interface.
    l2sm,
    /// Accounts and sessions of the built-in issuer.
    identity,
    /// Who is told of events by HTTP.
    subscription,
    /// gRPC queries.
    query,
}

/// Typed inputs and facts of every decider, and typed events of every stream.
#[allow(missing_docs, clippy::all)]
pub mod deciders {
    include!(concat!(env!("OUT_DIR"), "/deciders.rs"));
}

include!(concat!(env!("OUT_DIR"), "/events.rs"));

/// The compiled `.proto` files, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The descriptor pool of the contract.
///
/// # Panics
/// Never: the same bytes were read when this crate was built.
#[allow(clippy::expect_used)]
pub fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).expect("the build decoded these bytes"))
}

/// The contract: streams, events, services.
///
/// # Panics
/// Never: the same contract was read when this crate was built.
#[allow(clippy::expect_used)]
pub fn contract() -> &'static Contract {
    static CONTRACT: OnceLock<Contract> = OnceLock::new();
    CONTRACT.get_or_init(|| Contract::read(pool()).expect("the build read this contract"))
}
