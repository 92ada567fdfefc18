//! Tasks and HTTP: what is asked over REST and TMF921 becomes commands and questions; the way to exposed workloads.

pub(crate) mod access;
pub(crate) mod events;
pub(crate) mod gateway;
pub(crate) mod identity;
pub(crate) mod inside;
pub(crate) mod intents;
pub(crate) mod pages;
pub(crate) mod proxy;
pub(crate) mod remote_write;
pub(crate) mod serrano;
pub(crate) mod signin;
pub(crate) mod subscriptions;
pub(crate) mod telemetry;
pub(crate) mod traffic;
pub(crate) mod twins;
pub(crate) mod workloads;
