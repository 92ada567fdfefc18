//! The ledger's rules and proofs: what anyone needs to fold, audit and verify a ledger without the service that writes it.
//!
//! - [`Ledger`] folds entries: accounts, debts, regions, charged windows;
//! - [`tariff`] holds what a window costs;
//! - [`tree`] is the Merkle tree over the entries, in memory or in [`tiles`], [`note`] the signed heads of it;
//! - [`files`] reads and writes exported ledgers and proofs.
//!
//! Pure: no clock, no I/O. The service `accounting` decides with it, `continuum account verify` checks with it.

pub mod files;
mod ledger;
pub mod note;
pub mod tariff;
pub mod tiles;
pub mod tree;

pub use ledger::*;
