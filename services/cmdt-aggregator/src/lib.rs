//! cmdt-aggregator
