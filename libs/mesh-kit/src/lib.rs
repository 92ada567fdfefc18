//! mesh-kit
