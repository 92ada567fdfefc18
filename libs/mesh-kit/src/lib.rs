//! How a process lives: configuration, telemetry, the three shells (decider, projector, query), health, shutdown.

#![allow(
    clippy::disallowed_methods,
    reason = "the shell of every service: it reads the clock and the environment, and starts the tasks"
)]

mod accept;
mod allocator;
mod checkpoint;
mod clock;
pub mod config;
mod dead_letter;
mod decided;
mod decider_shell;
mod files;
mod folded;
mod health;
mod http;
mod keep;
mod mesh;
pub mod metrics;
mod newest;
pub mod poison;
mod projector_shell;
mod reader;
mod readiness;
mod records;
mod run;
pub mod secret;
mod srv;
mod strict;
pub mod telemetry;
mod view;

/// Makes a program allocate with mimalloc: for `main.rs`, once. A decision is some hundred small allocations, most of them
/// the headers of its facts, and the system's allocator took 40 % of a saturated shell's time on them. What it is asked
/// for is counted ([`allocated`]).
#[macro_export]
macro_rules! allocator {
    () => {
        #[global_allocator]
        static ALLOCATOR: $crate::Counted = $crate::Counted;
    };
}

/// Takes memory from the kernel in small pages from now on, in this process and those that it starts. The allocator asks for
/// huge ones, and a mesh at rest then holds three times what it uses (docs/performance.md). What the kernel does not know is
/// left as it is.
pub fn use_small_pages() {
    let _unknown_to_the_kernel = nix::sys::prctl::set_thp_disable(true);
}

pub use accept::serve_connections;
#[doc(hidden)]
pub use allocator::Counted;
pub use allocator::{Allocated, allocated};
pub use config::Settings;
pub use decided::Decided;
pub use files::{ReadableBy, make_once, write_atomic};
pub use folded::{Content, Kept, Projection, unanswered, unreadable};
pub use http::{Condition, Error as ServeError, Missing, Readiness};
pub use keep::{Keeping, Shelf, leave_out};
pub use mesh::{Failure, Mesh};
pub use metrics::Consumer;
pub use newest::Newest;
pub use projector_shell::{Sources, outgoing};
pub use reader::{Follower, Reader};
pub use records::{Records, Rows};
pub use run::{Joint, Running, StartError, Stopped, exit, join, join_sharing, run, run_with};
pub use secret::Secret;
pub use strict::REQUEST_BYTES_MAX;
pub use view::{Follow, Look, View, follow};

/// A query that failed by a fault of the service: logs the cause, which the answer does not name.
pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> mesh_core::query::Error {
    let cause = cause.into();
    tracing::error!(error = &*cause as &dyn std::error::Error, "query failed");
    mesh_core::query::Error::Internal
}
