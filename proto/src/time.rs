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

    /// RFC 3339, to the letter: a date, a time with seconds, and `Z` or an offset with its colon. A second 60 is one only
    /// where leap seconds are: at the end of a month of UTC, the same as the second after it.
    fn from_str(text: &str) -> Result<Self, String> {
        read(text).ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            format!("{shown:?} is not a time; write it as 2027-01-31T12:00:00Z or 2027-01-31T12:00:00+05:30 (RFC 3339)")
        })
    }
}

fn read(text: &str) -> Option<Timestamp> {
    // `0` is a digit, all else stands for itself.
    let shaped = |text: &str, shape: &str| {
        text.len() == shape.len()
            && text.bytes().zip(shape.bytes()).all(|(is, should)| match should {
                b'0' => is.is_ascii_digit(),
                should => is.eq_ignore_ascii_case(&should),
            })
    };
    let (time, rest) = (text.get(..19)?, text.get(19..)?);
    if !shaped(time, "0000-00-00T00:00:00") {
        return None;
    }
    let number = |text: &str| text.parse::<u32>().ok();
    let part = |from: usize, to: usize| number(time.get(from..to)?);
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let (hour, minute, second) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
    let zone_at = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
    let (fraction, zone) = rest.split_at(zone_at);
    let nanos = match fraction.strip_prefix('.') {
        None if fraction.is_empty() => 0,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            number(format!("{digits:0<9}").get(..9)?)?
        }
        _ => return None,
    };
    let offset_s = match zone {
        "Z" | "z" => 0,
        _ if shaped(zone, "+00:00") || shaped(zone, "-00:00") => {
            let (hours, minutes) = (number(zone.get(1..3)?)?, number(zone.get(4..6)?)?);
            let seconds = i64::from(hours * 3_600 + minutes * 60);
            match hours <= 23 && minutes <= 59 {
                true if zone.starts_with('-') => -seconds,
                true => seconds,
                false => return None,
            }
        }
        _ => return None,
    };
    if year == 0 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let narrow = |number: u32| u8::try_from(number).ok();
    let day_start = prost_types::Timestamp::date_time(i64::from(year), narrow(month)?, narrow(day)?, 0, 0, 0).ok()?;
    let seconds = day_start.seconds + i64::from(hour * 3_600 + minute * 60 + second) - offset_s;
    if second == 60 {
        let after = prost_types::Timestamp { seconds, nanos: 0 }.to_string();
        if !after.ends_with("-01T00:00:00Z") {
            return None;
        }
    }
    SECONDS.contains(&seconds).then_some(Timestamp { seconds, nanos: i32::try_from(nanos).ok()? })
}

/// What `google.protobuf.Timestamp` holds: the years 1 to 9999 of UTC.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

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

    #[test]
    fn a_time_is_read_by_rfc_3339_to_the_letter() {
        let right =
            |text: &str, utc: &str| assert_eq!(text.parse::<Timestamp>().map(|t| t.to_string()), Ok(utc.into()));
        right("2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z");
        right("2027-01-31t12:00:00z", "2027-01-31T12:00:00Z");
        right("2027-01-31T12:00:00+05:30", "2027-01-31T06:30:00Z");
        right("2027-01-31T00:00:00-00:00", "2027-01-31T00:00:00Z");
        right("2024-02-29T23:59:59.5-23:59", "2024-03-01T23:58:59.500Z");
        right("2027-01-31T12:00:00.1234567891Z", "2027-01-31T12:00:00.123456789Z");
        right("1969-12-31T23:59:59.25Z", "1969-12-31T23:59:59.250Z");
        right("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z");
        right("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z");
        // Leap seconds, in UTC and elsewhere.
        right("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z");
        right("2017-01-01T05:29:60+05:30", "2017-01-01T00:00:00Z");
        for wrong in [
            "2027-01-31T12:00:00+0530",
            "2027-01-31T12:00:00+05",
            "2027-01-31T12:00:00+5:30",
            "2027-01-31T12:00:00+24:00",
            "2027-01-31T12:00:00+05:60",
            "2027-01-31T12:00:00",
            "2027-01-31T12:00:60Z",
            "2027-01-30T23:59:60Z",
            "2016-12-31T23:59:60+01:00",
            "2027-01-31T12:00:61Z",
            "2027-01-31T12:60:00Z",
            "2027-01-31T24:00:00Z",
            "2027-02-29T12:00:00Z",
            "2027-13-01T12:00:00Z",
            "2027-00-01T12:00:00Z",
            "2027-01-31T12:00Z",
            "2027-01-31 12:00:00Z",
            "2027-01-31",
            "20270131T120000Z",
            "2027-1-31T12:00:00Z",
            "12027-01-31T12:00:00Z",
            "2027-01-31T12:00:00.Z",
            "2027-01-31T12:00:00,5Z",
            "2027-01-31T12:00:00.5.5Z",
            "2027-01-31T12:00:00Z ",
            "2027-01-31T12:00:00ZZ",
            "+027-01-31T12:00:00Z",
            "2027-01-31T12:00:00Ü",
            "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00+05:30",
            "9999-12-31T23:59:60Z",
            "9999-12-31T23:59:59-00:01",
            "",
            "now",
        ] {
            let error = wrong.parse::<Timestamp>().unwrap_err();
            assert!(error.contains("2027-01-31T12:00:00+05:30"), "{wrong}: {error}");
        }
    }
}
