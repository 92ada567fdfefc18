//! meta-orchestrator
