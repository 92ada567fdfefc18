//! Time as a value: an argument everywhere, read from a clock only by the shells.

use std::{fmt, str::FromStr};

/// A point in time, `google.protobuf.Timestamp` on the wire (UTC, nanoseconds).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message, serde::Serialize, serde::Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds within the second, 0 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// From nanoseconds since 1970.
    pub const fn from_nanos(nanos: i128) -> Self {
        Self { seconds: nanos.div_euclid(1_000_000_000) as i64, nanos: nanos.rem_euclid(1_000_000_000) as i32 }
    }

    /// From milliseconds since 1970.
    pub const fn from_millis(millis: i64) -> Self {
        Self::from_nanos(millis as i128 * 1_000_000)
    }

    /// Nanoseconds since 1970.
    pub const fn as_nanos(self) -> i128 {
        self.seconds as i128 * 1_000_000_000 + self.nanos as i128
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> i64 {
        (self.as_nanos().div_euclid(1_000_000)) as i64
    }

    /// Later by this number of milliseconds.
    pub const fn plus_millis(self, millis: i64) -> Self {
        Self::from_nanos(self.as_nanos() + millis as i128 * 1_000_000)
    }

    /// Milliseconds from `earlier` to this; negative if it is later.
    pub const fn millis_since(self, earlier: Self) -> i64 {
        ((self.as_nanos() - earlier.as_nanos()) / 1_000_000) as i64
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339, UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        prost_types::Timestamp { seconds: self.seconds, nanos: self.nanos }.fmt(f)
    }
}

impl FromStr for Timestamp {
    type Err = String;

    /// RFC 3339.
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed: prost_types::Timestamp = text.parse().map_err(|_| format!("{text:?} is not an RFC 3339 time"))?;
        Ok(Self { seconds: parsed.seconds, nanos: parsed.nanos })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_text_and_arithmetic() {
        let time = Timestamp::from_millis(1_795_318_929_462);
        assert_eq!(time.to_string().parse(), Ok(time));
        assert_eq!(time.plus_millis(-1).millis_since(time), -1);
        assert_eq!(Timestamp::from_millis(-1).nanos, 999_000_000);
    }
}
