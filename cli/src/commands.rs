//! The commands, one module per noun. Each owns its part of the command line.

pub mod account;
pub mod alto;
pub mod anomaly;
pub mod backup;
pub mod catalogue;
pub mod chart;
pub mod cluster;
pub mod dead;
pub mod doctor;
pub mod intent;
pub mod learn;
pub mod login;
pub mod manual;
pub mod network;
pub mod program;
pub mod provision;
pub mod remedy;
pub mod status;
pub mod storage;
pub mod tap;
pub mod telemetry;
pub mod twin;
pub mod up;
pub mod why;
pub mod workload;
