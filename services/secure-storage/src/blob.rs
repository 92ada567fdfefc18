//! The bytes of an object on their way to locations and back: coded, sealed, cut into fragments, and cached.

pub mod cache;
pub mod code;
pub mod fragment;
pub mod seal;
