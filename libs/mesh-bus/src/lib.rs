//! mesh-bus
