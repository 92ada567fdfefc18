//! How a process lives: configuration, telemetry, the three shells (decider, projector, query), health, shutdown.

#![allow(
    clippy::disallowed_methods,
    reason = "the shell of every service: it reads the clock and the environment, and starts the tasks"
)]

pub mod config;
mod decider_shell;
mod http;
mod mesh;
pub mod metrics;
pub mod poison;
mod projector_shell;
mod run;
mod saved;
pub mod secret;
mod srv;
pub mod telemetry;

/// Every program of the mesh allocates with mimalloc: a decision is some hundred small allocations, most of them the
/// headers of its facts, and the system's allocator took 40 % of a saturated shell's time on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub use config::Settings;
pub use http::{Condition, Error as ServeError, Missing, REQUEST_BYTES_MAX, Readiness};
pub use mesh::{Failure, Mesh};
pub use metrics::Consumer;
pub use projector_shell::{Sources, View};
pub use run::{Running, StartError, Stopped, exit, join, run, run_with};
pub use secret::Secret;
