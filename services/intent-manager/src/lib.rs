//! intent-manager
