//! The clock of a process.

use std::time::{SystemTime, UNIX_EPOCH};

use mesh_proto::Timestamp;

/// The one place where the clock is read.
pub(crate) fn clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(i128::try_from(since.as_nanos()).unwrap_or(i128::MAX))
}
