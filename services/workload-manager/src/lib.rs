//! workload-manager
