//! Nothing: see the comment in this crate's `Cargo.toml`.
