//! Harnesses over the running mesh: real nats-server, real processes, real files.
//!
//! They need the programs beside the test (`cargo build --workspace --bins`, which `make test` does first) and a
//! nats-server 2.14.4 or newer; without one each suite says that it was skipped.
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `CONTINUUM_FULL` | the long form of every harness; `make test-full` sets it | |
//! | `CONTINUUM_CYCLES` | processes killed by `kill9`; 1,000 by `make test-kill9` | 12, long form 50 |
//! | `CONTINUUM_INTENTS` | intents submitted meanwhile | 300, long form 2,000 |
//! | `CONTINUUM_SEED` | which processes are killed, or get a fault | the time |

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(missing_docs, unreachable_pub)]

mod account;
mod anomalies;
mod answers;
mod areas;
mod backup;
mod bad_input;
mod clients;
mod evicted;
mod full_disk;
mod intents;
mod kill9;
mod late_retries;
mod life;
mod manifests;
mod network;
mod races;
mod registry;
mod replay;
mod support;
mod upgrade;
